"""Every way to authenticate with a proof that is right for somebody else: a table over all of them.

An end that takes its credential from the neighbour proves nothing, however right the proof is in
itself. Our operator is told which step failed; the peer gets AUTHENTICATION_FAILED in the same
octets whichever that was (RFC 7296 section 2.21.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.ike.conftest import Pair, mirrored, offer_ppk_in_auth_alone, tunnel_policy
from tests.ike.test_certificates import ISSUING, certified, gateway
from tests.ike.test_null_auth import proving_nothing
from tests.ike.test_signatures import HASHES, failure_at, one_way, signing
from tests.keypairs import private_key, public_key
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.ike import credentials
from xfrmpy.ipsec.identity import Identity
from xfrmpy.policy.model import (
    Experiment,
    FurtherRound,
    Ppk,
    RsaSignature,
    SharedKey,
    TunnelPolicy,
)
from xfrmpy.registry import AuthenticationMethod, NotifyType
from xfrmpy.wire.payloads import AuthPayload, CertPayload, NotifyPayload, OpenPayload

Policies = tuple[TunnelPolicy, TunnelPolicy]
OTHER_KEY = SharedKey(octets=b"another key of thirty-two octets", origin="elsewhere")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Policies that agree, and what of one end is the neighbour's; `code` is what our operator is
    told, with a word of the step in its summary. A secret of both ends that is another one at one
    of them is seen by the responder first: `ends` are those that can come to refuse."""

    method: str
    policies: Callable[[], Policies]
    steal: Callable[[TunnelPolicy], TunnelPolicy]
    code: str
    step: str
    shows_key: bool = False
    is_old: bool = False
    has_ppk_in_auth: bool = False
    ends: tuple[str, ...] = ("moon", "sun")


def by_shared_key() -> Policies:
    moon = tunnel_policy()
    return moon, mirrored(moon)


def by_ppk() -> Policies:
    moon, sun = by_shared_key()
    ppk = Ppk(id="q", key=SharedKey(octets=bytes(32), origin="test"))
    moon, sun = (replace(end, ppks=(ppk,), ppk_required=True) for end in (moon, sun))
    return moon, sun


def by_certificates(kind: str = "p256") -> Policies:
    plain = tunnel_policy()
    if kind.startswith("mldsa"):
        plain = replace(plain, experiment=Experiment.ML_DSA)
    moon = certified(plain, gateway("moon", kind), ISSUING)
    return moon, certified(mirrored(moon), gateway("sun", kind), ISSUING)


def by_pkcs1() -> Policies:
    moon, sun = signing(KeyKind.RSA)
    ours, theirs = (
        private_key(KeyKind.RSA, whose, rsa=RsaSignature.PKCS1) for whose in ("moon", "sun")
    )
    return replace(moon, local_key=ours), replace(sun, local_key=theirs)


def by_old_method(kind: KeyKind) -> Callable[[], Policies]:
    def policies() -> Policies:
        moon, sun = signing(kind)
        return replace(moon, weak_signatures=True), replace(sun, weak_signatures=True)

    return policies


def key_of(kind: KeyKind, **form: Any) -> Callable[[TunnelPolicy], TunnelPolicy]:
    return lambda policy: replace(policy, local_key=private_key(kind, "mars", **form))


def behind_a_shared_key(kind: KeyKind) -> Policies:
    """Both ends prove themselves by the shared key, and then by keys (RFC 4739)."""
    moon, sun = by_shared_key()
    again = FurtherRound(
        local_id=moon.local_id,
        local_key=private_key(kind, "moon"),
        remote_id=moon.remote_id,
        remote_key=public_key(kind, "sun"),
    )
    theirs = FurtherRound(
        local_id=sun.local_id,
        local_key=private_key(kind, "sun"),
        remote_id=sun.remote_id,
        remote_key=public_key(kind, "moon"),
    )
    return replace(moon, rounds=(again,)), replace(sun, rounds=(theirs,))


