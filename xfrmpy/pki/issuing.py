"""A small authority of one's own: certificates that IKE peers of any make take, and its CRL.

Ours to choose (RFC 5280 section 4 and RFC 4945 section 5.1 leave it): ECDSA with P-256, for
strongSwan, libreswan, Windows and Apple all verify it, while Ed25519 is known to strongSwan and us
only; no extended key usage, as RFC 4945 section 5.1.3.12 has it; one authority, with none below it.
What comes out is what `checks` demands. Keys are the library's, serial numbers the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from xfrmpy.ipsec.distinguished_name import encode_distinguished_name
from xfrmpy.ipsec.identity import Identity
from xfrmpy.pki.certificate import Certificate, decode_certificate_untrusted, guarded
from xfrmpy.pki.name_constraints import check_names
from xfrmpy.pki.revocation import RevocationList
from xfrmpy.pki.verdicts import CertificateRefused, Problem
from xfrmpy.registry import IdType

SKEW = timedelta(hours=1)
"""Ours: valid from a moment ago, for the clocks of peers that are behind."""


class KeyType(StrEnum):
    """What a new key is of."""

    P256 = "p256"
    P384 = "p384"
    ED25519 = "ed25519"
    RSA3072 = "rsa3072"


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate, and its private key as unencrypted PKCS #8 in PEM."""

    certificate: Certificate
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A certificate that issues others, and its private key."""

    certificate: Certificate
    key: CertificateIssuerPrivateKeyTypes = field(repr=False)

    @classmethod
    def load(cls, certificate: Certificate, key_pem: bytes) -> Authority:
        """Raises `CertificateRefused` if the key is none, or not that of the certificate."""
        key = guarded(lambda: load_pem_private_key(key_pem, password=None), "not a private key")
        if not certificate.is_authority or _info(key.public_key()) != certificate.public_key_info:
            summary = f"the key is not that of an authority {certificate}"
            raise CertificateRefused(Problem.NOT_AN_AUTHORITY, summary, certificate.evidence)
        return cls(certificate=certificate, key=key)  # type: ignore[arg-type]

    def issue(
        self,
        common_name: str,
        identities: Iterable[Identity],
        key_type: KeyType,
        *,
        serial: int,
        now: datetime,
        days: int,
    ) -> Issued:
        """For an IKE peer with these identities, of which its name is one (DER_ASN1_DN).

        It ends with the authority at the latest. Raises `ValueError` for an identity that no
        certificate can have.
        """
        above = [a for a in self.certificate.library.subject if a.oid != NameOID.COMMON_NAME]
        subject = x509.Name([*above, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        key = _new_key(key_type)
        end = min(now + timedelta(days=days), self.certificate.validity.not_after)
        names = [_general_name(identity) for identity in identities]
        builder = (
            _builder(subject, key, serial, now, end)
            .issuer_name(self.certificate.library.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage("digital_signature"), critical=True)
            .add_extension(self._key_identifier(), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        issued = _signed(builder, self.key, key)
        check_names(issued.certificate, self.certificate)
        return issued

    def revoke(
        self,
        serials: Iterable[int],
        before: RevocationList | None,
        *,
        now: datetime,
        days: int,
    ) -> bytes:
        """The next CRL in PEM: what was revoked `before`, and these serial numbers now."""
        old = [] if before is None else list(before.library)
        known = {entry.serial_number for entry in old}
        number = 0 if before is None or before.number is None else before.number
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.library.subject)
            .last_update(now - SKEW)
            .next_update(now + timedelta(days=days))
            .add_extension(x509.CRLNumber(number + 1), critical=False)
            .add_extension(self._key_identifier(), critical=False)
        )
        new = [_entry(serial, now) for serial in serials if serial not in known]
        for entry in (*old, *new):
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self.key, _hash_for(self.key)).public_bytes(Encoding.PEM)

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        digest = self.certificate.subject_key_id
        return x509.AuthorityKeyIdentifier(digest, None, None)


def make_authority(
    subject: str, key_type: KeyType, *, serial: int, now: datetime, days: int
) -> Issued:
    """A new one, self-signed; `subject` as in `O=Example, CN=Example VPN`.

    Raises `ValueError` with a sentence for the operator.
    """
    name = x509.Name.from_bytes(encode_distinguished_name(subject))
    key = _new_key(key_type)
    usage = _key_usage("key_cert_sign", "crl_sign")
    builder = (
        _builder(name, key, serial, now, now + timedelta(days=days))
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
    )
    return _signed(builder, key, key)


def pem_of(certificate: Certificate) -> bytes:
    """One certificate as it stands in files."""
    return certificate.library.public_bytes(Encoding.PEM)


def _builder(
    subject: x509.Name,
    key: CertificateIssuerPrivateKeyTypes,
    serial: int,
    now: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(now - SKEW)
        .not_valid_after(end)
        .add_extension(identifier, critical=False)
    )


def _signed(
    builder: x509.CertificateBuilder,
    signer: CertificateIssuerPrivateKeyTypes,
    key: CertificateIssuerPrivateKeyTypes,
) -> Issued:
    made = builder.sign(signer, _hash_for(signer))
    return Issued(
        certificate=decode_certificate_untrusted(made.public_bytes(Encoding.DER)),
        key_pem=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _hash_for(
    key: CertificateIssuerPrivateKeyTypes,
) -> hashes.SHA256 | hashes.SHA384 | None:
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return None
    is_larger = isinstance(key, ec.EllipticCurvePrivateKey) and key.key_size > 256
    return hashes.SHA384() if is_larger else hashes.SHA256()


def _new_key(key_type: KeyType) -> CertificateIssuerPrivateKeyTypes:
    match key_type:
        case KeyType.P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyType.P384:
            return ec.generate_private_key(ec.SECP384R1())
        case KeyType.ED25519:
            return ed25519.Ed25519PrivateKey.generate()
        case KeyType.RSA3072:
            return rsa.generate_private_key(65537, 3072)


def _info(key: object) -> bytes:
    public_bytes = getattr(key, "public_bytes")  # noqa: B009 - of a dozen types of key
    octets: bytes = public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return octets


def _general_name(identity: Identity) -> x509.GeneralName:
    text = str(identity).removeprefix("@")
    match identity.type:
        case IdType.ID_FQDN:
            return x509.DNSName(text)
        case IdType.ID_RFC822_ADDR:
            return x509.RFC822Name(text)
        case IdType.ID_IPV4_ADDR | IdType.ID_IPV6_ADDR:
            return x509.IPAddress(ip_address(identity.data))
    raise ValueError(f"{identity} is neither an address, a domain name nor a mailbox")


def _entry(serial: int, now: datetime) -> x509.RevokedCertificate:
    return x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()


def _key_usage(*bits: str) -> x509.KeyUsage:
    every = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{bit: bit in bits for bit in every})
