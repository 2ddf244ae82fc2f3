"""Files and octets that hold certificates, and those that do not: one kind of error for all."""

from __future__ import annotations

from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pki.chains import NOW, address, authority, constraints, dns, extended, name
from xfrmpy.pki.certificate import (
    MAX_BUNDLE_OCTETS,
    MAX_CERTIFICATE_OCTETS,
    decode_certificate_untrusted,
    load_bundle,
)
from xfrmpy.pki.identities import check_identity, identities_of
from xfrmpy.pki.paths import validate
from xfrmpy.pki.verdicts import CertificateRefused, Problem

ROOT = authority("root", extensions=[constraints(permitted=[dns("example.org")])])
LEAF = ROOT.issue(
    "gw",
    names=[dns("gw.example.org"), address("192.0.2.1"), x509.RFC822Name("ann@example.org")],
    usage=["digital_signature"],
    extensions=[extended("1.3.6.1.5.5.7.3.17")],
)
PEM = b"".join(e.library.public_bytes(Encoding.PEM) for e in (LEAF, ROOT))
DER = LEAF.certificate.der


def test_a_bundle_has_all_its_certificates_in_their_order() -> None:
    expected = (LEAF.certificate, ROOT.certificate)
    assert load_bundle(b"subject=whatever\n" + PEM + PEM) == expected
    assert load_bundle(DER + ROOT.certificate.der) == expected
    assert load_bundle(PEM.replace(b"\n", b"\r\n")) == expected


def test_a_certificate_is_parsed_to_its_end() -> None:
    assert LEAF.certificate.name == "O=Example, CN=gw"
    assert LEAF.certificate.usages == frozenset({"1.3.6.1.5.5.7.3.17"})
    assert not LEAF.certificate.is_authority
    assert ROOT.certificate.is_authority
    assert ROOT.certificate.is_self_issued
    assert [str(i) for i in identities_of(LEAF.certificate)] == [
        *("gw.example.org", "192.0.2.1", "ann@example.org", "O=Example, CN=gw")
    ]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", Problem.MALFORMED),
        (b"nothing", Problem.MALFORMED),
        (b"\x30", Problem.MALFORMED),
        (b"\x30\x03\x02\x01", Problem.MALFORMED),
        (b"\x30\x84\xff\xff\xff\xff", Problem.MALFORMED),
        (b"\x30\x80\x00\x00", Problem.MALFORMED),
        (DER[:-1], Problem.MALFORMED),
        (DER + b"\x00", Problem.MALFORMED),
        (PEM[:-30], Problem.MALFORMED),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", Problem.MALFORMED),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", Problem.MALFORMED),
        (b"\x30\x83\x01\x00\x00" + bytes(65536), Problem.TOO_MUCH),
        (bytes(MAX_BUNDLE_OCTETS + 1), Problem.TOO_MUCH),
        (b"\x30" * 30000, Problem.MALFORMED),
    ],
)
def test_what_is_no_certificate_is_refused(data: bytes, problem: Problem) -> None:
    with pytest.raises(CertificateRefused) as caught:
        load_bundle(data)
    assert caught.value.problem is problem


def test_a_certificate_of_great_size_is_not_parsed() -> None:
    with pytest.raises(CertificateRefused) as caught:
        decode_certificate_untrusted(bytes(MAX_CERTIFICATE_OCTETS + 1))
    assert caught.value.problem is Problem.TOO_MUCH


def test_deep_nesting_is_no_danger() -> None:
    """Each level four octets: an extension value with thousands of sequences in one another."""
    nested = b""
    for _ in range(2000):
        nested = b"\x30\x82" + len(nested).to_bytes(2) + nested
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), nested)
    assert ROOT.issue("deep", extensions=[(unknown, False)]).certificate.unprocessed == ()
    with pytest.raises(CertificateRefused):
        decode_certificate_untrusted(nested)


def test_an_extension_that_is_there_twice_is_refused() -> None:
    oids = [x509.ObjectIdentifier(f"1.3.6.1.4.1.99999.{n}") for n in (1, 2)]
    extensions = [(x509.UnrecognizedExtension(oid, b""), False) for oid in oids]
    two = ROOT.issue("two", extensions=extensions).certificate.der
    first, second = (bytes.fromhex("2b06010401868d1f") + bytes([n]) for n in (1, 2))
    twice = two.replace(second, first)
    assert twice != two
    with pytest.raises(CertificateRefused) as caught:
        decode_certificate_untrusted(twice)
    assert caught.value.problem is Problem.MALFORMED


MUTATIONS = st.lists(
    st.tuples(st.integers(0, len(DER) - 1), st.integers(0, 255)), min_size=1, max_size=4
)


@given(MUTATIONS)
@settings(deadline=None)
def test_a_damaged_certificate_is_refused_or_not_trusted(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(DER)
    for place, octet in changes:
        damaged[place] = octet
    if damaged == DER:
        return
    with pytest.raises(CertificateRefused):
        _use(bytes(damaged))


@given(MUTATIONS)
@settings(deadline=None)
def test_a_damaged_anchor_costs_no_more_than_a_refusal(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(ROOT.certificate.der)
    for place, octet in changes:
        damaged[place % len(damaged)] = octet
    with suppress(CertificateRefused):
        anchor = decode_certificate_untrusted(bytes(damaged))
        validate(LEAF.certificate, intermediates=[], anchors=[anchor], now=NOW)


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda b: b"\x30\x82" + b))
@settings(deadline=None)
def test_any_octets_are_certificates_or_refused(data: bytes) -> None:
    with suppress(CertificateRefused):
        load_bundle(data)


def _use(der: bytes) -> None:
    """All that is done with the certificate of a peer."""
    certificate = decode_certificate_untrusted(der)
    assert str(certificate).isascii()
    for identity in identities_of(certificate):
        check_identity(certificate, identity)
    validate(certificate, intermediates=[], anchors=[ROOT.certificate], now=NOW)


def test_a_subject_of_any_letters_is_one_line_of_ascii() -> None:
    shown = ROOT.issue(name("B\u00fcro\n\x1b[2J")).certificate.name
    assert shown == "O=Example, CN=B\\xfcro\\n\\x1b[2J"
