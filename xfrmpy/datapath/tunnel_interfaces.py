"""The interfaces of route-based tunnels: made, kept as they should be, and removed.

The same for both datapaths, but for how a device is made (`Maker`). One that somebody else made for
a tunnel is used and left, one of another kind is neither. What an operator adds to an interface, or
a routing daemon, is not looked at; what policy names and is missing comes back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import Protocol

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.netdevices import (
    MAIN_TABLE,
    OUR_GROUP,
    Device,
    Devices,
    Routed,
    identity_of,
    within,
)
from xfrmpy.datapath.netlink.route import RTNETLINK
from xfrmpy.datapath.netlink.socket import NetlinkSocket
from xfrmpy.datapath.paths import Paths
from xfrmpy.datapath.routes import RouteOwner
from xfrmpy.datapath.watch import ROUTING, Watch
from xfrmpy.ipsec.drift import Difference, Ends, Finding
from xfrmpy.ipsec.interfaces import InterfaceAddress, InterfaceState, TunnelInterface
from xfrmpy.ipsec.overhead import IPV6_MINIMUM_MTU
from xfrmpy.ipsec.sad import OUR_REQIDS, Direction, SadEntry, SaId

FIRST_MTU = 1400
"""Of an interface whose tunnel was not up yet: room for every suite, NAT and PPPoE."""

PROBE, PROBE_IF_ID = "xfrmpy-probe", OUR_REQIDS[-1]


class Maker(Protocol):
    """How devices come and go. Methods may raise `DatapathError`."""

    def refresh(self) -> None:
        """Others may have had their hands in it."""

    def obtain(self, home: Devices, name: str, if_id: int) -> Device:
        """The device of a number in our own namespace; made, if there is none, with this name."""

    def is_of(self, device: Device, if_id: int) -> bool:
        """Whether it is the device of a number."""

    def is_ours(self, device: Device) -> bool:
        """Whether we have made it."""

    def drop(self, place: Devices, device: Device, if_id: int) -> None:
        """Remove a device of ours, or let go of another's."""

    def drop_all_but(self, home: Devices, if_ids: Collection[int]) -> None:
        """Remove what an earlier daemon has made in our own namespace, and nobody wants now."""


@dataclass(slots=True)
class _Held:
    """An interface that should be there, what it is called really, and what fits through it."""

    wanted: TunnelInterface
    name: str
    fitting_mtu: int | None = None
    given: set[InterfaceAddress] = field(default_factory=set)


@dataclass(slots=True)
class _Place:
    """A namespace in which there are interfaces, and what tells of changes there."""

    devices: Devices
    identity: tuple[int, int] | None = None
    news: NetlinkSocket | None = None


@dataclass(slots=True, kw_only=True)
class _View:
    """What there is in a namespace."""

    devices: dict[str, Device]
    addresses: dict[int, set[InterfaceAddress]]
    routes: set[Routed]


