"""What a peer names by a hash and a URL, and what may be there."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from tests.pki.chains import authority, issue
from tests.pki.test_revocation import crl
from xfrmpy.pki.lookups import (
    HASH_OCTETS,
    Lookup,
    check_place,
    decode_lookup_untrusted,
    take_found,
)
from xfrmpy.pki.places import parse_host, parse_place
from xfrmpy.pki.verdicts import CertificateRefused, Problem

ROOT = authority("lookup root")
LEAF = issue("lookup leaf", issuer=ROOT)
DER = LEAF.certificate.der
URL = b"http://certs.example.net/a.der"

HOST_TEXT = st.text("abc-_%.:[]@/?#\u00e9\u0130 0189", max_size=70)


def element(tag: int, content: bytes) -> bytes:
    """In DER."""
    size = len(content)
    octets = size.to_bytes(max(1, (size.bit_length() + 7) // 8))
    head = octets if size < 0x80 else bytes([0x80 | len(octets)]) + octets
    return bytes([tag]) + head + content


def bundled(*ders: bytes, lists: tuple[bytes, ...] = ()) -> bytes:
    """A CertificateBundle of RFC 7296 section 3.6."""
    inner = [*(element(0xA1, each) for each in lists), *(element(0xA0, each) for each in ders)]
    return element(0x30, b"".join(inner))


def lookup_of(data: bytes, *, is_bundle: bool) -> Lookup:
    digest = hashlib.sha1(data, usedforsecurity=False).digest()
    return decode_lookup_untrusted(digest + URL, is_bundle=is_bundle)


def problem_of(data: bytes, *, is_bundle: bool) -> Problem:
    with pytest.raises(CertificateRefused) as caught:
        take_found(lookup_of(data, is_bundle=is_bundle), data)
    assert ("named by URL", URL.decode()) in caught.value.evidence
    return caught.value.problem


def test_a_certificate_and_a_bundle_are_taken() -> None:
    listed = crl(ROOT).library.public_bytes(Encoding.DER)
    assert take_found(lookup_of(DER, is_bundle=False), DER) == (DER,)
    both = (DER, ROOT.certificate.der)
    bundle = bundled(*both, lists=(listed,))
    assert take_found(lookup_of(bundle, is_bundle=True), bundle) == both


BAD_BUNDLES = {
    "empty": b"",
    "of nothing": bundled(),
    "of lists alone": bundled(lists=(b"\x30\x00",)),
    "a certificate": DER,
    "of certificates without tags": element(0x30, DER),
    "with an unknown tag": element(0x30, element(0xA2, DER)),
    "with octets behind": bundled(DER) + b"\x00",
    "with octets behind the certificate": bundled(DER + b"\x00"),
    "cut short": bundled(DER)[:-1],
    "cut in a head": element(0x30, b"\xa0"),
    "of indefinite length": b"\x30\x80" + element(0xA0, DER) + b"\x00\x00",
    "of a length that is not the shortest": b"\x30\x81\x04" + element(0xA0, b"\x30\x00"),
    "of a length with zeros before": b"\x30\x83\x00\x00\x04" + element(0xA0, b"\x30\x00"),
    "of four octets of length": b"\x30\x84\x00\x00\x00\x04" + element(0xA0, b"\x30\x00"),
    "without its length": b"\x30\x82\x01",
    "of no certificate": bundled(b"\x30\x00"),
}


@pytest.mark.parametrize("what", BAD_BUNDLES)
def test_a_bundle_is_refused(what: str) -> None:
    assert problem_of(BAD_BUNDLES[what], is_bundle=True) is Problem.MALFORMED


def test_a_bundle_of_too_many_is_refused() -> None:
    assert problem_of(bundled(*[DER] * 9), is_bundle=True) is Problem.TOO_MUCH


def test_what_is_no_certificate_or_too_large_is_refused() -> None:
    assert problem_of(DER + b"\x00", is_bundle=False) is Problem.MALFORMED
    assert problem_of(bytes(40000), is_bundle=False) is Problem.TOO_MUCH


def test_another_hash_is_told_before_anything_is_parsed() -> None:
    lookup = lookup_of(DER, is_bundle=False)
    for changed in (DER[:-1] + bytes([DER[-1] ^ 1]), b"", b"<html>"):
        with pytest.raises(CertificateRefused) as caught:
            take_found(lookup, changed)
        assert caught.value.problem is Problem.NOT_FETCHED


@given(st.binary(max_size=60), st.booleans())
def test_whatever_octets_there_are_make_a_url_of_ascii_or_a_refusal(
    octets: bytes, is_bundle: bool
) -> None:
    try:
        lookup = decode_lookup_untrusted(octets, is_bundle=is_bundle)
    except CertificateRefused:
        return
    assert octets == lookup.digest + lookup.url.encode("ascii")
    assert len(lookup.digest) == HASH_OCTETS
    assert lookup.url.isprintable()
    assert " " not in lookup.url


@given(st.one_of(st.text(max_size=80), HOST_TEXT.map("http://{}/list".format)))
def test_a_url_has_a_host_that_can_be_looked_up_or_is_refused(url: str) -> None:
    try:
        place = parse_place(url)
    except ValueError:
        return
    assert place.host.encode("idna")
    assert 0 < place.port < 65536


@pytest.mark.parametrize("host", ["ca..example", f"{'a' * 64}.example", "ca.example:65536"])
def test_what_no_name_can_be_is_told(host: str) -> None:
    with pytest.raises(ValueError, match="not a URL"):
        parse_place(f"http://{host}/list")


@given(HOST_TEXT)
def test_what_policy_names_is_a_host_and_nothing_else(text: str) -> None:
    try:
        place = parse_host(text)
    except ValueError:
        return
    assert not set(text) & set("/?#@ ")
    assert place.authority == text


ALLOWED = ("certs.example.net", "192.0.2.1:8080", "[2001:db8::1]:81", "Upper.example.net")


@pytest.mark.parametrize(
    ("url", "is_allowed"),
    [
        ("http://certs.example.net/", True),
        ("HTTP://CERTS.example.net:80/a?b", True),
        ("http://upper.example.net/", True),
        ("http://192.0.2.1:8080/a", True),
        ("http://[2001:db8::1]:81/a", True),
        ("http://192.0.2.1/a", False),
        ("http://certs.example.net:8080/", False),
        ("http://certs.example.net./", False),
        ("http://a.certs.example.net/", False),
        ("http://certs.example.net@127.0.0.1/", False),
        ("http://127.0.0.1/?certs.example.net", False),
        ("http://127.0.0.1#@certs.example.net/", False),
        ("http://127.0.0.1\\@certs.example.net/", False),
        ("http://certs.example.net\\.evil/", False),
        ("http://certs.example.net:80:81/", False),
        ("http:///certs.example.net/", False),
        ("//certs.example.net/", False),
    ],
)
def test_only_hosts_of_the_policy_are_asked_at_their_ports(url: str, is_allowed: bool) -> None:
    lookup = decode_lookup_untrusted(bytes(HASH_OCTETS) + url.encode(), is_bundle=False)
    if is_allowed:
        check_place(lookup, ALLOWED)
        return
    with pytest.raises(CertificateRefused) as caught:
        check_place(lookup, ALLOWED)
    assert caught.value.problem is Problem.NOT_FETCHED
