"""The kernel as a datapath: XFRM does ESP, we keep its SAD and SPD.

Decides how the contract of `interface.py` maps to requests, whose an object is, and how lost
events are made good. Nothing is ever flushed; an object that is not ours is neither replaced nor
removed, whatever its id or selector. What a message looks like is in `entries.py` and below.
"""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from typing import TypeVar

from xfrmpy.datapath.interface import (
    Capabilities,
    DatapathError,
    Event,
    Expired,
    NotAdded,
    OffloadRefused,
    Realm,
)
from xfrmpy.datapath.kernel import events, sad, spd
from xfrmpy.datapath.kernel.compression import Compressions, decode_states
from xfrmpy.datapath.kernel.default_policy import DefaultPolicy
from xfrmpy.datapath.kernel.features import PER_CPU, probe_features
from xfrmpy.datapath.kernel.interfaces import XfrmMaker
from xfrmpy.datapath.kernel.messages import XFRM, Attribute, Group, MessageType
from xfrmpy.datapath.kernel.per_cpu import bound_reqids, is_bound, look_again
from xfrmpy.datapath.kernel.probe import probe
from xfrmpy.datapath.kernel.removal import GONE, remove_ours
from xfrmpy.datapath.kernel.ways import PolicyWays
from xfrmpy.datapath.netlink.layout import UnreadableMessage
from xfrmpy.datapath.netlink.messages import Message, Values
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Reply, Request, Words
from xfrmpy.datapath.paths import Paths
from xfrmpy.datapath.routes import RouteOwner, Routes
from xfrmpy.datapath.shunt_rules import ShuntRules
from xfrmpy.datapath.tunnel_interfaces import TunnelInterfaces
from xfrmpy.datapath.watch import ROUTING, Source, Watch
from xfrmpy.ipsec.drift import Difference, Dump, Finding, Subject
from xfrmpy.ipsec.interfaces import InterfaceState, TunnelInterface
from xfrmpy.ipsec.sad import OUR_REQIDS, Direction, SadEntry, SaId, Usage
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry


