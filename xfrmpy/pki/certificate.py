"""Octets to certificates: whole files of them, and what a peer sends; each parsed to its end.

The library parses extensions and keys when they are asked for. Here all of that is done at once, so
a `Certificate` that exists cannot fail later. Read RFC 5280 section 4 first. Nothing is judged here
but form and size.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import types
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from xfrmpy.pki.verdicts import CertificateRefused, Evidence, Problem

MAX_CERTIFICATE_OCTETS = 32 * 1024
"""Ours. Of the public authorities' certificates none has more than 4 KiB; one with an ML-DSA-87 key
and signature has 8."""

MAX_BUNDLE_OCTETS = 1024 * 1024
"""Ours. All that Debian's ca-certificates trusts is 220 KiB."""

_BEGIN = re.compile(rb"-----BEGIN (?:X509 )?CERTIFICATE-----")
_PEM = re.compile(_BEGIN.pattern + rb"[^-]*-----END (?:X509 )?CERTIFICATE-----")

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

PROCESSED = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.NAME_CONSTRAINTS,
        # No policy is demanded of a path, so any will do (RFC 5280 section 6.1.1 (c)).
        ExtensionOID.CERTIFICATE_POLICIES,
    }
)
"""The extensions that may be critical; those that restrict certificate policies are not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """From when to when, both included (RFC 5280 section 4.1.2.5)."""

    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, eq=False, kw_only=True)
class Certificate:
    """One X.509 certificate, equal to another by its octets. `issuer` and `subject` are DER.

    `usages` are the OIDs of the extended key usage, None if there is none; `path_length` None is
    without limit. `unprocessed` are the OIDs of critical extensions that nobody here heeds.
    """

    der: bytes = field(repr=False)
    library: x509.Certificate
    public_key: types.CertificateIssuerPublicKeyTypes = field(repr=False)
    subject: bytes = field(repr=False)
    issuer: bytes = field(repr=False)
    validity: Validity
    alternative_names: tuple[x509.GeneralName, ...]
    is_authority: bool
    path_length: int | None
    key_usage: x509.KeyUsage | None
    usages: frozenset[str] | None
    name_constraints: x509.NameConstraints | None
    subject_key_id: bytes | None = field(repr=False)
    authority_key_id: bytes | None = field(repr=False)
    ocsp_nocheck: bool
    unprocessed: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Certificate) and self.der == other.der

    def __hash__(self) -> int:
        return hash(self.der)

    def __str__(self) -> str:
        return self.name

    @cached_property
    def name(self) -> str:
        """The subject in the order of the certificate, or what else names it."""
        if self.library.subject.rdns:
            return printable(self.library.subject)
        names = ", ".join(ascii(name.value)[1:-1] for name in self.alternative_names)
        return names or f"serial {self.serial}"

    @cached_property
    def issuer_name(self) -> str:
        """The issuer in the order of the certificate."""
        return printable(self.library.issuer)

    @property
    def serial(self) -> str:
        """The serial number in hexadecimal digits, as openssl shows it."""
        return f"{self.library.serial_number:x}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its octets, as openssl shows it."""
        return hashlib.sha256(self.der).digest().hex(":").upper()

    @cached_property
    def public_key_info(self) -> bytes:
        """The DER of SubjectPublicKeyInfo."""
        return self.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @cached_property
    def key_hash(self) -> bytes:
        """What a CERTREQ names it by: SHA-1 of SubjectPublicKeyInfo (RFC 7296 section 3.7)."""
        return hashlib.sha1(self.public_key_info, usedforsecurity=False).digest()

    @property
    def is_self_issued(self) -> bool:
        return self.subject == self.issuer

    @property
    def evidence(self) -> Evidence:
        """What tells it from others."""
        return (
            ("certificate", self.name),
            ("issuer", self.issuer_name),
            ("serial", self.serial),
        )


def decode_certificate_untrusted(der: bytes) -> Certificate:
    """One certificate in DER, of the length of `der`.

    Raises `CertificateRefused` (MALFORMED, TOO_MUCH).
    """
    if len(der) > MAX_CERTIFICATE_OCTETS:
        raise CertificateRefused(Problem.TOO_MUCH, f"a certificate of {len(der)} octets")
    return guarded(lambda: _parse(der), "not a certificate")


