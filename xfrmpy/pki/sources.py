"""Where a certificate says that its status can be asked, and the question.

Read RFC 5280 sections 4.2.1.13, 4.2.1.15 and 4.2.2.1 and RFC 6960 section 4.1 first. Addresses are
taken from certificates whose path is valid, and from lists of their issuers, and from nowhere else.
Nothing is fetched here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID

from xfrmpy.pki.certificate import Certificate, extension
from xfrmpy.pki.places import MAX_URL_OCTETS
from xfrmpy.pki.revocation import RevocationList

MAX_SOURCES = 2
"""Ours: of one kind, about one certificate."""

NONCE_OCTETS = 32
"""RFC 9654 section 2.1: what a client sends."""


class SourceKind(StrEnum):
    """What is to be had there."""

    OCSP = "OCSP"
    CRL = "CRL"
    DELTA = "delta CRL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """`request` is posted to the address; without one what is there is got.

    It tells of `certificate`, which `issuer` has issued. `nonce` is in the request.
    """

    kind: SourceKind
    url: str
    certificate: Certificate = field(repr=False)
    issuer: Certificate = field(repr=False)
    request: bytes = field(default=b"", repr=False)
    nonce: bytes = field(default=b"", repr=False)

    @property
    def key(self) -> tuple[str, str, str]:
        """The same for those of which one answer will do."""
        about = self.certificate.serial if self.kind is SourceKind.OCSP else ""
        return self.kind, self.url, about


def responders(
    certificate: Certificate, issuer: Certificate, random: Callable[[int], bytes]
) -> Iterator[Source]:
    """Whom to ask by OCSP, each with a question of its own."""
    access = extension(certificate.library.extensions, x509.AuthorityInformationAccess)
    names = (
        each.access_location
        for each in access or ()
        if each.access_method == AuthorityInformationAccessOID.OCSP
    )
    for url in _urls(names):
        nonce = random(NONCE_OCTETS)
        yield Source(
            kind=SourceKind.OCSP,
            url=url,
            certificate=certificate,
            issuer=issuer,
            request=_question(certificate, issuer, nonce),
            nonce=nonce,
        )


def lists_of(certificate: Certificate, issuer: Certificate) -> Iterator[Source]:
    """Where full lists are."""
    points = extension(certificate.library.extensions, x509.CRLDistributionPoints)
    for url in _urls(_names(points or ())):
        yield Source(kind=SourceKind.CRL, url=url, certificate=certificate, issuer=issuer)


def deltas_of(
    certificate: Certificate, issuer: Certificate, full: RevocationList
) -> Iterator[Source]:
    """Where what has been added to a full list is: it says so itself, or the certificate."""
    holders = (certificate.library.extensions, full.library.extensions)
    points = [p for each in holders for p in extension(each, x509.FreshestCRL) or ()]
    for url in _urls(_names(points)):
        yield Source(kind=SourceKind.DELTA, url=url, certificate=certificate, issuer=issuer)


def _names(points: Iterable[x509.DistributionPoint]) -> Iterator[x509.GeneralName]:
    """A point whose list somebody else signs would be refused, so it need not be fetched."""
    return (name for p in points if not p.crl_issuer for name in p.full_name or ())


def _urls(names: Iterable[x509.GeneralName]) -> tuple[str, ...]:
    """RFC 5280 section 8 warns of https: to verify the server's certificate may need this list."""
    found = dict.fromkeys(
        name.value
        for name in names
        if isinstance(name, x509.UniformResourceIdentifier)
        and name.value.lower().startswith("http://")
        and len(name.value) <= MAX_URL_OCTETS
    )
    return tuple(found)[:MAX_SOURCES]


def _question(certificate: Certificate, issuer: Certificate, nonce: bytes) -> bytes:
    """RFC 5019 section 2.1.1: SHA-1 names the certificate; it protects nothing there."""
    builder = ocsp.OCSPRequestBuilder().add_certificate(
        certificate.library,
        issuer.library,
        hashes.SHA1(),
    )
    request = builder.add_extension(x509.OCSPNonce(nonce), critical=False).build()
    return request.public_bytes(Encoding.DER)
