"""Segments of a TCP stream that came together, joined to one super-packet for the host's own IP.

The reverse of `segments`, and no more: what is joined here comes out of the cutting as it was, but
for an IPv4 Identification that means nothing (RFC 6864 section 4.1). The host makes the checksums
of a super-packet's segments anew, or takes them for granted, so that each is verified before it is
given up: a wrong one would come out right. Read RFC 9293 section 3.1 first. No sockets, no SPD.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from struct import Struct
from struct import error as StructError  # noqa: N812 (a class with a function's name)
from typing import TypeAlias

from xfrmpy.datapath.userspace.vectors import sum_of
from xfrmpy.datapath.userspace.virtio import COMPLETE, Offload, Segments
from xfrmpy.esp.checksum import checksum_of, ones_complement_sum, pseudo_header

MAX_SIZE = 65535
"""Octets of a super-packet: what an IPv4 header can say."""

MAX_PIECES = 512
"""Segments of a super-packet. The kernel takes 1024 pieces of a packet at once (IOV_MAX)."""

TCP = 6
_IPV4, _IPV6 = 4, 6
_IPV4_SIZE, _IPV6_SIZE = 20, 40
ADDRESSES_AT = {_IPV4_SIZE: 12, _IPV6_SIZE: 8}
_IPV4_WITHOUT_OPTIONS = 0x45
_FRAGMENT, DF = 0x3F, 0x40  # of the octet with the flags
_OTHER_THAN_TCP = frozenset({17, 58})
"""IPv6's next headers behind which there is certainly no TCP: UDP and ICMPv6."""

_OFFSET_AT, _FLAGS_AT, _CHECKSUM_AT = 12, 13, 16
PSH = 0x08
_ORDINARY = frozenset({0x10, 0x50})
"""Flags of segments in the midst of a stream, PSH apart: ACK, and ECE, which is in all of them for
a while. CWR is in one segment only (RFC 3168 section 6.1.2)."""

_ZERO = 0xFFFF  # of ones' complement: the sum of a header whose checksum is right
_WORD = Struct(">H")

# By TCP's data offset. First the IP header: version with traffic class, length, Identification,
# flags to protocol, checksum; then addresses and ports, sequence number, acknowledgement with data
# offset, flags, window, urgent pointer with options.
_BEHIND = [f"I5sB2s2x{words * 4 - 18}s" for words in range(5, 16)]
_IPV4_LAYOUTS = [None] * 5 + [Struct(">2sHH4sH12s" + behind) for behind in _BEHIND]
# Version to flow label, payload length, next header with hop limit; then the same.
_IPV6_LAYOUTS = [None] * 5 + [Struct(">4sH2s36s" + behind) for behind in _BEHIND]

_Segment: TypeAlias = tuple[bytes, tuple[bytes | int, ...], int, int, int, int, int, int]
"""Of TCP: its stream's addresses and ports; what is alike in all that may be joined; the sizes of
the headers and of all; sequence number, flags; Identification; and what changes of the IPv4
header's sum, 0 in IPv6. (A tuple takes 0.1 us to make, an object 0.4.)"""


class Coalescer:
    """Takes packets and gives `joined`, in their order; that of the packets of a stream is kept."""

    def __init__(self) -> None:
        self.joined: list[Joined] = []
        self._streams: dict[bytes, Joined] = {}

    def extend(self, packet: memoryview, tag: Hashable) -> Joined | None:
        """Join a packet to what came before of its stream under the same tag, if that is possible.

        Then all that a policy looks at is the same, and so is the traffic class. Octets behind the
        packet's end are left away. Returns what it is a part of.
        """
        segment = _read(packet) if self._streams else None
        if segment is None:
            return None
        joined = self._streams.get(segment[0])
        if joined is None or joined.tag != tag or not joined.append(packet, segment):
            return None
        return joined

    def start(self, packet: memoryview, tag: Hashable) -> Joined | None:
        """Take a packet that has joined nothing, without octets behind its end. Returns it if
        others may join."""
        joined = Joined(packet, tag)
        self.joined.append(joined)
        if not _may_be_of_a_stream(packet):
            return None
        segment = _read(packet)
        if segment is None or not _is_plain(packet):
            self._streams.clear()  # Of which, who can tell?
        elif joined.open(segment):
            self._streams[segment[0]] = joined
            return joined
        else:
            self._streams.pop(segment[0], None)
        return None


