"""Network devices of one network namespace, and what is done with them: netlink, and nothing else.

Not of the daemon's own namespace only: a socket belongs to the one that its thread was in when it
was opened. Who decides what a device should be like is `tunnel_interfaces`.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from socket import AF_INET6
from threading import Thread
from typing import TypeVar

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.links import FAMILIES
from xfrmpy.datapath.netlink.messages import (
    NUMBER,
    Message,
    Values,
    decode_number,
    encode_attributes,
    split_attributes,
)
from xfrmpy.datapath.netlink.route import (
    RTNETLINK,
    Address,
    LinkAttribute,
    LinkInet6,
    LinkInfo,
    MessageType,
    Route,
    VrfLink,
    XfrmLink,
)
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Request
from xfrmpy.ipsec.addresses import IpNetwork
from xfrmpy.ipsec.interfaces import InterfaceAddress

MAIN_TABLE = 254  # RT_TABLE_MAIN
OUR_GROUP = 0x5846
"""`XF`, of the devices that we have made: `ip link show group 22598`."""

_NAMESPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_UP, _MULTICAST = 0x1, 0x1000  # IFF_*
_UNICAST = 1  # RTN_UNICAST
_ADDR_GEN_NONE = b"\x01"  # IN6_ADDR_GEN_MODE_NONE
_LINK_SCOPE, _ANY_SCOPE = 253, 255  # RT_SCOPE_LINK, RT_SCOPE_NOWHERE
_WITHOUT_STATISTICS: dict[int, bytes] = {LinkAttribute.EXT_MASK: NUMBER.pack(8)}

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A network device; `if_id` is an xfrm interface's, `table` that of a VRF, else 0."""

    index: int
    name: str
    mtu: int
    is_up: bool
    kind: str
    group: int
    master: int
    if_id: int
    table: int


@dataclass(frozen=True, slots=True)
class Routed:
    """A route into a device: the table, the device's index, and the destination."""

    table: int
    device: int
    destination: IpNetwork


