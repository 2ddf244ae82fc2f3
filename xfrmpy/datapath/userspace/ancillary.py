"""What of an IP header the kernel tells beside the payload, and is told (RFC 3542, ip(7))."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from struct import Struct
from typing import TypeAlias

from xfrmpy.esp.transport import Fields

ROOM = 256
"""Octets, for all that is asked for."""

Ancillary: TypeAlias = Iterable[tuple[int, int, bytes]]

_MTU_DISCOVER, _WITHOUT_DF, _WITH_DF = 10, 0, 3  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT and _PROBE
_INTEGER = Struct("=i")
_OCTET = Struct("=B")
_RECEIVE_TTL = 12  # IP_RECVTTL of <linux/in.h>; Python 3.11 has no name for it

_CLASS = {4: (socket.IPPROTO_IP, socket.IP_TOS), 6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)}
_HOPS = {4: (socket.IPPROTO_IP, socket.IP_TTL), 6: (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT)}
_WANTED = {
    4: (socket.IP_RECVTOS, _RECEIVE_TTL),
    6: (socket.IPV6_RECVTCLASS, socket.IPV6_RECVHOPLIMIT),
}


def ask_for_fields(receiver: socket.socket, version: int) -> None:
    """Have the kernel tell them with each packet. Raises `OSError`."""
    for option in _WANTED[version]:
        receiver.setsockopt(_CLASS[version][0], option, 1)


class DfSwitch:
    """Whether what an IPv4 socket sends has DF, which no ancillary data says. At first it has not.

    What the kernel believes of a path's MTU it is not asked about: the inner MTU is ours to know.
    """

    def __init__(self, sender: socket.socket) -> None:
        self._sender = sender
        self.is_on = False

    def turn(self, *, on: bool) -> None:
        """Raises `OSError`."""
        if on is not self.is_on:
            how = _WITH_DF if on else _WITHOUT_DF
            self._sender.setsockopt(socket.IPPROTO_IP, _MTU_DISCOVER, how)
            self.is_on = on


def encode_fields(fields: Fields, version: int) -> list[tuple[int, int, bytes]]:
    return [
        (*_CLASS[version], _INTEGER.pack(fields.traffic_class)),
        (*_HOPS[version], _INTEGER.pack(fields.hops)),
    ]


def decode_fields(told: Ancillary, version: int) -> Fields:
    words = {(level, kind): octets for level, kind, octets in told}
    return Fields(_number(words[_CLASS[version]]), _number(words[_HOPS[version]]))


def _number(octets: bytes) -> int:
    """IPv4's traffic class is one octet, all else four."""
    number: int = (_OCTET if len(octets) == 1 else _INTEGER).unpack(octets)[0]
    return number
