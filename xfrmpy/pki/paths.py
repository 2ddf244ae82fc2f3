"""From a peer's certificate to an authority that is trusted: every way, until one is valid.

A path is built by names, its authorities verified signature by signature, and judged by
`checks.py`, with the signature of the leaf. Cross-signed authorities make several ways, loops and
bushes of equal names make endless ones, so their length and the signatures that are verified have
limits. Never fetch anything here: what a certificate points to is the word of a stranger.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

from xfrmpy.pki.certificate import Certificate
from xfrmpy.pki.checks import IKE_USAGES, check_path, check_signature
from xfrmpy.pki.verdicts import CertificateRefused, Problem

MAX_PATH = 8
"""Certificates of a path, leaf and anchor included; the library's own limit."""

MAX_SIGNATURES = 32
"""Ours: verified for one leaf, over all ways. Real ones need three or four."""


Path = tuple[Certificate, ...]
"""Leaf first, trust anchor last."""


def validate(
    leaf: Certificate,
    *,
    intermediates: Iterable[Certificate],
    anchors: Iterable[Certificate],
    now: datetime,
    usages: frozenset[str] = IKE_USAGES,
) -> Path:
    """The path by which `leaf` may prove who an IKE peer is (RFC 5280 section 6, RFC 4945 5).

    An anchor is any authority's certificate, the top of its hierarchy or not; it has to be valid as
    all others have. `now` knows its time zone; `usages` are OIDs, of which an extended key usage
    must have one. Raises `CertificateRefused`: of a way that leads to
    an anchor the first failure, else why none does.
    """
    search = _Search(intermediates=tuple(intermediates), anchors=tuple(anchors))
    refusals = []
    for path in search.paths(leaf):
        try:
            check_path(path, now, usages)
        except CertificateRefused as refused:
            if search.is_signed(leaf, path[1]):
                refusals.append(refused)
        else:
            return path
    raise next(iter([*refusals, *search.dead_ends]), search.untrusted(leaf))


@dataclass(slots=True, kw_only=True)
class _Search:
    intermediates: tuple[Certificate, ...]
    anchors: tuple[Certificate, ...]
    signatures: int = 0
    dead_ends: list[CertificateRefused] = field(default_factory=list)
    farthest: Path = ()

    def paths(self, leaf: Certificate) -> Iterator[Path]:
        """All in which the signatures above the leaf are right; of each fork anchors first."""
        return self._extend((leaf,))

    def untrusted(self, leaf: Certificate) -> CertificateRefused:
        top = self.farthest[-1] if self.farthest else leaf
        return CertificateRefused(
            Problem.UNTRUSTED,
            f"no trusted authority has issued {top}",
            (
                *leaf.evidence,
                ("missing", top.issuer_name),
                ("trusted", "; ".join(sorted(a.name for a in self.anchors)[:8]) or "nobody"),
            ),
        )

    def _extend(self, path: Path) -> Iterator[Path]:
        self.farthest = max(self.farthest, path, key=len)
        for issuer in self._issuers(path):
            if len(path) >= MAX_PATH:
                self._note(Problem.PATH_TOO_LONG, f"more than {MAX_PATH} certificates", path[0])
                return
            if not self._may_have_issued(issuer, path):
                continue
            longer = (*path, issuer)
            if issuer in self.anchors:
                yield longer
            else:
                yield from self._extend(longer)

    def _issuers(self, path: Path) -> list[Certificate]:
        """Who may have issued the last one, trust anchors first, and those whose key it names.

        What stands in the path already, by name and key, would lead round in a circle.
        """
        last = path[-1]
        seen = {(c.subject, c.public_key_info) for c in path}
        found = [
            c
            for c in dict.fromkeys((*self.anchors, *self.intermediates))
            if c.subject == last.issuer and (c.subject, c.public_key_info) not in seen
        ]
        return sorted(found, key=lambda c: not _is_named(c, last))

    def is_signed(self, certificate: Certificate, issuer: Certificate) -> bool:
        try:
            (_check_known if certificate.is_authority else check_signature)(certificate, issuer)
        except CertificateRefused as refused:
            self.dead_ends.append(refused)
            return False
        return True

    def _may_have_issued(self, issuer: Certificate, path: Path) -> bool:
        """The signature of the leaf is left to `check_path`, for that is one verification less."""
        if self.signatures >= MAX_SIGNATURES:
            summary = f"more than {MAX_SIGNATURES} signatures to find a path"
            raise CertificateRefused(Problem.TOO_MUCH, summary, path[-1].evidence)
        self.signatures += 1
        return len(path) == 1 or self.is_signed(path[-1], issuer)

    def _note(self, problem: Problem, summary: str, certificate: Certificate) -> None:
        self.dead_ends.append(CertificateRefused(problem, summary, certificate.evidence))


_check_known = lru_cache(maxsize=64)(check_signature)
"""Authorities come with each of their leaves; a signature that is right stays so, and one that is
not raises, which is not kept."""


def _is_named(issuer: Certificate, certificate: Certificate) -> bool:
    """RFC 5280 section 4.2.1.1: a hint which of an issuer's keys it was; no proof of anything."""
    ids = (certificate.authority_key_id, issuer.subject_key_id)
    return None in ids or ids[0] == ids[1]