class KernelDatapath:
    """XFRM of the network namespace of the thread that opens it; see `Datapath`."""

    name = "kernel"
    ruled = frozenset({Action.BYPASS})

    def __init__(
        self,
        requests: NetlinkSocket,
        events: NetlinkSocket,
        deletions: NetlinkSocket,
        routes: Routes,
        shunts: ShuntRules,
        paths: Paths,
        interfaces: TunnelInterfaces,
        watch: Watch,
    ) -> None:
        self._requests = requests
        self._events = events
        self._deletions = deletions
        self._routes = routes
        self._shunts = shunts
        self._ways = PolicyWays(routes, shunts, paths)
        self._interfaces = interfaces
        self._watch = watch
        self._compressions = Compressions(requests)
        self._default = DefaultPolicy(requests)
        self._sas: dict[SaId, int] = {}  # the reqids of those in force, to notice lost events
        self._seen: dict[SaId, tuple[int, float]] = {}  # packets, and when there were first so many
        self._taken: set[int] = set()  # the indices of our policies
        self._untold: list[Event] = []  # what happened before this process

    @classmethod
    def open(cls) -> KernelDatapath:
        """Raises `DatapathError` where the kernel has no XFRM, or we have no right to it.

        What an earlier process left in force is taken over, with its routes.
        """
        with ExitStack() as stack:
            requests = stack.enter_context(closing(NetlinkSocket(XFRM)))
            events = stack.enter_context(closing(NetlinkSocket(XFRM, _EVENT_GROUPS)))
            deletions = stack.enter_context(closing(NetlinkSocket(XFRM)))
            routes = stack.enter_context(closing(Routes(RouteOwner.KERNEL)))
            shunts = ShuntRules(RouteOwner.KERNEL, cls.ruled)
            stack.enter_context(closing(shunts))
            paths = Paths(routes)
            interfaces = TunnelInterfaces(XfrmMaker(), RouteOwner.KERNEL, paths)
            stack.callback(interfaces.close)
            ports = [held.port for held in (requests, deletions, routes, shunts, interfaces)]
            watch = stack.enter_context(closing(Watch([_ENTRIES, ROUTING], ports)))
            interfaces.report_to(watch)
            opened = cls(requests, events, deletions, routes, shunts, paths, interfaces, watch)
            opened._adopt()
            stack.pop_all()
        return opened

    def probe(self) -> Capabilities:
        found = probe(self._requests)
        features = probe_features(self._requests)
        found = replace(found, features=features, resources=not features[PER_CPU])
        if "esp" in found.missing:
            return found
        lacks = {"resources": features[PER_CPU], "interfaces": self._interfaces.probe()}
        missing = found.missing | {what: reason for what, reason in lacks.items() if reason}
        return replace(found, interfaces=not lacks["interfaces"], missing=missing)

    def add_sa(self, entry: SadEntry) -> None:
        self.add([entry])

    def add(self, entries: Sequence[SadEntry | SpdEntry]) -> None:
        """In pieces: of a piece in which one is refused, those behind it come to be and go."""
        for start in range(0, len(entries), _PIECE):
            piece = entries[start : start + _PIECE]
            done, reason = self._add_piece(piece)
            if reason is not None:
                raise NotAdded(start + done, reason) from reason

    def _add_piece(self, piece: Sequence[SadEntry | SpdEntry]) -> tuple[int, DatapathError | None]:
        """How many are in force by it, and why the next is not."""
        indices = [self._take_index(entry) for entry in piece]
        requests = [*map(self._addition, piece, indices)]
        try:
            compressions = self._compressions.add(piece)
            replies = self._requests.exchange(requests)
        except DatapathError as error:  # Nobody knows what was done before it.
            for entry in piece:
                with suppress(DatapathError):
                    self._take_back(entry)
            return 0, error
        concluded, reason = self._conclude(piece, indices, replies, compressions.refused)
        try:
            done, unled = self._ways.add(piece[:concluded])
        except DatapathError as error:
            done, unled = 0, error
        for place in range(done, len(piece)):
            if place < concluded or replies[place].error is None:
                self._take_back(piece[place])
            else:
                self._taken.discard(indices[place])
        for place, sa in compressions.new.items():
            if place >= done:
                self._compressions.remove(sa)
        with suppress(DatapathError):  # They would go on with the SA that they have.
            look_again(self._requests, bound_reqids(piece[:done]))
        return done, unled or reason

    def _conclude(
        self,
        piece: Sequence[SadEntry | SpdEntry],
        indices: Sequence[int],
        replies: Sequence[Reply],
        refused: Mapping[int, DatapathError],
    ) -> tuple[int, DatapathError | None]:
        """How many the kernel has taken, or takes in the place of others of ours."""
        for place, (entry, reply) in enumerate(zip(piece, replies, strict=True)):
            if place in refused:
                return place, refused[place]
            try:
                if isinstance(entry, SadEntry):
                    self._conclude_sa(entry, reply)
                    self._interfaces.note(entry)
                elif reply.unless(errno.EEXIST).error is not None:
                    self._replace_policy(entry, indices[place], reply.request)
            except DatapathError as error:
                return place, error
        return len(piece), None

    def _addition(self, entry: SadEntry | SpdEntry, index: int) -> Request:
        if isinstance(entry, SadEntry):
            return Request(self._asking(entry), Words("add", entry.id), create=True)
        what = Words("add the", entry.direction, "policy", entry.selector)
        return Request(spd.encode_policy(entry, index), what, create=True)

    def _asking(self, entry: SadEntry) -> Message:
        """The message for an SA; with the device to do its work, if that is asked for."""
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
        return message

    def _conclude_sa(self, entry: SadEntry, reply: Reply) -> None:
        """One whose offload is refused goes in without. Some kernels say so, others just do it."""
        wanted = entry.offload is not None
        if wanted and reply.error is not None and reply.error.errno != errno.EEXIST:
            what = reply.request.what
            self._requests.ask(Request(sad.encode_sa(entry), what, create=True))
            self._tell_refusal(entry, str(reply.error))
        else:
            reply.unless()
            if wanted and not sad.is_offloaded(self._our_sa(entry.id, "read it back")):
                self._tell_refusal(entry, "no device on the way to the peer does it")
        self._sas[entry.id] = entry.reqid

    def _tell_refusal(self, entry: SadEntry, reason: str) -> None:
        self._untold.append(OffloadRefused(sa=entry.id, reqid=entry.reqid, reason=reason))

    def _take_back(self, entry: SadEntry | SpdEntry) -> None:
        if isinstance(entry, SadEntry):
            self.remove_sa(entry.id)
        else:
            self.remove_policy(entry)

    def update_sa(self, entry: SadEntry) -> None:
        self._change(entry.id, entry, f"update {entry.id}")
        self._interfaces.note(entry)

    def move_sa(self, sa: SaId, entry: SadEntry) -> None:
        self._change(sa, entry, f"move {sa}")
        self._forget(sa)
        self._sas[entry.id] = entry.reqid
        self._interfaces.note(entry)

    def remove_sa(self, sa: SaId) -> None:
        what = f"remove {sa}"
        self._forget(sa)
        self._compressions.remove(sa)
        with _gone_is_fine():
            state = self._our_sa(sa, what)
            self._requests.ask(Request(sad.encode_sa_id(sa, MessageType.DELSA), what))
            if is_bound(state):
                look_again(self._requests, {state.body["reqid"]})

    def add_policy(self, entry: SpdEntry) -> None:
        self.add([entry])

    def remove_policy(self, entry: SpdEntry) -> None:
        self._ways.remove(entry)
        what = f"remove the {entry.direction} policy {entry.selector}"
        with _gone_is_fine():
            found = self._our_policy(entry, what)
            self._requests.ask(Request(spd.encode_policy_index(found), what))
            self._taken.discard(found.body["index"])

    def refuse_default(self) -> str:
        return self._default.refusal()

    def set_default(self, blocked: frozenset[PolicyDirection]) -> None:
        self._default.set(blocked)

    def usage(self, sa: SaId) -> Usage:
        """Linux 6.1 does not tell the last use: then `seconds_idle` counts from when a packet was
        first seen here to have passed, and is as exact as `usage` is frequent."""
        return self._usage_of(sa, self._our_sa(sa, f"read the usage of {sa}"))

    def seconds_idle(self, sas: Sequence[SaId]) -> tuple[float | None, ...]:
        what = "read the usage of SAs"
        gets = [Request(sad.encode_sa_id(sa, MessageType.GETSA), what) for sa in sas]
        replies = [reply.unless(*GONE).messages for reply in self._requests.exchange(gets)]
        return tuple(
            self._usage_of(sa, found[0]).seconds_idle if found and sad.is_our_sa(found[0]) else None
            for sa, found in zip(sas, replies, strict=True)
        )

    def set_interface(self, interface: TunnelInterface) -> None:
        self._interfaces.set(interface)

    def remove_interface(self, if_id: int) -> None:
        self._interfaces.remove(if_id)

    def keep_interfaces(self, if_ids: Collection[int]) -> None:
        self._interfaces.keep_only(if_ids)

    def interface_state(self, if_id: int) -> InterfaceState | None:
        return self._interfaces.state(if_id)

    def dump(self) -> Dump:
        sad, strange = _sorted_sas(self._compressions.pair(self._dump_sas()))
        policies = self._dump_all_policies()
        ours = [policy for policy in policies if spd.is_our_policy(policy)]
        others = [policy for policy in policies if not spd.is_our_policy(policy)]
        return Dump(
            sad=sad,
            spd=tuple(_readable(spd.decode_policy, ours)),
            strange=strange,
            others=tuple(_readable(spd.decode_policy, others)),
            blocked=self._default.blocked(),
        )

    def ask_again(self, entry: SpdEntry) -> None:
        """The next packet that meets a policy is to ask for an SA, as if none had before.

        For half a minute the kernel takes one that it was told of for the answer to every packet.
        """
        what = f"forget that {entry.selector} has asked for an SA"
        claim = Request(events.encode_acquired_spi(entry, events.LARVAL_SPI), what)
        for larval in self._requests.ask(claim):
            delete = sad.encode_state_id(larval, MessageType.DELSA)
            self._requests.ask(Request(delete, what))

    def find_amiss(self) -> tuple[Difference, ...]:
        ends = self._interfaces.ends()
        return (*self._interfaces.find_amiss(), *self._ways.find_amiss(ends))

    def mend(self, amiss: Difference) -> None:
        match amiss.finding:
            case Finding.INTERFACE_MISSING | Finding.INTERFACE_CHANGED:
                self._interfaces.mend(amiss)
            case Finding.DEFAULT_CHANGED:
                self._default.set_again()
            case Finding.PATH_CHANGED:
                self._follow(amiss.subject)
            case _:
                self._ways.mend(amiss)

    def _follow(self, ends: Subject) -> None:
        assert isinstance(ends, tuple)
        self._interfaces.follow(ends)
        self._ways.follow(ends)

    def remove_ours(self) -> int:
        self._ways.clear()
        self._default.set(frozenset())
        count = remove_ours(self._requests)
        for known in (self._sas, self._seen, self._taken, self._untold):
            known.clear()
        self._interfaces.forget_all()
        self._compressions.forget_all()
        return count

    def fileno(self) -> int:
        return self._events.fileno()

    def read_events(self) -> tuple[Event, ...]:
        events, self._untold = self._untold, []
        while not self._drain(events):
            events += self._missed_events()
        for event in events:
            if isinstance(event, Expired) and event.hard:
                self._forget(event.sa)
                self._compressions.remove(event.sa)
        return tuple(events)

    def revive(self) -> None:
        raise DatapathError("the kernel's is no process")

    def are_resumable(self, entries: Sequence[SadEntry]) -> tuple[bool, ...]:
        """Their sequence numbers are gone with them."""
        return (False,) * len(entries)

    def changes_fileno(self) -> int:
        return self._watch.fileno()

    def read_changes(self) -> Realm:
        return self._watch.read()

    def close(self) -> None:
        # The watch last: the interfaces take their leave of it.
        for held in (self._requests, self._events, self._deletions, self._routes):
            held.close()
        self._shunts.close()
        self._interfaces.close()
        self._watch.close()

    def _adopt(self) -> None:
        """Know what is in force since before this process, and mend its routes."""
        pairs = self._compressions.pair(self._dump_sas())
        for sa, _ in pairs:
            self._sas[sad.decode_sa_id(sa.body)] = sa.body["reqid"]
        for known in _sorted_sas(pairs)[0]:
            self._interfaces.note(known)
        policies = self._dump_policies()
        self._taken.update(policy.body["index"] for policy in policies)
        adopted = [*_readable(spd.decode_policy, policies)]
        self._ways.adopt(adopted)
        self._default.adopt(adopted)
        self._untold = self._missed_events()

    def _forget(self, sa: SaId) -> None:
        self._sas.pop(sa, None)
        self._seen.pop(sa, None)
        self._interfaces.forget(sa)

    def _usage_of(self, sa: SaId, message: Message) -> Usage:
        usage = sad.decode_usage(message, time.time())
        if usage.seconds_idle is not None or not usage.packets:
            return usage
        now = time.monotonic()
        if self._seen.get(sa, (0, now))[0] != usage.packets:
            self._seen[sa] = (usage.packets, now)
        return replace(usage, seconds_idle=now - self._seen[sa][1])

    def _our_sa(self, sa: SaId, what: str) -> Message:
        found = self._requests.ask(Request(sad.encode_sa_id(sa, MessageType.GETSA), what))
        if not found or not sad.is_our_sa(found[0]):
            raise DatapathError(f"cannot {what}: it is another program's", errno.ESRCH)
        return found[0]

    def _change(self, sa: SaId, entry: SadEntry, what: str) -> None:
        old = sad.decode_sa(self._our_sa(sa, what))
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

    def _our_policy(self, entry: SpdEntry, what: str | Words) -> Message:
        get = spd.encode_policy_id(entry, MessageType.GETPOLICY)
        found = self._requests.ask(Request(get, what))
        if not found or not spd.is_our_policy(found[0]):
            raise DatapathError(
                f"cannot {what}: another program has a policy of this direction and selector",
                errno.ENOENT,
            )
        return found[0]

    def _replace_policy(self, entry: SpdEntry, index: int, new: Request) -> None:
        found = self._our_policy(entry, new.what)
        if entry.template is None and found.body["index"] not in spd.OUR_INDICES:
            # A replaced policy keeps its index, and by this one it would not be ours.
            delete = Request(spd.encode_policy_index(found), new.what)
            requests = [delete, new]
        else:
            self._taken.discard(index)
            requests = [Request(spd.encode_policy(entry, replace=True), new.what)]
        for reply in self._requests.exchange(requests):
            reply.unless()

    def _take_index(self, entry: SadEntry | SpdEntry) -> int:
        """An index that marks a policy without a template as ours; 0 for what has a reqid."""
        if isinstance(entry, SadEntry) or entry.template is not None:
            return 0
        candidates = (spd.policy_index(n, entry.direction) for n in itertools.count())
        index = next(index for index in candidates if index not in self._taken)
        self._taken.add(index)
        return index

    def _dump_sas(self) -> list[Message]:
        return [sa for sa in self._dump_states() if not events.is_larval(sa)]

    def _dump_states(self) -> list[Message]:
        """Our SAs, and the larval ones that stand for an acquire of ours."""
        request = Request(Message(type=MessageType.GETSA), "list the SAs", dump=True)
        return [sa for sa in self._requests.ask(request) if sad.is_our_sa(sa)]

    def _dump_policies(self) -> list[Message]:
        return [p for p in self._dump_all_policies() if spd.is_our_policy(p)]

    def _dump_all_policies(self) -> list[Message]:
        message = Message(type=MessageType.GETPOLICY)
        return self._requests.ask(Request(message, "list the policies", dump=True))

    def _drain(self, events: list[Event]) -> bool:
        """Read what waits into `events`; whether nothing was lost before it."""
        try:
            for message in self._events.notifications():
                decode = _EVENTS.get(message.type)
                event = decode(message) if decode is not None else None
                if event is not None:
                    events.append(event)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise DatapathError(f"cannot read the events: {error}", error.errno) from error
            return False
        return True

    def _missed_events(self) -> list[Event]:
        """What the SAD tells of the events that were lost; some may be told twice.

        A change of mapping is told again by the kernel with the next packet.
        """
        states = [state for state in self._dump_states() if not sad.is_compression(state)]
        missed: list[Event] = [events.decode_larval(s) for s in states if events.is_larval(s)]
        alive = {sad.decode_sa_id(s.body): s for s in states if not events.is_larval(s)}
        now = time.time()
        for sa, reqid in self._sas.items():
            if sa not in alive or sad.is_past_soft_limit(alive[sa], now):
                missed.append(Expired(sa=sa, reqid=reqid, hard=sa not in alive))
        return missed


