"""What a host leaves for its network device to do: segments cut, checksums completed.

Slow and plain, and so the specification of whatever is faster. Read RFC 9293 section 3.1 (the
header of TCP) and RFC 3168 section 6.1.2 (CWR) first; and RFC 6864 section 4 for when an IPv4
Identification means something. No sockets here, and no SPD.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

from xfrmpy.datapath.userspace.vectors import sum_of
from xfrmpy.datapath.userspace.virtio import Offload, Segments
from xfrmpy.esp.checksum import checksum_of
from xfrmpy.esp.ip import begins_at

MAX_SEGMENTS = 2048
"""Of a super-packet. A host whose peer asks for the least segments that Linux makes (48 octets, TCP
options included) makes 1,400; one octet each would cost us a second."""

TCP, UDP = 6, 17
_IP_SIZE = {4: 20, 6: 40}
_TCP_SIZE, _UDP_SIZE = 20, 8
_WORD = Struct(">H")
_SEQUENCE = Struct(">I")
_DF = 0x40
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_TCP_CHECKSUM, _UDP_CHECKSUM = 16, 6
_VERSIONS: dict[int, tuple[int, ...]] = {
    Segments.TCP_IPV4: (4,),
    Segments.TCP_IPV6: (6,),
    Segments.UDP: (4, 6),
}


class BadOffload(Exception):
    """The packet is not what its header says."""


def complete(packet: bytes, offload: Offload) -> list[bytes]:
    """The packets that a network would have seen. Raises `BadOffload`."""
    if offload.segments != Segments.NONE:
        return list(_segments(packet, _layout_of(packet, offload), offload.segment_size))
    if offload.needs_checksum:
        return [_with_checksum(packet, offload.checksum_start, offload.checksum_offset)]
    return [packet]


def _with_checksum(packet: bytes, start: int, offset: int) -> bytes:
    """In its place is the sum of the pseudo-header, which is so a part of what is summed up."""
    at = start + offset
    if at + _WORD.size > len(packet):
        raise BadOffload
    # RFC 768: "If the computed checksum is zero, it is transmitted as all ones", which is as good
    # a zero for the other protocols.
    checksum = 0xFFFF - sum_of(packet[start:]) or 0xFFFF
    return packet[:at] + _WORD.pack(checksum) + packet[at + 2 :]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where in a super-packet the header of TCP or UDP begins, and where the payload."""

    is_tcp: bool
    transport: int
    payload: int


def _layout_of(packet: bytes, offload: Offload) -> _Layout:
    version = packet[0] >> 4 if packet else 0
    if version not in _VERSIONS.get(offload.segments, ()):
        raise BadOffload
    start, is_tcp = offload.checksum_start, offload.segments != Segments.UDP
    least = start + (_TCP_SIZE if is_tcp else _UDP_SIZE)
    if start < _IP_SIZE[version] or least >= len(packet):
        raise BadOffload
    if offload.checksum_offset != (_TCP_CHECKSUM if is_tcp else _UDP_CHECKSUM):
        raise BadOffload
    ends = start + (packet[start + 12] >> 4) * 4 if is_tcp else least
    if not (offload.needs_checksum and offload.segment_size and least <= ends < len(packet)):
        raise BadOffload
    if len(packet) - ends > MAX_SEGMENTS * offload.segment_size:
        raise BadOffload
    if not begins_at(packet, start, TCP if is_tcp else UDP):
        raise BadOffload
    return _Layout(is_tcp, start, ends)


def _segments(packet: bytes, layout: _Layout, size: int) -> Iterator[bytes]:
    ip, header = packet[: layout.transport], packet[layout.transport : layout.payload]
    whole = len(packet) - layout.transport
    last = (len(packet) - layout.payload - 1) // size
    for number in range(last + 1):
        at = layout.payload + number * size
        piece = packet[at : at + size]
        length = len(header) + len(piece)
        if layout.is_tcp:
            own = tcp_header_of(header, number * size, is_first=not number, is_last=number == last)
            place = _TCP_CHECKSUM
        else:
            own = header[:4] + _WORD.pack(length) + header[6:]
            place = _UDP_CHECKSUM
        own = for_length(own, place, length - whole)
        ended = ip_header_of(ip, length, number)
        yield _with_checksum(ended + own + piece, len(ended), place)


def tcp_header_of(header: bytes, offset: int, *, is_first: bool, is_last: bool) -> bytes:
    """RFC 3168 section 6.1.2: CWR is in the first new packet after the window was reduced. FIN and
    PSH are about the end of the data."""
    sequence = (_SEQUENCE.unpack_from(header, 4)[0] + offset) & 0xFFFFFFFF
    flags = header[13]
    if not is_first:
        flags &= ~_CWR
    if not is_last:
        flags &= ~(_FIN | _PSH)
    return header[:4] + _SEQUENCE.pack(sequence) + header[8:13] + bytes((flags,)) + header[14:]


def for_length(header: bytes, place: int, more: int) -> bytes:
    """With the sum of a pseudo-header whose length is by `more` another one."""
    partial = (_WORD.unpack_from(header, place)[0] + more) % 0xFFFF
    return header[:place] + _WORD.pack(partial) + header[place + 2 :]


def ip_header_of(header: bytes, payload: int, number: int = 0) -> bytes:
    """Of the segment of a number. Options and the extension headers of IPv6 are in each.

    RFC 6864 section 4.1: what has DF and is no fragment may have any Identification; other packets
    have one each.
    """
    if header[0] >> 4 == 6:
        size = len(header) - _IP_SIZE[6] + payload
        return header[:4] + _WORD.pack(size) + header[6:]
    identification: int = _WORD.unpack_from(header, 4)[0]
    if not header[6] & _DF:
        identification = (identification + number) & 0xFFFF
    words = _WORD.pack(len(header) + payload) + _WORD.pack(identification)
    blank = header[:2] + words + header[6:10] + bytes(2) + header[12:]
    return blank[:10] + _WORD.pack(checksum_of(blank)) + blank[12:]
