"""The userspace datapath as the daemon sees it: requests to the workers, routes into their device.

Starting is to take over what the workers of the runtime directory have in force since an earlier
daemon, or to have some made (`workers`). `close` leaves them forwarding, `stop` ends them.
"""

from __future__ import annotations

import contextlib
import errno
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
from xfrmpy.datapath.inventory import Inventory
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
from xfrmpy.datapath.userspace.queues import Queues, remove_rules
from xfrmpy.datapath.userspace.tun import DEVICE, DEVICE_MTU, bring_up
from xfrmpy.datapath.userspace.workers import Workers, end_surplus
from xfrmpy.datapath.watch import ROUTING, Watch
from xfrmpy.ipsec.addresses import IKE_NATT_PORT
from xfrmpy.ipsec.drift import Difference, Dump, Ends, Finding
from xfrmpy.ipsec.interfaces import InterfaceState, TunnelInterface
from xfrmpy.ipsec.overhead import IPV6_MINIMUM_MTU
from xfrmpy.ipsec.plain import from_plain, to_plain
from xfrmpy.ipsec.proposals import AH_SUITES, ESP_SUITES
from xfrmpy.ipsec.sad import Direction, DontFragment, Mode, SadEntry, SaId, Usage
from xfrmpy.ipsec.selectors import Selector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry
from xfrmpy.registry import ProtocolId

_MISSING = {
    "beet mode": "the userspace datapath has no BEET mode",
    "iptfs mode": "the userspace datapath has no IP-TFS",
}


