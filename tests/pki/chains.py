"""Certificates for tests: an authority of any kind in one line, with whatever is wrong with it.

Keys are made once in a process. Everything is valid around `NOW` unless a test says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from ipaddress import ip_address
from itertools import count

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from xfrmpy.pki.certificate import Certificate, decode_certificate_untrusted

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)

Key = CertificateIssuerPrivateKeyTypes
Extensions = Iterable[tuple[x509.ExtensionType, bool]]

_serial = count(1)


@cache
def key(kind: str = "p256", number: int = 0) -> Key:
    """One private key of each kind and number."""
    del number
    match kind:
        case "rsa":
            return rsa.generate_private_key(65537, 2048)
        case "rsa3":
            return rsa.generate_private_key(3, 2048)
        case "rsa1024":
            return rsa.generate_private_key(65537, 1024)
        case "dsa":
            return dsa.generate_private_key(2048)
        case "ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case "ed448":
            return ed448.Ed448PrivateKey.generate()
        case "mldsa44":
            return mldsa.MLDSA44PrivateKey.generate()
        case "mldsa65":
            return mldsa.MLDSA65PrivateKey.generate()
        case "mldsa87":
            return mldsa.MLDSA87PrivateKey.generate()
    curves: dict[str, type[ec.EllipticCurve]] = {
        "p256": ec.SECP256R1,
        "p384": ec.SECP384R1,
        "p521": ec.SECP521R1,
        "k1": ec.SECP256K1,
    }
    return ec.generate_private_key(curves[kind]())


def name(text: str) -> x509.Name:
    """`CN=text`, under one organisation."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example"),
            x509.NameAttribute(NameOID.COMMON_NAME, text),
        ]
    )


@dataclass(frozen=True, kw_only=True)
class Entity:
    """A certificate with its private key, which issues others."""

    certificate: Certificate
    key: Key

    @property
    def library(self) -> x509.Certificate:
        return self.certificate.library

    def issue(self, subject: str | x509.Name, **wishes: object) -> Entity:
        return issue(subject, issuer=self, **wishes)  # type: ignore[arg-type]


def issue(
    subject: str | x509.Name,
    *,
    issuer: Entity | None = None,
    private_key: Key | None = None,
    signed_with: Key | None = None,
    ca: bool = False,
    path_length: int | None = None,
    usage: Iterable[str] | None = None,
    names: Iterable[x509.GeneralName] = (),
    extensions: Extensions = (),
    start: datetime = NOW - DAY,
    end: datetime = NOW + 30 * DAY,
    serial: int | None = None,
) -> Entity:
    """A certificate for `private_key`, self-signed without an `issuer`.

    `signed_with` is another key than the issuer's; `usage` are the bits of the key usage.
    """
    own = private_key or key("p256", next(_serial))
    subject_name = name(subject) if isinstance(subject, str) else subject
    signer = signed_with or (own if issuer is None else issuer.key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject_name)
        .issuer_name(subject_name if issuer is None else issuer.library.subject)
        .public_key(own.public_key())
        .serial_number(serial or 1000 + next(_serial))
        .not_valid_before(start)
        .not_valid_after(end)
    )
    if ca:
        constraints = x509.BasicConstraints(ca=True, path_length=path_length)
        builder = builder.add_extension(constraints, critical=True)
    if usage is not None:
        builder = builder.add_extension(key_usage(*usage), critical=True)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    is_hashed = isinstance(
        signer, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | dsa.DSAPrivateKey
    )
    made = builder.sign(signer, hashes.SHA256() if is_hashed else None)
    return Entity(
        certificate=decode_certificate_untrusted(made.public_bytes(Encoding.DER)), key=own
    )


def authority(subject: str, **wishes: object) -> Entity:
    """An authority's certificate, self-signed unless it has an `issuer`."""
    usage = ("key_cert_sign", "crl_sign")
    return issue(subject, ca=True, **{"usage": usage, **wishes})  # type: ignore[arg-type]


def key_usage(*bits: str) -> x509.KeyUsage:
    every = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**{bit: bit in bits for bit in every})


def extended(*oids: str) -> tuple[x509.ExtensionType, bool]:
    return x509.ExtendedKeyUsage([x509.ObjectIdentifier(oid) for oid in oids]), False


def dns(text: str) -> x509.DNSName:
    return x509.DNSName(text)


def address(text: str) -> x509.IPAddress:
    return x509.IPAddress(ip_address(text))


def constraints(
    *, permitted: Iterable[x509.GeneralName] = (), excluded: Iterable[x509.GeneralName] = ()
) -> tuple[x509.ExtensionType, bool]:
    return x509.NameConstraints(list(permitted) or None, list(excluded) or None), True
