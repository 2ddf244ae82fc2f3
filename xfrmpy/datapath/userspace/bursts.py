"""Super-packets of TCP cut and sealed where they lie: the fast twin of `segments` and `esp.packet`.

The host's super-packet is scattered over a buffer, the payload of each segment to where it leaves
from; then each segment is given its headers, its checksum and its trailer, and encrypted in place.
A layout, which is all the views that this takes, is made once for each shape of super-packet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from struct import Struct
from typing import NamedTuple

from xfrmpy.datapath.userspace import virtio
from xfrmpy.datapath.userspace.segments import TCP, ip_header_of
from xfrmpy.datapath.userspace.virtio import Offload, Segments
from xfrmpy.esp.checksum import ones_complement_sum, quarters_of
from xfrmpy.esp.ip import begins_at
from xfrmpy.esp.packet import IPV4_IN_ESP, IPV6_IN_ESP, Run, trailer_of

MAX_SUPER_PACKET = 65535
MIN_SEGMENT, MAX_SEGMENT = 512, MAX_SUPER_PACKET // 2
"""Payloads. Many small segments are rare: they would take hundreds of views."""

MAX_HEADERS = 256
"""Of IP and TCP together. Both are smaller unless IPv6 has extension headers."""

_BUFFER = 3 * MAX_SUPER_PACKET
"""Octets: room for the most segments with what is around them, or for a few that are large."""

MAX_LAYOUTS = 32
"""Each has some 40 KiB of views. A host's flows have as many shapes as paths and TCP options."""

