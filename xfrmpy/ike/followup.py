"""IKE_FOLLOWUP_KE in both roles: the key exchanges behind that of a CREATE_CHILD_SA.

Read RFC 9370 section 2.2.4 first. What is to be created is complete with the last of them, and not
in force before. The responder ties them together by a link that it alone understands. What an end
has begun and not finished gives way: to what the other end has finished, else by the nonces of both
CREATE_CHILD_SA, as if both were finished (RFC 7296 section 2.8.1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Protocol

from xfrmpy.crypto.key_exchange import start_key_exchange
from xfrmpy.ike.agreement import Agreement, agreed_secret, answer_ke, ke_payload
from xfrmpy.ike.child_sa import ChildSa
from xfrmpy.ike.collisions import survives
from xfrmpy.ike.errors import PeerMisbehaved
from xfrmpy.ike.exchange import first_error, notifications, only
from xfrmpy.ike.states import IkeSaState
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.payloads import KePayload, NotifyPayload, OpenPayload

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

LINK_SIZE = 8

FOLLOWUP_SECONDS = 20.0
"""How long a responder waits for the next one. Section 2.2.4: "5-20 seconds" is "reasonable"."""

MAX_UNFINISHED = 8
"""Of one IKE SA, ours: as many as a peer can begin at once in our window."""


class Begun(Protocol):
    """A CREATE_CHILD_SA of ours whose key exchanges go on. `subject` is what it is to replace."""

    agreement: Agreement | None

    @property
    def subject(self) -> object: ...

    def finish(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        """Every key exchange is done; `payloads` are those of the last answer."""

    def refused(self, error: NotifyPayload, now: float) -> None:
        """The peer does not go on."""


def go_on(sa: IkeSa, begun: Begun, payloads: tuple[OpenPayload, ...], now: float) -> None:
    """An initiator has the answer to a key exchange: begin the next one, before anything else."""
    assert begun.agreement is not None
    if begun.agreement.next_method is None:
        begun.finish(payloads, now)
        return
    links = notifications(payloads, NotifyType.ADDITIONAL_KEY_EXCHANGE)
    if len(links) != 1:
        raise PeerMisbehaved("a further key exchange was agreed on, and has no link")
    sa.channel.window.waiting.insert(0, FollowupKe(sa, begun, links[0].data))


class FollowupKe:
    """The initiator's side of one key exchange."""

    type: ClassVar[ExchangeType] = ExchangeType.IKE_FOLLOWUP_KE

    def __init__(self, sa: IkeSa, begun: Begun, link: bytes) -> None:
        assert begun.agreement is not None
        assert begun.agreement.next_method is not None
        self._sa = sa
        self._link = link
        self.begun = begun
        self._key_exchange = start_key_exchange(begun.agreement.next_method, sa.core.random)

    def request(self) -> tuple[OpenPayload, ...]:
        return (ke_payload(self._key_exchange), _link(self._link))

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        error = first_error(payloads)
        if error is not None:
            self.begun.refused(error, now)
            return
        assert self.begun.agreement is not None
        secret = agreed_secret(self._key_exchange, only(payloads, KePayload))
        self.begun.agreement = self.begun.agreement.with_secret(secret)
        go_on(self._sa, self.begun, payloads, now)


def is_followed_up(sa: IkeSa, subject: object) -> bool:
    """Whether we are at the further key exchanges of what is to replace `subject`."""
    window = sa.channel.window
    exchanges = (*(request.exchange for request in window.outstanding.values()), *window.waiting)
    return any(isinstance(e, FollowupKe) and e.begun.subject is subject for e in exchanges)


# The responder's side.


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfinished:
    """What a peer has begun, and must go on with by `link` before `until`.

    That is a Child SA, or an IKE SA, with `our_spi`, in the place of the one it was begun on.
    """

    link: bytes
    agreement: Agreement
    until: float
    child: ChildSa | None = None
    our_spi: bytes = b""


def leave_unfinished(
    sa: IkeSa,
    agreement: Agreement,
    now: float,
    *,
    child: ChildSa | None = None,
    our_spi: bytes = b"",
) -> NotifyPayload:
    """Remember what a peer has begun; gives the link for our answer. The oldest makes room."""
    while len(sa.unfinished) >= MAX_UNFINISHED:
        give_up_unfinished(sa, sa.unfinished[0])
    link = sa.core.random(LINK_SIZE)
    sa.unfinished.append(
        Unfinished(
            link=link,
            agreement=agreement,
            until=now + FOLLOWUP_SECONDS,
            child=child,
            our_spi=our_spi,
        )
    )
    sa.core.touched.add(sa)
    return _link(link)


def answer_followup_ke(
    sa: IkeSa, payloads: tuple[OpenPayload, ...], now: float
) -> tuple[Unfinished, KePayload] | None:
    """Do the next key exchange. After the last one, what is finished by it, and what to answer."""
    links = [p.data for p in notifications(payloads, NotifyType.ADDITIONAL_KEY_EXCHANGE)]
    found = next((u for u in sa.unfinished if [u.link] == links), None)
    if found is None or sa.state is not IkeSaState.ESTABLISHED:
        sa.respond((NotifyPayload(type=NotifyType.STATE_NOT_FOUND),))
        return None
    assert found.agreement.next_method is not None
    ke = only(payloads, KePayload)
    answered = answer_ke(found.agreement.next_method, ke, sa.core.random)
    agreement = found.agreement.with_secret(answered.secret())
    sa.unfinished.remove(found)
    if agreement.next_method is None:
        return replace(found, agreement=agreement), answered.payload
    link = leave_unfinished(sa, agreement, now, child=found.child, our_spi=found.our_spi)
    sa.respond((answered.payload, link))
    return None


def subject_of(sa: IkeSa, unfinished: Unfinished) -> object:
    """What it is to replace: an IKE SA, a Child SA, or nothing."""
    return sa if unfinished.child is None else unfinished.child.replaces


def rivals(sa: IkeSa, subject: object) -> list[Unfinished]:
    """What the peer has begun to replace the same, and not finished."""
    if subject is None:
        return []
    return [u for u in sa.unfinished if subject_of(sa, u) is subject]


def prevails(sa: IkeSa, begun: Begun) -> bool:
    """Whether ours goes on, of two that are unfinished."""
    assert begun.agreement is not None
    ours = begun.agreement.nonces
    return all(survives(ours, u.agreement.nonces) for u in rivals(sa, begun.subject))


def give_up_rivals(sa: IkeSa, subject: object) -> None:
    for unfinished in rivals(sa, subject):
        give_up_unfinished(sa, unfinished)


def give_up_unfinished(sa: IkeSa, unfinished: Unfinished) -> None:
    """The peer does not go on with it, or must not."""
    sa.unfinished.remove(unfinished)
    sa.core.changed.add(sa.our_spi)
    child = unfinished.child
    if child is not None and child in sa.children:
        sa.children.remove(child)
        child.close()


def expire_unfinished(sa: IkeSa, unfinished: Unfinished, now: float) -> None:
    """The peer has had its time, and what waited for it goes on."""
    give_up_unfinished(sa, unfinished)
    sa.start_waiting(now)


def _link(data: bytes) -> NotifyPayload:
    return NotifyPayload(type=NotifyType.ADDITIONAL_KEY_EXCHANGE, data=data)
