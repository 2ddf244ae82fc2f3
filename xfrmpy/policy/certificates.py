"""Certificates that a policy names: where they are, and whether they would do for IKE today.

What a peer would refuse is told here, where it is written. What only time mends, a certificate that
has expired, is a warning: nothing else of the policy is wrong, and the clock may be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from xfrmpy.ipsec.identity import Identity
from xfrmpy.pki.certificate import (
    MAX_BUNDLE_OCTETS,
    Certificate,
    decode_certificate_untrusted,
    load_bundle,
)
from xfrmpy.pki.checks import IKE_USAGES, check_key, check_leaf, check_validity
from xfrmpy.pki.identities import check_identity, identities_of
from xfrmpy.pki.paths import validate
from xfrmpy.pki.revocation import MAX_CRL_OCTETS, load_lists
from xfrmpy.pki.verdicts import CertificateRefused
from xfrmpy.policy.custody import trusted_users
from xfrmpy.policy.errors import Findings, Mark
from xfrmpy.policy.files import printable, read_regular, reason_of
from xfrmpy.policy.model import Certificates, PrivateKey
from xfrmpy.registry import IdType

SOON = timedelta(days=14)
"""Ours: time enough to have another issued, even by somebody else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """The place in a policy file at which something is to be told."""

    mark: Mark
    findings: Findings


class CertificateFiles:
    """`roots` are the directories that have `certs`, `keys` and `cas` in them, lowest first."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = roots

    def ours(
        self,
        reference: str,
        key: PrivateKey | None,
        where: Where,
        usages: frozenset[str] = IKE_USAGES,
    ) -> Certificates | None:
        """A file of our certificate and those above it; `key` has to be that of the first.

        `usages` are what it is for, as `pki.checks` has them.
        """
        found = self._read("certs", reference, where)
        return None if found is None else _ours(found, key, where, usages)

    def ours_of(
        self, ders: Sequence[bytes], name: str, key: PrivateKey, where: Where
    ) -> Certificates | None:
        """The same of certificates that stand in the file of their key."""
        try:
            found = tuple(map(decode_certificate_untrusted, ders)), name
        except CertificateRefused as refused:
            message = f"{name} cannot be used: {refused.summary}"
            where.findings.error("XF1031", where.mark, message)
            return None
        return _ours(found, key, where)

    def authorities(self, reference: str, where: Where) -> Certificates | None:
        """A file of authorities, each of which is trusted."""
        found = self._read("cas", reference, where)
        if found is None:
            return None
        certificates, name = found
        for certificate in certificates:
            if not _is_fit(certificate, name, where, check_key):
                return None
            if not certificate.is_authority:
                message = f"{certificate}, in {name}, is not an authority"
                where.findings.error("XF1031", where.mark, message)
                return None
        crl = self._list_beside(self._path("cas", reference, ".pem"), where)
        return None if crl is None else replace(_given(found, where), crl=crl)

    def _list_beside(self, authorities: Path, where: Where) -> bytes | None:
        """The lists of what they have revoked, called as they are; empty without any."""
        path = authorities.with_suffix(".crl")
        name = printable(path)
        if not os.path.lexists(path):
            return b""
        try:
            data, _ = read_regular(path, MAX_CRL_OCTETS)
            lists = load_lists(data)
        except (OSError, ValueError) as error:
            where.findings.error("XF1031", where.mark, f"{name}: {reason_of(error)}")
            return None
        except CertificateRefused as refused:
            where.findings.error("XF1031", where.mark, f"{name}: {refused.summary}")
            return None
        now = datetime.now(UTC)
        if any(crl.end is None or crl.end < now for crl in lists):
            message = f"the list {name} is too old to tell who is revoked"
            where.findings.warn("XF1036", where.mark, message)
        return data

    def key_path(self, reference: str) -> str:
        """Where the key of a certificate is, unless the policy says otherwise."""
        return str(self._path("keys", reference, ".key"))

    def _read(
        self, directory: str, reference: str, where: Where
    ) -> tuple[tuple[Certificate, ...], str] | None:
        path = self._path(directory, reference, ".pem")
        name = printable(path)
        try:
            data, status = read_regular(path, MAX_BUNDLE_OCTETS)
            if status.st_mode & 0o022 or status.st_uid not in trusted_users():
                raise ValueError("it can be changed by others")
            return load_bundle(data), name
        except (OSError, ValueError) as error:
            reason = reason_of(error)
        except CertificateRefused as refused:
            reason = refused.summary
        where.findings.error("XF1031", where.mark, f"{name} cannot be used: {reason}")
        return None

    def _path(self, directory: str, reference: str, ending: str) -> Path:
        """The highest directory's that has it, else the one in which it ought to be."""
        if reference.startswith("file:"):
            return Path(reference.removeprefix("file:"))
        paths = [root / directory / (reference + ending) for root in reversed(self._roots)]
        there = (path for path in paths if os.path.lexists(path))
        return next(there, paths[min(1, len(paths) - 1)])