_ESP = 16  # SPI, sequence number, IV
_ICV = 16
_TCP_SIZE = 20
_DF = 0x40
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_SEQUENCE = Struct(">I")
_COUNTER = Struct(">Q")
_EXTENDED = Struct(">IQ")  # SPI, whole sequence number (RFC 4106 section 5)
_VERSIONS: dict[int, int] = {Segments.TCP_IPV4: 4, Segments.TCP_IPV6: 6}
_IP_SIZE = {4: 20, 6: 40}
_CHECKSUM = 16
_NEXT_HEADER = {4: IPV4_IN_ESP, 6: IPV6_IN_ESP}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What super-packets have in common that are laid out alike; sizes in octets.

    `headers` is that of IP and TCP together, `segment` the payload of each segment but the last.
    """

    version: int
    ip: int
    headers: int
    segment: int


def shape_of(head: bytes | memoryview, offload: Offload) -> Shape | None:
    """Of a super-packet that begins so; None for what is not cut in place.

    That is what is not TCP; and IPv4 without DF, each of whose packets has an Identification of its
    own (RFC 6864 section 4.2).
    """
    version, ip = _VERSIONS.get(offload.segments), offload.checksum_start
    if version is None or not _IP_SIZE[version] <= ip <= len(head) - _TCP_SIZE:
        return None
    if head[0] >> 4 != version or (version == 4 and not head[6] & _DF):
        return None
    if not offload.needs_checksum or offload.checksum_offset != _CHECKSUM:
        return None
    if not begins_at(head, ip, TCP):
        return None
    headers = ip + (head[ip + 12] >> 4) * 4
    if not ip + _TCP_SIZE <= headers <= min(MAX_HEADERS, len(head)):
        return None
    if not MIN_SEGMENT <= offload.segment_size <= MAX_SEGMENT:
        return None
    return Shape(version=version, ip=ip, headers=headers, segment=offload.segment_size)


class _Place(NamedTuple):
    """Of one segment: where it begins in the buffer, and its parts there."""

    begin: int
    payload: memoryview
    trailer: memoryview
    associated: memoryview
    plaintext: memoryview
    sealed: memoryview


@dataclass(frozen=True, slots=True)
class _Header:
    """Of a run of segments of one size, but for their sequence numbers.

    `total` is the ones' complement sum of what TCP's checksum covers in it.
    """

    before: bytes
    between: bytes
    after: bytes
    sequence: int
    total: int


class Layout:
    """Where the segments of super-packets of one shape lie. All layouts may share one buffer.

    `parts` are what a super-packet is read into: its headers, then the payload of each segment.
    """

    def __init__(self, shape: Shape, buffer: memoryview) -> None:
        self.shape = shape
        self._trailer = trailer_of(shape.headers + shape.segment, _NEXT_HEADER[shape.version])
        self.stride = _ESP + shape.headers + shape.segment + len(self._trailer) + _ICV
        self._buffer = buffer
        self._before = memoryview(bytearray(virtio.SIZE + shape.headers))
        count = -(-(MAX_SUPER_PACKET - shape.headers) // shape.segment)
        self._places = [self._place(number, shape.segment) for number in range(count)]
        self.parts = [self._before, *(place.payload for place in self._places)]
        self._pack = Struct(f">IIQ{shape.ip + 4}sI8sH{shape.headers - shape.ip - 18}s").pack_into

    def _place(self, number: int, size: int) -> _Place:
        begin = number * self.stride
        payload = begin + _ESP + self.shape.headers
        trailer = payload + size
        end = trailer + len(trailer_of(self.shape.headers + size, 0))
        return _Place(
            begin=begin,
            payload=self._buffer[payload:trailer],
            trailer=self._buffer[trailer:end],
            associated=self._buffer[begin : begin + 8],
            plaintext=self._buffer[begin + _ESP : end],
            sealed=self._buffer[begin + _ESP : end + _ICV],
        )

    @property
    def offload(self) -> Offload:
        """Of the packet that was read into the parts."""
        return virtio.decode_offload(self._before)

    @property
    def headers(self) -> bytes:
        """Those of the super-packet, with its own length in them."""
        return bytes(self._before[virtio.SIZE :])

    def gather(self, size: int) -> bytes:
        """The packet of so many octets that was read into the parts."""
        count = max(0, -(-(size - self.shape.headers) // self.shape.segment))
        return b"".join(self.parts[: count + 1])[virtio.SIZE :][:size]

    def scatter(self, packet: bytes) -> None:
        """Put a super-packet there that was read otherwise."""
        at, size = self.shape.headers, self.shape.segment
        self._before[virtio.SIZE :] = packet[:at]
        for place in self._places[: -(-(len(packet) - at) // size)]:
            piece = packet[at : at + size]
            place.payload[: len(piece)] = piece
            at += size

    def seal(self, payload: int, run: Run) -> memoryview:
        """Every segment of a super-packet with so much payload, which is more than one segment's.

        Each is `stride` long but the last, which may be shorter. `run` has as many numbers.
        """
        size = self.shape.segment
        count = -(-payload // size)
        rest = payload - (count - 1) * size
        first, middle, last = _headers(self.headers, self.shape, payload, rest)
        self._seal(self._places[:1], run.first, run, first, self._trailer)
        self._seal(self._places[1 : count - 1], run.first + 1, run, middle, self._trailer)
        final, trailer = self._places[count - 1], self._trailer
        if rest < size:
            final = self._place(count - 1, rest)
            trailer = trailer_of(self.shape.headers + rest, _NEXT_HEADER[self.shape.version])
        self._seal([final], run.first + count - 1, run, last, trailer)
        return self._buffer[: final.begin + _ESP + len(final.sealed)]

    def _seal(
        self, places: Sequence[_Place], number: int, run: Run, header: _Header, trailer: bytes
    ) -> None:
        """The loop that all is for. docs/userspace-datapath.md has what each step takes."""
        if not places:
            return
        size = len(places[0].payload)
        in_quarters, at = quarters_of(size).unpack_from, _ESP + self.shape.headers
        odd = size % 2 * 8
        total, sequence = header.total, header.sequence
        before, between, after = header.before, header.between, header.after
        buffer, spi, is_extended = self._buffer, run.spi, run.is_extended
        nonce, salt = bytearray(run.in_place.salt + bytes(_COUNTER.size)), len(run.in_place.salt)
        extended = bytearray(_EXTENDED.size)
        pack, pack_counter, seal_into = self._pack, _COUNTER.pack_into, run.in_place.seal_into
        number_of = int.from_bytes
        for begin, _, trailing, associated, plaintext, sealed in places:
            one, two, three, four = in_quarters(buffer, begin + at)
            words = number_of(one, "big") + number_of(two, "big")
            words += number_of(three, "big") + (number_of(four, "big") << odd)
            checksum = 0xFFFF - (words + total + sequence) % 0xFFFF
            pack(
                *(buffer, begin, spi, number & 0xFFFFFFFF, number),
                *(before, sequence, between, checksum, after),
            )
            trailing[:] = trailer
            pack_counter(nonce, salt, number)
            if is_extended:
                _EXTENDED.pack_into(extended, 0, spi, number)
                seal_into(nonce, plaintext, extended, sealed)
            else:
                seal_into(nonce, plaintext, associated, sealed)
            sequence = (sequence + size) & 0xFFFFFFFF
            number += 1


def _headers(
    head: bytes, shape: Shape, payload: int, rest: int
) -> tuple[_Header, _Header, _Header]:
    """Of the first segment, of those behind it, and of the last, whose payload is `rest`."""
    ip, tcp, size = head[: shape.ip], head[shape.ip :], shape.segment
    flags = tcp[13]
    between = tcp[8:13] + bytes((flags & ~(_CWR | _FIN | _PSH),)) + tcp[14:16]
    middle = _Header(
        before=ip_header_of(ip, len(tcp) + size) + tcp[:4],
        between=between,
        after=tcp[18:],
        sequence=(_SEQUENCE.unpack_from(tcp, 4)[0] + size) & 0xFFFFFFFF,
        # The sum of the pseudo-header is where the checksum will be, for the whole length.
        total=ones_complement_sum(tcp[:4] + between + tcp[16:]) + size - payload,
    )
    first = replace(
        middle,
        between=_with_flags(between, flags & _CWR),
        sequence=_SEQUENCE.unpack_from(tcp, 4)[0],
        total=middle.total + (flags & _CWR),
    )
    ends = flags & (_FIN | _PSH)
    last = replace(
        middle,
        before=ip_header_of(ip, len(tcp) + rest) + tcp[:4],
        between=_with_flags(between, ends),
        sequence=(first.sequence + payload - rest) & 0xFFFFFFFF,
        total=middle.total + ends + rest - size,
    )
    return first, middle, last


def _with_flags(between: bytes, more: int) -> bytes:
    return between[:5] + bytes((between[5] | more,)) + between[6:]


class Layouts:
    """Those of the shapes that were met, and their common buffer."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(_BUFFER))
        self._made: dict[Shape, Layout] = {}

    def of(self, shape: Shape) -> Layout:
        made = self._made.get(shape)
        if made is None:
            if len(self._made) >= MAX_LAYOUTS:
                self._made.clear()
            made = self._made[shape] = Layout(shape, self._buffer)
        return made
