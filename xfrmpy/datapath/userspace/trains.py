"""Packets of one size and flow that were read one behind the other, sealed together where they lie.

A host whose programs send datagrams one by one hands them over one by one. Each is read to where it
will leave from, and when there are no more of its kind, all are given checksum, ESP header and
trailer in one pass, and encrypted: the fast twin of `segments` and `esp.packet` for these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise

import numpy as np

from xfrmpy.datapath.userspace import virtio
from xfrmpy.datapath.userspace.forwarding import NEXT_HEADER
from xfrmpy.datapath.userspace.rows import rows_of
from xfrmpy.datapath.userspace.sending import MAX_OCTETS, MAX_TOGETHER
from xfrmpy.datapath.userspace.vectors import Numbers, column, sums_of, table
from xfrmpy.datapath.userspace.virtio import Offload, Segments
from xfrmpy.esp.ip import flow_of
from xfrmpy.esp.packet import Form, Run, trailer_of

MIN_TRAIN = 4
"""Packets. Fewer take longer in this way."""

MAX_TRAINS = 16
"""Sizes of which the places are kept, some 60 KiB of views each."""

MAX_PACKET = 9000
"""Octets; jumbo frames."""

_ZERO = 0xFFFF
_OVERFLOW = 65535
_ALIKE_IPV4 = (slice(0, 4), slice(6, 8), slice(9, 10), slice(12, 24))
_ALIKE_IPV6 = (slice(0, 7), slice(8, 44))
"""What an SPD and an outer header look at: all but Identification, hops and checksum."""


class Train:
    """Places for packets of a size and IP version, sealed in one form. All may share one buffer."""

    def __init__(
        self, size: int, version: int, form: Form, buffer: memoryview, overflow: memoryview
    ) -> None:
        self.size = size
        self.version = version
        self.form = form
        self._trailer = trailer_of(size, NEXT_HEADER[version], form.alignment)
        self._plaintext = size + len(self._trailer)
        self.stride = form.head + self._plaintext + form.icv
        self._buffer = buffer
        self.room = min(MAX_TOGETHER, MAX_OCTETS // self.stride)
        told = memoryview(bytearray(self.room * virtio.SIZE))
        self._told = [told[at : at + virtio.SIZE] for at in range(0, len(told), virtio.SIZE)]
        self._packets = self._views(form.head, size)
        self.parts = [[*pair, overflow] for pair in zip(self._told, self._packets, strict=True)]
        self._rows = rows_of(buffer, self.room, self.stride, form, self._plaintext)
        self._headers = self._table(form.head, 44)
        self._offloads = table(told, self.room, virtio.SIZE, 0, virtio.SIZE)
        self._trailers = self._table(form.head + size, len(self._trailer))

    def _views(self, offset: int, size: int) -> list[memoryview]:
        begins = range(offset, offset + self.room * self.stride, self.stride)
        return [self._buffer[begin : begin + size] for begin in begins]

    def _table(self, offset: int, size: int, kind: str = "u1") -> Numbers:
        return table(self._buffer, self.room, self.stride, offset, size, kind)

    def offload(self, number: int) -> Offload:
        return virtio.decode_offload(self._told[number])

    def packet(self, number: int) -> bytes:
        return bytes(self._packets[number])

    def gather(self, number: int, size: int) -> bytes:
        """What was read to that place and is of another size."""
        return b"".join(self.parts[number][1:])[:size]

    def streaks(self, count: int) -> Iterator[tuple[int, int]]:
        """Where packets begin and end, of so many, that are of one flow and have left the same
        undone; of a few it is not asked."""
        if count < MIN_TRAIN:
            return iter([(0, count)] if count else [])
        headers, told = self._headers[:count], self._offloads[:count]
        differences = (headers[1:] ^ headers[:-1]) & _alike(self.version)
        differs = np.bitwise_or.reduce(differences, axis=1) != 0
        differs |= (told[1:] != told[:-1]).any(axis=1)
        return pairwise([0, *(differs.nonzero()[0] + 1).tolist(), count])

    def is_fit(self, number: int) -> bool:
        """Whether a packet, and what follows it in its streak, may be sealed with others."""
        offload = self.offload(number)
        at, packet = offload.checksum_start, self.packet(number)
        is_whole = packet[0] >> 4 == self.version and flow_of(packet) is not None
        if not offload.needs_checksum:
            return is_whole and offload.segments == Segments.NONE
        is_inside = not at % 4 and at + offload.checksum_offset + 2 <= self.size
        return is_whole and offload.segments == Segments.NONE and is_inside

    def seal(self, begin: int, end: int, run: Run) -> memoryview:
        """A streak that is fit, each packet `stride` long. `run` has as many numbers."""
        offload = self.offload(begin)
        if offload.needs_checksum:
            self._write_checksums(begin, end, offload)
        self._trailers[begin:end] = np.frombuffer(self._trailer, np.uint8)
        self._rows.seal(run, begin, end, self._plaintext)
        return self._buffer[begin * self.stride : end * self.stride]

    def _write_checksums(self, begin: int, end: int, offload: Offload) -> None:
        """While there is nothing behind the packets."""
        self._trailers[begin:end] = 0
        start, words = offload.checksum_start, (self._plaintext - offload.checksum_start) // 4
        start += self.form.head
        sums = sums_of(self._table(start, 4 * words, "=u4")[begin:end])
        at = start + offload.checksum_offset
        checksums = column(self._buffer, self.room, self.stride, at, "=u2")
        checksums[begin:end] = _ZERO - sums


@cache
def _alike(version: int) -> Numbers:
    mask = np.zeros(44, np.uint8)
    for part in _ALIKE_IPV4 if version == 4 else _ALIKE_IPV6:
        mask[part] = 0xFF
    return mask


class Trains:
    """Those of the sizes and forms that were met, and their common buffer."""

    def __init__(self, form_of: Callable[[bytes, int], Form | None]) -> None:
        """`form_of` says of a packet, and the `if_id` of its device, how its SA seals several."""
        self._form_of = form_of
        self._buffer = memoryview(bytearray(MAX_OCTETS))
        self._overflow = memoryview(bytearray(_OVERFLOW))
        self._made: dict[tuple[int, int, Form], Train] = {}
        self._last = 0, 0

    def after(self, packet: bytes, offload: Offload, if_id: int = 0) -> Train | None:
        """Where to read what comes next, if the packet is the second of its size in a row."""
        kind = len(packet), packet[0] >> 4 if packet else 0
        last, self._last = self._last, kind
        if last != kind or offload.segments != Segments.NONE or not 44 <= len(packet) <= MAX_PACKET:
            return None
        form = self._form_of(packet, if_id) if kind[1] in NEXT_HEADER else None
        if form is None:
            return None
        made = self._made.get((*kind, form))
        if made is None:
            if len(self._made) >= MAX_TRAINS:
                self._made.clear()
            made = Train(*kind, form, self._buffer, self._overflow)
            self._made[*kind, form] = made
        return made if made.room >= MIN_TRAIN else None
