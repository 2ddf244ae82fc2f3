"""What leads packets to the policies that the workers have in force, or past their device.

A PROTECT entry has a route into the device, with the MTU of what fits through the SAs of its reqid;
a BYPASS or DISCARD has rules (`shunt_rules.py`). What goes into an interface of a tunnel is led
there by others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.path_news import Quoted
from xfrmpy.datapath.paths import Paths
from xfrmpy.datapath.routes import Routes
from xfrmpy.datapath.shunt_rules import ShuntRules
from xfrmpy.datapath.tunnel_interfaces import TunnelInterfaces
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.datapath.userspace.workers import Workers
from xfrmpy.ipsec.drift import Difference, Dump, Ends, Finding
from xfrmpy.ipsec.overhead import IPV6_MINIMUM_MTU
from xfrmpy.ipsec.sad import Direction, SadEntry, SaId
from xfrmpy.ipsec.selectors import Selector
from xfrmpy.ipsec.spd import Action, SpdEntry


class DeviceWays:
    """See the module. What is given is the caller's, who closes it. Methods may raise
    `DatapathError`.
    """

    def __init__(
        self,
        workers: Workers,
        routes: Routes,
        shunts: ShuntRules,
        paths: Paths,
        interfaces: TunnelInterfaces,
    ) -> None:
        self._workers = workers
        self._routes = routes
        self._shunts = shunts
        self._paths = paths
        self._interfaces = interfaces
        self._outbound: dict[SaId, SadEntry] = {}
        self._inner_mtu: dict[int, int] = {}
        self._routed: dict[Selector, SpdEntry] = {}
        self._routed_by_reqid: dict[int | None, set[Selector]] = {}

    # SAs.

    def inner_mtu(self, entry: SadEntry) -> int | None:
        """What fits through this SA, by the path that its outer packets take; not of an inbound."""
        if entry.direction is Direction.IN:
            return None
        return self._paths.inner_mtu(entry)

    def note(self, entry: SadEntry) -> None:
        """It is in force, and its peer's packets go where the path of an outbound one leads."""
        if entry.direction is Direction.OUT:
            self._outbound[entry.id] = entry
            self._interfaces.note(entry)
            if entry.tfc and entry.reqid in self._inner_mtu:
                self._workers.set_room(entry.reqid, self._inner_mtu[entry.reqid])

    def forget(self, sa: SaId) -> None:
        """It is in force no more."""
        self._outbound.pop(sa, None)
        self._interfaces.forget(sa)

    def fit(self, reqid: int, mtu: int | None) -> None:
        """Routes that are there follow a rekey to another suite, and a move of the peer."""
        if mtu is None or self._inner_mtu.get(reqid) == mtu:
            return
        self._inner_mtu[reqid] = mtu
        if any(entry.tfc for entry in self._outbound.values() if entry.reqid == reqid):
            self._workers.set_room(reqid, mtu)
        for selector in tuple(self._routed_by_reqid.get(reqid, ())):
            self._add_route(self._routed[selector])

    def has_sent(self, quoted: Quoted) -> bool:
        """Whether the packet may have been ours: of this SA, or between the ends of one."""
        if quoted.spi is None:
            ends = quoted.source, quoted.destination
            return any(_ends(entry) == ends for entry in self._outbound.values())
        sa = SaId(spi=quoted.spi, protocol=quoted.protocol, destination=quoted.destination)
        entry = self._outbound.get(sa)
        return entry is not None and entry.source == quoted.source

    # Entries.

    def lead_to(self, entry: SadEntry | SpdEntry) -> None:
        """It is in force, and packets are to find it."""
        if isinstance(entry, SadEntry):
            self.fit(entry.reqid, self.inner_mtu(entry))
            self.note(entry)
        elif entry.is_led:
            if entry.action is Action.PROTECT:
                self._shunts.remove(entry)
                self._add_route(entry)
            else:
                self._shunts.add(entry)
                self._remove_route(entry)

    def remove(self, entry: SpdEntry) -> None:
        if entry.is_led:
            self._remove_route(entry)
            self._shunts.remove(entry)

    def adopt(self, dump: Dump) -> None:
        """Know of the entries in force what a predecessor knew, and mend their routes."""
        for sa in dump.sad:
            self.note(sa)
            with contextlib.suppress(DatapathError):  # No way to the peer at the moment.
                self.fit(sa.reqid, self.inner_mtu(sa))
        for policy in dump.spd:
            if policy.is_led and policy.action is Action.PROTECT:
                self._add_route(policy)
        self._shunts.claim(dump.spd)
        self._routes.remove_unclaimed()

    def clear(self) -> None:
        self._routes.remove_all()
        self._shunts.clear()
        self._routed.clear()
        self._routed_by_reqid.clear()
        self._outbound.clear()
        self._inner_mtu.clear()

    # What others do.

    def find_amiss_paths(self) -> Iterator[Difference]:
        """Those of the outer packets."""
        return self._paths.find_amiss(_ends(entry) for entry in self._outbound.values())

    def find_amiss(self) -> Sequence[Difference]:
        return (*self._routes.find_amiss(), *self._shunts.find_amiss())

    def mend(self, amiss: Difference) -> None:
        """But for a path: see `follow`."""
        if amiss.finding is Finding.SHUNT_RULES_CHANGED:
            self._shunts.mend()
        else:
            self._routes.mend(amiss)

    def follow(self, ends: Ends) -> None:
        """Go by the path that there is now between two ends."""
        for entry in tuple(self._outbound.values()):
            if _ends(entry) == ends:
                self.fit(entry.reqid, self.inner_mtu(entry))

    def _add_route(self, entry: SpdEntry) -> None:
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


def _ends(entry: SadEntry) -> Ends:
    return entry.source, entry.destination


def _reqid_of(entry: SpdEntry) -> int | None:
    return None if entry.template is None else entry.template.reqid
