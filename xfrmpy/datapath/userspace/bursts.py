"""Super-packets of TCP cut and sealed where they lie: the fast twin of `segments` and `esp.packet`.

The host's super-packet is scattered over a buffer, the payload of each segment to where it leaves
from; then each segment is given its headers, its checksum and its trailer, and encrypted in place.
A layout, which is all the views that this takes, is made once for each shape of super-packet.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

import numpy as np

from xfrmpy.datapath.userspace import virtio
from xfrmpy.datapath.userspace.rows import rows_of
from xfrmpy.datapath.userspace.segments import TCP, for_length, ip_header_of, tcp_header_of
from xfrmpy.datapath.userspace.vectors import (
    MAX_ROWS,
    NUMBERS,
    Numbers,
    column,
    sums_of,
    table,
)
from xfrmpy.datapath.userspace.virtio import Offload, Segments
from xfrmpy.esp.ip import begins_at
from xfrmpy.esp.packet import IPV4_IN_ESP, IPV6_IN_ESP, Form, Run, trailer_of

MAX_SUPER_PACKET = 65535
MIN_SEGMENT, MAX_SEGMENT = MAX_SUPER_PACKET // MAX_ROWS + 1, MAX_SUPER_PACKET // 2
"""Payloads. Many small segments are rare: they would take hundreds of views."""

MAX_HEADERS = 256
"""Of IP and TCP together. Both are smaller unless IPv6 has extension headers."""

_BUFFER = 3 * MAX_SUPER_PACKET
"""Octets: room for the most segments with what is around them, or for a few that are large."""

MAX_LAYOUTS = 32
"""Each has some 40 KiB of views. A host's flows have as many shapes as paths and TCP options."""

_TCP_SIZE = 20
_DF = 0x40
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_ZERO = 0xFFFF
_SEQUENCE = Struct(">I")
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


class Layout:
    """Where the segments of super-packets of one shape lie, sealed in one form. All layouts may
    share one buffer.

    `parts` are what a super-packet is read into: its headers, then the payload of each segment.
    """

    def __init__(self, shape: Shape, form: Form, buffer: memoryview) -> None:
        self.shape = shape
        self.form = form
        whole = shape.headers + shape.segment
        self._trailer = trailer_of(whole, _NEXT_HEADER[shape.version], form.alignment)
        self._plaintext = plaintext = whole + len(self._trailer)
        self.stride = form.head + plaintext + form.icv
        self._buffer = buffer
        self._before = memoryview(bytearray(virtio.SIZE + shape.headers))
        self._count = -(-(MAX_SUPER_PACKET - shape.headers) // shape.segment)
        self.parts = [self._before, *self._views(form.head + shape.headers, shape.segment)]
        self._rows = rows_of(buffer, self._count, self.stride, form, plaintext)
        tcp = form.head + shape.ip
        self._headers = self._table(form.head, shape.headers)
        self._sequences = self._column(tcp + 4, ">u4")
        self._checksums = self._column(tcp + _CHECKSUM, "=u2")
        self._words = self._table(tcp, plaintext - shape.ip, "=u4")
        self._trailers = self._table(form.head + whole, len(self._trailer))

    def _views(self, offset: int, size: int) -> list[memoryview]:
        begins = range(offset, offset + self._count * self.stride, self.stride)
        return [self._buffer[begin : begin + size] for begin in begins]

    def _table(self, offset: int, size: int, kind: str = "u1") -> Numbers:
        return table(self._buffer, self._count, self.stride, offset, size, kind)

    def _column(self, offset: int, kind: str) -> Numbers:
        return column(self._buffer, self._count, self.stride, offset, kind)

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
        for part in self.parts[1 : 1 - (at - len(packet)) // size]:
            piece = packet[at : at + size]
            part[: len(piece)] = piece
            at += size

    def seal(self, payload: int, run: Run) -> memoryview:
        """Every segment of a super-packet with so much payload, which is more than one segment's.

        Each is `stride` long but the last, which may be shorter. `run` has as many numbers.
        """
        count = -(-payload // self.shape.segment)
        rest = payload - (count - 1) * self.shape.segment
        self._write_headers(payload, count)
        self._write_checksums(count, rest)
        last = self._write_trailers(count, rest)
        self._rows.seal(run, 0, count, last)
        return self._buffer[: (count - 1) * self.stride + self.form.head + last + self.form.icv]

    def _write_headers(self, payload: int, count: int) -> None:
        """With the sum of the pseudo-header in the checksum's place."""
        head, size = self.headers, self.shape.segment
        ip, tcp, flags = head[: self.shape.ip], head[self.shape.ip :], head[self.shape.ip + 13]
        rest = payload - (count - 1) * size

        def headers(own: int, *, is_first: bool = False, is_last: bool = False) -> Numbers:
            cut = tcp_header_of(tcp, 0, is_first=is_first, is_last=is_last)
            cut = for_length(cut, _CHECKSUM, own - payload)
            return np.frombuffer(ip_header_of(ip, len(tcp) + own) + cut, np.uint8)

        self._headers[:count] = headers(size)
        if flags & _CWR:
            self._headers[0] = headers(size, is_first=True)
        if flags & (_FIN | _PSH) or rest < size:
            self._headers[count - 1] = headers(rest, is_last=True)
        first = _SEQUENCE.unpack_from(tcp, 4)[0]
        self._sequences[:count] = NUMBERS[:count] * size + first

    def _write_checksums(self, count: int, rest: int) -> None:
        """Of headers and payloads, while there is nothing behind them."""
        self._trailers[:count] = 0
        last = self._last(count)
        end = self.shape.headers + rest
        last[end:] = bytes(len(last) - end)
        self._checksums[:count] = _ZERO - sums_of(self._words[:count])

    def _write_trailers(self, count: int, rest: int) -> int:
        """Returns how long the plaintext of the last segment is with its own."""
        self._trailers[:count] = np.frombuffer(self._trailer, np.uint8)
        end = self.shape.headers + rest
        trailer = trailer_of(end, _NEXT_HEADER[self.shape.version], self.form.alignment)
        self._last(count)[end : end + len(trailer)] = trailer
        return end + len(trailer)

    def _last(self, count: int) -> memoryview:
        """The plaintext of the last of so many segments."""
        begin = (count - 1) * self.stride + self.form.head
        return self._buffer[begin : begin + self._plaintext]


class Layouts:
    """Those of the shapes and forms that were met, and their common buffer."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(_BUFFER))
        self._made: dict[tuple[Shape, Form], Layout] = {}

    def of(self, shape: Shape, form: Form) -> Layout:
        made = self._made.get((shape, form))
        if made is None:
            if len(self._made) >= MAX_LAYOUTS:
                self._made.clear()
            made = self._made[shape, form] = Layout(shape, form, self._buffer)
        return made