def key_of_second_round(kind: KeyKind) -> Callable[[TunnelPolicy], TunnelPolicy]:
    def steal(policy: TunnelPolicy) -> TunnelPolicy:
        (further,) = policy.rounds
        return replace(policy, rounds=(replace(further, local_key=private_key(kind, "mars")),))

    return steal


def other_ppk(policy: TunnelPolicy) -> TunnelPolicy:
    (ppk,) = policy.ppks
    return replace(policy, ppks=(replace(ppk, key=OTHER_KEY),))


_OLD = (KeyKind.RSA, KeyKind.ECDSA_P256, KeyKind.ECDSA_P384, KeyKind.ECDSA_P521)
_CERTIFIED = dict(
    zip(("rsa", "p256", "p384", "p521", "ed25519", "ed448"), KeyKind, strict=False)
) | {"mldsa65": KeyKind.ML_DSA_65}
CASES = [
    Case(
        method="shared key",
        policies=by_shared_key,
        steal=lambda policy: replace(policy, shared_key=OTHER_KEY),
        code="XF2006",
        step="does not match our shared key",
        ends=("sun",),
    ),
    Case(
        method="shared key of the responder alone",
        policies=lambda: one_way("moon"),
        steal=lambda policy: replace(policy, shared_key=OTHER_KEY),
        code="XF2006",
        step="does not match our shared key",
        ends=("moon",),
    ),
    *(
        Case(
            method=f"{kind} by RFC 7427",
            policies=lambda kind=kind: signing(kind),  # type: ignore[misc]
            steal=key_of(kind),
            code="XF2041",
            step="DIGITAL_SIGNATURE",
        )
        for kind in KeyKind
    ),
    Case(
        method="rsa by RFC 7427 with PKCS #1",
        policies=by_pkcs1,
        steal=key_of(KeyKind.RSA, rsa=RsaSignature.PKCS1),
        code="XF2041",
        step="DIGITAL_SIGNATURE",
    ),
    *(
        Case(
            method=f"{kind} by an older method",
            policies=by_old_method(kind),
            steal=key_of(kind),
            code="XF2041",
            step="RSA_SIGNATURE" if kind is KeyKind.RSA else "ECDSA_SHA",
            is_old=True,
        )
        for kind in _OLD
    ),
    Case(
        method="a raw public key that is shown",
        policies=signing,
        steal=key_of(KeyKind.ED25519),
        code="XF2042",
        step="another public key",
        shows_key=True,
    ),
    *(
        Case(
            method=f"a certificate of {kind}, by another key",
            policies=lambda kind=kind: by_certificates(kind),  # type: ignore[misc]
            steal=key_of(of_kind),
            code="XF2041",
            step="DIGITAL_SIGNATURE",
            shows_key=True,
        )
        for kind, of_kind in _CERTIFIED.items()
    ),
    Case(
        method="a certificate of somebody else",
        policies=by_certificates,
        steal=lambda policy: certified(policy, gateway("mars"), ISSUING),
        code="XF2114",
        step="",
        shows_key=True,
    ),
    Case(
        method="a shared key with a PPK",
        policies=by_ppk,
        steal=other_ppk,
        code="XF2006",
        step="does not match our shared key",
        has_ppk_in_auth=True,
        ends=("sun",),
    ),
    Case(
        method="a shared key with a PPK before it",
        policies=by_ppk,
        steal=other_ppk,
        code="XF2034",
        step="under the names of ours",
        ends=("sun",),
    ),
    Case(
        method="NULL where the shared key is asked for",
        policies=by_shared_key,
        steal=lambda policy: replace(policy, local_null=True),
        code="XF2007/XF2006",
        step="",
    ),
    Case(
        method="the shared key where NULL is asked for",
        policies=lambda: proving_nothing("moon", "sun"),
        steal=lambda policy: replace(
            policy, local_null=False, local_id=Identity.parse("mars"), shared_key=OTHER_KEY
        ),
        code="XF2007/XF2043",
        step="",
    ),
    *(
        Case(
            method=f"{kind} in a second round",
            policies=lambda kind=kind: behind_a_shared_key(kind),  # type: ignore[misc]
            steal=key_of_second_round(kind),
            code="XF2041",
            step="DIGITAL_SIGNATURE",
        )
        for kind in (KeyKind.RSA, KeyKind.ECDSA_P256, KeyKind.ED25519)
    ),
]
"""Codes of a responder and an initiator, where they differ."""