class Joined:
    """A packet, or a super-packet of several."""

    __slots__ = (
        "_alike",
        "_first",
        "_has_numbers",
        "_header_size",
        "_ip_sum",
        "_is_full",
        "_is_pushed",
        "_next_number",
        "_next_sequence",
        "_payloads",
        "_segment_size",
        "_size",
        "tag",
    )

    def __init__(self, packet: memoryview, tag: Hashable) -> None:
        self.tag = tag
        self._first = packet
        self._payloads: list[memoryview] = []

    def open(self, segment: _Segment) -> bool:
        """Whether others may follow the packet, which is this segment."""
        _, self._alike, self._header_size, self._size, sequence, flags, number, ip_sum = segment
        self._ip_sum = ip_sum
        self._segment_size = self._size - self._header_size
        self._next_sequence = (sequence + self._segment_size) & 0xFFFFFFFF
        self._next_number = (number + 1) & 0xFFFF
        # RFC 6864 section 4.1: with DF, and in one piece, it means nothing.
        self._has_numbers = _ip_size(self._first) == _IPV4_SIZE and not self._first[6] & DF
        self._is_full = self._is_pushed = False
        return self._segment_size > 0 and flags in _ORDINARY

    def append(self, packet: memoryview, segment: _Segment) -> bool:
        """Take a segment, if it is the next and like the others, and all are intact."""
        _, alike, header_size, size, sequence, flags, number, ip_sum = segment
        payload_size = size - header_size
        if (
            self._is_full
            or sequence != self._next_sequence
            or alike != self._alike
            or (self._has_numbers and number != self._next_number)
            or not 0 < payload_size <= self._segment_size
            or self._size + payload_size > MAX_SIZE
            # What is alike of the IP headers has the same sum.
            or (ip_sum - self._ip_sum) % 0xFFFF
        ):
            return False
        if size != len(packet):
            if size > len(packet):
                return False
            packet = packet[:size]
        if not _is_intact(packet):
            return False
        if not self._payloads and not self._begin():
            self._is_full = True
            return False
        self._payloads.append(packet[header_size:])
        self._size += payload_size
        self._next_sequence = (sequence + payload_size) & 0xFFFFFFFF
        self._next_number = (number + 1) & 0xFFFF
        self._is_pushed = bool(flags & PSH)
        is_short = payload_size < self._segment_size
        self._is_full = is_short or self._is_pushed or len(self._payloads) == MAX_PIECES
        return True

    def append_streak(self, packets: Sequence[memoryview]) -> int:
        """Take segments that follow the one taken last, and are as long as that, intact as that,
        and like it but for PSH on the last; returns how many there was room for."""
        payload_size = len(packets[0]) - self._header_size
        if self._is_full or payload_size != self._segment_size:
            return 0
        if not self._payloads:
            self._payloads.append(self._first[self._header_size :])
        room = min((MAX_SIZE - self._size) // payload_size, MAX_PIECES - len(self._payloads))
        taken = packets[:room]
        if not taken:
            return 0
        self._payloads += [packet[self._header_size :] for packet in taken]
        self._size += len(taken) * payload_size
        self._next_sequence = (self._next_sequence + len(taken) * payload_size) & 0xFFFFFFFF
        self._next_number = (self._next_number + len(taken)) & 0xFFFF
        self._is_pushed = bool(taken[-1][_ip_size(self._first) + _FLAGS_AT] & PSH)
        self._is_full = self._is_pushed or len(self._payloads) == MAX_PIECES
        return len(taken)

    def _begin(self) -> bool:
        """A packet that stays alone needs not be intact."""
        first = self._first
        if first[0] == _IPV4_WITHOUT_OPTIONS and ones_complement_sum(first[:_IPV4_SIZE]) != _ZERO:
            return False
        self._payloads.append(first[self._header_size :])
        return _is_intact(first)

    @property
    def pieces(self) -> list[bytes | memoryview]:
        """The octets, to be written one behind the other."""
        if len(self._payloads) < 2:
            return [self._first]
        return [self._header(), *self._payloads]

    @property
    def offload(self) -> Offload:
        """What its host is left to do with it."""
        if len(self._payloads) < 2:
            return COMPLETE
        ip_size = _ip_size(self._first)
        return Offload(
            needs_checksum=True,
            segments=Segments.TCP_IPV4 if ip_size == _IPV4_SIZE else Segments.TCP_IPV6,
            header_size=self._header_size,
            segment_size=self._segment_size,
            checksum_start=ip_size,
            checksum_offset=_CHECKSUM_AT,
        )

    def _header(self) -> bytes:
        """Of the first segment, for all: the pseudo-header's sum is in the checksum's place."""
        header, ip_size = bytearray(self._first[: self._header_size]), _ip_size(self._first)
        if ip_size == _IPV4_SIZE:
            _WORD.pack_into(header, 2, self._size)
            _WORD.pack_into(header, 10, 0)
            _WORD.pack_into(header, 10, checksum_of(bytes(header[:_IPV4_SIZE])))
        else:
            _WORD.pack_into(header, 4, self._size - _IPV6_SIZE)
        if self._is_pushed:
            header[ip_size + _FLAGS_AT] |= PSH
        ends = bytes(header[ADDRESSES_AT[ip_size] : ip_size])
        half = len(ends) // 2
        pseudo = pseudo_header(ends[:half], ends[half:], TCP, self._size - ip_size)
        _WORD.pack_into(header, ip_size + _CHECKSUM_AT, ones_complement_sum(pseudo))
        return bytes(header)


def _read(packet: memoryview) -> _Segment | None:
    """A packet as if it were a plain segment of TCP, of whatever flags. None if it is too short."""
    try:
        if packet[0] == _IPV4_WITHOUT_OPTIONS:
            return _read_ipv4(packet)
        return _read_ipv6(packet)
    except (IndexError, StructError):
        return None


def _read_ipv4(packet: memoryview) -> _Segment | None:
    layout = _IPV4_LAYOUTS[packet[_IPV4_SIZE + _OFFSET_AT] >> 4]
    if layout is None:
        return None
    first, size, number, kind, checksum, ends, sequence, ack, flags, window, rest = (
        layout.unpack_from(packet)
    )
    alike = first, kind, ack, flags & ~PSH, window, rest
    return ends, alike, layout.size, size, sequence, flags, number, size + number + checksum


def _read_ipv6(packet: memoryview) -> _Segment | None:
    layout = _IPV6_LAYOUTS[packet[_IPV6_SIZE + _OFFSET_AT] >> 4]
    if layout is None:
        return None
    first, payload, kind, ends, sequence, ack, flags, window, rest = layout.unpack_from(packet)
    alike = first, kind, ack, flags & ~PSH, window, rest
    return ends, alike, layout.size, _IPV6_SIZE + payload, sequence, flags, 0, 0


def headers_of(packet: memoryview) -> tuple[int, int] | None:
    """The sizes of the IP header and of all headers, if it is such a segment of TCP that others may
    join, and nothing else behind it."""
    segment = _read(packet)
    if segment is None or not _is_plain(packet):
        return None
    _, _, header_size, size, _, flags, _, _ = segment
    if size != len(packet) or header_size >= size or flags & ~PSH not in _ORDINARY:
        return None
    return _ip_size(packet), header_size


def _is_plain(packet: memoryview) -> bool:
    """Whether a packet that could be read is a segment of TCP: without IP options or extension
    headers, and in one piece."""
    if packet[0] == _IPV4_WITHOUT_OPTIONS:
        return packet[9] == TCP and not (packet[6] & _FRAGMENT or packet[7])
    return packet[0] >> 4 == _IPV6 and packet[6] == TCP


def _ip_size(packet: memoryview) -> int:
    return _IPV4_SIZE if packet[0] >> 4 == _IPV4 else _IPV6_SIZE


def _is_intact(packet: memoryview) -> bool:
    """Whether the checksum of a TCP segment is right. Addresses and segment are one stretch."""
    ip_size = _ip_size(packet)
    total = sum_of(packet[ADDRESSES_AT[ip_size] :]) + TCP + len(packet) - ip_size
    return total % 0xFFFF == 0


def _may_be_of_a_stream(packet: memoryview) -> bool:
    """Whether a packet that is no plain segment of TCP may be a part of one, or have one inside."""
    if packet[0] >> 4 == _IPV4:
        return packet[9] == TCP
    return packet[6] not in _OTHER_THAN_TCP
