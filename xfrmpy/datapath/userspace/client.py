"""The userspace datapath as the daemon sees it: requests to the worker, routes into its device.

Starting is to take over what a worker of the runtime directory has in force since an earlier
daemon, or to have one made (`process`). `close` leaves it forwarding, `stop` ends it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TypeGuard

from xfrmpy.datapath.interface import (
    Capabilities,
    DatapathError,
    Event,
    NotAdded,
    Realm,
)
from xfrmpy.datapath.inventory import HeldSa, Inventory
from xfrmpy.datapath.links import Links
from xfrmpy.datapath.path_news import PathNews, Quoted
from xfrmpy.datapath.paths import Paths
from xfrmpy.datapath.routes import RouteOwner, Routes
from xfrmpy.datapath.shunt_rules import ShuntRules
from xfrmpy.datapath.tunnel_interfaces import TunnelInterfaces
from xfrmpy.datapath.userspace import requests
from xfrmpy.datapath.userspace.guard import TABLE, Guard
from xfrmpy.datapath.userspace.interfaces import TunMaker
from xfrmpy.datapath.userspace.inventory import held_policy, held_sa
from xfrmpy.datapath.userspace.process import WorkerProcess
from xfrmpy.datapath.userspace.tun import DEVICE, DEVICE_MTU, bring_up
from xfrmpy.datapath.watch import ROUTING, Watch
from xfrmpy.ipsec.addresses import IKE_NATT_PORT
from xfrmpy.ipsec.drift import Difference, Dump, Ends, Finding
from xfrmpy.ipsec.interfaces import InterfaceState, TunnelInterface
from xfrmpy.ipsec.overhead import IPV6_MINIMUM_MTU
from xfrmpy.ipsec.plain import Plain, from_plain, to_plain
from xfrmpy.ipsec.proposals import AH_SUITES, ESP_SUITES
from xfrmpy.ipsec.sad import Direction, DontFragment, Mode, SadEntry, SaId, Usage
from xfrmpy.ipsec.selectors import Selector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry
from xfrmpy.registry import ProtocolId

_NO_BEET = {"beet mode": "the userspace datapath has no BEET mode"}


class UserspaceDatapath:
    """See the module and `Datapath`."""

    name = "userspace"
    ruled = frozenset({Action.BYPASS, Action.DISCARD})

    def __init__(
        self,
        worker: WorkerProcess,
        routes: Routes,
        shunts: ShuntRules,
        guard: Guard,
        links: Links,
        paths: Paths,
        interfaces: TunnelInterfaces,
        watch: Watch,
        natt_port: int,
        news: PathNews,
    ) -> None:
        self._worker = worker
        self._natt_port = natt_port
        self._routes = routes
        self._shunts = shunts
        self._guard = guard
        self._links = links
        self._paths = paths
        self._interfaces = interfaces
        self._watch = watch
        self._news = news
        self._outbound: dict[SaId, SadEntry] = {}
        self._inner_mtu: dict[int, int] = {}
        self._routed: dict[Selector, SpdEntry] = {}
        self._routed_by_reqid: dict[int | None, set[Selector]] = {}
        self._is_empty = False
        self._take_over()
        self._events = worker.listen()

    @classmethod
    def start(cls, runtime_dir: Path, natt_port: int = IKE_NATT_PORT) -> UserspaceDatapath:
        """Join the worker of a runtime directory, made if need be. Raises `DatapathError`.

        The daemon's own sockets on the port that it shares with ESP in UDP must be open: the worker
        opens its behind them.
        """
        with contextlib.ExitStack() as undo:
            routes = undo.enter_context(contextlib.closing(Routes(RouteOwner.USERSPACE)))
            shunts = undo.enter_context(contextlib.closing(_shunt_rules()))
            guard = undo.enter_context(contextlib.closing(Guard(natt_port)))
            links = undo.enter_context(contextlib.closing(Links()))
            worker = WorkerProcess.attach(runtime_dir)
            undo.callback(worker.stop if worker.is_new else worker.close)
            try:
                worker.ask("carry", natt_port)
                source, port = guard.watch()
                paths = Paths(routes)
                interfaces = TunnelInterfaces(TunMaker(worker), RouteOwner.USERSPACE, paths)
                undo.callback(interfaces.close)
                ports = [routes.port, shunts.port, interfaces.port, port]
                watch = Watch([ROUTING, source], ports)
                undo.callback(watch.close)
                interfaces.report_to(watch)
                news = undo.enter_context(contextlib.closing(PathNews(natt_port)))
                watch.heed(news.fileno())
                started = cls(
                    worker, routes, shunts, guard, links, paths, interfaces, watch, natt_port, news
                )
            except DatapathError as error:
                reason = f"the userspace worker cannot be joined: {error}"
                raise DatapathError(reason, error.errno) from error
            undo.pop_all()
        return started

    @classmethod
    def retire(cls, runtime_dir: Path) -> None:
        """Take out of force what is so since an earlier daemon, where this one needs none of it.

        The worker goes on with what it keeps. Raises `DatapathError`.
        """
        with contextlib.closing(Routes(RouteOwner.USERSPACE)) as routes:
            routes.remove_all()
        with contextlib.closing(_shunt_rules()) as shunts:
            shunts.clear()
        with contextlib.closing(Guard()) as guard:
            guard.enforce(())
        worker = WorkerProcess.find(runtime_dir)
        if worker is not None:
            with contextlib.closing(worker):
                worker.ask("shut")

    def probe(self) -> Capabilities:
        """The ciphers are the library's, tried by the daemon's self-test; the rest is ours."""
        refusal = self._worker.ask("raw_refusal")
        has_raw = refusal is None
        return Capabilities(
            protocols=frozenset({ProtocolId.ESP, *((ProtocolId.AH,) if has_raw else ())}),
            modes=frozenset({Mode.TUNNEL, Mode.TRANSPORT}),
            suites=ESP_SUITES | AH_SUITES if has_raw else ESP_SUITES,
            esn=True,
            udp_encapsulation=True,
            raw_esp=has_raw,
            dont_fragment=frozenset(DontFragment),
            interfaces=True,
            compression=True,
            missing=_NO_BEET | ({} if has_raw else dict.fromkeys(("raw esp", "ah"), str(refusal))),
        )

    def add_sa(self, entry: SadEntry) -> None:
        self.add([entry])

    def update_sa(self, entry: SadEntry) -> None:
        mtu = self._mtu_of(entry)
        self._worker.ask("update_sa", to_plain(entry))
        self._note(entry)
        self._set_inner_mtu(entry.reqid, mtu)

    def move_sa(self, sa: SaId, entry: SadEntry) -> None:
        mtu = self._mtu_of(entry)
        self._worker.ask("move_sa", [to_plain(sa), to_plain(entry)])
        self._forget(sa)
        self._note(entry)
        self._set_inner_mtu(entry.reqid, mtu)

    def remove_sa(self, sa: SaId) -> None:
        self._forget(sa)
        self._worker.ask("remove_sa", to_plain(sa))

    def add_policy(self, entry: SpdEntry) -> None:
        """What is not to be protected never meets the worker: rules lead it past the routes into
        the device, or nowhere (`shunt_rules`)."""
        self.add([entry])

    def add(self, entries: Sequence[SadEntry | SpdEntry]) -> None:
        for start in range(0, len(entries), requests.ENTRIES_PER_PACKET):
            self._add_piece(entries[start : start + requests.ENTRIES_PER_PACKET], start)

    def _add_piece(self, entries: Sequence[SadEntry | SpdEntry], start: int) -> None:
        """All that go into one request. They are in force by it, and packets led to them then."""
        try:
            plain = [[type(entry).__name__, to_plain(entry)] for entry in entries]
            told = self._worker.ask("add", plain)
        except DatapathError as error:
            raise NotAdded(start, error) from error
        assert isinstance(told, dict)
        added = entries[: told["done"]]
        try:
            self._guard.add(filter(_is_guarded, added))
        except DatapathError as error:
            self._take_back(added)
            raise NotAdded(start, error) from error
        for done, entry in enumerate(added):
            try:
                self._lead_to(entry)
            except DatapathError as error:
                self._take_back(added[done:])
                raise NotAdded(start + done, error) from error
        if len(added) < len(entries):
            raise NotAdded(start + len(added), DatapathError(told["error"], told["errno"]))

    def _lead_to(self, entry: SadEntry | SpdEntry) -> None:
        """What an entry in force changes outside of the worker, beside the guard."""
        if isinstance(entry, SadEntry):
            self._set_inner_mtu(entry.reqid, self._mtu_of(entry))
            self._note(entry)
        elif entry.direction is PolicyDirection.OUT and not entry.if_id:
            if entry.action is Action.PROTECT:
                self._shunts.remove(entry)
                self._add_route(entry)
            else:
                self._shunts.add(entry)
                self._remove_route(entry)

    def _take_back(self, entries: Sequence[SadEntry | SpdEntry]) -> None:
        for entry in entries:
            if isinstance(entry, SadEntry):
                self.remove_sa(entry.id)
            else:
                self.remove_policy(entry)

    def remove_policy(self, entry: SpdEntry) -> None:
        if _is_guarded(entry):
            self._guard.remove(entry)
        elif not entry.if_id:
            self._remove_route(entry)
            self._shunts.remove(entry)
        self._worker.ask("remove_policy", to_plain(entry))

    def usage(self, sa: SaId) -> Usage:
        return from_plain(Usage, self._worker.ask("usage", to_plain(sa)))

    def seconds_idle(self, sas: Sequence[SaId]) -> tuple[float | None, ...]:
        answers: list[float | None] = []
        for start in range(0, len(sas), requests.IDS_PER_PACKET):
            piece = sas[start : start + requests.IDS_PER_PACKET]
            plain = self._worker.ask("seconds_idle", [requests.name_of(sa) for sa in piece])
            answers += from_plain(tuple[float | None, ...], plain)
        return tuple(answers)

    def confirm(self) -> None:
        """Raises `DatapathError` if the worker does not answer."""
        self._worker.ask("hello")

    def drops(self) -> dict[str, int]:
        counts = self._worker.ask("drops")
        assert isinstance(counts, dict)
        return counts

    def set_interface(self, interface: TunnelInterface) -> None:
        self._interfaces.set(interface)

    def remove_interface(self, if_id: int) -> None:
        self._interfaces.remove(if_id)

    def keep_interfaces(self, if_ids: Collection[int]) -> None:
        self._interfaces.keep_only(if_ids)

    def interface_state(self, if_id: int) -> InterfaceState | None:
        return self._interfaces.state(if_id)

    def dump(self) -> Dump:
        tables: dict[str, list[Plain]] = {"sad": [], "spd": []}
        for piece in self._worker.ask_all("dump"):
            tables[piece["table"]] += piece["entries"]
        return Dump(
            sad=tuple(from_plain(SadEntry, plain) for plain in tables["sad"]),
            spd=tuple(from_plain(SpdEntry, plain) for plain in tables["spd"]),
        )

    def inventory(self) -> Inventory:
        """What the worker has in force, and its counters of drops; its device is the host's."""
        dump = self.dump()
        sas: list[HeldSa] = []
        for start in range(0, len(dump.sad), requests.SURVEYED_PER_PACKET):
            piece = dump.sad[start : start + requests.SURVEYED_PER_PACKET]
            told = self._worker.ask("survey", to_plain(tuple(entry.id for entry in piece)))
            assert isinstance(told, list)
            for entry, known in zip(piece, told, strict=True):
                if known is not None:
                    sas.append(held_sa(entry, from_plain(Usage, known[1]), known[0]))
        policies = tuple(map(held_policy, dump.spd))
        return Inventory(sas=tuple(sas), policies=policies, errors=self.drops())

    def find_amiss(self) -> tuple[Difference, ...]:
        ends = (_ends(entry) for entry in self._outbound.values())
        found = [
            *self._find_device_amiss(),
            *self._interfaces.find_amiss(),
            *self._paths.find_amiss(ends),
        ]
        if self._guard.is_doubtful:
            what = f"nf_tables' table {TABLE.name}"
            found.append(Difference(finding=Finding.GUARD_CHANGED, what=what))
        return (*found, *self._routes.find_amiss(), *self._shunts.find_amiss())

    def _find_device_amiss(self) -> Iterator[Difference]:
        try:
            device = self._links.named(DEVICE)
        except DatapathError as error:
            if error.errno != errno.ENODEV:
                raise
            yield Difference(finding=Finding.DEVICE_MISSING, what=f"the device {DEVICE}")
            return
        if not device.is_up or device.mtu != DEVICE_MTU:
            yield Difference(finding=Finding.DEVICE_CHANGED, what=f"the device {DEVICE}")

    def mend(self, amiss: Difference) -> None:
        match amiss.finding:
            case Finding.DEVICE_MISSING | Finding.DEVICE_CHANGED:
                self._mend_device()
            case Finding.GUARD_CHANGED:
                self._guard.renew()
            case Finding.SHUNT_RULES_CHANGED:
                self._shunts.mend()
            case Finding.INTERFACE_MISSING | Finding.INTERFACE_CHANGED:
                self._interfaces.mend(amiss)
            case Finding.PATH_CHANGED:
                assert isinstance(amiss.subject, tuple)
                self._interfaces.follow(amiss.subject)
                for entry in tuple(self._outbound.values()):
                    if _ends(entry) == amiss.subject:
                        self._set_inner_mtu(entry.reqid, self._mtu_of(entry))
            case _:
                self._routes.mend(amiss)

    def _mend_device(self) -> None:
        """The worker, who alone can, makes another for one that was removed."""
        try:
            bring_up()
        except OSError as error:
            reason = f"cannot bring {DEVICE} up: {error.strerror}"
            raise DatapathError(reason, error.errno) from error

    def remove_ours(self) -> int:
        self._routes.remove_all()
        self._shunts.clear()
        self._guard.enforce(())
        self._routed.clear()
        self._routed_by_reqid.clear()
        self._outbound.clear()
        self._inner_mtu.clear()
        self._interfaces.forget_all()
        count = self._worker.ask("remove_all")
        assert isinstance(count, int)
        return count

    def fileno(self) -> int:
        return self._events.fileno()

    def read_events(self) -> tuple[Event, ...]:
        events: list[Event] = []
        try:
            while packet := self._events.recv(requests.MAX_PACKET):
                events.append(requests.decode_event(packet))
        except BlockingIOError:
            return tuple(events)
        except OSError:
            pass
        self._mute()
        words = self._worker.last_words()
        said = f"; its last words: {words}" if words else ""
        raise DatapathError(f"the userspace worker has ended{said}")

    def revive(self) -> None:
        """Routes and rules are as before, and what is amiss with them will be found."""
        self._events.close()
        self._worker.begin_anew()
        self._worker.ask("carry", self._natt_port)
        self._events = self._worker.listen()
        self._is_empty = True

    def are_resumable(self, entries: Sequence[SadEntry]) -> tuple[bool, ...]:
        answers: list[bool] = []
        for start in range(0, len(entries), requests.ENTRIES_PER_PACKET):
            piece = tuple(entries[start : start + requests.ENTRIES_PER_PACKET])
            answers += from_plain(tuple[bool, ...], self._worker.ask("resumable", to_plain(piece)))
        return tuple(answers)

    def changes_fileno(self) -> int:
        return self._watch.fileno()

    def read_changes(self) -> Realm:
        """Nobody but we can change what the worker has; but it may have ended."""
        changed = self._watch.read()
        if self._news.read(self._has_sent):
            changed |= Realm.WAYS
        if self._is_empty:
            self._is_empty = False
            changed |= Realm.ENTRIES
        return changed

    def _has_sent(self, quoted: Quoted) -> bool:
        """Whether the packet may have been ours: of this SA, or between the ends of one."""
        if quoted.spi is None:
            ends = quoted.source, quoted.destination
            return any(_ends(entry) == ends for entry in self._outbound.values())
        sa = SaId(spi=quoted.spi, protocol=quoted.protocol, destination=quoted.destination)
        entry = self._outbound.get(sa)
        return entry is not None and entry.source == quoted.source

    def close(self) -> None:
        self._events.close()
        self._worker.close()
        # The watch last: the interfaces take their leave of it.
        for held in (
            *(self._routes, self._shunts, self._guard),
            *(self._links, self._interfaces, self._watch, self._news),
        ):
            held.close()

    def stop(self) -> None:
        """End the worker, and with it its device and routes."""
        with contextlib.suppress(DatapathError):
            self._routes.remove_all()
        with contextlib.suppress(DatapathError):
            self._shunts.clear()
        with contextlib.suppress(DatapathError):
            self._guard.enforce(())
        self._worker.stop()
        self.close()

    def _mute(self) -> None:
        """The end of a connection is readable for ever; whoever polls `fileno` need not be."""
        silence = os.eventfd(0)
        os.dup2(silence, self._events.fileno(), inheritable=False)
        os.close(silence)

    # Routes.

    def _take_over(self) -> None:
        """Know of the entries in force what a predecessor knew, and mend their routes."""
        dump = self.dump()
        for sa in dump.sad:
            self._note(sa)
            with contextlib.suppress(DatapathError):  # No way to the peer at the moment.
                self._set_inner_mtu(sa.reqid, self._mtu_of(sa))
        self._guard.enforce(filter(_is_guarded, dump.spd))
        for policy in dump.spd:
            is_led = policy.direction is PolicyDirection.OUT and not policy.if_id
            if is_led and policy.action is Action.PROTECT:
                self._add_route(policy)
        self._shunts.claim(dump.spd)
        self._routes.remove_unclaimed()

    def _add_route(self, entry: SpdEntry) -> None:
        """Lead packets to the device."""
        reqid = _reqid_of(entry)
        mtu = None if reqid is None else self._inner_mtu.get(reqid)
        destination = entry.selector.destination
        if mtu is not None and destination.version == 6:
            mtu = max(mtu, IPV6_MINIMUM_MTU)
        self._routes.add(destination, local=entry.selector.source, via=DEVICE, mtu=mtu)
        self._remove_route(entry)  # It counts how often it was added.
        self._routed[entry.selector] = entry
        self._routed_by_reqid.setdefault(reqid, set()).add(entry.selector)

    def _remove_route(self, entry: SpdEntry) -> None:
        old = self._routed.pop(entry.selector, None)
        if old is None:
            return
        selectors = self._routed_by_reqid[_reqid_of(old)]
        selectors.remove(entry.selector)
        if not selectors:
            del self._routed_by_reqid[_reqid_of(old)]
        self._routes.remove(entry.selector.destination)

    def _set_inner_mtu(self, reqid: int, mtu: int | None) -> None:
        """Routes that are there follow a rekey to another suite, and a move of the peer."""
        if mtu is None or self._inner_mtu.get(reqid) == mtu:
            return
        self._inner_mtu[reqid] = mtu
        if any(entry.tfc for entry in self._outbound.values() if entry.reqid == reqid):
            self._worker.ask("set_room", [reqid, mtu])
        for selector in tuple(self._routed_by_reqid.get(reqid, ())):
            self._add_route(self._routed[selector])

    def _forget(self, sa: SaId) -> None:
        self._outbound.pop(sa, None)
        self._interfaces.forget(sa)

    def _note(self, entry: SadEntry) -> None:
        """It is in force, and its peer's packets go where the path of an outbound one leads."""
        if entry.direction is Direction.OUT:
            self._outbound[entry.id] = entry
            self._interfaces.note(entry)
            if entry.tfc and entry.reqid in self._inner_mtu:
                self._worker.ask("set_room", [entry.reqid, self._inner_mtu[entry.reqid]])

    def _mtu_of(self, entry: SadEntry) -> int | None:
        """What fits through this SA, by the path that its outer packets take; not of an inbound."""
        if entry.direction is Direction.IN:
            return None
        return self._paths.inner_mtu(entry)


def _shunt_rules() -> ShuntRules:
    return ShuntRules(RouteOwner.USERSPACE, UserspaceDatapath.ruled)


def _is_guarded(entry: SadEntry | SpdEntry) -> TypeGuard[SpdEntry]:
    """Whether it judges what comes in; what comes by an interface has met its policies already."""
    is_policy = isinstance(entry, SpdEntry) and entry.direction is not PolicyDirection.OUT
    return is_policy and not entry.if_id


def _ends(entry: SadEntry) -> Ends:
    return entry.source, entry.destination


def _reqid_of(entry: SpdEntry) -> int | None:
    return None if entry.template is None else entry.template.reqid
