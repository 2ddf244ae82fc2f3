"""What an OCSP responder says of one certificate: RFC 6960, read section 3.2 and 4.2 first.

An answer is believed from the certificate's issuer, or from one to whom that issuer has delegated
it by a certificate of its own hand. Nothing is asked here.
"""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import HashAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, OCSPExtensionOID

from xfrmpy.pki.certificate import (
    Certificate,
    decode_certificate_untrusted,
    extension,
    guarded,
    unprocessed,
)
from xfrmpy.pki.checks import check_certificate, check_signature_hash
from xfrmpy.pki.revocation import revoked
from xfrmpy.pki.verdicts import CertificateRefused, Problem

MAX_RESPONSE_OCTETS = 64 * 1024
"""Ours: a response with the responder's certificate is some 2 KiB."""

LEEWAY = timedelta(minutes=5)
"""Ours: by how much a responder's clock may be ahead; strongSwan allows as much."""

_HASHES = {"sha1": hashlib.sha1, "sha256": hashlib.sha256, "sha384": hashlib.sha384}


def check_by_ocsp(
    certificate: Certificate,
    issuer: Certificate,
    response: bytes,
    now: datetime,
    nonce: bytes | None = None,
) -> None:
    """Returns if the answer says that the certificate is good, and may be believed.

    With `nonce`, which was in the question, the answer has the same or none: a responder that has
    prepared its answers knows none of ours (RFC 9654 section 2.1), and its moments bound their age.
    Raises `CertificateRefused`: REVOKED, or STATUS_UNKNOWN, MALFORMED, TOO_MUCH and what may be
    wrong with the responder's certificate.
    """
    answer = _decode_untrusted(response)
    _check_subject(answer, certificate, issuer)
    _check_moments(answer, certificate, now)
    sent = extension(answer.extensions, x509.OCSPNonce)
    if nonce is not None and sent is not None and sent.nonce != nonce:
        raise _unknown("the answer has another nonce than the question", certificate)
    if unprocessed(answer.extensions, (OCSPExtensionOID.NONCE,)):
        raise _unknown("the answer has a critical extension that is not known", certificate)
    _check_signature(answer, _responder(answer, issuer, now), certificate)
    if answer.certificate_status is ocsp.OCSPCertStatus.REVOKED:
        at = answer.revocation_time_utc
        raise revoked(certificate, at or now, answer.revocation_reason)
    if answer.certificate_status is not ocsp.OCSPCertStatus.GOOD:
        raise _unknown("the responder does not know the certificate", certificate)


def subject_of(response: bytes) -> tuple[int, datetime | None]:
    """The serial number of whom an answer is about, and until when it holds.

    Raises `CertificateRefused` if it is no answer.
    """
    answer = _decode_untrusted(response)
    return answer.serial_number, answer.next_update_utc


def _decode_untrusted(response: bytes) -> ocsp.OCSPResponse:
    if len(response) > MAX_RESPONSE_OCTETS:
        raise CertificateRefused(Problem.TOO_MUCH, f"an OCSP response of {len(response)} octets")

    def parse() -> ocsp.OCSPResponse:
        answer = ocsp.load_der_ocsp_response(response)
        if answer.response_status is ocsp.OCSPResponseStatus.SUCCESSFUL:
            _read_all(answer)
        return answer

    answer = guarded(parse, "not an OCSP response")
    if answer.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
        summary = f"the responder has no answer: {answer.response_status.name}"
        raise CertificateRefused(Problem.STATUS_UNKNOWN, summary)
    return answer


def _read_all(answer: ocsp.OCSPResponse) -> None:
    """The library parses when asked, and raises then."""
    _ = answer.extensions, answer.single_extensions, answer.certificates
    _ = answer.this_update_utc, answer.next_update_utc
    _ = answer.hash_algorithm, answer.signature_hash_algorithm
    _ = answer.certificate_status, answer.revocation_reason, answer.responder_name


