"""nf_tables in octets: a table with one chain, its rules, and its maps from keys to verdicts.

Layouts and numbers: nf_tables.h and nfnetlink.h of <linux/netfilter/>. A rule is expressions: each
leaves the rule if it is not met, the last says what to do. Nothing here knows of policies.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from errno import EIO
from struct import Struct
from typing import TypeAlias

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.netlink.messages import Family, Message, split_attributes

TABLE, CHAIN = "xfrmpy-userspace", "in"

PRIORITY = -300
"""That of `raw`: before connection tracking, which should not know of what is dropped."""

DROP, ACCEPT = 0, 1

META_IIFNAME, META_NFPROTO, META_L4PROTO = 6, 15, 16
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
EQUAL, UNEQUAL, AT_MOST, AT_LEAST = 0, 1, 3, 5  # NFT_CMP_*
FIRST_REGISTER = 8  # NFT_REG32_00: four octets each

Request: TypeAlias = tuple[int, int, bytes]
"""A message's type, flags and body."""

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

_REQUEST, _CREATE, _APPEND = 0x001, 0x400, 0x800  # NLM_F_*
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NEWTABLE, _DELTABLE, _NEWCHAIN, _NEWRULE, _DELRULE, _NEWSET, _DELSET, _NEWELEMENT, _DELELEMENT = (
    _SUBSYSTEM << 8 | number for number in (0, 2, 3, 6, 8, 9, 11, 12, 14)
)
_INET = _GENERAL.pack(1, 0, 0)  # NFPROTO_INET: IPv4 and IPv6
_BEGIN = (0x10, 0, _GENERAL.pack(0, 0, _SUBSYSTEM))
_END = (0x11, 0, _GENERAL.pack(0, 0, _SUBSYSTEM))
_PREROUTING = 0
_IS_MAP = 8  # NFT_SET_MAP
_TO_VERDICTS = 0xFFFFFF00  # NFT_DATA_VERDICT
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
        self._socket.bind((0, 0))
        self.port: int = self._socket.getsockname()[0]
        """By which the kernel tells, and others hear, whose request has changed something."""

    def close(self) -> None:
        self._socket.close()

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


def _refused(number: int | None) -> DatapathError:
    reason = os.strerror(number or EIO)
    return DatapathError(f"nf_tables, which keeps unprotected packets out: {reason}", number)


NFTABLES = Family(number=_NETLINK_NETFILTER, name="nf_tables", bodies={})
CHANGES_GROUP = 7  # NFNLGRP_NFTABLES


def is_of_our_table(message: Message) -> bool:
    """Whether a notification is about our table, or something in it."""
    attributes = split_attributes(message.unknown[_GENERAL.size :])
    return attributes.get(1) == TABLE.encode() + b"\0"


# Requests.


def delete_table() -> list[Request]:
    """Adding what may be there and then deleting it is how an absent table is no error."""
    table = _INET + _text(1, TABLE)
    return [(_NEWTABLE, _CREATE, table), (_DELTABLE, 0, table)]


def add_table() -> list[Request]:
    """The table with its chain, which lets everything in."""
    hook = _attribute(1, _NUMBER.pack(_PREROUTING)) + _attribute(2, _SIGNED.pack(PRIORITY))
    names = _text(1, TABLE) + _text(3, CHAIN)
    chain = _INET + names + _nested(4, hook) + _text(7, "filter")
    return [(_NEWTABLE, _CREATE, _INET + _text(1, TABLE)), (_NEWCHAIN, _CREATE, chain)]


def add_rule(expressions: bytes) -> Request:
    """Behind those that are there."""
    names = _text(1, TABLE) + _text(2, CHAIN)
    return _NEWRULE, _CREATE | _APPEND, _INET + names + _nested(4, expressions)


def delete_rules() -> Request:
    return _DELRULE, 0, _INET + _text(1, TABLE) + _text(2, CHAIN)


def add_map(name: str, key: Iterable[Field]) -> Request:
    size = datatype = 0
    for each in key:
        size += _padded(each.size)
        datatype = datatype << _TYPE_BITS | each.datatype
    shape = _number(3, _IS_MAP) + _number(4, datatype) + _number(5, size)
    names = _text(1, TABLE) + _text(2, name)
    return _NEWSET, _CREATE, _INET + names + shape + _number(6, _TO_VERDICTS) + _number(10, 1)


def delete_map(name: str) -> Request:
    return _DELSET, 0, _INET + _text(1, TABLE) + _text(2, name)


def add_element(name: str, key: bytes, verdict: int) -> Request:
    return _NEWELEMENT, _CREATE, _element(name, _data(1, key) + _nested(2, _code(verdict)))


def delete_element(name: str, key: bytes) -> Request:
    return _DELELEMENT, 0, _element(name, _data(1, key))


def _element(name: str, fields: bytes) -> bytes:
    names = _text(1, TABLE) + _text(2, name)
    return _INET + names + _nested(3, _nested(1, fields))


def padded_key(parts: Iterable[bytes]) -> bytes:
    """The values of a key's fields, each in as many registers as it takes."""
    return b"".join(part.ljust(_padded(len(part)), b"\0") for part in parts)


def _padded(size: int) -> int:
    return size + -size % 4


# Expressions.


def load_meta(key: int, register: int = FIRST_REGISTER) -> bytes:
    return _expression("meta", _number(2, key) + _number(1, register))


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


def conclude(verdict: int) -> bytes:
    return _expression("immediate", _number(1, 0) + _nested(2, _code(verdict)))


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