def load_bundle(data: bytes) -> tuple[Certificate, ...]:
    """Every certificate of a file, in its order: PEM among whatever else, or DER in a row.

    Each is there once. Raises `CertificateRefused` (MALFORMED, TOO_MUCH), also if there is none.
    """
    if len(data) > MAX_BUNDLE_OCTETS:
        raise CertificateRefused(Problem.TOO_MUCH, f"a file of {len(data)} octets")
    if b"-----BEGIN" not in data:
        found = [decode_certificate_untrusted(der) for der in _elements(data)]
    else:
        found = [_from_pem(match.group()) for match in _PEM.finditer(data)]
        if len(found) != len(_BEGIN.findall(data)):
            raise CertificateRefused(Problem.MALFORMED, "a certificate without end")
    if not found:
        raise CertificateRefused(Problem.MALFORMED, "no certificate in it")
    return tuple(dict.fromkeys(found))


Parsed = TypeVar("Parsed")


def guarded(parse: Callable[[], Parsed], summary: str) -> Parsed:
    """Whatever the library raises for octets that it does not like is one refusal."""
    try:
        return parse()
    except (ValueError, TypeError, OverflowError, UnsupportedAlgorithm) as error:
        raise CertificateRefused(
            Problem.MALFORMED, summary, (("reason", ascii(str(error))[1:-1][:200]),)
        ) from error
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion) as error:
        raise CertificateRefused(Problem.MALFORMED, summary, (("reason", str(error)),)) from error


def printable(name: x509.Name) -> str:
    """A name in the order of its octets, on one line of ASCII, whatever stands in it."""
    return ascii(", ".join(rdn.rfc4514_string() for rdn in name.rdns))[1:-1]


def _parse(der: bytes) -> Certificate:
    library = x509.load_der_x509_certificate(der)
    extensions = library.extensions
    found: dict[type, Any] = {type(each.value): each.value for each in extensions}
    basic: x509.BasicConstraints | None = found.get(x509.BasicConstraints)
    names: x509.SubjectAlternativeName | None = found.get(x509.SubjectAlternativeName)
    usages: x509.ExtendedKeyUsage | None = found.get(x509.ExtendedKeyUsage)
    subject_key: x509.SubjectKeyIdentifier | None = found.get(x509.SubjectKeyIdentifier)
    authority_key: x509.AuthorityKeyIdentifier | None = found.get(x509.AuthorityKeyIdentifier)
    if library.version is not x509.Version.v3:
        raise ValueError("not version 3")
    key = library.public_key()
    return Certificate(
        der=der,
        library=library,
        public_key=key,  # type: ignore[arg-type]  # X25519 and X448 sign nothing; `checks` refuses them
        subject=library.subject.public_bytes(),
        issuer=library.issuer.public_bytes(),
        validity=Validity(
            not_before=library.not_valid_before_utc, not_after=library.not_valid_after_utc
        ),
        alternative_names=() if names is None else tuple(names),
        is_authority=basic is not None and basic.ca,
        path_length=None if basic is None else basic.path_length,
        key_usage=found.get(x509.KeyUsage),
        usages=None if usages is None else frozenset(oid.dotted_string for oid in usages),
        name_constraints=found.get(x509.NameConstraints),
        subject_key_id=None if subject_key is None else subject_key.digest,
        authority_key_id=None if authority_key is None else authority_key.key_identifier,
        ocsp_nocheck=x509.OCSPNoCheck in found,
        unprocessed=unprocessed(extensions, PROCESSED),
    )


def unprocessed(
    extensions: x509.Extensions, processed: Iterable[x509.ObjectIdentifier]
) -> tuple[str, ...]:
    """The OIDs of the critical extensions that are not among `processed`."""
    known = set(processed)
    return tuple(e.oid.dotted_string for e in extensions if e.critical and e.oid not in known)


def extension(extensions: x509.Extensions, kind: type[_Extension]) -> _Extension | None:
    """The extension of that kind, None if there is none."""
    return next((e.value for e in extensions if isinstance(e.value, kind)), None)


def _from_pem(block: bytes) -> Certificate:
    def parse() -> bytes:
        return x509.load_pem_x509_certificate(block).public_bytes(Encoding.DER)

    return decode_certificate_untrusted(guarded(parse, "not a certificate"))


def _elements(data: bytes) -> Iterable[bytes]:
    """The DER elements that stand one behind the other."""
    while data:
        size = _size(data)
        yield data[:size]
        data = data[size:]


def _size(data: bytes) -> int:
    """Of the first element, with its head; a certificate's length has at most three octets."""
    if len(data) < 2 or data[0] != 0x30:
        raise CertificateRefused(Problem.MALFORMED, "neither PEM nor DER")
    if data[1] < 0x80:
        return 2 + data[1]
    octets = data[1] & 0x7F
    return 2 + octets + int.from_bytes(data[2 : 2 + octets][:4]) if octets <= 3 else len(data)
