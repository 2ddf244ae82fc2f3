"""A peer is who its certificate says, by the name of the same type, and nobody else."""

from __future__ import annotations

from contextlib import suppress

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pki.chains import address, authority, dns, issue
from xfrmpy.ipsec.identity import Identity
from xfrmpy.pki.identities import check_identity, identities_of
from xfrmpy.pki.verdicts import CertificateRefused, Problem
from xfrmpy.registry import IdType

ROOT = authority("root")
GATEWAY = ROOT.issue(
    "gw",
    names=[
        *(dns("gw.example.org"), address("192.0.2.1"), address("2001:db8::1")),
        *(x509.RFC822Name("ann@example.org"), dns("*.wild.example.org")),
    ],
).certificate
BARE = ROOT.issue("gw.example.org").certificate


@pytest.mark.parametrize(
    "text",
    [
        *("gw.example.org", "GW.Example.ORG", "192.0.2.1", "2001:db8::1"),
        *("ann@example.org", "ann@EXAMPLE.org", "O=Example, CN=gw", "o=EXAMPLE,cn=GW"),
    ],
)
def test_a_name_of_the_certificate_is_the_peer_s(text: str) -> None:
    check_identity(GATEWAY, Identity.parse(text))


@pytest.mark.parametrize(
    "text",
    [
        *("gw", "gw2.example.org", "example.org", "a.wild.example.org", "*.wild.example.org"),
        *("192.0.2.2", "@192.0.2.1", "2001:db8::2", "bob@example.org", "ANN@example.org"),
        *("O=Example", "O=Example, CN=gw, OU=more", "CN=gw", "O=Example, CN=g", "keyid:gw"),
        *("O=Example, CN=*", "CN=gw, O=Example", "gw.example.org.evil.example"),
    ],
)
def test_any_other_name_is_not(text: str) -> None:
    with pytest.raises(CertificateRefused) as caught:
        check_identity(GATEWAY, Identity.parse(text))
    assert caught.value.problem is Problem.WRONG_IDENTITY
    assert "gw.example.org" in dict(caught.value.evidence)["in the certificate"]


def test_without_alternative_names_there_is_the_whole_subject_only() -> None:
    check_identity(BARE, Identity.parse("O=Example, CN=gw.example.org"))
    with pytest.raises(CertificateRefused):
        check_identity(BARE, Identity.parse("gw.example.org"))


def test_a_name_with_a_nul_is_not_cut_there() -> None:
    identity = Identity(type=IdType.ID_FQDN, data=b"gw.example.org\0.evil.example")
    with pytest.raises(CertificateRefused):
        check_identity(GATEWAY, identity)


def test_an_empty_subject_is_nobody() -> None:
    empty = issue(x509.Name([]), issuer=ROOT, names=[dns("x.example.org")]).certificate
    with pytest.raises(CertificateRefused):
        check_identity(empty, Identity(type=IdType.ID_DER_ASN1_DN, data=b"\x30\x00"))


@given(st.sampled_from(IdType) | st.integers(0, 255).map(IdType), st.binary(max_size=60))
@settings(deadline=None)
def test_any_octets_are_another_identity_or_refused(kind: IdType, data: bytes) -> None:
    with pytest.raises(CertificateRefused):
        check_identity(GATEWAY, Identity(type=kind, data=data))


@given(st.integers(0, 40), st.integers(0, 255))
@settings(deadline=None)
def test_a_damaged_distinguished_name_is_another_or_the_same(place: int, octet: int) -> None:
    data = bytearray(GATEWAY.subject)
    data[place % len(data)] = octet
    with suppress(CertificateRefused):
        check_identity(GATEWAY, Identity(type=IdType.ID_DER_ASN1_DN, data=bytes(data)))


def test_no_type_of_identity_but_its_own_proves_a_name() -> None:
    """CVE-2014-9221: the whole space of numbers, each with the octets of every name."""
    proved = {(identity.type, identity.data) for identity in identities_of(GATEWAY)}
    assert len(proved) == 6
    for number in range(256):
        for _, data in proved:
            if (number, data) in proved:
                continue
            with pytest.raises(CertificateRefused):
                check_identity(GATEWAY, Identity(type=IdType(number), data=data))
