"""Message IDs and retransmission of one IKE SA: the only place that says what is sent twice.

Read RFC 7296 sections 2.1 to 2.3 first. As many requests of ours may be on their way as the peer
has said it keeps state for, and we keep as many responses as we have promised: one each, until both
ends have announced more. What a request means is the business of the exchange it belongs to; this
machine only knows messages, numbers and deadlines.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from xfrmpy.ike.errors import Drop, DropReason
from xfrmpy.ike.exchange import Exchange
from xfrmpy.policy.model import Retransmission
from xfrmpy.wire.message import Message

OUR_WINDOW_SIZE = 8
"""Requests of the peer for which we keep state, ours: one with many Child SAs may rekey several at
once. Each costs a cached response, and perhaps a message in fragments."""

MAX_MESSAGE_ID = 0xFFFFFFFF


@dataclass(slots=True, kw_only=True)
class Sent:
    """A message of ours as it left, in one datagram or in fragments.

    What is sent again are the same octets (RFC 7296 section 2.1), unless the datagrams must become
    smaller; `message` is what others can be made of. `is_kept` once it is in the record of its IKE
    SA.
    """

    message: Message = field(repr=False)
    datagrams: tuple[bytes, ...] = field(repr=False)
    retransmissions: int = 0
    is_kept: bool = False


@dataclass(slots=True, kw_only=True)
class Outstanding:
    """A request of ours that waits for its response; `sent` is None until it has left."""

    message_id: int
    exchange: Exchange
    sent: Sent | None = None
    due_at: float = 0.0

    @property
    def retransmissions(self) -> int:
        return 0 if self.sent is None else self.sent.retransmissions


class PeerSilent(Exception):
    """The last retransmission of a request has waited its time: the peer is gone."""

    def __init__(self, request: Outstanding) -> None:
        super().__init__()
        self.request = request


class Window:
    """See the module. `random` feeds the jitter only."""

    def __init__(self, schedule: Retransmission, random: Callable[[int], bytes]) -> None:
        self.outstanding: dict[int, Outstanding] = {}
        self.waiting: list[Exchange] = []
        self.schedule = schedule
        self._random = random
        self._their_size = 1
        self._next_id = 0
        self._our_size = 1
        self._expected_id = 0
        self._highest_id = -1
        self._in_hand: set[int] = set()
        self._answers: dict[int, Sent] = {}

    # Requests of ours.

    def widen_theirs(self, size: int) -> None:
        """The peer keeps state for so many requests; it cannot take that back (section 2.3)."""
        self._their_size = max(self._their_size, size)

    @property
    def takes_several(self) -> bool:
        """Whether the peer has said that it keeps state for more than one request."""
        return self._their_size > 1

    @property
    def keeps_several(self) -> bool:
        """Whether we have."""
        return self._our_size > 1

    @property
    def is_idle(self) -> bool:
        """Whether no request of ours is on its way."""
        return not self.outstanding

    @property
    def has_room(self) -> bool:
        """Whether another request may leave.

        Section 2.3: "when the initiator needs to make a request X, it MUST wait until it has
        received responses to all requests up through request X-N".
        """
        return self._next_id - min(self.outstanding, default=self._next_id) < self._their_size

    @property
    def is_exhausted(self) -> bool:
        """Whether there is no Message ID left: the IKE SA must be closed (section 2.2)."""
        return self._next_id > MAX_MESSAGE_ID

    def begin(self, exchange: Exchange) -> int:
        """Take the next Message ID for a request; `sent` must follow."""
        assert self.has_room
        message_id = self._next_id
        self.outstanding[message_id] = Outstanding(message_id=message_id, exchange=exchange)
        self._next_id += 1
        return message_id

    def sent(self, message_id: int, sent: Sent, now: float) -> None:
        """The request that was begun has left for the first time."""
        request = self.outstanding[message_id]
        request.sent = sent
        request.due_at = now + self._wait_seconds(0)

    def restart(self) -> None:
        """Forget the outstanding IKE_SA_INIT: it goes out again, changed, with Message ID zero.

        RFC 7296 sections 2.6 (cookies) and 1.3 (INVALID_KE_PAYLOAD) ask for it.
        """
        self.outstanding.clear()
        self._next_id = 0

    def outstanding_for(self, message_id: int) -> Outstanding:
        """The request that a response answers; `complete` must follow once it is accepted."""
        if message_id not in self.outstanding:
            raise Drop(DropReason.UNEXPECTED_RESPONSE)
        return self.outstanding[message_id]

    def complete(self, message_id: int) -> None:
        """An outstanding request has its response."""
        del self.outstanding[message_id]

    def abandon(self) -> None:
        """Stop asking: neither the outstanding requests nor those that wait matter any more."""
        self.outstanding.clear()
        self.waiting.clear()

    def hurry(self, tries: int) -> None:
        """Retransmit less often from now on, the outstanding requests too."""
        self.schedule = replace(self.schedule, tries=min(tries, self.schedule.tries))

    @property
    def next_timeout(self) -> float | None:
        if not self.outstanding:
            return None
        return min([request.due_at for request in self.outstanding.values()])

    def due(self, now: float) -> Outstanding | None:
        """A request whose time has come, if there is one: to `retransmit`, or to `start_over`."""
        if not self.outstanding:
            return None
        return next((r for r in self.outstanding.values() if r.due_at <= now), None)

    def retransmit(self, request: Outstanding, now: float) -> None:
        """Send a request once more as it is. Raises `PeerSilent` if that was done often enough."""
        assert request.sent is not None
        if request.retransmissions >= self.schedule.tries:
            raise PeerSilent(request)
        request.sent.retransmissions += 1
        request.due_at = now + self._wait_seconds(request.retransmissions)

    def start_over(self, request: Outstanding, now: float) -> None:
        """A request goes out in smaller fragments.

        RFC 7383 section 2.5.2: "When starting a new probe, the node MUST reset its retransmission
        timers".
        """
        request.due_at = now + self._wait_seconds(0)

    # Requests of the peer.

    def widen_ours(self, size: int) -> None:
        """We have told the peer that we keep state for so many requests."""
        self._our_size = max(self._our_size, size)

    def accept_request(self, message_id: int) -> Sent | None:
        """None for a new request; the response to send again for one answered before.

        Raises `Drop` for any other Message ID: one outside the window, which RFC 7296 section 2.3
        lets us ignore, and one whose request is in hand.
        """
        if message_id in self._answers:
            return self._answers[message_id]
        if message_id in self._in_hand:
            raise Drop(DropReason.REQUEST_IN_HAND)
        if not 0 <= message_id - self._expected_id < self._our_size:
            raise Drop(DropReason.WRONG_MESSAGE_ID)
        return None

    def begin_answer(self, message_id: int) -> None:
        """A new request is being handled; `answered` follows.

        Section 2.1: "The responder MUST remember each response until it receives a request whose
        sequence number is larger than or equal to the sequence number in the response plus its
        window size".
        """
        self._in_hand.add(message_id)
        self._highest_id = max(self._highest_id, message_id)
        for old in [number for number in self._answers if number + self._our_size <= message_id]:
            del self._answers[old]

    def answered(self, message_id: int, response: Sent) -> None:
        """A request has been answered; keep the answer for a repetition of it."""
        self._in_hand.discard(message_id)
        self._answers[message_id] = response
        while self._expected_id in self._answers:
            self._expected_id += 1

    @property
    def answers_not_kept(self) -> dict[int, Sent]:
        """Those that a record of the IKE SA has not."""
        return {number: sent for number, sent in self._answers.items() if not sent.is_kept}

    def note_kept(self, numbers: Collection[int] | None = None) -> None:
        """These answers, or all, are in the record of the IKE SA."""
        for number, sent in self._answers.items():
            sent.is_kept = numbers is None or number in numbers

    # Both, after a failover of the peer.

    def synchronize(self, their_next: int, our_next: int) -> tuple[int, int]:
        """Go on with new Message IDs; returns what they and we send next (RFC 6311 section 5.1).

        "The peer MUST silently drop any received synchronization message if M1 is lower than or
        equal to the highest value it has seen from the cluster": raises `Drop`. Neither end waits
        for what was on its way (section 9); ours is asked again, for nobody knows whether it
        was heard.
        """
        if their_next <= self._highest_id:
            raise Drop(DropReason.SYNC_REPLAYED)
        self._expected_id = self._highest_id = their_next
        self._next_id = max(self._next_id, our_next)
        self._in_hand.clear()
        self._answers.clear()
        unanswered = [request.exchange for request in self.outstanding.values()]
        self.outstanding.clear()
        self.waiting[:0] = unanswered
        return self._expected_id, self._next_id

    def _wait_seconds(self, retransmissions: int) -> float:
        schedule = self.schedule
        wait = schedule.initial_seconds * schedule.factor**retransmissions
        spread = int.from_bytes(self._random(2), "big") / 0xFFFF * 2 - 1
        return wait * (1 + schedule.jitter * spread)