class TunnelInterfaces:
    """See the module. `paths` tells how large the outer packets may be."""

    def __init__(self, maker: Maker, owner: RouteOwner, paths: Paths) -> None:
        self._maker = maker
        self._protocol = owner.value
        self._paths = paths
        self._home = Devices()
        self._places: dict[str, _Place] = {"": _Place(self._home)}
        self._held: dict[int, _Held] = {}
        self._outbound: dict[int, dict[SaId, SadEntry]] = {}
        self._if_ids: dict[SaId, int] = {}
        self._watch: Watch | None = None

    @property
    def port(self) -> int:
        """Of the socket by which everything in our own namespace is changed."""
        return self._home.port

    def report_to(self, watch: Watch) -> None:
        """It hears, too, of changes in the other namespaces with interfaces of ours."""
        self._watch = watch

    def close(self) -> None:
        """Free the sockets; the interfaces stay."""
        for namespace in tuple(self._places):
            self._leave(namespace)

    # What should be there.

    def set(self, wanted: TunnelInterface) -> None:
        """Have it there, just like this. If that fails it is still wanted, and may be mended."""
        held = self._held.get(wanted.if_id)
        if held is not None and _home_of(held.wanted) != _home_of(wanted):
            self.remove(wanted.if_id)
            held = None
        if held is None:
            held = self._held[wanted.if_id] = _Held(wanted, wanted.name)
        before, held.wanted = held.wanted, wanted
        self._measure(wanted.if_id)
        with suppress(DatapathError):  # Where there is nothing, there is nothing too much.
            self._take_away(held, before)
        self._bring_about(held)

    def remove(self, if_id: int) -> None:
        """The inverse of `set`. One that is gone already is no error."""
        held = self._held.pop(if_id, None)
        if held is None:
            return
        with suppress(DatapathError):  # Its namespace is gone, and it with it.
            place = self._place(held.wanted.namespace).devices
            device = place.find(held.name)
            if device is not None and self._maker.is_of(device, if_id):
                if not self._maker.is_ours(device):
                    self._strip(place, device, held)
                self._maker.drop(place, device, if_id)
        self._leave_unused()

    def keep_only(self, if_ids: Collection[int]) -> None:
        """Remove all others of ours, also those that an earlier daemon has made here."""
        for if_id in self._held.keys() - if_ids:
            self.remove(if_id)
        self._maker.drop_all_but(self._home, if_ids)

    def probe(self) -> str:
        """Why there can be no interfaces here, found by making one; nothing if there can."""
        try:
            made = self._maker.obtain(self._home, PROBE, PROBE_IF_ID)
            if made.name == PROBE:  # Else it is a tunnel's, by a rare chance.
                self._maker.drop(self._home, made, PROBE_IF_ID)
        except DatapathError as error:
            return str(error)
        return ""

    def state(self, if_id: int) -> InterfaceState | None:
        """How an interface is; None if it is not there."""
        held = self._held.get(if_id)
        if held is None:
            return None
        try:
            device = self._place(held.wanted.namespace).devices.find(held.name)
        except DatapathError:
            return None
        if device is None or not self._maker.is_of(device, if_id):
            return None
        return InterfaceState(
            name=device.name,
            if_id=if_id,
            is_up=device.is_up,
            mtu=device.mtu,
            is_adopted=not self._maker.is_ours(device),
        )

    # What fits through.

    def note(self, entry: SadEntry) -> None:
        """An SA is in force, or has moved."""
        if entry.if_id and entry.direction is Direction.OUT:
            self._outbound.setdefault(entry.if_id, {})[entry.id] = entry
            self._if_ids[entry.id] = entry.if_id
            self._fit(entry.if_id)

    def forget(self, sa: SaId) -> None:
        """An SA is in force no more."""
        if_id = self._if_ids.pop(sa, None)
        if if_id is not None:
            del self._outbound[if_id][sa]
            if not self._outbound[if_id]:
                del self._outbound[if_id]

    def forget_all(self) -> None:
        self._outbound.clear()
        self._if_ids.clear()

    def ends(self) -> Iterator[Ends]:
        """The paths by which their SAs go."""
        for entries in self._outbound.values():
            for entry in entries.values():
                yield entry.source, entry.destination

    def follow(self, ends: Ends) -> None:
        """A path has changed."""
        for if_id, entries in tuple(self._outbound.items()):
            if any((e.source, e.destination) == ends for e in entries.values()):
                self._fit(if_id)

    def _fit(self, if_id: int) -> None:
        """What fails now is found amiss later."""
        before = self._held[if_id].fitting_mtu if if_id in self._held else None
        self._measure(if_id)
        held = self._held.get(if_id)
        if held is None or held.fitting_mtu == before:
            return
        with suppress(DatapathError):
            place = self._place(held.wanted.namespace).devices
            device = place.find(held.name)
            if device is not None and self._maker.is_of(device, if_id):
                self._set_mtu(place, device, held)

    def _measure(self, if_id: int) -> None:
        """No path just now: it stays as it was."""
        held = self._held.get(if_id)
        if held is None:
            return
        entries = self._outbound.get(if_id, {}).values()
        with suppress(DatapathError):
            held.fitting_mtu = min(map(self._paths.inner_mtu, entries), default=held.fitting_mtu)

    # What is there, and what should be.

    def find_amiss(self) -> Iterator[Difference]:
        """What is not there as it should be, of the interfaces and what they have."""
        if not self._held:
            return
        self._maker.refresh()
        views: dict[str, _View | None] = {}
        for held in self._held.values():
            namespace = held.wanted.namespace
            if namespace not in views:
                views[namespace] = self._view(namespace)
            yield from self._compare(held, views[namespace])

    def mend(self, amiss: Difference) -> None:
        """Put right what `find_amiss` has found."""
        assert isinstance(amiss.subject, int)
        held = self._held.get(amiss.subject)
        if held is not None:
            self._bring_about(held)

    def _view(self, namespace: str) -> _View | None:
        try:
            place = self._place(namespace).devices
        except DatapathError:
            return None
        return _View(
            devices={device.name: device for device in place.all()},
            addresses=place.addresses(),
            routes=place.routes(self._protocol),
        )

    def _compare(self, held: _Held, view: _View | None) -> Iterator[Difference]:
        wanted, name = held.wanted, f"the interface {held.name}"
        device = None if view is None else view.devices.get(held.name)
        if view is None or device is None or not self._maker.is_of(device, wanted.if_id):
            yield _amiss(Finding.INTERFACE_MISSING, name, wanted)
            return
        if not device.is_up:
            yield _amiss(Finding.INTERFACE_CHANGED, name, wanted)
        mtu = self._mtu_of(held, device)
        if mtu is not None and device.mtu != mtu:
            yield _amiss(Finding.INTERFACE_CHANGED, f"the MTU of {name}", wanted)
        vrf = view.devices.get(wanted.vrf) if wanted.vrf else None
        if self._is_elsewhere(held, device, vrf):
            yield _amiss(Finding.INTERFACE_CHANGED, f"the VRF of {name}", wanted)
        for address in wanted.addresses:
            if address not in view.addresses.get(device.index, ()):
                what = f"the address {address} of {name}"
                yield _amiss(Finding.INTERFACE_MISSING, what, wanted)
        for route in _routes(wanted, device, vrf):
            if route not in view.routes:
                what = f"the route to {route.destination} into {name}"
                yield _amiss(Finding.INTERFACE_MISSING, what, wanted)

    def _bring_about(self, held: _Held) -> None:
        wanted = held.wanted
        place = self._place(wanted.namespace).devices
        device = self._obtain(held, place)
        vrf = _vrf(place, wanted)
        if self._is_elsewhere(held, device, vrf):
            # Before the addresses: a device that changes hands loses those of IPv6.
            place.set_master(device, vrf)
        self._set_mtu(place, device, held)
        there = place.addresses().get(device.index, set()) if wanted.addresses else set()
        for address in wanted.addresses:
            if address not in there:
                place.add_address(device, address)
                held.given.add(address)
        place.bring_up(device)
        for route in _routes(wanted, device, vrf):
            place.add_route(route, self._protocol)

    def _obtain(self, held: _Held, place: Devices) -> Device:
        wanted = held.wanted
        device = place.find(held.name)
        if device is not None and self._maker.is_of(device, wanted.if_id):
            return device
        if wanted.namespace:
            return self._obtain_elsewhere(held, place)
        made = self._maker.obtain(self._home, wanted.name, wanted.if_id)
        if made.name != wanted.name and self._maker.is_ours(made):
            self._maker.drop(self._home, made, wanted.if_id)
            made = self._maker.obtain(self._home, wanted.name, wanted.if_id)
        held.name = made.name
        return self._begun(self._home, made, held)

    def _obtain_elsewhere(self, held: _Held, place: Devices) -> Device:
        """Its packets are protected here, and it is there."""
        wanted = held.wanted
        if (there := place.find(wanted.name)) is not None:
            raise taken(there)
        made = self._maker.obtain(self._home, f"xfrmpy-{wanted.if_id:x}", wanted.if_id)
        if not self._maker.is_ours(made):
            where = f"is not in the namespace {wanted.namespace}"
            raise DatapathError(f"the interface {made.name}, which somebody else made, {where}")
        self._home.move(made, wanted.name, wanted.namespace)
        self._maker.refresh()
        moved = place.find(wanted.name)
        if moved is None:
            raise DatapathError(f"the interface {wanted.name} is gone as soon as it was moved")
        return self._begun(place, moved, held)

    def _begun(self, place: Devices, device: Device, held: _Held) -> Device:
        """As WireGuard's: whoever wants a link-local address gives it one."""
        if self._maker.is_ours(device):
            if device.group != OUR_GROUP:
                place.set_group(device, OUR_GROUP)
            with suppress(DatapathError):  # There is no IPv6.
                place.silence(device.index)
            if held.fitting_mtu is None:
                held.fitting_mtu = FIRST_MTU
        return device

    def _set_mtu(self, place: Devices, device: Device, held: _Held) -> None:
        mtu = self._mtu_of(held, device)
        if mtu is not None and mtu != device.mtu:
            place.set_mtu(device, mtu)

    def _mtu_of(self, held: _Held, device: Device) -> int | None:
        """None: whatever it has."""
        wanted = held.wanted
        if wanted.mtu is not None:
            return wanted.mtu
        if held.fitting_mtu is None or not self._maker.is_ours(device):
            return None
        return max(held.fitting_mtu, IPV6_MINIMUM_MTU if wanted.needs_ipv6 else 0)

    def _is_elsewhere(self, held: _Held, device: Device, vrf: Device | None) -> bool:
        """Whether it is not in the VRF that it should be in; another's may be in any."""
        if vrf is not None or held.wanted.vrf:
            return vrf is None or device.master != vrf.index
        return bool(device.master) and self._maker.is_ours(device)

    def _take_away(self, held: _Held, before: TunnelInterface) -> None:
        """What the policy names no more."""
        if before == held.wanted:
            return
        place = self._place(before.namespace).devices
        device = place.find(held.name)
        if device is None or not self._maker.is_of(device, before.if_id):
            return
        kept = {*_routes(held.wanted, device, _vrf(place, held.wanted))}
        for route in _routes(before, device, _vrf(place, before)):
            if route not in kept:
                place.remove_route(route, self._protocol)
        for address in before.addresses:
            if address not in held.wanted.addresses:
                place.remove_address(device, address)

    def _strip(self, place: Devices, device: Device, held: _Held) -> None:
        """Another's interface goes on without what we have given it."""
        for route in _routes(held.wanted, device, _vrf(place, held.wanted)):
            place.remove_route(route, self._protocol)
        for address in held.given:
            place.remove_address(device, address)

    # Namespaces.

    def _place(self, namespace: str) -> _Place:
        """Raises `DatapathError` if there is none of that name."""
        found = self._places.get(namespace)
        if not namespace:
            assert found is not None
            return found
        try:
            identity = identity_of(namespace)
        except DatapathError:
            self._leave(namespace)
            raise
        if found is None or found.identity != identity:
            self._leave(namespace)
            found = within(namespace, _open)
            found.identity = identity
            self._places[namespace] = found
            if self._watch is not None and found.news is not None:
                self._watch.join(found.news, ROUTING, [found.devices.port])
        return found

    def _leave(self, namespace: str) -> None:
        place = self._places.pop(namespace, None)
        if place is None:
            return
        place.devices.close()
        if place.news is not None:
            if self._watch is not None:
                self._watch.leave(place.news)
            place.news.close()

    def _leave_unused(self) -> None:
        used = {"", *(held.wanted.namespace for held in self._held.values())}
        for namespace in self._places.keys() - used:
            self._leave(namespace)


