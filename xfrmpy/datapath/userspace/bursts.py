"""Super-packets of TCP cut and sealed where they lie: the fast twin of `segments` and `esp.packet`.

The host's super-packet is scattered over a buffer, the payload of each segment to where it leaves
from; then each segment is given its headers, its checksum and its trailer, and encrypted in place.
A layout, which is all the views that this takes, is made once for each shape of super-packet.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

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
from xfrmpy.esp.checksum import ones_complement_sum
from xfrmpy.esp.ip import begins_at
from xfrmpy.esp.packet import IPV4_IN_ESP, IPV6_IN_ESP, Form, Run, trailer_of

MAX_SUPER_PACKET = 65535
MIN_SEGMENT, MAX_SEGMENT = MAX_SUPER_PACKET // MAX_ROWS + 1, MAX_SUPER_PACKET // 2
"""Payloads. Many small segments are rare: they would take hundreds of views."""

MAX_HEADERS = 256
"""Of IP and TCP together. Both are smaller unless IPv6 has extension headers."""

_BUFFER = 3 * MAX_SUPER_PACKET
"""Octets: room for the most segments with what is around them, or for a few that are large."""

ENOUGH = 48_000
"""Octets, sealed: no more super-packets are put behind them, for a send takes 64 KiB."""

MAX_LAYOUTS = 16
"""Each has some 100 KiB of views. A host's flows have as many shapes as paths and TCP options."""

_TCP_SIZE = 20
_DF = 0x40
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_ZERO = 0xFFFF
_SEQUENCE = Struct(">I")
_VERSIONS: dict[int, int] = {Segments.TCP_IPV4: 4, Segments.TCP_IPV6: 6}
_IP_SIZE = {4: 20, 6: 40}
_FLAGS, _CHECKSUM = 13, 16
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


class _Taken(NamedTuple):
    """A super-packet in a layout: its headers, the octets behind them, the rows of its segments."""

    head: bytes
    offload: Offload
    payload: int
    begin: int
    end: int


