"""EAP-TLS, EAP-TTLS and PEAP in IKE_AUTH: by which certificates and passwords users come in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from tests.eap import tls_ends
from tests.eap.tls_ends import CLIENT, GATEWAY, ISSUING, ROOT, STRANGER, leaf
from tests.ike.conftest import Pair
from tests.ike.test_certificates import bundle
from tests.ike.test_eap import failures, of_kind, policies, said
from tests.pki.chains import Entity
from tests.pki.test_revocation import crl
from xfrmpy.ike.kept_policy import read_policies, write_policy
from xfrmpy.ipsec.identity import Identity
from xfrmpy.policy.model import (
    EapClientTls,
    EapInside,
    EapMethod,
    EapServerTls,
    PrivateKey,
    TunnelPolicy,
)
from xfrmpy.wire.payloads import AuthPayload

TLS, TTLS, PEAP = EapMethod.TLS, EapMethod.TTLS, EapMethod.PEAP
WAYS = [
    (TLS, EapInside.EAP_MSCHAPV2),
    *((TTLS, inside) for inside in EapInside),
    *((PEAP, inside) for inside in (EapInside.EAP_MSCHAPV2, EapInside.EAP_GTC)),
]
SERVER, USER = leaf(GATEWAY), leaf(CLIENT)


def key_of(entity: Entity) -> PrivateKey:
    public = entity.certificate.public_key_info
    return PrivateKey(octets=tls_ends.key_of(entity).pkcs8, public=public, origin="keys/test.key")


def ends(
    method: EapMethod,
    inside: EapInside = EapInside.EAP_MSCHAPV2,
    *,
    client: dict[str, Any] | None = None,
    server: dict[str, Any] | None = None,
    alone: tuple[bool, bool] = (False, False),
    **who: Any,
) -> tuple[TunnelPolicy, TunnelPolicy]:
    """Of moon, a user, and sun; `client` and `server` change what they have of TLS."""
    theirs = EapServerTls(
        certificates=bundle(SERVER, ISSUING), key=key_of(SERVER), authorities=bundle(ROOT)
    )
    ours = EapClientTls(authorities=bundle(ROOT), server=Identity.parse(GATEWAY), inside=inside)
    if method is TLS:
        who = {"user": CLIENT, **who}
        ours = replace(ours, certificates=bundle(USER, ISSUING), key=key_of(USER))
    moon, sun = policies(
        method,
        ours={"tls": replace(ours, **(client or {})), "alone": alone[0]},
        theirs={
            "tls": replace(theirs, **(server or {})),
            "methods": (method,),
            "alone": alone[1],
        },
        **who,
    )
    if method is TLS:
        assert moon.local_eap is not None
        moon = replace(moon, local_eap=replace(moon.local_eap, password=None))
    return moon, sun


@pytest.mark.parametrize(("method", "inside"), WAYS)
def test_a_user_comes_in_by_each_method(method: EapMethod, inside: EapInside) -> None:
    pair = Pair(*ends(method, inside))
    pair.up()
    pair.assert_up()
    user = CLIENT if method is TLS else "carol"
    assert str(pair.sun.ike_sa.remote_id) == f"eap:{user}"


@pytest.mark.parametrize(("method", "inside"), WAYS)
def test_each_is_fit_to_be_alone(method: EapMethod, inside: EapInside, sealing: Any) -> None:
    """RFC 5998: they prove the server by its certificate, and make a key."""
    assert method.is_fit_alone
    pair = Pair(*ends(method, inside, alone=(True, True)))
    pair.up()
    pair.assert_up()
    assert not of_kind(said(sealing, is_response=True)[0], AuthPayload)


@pytest.mark.parametrize(("method", "inside"), [way for way in WAYS if way[0] is not TLS])
@pytest.mark.parametrize("who", [{"password": b"guessed"}, {"user": "mallory"}])
def test_who_does_not_know_a_password_stays_out(
    method: EapMethod, inside: EapInside, who: dict[str, Any]
) -> None:
    pair = Pair(*ends(method, inside, **who))
    pair.up()
    pair.assert_down()
    (failure,) = failures(pair.sun)
    assert failure.code == "XF2052"


@pytest.mark.parametrize(
    ("client", "why"),
    [
        ({"certificates": None, "key": None}, "did not return a certificate"),
        (
            {"certificates": bundle(leaf(CLIENT), ISSUING), "key": key_of(USER)},
            "of no use",
        ),
        (
            {
                "certificates": bundle(other := leaf("mallory.example.net"), ISSUING),
                "key": key_of(other),
            },
            "XF2114",
        ),
    ],
)
def test_who_does_not_have_the_certificate_stays_out(client: dict[str, Any], why: str) -> None:
    pair = Pair(*ends(TLS, client=client))
    pair.up()
    pair.assert_down()
    assert any(why in failure.summary for failure in [*failures(pair.sun), *failures(pair.moon)])


@pytest.mark.parametrize(("method", "inside"), WAYS)
@pytest.mark.parametrize(
    ("client", "why"),
    [
        ({"authorities": bundle(STRANGER)}, "certificate verify failed"),
        ({"server": Identity.parse("other.example.net")}, "XF2114"),
    ],
)
def test_a_server_within_eap_that_is_not_believed_is_told_nothing(
    method: EapMethod, inside: EapInside, client: dict[str, Any], why: str
) -> None:
    pair = Pair(*ends(method, inside, client=client))
    pair.up()
    pair.assert_down()
    (failure,) = failures(pair.moon)
    assert failure.code == "XF2050"
    assert why in failure.summary


def test_a_user_whose_certificate_is_revoked_stays_out() -> None:
    revoked = crl(ISSUING, [USER]).library.public_bytes(Encoding.DER)
    pair = Pair(*ends(TLS, server={"authorities": replace(bundle(ROOT), crl=revoked)}))
    pair.up()
    pair.assert_down()
    (failure,) = failures(pair.sun)
    assert "XF2115" in failure.summary


def test_no_key_and_no_password_is_in_a_record_or_a_representation() -> None:
    for method in (TLS, TTLS):
        for policy in ends(method):
            record = write_policy(policy, b"salt")
            (kept,) = read_policies({b"policy of x": record}).values()
            for secret in (key_of(USER).octets, key_of(SERVER).octets, b"correct horse"):
                assert secret.hex().encode() not in record
                assert secret not in record
                assert repr(secret)[2:-1] not in repr(policy)
            if policy.local_eap is not None and method is TLS:
                assert kept.beside(policy).local_eap == policy.local_eap
