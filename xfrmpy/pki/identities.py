"""Whether a certificate is that of the identity which a peer claims (RFC 4945 3.1, 5.1.3.6).

What is compared is the subject alternative names and the subject's whole name, each with its own
type of identity only; never the common name with a host name, and no wildcard that a certificate
brings.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from cryptography import x509

from xfrmpy.ipsec.distinguished_name import comparable, decode_distinguished_name_untrusted
from xfrmpy.ipsec.identity import Identity
from xfrmpy.pki.certificate import Certificate, guarded
from xfrmpy.pki.verdicts import CertificateRefused, Problem
from xfrmpy.registry import IdType


def check_identity(certificate: Certificate, identity: Identity) -> None:
    """Raises `CertificateRefused` (WRONG_IDENTITY, MALFORMED) unless the certificate has it."""
    if _has(certificate, identity):
        return
    raise CertificateRefused(
        Problem.WRONG_IDENTITY,
        f"{certificate} is not the certificate of {identity}",
        (
            ("the identity claimed", str(identity)),
            ("in the certificate", ", ".join(map(str, identities_of(certificate))) or "none"),
            *certificate.evidence,
        ),
    )


def identities_of(certificate: Certificate) -> tuple[Identity, ...]:
    """All that the certificate can prove, its subject last."""
    found = [identity for name in certificate.alternative_names if (identity := _identity_of(name))]
    if certificate.library.subject.rdns:
        found.append(Identity(type=IdType.ID_DER_ASN1_DN, data=certificate.subject))
    return tuple(found)


def _has(certificate: Certificate, identity: Identity) -> bool:
    if identity.type == IdType.ID_DER_ASN1_DN:
        name = guarded(
            lambda: decode_distinguished_name_untrusted(identity.data),
            "the peer's identity is not a distinguished name",
        )
        return bool(name.rdns) and comparable(name) == comparable(certificate.library.subject)
    return any(_are_equal(identity, known) for known in identities_of(certificate))


def _are_equal(claimed: Identity, known: Identity) -> bool:
    """Names of hosts have no case, nor has the host of a mailbox."""
    if claimed.type != known.type:
        return False
    if claimed.type == IdType.ID_FQDN:
        return b"*" not in claimed.data and claimed.data.lower() == known.data.lower()
    if claimed.type == IdType.ID_RFC822_ADDR:
        return _mailbox(claimed.data) == _mailbox(known.data)
    return claimed.data == known.data


def _mailbox(octets: bytes) -> tuple[bytes, bytes]:
    user, _, host = octets.rpartition(b"@")
    return user, host.lower()


def _identity_of(name: x509.GeneralName) -> Identity | None:
    match name:
        case x509.DNSName():
            return Identity(type=IdType.ID_FQDN, data=name.value.encode())
        case x509.RFC822Name():
            return Identity(type=IdType.ID_RFC822_ADDR, data=name.value.encode())
        case x509.IPAddress(value=IPv4Address() | IPv6Address() as address):
            return Identity.of_address(address)
    return None