def _may_be_ours(message: Message | None) -> Realm:
    """Whether what is told of may be an SA of ours, or a policy, or one that overrules ours."""
    if message is not None and message.type in (MessageType.NEWSA, MessageType.UPDSA):
        return Realm.ENTRIES if sad.is_our_sa(message) else Realm.NOTHING
    if message is not None and message.type == MessageType.DELSA:
        gone = message.attributes.get(Attribute.SA, {})
        return Realm.ENTRIES if gone.get("reqid") in OUR_REQIDS else Realm.NOTHING
    return Realm.ENTRIES


_ENTRIES = Source(family=XFRM, groups=(Group.SA, Group.POLICY), concerns=_may_be_ours)

_EVENT_GROUPS = (Group.ACQUIRE, Group.EXPIRE, Group.MAPPING)

_PIECE = 100
"""Entries that are put in force, or taken back, together: some twenty tunnels. What more of them
need at a time gets so old that the collector goes through all that there is, again and again."""

_EVENTS: dict[int, Callable[[Message], Event | None]] = {
    MessageType.ACQUIRE: events.decode_acquire,
    MessageType.EXPIRE: events.decode_expire,
    MessageType.MAPPING: events.decode_mapping,
}

_T = TypeVar("_T")


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except DatapathError as error:
        if error.errno not in GONE:
            raise


def _readable(decode: Callable[[Message], _T], messages: Iterable[Message]) -> Iterator[_T]:
    """What can be read; the rest is not of our making."""
    for message in messages:
        with suppress(UnreadableMessage):
            yield decode(message)


def _sorted_sas(
    pairs: Iterable[tuple[Message, Message | None]],
) -> tuple[tuple[SadEntry, ...], tuple[SaId, ...]]:
    """Those that we could have added, and the ids of the others that have our reqid."""
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