def _ours(
    found: tuple[tuple[Certificate, ...], str],
    key: PrivateKey | None,
    where: Where,
    usages: frozenset[str] = IKE_USAGES,
) -> Certificates | None:
    (leaf, *_), name = found
    if not _is_fit(leaf, name, where, check_key, partial(check_leaf, usages=usages)):
        return None
    if key is not None and key.public != leaf.public_key_info:
        message = f"the key {key.origin} is not that of the certificate {name}"
        where.findings.error("XF1032", where.mark, message)
        return None
    return _given(found, where)


def identity_in(
    certificates: Certificates, wanted: Identity | None, where: Where
) -> Identity | None:
    """Who we say we are with this certificate: what policy says, as the certificate has it.

    Without a word in the policy it is the first alternative name, or the whole subject.
    """
    leaf = _parsed(certificates)[0]
    known = identities_of(leaf)
    if wanted is None:
        return known[0] if known else None
    try:
        check_identity(leaf, wanted)
    except CertificateRefused:
        shown = ", ".join(map(str, known)) or "none"
        message = f"'id' {wanted} is not in the certificate {certificates.origin}"
        where.findings.error("XF1033", where.mark, message, f"it has {shown}")
        return None
    if wanted.type == IdType.ID_DER_ASN1_DN:
        return Identity(type=wanted.type, data=leaf.subject)
    return wanted


def refusal_of(shown: Certificates, trusted: Certificates) -> CertificateRefused | None:
    """Why the authorities of one end do not vouch for what the other shows, if they do not.

    As of the first moment at which all of them are valid: what ends is told where it is read.
    """
    leaf, *above = _parsed(shown)
    anchors = _parsed(trusted)
    now = max(c.validity.not_before for c in (leaf, *above, *anchors))
    try:
        validate(leaf, intermediates=above, anchors=anchors, now=now)
    except CertificateRefused as refused:
        return refused
    return None


def _parsed(certificates: Certificates) -> tuple[Certificate, ...]:
    return tuple(map(decode_certificate_untrusted, certificates.ders))


def _is_fit(
    certificate: Certificate, name: str, where: Where, *checks: Callable[[Certificate], None]
) -> bool:
    try:
        for check in checks:
            check(certificate)
    except CertificateRefused as refused:
        where.findings.error("XF1031", where.mark, f"{name} cannot be used: {refused.summary}")
        return False
    return True


def _given(found: tuple[tuple[Certificate, ...], str], where: Where) -> Certificates:
    certificates, name = found
    now = datetime.now(UTC)
    for certificate in certificates:
        end = certificate.validity.not_after
        try:
            check_validity(certificate, now)
        except CertificateRefused as refused:
            moments = dict(refused.evidence)
            message = f"{refused.summary}: {moments['valid from']} to {moments['valid to']}, {name}"
            where.findings.warn("XF1034", where.mark, message)
        else:
            if end - now < SOON:
                message = f"{certificate} expires on {end:%Y-%m-%d %H:%M} UTC, {name}"
                where.findings.warn("XF1035", where.mark, message)
    return Certificates(
        ders=tuple(c.der for c in certificates),
        origin=name,
        expires_at=min(c.validity.not_after for c in certificates).timestamp(),
    )
