"""nf_tables in octets: a table with its chains, their rules, and its maps from keys.

Layouts and numbers: nf_tables.h and nfnetlink.h of <linux/netfilter/>. A rule is expressions: each
leaves the rule if it is not met, the last says what to do. Nothing here knows of policies.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from errno import EIO
from struct import Struct
from typing import TypeAlias

from xfrmpy.datapath.interface import DatapathError, Realm
from xfrmpy.datapath.netlink.messages import Family, Message
from xfrmpy.datapath.watch import Source

DROP, ACCEPT = 0, 1

PREROUTING, POSTROUTING = 0, 4  # NF_INET_*
EGRESS = 1  # NF_NETDEV_EGRESS, of a device: Linux 5.16
RAW_PRIORITY = -300
"""Before connection tracking, which should not know of what is dropped."""

META_PROTOCOL, META_IIFNAME, META_OIFNAME = 1, 6, 7
META_NFPROTO, META_L4PROTO, META_SECPATH = 15, 16, 25
ROUTE_XFRM = 4  # NFT_RT_XFRM
_ADDRESS_KIND, _OF_SOURCE, _OF_DESTINATION = 3, 1, 2  # NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_*
_LOCAL = Struct("=I").pack(2)  # RTN_LOCAL
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
EQUAL, UNEQUAL, AT_MOST, AT_LEAST = 0, 1, 3, 5  # NFT_CMP_*
FIRST_REGISTER = 8  # NFT_REG32_00: four octets each

Request: TypeAlias = tuple[int, int, bytes]
"""A message's type, flags and body."""

_NFPROTO = {4: 2, 6: 10}
_UDP, _FRAGMENT, _ICMPV6 = 17, 44, 58
_NETLINK_NETFILTER = 12
_SO_SNDBUFFORCE = 32
_HEADER = Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_ERROR = Struct("=i")  # the start of struct nlmsgerr
_NLMSG_ERROR = 2
_GENERAL = Struct(">BBH")  # struct nfgenmsg: family, version, resource
_ATTRIBUTE = Struct("=HH")  # struct nlattr: length, type
_NESTED = 0x8000
_NUMBER = Struct(">I")
_SIGNED = Struct(">i")
_INDEX = Struct("=I")  # of a device, as it is in a register

_REQUEST, _CREATE, _APPEND = 0x001, 0x400, 0x800  # NLM_F_*
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE, _DELRULE, _NEWSET, _DELSET, _NEWELEMENT, _DELELEMENT = (
    _SUBSYSTEM << 8 | number for number in (0, 2, 3, 6, 8, 9, 11, 12, 14)
)
_DELETIONS = frozenset(_SUBSYSTEM << 8 | number for number in (2, 5, 8, 11, 14))
NFTABLES = Family(number=_NETLINK_NETFILTER, name="nf_tables", bodies={})
CHANGES_GROUP = 7  # NFNLGRP_NFTABLES

INET, NETDEV = 1, 5  # NFPROTO_*: IPv4 and IPv6, what passes a device
_BEGIN = (0x10, 0, _GENERAL.pack(0, 0, _SUBSYSTEM))
_END = (0x11, 0, _GENERAL.pack(0, 0, _SUBSYSTEM))
_IS_MAP = 8  # NFT_SET_MAP
_TO_VERDICTS = 0xFFFFFF00  # NFT_DATA_VERDICT
_TO_DEVICES, _DEVICE_SIZE = 20, 4  # nft's number of its datatype iface_index
_TYPE_BITS = 6


@dataclass(frozen=True, slots=True)
class Field:
    """A part of a key: how it gets into registers, and what `nft` is to call it (its datatype)."""

    size: int
    datatype: int
    load: bytes


