"""Certificates in IKE: what we send and ask for, and the key that a peer's certificate proves.

Read RFC 7296 sections 3.6 and 3.7 first. Only X.509 certificates that stand in the message itself
count, or have been put there by `lookups`; lists of revocations that it has are not looked at.
Whether a path is valid is decided in `pki`, whether it is revoked in `inquiries`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import lru_cache

from xfrmpy.failures import Failure
from xfrmpy.ike.errors import AuthenticationFailed
from xfrmpy.ipsec.identity import Identity
from xfrmpy.pki.certificate import Certificate, decode_certificate_untrusted
from xfrmpy.pki.identities import check_identity
from xfrmpy.pki.paths import Path, validate
from xfrmpy.pki.revocation import RevocationList, load_lists
from xfrmpy.pki.verdicts import CertificateRefused, Evidence, Problem
from xfrmpy.policy.model import Certificates
from xfrmpy.registry import CertificateEncoding
from xfrmpy.wire.payloads import CertPayload, CertreqPayload

MAX_CERTIFICATES = 8
"""Ours; that a peer may send. A path has no more."""

BY_URL = (CertificateEncoding.HASH_AND_URL_X509, CertificateEncoding.HASH_AND_URL_BUNDLE)
"""A hash and a URL in the place of what would be sent (section 3.6)."""

WallClock = Callable[[], datetime]
"""The time of day, with its time zone. It dates certificates, and nothing else."""


def stopped_clock() -> datetime:
    """Of a core that was given none: no certificate is valid yet."""
    return datetime.min.replace(tzinfo=UTC)


def sent_certificates(ours: Certificates) -> tuple[CertPayload, ...]:
    """Our own first (section 3.6: "the first certificate"), then those above but the top.

    The top of a hierarchy proves nothing to whoever does not have it already.
    """
    leaf, *above = parsed(ours.ders)
    sent = (leaf, *(c for c in above if not c.is_self_issued))
    return tuple(CertPayload(encoding=CertificateEncoding.X509_SIGNATURE, data=c.der) for c in sent)


def authorities_request(authorities: Iterable[Certificates]) -> CertreqPayload:
    """One CERTREQ with all of them: the SHA-1 of their keys in a row (section 3.7)."""
    certificates = (c for each in authorities for c in parsed(each.ders))
    hashes = dict.fromkeys(certificate.key_hash for certificate in certificates)
    return CertreqPayload(encoding=CertificateEncoding.X509_SIGNATURE, data=b"".join(hashes))


def certified_path(
    identity: Identity,
    certs: tuple[CertPayload, ...],
    authorities: Certificates,
    ours: Certificates | None,
    now: datetime,
) -> Path:
    """The path from the peer's certificate, with whose key it must sign, to one of the authorities.

    Raises `AuthenticationFailed`, with the step that failed.
    """
    try:
        return _certified_path(identity, certs, authorities, ours, now)
    except CertificateRefused as refused:
        raise not_believed(refused, identity, authorities) from refused


def not_believed(
    refused: CertificateRefused,
    identity: Identity,
    authorities: Certificates,
    more: Evidence = (),
) -> AuthenticationFailed:
    """The same as a failure of the peer's to prove that it is `identity`."""
    evidence = (
        ("their identity", str(identity)),
        *refused.evidence,
        *more,
        ("our authorities from", authorities.origin),
    )
    return AuthenticationFailed(
        Failure(code=refused.problem.value, summary=refused.summary, evidence=evidence)
    )


def _certified_path(
    identity: Identity,
    certs: tuple[CertPayload, ...],
    authorities: Certificates,
    ours: Certificates | None,
    now: datetime,
) -> Path:
    sent = [c.data for c in certs if c.encoding == CertificateEncoding.X509_SIGNATURE]
    if not sent and any(c.encoding in BY_URL for c in certs):
        summary = "the peer names its certificate by a URL, and our policy fetches none"
        raise CertificateRefused(Problem.MISSING, summary)
    if not sent:
        raise CertificateRefused(Problem.MISSING, "the peer sends no certificate")
    if len(sent) > MAX_CERTIFICATES:
        raise CertificateRefused(Problem.TOO_MUCH, f"the peer sends {len(sent)} certificates")
    leaf = decode_certificate_untrusted(sent[0])
    theirs = map(_authority_untrusted, sent[1:])
    known = () if ours is None else parsed(ours.ders)[1:]
    path = validate(
        leaf, intermediates=(*theirs, *known), anchors=parsed(authorities.ders), now=now
    )
    check_identity(path[0], identity)
    return path


@lru_cache(maxsize=64)
def _authority_untrusted(der: bytes) -> Certificate:
    """One that comes with many leaves; which these are, anybody may say: so few are kept."""
    return decode_certificate_untrusted(der)


@lru_cache(maxsize=64)
def listed_revocations(crl: bytes) -> tuple[RevocationList, ...]:
    """Those of our authorities, which policy has parsed before."""
    return load_lists(crl) if crl else ()


@lru_cache(maxsize=256)
def parsed(ders: tuple[bytes, ...]) -> tuple[Certificate, ...]:
    """Ours and our authorities', which policy has parsed before."""
    return tuple(map(decode_certificate_untrusted, ders))
