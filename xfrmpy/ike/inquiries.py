"""Whether a peer's certificate is revoked: asked once the peer has proved that it has the key.

Read RFC 4806 section 3 first. What is known decides at once; else IKE_AUTH stands still while the
outside is asked (`AskStatus`), and goes on with its answers. Nobody is asked for a stranger: the
path is valid and AUTH verified before. What an OCSP answer or a list is worth is decided in `pki`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from xfrmpy.failures import Failure
from xfrmpy.ike.certificates import listed_revocations, not_believed, parsed
from xfrmpy.ike.errors import AuthenticationFailed
from xfrmpy.ike.outputs import AskStatus
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.identity import Identity
from xfrmpy.pki.certificate import Certificate
from xfrmpy.pki.paths import Path
from xfrmpy.pki.sources import Source
from xfrmpy.pki.statuses import Proofs, StatusBook, check_revocation
from xfrmpy.pki.verdicts import CertificateRefused, Problem, Strictness
from xfrmpy.policy.model import Certificates, TunnelPolicy
from xfrmpy.registry import CertificateEncoding
from xfrmpy.wire.payloads import CertPayload, CertreqPayload

if TYPE_CHECKING:
    from xfrmpy.ike.core import Core
    from xfrmpy.ike.ike_sa import IkeSa

MAX_ANSWERS = 8
"""Ours; OCSP answers that a peer may send. A path has no more certificates."""

PATIENCE_SECONDS = 30.0
"""Ours; an initiator waits no longer, whatever became of its questions. A responder has begun to
wait with IKE_SA_INIT."""

OCSP_REQUEST = CertreqPayload(encoding=CertificateEncoding.OCSP_CONTENT, data=b"")
"""RFC 4806 section 3.1: without a responder's hash any will do that the authorities vouch for."""

Step: TypeAlias = Callable[[float], None]
Refuse: TypeAlias = Callable[[AuthenticationFailed, float], None]


@dataclass(slots=True, kw_only=True)
class Inquiry:
    """What an IKE SA waits for: the `pending` sources. Then it goes on, or is refused."""

    sa: IkeSa
    identity: Identity
    path: Path
    authorities: Certificates
    strictness: Strictness
    answers: tuple[bytes, ...]
    pending: set[tuple[str, str, str]] = field(default_factory=set)
    go_on: Step | None = None
    refuse: Refuse | None = None

    def proofs(self, book: StatusBook) -> Proofs:
        known = book.proofs(self.path)
        return Proofs(
            lists=(*listed_revocations(self.authorities.crl), *known.lists),
            answers=(*self.answers, *known.answers),
        )


class Inquiries:
    """Those of one endpoint, and the book of what has been answered."""

    def __init__(self, core: Core) -> None:
        self.book = StatusBook(core.random)
        self._core = core
        self._waiting: dict[bytes, Inquiry] = {}
        self._asked: set[tuple[str, str, str]] = set()

    def __contains__(self, sa: IkeSa) -> bool:
        return sa.our_spi in self._waiting

    def begin(self, inquiry: Inquiry) -> None:
        """Raises `AuthenticationFailed` if it is settled already that the peer is refused."""
        if not self._ask_more(inquiry) and inquiry.strictness is Strictness.STRICT:
            self._judge(inquiry, inquiry.strictness)

    def find(self, sa: IkeSa) -> Inquiry | None:
        return self._waiting.get(sa.our_spi)

    def ask(self, sources: Iterable[Source]) -> None:
        """What is under way is not asked twice."""
        new = tuple(source for source in sources if source.key not in self._asked)
        self._asked.update(source.key for source in new)
        if new:
            self._core.emit(AskStatus(sources=new))

    def answered(self, source: Source, answer: bytes | str) -> tuple[tuple[IkeSa, Step], ...]:
        """What came, or why nothing did; gives what is to be done now."""
        now = self._core.wall_clock()
        self._asked.discard(source.key)
        if isinstance(answer, str):
            self.book.note(source, answer, now)
        else:
            self.book.take(source, answer, now)
        steps: list[tuple[IkeSa, Step]] = []
        for inquiry in tuple(self._waiting.values()):
            if source.key in inquiry.pending:
                inquiry.pending.discard(source.key)
                steps += [] if inquiry.pending else self._advance(inquiry)
        return tuple(steps)

    def _advance(self, inquiry: Inquiry) -> list[tuple[IkeSa, Step]]:
        sa = inquiry.sa
        del self._waiting[sa.our_spi]
        if sa.state is not IkeSaState.AUTHENTICATING or inquiry.go_on is None:
            return []
        assert inquiry.refuse is not None
        try:
            if self._ask_more(inquiry):
                return []
            self._judge(inquiry, inquiry.strictness)
        except AuthenticationFailed as failed:
            return [(sa, partial(inquiry.refuse, failed))]
        return [(sa, inquiry.go_on)]

    def _ask_more(self, inquiry: Inquiry) -> bool:
        """Whether there is anybody to ask, who is asked then."""
        now = self._core.wall_clock()
        self._judge(inquiry, Strictness.SOFT)
        sources = self.book.sources(inquiry.path, inquiry.proofs(self.book), now)
        if not sources:
            return False
        inquiry.pending = {source.key for source in sources}
        self._waiting[inquiry.sa.our_spi] = inquiry
        self.ask(sources)
        return True

    def _judge(self, inquiry: Inquiry, strictness: Strictness) -> None:
        now = self._core.wall_clock()
        try:
            check_revocation(inquiry.path, inquiry.proofs(self.book), strictness, now)
        except CertificateRefused as refused:
            outcomes = self.book.outcomes(inquiry.path)
            more = outcomes if refused.problem is Problem.STATUS_UNKNOWN else ()
            raise not_believed(refused, inquiry.identity, inquiry.authorities, more) from refused


