"""NULL authentication (RFC 7619): only where policy asks for it by name, and for that end alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.ike.conftest import Pair, mirrored, tunnel_policy
from tests.ike.test_eap import policies as with_eap
from tests.ike.test_signatures import failure_at
from tests.keypairs import private_key, public_key
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.ike.kept_policy import read_policies, write_policy
from xfrmpy.ike.outputs import RequestRefused, TunnelClosed
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.identity import NOBODY, Identity
from xfrmpy.policy.model import Ppk, SharedKey, TunnelPolicy, Uniqueness
from xfrmpy.registry import AuthenticationMethod, NotifyType
from xfrmpy.wire.payloads import (
    AuthPayload,
    EapPayload,
    IdiPayload,
    IdrPayload,
    NotifyPayload,
    OpenPayload,
)

Policies = tuple[TunnelPolicy, TunnelPolicy]


def proving_nothing(*ends: str, **changes: Any) -> Policies:
    """Policies of moon and sun, of which these ends prove nothing; the other knows the secret."""
    moon = replace(tunnel_policy(), **changes)
    if "moon" in ends:
        moon = replace(moon, local_null=True, local_id=NOBODY)
    if "sun" in ends:
        moon = replace(moon, remote_null=True, remote_id=NOBODY)
    if len(ends) == 2:
        moon = replace(moon, shared_key=None)
    sun = replace(mirrored(moon), local_null=moon.remote_null, remote_null=moon.local_null)
    return moon, sun


def signing_beside(end: str) -> Policies:
    """The other end signs."""
    moon, sun = proving_nothing(end, shared_key=None)
    if end == "moon":
        sun = replace(sun, local_key=private_key(KeyKind.ED25519, "sun"))
        return replace(moon, remote_key=public_key(KeyKind.ED25519, "sun")), sun
    moon = replace(moon, local_key=private_key(KeyKind.ED25519, "moon"))
    return moon, replace(sun, remote_key=public_key(KeyKind.ED25519, "moon"))


def said(sealing: Any) -> list[OpenPayload]:
    """All that is said behind IKE_SA_INIT."""
    heard: list[OpenPayload] = []

    def listen(_: Any, payloads: tuple[OpenPayload, ...]) -> tuple[OpenPayload, ...]:
        heard.extend(payloads)
        return payloads

    sealing.change = listen
    return heard


@pytest.mark.parametrize(
    ("policies", "methods"),
    [
        (proving_nothing("moon", "sun"), ("NULL", "NULL")),
        (proving_nothing("moon"), ("NULL", "SHARED_KEY")),
        (proving_nothing("sun"), ("SHARED_KEY", "NULL")),
        (signing_beside("moon"), ("NULL", "DIGITAL_SIGNATURE")),
        (signing_beside("sun"), ("DIGITAL_SIGNATURE", "NULL")),
    ],
)
def test_an_end_proves_nothing_and_says_no_name_and_the_other_one_as_it_does(
    policies: Policies, methods: tuple[str, str], sealing: Any
) -> None:
    heard = said(sealing)
    pair = Pair(*policies)
    pair.up()
    pair.assert_up()
    assert tuple(p.method.name for p in heard if isinstance(p, AuthPayload)) == methods
    named = {type(p): p.identity for p in heard if isinstance(p, IdiPayload | IdrPayload)}
    for kind, method in ((IdiPayload, methods[0]), (IdrPayload, methods[1])):
        assert (named[kind] == NOBODY) is (method == "NULL")
    assert pair.moon.ike_sa.remote_id == policies[0].remote_id
    assert pair.sun.ike_sa.remote_id == policies[1].remote_id


def with_ppk(moon: TunnelPolicy, sun: TunnelPolicy) -> Policies:
    ppk = Ppk(id="q", key=SharedKey(octets=bytes(32), origin="test"))
    return replace(moon, ppks=(ppk,)), replace(sun, ppks=(ppk,))


@pytest.mark.parametrize("knows", [True, False])
def test_a_post_quantum_preshared_key_goes_beside_it(knows: bool) -> None:
    """RFC 8784 section 3: SK_pi and SK_pr have it, and they are what AUTH is made by."""
    moon, sun = with_ppk(*proving_nothing("moon", "sun"))
    pair = Pair(moon, sun if knows else replace(sun, ppks=()))
    pair.up()
    pair.assert_up()


@pytest.mark.parametrize(
    ("policies", "code"),
    [
        (lambda: (proving_nothing("moon")[0], mirrored(tunnel_policy())), "XF2007"),
        (lambda: (proving_nothing("moon", "sun")[0], signing_beside("sun")[1]), "XF2007"),
        (lambda: (tunnel_policy(), proving_nothing("moon")[1]), "XF2007"),
    ],
)
def test_an_initiator_that_proves_nothing_and_a_tunnel_that_asks_for_it_go_together(
    policies: Callable[[], Policies], code: str
) -> None:
    pair = Pair(*policies())
    pair.up()
    pair.assert_down()
    assert failure_at(pair, "sun").code == code


@pytest.mark.parametrize(
    ("ours", "theirs", "code"),
    [
        (tunnel_policy(), proving_nothing("sun")[1], "XF2006"),
        (proving_nothing("sun")[0], mirrored(tunnel_policy()), "XF2043"),
        (signing_beside("moon")[0], proving_nothing("moon", "sun")[1], "XF2041"),
    ],
)
def test_a_responder_does_as_our_policy_says_or_is_refused(
    ours: TunnelPolicy, theirs: TunnelPolicy, code: str
) -> None:
    pair = Pair(ours, replace(theirs, local_id=Identity.parse("sun")))
    pair.up()
    pair.assert_down()
    assert failure_at(pair, "moon").code == code


def test_no_name_of_a_stranger_s_is_believed() -> None:
    """RFC 7619 section 2.2: whoever it says that it is, it gets the tunnel of strangers."""
    moon, sun = proving_nothing("moon")
    known, strangers = mirrored(tunnel_policy()), replace(sun, name="tunnel-b")
    pair = Pair(replace(moon, local_id=Identity.parse("moon")), known)
    pair.sun.endpoint.add_tunnel(strangers)
    pair.up()
    sa = pair.sun.ike_sa
    assert (sa.tunnel_name, sa.remote_id) == (strangers.name, NOBODY)


def test_the_name_of_nobody_opens_no_tunnel_to_who_proves_itself_otherwise() -> None:
    """ID_NULL with a shared key, which is right."""
    moon = replace(tunnel_policy(), local_id=NOBODY)
    pair = Pair(moon, proving_nothing("moon", shared_key=moon.shared_key)[1])
    pair.up()
    pair.assert_down()
    assert failure_at(pair, "sun").code == "XF2007"


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_auth_that_is_not_made_by_the_keys_of_this_ike_sa_fails(end: str, sealing: Any) -> None:
    """It proves at least that nobody sits between the ends of IKE_SA_INIT unseen by both."""

    def forge(_: Any, payloads: tuple[OpenPayload, ...]) -> tuple[OpenPayload, ...]:
        kind = IdiPayload if end == "moon" else IdrPayload
        if not any(isinstance(p, kind) for p in payloads):
            return payloads
        return tuple(
            replace(p, data=bytes(len(p.data))) if isinstance(p, AuthPayload) else p
            for p in payloads
        )

    policies = proving_nothing("moon", "sun")
    pair = Pair(*policies)
    sealing.change = forge
    pair.up()
    pair.assert_down()
    assert failure_at(pair, "sun" if end == "moon" else "moon").code == "XF2043"


@pytest.mark.parametrize("unique", list(Uniqueness))
def test_strangers_do_not_take_one_another_s_place(unique: Uniqueness, sealing: Any) -> None:
    """RFC 7619 section 2.3: INITIAL_CONTACT "MUST NOT" close another one of the same name."""
    pair = Pair(*proving_nothing("moon", "sun", unique=unique))
    contact = NotifyPayload(type=NotifyType.INITIAL_CONTACT)
    heard = said(sealing)
    pair.up()
    assert contact not in heard

    def begin_anew(_: Any, payloads: tuple[OpenPayload, ...]) -> tuple[OpenPayload, ...]:
        is_request = any(isinstance(p, IdiPayload) for p in payloads)
        return (*payloads, contact) if is_request else payloads

    sealing.change = begin_anew
    first = pair.sun.ike_sa
    pair.moon.start()
    pair.up()
    pair.run(5)
    states = [sa.state for sa in pair.sun.ike_sas]
    assert states == [IkeSaState.ESTABLISHED] * 2
    assert first in pair.sun.ike_sas
    assert not pair.sun.reports(RequestRefused)


def test_no_password_is_answered_to_a_gateway_that_proves_nothing(sealing: Any) -> None:
    """RFC 7296 section 2.16; policy refuses it, and so does the core."""
    moon, sun = with_eap()
    moon = replace(moon, remote_key=None, remote_null=True, remote_id=NOBODY)
    pair = Pair(moon, replace(sun, local_key=None, local_null=True, local_id=NOBODY))
    heard = said(sealing)
    pair.up()
    pair.assert_down()
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure is not None
    assert closed.failure.code == "XF2051"
    assert sum(isinstance(p, EapPayload) for p in heard) == 1  # The question.


def test_a_policy_is_kept_as_it_is() -> None:
    policy, _ = proving_nothing("moon", "sun")
    (kept,) = read_policies({b"policy of x": write_policy(policy, bytes(16))}).values()
    assert kept.beside(policy) == policy


def test_the_method_has_its_number() -> None:
    """RFC 7619 section 5."""
    assert (AuthenticationMethod.NULL, NOBODY.type) == (13, 13)
