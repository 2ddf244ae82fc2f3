"""What is known of who is revoked, and what more is worth asking.

`revocation` and `ocsp` say what one list or answer tells; here all of them are weighed. A
`StatusBook` is asked about valid paths only. It fetches nothing: whoever does hands in what came,
which counts for what is signed in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, pairwise
from typing import TypeVar

from xfrmpy.pki.certificate import Certificate
from xfrmpy.pki.ocsp import check_by_ocsp, subject_of
from xfrmpy.pki.revocation import (
    RevocationList,
    age,
    check_by_crls,
    check_list,
    decode_crl_untrusted,
)
from xfrmpy.pki.sources import Source, SourceKind, deltas_of, lists_of, responders
from xfrmpy.pki.verdicts import CertificateRefused, Problem, Strictness

K = TypeVar("K")
V = TypeVar("V")

MAX_LISTS = 32
MAX_ANSWERS = 1024

PAUSE = timedelta(minutes=1)
"""Ours: a source is not asked again before, whether it has helped or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proofs:
    """Lists, and OCSP answers in DER, that are at hand."""

    lists: tuple[RevocationList, ...] = ()
    answers: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.lists or self.answers)


def check_status(
    certificate: Certificate, issuer: Certificate, proofs: Proofs, now: datetime
) -> tuple[RevocationList, ...]:
    """Returns if the certificate is known to be good: the lists that say so, the full one first,
    none if it was an OCSP answer.

    Raises `CertificateRefused`: REVOKED if any of them that is believed says so; STATUS_UNKNOWN.
    """
    lists: tuple[RevocationList, ...] | None = None
    is_good, objections = False, []
    try:
        lists = check_by_crls(certificate, issuer, proofs.lists, now)
    except CertificateRefused as refused:
        objections.append(refused)
    for answer in proofs.answers:
        try:
            check_by_ocsp(certificate, issuer, answer, now)
            is_good = True
        except CertificateRefused as refused:
            objections.append(refused)
    for objection in objections:
        if objection.problem is Problem.REVOKED:
            raise objection
    if is_good or lists is not None:
        return () if is_good or lists is None else lists
    summary = f"nothing tells whether {certificate} is revoked"
    told = chain.from_iterable((*o.evidence, ("not believed", o.summary)) for o in objections[1:4])
    known = dict.fromkeys((*objections[0].evidence, *told))
    raise CertificateRefused(Problem.STATUS_UNKNOWN, summary, tuple(known))


def check_revocation(
    path: Sequence[Certificate], proofs: Proofs, strictness: Strictness, now: datetime
) -> None:
    """Every certificate of a valid path but its anchor, leaf first.

    Raises `CertificateRefused`: REVOKED whatever the strictness, unless it is OFF; STATUS_UNKNOWN
    if that is STRICT.
    """
    if strictness is Strictness.OFF or (strictness is Strictness.SOFT and not proofs):
        return
    unknown = None
    for certificate, issuer in pairwise(path):
        try:
            check_status(certificate, issuer, proofs, now)
        except CertificateRefused as refused:
            if refused.problem is Problem.REVOKED:
                raise
            unknown = unknown or refused
    if unknown is not None and strictness is Strictness.STRICT:
        raise unknown