class Layout:
    """Where the segments of super-packets of one shape lie, sealed in one form. All layouts may
    share one buffer.

    Each super-packet is read to `next_places`, and lies then behind those that were `add`ed before.
    All of these are sealed together.
    """

    def __init__(self, shape: Shape, form: Form, buffer: memoryview) -> None:
        self.shape = shape
        self.form = form
        whole = shape.headers + shape.segment
        trailer = trailer_of(whole, _NEXT_HEADER[shape.version], form.alignment)
        self._trailer = np.frombuffer(trailer, np.uint8)
        self._trailer_sum = ones_complement_sum(bytes(len(trailer) % 2) + trailer)  # Ends a word.
        self._plaintext = plaintext = whole + len(trailer)
        self.stride = form.head + plaintext + form.icv
        self._buffer = buffer
        self._before = memoryview(bytearray(virtio.SIZE + shape.headers))
        self._most = -(-(MAX_SUPER_PACKET - shape.headers) // shape.segment)
        self._room = max(self._most, min(MAX_ROWS, len(buffer) // self.stride))
        self._payloads = self._views(form.head + shape.headers, shape.segment)
        self._rows = rows_of(buffer, self._room, self.stride, form, plaintext)
        tcp = form.head + shape.ip
        self._headers = self._table(form.head, shape.headers)
        self._sequences = self._column(tcp + 4, ">u4")
        self._steps = NUMBERS * np.uint64(shape.segment)
        self._flags = tcp + _FLAGS
        self._checksums = self._column(tcp + _CHECKSUM, "=u2")
        self._words = self._table(tcp, plaintext - shape.ip, "=u4")
        self._trailers = self._table(form.head + whole, len(trailer))
        self._taken: list[_Taken] = []
        self._begin = self._end = 0  # rows of those that were taken

    def _views(self, offset: int, size: int) -> list[memoryview]:
        begins = range(offset, offset + self._room * self.stride, self.stride)
        return [self._buffer[begin : begin + size] for begin in begins]

    def _table(self, offset: int, size: int, kind: str = "u1") -> Numbers:
        return table(self._buffer, self._room, self.stride, offset, size, kind)

    def _column(self, offset: int, kind: str) -> Numbers:
        return column(self._buffer, self._room, self.stride, offset, kind)

    # Reading.

    def next_places(self) -> list[memoryview]:
        """What the next super-packet is to be read into: its headers, then the payload of each
        segment."""
        if not self._taken:
            self._begin = self._end = 0
        return [self._before, *self._payloads[self._end : self._end + self._most]]

    @property
    def offload(self) -> Offload:
        """Of the packet that was read last."""
        return virtio.decode_offload(self._before)

    @property
    def headers(self) -> bytes:
        """Those of the super-packet, with its own length in them."""
        return bytes(self._before[virtio.SIZE :])

    def gather(self, size: int) -> bytes:
        """The packet that was read last, of so many octets."""
        return self._gather(self.headers, size - self.shape.headers, self._end)[:size]

    def _gather(self, head: bytes, payload: int, begin: int) -> bytes:
        end = begin + max(0, -(-payload // self.shape.segment))
        return b"".join([head, *self._payloads[begin:end]])[: len(head) + payload]

    def scatter(self, packet: bytes, offload: Offload) -> None:
        """Put a super-packet there that was read otherwise."""
        at, size = self.shape.headers, self.shape.segment
        before, *places = self.next_places()
        before[:] = virtio.encode_offload(offload) + packet[:at]
        for place in places[: -(-(len(packet) - at) // size)]:
            piece = packet[at : at + size]
            place[: len(piece)] = piece
            at += size

    # What has been read, and waits for others.

    def add(self, payload: int) -> int:
        """Take the super-packet that was read last, which has more than one segment of payload;
        returns how many. It may be behind one without a shorter segment at its end."""
        begin, count = self._end, -(-payload // self.shape.segment)
        self._end += count
        self._taken.append(_Taken(self.headers, self.offload, payload, begin, self._end))
        return count

    @property
    def count(self) -> int:
        """Segments that were taken and are not sealed."""
        return self._end - self._begin if self._taken else 0

    @property
    def octets(self) -> int:
        """Of the packets that these become."""
        headers = self.count * self.shape.headers
        return headers + sum(taken.payload for taken in self._taken)

    @property
    def rest(self) -> int:
        """The payload of the last of them."""
        return (self._taken[-1].payload - 1) % self.shape.segment + 1

    @property
    def head(self) -> bytes:
        """The headers of the first."""
        return self._taken[0].head

    @property
    def is_full(self) -> bool:
        """Whether none can be behind them, or has no use there."""
        is_enough = self.count * self.stride >= ENOUGH
        return is_enough or self.rest < self.shape.segment or self._end + self._most > self._room

    def withdraw(self) -> list[tuple[bytes, Offload]]:
        """The super-packets as they came."""
        taken, self._taken = self._taken, []
        self._begin = self._end
        return [(self._gather(each.head, each.payload, each.begin), each.offload) for each in taken]

    # Sealing.

    def seal(self, run: Run) -> memoryview:
        """Every segment of what was taken. `run` has as many numbers.

        Each is `stride` long but the last, which may be shorter.
        """
        rest, taken, self._taken = self.rest, self._taken, []
        begin, end = self._begin, self._end
        self._begin = end
        self._trailers[begin:end] = self._trailer
        for each in taken:
            self._write_headers(each)
        self._checksums[begin:end] = _ZERO - sums_of(self._words[begin:end])
        last = self._plaintext
        if rest < self.shape.segment:
            last = self._write_last_trailer(end, rest)
        self._rows.seal(run, begin, end, last)
        size = (end - 1) * self.stride + self.form.head + last + self.form.icv
        return self._buffer[begin * self.stride : size]

    def _write_headers(self, taken: _Taken) -> None:
        """With the sum of the pseudo-header in the checksum's place, less that of the trailer, for
        what is summed up ends behind it."""
        head, payload, size = taken.head, taken.payload, self.shape.segment
        ip, tcp, flags = head[: self.shape.ip], head[self.shape.ip :], head[self.shape.ip + _FLAGS]
        begin, end = taken.begin, taken.end
        rest = (payload - 1) % size + 1

        def headers(own: int, behind: int) -> Numbers:
            cut = tcp_header_of(tcp, 0, is_first=False, is_last=False)
            cut = for_length(cut, _CHECKSUM, own - payload - behind)
            return np.frombuffer(ip_header_of(ip, len(tcp) + own) + cut, np.uint8)

        self._headers[begin:end] = headers(size, self._trailer_sum)
        if rest < size:
            self._headers[end - 1] = headers(rest, 0)
            last, at = self._last(end), self.shape.headers + rest
            last[at:] = bytes(len(last) - at)
        self._buffer[begin * self.stride + self._flags] |= flags & _CWR
        self._buffer[(end - 1) * self.stride + self._flags] |= flags & (_FIN | _PSH)
        first = _SEQUENCE.unpack_from(tcp, 4)[0]
        self._sequences[begin:end] = self._steps[: end - begin] + first

    def _write_last_trailer(self, end: int, rest: int) -> int:
        """Of a shorter segment; returns how long its plaintext is with it."""
        behind = self.shape.headers + rest
        trailer = trailer_of(behind, _NEXT_HEADER[self.shape.version], self.form.alignment)
        self._last(end)[behind : behind + len(trailer)] = trailer
        return behind + len(trailer)

    def _last(self, end: int) -> memoryview:
        """The plaintext of the row before this one."""
        begin = (end - 1) * self.stride + self.form.head
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
