"""Our SAs in the kernel's SAD: put there, changed, counted, and heard of when they end.

An SA that is not ours is neither replaced nor removed, whatever its id. What a message looks like
is in `sad.py`.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from xfrmpy.datapath.interface import DatapathError, Event, Expired, OffloadRefused
from xfrmpy.datapath.kernel import events, sad
from xfrmpy.datapath.kernel.compression import Compressions, decode_states
from xfrmpy.datapath.kernel.messages import Attribute, Group, MessageType
from xfrmpy.datapath.kernel.per_cpu import is_bound, look_again
from xfrmpy.datapath.kernel.removal import GONE, gone_is_fine
from xfrmpy.datapath.netlink.layout import UnreadableMessage
from xfrmpy.datapath.netlink.messages import Message, Values
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Reply, Request, Words
from xfrmpy.datapath.routes import Routes
from xfrmpy.datapath.tunnel_interfaces import TunnelInterfaces
from xfrmpy.ipsec.sad import Direction, SadEntry, SaId, Usage
from xfrmpy.ipsec.spd import SpdEntry


class SadInForce:
    """See the module. What is given is the caller's, who closes it; `deletions` is a socket for
    nothing else. Methods may raise `DatapathError`.
    """

    def __init__(
        self,
        requests: NetlinkSocket,
        deletions: NetlinkSocket,
        compressions: Compressions,
        routes: Routes,
        interfaces: TunnelInterfaces,
    ) -> None:
        self._requests = requests
        self._deletions = deletions
        self._compressions = compressions
        self._routes = routes
        self._interfaces = interfaces
        self._reqids: dict[SaId, int] = {}  # of those in force, to notice lost events
        self._seen: dict[SaId, tuple[int, float]] = {}  # packets, and when there were first so many
        self._refusals: list[OffloadRefused] = []

    # Additions.

    def addition(self, entry: SadEntry) -> Request:
        """With the device to do its work, if that is asked for."""
        message = sad.encode_sa(entry)
        if entry.offload is not None:
            ours, theirs = (
                (entry.source, entry.destination)
                if entry.direction is Direction.OUT
                else (entry.destination, entry.source)
            )
            with suppress(DatapathError):  # Without a way there is no device.
                device = self._routes.device_towards(ours, theirs)
                message.attributes[Attribute.OFFLOAD_DEV] = sad.offload_by(entry, device)
        return Request(message, Words("add", entry.id), create=True)

    def conclude(self, entry: SadEntry, reply: Reply) -> None:
        """One whose offload is refused goes in without. Some kernels say so, others just do it."""
        wanted = entry.offload is not None
        if wanted and reply.error is not None and reply.error.errno != errno.EEXIST:
            what = reply.request.what
            self._requests.ask(Request(sad.encode_sa(entry), what, create=True))
            self._note_refusal(entry, str(reply.error))
        else:
            reply.unless()
            if wanted and not sad.is_offloaded(self._ours(entry.id, "read it back")):
                self._note_refusal(entry, "no device on the way to the peer does it")
        self._note(entry)

    def _note_refusal(self, entry: SadEntry, reason: str) -> None:
        self._refusals.append(OffloadRefused(sa=entry.id, reqid=entry.reqid, reason=reason))

    def take_refusals(self) -> tuple[OffloadRefused, ...]:
        """Those since the last time."""
        refusals = tuple(self._refusals)
        self._refusals.clear()
        return refusals

    # Changes.

    def update(self, entry: SadEntry) -> None:
        self._change(entry.id, entry, f"update {entry.id}")
        self._interfaces.note(entry)

    def move(self, sa: SaId, entry: SadEntry) -> None:
        self._change(sa, entry, f"move {sa}")
        self.forget(sa)
        self._note(entry)

    def _change(self, sa: SaId, entry: SadEntry, what: str) -> None:
        old = sad.decode_sa(self._ours(sa, what))
        same_shape = (old.encapsulation is None) == (entry.encapsulation is None)
        if sa == entry.id and old.source == entry.source and same_shape:
            self._requests.ask(Request(sad.encode_sa(entry, MessageType.UPDSA), what))
        else:
            self._compressions.remove(sa)
            self._make_again(sa, entry, what)
        self._compressions.put_back(entry)

    def _make_again(self, sa: SaId, entry: SadEntry, what: str) -> None:
        """For what the kernel cannot change: an address, and whether there is encapsulation.

        The state is the one that the deletion reports, not one read before it: packets in between
        would make the new SA use their sequence numbers again, which no AEAD cipher survives.
        """
        delete = Request(sad.encode_sa_id(sa, MessageType.DELSA), what)
        with self._deletions.joined(Group.SA):
            self._requests.ask(delete)
            gone = _deletion_of(sa, self._deletions.notifications())
        fresh = sad.encode_sa(entry)
        if gone is None:
            raise DatapathError(f"cannot {what}: the kernel did not tell its last state")
        fresh.attributes[Attribute.REPLAY_ESN_VAL] = gone.attributes[Attribute.REPLAY_ESN_VAL]
        fresh.attributes[Attribute.LTIME_VAL] = _current_lifetime(gone)
        self._requests.ask(Request(fresh, what, create=True))

    def remove(self, sa: SaId) -> None:
        what = f"remove {sa}"
        self.forget(sa)
        self._compressions.remove(sa)
        with gone_is_fine():
            state = self._ours(sa, what)
            self._requests.ask(Request(sad.encode_sa_id(sa, MessageType.DELSA), what))
            if is_bound(state):
                look_again(self._requests, {state.body["reqid"]})

    def forget_acquire(self, entry: SpdEntry) -> None:
        """The next packet that meets a policy is to ask for an SA, as if none had before.

        For half a minute the kernel takes one that it was told of for the answer to every packet.
        """
        what = f"forget that {entry.selector} has asked for an SA"
        claim = Request(events.encode_acquired_spi(entry, events.LARVAL_SPI), what)
        for larval in self._requests.ask(claim):
            delete = sad.encode_state_id(larval, MessageType.DELSA)
            self._requests.ask(Request(delete, what))

    # What is in force, and how it fares.

    def usage(self, sa: SaId) -> Usage:
        """Linux 6.1 does not tell the last use: then `seconds_idle` counts from when a packet was
        first seen here to have passed, and is as exact as `usage` is frequent."""
        return self._usage_of(sa, self._ours(sa, f"read the usage of {sa}"))

    def seconds_idle(self, sas: Sequence[SaId]) -> tuple[float | None, ...]:
        what = "read the usage of SAs"
        gets = [Request(sad.encode_sa_id(sa, MessageType.GETSA), what) for sa in sas]
        replies = [reply.unless(*GONE).messages for reply in self._requests.exchange(gets)]
        return tuple(
            self._usage_of(sa, found[0]).seconds_idle if found and sad.is_our_sa(found[0]) else None
            for sa, found in zip(sas, replies, strict=True)
        )

    def _usage_of(self, sa: SaId, message: Message) -> Usage:
        usage = sad.decode_usage(message, time.time())
        if usage.seconds_idle is not None or not usage.packets:
            return usage
        now = time.monotonic()
        if self._seen.get(sa, (0, now))[0] != usage.packets:
            self._seen[sa] = (usage.packets, now)
        return replace(usage, seconds_idle=now - self._seen[sa][1])

    def dump(self) -> tuple[tuple[SadEntry, ...], tuple[SaId, ...]]:
        """Those that we could have added, and the ids of the others that have our reqid."""
        return _sorted(self._pairs())

    def adopt(self) -> None:
        """Know of those in force since before this process."""
        pairs = self._pairs()
        for state, _ in pairs:
            self._reqids[sad.decode_sa_id(state.body)] = state.body["reqid"]
        for entry in _sorted(pairs)[0]:
            self._interfaces.note(entry)

    def lost_events(self) -> Iterator[Event]:
        """What the SAD tells of events that were lost; some may be told twice.

        A change of mapping is told again by the kernel with the next packet.
        """
        states = [state for state in self._states() if not sad.is_compression(state)]
        yield from (events.decode_larval(state) for state in states if events.is_larval(state))
        alive = {sad.decode_sa_id(s.body): s for s in states if not events.is_larval(s)}
        now = time.time()
        for sa, reqid in self._reqids.items():
            if sa not in alive or sad.is_past_soft_limit(alive[sa], now):
                yield Expired(sa=sa, reqid=reqid, hard=sa not in alive)

    def end(self, sa: SaId) -> None:
        """The kernel has removed it, and has left what compresses beside it."""
        self.forget(sa)
        self._compressions.remove(sa)

    def forget(self, sa: SaId) -> None:
        self._reqids.pop(sa, None)
        self._seen.pop(sa, None)
        self._interfaces.forget(sa)

    def forget_all(self) -> None:
        for known in (self._reqids, self._seen, self._refusals):
            known.clear()
        self._interfaces.forget_all()
        self._compressions.forget_all()

    def _note(self, entry: SadEntry) -> None:
        self._reqids[entry.id] = entry.reqid
        self._interfaces.note(entry)

    def _ours(self, sa: SaId, what: str) -> Message:
        found = self._requests.ask(Request(sad.encode_sa_id(sa, MessageType.GETSA), what))
        if not found or not sad.is_our_sa(found[0]):
            raise DatapathError(f"cannot {what}: it is another program's", errno.ESRCH)
        return found[0]

    def _pairs(self) -> list[tuple[Message, Message | None]]:
        """Each with what compresses beside it."""
        states = self._states()
        return self._compressions.pair(state for state in states if not events.is_larval(state))

    def _states(self) -> list[Message]:
        """Our SAs, and the larval ones that stand for an acquire of ours."""
        request = Request(Message(type=MessageType.GETSA), "list the SAs", dump=True)
        return [sa for sa in self._requests.ask(request) if sad.is_our_sa(sa)]


def _sorted(
    pairs: Iterable[tuple[Message, Message | None]],
) -> tuple[tuple[SadEntry, ...], tuple[SaId, ...]]:
    ours: list[SadEntry] = []
    strange: list[SaId] = []
    for message, compressing in pairs:
        try:
            ours.append(decode_states(message, compressing))
        except UnreadableMessage:
            with suppress(UnreadableMessage):
                strange.append(sad.decode_sa_id(message.body))
    return tuple(ours), tuple(strange)


def _deletion_of(sa: SaId, news: Iterable[Message]) -> Message | None:
    """The notification that an SA is gone, with its last state; None if it is not there."""
    for message in news:
        is_deletion = message.type == MessageType.DELSA and Attribute.SA in message.attributes
        if is_deletion and sad.decode_sa_id(message.attributes[Attribute.SA]) == sa:
            return message
    return None


def _current_lifetime(deletion: Message) -> Values:
    prefix = "curlft_"
    state = deletion.attributes[Attribute.SA]
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