class StatusBook:
    """See the module. `random(n)` gives the octets of nonces."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._lists: dict[tuple[object, ...], RevocationList] = {}
        self._answers: dict[bytes, int] = {}
        self._asked: dict[tuple[str, str, str], tuple[datetime, str]] = {}

    def proofs(self, path: Sequence[Certificate]) -> Proofs:
        """All that is known of the certificates of a path."""
        issuers = {certificate.issuer for certificate in path}
        serials = {certificate.library.serial_number for certificate in path}
        return Proofs(
            lists=tuple(crl for crl in self._lists.values() if crl.issuer in issuers),
            answers=tuple(data for data, serial in self._answers.items() if serial in serials),
        )

    def sources(
        self, path: Sequence[Certificate], proofs: Proofs, now: datetime
    ) -> tuple[Source, ...]:
        """Whom to ask next of a path of which nobody is known to be revoked; none if that would
        tell nothing more, or has been tried."""
        wanted = (
            source
            for certificate, issuer in pairwise(path)
            for source in self._sources(certificate, issuer, proofs, now)
        )
        return tuple({source.key: source for source in wanted}.values())

    def take(self, source: Source, data: bytes, now: datetime) -> None:
        """Keep what a source has answered, if it tells what it was asked for."""
        try:
            if source.kind is SourceKind.OCSP:
                self._take_answer(source, data, now)
            else:
                self._take_list(source, data, now)
        except CertificateRefused as refused:
            self.note(source, refused.summary, now)
        else:
            self.note(source, "it has answered", now)

    def note(self, source: Source, outcome: str, now: datetime) -> None:
        """A source has been asked, and this is why it did not help."""
        _make_room(self._asked, MAX_ANSWERS)
        self._asked[source.key] = (now + PAUSE, outcome)

    def outcomes(self, path: Sequence[Certificate]) -> tuple[tuple[str, str], ...]:
        """Why the sources that a path names have not helped, as evidence."""
        named = {source.key for c, issuer in pairwise(path) for source in self._named(c, issuer)}
        return tuple(
            (f"{key[0]} {key[1]}", outcome)
            for key, (_, outcome) in self._asked.items()
            if key in named
        )

    def answer_about(
        self, certificate: Certificate, issuer: Certificate, now: datetime
    ) -> bytes | None:
        """An OCSP answer by which others can believe that a certificate is good."""
        for answer in self.proofs((certificate,)).answers:
            try:
                check_by_ocsp(certificate, issuer, answer, now)
            except CertificateRefused:
                continue
            return answer
        return None

    def responder(
        self, certificate: Certificate, issuer: Certificate, now: datetime
    ) -> Source | None:
        """Whom to ask for such an answer."""
        return next(self._untried(responders(certificate, issuer, self._random), now), None)

    def recall(self, kind: SourceKind, data: bytes, now: datetime) -> None:
        """What somebody has kept of an earlier answer. Raises `CertificateRefused` if it is damaged
        or out of date."""
        if kind is SourceKind.OCSP:
            serial, end = subject_of(data)
            _check_age(end, now)
            self._add_answer(data, serial)
        else:
            taken = decode_crl_untrusted(data)
            _check_age(taken.end, now)
            self._add_list(taken)

    def _add_answer(self, data: bytes, serial: int) -> None:
        _make_room(self._answers, MAX_ANSWERS)
        self._answers[data] = serial

    def _take_answer(self, source: Source, data: bytes, now: datetime) -> None:
        """One that says revoked is as good an answer as any."""
        try:
            check_by_ocsp(source.certificate, source.issuer, data, now, source.nonce)
        except CertificateRefused as refused:
            if refused.problem is not Problem.REVOKED:
                raise
        serial = source.certificate.library.serial_number
        self._answers = {d: s for d, s in self._answers.items() if s != serial or d == data}
        self._add_answer(data, serial)

    def _take_list(self, source: Source, data: bytes, now: datetime) -> None:
        taken = decode_crl_untrusted(data)
        check_list(taken, source.certificate, source.issuer, now)
        if (source.kind is SourceKind.DELTA) != (taken.base is not None):
            raise CertificateRefused(Problem.STATUS_UNKNOWN, f"it is no {source.kind}")
        self._add_list(taken)

    def _add_list(self, taken: RevocationList) -> None:
        """The newest of each scope stays."""
        key = (taken.issuer, taken.base is None, taken.scope)
        newest = max(self._lists.pop(key, taken), taken, key=age)
        _make_room(self._lists, MAX_LISTS)
        self._lists[key] = newest

    def _sources(
        self, certificate: Certificate, issuer: Certificate, proofs: Proofs, now: datetime
    ) -> tuple[Source, ...]:
        """OCSP, for it is newer and smaller than any list; a list if that has not helped; what has
        been added to a list that says good."""
        if not proofs:
            return self._first_sources(certificate, issuer, now)
        try:
            full, *deltas = check_status(certificate, issuer, proofs, now) or (None,)
        except CertificateRefused as refused:
            if refused.problem is Problem.REVOKED:
                return ()
            return self._first_sources(certificate, issuer, now)
        if full is None or deltas:
            return ()
        return tuple(self._untried(deltas_of(certificate, issuer, full), now))

    def _first_sources(
        self, certificate: Certificate, issuer: Certificate, now: datetime
    ) -> tuple[Source, ...]:
        asked = responders(certificate, issuer, self._random)
        return tuple(self._untried(asked, now)) or tuple(
            self._untried(lists_of(certificate, issuer), now)
        )

    def _named(self, certificate: Certificate, issuer: Certificate) -> Iterator[Source]:
        yield from responders(certificate, issuer, bytes)
        yield from lists_of(certificate, issuer)

    def _untried(self, sources: Iterable[Source], now: datetime) -> Iterator[Source]:
        for source in sources:
            until, _ = self._asked.get(source.key, (now, ""))
            if not now < until <= now + PAUSE:
                yield source


def _check_age(end: datetime | None, now: datetime) -> None:
    if end is None or end < now:
        raise CertificateRefused(Problem.STATUS_UNKNOWN, "it is out of date")


def _make_room(book: dict[K, V], limit: int) -> None:
    """The oldest goes."""
    while len(book) >= limit:
        del book[next(iter(book))]