def inquire(
    sa: IkeSa,
    tunnel: TunnelPolicy,
    identity: Identity,
    path: Path,
    certs: Iterable[CertPayload],
) -> None:
    """Begin to find out whether a certificate of the path is revoked; `settle_status` follows.

    Raises `AuthenticationFailed` if one is, or, where policy is strict, if that cannot be known.
    """
    if tunnel.revocation is Strictness.OFF or tunnel.remote_authorities is None:
        return
    answers = tuple(c.data for c in certs if c.encoding == CertificateEncoding.OCSP_CONTENT)
    sa.core.inquiries.begin(
        Inquiry(
            sa=sa,
            identity=identity,
            path=path,
            authorities=tunnel.remote_authorities,
            strictness=tunnel.revocation,
            answers=answers[:MAX_ANSWERS],
        )
    )


def settle_status(sa: IkeSa, go_on: Step, refuse: Refuse, now: float) -> None:
    """Go on with IKE_AUTH, at once, or when it is known whether the peer is revoked."""
    inquiry = sa.core.inquiries.find(sa)
    if inquiry is None:
        go_on(now)
        return
    inquiry.go_on, inquiry.refuse = go_on, refuse
    if sa.is_initiator:
        sa.expect_authentication(now + PATIENCE_SECONDS)


def revoked_meanwhile(sa: IkeSa, policy: TunnelPolicy) -> Failure | None:
    """That the peer of an IKE SA is revoked by what a new policy knows, if it is."""
    certified = [p for p in policy.every_round if p.remote_authorities is not None]
    found = (
        _revoked(sa, path, of_round)
        for path, of_round in zip(sa.certified, certified, strict=False)
        if of_round.revocation is not Strictness.OFF
    )
    return next((failure for failure in found if failure is not None), None)


def _revoked(sa: IkeSa, path: Path, policy: TunnelPolicy) -> Failure | None:
    assert sa.remote_id is not None
    authorities = policy.remote_authorities
    assert authorities is not None
    book, now = sa.core.inquiries.book, sa.core.wall_clock()
    known = book.proofs(path)
    proofs = Proofs(
        lists=(*listed_revocations(authorities.crl), *known.lists), answers=known.answers
    )
    try:
        check_revocation(path, proofs, Strictness.SOFT, now)
    except CertificateRefused as refused:
        return not_believed(refused, sa.remote_id, authorities).failure
    return None


def our_status(
    core: Core, tunnel: TunnelPolicy, requests: Iterable[CertreqPayload]
) -> tuple[CertPayload, ...]:
    """The OCSP answer about our own certificate, for a peer that asks for one (RFC 4806 3.2).

    If there is none it is asked for, and the next will have it.
    """
    ours = tunnel.local_certificates
    if ours is None or all(r.encoding != CertificateEncoding.OCSP_CONTENT for r in requests):
        return ()
    leaf, *above = parsed(ours.ders)
    issuer = _issuer(leaf, (*above, *_authorities(tunnel)))
    if issuer is None:
        return ()
    book, now = core.inquiries.book, core.wall_clock()
    answer = book.answer_about(leaf, issuer, now)
    if answer is not None:
        return (CertPayload(encoding=CertificateEncoding.OCSP_CONTENT, data=answer),)
    responder = book.responder(leaf, issuer, now)
    core.inquiries.ask(() if responder is None else (responder,))
    return ()


def _authorities(tunnel: TunnelPolicy) -> tuple[Certificate, ...]:
    return () if tunnel.remote_authorities is None else parsed(tunnel.remote_authorities.ders)


def _issuer(leaf: Certificate, known: Iterable[Certificate]) -> Certificate | None:
    return next((c for c in known if c.subject == leaf.issuer), None)