class Devices:
    """Those of the namespace of the thread that makes this. Methods raise `DatapathError`."""

    def __init__(self) -> None:
        self._netlink = NetlinkSocket(RTNETLINK)

    @property
    def port(self) -> int:
        """Of the socket by which everything here is changed."""
        return self._netlink.port

    def close(self) -> None:
        self._netlink.close()

    def find(self, name: str) -> Device | None:
        attributes = {LinkAttribute.IFNAME: name.encode() + b"\0", **_WITHOUT_STATISTICS}
        message = Message(type=MessageType.GETLINK, attributes=attributes)
        replies = self._exchange(f"find the network device {name}", message, errno.ENODEV)
        return next(map(_device, replies), None)

    def all(self) -> list[Device]:
        message = Message(
            type=MessageType.GETLINK, body={"family": 0}, attributes=_WITHOUT_STATISTICS
        )
        request = Request(message, "list the network devices", dump=True)
        return [*map(_device, self._netlink.ask(request))]

    def make_xfrm(self, name: str, if_id: int, group: int) -> None:
        """An xfrm interface of this namespace's SAs and policies; EEXIST if one is of its id."""
        data = encode_attributes({XfrmLink.IF_ID: NUMBER.pack(if_id)})
        attributes: dict[int, bytes] = {
            LinkAttribute.IFNAME: name.encode() + b"\0",
            LinkAttribute.GROUP: NUMBER.pack(group),
            LinkAttribute.LINKINFO: encode_attributes(
                {LinkInfo.KIND: b"xfrm\0", LinkInfo.DATA: data}
            ),
        }
        message = Message(type=MessageType.NEWLINK, attributes=attributes)
        self._netlink.ask(Request(message, f"make the interface {name}", create=True))

    def remove(self, device: Device) -> None:
        """One that is gone already is no error."""
        message = Message(type=MessageType.DELLINK, body={"index": device.index})
        self._exchange(f"remove the interface {device.name}", message, errno.ENODEV)

    def bring_up(self, device: Device) -> None:
        """With multicast, by which routing daemons find each other."""
        flags = _UP | _MULTICAST
        self._set(device, f"bring {device.name} up", body={"flags": flags, "change": flags})

    def silence(self, index: int) -> None:
        """Let a device have no address of its own making, and so send nothing of its own.

        By netlink, for /proc/sys may be read-only to a service.
        """
        mode = encode_attributes({LinkInet6.ADDR_GEN_MODE: _ADDR_GEN_NONE})
        setting = Message(
            type=MessageType.NEWLINK,
            body={"index": index},
            attributes={LinkAttribute.AF_SPEC: encode_attributes({AF_INET6: mode})},
        )
        self._netlink.ask(Request(setting, "keep a device without an address of its own"))

    def limit_super_packets(self, index: int, octets: int) -> None:
        """No more at once than that is given to a device that cuts packets itself."""
        setting = Message(
            type=MessageType.NEWLINK,
            body={"index": index},
            attributes={LinkAttribute.GSO_MAX_SIZE: NUMBER.pack(octets)},
        )
        self._netlink.ask(Request(setting, f"limit super-packets to {octets} octets"))

    def set_group(self, device: Device, group: int) -> None:
        what = f"put {device.name} into the group {group}"
        self._set(device, what, {LinkAttribute.GROUP: NUMBER.pack(group)})

    def set_mtu(self, device: Device, mtu: int) -> None:
        what = f"give {device.name} an MTU of {mtu}"
        self._set(device, what, {LinkAttribute.MTU: NUMBER.pack(mtu)})

    def set_master(self, device: Device, master: Device | None) -> None:
        index = 0 if master is None else master.index
        into = "no VRF" if master is None else master.name
        what = f"put {device.name} into {into}"
        self._set(device, what, {LinkAttribute.MASTER: NUMBER.pack(index)})

    def move(self, device: Device, name: str, namespace: str) -> None:
        """To another namespace, under another name there."""
        with _opened(namespace) as descriptor:
            attributes: dict[int, bytes] = {
                LinkAttribute.NET_NS_FD: NUMBER.pack(descriptor),
                LinkAttribute.IFNAME: name.encode() + b"\0",
            }
            self._set(device, f"move {name} to the namespace {namespace}", attributes)

    def addresses(self) -> dict[int, set[InterfaceAddress]]:
        """Those of each device, by its index."""
        found: dict[int, set[InterfaceAddress]] = {}
        for family in FAMILIES.values():
            message = Message(type=MessageType.GETADDR, body={"family": family})
            for each in self._netlink.ask(Request(message, "list the addresses", dump=True)):
                octets = each.attributes.get(Address.LOCAL) or each.attributes[Address.ADDRESS]
                found.setdefault(each.body["index"], set()).add(
                    InterfaceAddress(address=ip_address(octets), prefixlen=each.body["prefixlen"])
                )
        return found

    def add_address(self, device: Device, address: InterfaceAddress) -> None:
        message = _address(MessageType.NEWADDR, device, address)
        what = f"give {device.name} the address {address}"
        request = Request(message, what, create=True)
        self._netlink.exchange([request])[0].unless(errno.EEXIST)

    def remove_address(self, device: Device, address: InterfaceAddress) -> None:
        message = _address(MessageType.DELADDR, device, address)
        what = f"take the address {address} from {device.name}"
        self._exchange(what, message, errno.EADDRNOTAVAIL)

    def routes(self, protocol: int) -> set[Routed]:
        """Those of a protocol number, into devices."""
        found: set[Routed] = set()
        for version, family in FAMILIES.items():
            body = {"family": family, "protocol": protocol}
            message = Message(type=MessageType.GETROUTE, body=body)
            for each in self._netlink.ask(Request(message, "list the routes", dump=True)):
                if each.body["protocol"] == protocol and Route.OIF in each.attributes:
                    found.add(_routed(each, version))
        return found

    def add_route(self, route: Routed, protocol: int) -> None:
        """Raises `DatapathError` if another leads to the same destination."""
        message = _route(MessageType.NEWROUTE, route, protocol)
        what = f"add a route to {route.destination}"
        reply = self._netlink.exchange([Request(message, what, create=True)])[0]
        if reply.error is not None and route not in self.routes(protocol):
            raise reply.error

    def remove_route(self, route: Routed, protocol: int) -> None:
        message = _route(MessageType.DELROUTE, route, protocol)
        self._exchange(f"remove the route to {route.destination}", message, errno.ESRCH)

    def _set(
        self,
        device: Device,
        what: str,
        attributes: dict[int, bytes] | None = None,
        body: Values | None = None,
    ) -> None:
        message = Message(
            type=MessageType.NEWLINK,
            body={"index": device.index, **(body or {})},
            attributes=attributes or {},
        )
        self._netlink.ask(Request(message, what))

    def _exchange(self, what: str, message: Message, *but: int) -> list[Message]:
        return self._netlink.exchange([Request(message, what)])[0].unless(*but).messages


