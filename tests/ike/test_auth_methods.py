"""The announcement of authentication methods (RFC 9593), both ways, and what it is good for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.ike.conftest import Pair, mirrored, tunnel_policy
from tests.ike.test_certificates import by_certificates
from tests.ike.test_null_auth import proving_nothing
from tests.ike.test_signatures import failure_at, one_way, signing
from xfrmpy.crypto.authentication import SignaturePolicy
from xfrmpy.crypto.signatures import SCHEMES, Form, KeyKind
from xfrmpy.ike import auth, auth_methods, init
from xfrmpy.ike.auth_methods import announce, as_announced, expectations, heard_methods
from xfrmpy.ike.outputs import TunnelClosed
from xfrmpy.policy.model import TunnelPolicy
from xfrmpy.registry import AuthenticationMethod, HashAlgorithm, NotifyType
from xfrmpy.wire.auth_methods import AuthAnnouncement, encode_auth_methods
from xfrmpy.wire.payloads import AuthPayload, NotifyPayload, OpenPayload

DS = AuthenticationMethod.DIGITAL_SIGNATURE
PKCS1 = next(s for s in SCHEMES if s.form is Form.PKCS1 and s.hash == HashAlgorithm.SHA2_512)


def said_by(policy: TunnelPolicy) -> list[str]:
    """The proofs that an end with this policy says that it takes."""
    usable = SignaturePolicy()
    heard = heard_methods(announce(expectations((policy,)), usable))
    return list(auth_methods.shown_methods(heard, usable))


def test_each_end_says_what_it_takes_and_the_other_hears_it() -> None:
    pair = by_certificates()
    pair.up()
    pair.assert_up()
    for host in (pair.moon, pair.sun):
        methods = host.ike_sa.heard.methods
        assert {a.method for a in methods} == {DS}
        assert len(methods) == len([s for s in SCHEMES if s.form is not Form.ML_DSA])


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (tunnel_policy(), []),
        (one_way("moon")[0], ["SHARED_KEY"]),
        (one_way("moon")[1], ["ed25519"]),
        (signing(KeyKind.RSA)[0], [s.name for s in SCHEMES if KeyKind.RSA in s.kinds]),
        (signing(KeyKind.ML_DSA_65)[1], ["ml-dsa-65"]),
        (proving_nothing("moon", "sun")[0], ["NULL"]),
        (proving_nothing("moon")[0], ["SHARED_KEY"]),
    ],
)
def test_an_end_says_what_its_policy_takes_and_nothing_of_shared_keys_alone(
    policy: TunnelPolicy, said: list[str]
) -> None:
    assert said_by(policy) == said


def test_a_gateway_says_it_for_all_tunnels_that_a_caller_may_mean() -> None:
    policies = (tunnel_policy(), signing()[0], proving_nothing("sun")[0])
    methods = [e.method.name for e in expectations(policies)]
    assert methods == ["SHARED_KEY", "DIGITAL_SIGNATURE", "NULL"]


def announcing(*algorithms: bytes) -> tuple[NotifyPayload, ...]:
    data = encode_auth_methods(AuthAnnouncement(method=DS, algorithm=a) for a in algorithms)
    return (NotifyPayload(type=NotifyType.SUPPORTED_AUTH_METHODS, data=data),)


@pytest.mark.parametrize("module", [init, auth], ids=["responder says", "initiator says"])
def test_an_rsa_key_signs_as_the_peer_says_that_it_verifies(
    module: Any, monkeypatch: pytest.MonkeyPatch, sealing: Any
) -> None:
    """Without PSS, which our policy prefers, and by SHA-512, which it does not."""
    monkeypatch.setattr(module, "announce", lambda *_: announcing(PKCS1.identifiers[0]))
    pair = Pair(*signing(KeyKind.RSA))
    pair.up()
    pair.assert_up()
    request, response = (
        p.data for _, payloads in sealing.sent for p in payloads if isinstance(p, AuthPayload)
    )
    signed = request if module is init else response
    assert signed[1 : 1 + signed[0]] in PKCS1.identifiers


@pytest.mark.parametrize("algorithms", [(), (b"\x30\x03\x06\x01\x2a",)])
def test_what_is_announced_is_advice(
    algorithms: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that our key can do, or nothing at all: it signs as ever."""
    monkeypatch.setattr(init, "announce", lambda *_: announcing(*algorithms))
    pair = Pair(*signing(KeyKind.RSA))
    pair.up()
    pair.assert_up()


def test_an_algorithm_that_the_hash_list_does_not_have_is_not_chosen() -> None:
    usable, (notify,) = SignaturePolicy(), announcing(PKCS1.identifiers[0])
    heard = heard_methods((notify,))
    for hashes in ((), (HashAlgorithm.SHA2_256,)):
        assert as_announced(usable, KeyKind.RSA, hashes, heard) == usable
    assert as_announced(usable, KeyKind.RSA, [PKCS1.hash], heard).schemes == (PKCS1,)


@pytest.mark.parametrize("data", [b"\0", b"\xff\x0e\0", bytes(300)])
def test_octets_that_are_no_announcements_change_nothing(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    notify = NotifyPayload(type=NotifyType.SUPPORTED_AUTH_METHODS, data=data)
    for module in (init, auth):
        monkeypatch.setattr(module, "announce", lambda *_: (notify,))
    pair = Pair(*signing())
    pair.up()
    pair.assert_up()
    assert pair.moon.ike_sa.heard.methods == pair.sun.ike_sa.heard.methods == ()


def test_of_a_long_list_the_first_are_kept() -> None:
    payloads: tuple[OpenPayload, ...] = announcing(*[bytes((n,)) * 2 for n in range(100)]) * 2
    assert len(heard_methods(payloads)) == auth_methods.MAX_ANNOUNCEMENTS


def test_our_operator_is_told_what_the_peer_takes_when_it_refuses_us() -> None:
    moon, sun = signing()
    plain = tunnel_policy()
    moon = replace(moon, local_key=None, shared_key=plain.shared_key)
    pair = Pair(moon, replace(sun, shared_key=plain.shared_key))
    pair.up()
    pair.assert_down()
    assert failure_at(pair, "sun").code == "XF2041"
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure is not None
    assert ("they accept", "ed25519") in closed.failure.evidence


def test_ends_that_know_the_shared_key_alone_say_nothing(sealing: Any) -> None:
    moon = tunnel_policy()
    pair = Pair(moon, mirrored(moon))
    pair.up()
    assert pair.moon.ike_sa.heard.methods == ()
    said = [p for _, payloads in sealing.sent for p in payloads if isinstance(p, NotifyPayload)]
    assert NotifyType.SUPPORTED_AUTH_METHODS not in {p.type for p in said}
