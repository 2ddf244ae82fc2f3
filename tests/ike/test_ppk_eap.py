"""Post-quantum preshared keys with EAP and with several rounds of authentication, in both roles.

Moon is the user, sun the gateway. By RFC 8784 a key that is named with the last AUTH is in both
AUTH behind EAP, and not in the gateway's before it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.ike.conftest import Pair, offer_ppk_in_auth_alone, with_notification
from tests.ike.test_eap import policies
from tests.ike.test_ppk import BRANCH, FALSE, OFFICE, in_auth, refusal
from tests.ike.test_wrong_proofs import behind_a_shared_key
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.ike.outputs import TunnelClosed
from xfrmpy.policy.model import EapMethod, Ppk
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.payloads import AuthPayload, NotifyPayload

X = ExchangeType
METHODS = [EapMethod.MSCHAPV2, EapMethod.MD5]
"""One that makes a key, and one that does not."""

WAYS = pytest.mark.parametrize("way", [X.IKE_INTERMEDIATE, X.IKE_AUTH], ids=lambda way: way.name)


@pytest.fixture
def know(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What both ends know of."""

    def set_way(way: ExchangeType) -> None:
        if way is X.IKE_AUTH:
            offer_ppk_in_auth_alone(monkeypatch)

    return set_way


def pair_of(
    moon: tuple[Ppk, ...] = (OFFICE,),
    sun: tuple[Ppk, ...] = (OFFICE,),
    *,
    required: str = "",
    method: EapMethod = EapMethod.MSCHAPV2,
    **changes: Any,
) -> Pair:
    ours, theirs = policies(method, **changes)
    return Pair(
        replace(ours, ppks=moon, ppk_required="moon" in required),
        replace(theirs, ppks=sun, ppk_required="sun" in required),
    )


@WAYS
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("required", ["", "moon", "sun", "moon and sun"])
def test_a_user_of_eap_has_the_key_in_the_keys(
    know: Any, sealing: Any, way: ExchangeType, method: EapMethod, required: str
) -> None:
    know(way)
    pair = pair_of(required=required, method=method)
    pair.up()
    pair.assert_up()
    for host in (pair.moon, pair.sun):
        assert (host.views[0].ppk_id, host.ike_sa.ppk_exchange) == ("office", way)
    named = [data for found in in_auth(sealing, NotifyType.PPK_IDENTITY) for data in found]
    assert named == ([b"\x02office", b""] if way is X.IKE_AUTH else [])
    has_spare = way is X.IKE_AUTH and "moon" not in required
    assert any(in_auth(sealing, NotifyType.NO_PPK_AUTH)) == has_spare


def test_the_name_goes_with_the_last_auth(know: Any, sealing: Any) -> None:
    know(X.IKE_AUTH)
    pair_of().up()
    messages = [ps for m, ps in sealing.sent if m.exchange is X.IKE_AUTH]
    named = [
        any(isinstance(p, NotifyPayload) and p.type == NotifyType.PPK_IDENTITY for p in payloads)
        for payloads in messages
    ]
    proofs = [any(isinstance(p, AuthPayload) for p in payloads) for payloads in messages]
    assert named == [False] * (len(named) - 2) + [True, True]
    assert proofs == [False, True] + [False] * (len(named) - 4) + [True, True]


@WAYS
@pytest.mark.parametrize("sun", [(BRANCH,), ()])
def test_without_one_in_common_the_user_comes_in_if_neither_end_requires_it(
    know: Any, way: ExchangeType, sun: tuple[Ppk, ...]
) -> None:
    know(way)
    pair = pair_of((OFFICE,), sun)
    pair.up()
    pair.assert_up()
    assert [h.views[0].ppk_id for h in (pair.moon, pair.sun)] == ["", ""]


@WAYS
@pytest.mark.parametrize("required", ["moon", "sun", "moon and sun"])
def test_without_one_in_common_nobody_comes_in_where_it_is_required(
    know: Any, way: ExchangeType, required: str
) -> None:
    know(way)
    pair = pair_of((OFFICE,), (BRANCH,), required=required)
    pair.up()
    pair.assert_down()
    failures = [*pair.sun.reports(TunnelClosed), *pair.moon.reports(TunnelClosed)]
    assert any(report.failure and report.failure.code == "XF2033" for report in failures) or (
        refusal(pair.sun).code == "XF2033"
    )


@WAYS
@pytest.mark.parametrize("method", METHODS)
def test_another_key_under_the_same_name_is_no_way_in_where_it_is_required(
    know: Any, way: ExchangeType, method: EapMethod
) -> None:
    know(way)
    pair = pair_of((FALSE,), (OFFICE,), required="sun", method=method)
    pair.up()
    pair.assert_down()
    failure = refusal(pair.sun)
    assert failure.code == "XF2034"
    assert ("our PPK" if way is X.IKE_AUTH else "our PPKs", "office (o.ppk)") in failure.evidence


def test_a_wrong_auth_is_not_taken_for_a_wrong_key(know: Any, sealing: Any) -> None:
    know(X.IKE_AUTH)
    pair = pair_of()

    def spoil(message: Any, payloads: Any) -> Any:
        is_last = not message.is_response and len(in_auth(sealing, NotifyType.PPK_IDENTITY)) > 2
        return tuple(
            replace(p, data=bytes(len(p.data))) if isinstance(p, AuthPayload) and is_last else p
            for p in payloads
            if not (isinstance(p, NotifyPayload) and p.type == NotifyType.NO_PPK_AUTH)
        )

    sealing.change = spoil
    pair.up()
    assert refusal(pair.sun).code == "XF2054"


def test_a_gateway_that_leaves_the_confirmation_out_is_not_believed(
    know: Any, sealing: Any
) -> None:
    know(X.IKE_AUTH)
    pair = pair_of()
    sealing.change = with_notification(
        NotifyType.PPK_IDENTITY, lambda _: None, lambda message: message.is_response
    )
    pair.up()
    assert refusal(pair.moon, TunnelClosed).code == "XF2054"


# Several rounds (RFC 4739).


def rounds_of(
    moon: tuple[Ppk, ...] = (OFFICE,), sun: tuple[Ppk, ...] = (OFFICE,), *, required: str = ""
) -> Pair:
    ours, theirs = behind_a_shared_key(KeyKind.ED25519)
    return Pair(
        replace(ours, ppks=moon, ppk_required="moon" in required),
        replace(theirs, ppks=sun, ppk_required="sun" in required),
    )


@pytest.mark.parametrize("required", ["", "moon and sun"])
def test_every_round_is_over_keys_that_have_it(sealing: Any, required: str) -> None:
    pair = rounds_of(required=required)
    pair.up()
    pair.assert_up()
    for host in (pair.moon, pair.sun):
        assert (host.views[0].ppk_id, host.ike_sa.ppk_exchange) == ("office", X.IKE_INTERMEDIATE)
    assert not any(in_auth(sealing, NotifyType.PPK_IDENTITY))


def test_with_rounds_none_is_taken_in_ike_auth(know: Any, sealing: Any) -> None:
    """RFC 8784 does not say in which round it would be."""
    know(X.IKE_AUTH)
    pair = rounds_of(required="sun")
    pair.up()
    pair.assert_down()
    assert refusal(pair.sun).code == "XF2033"
    assert not any(b"" in found for found in in_auth(sealing, NotifyType.PPK_IDENTITY))
