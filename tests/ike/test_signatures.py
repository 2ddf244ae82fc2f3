"""IKE_AUTH by signatures: each method in both roles, each end by its own, and nobody else's key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.ike.conftest import Host, Pair, mirrored, tunnel_policy
from tests.keypairs import private_key, public_key
from xfrmpy.crypto.authentication import SignaturePolicy, verify_signed_auth
from xfrmpy.crypto.signatures import EXPERIMENTAL, SCHEMES, KeyKind, fingerprint
from xfrmpy.failures import Failure
from xfrmpy.ike import credentials, proof
from xfrmpy.ike.kept_policy import read_policies, write_policy
from xfrmpy.ike.outputs import RequestRefused, TunnelClosed
from xfrmpy.ipsec.plain import from_plain, to_plain
from xfrmpy.policy.model import Experiment, RsaSignature, TunnelPolicy
from xfrmpy.registry import (
    AuthenticationMethod,
    CertificateEncoding,
    HashAlgorithm,
    NotifyType,
)
from xfrmpy.wire.payloads import AuthPayload, CertPayload, NotifyPayload

KINDS = list(KeyKind)


def signing(kind: KeyKind = KeyKind.ED25519, **changes: Any) -> tuple[TunnelPolicy, TunnelPolicy]:
    """Policies of moon and sun, both with a key of the kind; `changes` are moon's."""
    moon = replace(tunnel_policy(), shared_key=None)
    sun = replace(
        mirrored(moon), local_key=private_key(kind, "sun"), remote_key=public_key(kind, "moon")
    )
    ours = {"local_key": private_key(kind, "moon"), "remote_key": public_key(kind, "sun")}
    moon = replace(moon, **{**ours, **changes})
    return experimental((moon, sun)) if kind in EXPERIMENTAL else (moon, sun)


def experimental(policies: tuple[TunnelPolicy, TunnelPolicy]) -> tuple[TunnelPolicy, TunnelPolicy]:
    """With ML-DSA wanted by name."""
    moon, sun = (replace(policy, experiment=Experiment.ML_DSA) for policy in policies)
    return moon, sun


def by_signature(kind: KeyKind = KeyKind.ED25519, **changes: Any) -> Pair:
    return Pair(*signing(kind, **changes))


def failure_at(pair: Pair, end: str) -> Failure:
    """Why one end ended it, told to its operator; the other end learns that it failed, no more."""
    host, other = (pair.moon, pair.sun) if end == "moon" else (pair.sun, pair.moon)
    (failure,) = _failures(host)
    assert [told.code for told in _failures(other)] in ([], ["XF2005"], ["XF2033"])
    return failure


def _failures(host: Host) -> list[Failure]:
    closed = [report.failure for report in host.reports(TunnelClosed)]
    refused = [report.failure for report in host.reports(RequestRefused)]
    return [failure for failure in (*closed, *refused) if failure is not None]


@pytest.fixture
def auths(monkeypatch: pytest.MonkeyPatch) -> list[AuthPayload]:
    """Every AUTH that is verified as a signature, in order."""
    seen: list[AuthPayload] = []
    real = verify_signed_auth

    def spy(keys: Any, method: Any, data: bytes, *rest: Any) -> Any:
        seen.append(AuthPayload(method=method, data=data))
        return real(keys, method, data, *rest)

    monkeypatch.setattr(proof, "verify_signed_auth", spy)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_both_ends_prove_themselves_by_keys_of_each_kind(
    kind: KeyKind, auths: list[AuthPayload]
) -> None:
    pair = by_signature(kind)
    pair.up()
    pair.assert_up()
    assert [a.method for a in auths] == [AuthenticationMethod.DIGITAL_SIGNATURE] * 2
    if kind is KeyKind.RSA:  # RFC 8247 section 3.2: RSASSA-PSS "MUST" be there.
        assert all(bytes.fromhex("2a864886f70d01010a") in a.data[:80] for a in auths)


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_ml_dsa_neither_signs_nor_counts_unless_it_is_wanted_by_name(end: str) -> None:
    moon, sun = signing(KeyKind.ML_DSA_65)
    if end == "moon":
        moon = replace(moon, experiment=None)
    else:
        sun = replace(sun, experiment=None)
    pair = Pair(moon, sun)
    pair.up()
    pair.assert_down()
    (failure,) = [
        f for host in (pair.moon, pair.sun) for f in _failures(host) if f.code != "XF2005"
    ]
    assert failure.code == ("XF2040" if end == "moon" else "XF2041")


def test_an_rsa_key_signs_with_pkcs1_where_policy_says_so(auths: list[AuthPayload]) -> None:
    pair = by_signature(
        KeyKind.RSA, local_key=private_key(KeyKind.RSA, "moon", rsa=RsaSignature.PKCS1)
    )
    pair.up()
    pair.assert_up()
    assert bytes.fromhex("2a864886f70d01010b") in auths[0].data[:16]
    assert bytes.fromhex("2a864886f70d01010a") in auths[1].data[:16]


