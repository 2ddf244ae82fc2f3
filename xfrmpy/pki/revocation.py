"""Whether a certificate is revoked, by lists and answers that somebody has fetched already.

Read RFC 5280 sections 5 and 6.3 first. Lists are taken from the certificate's own issuer only:
indirect ones are refused. `ocsp` knows the answers, `statuses` weighs them together. Nothing is
fetched here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import CRLEntryExtensionOID, ExtensionOID

from xfrmpy.pki.certificate import Certificate, extension, guarded, unprocessed
from xfrmpy.pki.checks import check_signature_hash
from xfrmpy.pki.verdicts import CertificateRefused, Evidence, Problem

MAX_CRL_OCTETS = 16 * 1024 * 1024
"""Ours: some 400,000 revoked certificates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RevocationList:
    """A CRL, read but for its entries. `base` is the number of the list that a delta adds to."""

    library: x509.CertificateRevocationList
    issuer: bytes
    start: datetime
    end: datetime | None
    number: int | None
    base: int | None
    scope: x509.IssuingDistributionPoint | None
    unprocessed: tuple[str, ...]


_PEM = re.compile(rb"-----BEGIN X509 CRL-----[^-]*-----END X509 CRL-----")


def load_lists(data: bytes) -> tuple[RevocationList, ...]:
    """Every list of a file: PEM, one behind the other among whatever else, or one in DER.

    Raises `CertificateRefused` (MALFORMED, TOO_MUCH), also if there is none.
    """
    if b"-----BEGIN" not in data:
        return (decode_crl_untrusted(data),)
    found = tuple(decode_crl_untrusted(match.group()) for match in _PEM.finditer(data))
    if not found or len(found) != data.count(b"-----BEGIN X509 CRL"):
        raise CertificateRefused(Problem.MALFORMED, "not lists of revoked certificates")
    return found


def decode_crl_untrusted(data: bytes) -> RevocationList:
    """One CRL in DER or PEM. Raises `CertificateRefused` (MALFORMED, TOO_MUCH)."""
    if len(data) > MAX_CRL_OCTETS:
        raise CertificateRefused(Problem.TOO_MUCH, f"a list of {len(data)} octets")
    return guarded(lambda: _parse(data), "not a list of revoked certificates")


def check_by_crls(
    certificate: Certificate, issuer: Certificate, crls: Iterable[RevocationList], now: datetime
) -> tuple[RevocationList, ...]:
    """The lists by which the certificate is good: a full one, and what adds to it.

    A delta list that belongs to a valid full one overrules it (RFC 5280 section 5.2.4). Raises
    `CertificateRefused`: REVOKED; STATUS_UNKNOWN without a full list that is valid now.
    """
    usable, objections = [], []
    for crl in crls:
        try:
            check_list(crl, certificate, issuer, now)
        except CertificateRefused as refused:
            objections.append(refused)
        else:
            usable.append(crl)
    full = max((c for c in usable if c.base is None), key=age, default=None)
    if full is None:
        evidence: Evidence = tuple(("list refused", o.summary) for o in objections[:4])
        raise _unknown(f"no list tells whether {certificate} is revoked", certificate, evidence)
    deltas = sorted((c for c in usable if _adds_to(c, full)), key=age)
    verdicts = [_entry(crl, certificate) for crl in (full, *deltas)]
    found = [entry for entry in verdicts if entry is not None]
    if found:
        _judge(found[-1], certificate)
    return (full, *deltas)


def _adds_to(delta: RevocationList, full: RevocationList) -> bool:
    """RFC 5280 section 5.2.4: the full list is not older than the base, and not newer than it."""
    if delta.base is None or delta.number is None or full.number is None:
        return False
    return delta.base <= full.number <= delta.number


def age(crl: RevocationList) -> tuple[datetime, int]:
    """The greater, the newer."""
    return crl.start, crl.number or 0


def _parse(data: bytes) -> RevocationList:
    is_pem = data.lstrip().startswith(b"-----BEGIN")
    library = (x509.load_pem_x509_crl if is_pem else x509.load_der_x509_crl)(data)
    extensions = library.extensions
    number = extension(extensions, x509.CRLNumber)
    delta = extension(extensions, x509.DeltaCRLIndicator)
    processed = (
        ExtensionOID.CRL_NUMBER,
        ExtensionOID.DELTA_CRL_INDICATOR,
        ExtensionOID.ISSUING_DISTRIBUTION_POINT,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    )
    return RevocationList(
        library=library,
        issuer=library.issuer.public_bytes(),
        start=library.last_update_utc,
        end=library.next_update_utc,
        number=None if number is None else number.crl_number,
        base=None if delta is None else delta.crl_number,
        scope=extension(extensions, x509.IssuingDistributionPoint),
        unprocessed=unprocessed(extensions, processed),
    )


