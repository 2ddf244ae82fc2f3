"""Segments of a TCP stream, or datagrams of a UDP flow, joined to one super-packet for the host.

The reverse of `segments`, and no more: what is joined here comes out of the cutting as it was, but
for an IPv4 Identification that means nothing (RFC 6864 section 4.1). The host makes the checksums
of a super-packet's segments anew, or takes them for granted, so that each is verified before it is
given up: a wrong one would come out right. Read RFC 9293 section 3.1 and RFC 768 first. No sockets,
no SPD.
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

TCP, UDP = 6, 17
_IPV4, _IPV6 = 4, 6
_IPV4_SIZE, _IPV6_SIZE = 20, 40
ADDRESSES_AT = {_IPV4_SIZE: 12, _IPV6_SIZE: 8}
_IPV4_WITHOUT_OPTIONS = 0x45
_FRAGMENT, DF = 0x3F, 0x40  # of the octet with the flags
_JOINED = {False: frozenset({TCP}), True: frozenset({TCP, UDP})}
_OTHER = {False: frozenset({UDP, 58}), True: frozenset({58})}
"""Of protocols, by whether datagrams are joined: those that are, and IPv6's next headers behind
which there is certainly none of them. (58 is ICMPv6.)"""

_OFFSET_AT, _FLAGS_AT = 12, 13
CHECKSUM_AT = {TCP: 16, UDP: 6}
_LENGTH_AT = 4  # of UDP
PSH = 0x08
_ORDINARY = frozenset({0x10, 0x50})
"""Flags of segments in the midst of a stream, PSH apart: ACK, and ECE, which is in all of them for
a while. CWR is in one segment only (RFC 3168 section 6.1.2)."""

_UDP = b"\x11"  # what is behind the ends of a flow, which may be those of a stream, too
_DATAGRAM, _UNSUMMED = 0x10, 0
"""The same of UDP: with a checksum, and without, or of another length than the packet."""

_ZERO = 0xFFFF  # of ones' complement: the sum of a header whose checksum is right
_WORD = Struct(">H")

# By TCP's data offset. First the IP header: version with traffic class, length, Identification,
# flags to protocol, checksum; then addresses and ports, sequence number, acknowledgement with data
# offset, flags, window, urgent pointer with options.
_BEHIND = [f"I5sB2s2x{words * 4 - 18}s" for words in range(5, 16)]
_IPV4_LAYOUTS = [None] * 5 + [Struct(">2sHH4sH12s" + behind) for behind in _BEHIND]
# Version to flow label, payload length, next header with hop limit; then the same.
_IPV6_LAYOUTS = [None] * 5 + [Struct(">4sH2s36s" + behind) for behind in _BEHIND]
# The same, and the length and the checksum of UDP.
_UDP_IN_IPV4, _UDP_IN_IPV6 = Struct(">2sHH4sH12sHH"), Struct(">4sH2s36sHH")

_Segment: TypeAlias = tuple[bytes, tuple[bytes | int, ...], int, int, int, int, int, int]
"""Of TCP: its stream's addresses and ports; what is alike in all that may be joined; the sizes of
the headers and of all; sequence number, flags; Identification; and what changes of the IPv4
header's sum, 0 in IPv6. (A tuple takes 0.1 us to make, an object 0.4.) A datagram has sequence
number 0."""


class Coalescer:
    """Takes packets and gives `joined`, in their order; that of the packets of a stream is kept."""

    def __init__(self, *, joins_datagrams: bool = False) -> None:
        """Without `joins_datagrams` those of UDP go one by one."""
        self.joined: list[Joined] = []
        self._protocols, self._others = _JOINED[joins_datagrams], _OTHER[joins_datagrams]
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
        if not self._may_be_of_a_stream(packet):
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

    def _may_be_of_a_stream(self, packet: memoryview) -> bool:
        """Whether a packet that is no plain segment may be a part of one, or have one inside."""
        if packet[0] >> 4 == _IPV4:
            return packet[9] in self._protocols
        return packet[6] not in self._others


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
        "_protocol",
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
        self._protocol = _protocol_of(self._first)
        self._next_sequence = self._behind(sequence, self._segment_size)
        self._next_number = (number + 1) & 0xFFFF
        # RFC 6864 section 4.1: with DF, and in one piece, it means nothing.
        self._has_numbers = _ip_size(self._first) == _IPV4_SIZE and not self._first[6] & DF
        self._is_full = self._is_pushed = False
        return self._segment_size > 0 and flags in _ORDINARY

    def _behind(self, sequence: int, octets: int) -> int:
        return (sequence + octets) & 0xFFFFFFFF if self._protocol == TCP else 0

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
        self._next_sequence = self._behind(sequence, payload_size)
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
        self._next_sequence = self._behind(self._next_sequence, len(taken) * payload_size)
        self._next_number = (self._next_number + len(taken)) & 0xFFFF
        flags_at = _ip_size(self._first) + _FLAGS_AT
        self._is_pushed = self._protocol == TCP and bool(taken[-1][flags_at] & PSH)
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
        tcp = Segments.TCP_IPV4 if ip_size == _IPV4_SIZE else Segments.TCP_IPV6
        return Offload(
            needs_checksum=True,
            segments=tcp if self._protocol == TCP else Segments.UDP,
            header_size=self._header_size,
            segment_size=self._segment_size,
            checksum_start=ip_size,
            checksum_offset=CHECKSUM_AT[self._protocol],
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
        if self._protocol == UDP:
            _WORD.pack_into(header, ip_size + _LENGTH_AT, self._size - ip_size)
        ends = bytes(header[ADDRESSES_AT[ip_size] : ip_size])
        half = len(ends) // 2
        pseudo = pseudo_header(ends[:half], ends[half:], self._protocol, self._size - ip_size)
        at = ip_size + CHECKSUM_AT[self._protocol]
        _WORD.pack_into(header, at, ones_complement_sum(pseudo))
        return bytes(header)


def _read(packet: memoryview) -> _Segment | None:
    """A packet as if it were a plain segment of TCP, of whatever flags, or a plain datagram of UDP.
    None if it is too short."""
    try:
        if packet[0] == _IPV4_WITHOUT_OPTIONS:
            return _read_ipv4(packet)
        return _read_ipv6(packet)
    except (IndexError, StructError):
        return None


def _read_ipv4(packet: memoryview) -> _Segment | None:
    if packet[9] == UDP:
        first, size, number, kind, checksum, ends, length, udp = _UDP_IN_IPV4.unpack_from(packet)
        flags, ip_sum = _DATAGRAM, size + number + checksum
        if not udp or length != size - _IPV4_SIZE:
            flags = _UNSUMMED
        same = first, kind, flags
        return ends + _UDP, same, _UDP_IN_IPV4.size, size, 0, flags, number, ip_sum
    layout = _IPV4_LAYOUTS[packet[_IPV4_SIZE + _OFFSET_AT] >> 4]
    if layout is None:
        return None
    first, size, number, kind, checksum, ends, sequence, ack, flags, window, rest = (
        layout.unpack_from(packet)
    )
    alike = first, kind, ack, flags & ~PSH, window, rest
    return ends, alike, layout.size, size, sequence, flags, number, size + number + checksum


def _read_ipv6(packet: memoryview) -> _Segment | None:
    if packet[6] == UDP:
        first, payload, kind, ends, length, udp = _UDP_IN_IPV6.unpack_from(packet)
        flags = _DATAGRAM if udp and length == payload else _UNSUMMED
        same, size = (first, kind, flags), _IPV6_SIZE + payload
        return ends + _UDP, same, _UDP_IN_IPV6.size, size, 0, flags, 0, 0
    layout = _IPV6_LAYOUTS[packet[_IPV6_SIZE + _OFFSET_AT] >> 4]
    if layout is None:
        return None
    first, payload, kind, ends, sequence, ack, flags, window, rest = layout.unpack_from(packet)
    alike = first, kind, ack, flags & ~PSH, window, rest
    return ends, alike, layout.size, _IPV6_SIZE + payload, sequence, flags, 0, 0


def headers_of(packet: memoryview) -> tuple[int, int, int] | None:
    """The sizes of the IP header and of all headers, and the protocol, if it is such a segment of
    TCP or datagram of UDP that others may join, and nothing else behind it."""
    segment = _read(packet)
    if segment is None or not _is_plain(packet):
        return None
    _, _, header_size, size, _, flags, _, _ = segment
    if size != len(packet) or header_size >= size or flags & ~PSH not in _ORDINARY:
        return None
    return _ip_size(packet), header_size, _protocol_of(packet)


def _is_plain(packet: memoryview) -> bool:
    """Whether a packet that could be read is a segment of TCP, or a datagram: without IP options or
    extension headers, and in one piece."""
    if packet[0] == _IPV4_WITHOUT_OPTIONS:
        return packet[9] in CHECKSUM_AT and not (packet[6] & _FRAGMENT or packet[7])
    return packet[0] >> 4 == _IPV6 and packet[6] in CHECKSUM_AT


def _protocol_of(packet: memoryview) -> int:
    return packet[9] if packet[0] >> 4 == _IPV4 else packet[6]


def _ip_size(packet: memoryview) -> int:
    return _IPV4_SIZE if packet[0] >> 4 == _IPV4 else _IPV6_SIZE


def _is_intact(packet: memoryview) -> bool:
    """Whether the checksum of a segment or datagram is right. Addresses and it are one stretch."""
    ip_size = _ip_size(packet)
    pseudo = _protocol_of(packet) + len(packet) - ip_size
    return (sum_of(packet[ADDRESSES_AT[ip_size] :]) + pseudo) % 0xFFFF == 0