def within(namespace: str, make: Callable[[], T]) -> T:
    """What `make` gives in a network namespace, by its name; an empty one is the caller's.

    Raises `DatapathError` if there is none, or we may not go there.
    """
    if not namespace:
        return make()
    made: list[T] = []
    failed: list[DatapathError] = []

    def work() -> None:
        try:
            with _opened(namespace) as descriptor:
                _enter(namespace, descriptor)
                made.append(make())
        except DatapathError as error:
            failed.append(error)

    # The namespace is a thread's own, and this one goes nowhere else afterwards.
    thread = Thread(target=work)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def identity_of(namespace: str) -> tuple[int, int]:
    """What stays the same as long as a name means the same namespace. Raises `DatapathError`."""
    with _opened(namespace) as descriptor:
        status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


@contextmanager
def _opened(namespace: str) -> Iterator[int]:
    try:
        descriptor = os.open(_NAMESPACES / namespace, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DatapathError(f"there is no network namespace {namespace}", errno.ENOENT) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _enter(namespace: str, descriptor: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        reason = f"cannot enter the network namespace {namespace}: {os.strerror(number)}"
        raise DatapathError(reason, number)


def _device(message: Message) -> Device:
    attributes = message.attributes
    info = split_attributes(attributes.get(LinkAttribute.LINKINFO, b""))
    kind = info.get(LinkInfo.KIND, b"").rstrip(b"\0").decode(errors="replace")
    data = info.get(LinkInfo.DATA, b"")

    def number(attribute: int, of: Mapping[int, bytes]) -> int:
        return decode_number(of[attribute]) if attribute in of else 0

    return Device(
        index=message.body["index"],
        name=attributes[LinkAttribute.IFNAME].rstrip(b"\0").decode(errors="replace"),
        mtu=number(LinkAttribute.MTU, attributes),
        is_up=bool(message.body["flags"] & _UP),
        kind=kind,
        group=number(LinkAttribute.GROUP, attributes),
        master=number(LinkAttribute.MASTER, attributes),
        if_id=number(XfrmLink.IF_ID, split_attributes(data)) if kind == "xfrm" else 0,
        table=number(VrfLink.TABLE, split_attributes(data)) if kind == "vrf" else 0,
    )


def _address(kind: MessageType, device: Device, address: InterfaceAddress) -> Message:
    octets = address.address.packed
    return Message(
        type=kind,
        body={
            "family": FAMILIES[address.address.version],
            "prefixlen": address.prefixlen,
            "index": device.index,
        },
        attributes={Address.LOCAL: octets, Address.ADDRESS: octets},
    )


def _route(kind: MessageType, route: Routed, protocol: int) -> Message:
    version = route.destination.version
    link_scope = _LINK_SCOPE if version == 4 else 0
    return Message(
        type=kind,
        body={
            "family": FAMILIES[version],
            "dst_len": route.destination.prefixlen,
            "protocol": protocol,
            "type": _UNICAST,
            "scope": link_scope if kind is MessageType.NEWROUTE else _ANY_SCOPE,
        },
        attributes={
            Route.DST: route.destination.network_address.packed,
            Route.OIF: NUMBER.pack(route.device),
            Route.TABLE: NUMBER.pack(route.table),
        },
    )


def _routed(message: Message, version: int) -> Routed:
    octets = message.attributes.get(Route.DST, bytes(4 if version == 4 else 16))
    return Routed(
        decode_number(message.attributes[Route.TABLE]),
        decode_number(message.attributes[Route.OIF]),
        ip_network((ip_address(octets), message.body["dst_len"])),
    )
