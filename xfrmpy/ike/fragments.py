"""Messages in parts: cutting a message into fragments, and putting a peer's together again.

Read RFC 7383 sections 2.5 and 2.6 first. What comes here has been authenticated already, each
fragment by itself; keys, Message IDs and datagrams are the business of `protection`, `window` and
`channel`. A message is looked into only when it is whole (section 5).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xfrmpy.ike.errors import Drop, DropReason, PeerMisbehaved
from xfrmpy.registry import ExchangeType, PayloadType
from xfrmpy.wire.message import Message
from xfrmpy.wire.payloads import EncryptedFragmentPayload

MAX_FRAGMENTS = 128
"""Of one message, ours. MAX_MESSAGE_OCTETS in IPv4 datagrams of 576 octets are 129."""

MAX_MESSAGE_OCTETS = 65536
"""RFC 7383 section 5: "It is NOT RECOMMENDED for this value to exceed 64 KB"."""

MAX_OCTETS_IN_ALL = 16 * 1024 * 1024
"""Of all messages that an endpoint has in parts, ours: 256 of the largest, thousands of usual ones.
A peer that has proved nothing but its address can make us hold some, so there must be an end."""

REASSEMBLY_SECONDS = 30.0
"""How long we wait for the rest of a message, ours: as long as a responder waits for IKE_AUTH.
RFC 7383 section 2.6: "Implementations can use a shorter timeout to conserve memory"."""


def split(octets: bytes, size: int) -> tuple[bytes, ...]:
    """Parts of at most `size` octets, regardless of the payloads in them (section 2.5)."""
    return tuple(octets[start : start + size] for start in range(0, len(octets) or 1, size))


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """A message that is complete: its header and outer payloads, and what was sealed in it.

    `fragment_size` is that of the largest datagram it came in; None if it came in one.
    """

    message: Message
    octets: bytes = field(repr=False)
    fragment_size: int | None = None

    @property
    def first_inner(self) -> PayloadType:
        sealed = self.message.sealed
        assert sealed is not None
        return sealed.first_inner


@dataclass(eq=False, slots=True, kw_only=True)
class Reassembly:
    """The fragments of one message that have come so far. `message` is that of the first one."""

    exchange: ExchangeType
    expires_at: float
    total: int = 0
    largest: int = 0
    message: Message | None = None
    parts: dict[int, bytes] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> int:
        return sum(map(len, self.parts.values()))

    def clear(self) -> None:
        self.message = None
        self.largest = 0
        self.parts.clear()

    def add(self, message: Message, octets: bytes, datagram_size: int) -> None:
        """Store a fragment. Raises `Drop`, or `PeerMisbehaved` for more than we would ever take."""
        fragment = message.sealed
        assert isinstance(fragment, EncryptedFragmentPayload)
        self._check(message, fragment)
        if fragment.total > self.total:
            # "the receiver MUST discard all received fragments and start the reassembly process
            # over with just the received IKE Fragment message" (section 2.6).
            self.clear()
            self.total = fragment.total
        if self.size + len(octets) > MAX_MESSAGE_OCTETS:
            raise PeerMisbehaved(f"a message in parts of more than {MAX_MESSAGE_OCTETS} octets")
        self.parts[fragment.number] = octets
        self.largest = max(self.largest, datagram_size)
        if fragment.number == 1:
            self.message = message

    def _check(self, message: Message, fragment: EncryptedFragmentPayload) -> None:
        if fragment.total > MAX_FRAGMENTS:
            raise PeerMisbehaved(f"a message in {fragment.total} parts")
        if message.exchange != self.exchange:
            raise Drop(DropReason.WRONG_EXCHANGE)
        if fragment.total < self.total:
            raise Drop(DropReason.FRAGMENT_OUTDATED)
        if fragment.total == self.total and fragment.number in self.parts:
            raise Drop(DropReason.FRAGMENT_REPEATED)

    @property
    def whole(self) -> Whole | None:
        """The message, once every fragment is there."""
        if self.message is None or len(self.parts) < self.total:
            return None
        octets = b"".join(self.parts[number] for number in range(1, self.total + 1))
        return Whole(message=self.message, octets=octets, fragment_size=self.largest)


class FragmentStore:
    """All fragments that an endpoint holds. Where they are too many, the oldest message's go:

    its peer sends them again, and one that floods us cannot keep others out for long.
    """

    def __init__(self) -> None:
        self._sizes: dict[Reassembly, int] = {}
        self.octets = 0

    def update(self, reassembly: Reassembly) -> None:
        """A fragment was added to a message, or all of them were replaced."""
        self.octets += reassembly.size - self._sizes.get(reassembly, 0)
        self._sizes[reassembly] = reassembly.size
        while self.octets > MAX_OCTETS_IN_ALL:
            oldest = next(iter(self._sizes))
            self.release(oldest)
            oldest.clear()

    def release(self, reassembly: Reassembly) -> None:
        """A message is complete, or given up."""
        self.octets -= self._sizes.pop(reassembly, 0)


class Reassembler:
    """The messages of one IKE SA that are here in part, by direction and Message ID."""

    def __init__(self, store: FragmentStore) -> None:
        self._store = store
        self._partial: dict[tuple[bool, int], Reassembly] = {}

    def collect(
        self, message: Message, octets: bytes, datagram_size: int, now: float
    ) -> Whole | None:
        """The message that a datagram is or completes; see `Reassembly.add` for what is raised."""
        key = (message.is_response, message.message_id)
        if not isinstance(message.sealed, EncryptedFragmentPayload):
            self._give_up(key)
            return Whole(message=message, octets=octets)
        partial = self._partial.get(key)
        if partial is None:
            partial = Reassembly(exchange=message.exchange, expires_at=now + REASSEMBLY_SECONDS)
        partial.add(message, octets, datagram_size)
        self._partial[key] = partial
        self._store.update(partial)
        whole = partial.whole
        if whole is not None:
            self._give_up(key)
        return whole

    @property
    def next_timeout(self) -> float | None:
        if not self._partial:
            return None
        return min([partial.expires_at for partial in self._partial.values()])

    def expire(self, now: float) -> None:
        """Give up what has waited too long (section 2.6)."""
        if self._partial:
            for key in [k for k, p in self._partial.items() if p.expires_at <= now]:
                self._give_up(key)

    def clear(self) -> None:
        for key in list(self._partial):
            self._give_up(key)

    def _give_up(self, key: tuple[bool, int]) -> None:
        partial = self._partial.pop(key, None)
        if partial is not None:
            self._store.release(partial)
