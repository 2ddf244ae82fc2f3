"""Message IDs and retransmission of one IKE SA: the only place where a datagram is sent twice.

Read RFC 7296 sections 2.1 to 2.3 first. The window size is one, so there is at most one request of
ours on its way and one cached response of ours. What a request means is the business of the
exchange it belongs to; this machine only knows octets, numbers and deadlines.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from xfrmpy.ike.errors import Drop, DropReason
from xfrmpy.ike.exchange import Exchange
from xfrmpy.policy.model import Retransmission


class PeerSilent(Exception):
    """The last retransmission of a request has waited its time: the peer is gone."""


@dataclass(slots=True, kw_only=True)
class Outstanding:
    """A request of ours that waits for its response."""

    message_id: int
    exchange: Exchange
    datagram: bytes = field(default=b"", repr=False)
    retransmissions: int = 0
    due_at: float = 0.0


class Window:
    """See the module. `random` feeds the jitter only."""

    def __init__(self, schedule: Retransmission, random: Callable[[int], bytes]) -> None:
        self.outstanding: Outstanding | None = None
        self.waiting: deque[Exchange] = deque()
        self.schedule = schedule
        self._random = random
        self._next_id = 0
        self._expected_id = 0
        self._last_response: bytes = b""

    # Requests of ours.

    def begin(self, exchange: Exchange) -> int:
        """Take the next Message ID for a request; `sent` must follow."""
        assert self.outstanding is None
        self.outstanding = Outstanding(message_id=self._next_id, exchange=exchange)
        self._next_id += 1
        return self.outstanding.message_id

    def sent(self, datagram: bytes, now: float) -> None:
        """The request that was begun has left for the first time."""
        assert self.outstanding is not None
        self.outstanding.datagram = datagram
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

    def retransmit(self, now: float) -> Outstanding | None:
        """The request to send again if it is due; raises `PeerSilent` after the last one."""
        request = self.outstanding
        if request is None or now < request.due_at:
            return None
        if request.retransmissions >= self.schedule.tries:
            raise PeerSilent
        request.retransmissions += 1
        request.due_at = now + self._wait_seconds(request.retransmissions)
        return request

    # Requests of the peer.

    def accept_request(self, message_id: int) -> bytes | None:
        """None for a new request; the response to send again for one answered before.

        Raises `Drop` for any other Message ID (RFC 7296 section 2.3 lets us ignore it).
        """
        if message_id == self._expected_id:
            return None
        if message_id == self._expected_id - 1 and self._last_response:
            return self._last_response
        raise Drop(DropReason.WRONG_MESSAGE_ID)

    def answered(self, datagram: bytes) -> None:
        """The expected request has been answered; keep the answer for a repetition of it."""
        self._expected_id += 1
        self._last_response = datagram

    def _wait_seconds(self, retransmissions: int) -> float:
        schedule = self.schedule
        wait = schedule.initial_seconds * schedule.factor**retransmissions
        spread = int.from_bytes(self._random(2), "big") / 0xFFFF * 2 - 1
        return wait * (1 + schedule.jitter * spread)
