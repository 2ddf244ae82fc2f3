"""Whole datagrams from the fragments that a host's own IP hands over (RFC 791 section 3.2, RFC 8200
section 4.5).

Transport mode protects a whole datagram (RFC 4303 section 3.1.1), and a host has cut it by the time
a device is given it. So all of it comes at once, and in order; what does not is given up.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct

_IPV4_SIZE, _IPV6_SIZE, _FRAGMENT_HEADER = 20, 40, 44
_FRAGMENT = Struct(">BxHI")
_MORE_V4, _OFFSET_V4 = 0x2000, 0x1FFF
_MORE_V6 = 1

MAX_DATAGRAM = 65535
MAX_GATHERING = 64
"""Datagrams that are incomplete at a time; the oldest gives way."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """`key` names the datagram. `head` is what its header will be, sizes apart."""

    key: bytes
    head: bytes
    protocol: int
    offset: int
    more: bool
    payload: bytes


@dataclass(slots=True)
class _Datagram:
    pieces: list[bytes] = field(default_factory=list)
    payload: bytes = b""


class Reassembly:
    """The datagrams that are being gathered."""

    def __init__(self) -> None:
        self._gathering: dict[bytes, _Datagram] = {}

    def add(self, packet: bytes, fragment: Fragment) -> tuple[bytes, list[bytes]] | None:
        """The datagram that a packet completes, and the packets that it came in."""
        datagram = self._gathering.pop(fragment.key, None)
        if fragment.offset == 0:
            datagram = _Datagram()
        if datagram is None or len(datagram.payload) != fragment.offset:
            return None
        datagram.pieces.append(packet)
        datagram.payload += fragment.payload
        if not fragment.more:
            return _whole(fragment, datagram.payload), datagram.pieces
        if len(datagram.payload) < MAX_DATAGRAM:
            self._gathering[fragment.key] = datagram
            if len(self._gathering) > MAX_GATHERING:
                del self._gathering[next(iter(self._gathering))]
        return None


def fragment_of(packet: bytes) -> Fragment | None:
    """What a packet is a part of; None if it is whole, or no fragment that this host would make."""
    return _fragment_v4(packet) if packet[0] >> 4 == 4 else _fragment_v6(packet)


def _fragment_v4(packet: bytes) -> Fragment | None:
    bits = packet[6] << 8 | packet[7]
    if packet[0] != 0x45 or not bits & (_MORE_V4 | _OFFSET_V4):
        return None
    return Fragment(
        key=packet[4:6] + packet[9:10] + packet[12:_IPV4_SIZE],
        head=packet[:6] + bytes(2) + packet[8:_IPV4_SIZE],
        protocol=packet[9],
        offset=(bits & _OFFSET_V4) * 8,
        more=bool(bits & _MORE_V4),
        payload=packet[_IPV4_SIZE:],
    )


def _fragment_v6(packet: bytes) -> Fragment | None:
    if packet[6] != _FRAGMENT_HEADER or len(packet) < _IPV6_SIZE + _FRAGMENT.size:
        return None
    protocol, bits, identification = _FRAGMENT.unpack_from(packet, _IPV6_SIZE)
    return Fragment(
        key=identification.to_bytes(4, "big") + packet[8:_IPV6_SIZE],
        head=packet[:_IPV6_SIZE],
        protocol=protocol,
        offset=bits & ~7,
        more=bool(bits & _MORE_V6),
        payload=packet[_IPV6_SIZE + _FRAGMENT.size :],
    )


def _whole(fragment: Fragment, payload: bytes) -> bytes:
    """The checksum of the IPv4 header is not renewed: the header itself is not sent."""
    head = fragment.head
    if len(head) == _IPV4_SIZE:
        size = (_IPV4_SIZE + len(payload)).to_bytes(2, "big")
        return head[:2] + size + head[4:] + payload
    return (
        head[:4] + len(payload).to_bytes(2, "big") + bytes([fragment.protocol]) + head[7:] + payload
    )
