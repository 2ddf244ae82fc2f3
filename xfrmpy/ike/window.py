"""Message IDs and retransmission of one IKE SA: the only place that says what is sent twice.

Read RFC 7296 sections 2.1 to 2.3 first. The window size is one, so there is at most one request of
ours on its way and one cached response of ours. What a request means is the business of the
exchange it belongs to; this machine only knows messages, numbers and deadlines.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from xfrmpy.ike.errors import Drop, DropReason
from xfrmpy.ike.exchange import Exchange
from xfrmpy.policy.model import Retransmission
from xfrmpy.wire.message import Message


@dataclass(slots=True, kw_only=True)
class Sent:
    """A message of ours as it left, in one datagram or in fragments.

    What is sent again are the same octets (RFC 7296 section 2.1), unless the datagrams must become
    smaller; `message` is what others can be made of.
    """

    message: Message = field(repr=False)
    datagrams: tuple[bytes, ...] = field(repr=False)
    retransmissions: int = 0


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
        self.outstanding: Outstanding | None = None
        self.waiting: deque[Exchange] = deque()
        self.schedule = schedule
        self._random = random
        self._next_id = 0
        self._expected_id = 0
        self._last_response: Sent | None = None

    # Requests of ours.

    def begin(self, exchange: Exchange) -> int:
        """Take the next Message ID for a request; `sent` must follow."""
        assert self.outstanding is None
        self.outstanding = Outstanding(message_id=self._next_id, exchange=exchange)
        self._next_id += 1
        return self.outstanding.message_id

    def sent(self, sent: Sent, now: float) -> None:
        """The request that was begun has left for the first time."""
        assert self.outstanding is not None
        self.outstanding.sent = sent
        self.outstanding.due_at = now + self._wait_seconds(0)

    def restart(self) -> None:
        """Forget the outstanding IKE_SA_INIT: it goes out again, changed, with Message ID zero.

        RFC 7296 sections 2.6 (cookies) and 1.3 (INVALID_KE_PAYLOAD) ask for it.
        """
        self.outstanding = None
        self._next_id = 0

    def outstanding_for(self, message_id: int) -> Outstanding:
        """The request that a response answers; `complete` must follow once it is accepted."""
        if self.outstanding is None or self.outstanding.message_id != message_id:
            raise Drop(DropReason.UNEXPECTED_RESPONSE)
        return self.outstanding

    def complete(self) -> None:
        """The outstanding request has its response."""
        self.outstanding = None

    def abandon(self) -> None:
        """Stop asking: neither the outstanding request nor those that wait matter any more."""
        self.outstanding = None
        self.waiting.clear()

    def hurry(self, tries: int) -> None:
        """Retransmit less often from now on, the outstanding request too."""
        self.schedule = replace(self.schedule, tries=min(tries, self.schedule.tries))

    @property
    def next_timeout(self) -> float | None:
        return None if self.outstanding is None else self.outstanding.due_at

    def due(self, now: float) -> Outstanding | None:
        """The request whose time has come, if there is one: to `retransmit`, or to `start_over`."""
        request = self.outstanding
        return request if request is not None and request.due_at <= now else None

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

    def accept_request(self, message_id: int) -> Sent | None:
        """None for a new request; the response to send again for one answered before.

        Raises `Drop` for any other Message ID (RFC 7296 section 2.3 lets us ignore it).
        """
        if message_id == self._expected_id:
            return None
        if message_id == self._expected_id - 1 and self._last_response is not None:
            return self._last_response
        raise Drop(DropReason.WRONG_MESSAGE_ID)

    def answered(self, response: Sent) -> None:
        """The expected request has been answered; keep the answer for a repetition of it."""
        self._expected_id += 1
        self._last_response = response

    def _wait_seconds(self, retransmissions: int) -> float:
        schedule = self.schedule
        wait = schedule.initial_seconds * schedule.factor**retransmissions
        spread = int.from_bytes(self._random(2), "big") / 0xFFFF * 2 - 1
        return wait * (1 + schedule.jitter * spread)
