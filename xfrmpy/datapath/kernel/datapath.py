"""The kernel as a datapath: XFRM does ESP, we keep its SAD and SPD.

Nothing is ever flushed; an object that is not ours is neither replaced nor removed, whatever its id
or selector. Each job is another object's: `sad_in_force.py`, `spd_in_force.py`, `additions.py` for
both together, `event_queue.py`, `default_policy.py` and `interfaces.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

from xfrmpy.datapath.interface import Capabilities, DatapathError, Event, Realm
from xfrmpy.datapath.kernel import sad
from xfrmpy.datapath.kernel.additions import Additions
from xfrmpy.datapath.kernel.compression import Compressions
from xfrmpy.datapath.kernel.default_policy import DefaultPolicy
from xfrmpy.datapath.kernel.event_queue import EVENT_GROUPS, EventQueue
from xfrmpy.datapath.kernel.features import PER_CPU, probe_features
from xfrmpy.datapath.kernel.interfaces import XfrmMaker
from xfrmpy.datapath.kernel.messages import XFRM, Attribute, Group, MessageType
from xfrmpy.datapath.kernel.probe import probe
from xfrmpy.datapath.kernel.removal import remove_ours
from xfrmpy.datapath.kernel.sad_in_force import SadInForce
from xfrmpy.datapath.kernel.spd_in_force import SpdInForce
from xfrmpy.datapath.kernel.ways import PolicyWays
from xfrmpy.datapath.netlink.messages import Message
from xfrmpy.datapath.netlink.socket import NetlinkSocket
from xfrmpy.datapath.paths import Paths
from xfrmpy.datapath.routes import RouteOwner, Routes
from xfrmpy.datapath.shunt_rules import ShuntRules
from xfrmpy.datapath.tunnel_interfaces import TunnelInterfaces
from xfrmpy.datapath.watch import ROUTING, Source, Watch
from xfrmpy.ipsec.drift import Difference, Dump, Finding
from xfrmpy.ipsec.sad import OUR_REQIDS, SadEntry, SaId, Usage
from xfrmpy.ipsec.spd import Action, SpdEntry


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
        self.interfaces = interfaces
        self._watch = watch
        self.default_policy = DefaultPolicy(requests)
        self._ways = PolicyWays(routes, shunts, paths)
        compressions = Compressions(requests)
        self._sad = SadInForce(requests, deletions, compressions, routes, interfaces)
        self._spd = SpdInForce(requests, self._ways)
        self._additions = Additions(requests, self._sad, self._spd, compressions, self._ways)
        self._queue = EventQueue(events, self._sad)

    @classmethod
    def open(cls) -> KernelDatapath:
        """Raises `DatapathError` where the kernel has no XFRM, or we have no right to it.

        What an earlier process left in force is taken over, with its routes.
        """
        with ExitStack() as stack:
            requests = stack.enter_context(closing(NetlinkSocket(XFRM)))
            events = stack.enter_context(closing(NetlinkSocket(XFRM, EVENT_GROUPS)))
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
        lacks = {"resources": features[PER_CPU], "interfaces": self.interfaces.probe()}
        missing = found.missing | {what: reason for what, reason in lacks.items() if reason}
        return replace(found, interfaces=not lacks["interfaces"], missing=missing)

    def add_sa(self, entry: SadEntry) -> None:
        self.add([entry])

    def add(self, entries: Sequence[SadEntry | SpdEntry]) -> None:
        """Of a hundred together in which one is refused, those behind it come to be and go."""
        self._additions.add(entries)

    def update_sa(self, entry: SadEntry) -> None:
        self._sad.update(entry)

    def move_sa(self, sa: SaId, entry: SadEntry) -> None:
        self._sad.move(sa, entry)

    def remove_sa(self, sa: SaId) -> None:
        self._sad.remove(sa)

    def add_policy(self, entry: SpdEntry) -> None:
        self.add([entry])

    def remove_policy(self, entry: SpdEntry) -> None:
        self._spd.remove(entry)

    def usage(self, sa: SaId) -> Usage:
        return self._sad.usage(sa)

    def seconds_idle(self, sas: Sequence[SaId]) -> tuple[float | None, ...]:
        return self._sad.seconds_idle(sas)

    def dump(self) -> Dump:
        entries, strange = self._sad.dump()
        policies, others = self._spd.dump()
        return Dump(
            sad=entries,
            spd=policies,
            strange=strange,
            others=others,
            blocked=self.default_policy.blocked(),
        )

    def ask_again(self, entry: SpdEntry) -> None:
        """The next packet that meets a policy is to ask for an SA, as if none had before."""
        self._sad.forget_acquire(entry)

    def find_amiss(self) -> tuple[Difference, ...]:
        ends = self.interfaces.ends()
        return (*self.interfaces.find_amiss(), *self._ways.find_amiss(ends))

    def mend(self, amiss: Difference) -> None:
        match amiss.finding:
            case Finding.INTERFACE_MISSING | Finding.INTERFACE_CHANGED:
                self.interfaces.mend(amiss)
            case Finding.DEFAULT_CHANGED:
                self.default_policy.set_again()
            case Finding.PATH_CHANGED:
                assert isinstance(amiss.subject, tuple)
                self.interfaces.follow(amiss.subject)
                self._ways.follow(amiss.subject)
            case _:
                self._ways.mend(amiss)

    def remove_ours(self) -> int:
        self._ways.clear()
        self.default_policy.set(frozenset())
        count = remove_ours(self._requests)
        for known in (self._sad, self._spd, self._queue):
            known.forget_all()
        return count

    def fileno(self) -> int:
        return self._queue.fileno()

    def read_events(self) -> tuple[Event, ...]:
        return self._queue.read()

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
        self.interfaces.close()
        self._watch.close()

    def _adopt(self) -> None:
        """Know what is in force since before this process, and mend its routes."""
        self._sad.adopt()
        self.default_policy.adopt(self._spd.adopt())
        self._queue.recall()


def _may_be_ours(message: Message | None) -> Realm:
    """Whether what is told of may be an SA of ours, or a policy, or one that overrules ours."""
    if message is not None and message.type in (MessageType.NEWSA, MessageType.UPDSA):
        return Realm.ENTRIES if sad.is_our_sa(message) else Realm.NOTHING
    if message is not None and message.type == MessageType.DELSA:
        gone = message.attributes.get(Attribute.SA, {})
        return Realm.ENTRIES if gone.get("reqid") in OUR_REQIDS else Realm.NOTHING
    return Realm.ENTRIES


_ENTRIES = Source(family=XFRM, groups=(Group.SA, Group.POLICY), concerns=_may_be_ours)