@pytest.mark.parametrize("end", ["moon", "sun"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_right_signature_by_a_different_valid_key_fails(
    kind: KeyKind, end: str, sealing: Any
) -> None:
    """CVE-2020-16088: a key that is not the one of the identity, and is not shown either."""
    sealing.change = lambda _, payloads: tuple(
        p for p in payloads if not isinstance(p, CertPayload)
    )
    moon, sun = signing(kind)
    if end == "moon":
        sun = replace(sun, local_key=private_key(kind, "mars"))
    else:
        moon = replace(moon, local_key=private_key(kind, "mars"))
    pair = Pair(moon, sun)
    pair.up()
    pair.assert_down()
    failure = failure_at(pair, end)
    assert failure.code == "XF2041"
    assert "not by this key" in failure.summary
    assert any("SHA256:" in value for _, value in failure.evidence)


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_a_key_shown_that_is_not_that_of_the_policy_is_named_to_the_operator(end: str) -> None:
    """It is shown because it is asked for (RFC 7670), and believed by nobody."""
    moon, sun = signing()
    stranger = private_key(KeyKind.ED25519, "mars")
    if end == "moon":
        sun = replace(sun, local_key=stranger)
    else:
        moon = replace(moon, local_key=stranger)
    pair = Pair(moon, sun)
    pair.up()
    pair.assert_down()
    failure = failure_at(pair, end)
    assert failure.code == "XF2042"
    assert ("their key", fingerprint(stranger.public)) in failure.evidence


def test_a_raw_key_is_shown_to_a_peer_that_asks_and_to_no_other(sealing: Any) -> None:
    shown: list[CertPayload] = []

    def look(_: Any, payloads: Any) -> Any:
        shown.extend(p for p in payloads if isinstance(p, CertPayload))
        return payloads

    sealing.change = look
    pair = by_signature()
    pair.up()
    pair.assert_up()
    keys = {public_key(KeyKind.ED25519, whose).spki for whose in ("moon", "sun")}
    assert {cert.data for cert in shown} == keys
    assert {cert.encoding for cert in shown} == {CertificateEncoding.RAW_PUBLIC_KEY}
    shown.clear()
    mixed = Pair(*one_way("moon"))
    mixed.up()
    mixed.assert_up()
    assert {cert.data for cert in shown} == {public_key(KeyKind.ED25519, "moon").spki}


def one_way(signer: str, kind: KeyKind = KeyKind.ED25519) -> tuple[TunnelPolicy, TunnelPolicy]:
    """One end signs, and the other one knows the shared key."""
    moon, sun = signing(kind, shared_key=tunnel_policy().shared_key)
    sun = replace(sun, shared_key=moon.shared_key)
    if signer == "moon":
        return replace(moon, remote_key=None), replace(sun, local_key=None)
    return replace(moon, local_key=None), replace(sun, remote_key=None)


@pytest.mark.parametrize("signer", ["moon", "sun"])
def test_the_two_ends_may_prove_themselves_by_different_methods(signer: str) -> None:
    """RFC 7296 section 2.16: "These may be different"."""
    pair = Pair(*one_way(signer))
    pair.up()
    pair.assert_up()


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_a_shared_key_is_no_proof_where_a_signature_is_expected(end: str) -> None:
    moon, sun = one_way("sun" if end == "moon" else "moon")
    if end == "moon":
        sun = replace(sun, local_key=None)
    else:
        moon = replace(moon, local_key=None)
    pair = Pair(moon, sun)
    pair.up()
    pair.assert_down()
    assert failure_at(pair, end).code == "XF2041"


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_a_signature_is_no_proof_where_a_shared_key_is_expected(end: str) -> None:
    moon, sun = one_way("sun" if end == "moon" else "moon", KeyKind.ECDSA_P256)
    if end == "moon":
        moon = replace(moon, remote_key=None)
    else:
        sun = replace(sun, remote_key=None)
    pair = Pair(moon, sun)
    pair.up()
    pair.assert_down()
    assert failure_at(pair, end).code == "XF2006"


LEGACY = {
    KeyKind.ECDSA_P256: AuthenticationMethod.ECDSA_SHA256_P256,
    KeyKind.ECDSA_P384: AuthenticationMethod.ECDSA_SHA384_P384,
    KeyKind.ECDSA_P521: AuthenticationMethod.ECDSA_SHA512_P521,
    KeyKind.RSA: AuthenticationMethod.RSA_SIGNATURE,
}


@pytest.fixture
def old_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither end hears that the other one knows RFC 7427."""
    monkeypatch.setattr(
        credentials, "notifications", lambda payloads, kind: () if kind in HASHES else payloads
    )


HASHES = {NotifyType.SIGNATURE_HASH_ALGORITHMS}


@pytest.mark.usefixtures("old_peer")
@pytest.mark.parametrize("kind", list(LEGACY))
def test_without_rfc_7427_the_older_methods_serve(kind: KeyKind, auths: list[AuthPayload]) -> None:
    moon, sun = signing(kind)
    pair = Pair(replace(moon, weak_signatures=True), replace(sun, weak_signatures=True))
    pair.up()
    pair.assert_up()
    assert [a.method for a in auths] == [LEGACY[kind]] * 2


@pytest.mark.usefixtures("old_peer")
@pytest.mark.parametrize("kind", [KeyKind.RSA, KeyKind.ED25519, KeyKind.ED448])
def test_a_key_that_no_older_method_takes_safely_does_not_sign(kind: KeyKind) -> None:
    """An RSA key would sign with SHA-1; the initiator sees it before it sends IKE_AUTH."""
    pair = by_signature(kind)
    pair.up()
    pair.assert_down()
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure is not None
    assert closed.failure.code == "XF2040"
    assert len(pair.sent) == 2


@pytest.mark.usefixtures("old_peer")
def test_sha1_is_not_believed_unless_policy_allows_it() -> None:
    moon, sun = signing(KeyKind.RSA, weak_signatures=True)
    pair = Pair(moon, sun)
    pair.up()
    pair.assert_down()
    assert failure_at(pair, "sun").code == "XF2041"


def test_a_signature_goes_with_a_hash_that_the_peer_verifies(auths: list[AuthPayload]) -> None:
    pair = by_signature(KeyKind.ECDSA_P256)
    pair.sun.endpoint._core.signatures = SignaturePolicy(
        schemes=tuple(s for s in SCHEMES if s.hash == HashAlgorithm.SHA2_512)
    )
    pair.up()
    pair.assert_up()
    assert {a.data[1:13].hex() for a in auths} == {"300a06082a8648ce3d040304"}


def test_what_fails_on_this_host_is_neither_offered_nor_used() -> None:
    """CVE-2016-3071: an algorithm that was negotiated, and that the library cannot do."""
    pair = by_signature(KeyKind.ED25519)
    for host in (pair.moon, pair.sun):
        host.endpoint._core.signatures = SignaturePolicy(
            schemes=tuple(s for s in SCHEMES if s.hash != HashAlgorithm.IDENTITY)
        )
    pair.up()
    pair.assert_down()
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure is not None
    assert closed.failure.code == "XF2040"
    assert ("their hashes", "SHA2_256, SHA2_384, SHA2_512") in closed.failure.evidence


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_an_auth_of_another_length_or_with_a_bit_wrong_is_refused(sealing: Any, end: str) -> None:
    is_response = end == "moon"
    for change in (
        lambda _: b"",
        lambda data: data[:1],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"\xff" + data[1:],
        lambda data: b"\0" + data[8:],
        lambda data: data[:1] + bytes([data[1] ^ 1]) + data[2:],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    ):

        def tamper(message: Any, payloads: Any, change: Any = change) -> Any:
            if message.is_response is not is_response:
                return payloads
            return tuple(
                replace(p, data=change(p.data)) if isinstance(p, AuthPayload) else p
                for p in payloads
            )

        sealing.change = tamper
        pair = by_signature()
        pair.up()
        pair.assert_down()
        assert failure_at(pair, end).code == "XF2041"


def test_a_list_of_hashes_that_is_too_long_or_odd_harms_nobody() -> None:
    notify = NotifyPayload(
        type=NotifyType.SIGNATURE_HASH_ALGORITHMS, data=bytes(range(256)) * 2 + b"\2"
    )
    assert len(credentials.Heard.of((notify, notify)).hashes) == credentials.MAX_HASHES


def test_another_daemon_finds_the_policy_without_its_private_key() -> None:
    moon, _ = signing()
    assert moon.local_key is not None
    record = write_policy(moon, b"salt")
    for secret in (moon.local_key.octets, moon.local_key.octets[-32:]):
        assert secret.hex() not in record.decode()
    (kept,) = read_policies({b"policy of " + moon.name.encode(): record}).values()
    assert kept.policy != moon
    assert kept.beside(moon) == moon
    mars = replace(moon, local_key=private_key(KeyKind.ED25519, "mars"))
    assert kept.beside(mars) == kept.policy


def test_what_was_heard_before_ike_auth_is_kept() -> None:
    """A daemon killed during IKE_INTERMEDIATE knows how to sign."""
    heard = credentials.Heard(hashes=(2, 5), requests=(credentials.RAW_KEY_REQUEST,))
    assert from_plain(credentials.Heard, to_plain(heard)) == heard


@pytest.mark.parametrize("kind", sorted(set(KINDS) - EXPERIMENTAL - {KeyKind.RSA}))
def test_a_run_with_signatures_can_be_played_again(kind: KeyKind) -> None:
    def run() -> list[Any]:
        pair = by_signature(kind)
        pair.up()
        return pair.sent

    assert run() == run()


@pytest.mark.parametrize("which", ["local_key", "remote_key"])
def test_a_ticket_is_void_with_another_key(which: str) -> None:
    """RFC 5723 section 6.2."""
    moon, _ = signing()
    make = private_key if which == "local_key" else public_key
    other: dict[str, Any] = {which: make(KeyKind.ED25519, "mars")}
    assert replace(moon, **other).secrets != moon.secrets