def taken(device: Device) -> DatapathError:
    """What there is to say of a device that stands in the way."""
    kind = f"a device of the kind {device.kind}" if device.kind else "a network device"
    return DatapathError(f"the name {device.name} is taken by {kind}, which is not the tunnel's")


def _open() -> _Place:
    with ExitStack() as stack:
        devices = stack.enter_context(closing(Devices()))
        news = NetlinkSocket(RTNETLINK, ROUTING.groups)
        stack.pop_all()
    return _Place(devices, news=news)


def _home_of(wanted: TunnelInterface) -> tuple[str, str]:
    return wanted.name, wanted.namespace


def _vrf(place: Devices, wanted: TunnelInterface) -> Device | None:
    if not wanted.vrf:
        return None
    found = place.find(wanted.vrf)
    if found is None or not found.table:
        raise DatapathError(f"there is no VRF {wanted.vrf}")
    return found


def _routes(wanted: TunnelInterface, device: Device, vrf: Device | None) -> list[Routed]:
    table = MAIN_TABLE if vrf is None else vrf.table
    return [Routed(table, device.index, destination) for destination in wanted.routes]


def _amiss(finding: Finding, what: str, wanted: TunnelInterface) -> Difference:
    return Difference(finding=finding, what=what, subject=wanted.if_id)
