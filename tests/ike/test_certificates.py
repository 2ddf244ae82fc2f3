"""IKE_AUTH by certificates: chains in both roles, and every way in which one is not believed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.ike.conftest import Pair, mirrored, tunnel_policy
from tests.ike.test_signatures import failure_at
from tests.keypairs import private_key
from tests.pki.chains import (
    DAY,
    NOW,
    Entity,
    authority,
    constraints,
    dns,
    extended,
    issue,
    key,
)
from tests.pki.test_paths import looped
from tests.pki.test_revocation import crl
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.ike.certificates import certified_path
from xfrmpy.ike.errors import AuthenticationFailed
from xfrmpy.ipsec.identity import Identity
from xfrmpy.policy.model import Certificates, Experiment, PrivateKey, TunnelPolicy
from xfrmpy.registry import CertificateEncoding
from xfrmpy.wire.payloads import CertPayload, CertreqPayload

ROOT = authority("root")
ISSUING = authority("issuing", issuer=ROOT)
STRANGER = authority("stranger")
KINDS = ("rsa", "p256", "p384", "p521", "ed25519", "ed448", "mldsa44", "mldsa65", "mldsa87")


@cache
def gateway(name: str, kind: str = "p256", issuer: Entity = ISSUING) -> Entity:
    return issue(name, issuer=issuer, private_key=key(kind, ord(name[0])), names=[dns(name)])


def certified(policy: TunnelPolicy, leaf: Entity, *above: Entity, **changes: Any) -> TunnelPolicy:
    """A policy whose end shows the leaf and what is above it, and trusts the root."""
    pkcs8 = leaf.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    ours = {
        "shared_key": None,
        "local_key": PrivateKey(
            octets=pkcs8, public=leaf.certificate.public_key_info, origin="test"
        ),
        "local_certificates": bundle(leaf, *above),
        "remote_authorities": bundle(ROOT),
    }
    return replace(policy, **{**ours, **changes})


def bundle(*entities: Entity) -> Certificates:
    return Certificates(ders=tuple(e.certificate.der for e in entities), origin="test")


def by_certificates(kind: str = "p256", **changes: Any) -> Pair:
    """Moon and sun; `changes` are moon's."""
    plain = tunnel_policy()
    if kind.startswith("mldsa"):
        plain = replace(plain, experiment=Experiment.ML_DSA)
    moon = certified(plain, gateway("moon", kind), ISSUING, **changes)
    return Pair(moon, certified(mirrored(moon), gateway("sun", kind), ISSUING))


@pytest.mark.parametrize("kind", KINDS)
def test_both_ends_prove_themselves_by_chains_with_an_intermediate(kind: str) -> None:
    pair = by_certificates(kind)
    pair.up()
    pair.assert_up()


def test_one_end_may_have_a_certificate_and_the_other_a_shared_key() -> None:
    plain = tunnel_policy()
    moon = certified(plain, gateway("moon"), ISSUING, remote_authorities=None)
    moon = replace(moon, shared_key=plain.shared_key)
    sun = replace(mirrored(plain), remote_authorities=bundle(ROOT))
    pair = Pair(moon, sun)
    pair.up()
    pair.assert_up()


def test_our_own_intermediates_complete_the_peer_s_path() -> None:
    moon = certified(tunnel_policy(), gateway("moon"), ISSUING)
    pair = Pair(moon, certified(mirrored(moon), gateway("sun")))
    pair.up()
    pair.assert_up()


def test_an_intermediate_may_be_the_authority_that_is_pinned() -> None:
    pair = by_certificates(remote_authorities=bundle(ISSUING))
    pair.up()
    pair.assert_up()


def test_a_distinguished_name_is_an_identity_in_any_writing() -> None:
    moon = certified(tunnel_policy(), gateway("moon"), ISSUING)
    moon = replace(moon, local_id=Identity.parse("O=Example, CN=moon"))
    sun = certified(mirrored(moon), gateway("sun"), ISSUING)
    pair = Pair(moon, replace(sun, remote_id=Identity.parse("CN=MOON, O=example")))
    pair.up()
    pair.assert_up()


def leaf(**wishes: Any) -> Entity:
    """Moon's or sun's certificate, of which something is wrong."""
    both = {"names": [dns("moon"), dns("sun")], "private_key": key("p256", 300)}
    return issue("leaf", **{"issuer": ISSUING, **both, **wishes})


UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
FOR_TLS = extended(ExtendedKeyUsageOID.SERVER_AUTH.dotted_string)
NARROW = authority("narrow", issuer=ROOT, extensions=[constraints(permitted=[dns("example.org")])])
SHORT = authority("short", issuer=ROOT, path_length=1)
MIDDLE = authority("middle", issuer=SHORT)
LOWEST = authority("lowest", issuer=MIDDLE)
RING = looped().intermediates