class NfTables:
    """The socket of the network namespace of the thread that makes this. Raises `DatapathError`."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        except OSError as error:
            raise _refused(error.errno) from error
        self._socket.setblocking(False)
        self._room = 0
        self._socket.bind((0, 0))
        self.port: int = self._socket.getsockname()[0]
        """By which the kernel tells, and others hear, whose request has changed something."""

    def close(self) -> None:
        self._socket.close()

    def watch(self, table: Table, on_change: Callable[[], None]) -> tuple[Source, int]:
        """What tells of the hands of others in a table, and the port by which we change it."""

        def concerns(message: Message | None) -> Realm:
            if message is not None and not table.is_told_of(message):
                return Realm.NOTHING
            on_change()
            return Realm.WAYS

        return Source(family=NFTABLES, groups=(CHANGES_GROUP,), concerns=concerns), self.port

    def send(self, requests: Sequence[Request]) -> None:
        """All of it or nothing comes into force."""
        batch = b"".join(
            _HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, number, 0) + body
            for number, (kind, flags, body) in enumerate([_BEGIN, *requests, _END])
        )
        try:
            self._make_room(2 * len(batch) + 65536)
            self._socket.send(batch)
            failures = list(self._failures())
        except OSError as error:
            raise _refused(error.errno) from error
        if failures:
            raise _refused(failures[0])

    def _make_room(self, octets: int) -> None:
        """A batch goes in one piece."""
        if octets <= self._room:
            return
        self._room = octets
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, octets)
        except PermissionError:  # Root of a user namespace only: as much as the host allows.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, octets)

    def _failures(self) -> Iterator[int]:
        """The error numbers that wait; the kernel has answered before `send` returns."""
        while True:
            try:
                answer = self._socket.recv(65536)
            except BlockingIOError:
                return
            number = _ERROR.unpack_from(answer, _HEADER.size)[0]
            if _HEADER.unpack_from(answer)[1] == _NLMSG_ERROR and number:
                yield -number


def is_deletion(message: Message) -> bool:
    """Whether a notification tells that something was taken away."""
    return message.type in _DELETIONS


def _refused(number: int | None) -> DatapathError:
    reason = os.strerror(number or EIO)
    return DatapathError(f"nf_tables, which keeps unprotected packets out: {reason}", number)


@dataclass(frozen=True, slots=True)
class Table:
    """The requests about one table, by its name and family."""

    name: str
    family: int = INET

    def is_told_of(self, message: Message) -> bool:
        """Whether a notification is about it, or something in it."""
        return message.octets.startswith(_text(1, self.name), _GENERAL.size)

    def delete(self) -> list[Request]:
        """Adding what may be there and then deleting it is how an absent table is no error."""
        return [self.add(), (_DELTABLE, 0, self._named())]

    def add(self) -> Request:
        return _NEWTABLE, _CREATE, self._named()

    def add_chain(self, chain: str, hook: int, priority: int, device: str = "") -> Request:
        """One that lets everything pass; of the family `NETDEV` it is one of a device."""
        place = _attribute(1, _NUMBER.pack(hook)) + _attribute(2, _SIGNED.pack(priority))
        if device:
            place += _text(3, device)
        body = self._named() + _text(3, chain) + _nested(4, place) + _text(7, "filter")
        return _NEWCHAIN, _CREATE, body

    def add_rule(self, chain: str, expressions: bytes) -> Request:
        """Behind those that are there."""
        return _NEWRULE, _CREATE | _APPEND, self._named(chain) + _nested(4, expressions)

    def delete_rules(self, chain: str) -> Request:
        return _DELRULE, 0, self._named(chain)

    def add_map(self, name: str, key: Iterable[Field], *, to_devices: bool = False) -> Request:
        """From keys to verdicts, or to the numbers of devices."""
        size = datatype = 0
        for each in key:
            size += _padded(each.size)
            datatype = datatype << _TYPE_BITS | each.datatype
        shape = _number(3, _IS_MAP) + _number(4, datatype) + _number(5, size)
        data = _number(6, _TO_VERDICTS)
        if to_devices:
            data = _number(6, _TO_DEVICES) + _number(7, _DEVICE_SIZE)
        body = self._named(name) + shape + data + _number(10, 1)
        return _NEWSET, _CREATE, body

    def delete_map(self, name: str) -> Request:
        return _DELSET, 0, self._named(name)

    def add_element(self, name: str, key: bytes, verdict: int) -> Request:
        element = _data(1, key) + _nested(2, _code(verdict))
        return _NEWELEMENT, _CREATE, self._element(name, element)

    def add_device(self, name: str, key: bytes, index: int) -> Request:
        """An element of a map to devices."""
        element = _data(1, key) + _data(2, _INDEX.pack(index))
        return _NEWELEMENT, _CREATE, self._element(name, element)

    def delete_element(self, name: str, key: bytes) -> Request:
        return _DELELEMENT, 0, self._element(name, _data(1, key))

    def _element(self, name: str, fields: bytes) -> bytes:
        return self._named(name) + _nested(3, _nested(1, fields))

    def _named(self, part: str = "") -> bytes:
        general = _GENERAL.pack(self.family, 0, 0)
        return general + _text(1, self.name) + (_text(2, part) if part else b"")


def padded_key(parts: Iterable[bytes]) -> bytes:
    """The values of a key's fields, each in as many registers as it takes."""
    return b"".join(part.ljust(_padded(len(part)), b"\0") for part in parts)


def _padded(size: int) -> int:
    return size + -size % 4


# Expressions.


def load_meta(key: int, register: int = FIRST_REGISTER) -> bytes:
    return _expression("meta", _number(2, key) + _number(1, register))


def load_route(key: int) -> bytes:
    """What is known of the packet's route."""
    return _expression("rt", _number(1, FIRST_REGISTER) + _number(2, key))


def load(base: int, offset: int, size: int, register: int = FIRST_REGISTER) -> bytes:
    fields = _number(1, register) + _number(2, base) + _number(3, offset) + _number(4, size)
    return _expression("payload", fields)