class UserspaceDatapath:
    """See the module and `Datapath`."""

    name = "userspace"
    ruled = frozenset({Action.BYPASS, Action.DISCARD})

    def __init__(
        self,
        workers: Workers,
        routes: Routes,
        shunts: ShuntRules,
        guard: Guard,
        queues: Queues,
        links: Links,
        paths: Paths,
        interfaces: TunnelInterfaces,
        watch: Watch,
        news: PathNews,
    ) -> None:
        self._workers = workers
        self._routes = routes
        self._shunts = shunts
        self._guard = guard
        self._queues = queues
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
        workers.listen()

    @classmethod
    def start(
        cls,
        runtime_dir: Path,
        natt_port: int = IKE_NATT_PORT,
        workers: int = 1,
        *,
        are_in_place: bool = False,
    ) -> UserspaceDatapath:
        """Join so many workers of a runtime directory, made if need be. Raises `DatapathError`.

        The daemon's own sockets on the port that it shares with ESP in UDP must be open: workers
        open theirs behind them, again if these are not `are_in_place` since an earlier daemon.
        """
        with contextlib.ExitStack() as undo:
            routes = undo.enter_context(contextlib.closing(Routes(RouteOwner.USERSPACE)))
            shunts = undo.enter_context(contextlib.closing(_shunt_rules()))
            guard = undo.enter_context(contextlib.closing(Guard(natt_port)))
            links = undo.enter_context(contextlib.closing(Links()))
            joined = Workers.attach(runtime_dir, workers)
            undo.callback(joined.give_up)
            try:
                joined.carry(natt_port, are_in_place=are_in_place)
                queues = undo.enter_context(contextlib.closing(Queues(joined, links)))
                watched = guard.watch(), queues.watch()
                paths = Paths(routes)
                interfaces = TunnelInterfaces(TunMaker(joined), RouteOwner.USERSPACE, paths)
                undo.callback(interfaces.close)
                ports = [routes.port, shunts.port, interfaces.port, *(port for _, port in watched)]
                watch = Watch([ROUTING, *(source for source, _ in watched)], ports)
                undo.callback(watch.close)
                interfaces.report_to(watch)
                news = undo.enter_context(contextlib.closing(PathNews(natt_port)))
                watch.heed(news.fileno())
                watch.heed(queues.fileno())
                started = cls(
                    *(joined, routes, shunts, guard, queues, links, paths, interfaces, watch, news)
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
        with contextlib.suppress(DatapathError):  # Of a family that some kernels have not.
            remove_rules()
        end_surplus(runtime_dir, 1)
        worker = WorkerProcess.find(runtime_dir)
        if worker is not None:
            with contextlib.closing(worker):
                worker.ask("shut")

    def probe(self) -> Capabilities:
        """The ciphers are the library's, tried by the daemon's self-test; the rest is ours."""
        refusal = self._workers.ask("raw_refusal")
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
            missing=_MISSING | ({} if has_raw else dict.fromkeys(("raw esp", "ah"), str(refusal))),
        )

    def add_sa(self, entry: SadEntry) -> None:
        self.add([entry])

    def update_sa(self, entry: SadEntry) -> None:
        mtu = self._mtu_of(entry)
        self._workers.update_sa(entry)
        self._note(entry)
        self._set_inner_mtu(entry.reqid, mtu)

    def move_sa(self, sa: SaId, entry: SadEntry) -> None:
        mtu = self._mtu_of(entry)
        self._workers.move_sa(sa, entry)
        self._forget(sa)
        self._note(entry)
        self._set_inner_mtu(entry.reqid, mtu)

    def remove_sa(self, sa: SaId) -> None:
        self._forget(sa)
        self._workers.remove_sa(sa)

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
            done, refused = self._workers.add(entries)
        except DatapathError as error:
            raise NotAdded(start, error) from error
        added = entries[:done]
        try:
            self._guard.add(filter(_is_guarded, added))
        except DatapathError as error:
            self._take_back(added)
            raise NotAdded(start, error) from error
        for led, entry in enumerate(added):
            try:
                self._lead_to(entry)
            except DatapathError as error:
                self._take_back(added[led:])
                raise NotAdded(start + led, error) from error
        self._queues.follow(added)
        if refused is not None:
            raise NotAdded(start + done, refused)

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
        self._workers.remove_policy(entry)
        self._queues.forget(entry)

    def refuse_default(self) -> str:
        return "it is the kernel's, which would drop what goes through the workers' device, too"

    def set_default(self, blocked: frozenset[PolicyDirection]) -> None:
        if blocked:
            raise DatapathError(f"the default policy: {self.refuse_default()}", errno.EOPNOTSUPP)

    def usage(self, sa: SaId) -> Usage:
        return from_plain(Usage, self._workers.usage(sa))

    def seconds_idle(self, sas: Sequence[SaId]) -> tuple[float | None, ...]:
        plain = self._workers.ask_of("seconds_idle", sas, requests.IDS_PER_PACKET, requests.name_of)
        return from_plain(tuple[float | None, ...], plain)

    def confirm(self) -> None:
        """Raises `DatapathError` if a worker does not answer."""
        self._workers.ask_each("hello")

    def drops(self) -> dict[str, int]:
        return self._workers.drops()

    def set_interface(self, interface: TunnelInterface) -> None:
        self._interfaces.set(interface)

    def remove_interface(self, if_id: int) -> None:
        self._interfaces.remove(if_id)

    def keep_interfaces(self, if_ids: Collection[int]) -> None:
        self._interfaces.keep_only(if_ids)

    def interface_state(self, if_id: int) -> InterfaceState | None:
        return self._interfaces.state(if_id)

    def dump(self) -> Dump:
        return self._workers.dump()

    def inventory(self) -> Inventory:
        """What is in force, and the counters of drops; the workers' device is the host's."""
        dump = self.dump()
        ids = [entry.id for entry in dump.sad]
        told = self._workers.ask_of("survey", ids, requests.SURVEYED_PER_PACKET, to_plain)
        sas = [
            held_sa(entry, from_plain(Usage, known[1]), known[0])
            for entry, known in zip(dump.sad, told, strict=True)
            if known is not None
        ]
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
        found += self._queues.find_amiss()
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
            case Finding.QUEUES_MISSING | Finding.QUEUES_CHANGED:
                self._queues.mend()
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
        self._queues.clear()
        return self._workers.remove_all()

    def fileno(self) -> int:
        return self._workers.fileno()

    def read_events(self) -> tuple[Event, ...]:
        return self._workers.read_events()

    def revive(self) -> None:
        """Routes and rules are as before, and what is amiss with them will be found."""
        self._workers.revive()
        self._queues.revive()
        self._is_empty = True

    def are_resumable(self, entries: Sequence[SadEntry]) -> tuple[bool, ...]:
        return tuple(self._workers.are_resumable(entries))

    def changes_fileno(self) -> int:
        return self._watch.fileno()

    def read_changes(self) -> Realm:
        """Nobody but we can change what a worker has; but it may have ended."""
        changed = self._watch.read()
        if self._news.read(self._has_sent) or self._queues.read_news():
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
        self._workers.close()
        self._close_ours()

    def _close_ours(self) -> None:
        # The watch last: the interfaces take their leave of it.
        for held in (
            *(self._routes, self._shunts, self._guard, self._queues),
            *(self._links, self._interfaces, self._watch, self._news),
        ):
            held.close()

    def stop(self) -> None:
        """End the workers, and with them their device and routes."""
        with contextlib.suppress(DatapathError):
            self._routes.remove_all()
        with contextlib.suppress(DatapathError):
            self._shunts.clear()
        with contextlib.suppress(DatapathError):
            self._guard.enforce(())
        self._queues.clear()
        self._workers.stop()
        self._close_ours()

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
        self._queues.take_over(dump.spd)
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
            self._workers.set_room(reqid, mtu)
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
                self._workers.set_room(entry.reqid, self._inner_mtu[entry.reqid])

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