REFUSED: dict[str, tuple[str, Callable[[], tuple[Entity, ...]]]] = {
    "of a wrong authority": ("XF2103", lambda: (leaf(issuer=STRANGER), STRANGER)),
    "of an impostor of the authority": ("XF2104", lambda: (leaf(issuer=authority("root")),)),
    "self-signed": ("XF2103", lambda: (leaf(issuer=None),)),
    "expired": ("XF2106", lambda: (leaf(end=NOW - DAY / 2), ISSUING)),
    "not yet valid": ("XF2105", lambda: (leaf(start=NOW + DAY / 2), ISSUING)),
    "without the identity": ("XF2114", lambda: (leaf(names=[dns("mars")]), ISSUING)),
    "of a wildcard": ("XF2114", lambda: (leaf(names=[dns("*")]), ISSUING)),
    "an authority's": ("XF2111", lambda: (leaf(ca=True), ISSUING)),
    "issued by a leaf": (
        "XF2107",
        lambda: (leaf(issuer=gateway("moon")), gateway("moon"), ISSUING),
    ),
    "beneath too many authorities": (
        "XF2108",
        lambda: (leaf(issuer=LOWEST), LOWEST, MIDDLE, SHORT),
    ),
    "of a ring of authorities": ("XF2103", lambda: (leaf(issuer=RING[0]), *RING)),
    "of a name that its authority may not certify": (
        "XF2109",
        lambda: (leaf(issuer=NARROW), NARROW),
    ),
    "with an unknown critical extension": (
        "XF2110",
        lambda: (leaf(extensions=[(UNKNOWN, True)]), ISSUING),
    ),
    "for servers of TLS alone": ("XF2112", lambda: (leaf(extensions=[FOR_TLS]), ISSUING)),
    "that may sign nothing": ("XF2112", lambda: (leaf(usage=["key_encipherment"]), ISSUING)),
    "of RSA with 1024 bits": ("XF2113", lambda: (leaf(private_key=key("rsa1024")), ISSUING)),
    "of RSA with the exponent 3": ("XF2113", lambda: (leaf(private_key=key("rsa3")), ISSUING)),
    "of too many": ("XF2102", lambda: (leaf(), *[ISSUING] * 9)),
}


