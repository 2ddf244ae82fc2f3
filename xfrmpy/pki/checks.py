"""What makes a path of right signatures a valid one: RFC 5280 section 6.1, RFC 4945 section 5.1.

Where the library can validate a path it has to agree in the end: it knows no Ed25519, Ed448 and
ML-DSA, and of name constraints only those of hosts. It tells no reasons that an operator could act
on, so it comes last.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID

from xfrmpy.pki.certificate import Certificate
from xfrmpy.pki.name_constraints import check_names
from xfrmpy.pki.verdicts import CertificateRefused, Problem

MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192
"""Ours: one verification with such a key takes a millisecond, with 16384 bits four."""
MIN_RSA_EXPONENT = 65537
MAX_RSA_EXPONENT = 1 << 64
"""Ours. FIPS 186-5 section A.1.1 has the lower one; the upper one bounds the work."""

CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)

IKE_USAGES = frozenset(
    {
        ExtendedKeyUsageOID.IPSEC_IKE.dotted_string,
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE.dotted_string,
    }
)
"""RFC 4945 section 5.1.3.12: one of these, or no extended key usage at all."""

TLS_SERVER_USAGES = frozenset(
    {
        ExtendedKeyUsageOID.SERVER_AUTH.dotted_string,
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE.dotted_string,
    }
)
TLS_CLIENT_USAGES = frozenset(
    {
        ExtendedKeyUsageOID.CLIENT_AUTH.dotted_string,
        ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE.dotted_string,
    }
)
"""RFC 5216 section 5.3, for EAP-TLS and the methods like it; or none at all."""

_NAMES = {
    IKE_USAGES: "ipsecIKE",
    TLS_SERVER_USAGES: "serverAuth",
    TLS_CLIENT_USAGES: "clientAuth",
}


def check_path(
    path: tuple[Certificate, ...], now: datetime, usages: frozenset[str] = IKE_USAGES
) -> None:
    """Raises `CertificateRefused` unless the path (leaf first) is valid for `usages` at `now`.

    The signatures of its authorities have been verified; that of the leaf is here, and but once.
    """
    leaf, *authorities = path
    for certificate in path:
        check_certificate(certificate, now)
    for certificate in path[:-1]:
        check_signature_hash(_signature_hash(certificate), certificate)
    check_leaf(leaf, usages)
    for depth, authority in enumerate(authorities):
        _check_authority(authority, path[: depth + 1])
    is_known = _is_known_to_library(path)
    if is_known:
        _confirm_by_library(path, now)
    if not is_known or len({certificate.subject for certificate in path}) < len(path):
        check_signature(leaf, authorities[0])


def check_signature(certificate: Certificate, issuer: Certificate) -> None:
    """Raises `CertificateRefused` (BAD_SIGNATURE, WEAK) unless `issuer` has signed it."""
    check_key(issuer)
    try:
        certificate.library.verify_directly_issued_by(issuer.library)
    except InvalidSignature as error:
        summary = f"the signature on {certificate} is not that of {issuer}"
        raise _refused(Problem.BAD_SIGNATURE, summary, certificate) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _signed_strangely(certificate) from error


def _signature_hash(certificate: Certificate) -> hashes.HashAlgorithm | None:
    try:
        return certificate.library.signature_hash_algorithm
    except UnsupportedAlgorithm as error:
        raise _signed_strangely(certificate) from error


def _signed_strangely(certificate: Certificate) -> CertificateRefused:
    return _refused(Problem.WEAK, f"{certificate} is signed in a way unknown", certificate)


def check_leaf(leaf: Certificate, usages: frozenset[str] = IKE_USAGES) -> None:
    """What RFC 4945 section 5.1.3 wants of the certificate of an IKE peer, or TLS of an end."""
    if leaf.is_authority:
        raise _refused(Problem.AUTHORITY_AS_LEAF, f"{leaf} is an authority's certificate", leaf)
    usage = leaf.key_usage
    if usage is not None and not (usage.digital_signature or usage.content_commitment):
        summary = f"{leaf} has a key usage without digitalSignature and nonRepudiation"
        raise _refused(Problem.WRONG_USAGE, summary, leaf)
    if leaf.usages is not None and not leaf.usages & usages:
        raise CertificateRefused(
            Problem.WRONG_USAGE,
            f"{leaf} has an extended key usage without {_NAMES[usages]}",
            (*leaf.evidence, ("extended key usage", ", ".join(sorted(leaf.usages)))),
        )


def check_certificate(certificate: Certificate, now: datetime) -> None:
    """What is wanted of every certificate of a path."""
    check_validity(certificate, now)
    check_key(certificate)
    if certificate.unprocessed:
        raise CertificateRefused(
            Problem.UNKNOWN_CRITICAL,
            f"{certificate} has a critical extension that is not known here",
            (*certificate.evidence, ("extension", ", ".join(certificate.unprocessed))),
        )


def check_validity(certificate: Certificate, now: datetime) -> None:
    """Raises `CertificateRefused` (NOT_YET_VALID, EXPIRED), with the moments in evidence."""
    start, end = certificate.validity.not_before, certificate.validity.not_after
    if start <= now <= end:
        return
    early = now < start
    raise CertificateRefused(
        Problem.NOT_YET_VALID if early else Problem.EXPIRED,
        f"{certificate} is not valid yet" if early else f"{certificate} has expired",
        (
            *certificate.evidence,
            ("valid from", start.isoformat()),
            ("valid to", end.isoformat()),
            ("our clock", now.isoformat(timespec="seconds")),
        ),
    )


def check_key(certificate: Certificate) -> None:
    """Raises `CertificateRefused` (WEAK) for a key too short, too long or of another kind."""
    match certificate.public_key:
        case rsa.RSAPublicKey() as key:
            exponent = key.public_numbers().e
            is_long = MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS
            if is_long and MIN_RSA_EXPONENT <= exponent < MAX_RSA_EXPONENT:
                return
            shown = f"RSA with {key.key_size} bits and the exponent {exponent}"
        case ec.EllipticCurvePublicKey() as key:
            if isinstance(key.curve, CURVES):
                return
            shown = f"the curve {key.curve.name}"
        case ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            return
        case mldsa.MLDSA44PublicKey() | mldsa.MLDSA65PublicKey() | mldsa.MLDSA87PublicKey():
            return  # RFC 9881
        case key:
            shown = type(key).__name__
    summary = f"the key of {certificate} is not accepted: {shown}"
    raise _refused(Problem.WEAK, summary, certificate)


def check_signature_hash(algorithm: hashes.HashAlgorithm | None, signed: Certificate) -> None:
    """None is that of Ed25519, Ed448 and ML-DSA, which have their own."""
    if algorithm is not None and not isinstance(algorithm, HASHES):
        summary = f"{signed} is signed with {algorithm.name}"
        raise _refused(Problem.WEAK, summary, signed)


def _check_authority(authority: Certificate, below: tuple[Certificate, ...]) -> None:
    """`below`, leaf first, is what it vouches for."""
    if not authority.is_authority:
        summary = f"{authority} may not issue certificates: no CA in its basic constraints"
        raise _refused(Problem.NOT_AN_AUTHORITY, summary, authority)
    if authority.key_usage is not None and not authority.key_usage.key_cert_sign:
        summary = f"{authority} may not issue certificates: no keyCertSign in its key usage"
        raise _refused(Problem.NOT_AN_AUTHORITY, summary, authority)
    between = sum(not c.is_self_issued for c in below[1:])
    if authority.path_length is not None and between > authority.path_length:
        summary = f"{authority} allows {authority.path_length} authorities below it, not {between}"
        raise _refused(Problem.PATH_TOO_LONG, summary, authority)
    for certificate in _named_by(below):
        check_names(certificate, authority)


def _named_by(below: tuple[Certificate, ...]) -> Iterator[Certificate]:
    """RFC 5280 section 6.1.3 (b): a self-issued authority in between is not held to constraints."""
    yield below[0]
    yield from (c for c in below[1:] if not c.is_self_issued)


def _is_known_to_library(path: tuple[Certificate, ...]) -> bool:
    """It counts self-issued authorities, which RFC 5280 section 4.2.1.9 does not."""
    return not any(c.is_self_issued for c in path[1:-1]) and all(
        isinstance(c.public_key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
        and all(isinstance(n, x509.DNSName | x509.IPAddress) for n in _constrained(c))
        for c in path
    )


def _constrained(certificate: Certificate) -> Iterator[x509.GeneralName]:
    constraints = certificate.name_constraints
    if constraints is not None:
        yield from constraints.permitted_subtrees or ()
        yield from constraints.excluded_subtrees or ()


def _confirm_by_library(path: tuple[Certificate, ...], now: datetime) -> None:
    anything = verification.ExtensionPolicy.permit_all()
    authorities = anything.require_present(
        x509.BasicConstraints, verification.Criticality.AGNOSTIC, None
    )
    *below, anchor = (certificate.library for certificate in path)
    verifier = (
        verification.PolicyBuilder()
        .store(verification.Store([anchor]))
        .time(now)
        .max_chain_depth(len(path))
        .extension_policies(ca_policy=authorities, ee_policy=anything)
        .build_client_verifier()
    )
    try:
        verifier.verify(below[0], below[1:])
    except verification.VerificationError as error:
        raise CertificateRefused(
            Problem.MALFORMED,
            f"{path[0]} is not accepted by the library",
            (*path[0].evidence, ("reason", ascii(str(error))[1:-1][:300])),
        ) from error


def _refused(problem: Problem, summary: str, certificate: Certificate) -> CertificateRefused:
    return CertificateRefused(problem, summary, certificate.evidence)