def check_list(
    crl: RevocationList, certificate: Certificate, issuer: Certificate, now: datetime
) -> None:
    """Raises `CertificateRefused` unless the list is of this certificate, and may be believed."""
    if crl.issuer != certificate.issuer:
        raise _unknown("it is another authority's", certificate)
    usage = issuer.key_usage
    if usage is not None and not usage.crl_sign:
        raise _unknown("its signer has no cRLSign in its key usage", certificate)
    start, end = crl.start, crl.end
    if now < start:
        raise _unknown(f"it is of the future, {start.isoformat()}", certificate)
    if end is None or now > end:
        shown = "says not until when it holds" if end is None else f"held until {end.isoformat()}"
        raise _unknown(f"it {shown}", certificate)
    if crl.unprocessed:
        raise _unknown(f"it has the critical extension {crl.unprocessed[0]}", certificate)
    _check_scope(crl.scope, certificate)
    check_signature_hash(crl.library.signature_hash_algorithm, issuer)
    if not _is_signed_by(crl, issuer):
        raise _unknown("its signature is not its authority's", certificate)


def _check_scope(scope: x509.IssuingDistributionPoint | None, certificate: Certificate) -> None:
    """A list of one distribution point is a part only, unless the certificate names that point."""
    if scope is None:
        return
    if scope.indirect_crl or scope.only_contains_attribute_certs:
        raise _unknown("it is indirect, or of attribute certificates", certificate)
    if scope.only_some_reasons:
        raise _unknown("it tells of some reasons only", certificate)
    leaves_out = (
        scope.only_contains_user_certs if certificate.is_authority else scope.only_contains_ca_certs
    )
    if leaves_out:
        raise _unknown("it does not tell of such certificates", certificate)
    if (scope.full_name or scope.relative_name) and not _names_point(certificate, scope):
        raise _unknown("it is of another distribution point", certificate)


def _names_point(certificate: Certificate, scope: x509.IssuingDistributionPoint) -> bool:
    points = extension(certificate.library.extensions, x509.CRLDistributionPoints)
    ours = {name for point in points or () for name in point.full_name or ()}
    return any(name in ours for name in scope.full_name or ())


def _is_signed_by(crl: RevocationList, issuer: Certificate) -> bool:
    try:
        return crl.library.is_signature_valid(issuer.public_key)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False


def _entry(crl: RevocationList, certificate: Certificate) -> x509.RevokedCertificate | None:
    serial = certificate.library.serial_number
    return guarded(
        lambda: crl.library.get_revoked_certificate_by_serial_number(serial),
        "a list of revoked certificates with a malformed entry",
    )


def _judge(entry: x509.RevokedCertificate, certificate: Certificate) -> None:
    extensions = guarded(lambda: entry.extensions, "a malformed entry in a list")
    processed = (CRLEntryExtensionOID.CRL_REASON, CRLEntryExtensionOID.INVALIDITY_DATE)
    reason = extension(extensions, x509.CRLReason)
    if reason is not None and reason.reason is x509.ReasonFlags.remove_from_crl:
        return
    strange = unprocessed(extensions, processed)
    evidence = (("extension", ", ".join(strange)),) if strange else ()
    revoked_at = entry.revocation_date_utc
    raise revoked(certificate, revoked_at, None if reason is None else reason.reason, evidence)


def revoked(
    certificate: Certificate,
    at: datetime,
    reason: x509.ReasonFlags | None,
    evidence: Evidence = (),
) -> CertificateRefused:
    """What to raise for a certificate that its authority has taken back."""
    return CertificateRefused(
        Problem.REVOKED,
        f"{certificate} is revoked",
        (
            *certificate.evidence,
            ("revoked at", at.isoformat()),
            ("reason", "none given" if reason is None else reason.value),
            *evidence,
        ),
    )


def _unknown(summary: str, certificate: Certificate, more: Evidence = ()) -> CertificateRefused:
    return CertificateRefused(Problem.STATUS_UNKNOWN, summary, (*certificate.evidence, *more))