def mask(octets: bytes, register: int = FIRST_REGISTER) -> bytes:
    registers = _number(1, register) + _number(2, register) + _number(3, len(octets))
    return _expression("bitwise", registers + _data(4, octets) + _data(5, bytes(len(octets))))


def compare(value: bytes, operator: int = EQUAL) -> bytes:
    fields = _number(1, FIRST_REGISTER) + _number(2, operator) + _data(3, value)
    return _expression("cmp", fields)


def look_up(name: str) -> bytes:
    """The verdict that a map has for the key in the registers; none if it has none."""
    return _expression("lookup", _text(1, name) + _number(2, FIRST_REGISTER) + _number(3, 0))


def pass_on_by(name: str) -> bytes:
    """Out by the device that a map has for the key in the registers instead, if it has one."""
    found = _text(1, name) + _number(2, FIRST_REGISTER) + _number(3, FIRST_REGISTER)
    return _expression("lookup", found) + _expression("fwd", _number(1, FIRST_REGISTER))


def conclude(verdict: int) -> bytes:
    return _expression("immediate", _number(1, 0) + _nested(2, _code(verdict)))


# What a packet must be for the rule to go on.


def from_device(name: str) -> bytes:
    return load_meta(META_IIFNAME) + compare(_device(name))


def to_device(name: str) -> bytes:
    return load_meta(META_OIFNAME) + compare(_device(name))


def _device(name: str) -> bytes:
    return name.encode().ljust(16, b"\0")


def was_protected() -> bytes:
    """It has come out of an SA of the kernel's."""
    return load_meta(META_SECPATH) + compare(b"\1")


def will_be_protected() -> bytes:
    """It goes into an SA of the kernel's."""
    return load_route(ROUTE_XFRM) + compare(b"\1")


def is_of_version(version: int) -> bytes:
    return load_meta(META_NFPROTO) + compare(bytes([_NFPROTO[version]]))


def is_of_ethertype(number: int) -> bytes:
    """As `is_of_version` in a table of the family `NETDEV`."""
    return load_meta(META_PROTOCOL) + compare(number.to_bytes(2, "big"))


def has_protocol(number: int) -> bytes:
    return load_meta(META_L4PROTO) + compare(bytes([number]))


def is_later_fragment(version: int) -> bytes:
    """It has no ports that could be looked at. Of the IP version that it is known to be."""
    if version == 4:
        offset = load(NETWORK_HEADER, 6, 2) + mask(b"\x1f\xff")
    else:
        place = _attribute(2, bytes([_FRAGMENT])) + _number(3, 2) + _number(4, 2)
        offset = _expression("exthdr", _number(1, FIRST_REGISTER) + place) + mask(b"\xff\xf8")
    return offset + compare(bytes(2), UNEQUAL)


def is_from_us() -> bytes:
    """The source address is this host's own."""
    return _has_local_address(_OF_SOURCE)


def is_to_us() -> bytes:
    return _has_local_address(_OF_DESTINATION)


def _has_local_address(which: int) -> bytes:
    asked = _number(1, FIRST_REGISTER) + _number(2, _ADDRESS_KIND) + _number(3, which)
    return _expression("fib", asked) + compare(_LOCAL)


def from_udp_port(port: int) -> bytes:
    return _of_udp_port(0, port)


def to_udp_port(port: int) -> bytes:
    return _of_udp_port(2, port)


def _of_udp_port(offset: int, port: int) -> bytes:
    at_offset = load(TRANSPORT_HEADER, offset, 2)
    return has_protocol(_UDP) + at_offset + compare(port.to_bytes(2, "big"))


def later_udp_fragment(version: int) -> bytes:
    """Perhaps of ESP in UDP, whose port is in the first one; without that it comes to nothing."""
    return is_of_version(version) + has_protocol(_UDP) + is_later_fragment(version)


def neighbour_discovery() -> bytes:
    first, last = (bytes([kind]) for kind in (133, 137))
    is_between = compare(first, AT_LEAST) + compare(last, AT_MOST)
    return has_protocol(_ICMPV6) + load(TRANSPORT_HEADER, 0, 1) + is_between


# Parts.


def _code(verdict: int) -> bytes:
    return _nested(2, _number(1, verdict))


def _expression(name: str, fields: bytes) -> bytes:
    return _nested(1, _text(1, name) + _nested(2, fields))


def _data(kind: int, value: bytes) -> bytes:
    return _nested(kind, _attribute(1, value))


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, _NUMBER.pack(value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _nested(kind: int, payload: bytes) -> bytes:
    return _attribute(kind | _NESTED, payload)


def _attribute(kind: int, payload: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(payload)
    return _ATTRIBUTE.pack(size, kind) + payload + bytes(-size % 4)