def is_proof(payload: OpenPayload) -> bool:
    if isinstance(payload, NotifyPayload):
        return payload.type == NotifyType.PPK_IDENTITY_KEY
    return isinstance(payload, AuthPayload)


@pytest.fixture
def peer_hears(sealing: Any) -> list[tuple[OpenPayload, ...]]:
    """All that an end says behind its proof, in order."""
    said: list[tuple[OpenPayload, ...]] = []

    def listen(_: Any, payloads: tuple[OpenPayload, ...]) -> tuple[OpenPayload, ...]:
        if not any(is_proof(p) for p in payloads):
            said.append(payloads)
        return payloads

    sealing.change = listen
    return said


def make_old(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an older peer nobody hears that it knows RFC 7427, or RFC 9867."""
    if case.has_ppk_in_auth:
        offer_ppk_in_auth_alone(monkeypatch)
    if case.is_old:
        monkeypatch.setattr(
            credentials, "notifications", lambda all_, kind: () if kind in HASHES else all_
        )


@pytest.mark.parametrize(
    ("case", "end"),
    [(case, end) for case in CASES for end in case.ends],
    ids=lambda value: value.method if isinstance(value, Case) else value,
)
def test_a_right_proof_of_somebody_else_fails_and_our_operator_alone_is_told_where(
    case: Case,
    end: str,
    peer_hears: list[tuple[OpenPayload, ...]],
    sealing: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`end` is who refuses."""
    make_old(case, monkeypatch)
    if not case.shows_key:
        listen = sealing.change
        sealing.change = lambda message, payloads: listen(
            message, tuple(p for p in payloads if not isinstance(p, CertPayload))
        )
    moon, sun = case.policies()
    moon, sun = (moon, case.steal(sun)) if end == "moon" else (case.steal(moon), sun)
    pair = Pair(moon, sun)
    pair.up()
    pair.assert_down()
    failure = failure_at(pair, end)
    assert failure.code in case.code.split("/")
    assert case.step in failure.summary
    assert failure.evidence
    refusal = (NotifyPayload(type=NotifyType.AUTHENTICATION_FAILED),)
    assert [told for told in peer_hears if told] == [refusal]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.method)
def test_with_its_own_proof_the_same_end_gets_in(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a case of the table could fail for another reason than the one that it is about."""
    make_old(case, monkeypatch)
    pair = Pair(*case.policies())
    pair.up()
    pair.assert_up()


def test_the_table_has_every_method_that_we_speak(sealing: Any) -> None:
    """Of those that IANA knows we do not speak GSPAM (RFC 6467) and DSS."""
    seen: set[AuthenticationMethod] = set()

    def look(_: Any, payloads: tuple[OpenPayload, ...]) -> tuple[OpenPayload, ...]:
        seen.update(p.method for p in payloads if isinstance(p, AuthPayload))
        return payloads

    sealing.change = look
    for case in CASES:
        with pytest.MonkeyPatch.context() as monkeypatch:
            make_old(case, monkeypatch)
            Pair(*case.policies()).up()
    known = {AuthenticationMethod(number) for number in range(1, 15)} & set(AuthenticationMethod)
    assert seen == known - {AuthenticationMethod.DSS_SIGNATURE, AuthenticationMethod.GSPM}
    assert all(kind in " ".join(case.method for case in CASES) for kind in KeyKind)