@pytest.mark.parametrize("end", ["moon", "sun"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_certificate_that_proves_nothing_is_refused_with_its_reason(case: str, end: str) -> None:
    """`end` is who refuses; the other end learns no more than that."""
    code, make = REFUSED[case]
    shown = make()
    # Nobody signs with a weak key here; that is seen before anything signed is.
    signs: dict[str, Any] = {"local_key": private_key(KeyKind.RSA)} if "of RSA" in case else {}
    moon = certified(tunnel_policy(), gateway("moon"), ISSUING)
    sun = certified(mirrored(moon), gateway("sun"), ISSUING)
    if end == "sun":
        moon = certified(moon, *shown, **signs)
    else:
        sun = certified(sun, *shown, **signs)
    pair = Pair(moon, sun)
    pair.up()
    pair.assert_down()
    failure = failure_at(pair, end)
    assert failure.code == code
    assert ("our authorities from", "test") in failure.evidence


@pytest.mark.parametrize("end", ["moon", "sun"])
@pytest.mark.parametrize("revoked", [True, False])
def test_a_certificate_on_its_authority_s_list_is_refused(end: str, revoked: bool) -> None:
    shown = leaf()
    other = issue("other", issuer=ISSUING)
    listed = crl(ISSUING, [shown if revoked else other])
    trusted = replace(bundle(ROOT), crl=listed.library.public_bytes(Encoding.DER))
    moon = certified(tunnel_policy(), gateway("moon"), ISSUING)
    sun = certified(mirrored(moon), gateway("sun"), ISSUING)
    if end == "sun":
        moon, sun = certified(moon, shown, ISSUING), replace(sun, remote_authorities=trusted)
    else:
        moon, sun = replace(moon, remote_authorities=trusted), certified(sun, shown, ISSUING)
    pair = Pair(moon, sun)
    pair.up()
    if not revoked:
        pair.assert_up()
        return
    pair.assert_down()
    assert failure_at(pair, end).code == "XF2115"


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_a_right_signature_by_a_different_key_than_the_certificate_s_fails(end: str) -> None:
    """CVE-2020-16088: everybody can show a certificate that was sent to him once."""
    thief = private_key(KeyKind.ECDSA_P256, "mars")
    moon = certified(tunnel_policy(), gateway("moon"), ISSUING)
    sun = certified(mirrored(moon), gateway("sun"), ISSUING)
    if end == "sun":
        moon = replace(moon, local_key=thief)
    else:
        sun = replace(sun, local_key=thief)
    pair = Pair(moon, sun)
    pair.up()
    pair.assert_down()
    assert failure_at(pair, end).code == "XF2041"


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_another_peer_s_right_certificate_is_not_this_one_s(end: str) -> None:
    moon = certified(tunnel_policy(), gateway("moon"), ISSUING)
    sun = certified(mirrored(moon), gateway("sun"), ISSUING)
    if end == "sun":
        moon = certified(moon, gateway("neighbour"), ISSUING)
    else:
        sun = certified(sun, gateway("neighbour"), ISSUING)
    pair = Pair(moon, sun)
    pair.up()
    pair.assert_down()
    assert failure_at(pair, end).code == "XF2114"


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_a_shared_key_is_no_proof_where_a_certificate_is_expected(end: str) -> None:
    plain = tunnel_policy()
    moon, sun = plain, mirrored(plain)
    if end == "sun":
        sun = replace(sun, remote_authorities=bundle(ROOT))
    else:
        moon = replace(moon, remote_authorities=bundle(ROOT))
    pair = Pair(moon, sun)
    pair.up()
    pair.assert_down()
    assert failure_at(pair, end).code == "XF2117"


def certs_of(payloads: Any) -> list[CertPayload]:
    return [p for p in payloads if isinstance(p, CertPayload)]


def test_a_peer_that_sends_no_certificate_is_told_of(sealing: Any) -> None:
    sealing.change = lambda _, payloads: tuple(
        p for p in payloads if not isinstance(p, CertPayload)
    )
    pair = by_certificates()
    pair.up()
    pair.assert_down()
    assert failure_at(pair, "sun").code == "XF2117"


@pytest.mark.parametrize(
    ("absent", "end", "code"),
    [
        ({"remote_authorities": bundle()}, "sun", "XF2103"),
        ({"local_certificates": None}, "moon", "XF2117"),
    ],
    ids=["authorities", "certificates"],
)
def test_an_end_that_has_none_lets_nobody_in_and_is_let_in_by_nobody(
    absent: dict[str, Any], end: str, code: str
) -> None:
    """CVE-2024-2357: at sun; `end` is who refuses."""
    moon = certified(tunnel_policy(), gateway("moon"), ISSUING)
    sun = certified(mirrored(moon), gateway("sun"), ISSUING)
    pair = Pair(moon, replace(sun, **absent))
    pair.up()
    pair.assert_down()
    assert failure_at(pair, end).code == code


def test_no_encoding_but_that_of_x509_carries_a_certificate() -> None:
    """The whole space of numbers: whatever else it is called, it is not even parsed."""
    identity, trusted = Identity.parse("moon"), bundle(ROOT)
    for number in range(256):
        certs = tuple(
            CertPayload(encoding=CertificateEncoding(number), data=entity.certificate.der)
            for entity in (gateway("moon"), ISSUING)
        )
        if number == CertificateEncoding.X509_SIGNATURE:
            assert certified_path(identity, certs, trusted, None, NOW)
            continue
        with pytest.raises(AuthenticationFailed) as caught:
            certified_path(identity, certs, trusted, None, NOW)
        assert caught.value.failure.code == "XF2117"


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_octets_that_are_no_certificate_cost_the_peer_its_tunnel_only(
    end: str, sealing: Any
) -> None:
    def spoil(message: Any, payloads: Any) -> Any:
        if message.is_response is (end == "moon"):
            return tuple(
                replace(p, data=b"\x30\x82" + p.data) if isinstance(p, CertPayload) else p
                for p in payloads
            )
        return payloads

    sealing.change = spoil
    pair = by_certificates()
    pair.up()
    pair.assert_down()
    assert failure_at(pair, end).code == "XF2101"


def test_what_is_sent_is_the_chain_without_its_top(sealing: Any) -> None:
    seen: list[list[CertPayload]] = []

    def look(_: Any, payloads: Any) -> Any:
        if certs_of(payloads):
            seen.append(certs_of(payloads))
        return payloads

    sealing.change = look
    moon = certified(tunnel_policy(), gateway("moon"), ISSUING, ROOT)
    pair = Pair(moon, certified(mirrored(moon), gateway("sun"), ISSUING, ROOT))
    pair.up()
    pair.assert_up()
    assert len(seen) == 2
    for certs, own in zip(seen, ("moon", "sun"), strict=True):
        assert {c.encoding for c in certs} == {CertificateEncoding.X509_SIGNATURE}
        expected = [gateway(own).certificate.der, ISSUING.certificate.der]
        assert [c.data for c in certs] == expected


def test_the_authorities_that_we_trust_are_named_to_the_peer(sealing: Any) -> None:
    asked: list[CertreqPayload] = []

    def look(_: Any, payloads: Any) -> Any:
        asked.extend(p for p in payloads if isinstance(p, CertreqPayload))
        return payloads

    sealing.change = look
    pair = by_certificates(remote_authorities=bundle(ROOT, STRANGER))
    pair.up()
    hashes = b"".join(e.certificate.key_hash for e in (ROOT, STRANGER))
    assert asked == [
        CertreqPayload(encoding=CertificateEncoding.X509_SIGNATURE, data=hashes),
        CertreqPayload(encoding=CertificateEncoding.OCSP_CONTENT, data=b""),
    ]
    assert len(hashes) == 40
    assert pair.moon.ike_sa.heard.requests == (
        CertreqPayload(encoding=CertificateEncoding.X509_SIGNATURE, data=ROOT.certificate.key_hash),
        CertreqPayload(encoding=CertificateEncoding.OCSP_CONTENT, data=b""),
    )


def test_the_day_decides_and_not_the_clock_of_the_timers() -> None:
    pair = by_certificates()
    pair.sun.today += timedelta(days=60)
    pair.up()
    pair.assert_down()
    failure = failure_at(pair, "sun")
    assert failure.code == "XF2106"
    assert ("our clock", "2026-07-31T12:00:00+00:00") in failure.evidence


PATTERNS = {
    "host name": ("*.example.net", "gw.example.net"),
    "distinguished name": ("O=Example, CN=*", "O=Example, CN=gw"),
}


@pytest.mark.parametrize("end", ["moon", "sun"])
@pytest.mark.parametrize("kind", PATTERNS)
@pytest.mark.parametrize("is_meant", [True, False])
def test_a_pattern_of_the_policy_takes_whom_it_stands_for(
    end: str, kind: str, is_meant: bool
) -> None:
    """`end` has it; the other end's certificate proves which one it is."""
    pattern, name = PATTERNS[kind]
    known = issue(
        x509.Name.from_rfc4514_string("CN=gw,O=Example" if is_meant else "CN=gw,O=Other"),
        issuer=ISSUING,
        names=[dns("gw.example.net" if is_meant else "gw.example.org")],
        private_key=key("p256", 310),
    )
    told = name if is_meant else name.replace("Example", "Other").replace("net", "org")
    base = tunnel_policy()
    moon = certified(base, gateway("moon"), ISSUING)
    sun = certified(mirrored(base), gateway("sun"), ISSUING)
    if end == "sun":
        moon = replace(certified(moon, known, ISSUING), local_id=Identity.parse(told))
        sun = replace(sun, remote_id=Identity.parse(pattern))
    else:
        moon = replace(moon, remote_id=Identity.parse(pattern))
        sun = replace(certified(sun, known, ISSUING), local_id=Identity.parse(told))
    pair = Pair(moon, sun)
    pair.up()
    if is_meant:
        pair.assert_up()
        assert str(pair.ends(end)[0].views[0].remote_id) == told
    else:
        pair.assert_down()
        assert failure_at(pair, end).code == "XF2007"


def test_the_policy_of_one_identity_comes_before_a_pattern() -> None:
    moon = certified(tunnel_policy(), gateway("moon"), ISSUING)
    sun = certified(mirrored(moon), gateway("sun"), ISSUING)
    pair = Pair(moon, sun)
    anybody = replace(sun, name="anybody", remote_id=Identity.parse("O=Example, CN=*"))
    child = replace(anybody.children[0], reqid=anybody.children[0].reqid + 1)
    pair.sun.endpoint.add_tunnel(replace(anybody, children=(child,)))
    pair.up()
    assert [view.remote_id for view in pair.sun.endpoint.ike_sas("tunnel-a")]
    assert pair.sun.endpoint.ike_sas("anybody") == ()


def test_a_wildcard_in_a_certificate_is_none_for_a_pattern_either() -> None:
    """The peer has to say which one it is, and to have just that."""
    anyone = issue("x", issuer=ISSUING, names=[dns("*.example.net")], private_key=key("p256", 311))
    base = tunnel_policy()
    moon = replace(certified(base, anyone, ISSUING), local_id=Identity.parse("gw.example.net"))
    sun = certified(mirrored(base), gateway("sun"), ISSUING)
    pair = Pair(moon, replace(sun, remote_id=Identity.parse("*.example.net")))
    pair.up()
    pair.assert_down()
    assert failure_at(pair, "sun").code == "XF2114"
