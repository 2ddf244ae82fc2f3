"""The userspace datapath as the daemon sees it: requests to the workers, routes into their device.

Starting is to take over what the workers of the runtime directory have in force since an earlier
daemon, or to have some made (`workers`). `close` leaves them forwarding, `stop` ends them.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator, Sequence
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
from xfrmpy.datapath.path_news import PathNews
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
from xfrmpy.datapath.userspace.ways import DeviceWays
from xfrmpy.datapath.userspace.workers import Workers, end_surplus
from xfrmpy.datapath.watch import ROUTING, Watch
from xfrmpy.ipsec.addresses import IKE_NATT_PORT
from xfrmpy.ipsec.drift import Difference, Dump, Finding
from xfrmpy.ipsec.plain import from_plain, to_plain
from xfrmpy.ipsec.proposals import AH_SUITES, ESP_SUITES
from xfrmpy.ipsec.sad import DontFragment, Mode, SadEntry, SaId, Usage
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
        self.interfaces = interfaces
        self.default_policy = NoDefaultPolicy()
        self._watch = watch
        self._news = news
        self._ways = DeviceWays(workers, routes, shunts, paths, interfaces)
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
        mtu = self._ways.inner_mtu(entry)
        self._workers.update_sa(entry)
        self._ways.note(entry)
        self._ways.fit(entry.reqid, mtu)

    def move_sa(self, sa: SaId, entry: SadEntry) -> None:
        mtu = self._ways.inner_mtu(entry)
        self._workers.move_sa(sa, entry)
        self._ways.forget(sa)
        self._ways.note(entry)
        self._ways.fit(entry.reqid, mtu)

    def remove_sa(self, sa: SaId) -> None:
        self._ways.forget(sa)
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
                self._ways.lead_to(entry)
            except DatapathError as error:
                self._take_back(added[led:])
                raise NotAdded(start + led, error) from error
        self._queues.follow(added)
        if refused is not None:
            raise NotAdded(start + done, refused)

    def _take_back(self, entries: Sequence[SadEntry | SpdEntry]) -> None:
        for entry in entries:
            if isinstance(entry, SadEntry):
                self.remove_sa(entry.id)
            else:
                self.remove_policy(entry)

    def remove_policy(self, entry: SpdEntry) -> None:
        if _is_guarded(entry):
            self._guard.remove(entry)
        self._ways.remove(entry)
        self._workers.remove_policy(entry)
        self._queues.forget(entry)

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
        found = [
            *self._find_device_amiss(),
            *self.interfaces.find_amiss(),
            *self._ways.find_amiss_paths(),
        ]
        if self._guard.is_doubtful:
            what = f"nf_tables' table {TABLE.name}"
            found.append(Difference(finding=Finding.GUARD_CHANGED, what=what))
        found += self._queues.find_amiss()
        return (*found, *self._ways.find_amiss())

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
            case Finding.INTERFACE_MISSING | Finding.INTERFACE_CHANGED:
                self.interfaces.mend(amiss)
            case Finding.PATH_CHANGED:
                assert isinstance(amiss.subject, tuple)
                self.interfaces.follow(amiss.subject)
                self._ways.follow(amiss.subject)
            case _:
                self._ways.mend(amiss)

    def _mend_device(self) -> None:
        """The worker, who alone can, makes another for one that was removed."""
        try:
            bring_up()
        except OSError as error:
            reason = f"cannot bring {DEVICE} up: {error.strerror}"
            raise DatapathError(reason, error.errno) from error

    def remove_ours(self) -> int:
        self._ways.clear()
        self._guard.enforce(())
        self.interfaces.forget_all()
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
        if self._news.read(self._ways.has_sent) or self._queues.read_news():
            changed |= Realm.WAYS
        if self._is_empty:
            self._is_empty = False
            changed |= Realm.ENTRIES
        return changed

    def close(self) -> None:
        self._workers.close()
        self._close_ours()

    def _close_ours(self) -> None:
        # The watch last: the interfaces take their leave of it.
        for held in (
            *(self._routes, self._shunts, self._guard, self._queues),
            *(self._links, self.interfaces, self._watch, self._news),
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

    def _take_over(self) -> None:
        """Know of the entries in force what a predecessor knew, and mend what leads to them."""
        dump = self.dump()
        self._guard.enforce(filter(_is_guarded, dump.spd))
        self._ways.adopt(dump)
        self._queues.take_over(dump.spd)


class NoDefaultPolicy:
    """See `DefaultPolicy`."""

    def refusal(self) -> str:
        return "it is the kernel's, which would drop what goes through the workers' device, too"

    def set(self, blocked: frozenset[PolicyDirection]) -> None:
        if blocked:
            raise DatapathError(f"the default policy: {self.refusal()}", errno.EOPNOTSUPP)


def _shunt_rules() -> ShuntRules:
    return ShuntRules(RouteOwner.USERSPACE, UserspaceDatapath.ruled)


def _is_guarded(entry: SadEntry | SpdEntry) -> TypeGuard[SpdEntry]:
    """Whether it judges what comes in; what comes by an interface has met its policies already."""
    is_policy = isinstance(entry, SpdEntry) and entry.direction is not PolicyDirection.OUT
    return is_policy and not entry.if_id