def _check_subject(
    answer: ocsp.OCSPResponse, certificate: Certificate, issuer: Certificate
) -> None:
    """RFC 6960 section 4.1.1: hashes of the issuer's name and key, and the serial number."""
    digest = _HASHES.get(answer.hash_algorithm.name)
    if digest is None:
        raise _unknown(f"the answer hashes with {answer.hash_algorithm.name}", certificate)
    expected = (
        digest(certificate.issuer).digest(),
        digest(_key_bits(issuer)).digest(),
        certificate.library.serial_number,
    )
    if expected != (answer.issuer_name_hash, answer.issuer_key_hash, answer.serial_number):
        raise _unknown("the answer is about another certificate", certificate)


def _key_bits(issuer: Certificate) -> bytes:
    """The contents of the BIT STRING subjectPublicKey, hashed as in RFC 5280 4.2.1.2 (1)."""
    key = issuer.public_key
    if isinstance(key, rsa.RSAPublicKey):
        return key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def _check_moments(answer: ocsp.OCSPResponse, certificate: Certificate, now: datetime) -> None:
    start, end = answer.this_update_utc, answer.next_update_utc
    if start > now + LEEWAY:
        raise _unknown(f"the answer is of the future, {start.isoformat()}", certificate)
    if end is None or end < now:
        shown = "says not until when it holds" if end is None else f"held until {end.isoformat()}"
        raise _unknown(f"the answer {shown}", certificate)


def _responder(answer: ocsp.OCSPResponse, issuer: Certificate, now: datetime) -> Certificate:
    """The issuer itself, or whom it has delegated to (RFC 6960 section 4.2.2.2)."""
    if _is_meant(answer, issuer):
        return issuer
    for library in answer.certificates[:4]:
        responder = decode_certificate_untrusted(library.public_bytes(Encoding.DER))
        if _is_meant(answer, responder):
            _check_delegation(responder, issuer, now)
            return responder
    raise _unknown("the answer is signed by somebody unknown", issuer)


def _is_meant(answer: ocsp.OCSPResponse, certificate: Certificate) -> bool:
    if answer.responder_name is not None:
        return answer.responder_name.public_bytes() == certificate.subject
    digest = hashlib.sha1(_key_bits(certificate), usedforsecurity=False).digest()
    return answer.responder_key_hash == digest


def _check_delegation(responder: Certificate, issuer: Certificate, now: datetime) -> None:
    try:
        responder.library.verify_directly_issued_by(issuer.library)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise _unknown("the responder is not delegated by the issuer", responder) from error
    if ExtendedKeyUsageOID.OCSP_SIGNING.dotted_string not in (responder.usages or ()):
        raise _unknown("the responder has no OCSPSigning in its extended key usage", responder)
    if not responder.ocsp_nocheck:
        raise _unknown("the responder may itself be revoked: it has no nocheck", responder)
    check_certificate(responder, now)
    check_signature_hash(responder.library.signature_hash_algorithm, responder)


def _check_signature(
    answer: ocsp.OCSPResponse, signer: Certificate, certificate: Certificate
) -> None:
    algorithm = answer.signature_hash_algorithm
    check_signature_hash(algorithm, signer)
    try:
        _verify(signer, answer.signature, answer.tbs_response_bytes, algorithm)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise _unknown("the signature on the answer is wrong", certificate) from error


def _verify(signer: Certificate, sign: bytes, data: bytes, algorithm: HashAlgorithm | None) -> None:
    match signer.public_key, algorithm:
        case rsa.RSAPublicKey() as key, HashAlgorithm() as digest:
            key.verify(sign, data, padding.PKCS1v15(), digest)
        case ec.EllipticCurvePublicKey() as key, HashAlgorithm() as digest:
            key.verify(sign, data, ec.ECDSA(digest))
        case ((rsa.RSAPublicKey() | ec.EllipticCurvePublicKey()), None):
            raise InvalidSignature
        case key, _:
            key.verify(sign, data)  # type: ignore[call-arg]


def _unknown(summary: str, certificate: Certificate) -> CertificateRefused:
    return CertificateRefused(Problem.STATUS_UNKNOWN, summary, certificate.evidence)
