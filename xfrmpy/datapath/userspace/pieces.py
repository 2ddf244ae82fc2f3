"""Datagrams of one size that came as one piece, opened and read all at once.

The fast twin of `InboundSa.open_run` and of how `coalescing` reads, for many packets of one SA: one
look at all of them tells their sequence numbers, another what is behind their payloads, and a third
which segments of TCP follow one another, or which datagrams of UDP. Only the cipher is called for
each. What is not of this kind is left as it was, or given back to be read one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from struct import Struct
from typing import NamedTuple

import numpy as np

from xfrmpy.datapath.userspace import vectors
from xfrmpy.datapath.userspace.coalescing import (
    ADDRESSES_AT,
    CHECKSUM_AT,
    DF,
    PSH,
    TCP,
    headers_of,
)
from xfrmpy.datapath.userspace.rows import nonces_with
from xfrmpy.datapath.userspace.vectors import (
    MAX_ROWS,
    Answers,
    Numbers,
    native_sum,
    sums_of,
)
from xfrmpy.esp.packet import Form, InboundSa, OpenedRun, trailer_in

MIN_ROWS = 8
"""Packets. Fewer take longer in this way: four of TCP 93 us in the place of 75 (load 20)."""

_ASSOCIATED = 8  # SPI, sequence number
_IPV4_SIZE = 20
_WORD = Struct(">H")


class Grid:
    """Datagrams of a size, one behind the other in a buffer, as many as there is room for.

    What shows them there is made once, and is of use again for whatever comes to the same place.
    """

    __slots__ = ("_buffer", "_tables", "_views", "rows", "size")

    def __init__(self, buffer: memoryview, size: int, most: int = MAX_ROWS) -> None:
        self._buffer = buffer
        self.size = size
        self.rows = min(len(buffer) // size, most)
        self._tables: dict[tuple[int, int, str], Numbers] = {}
        self._views: dict[tuple[int, int], list[memoryview]] = {}

    @property
    def end(self) -> int:
        """Of the last in the buffer."""
        return self.rows * self.size

    def views(self, begin: int, end: int) -> list[memoryview]:
        """The same octets of each."""
        made = self._views.get((begin, end))
        if made is None:
            starts = range(0, self.rows * self.size, self.size)
            made = [self._buffer[at + begin : at + end] for at in starts]
            self._views[begin, end] = made
        return made

    def table(self, begin: int, end: int, kind: str) -> Numbers:
        """The same as numbers."""
        made = self._tables.get((begin, end, kind))
        if made is None:
            made = vectors.table(self._buffer, self.rows, self.size, begin, end - begin, kind)
            self._tables[begin, end, kind] = made
        return made

    def column(self, at: int, kind: str) -> Numbers:
        """One number of each."""
        made = self._tables.get((at, at, kind))
        if made is None:
            made = vectors.column(self._buffer, self.rows, self.size, at, kind)
            self._tables[at, at, kind] = made
        return made


class Piece:
    """Datagrams of a size, one behind the other; behind them there may be a shorter one."""

    __slots__ = ("_first", "_grid", "count", "octets", "rest", "size")

    def __init__(
        self, octets: memoryview, size: int, grid: Grid | None = None, first: int = 0
    ) -> None:
        """`size` is that of each datagram, 0 if there is one only. They are in rows of a `grid`
        from the `first` on, if there is one."""
        self.octets = octets
        self.size = size or len(octets)
        self.count = len(octets) // size if size else 1
        self.rest = octets[self.count * self.size :]
        self._grid = grid
        self._first = first

    @property
    def datagrams(self) -> list[memoryview]:
        """One by one, the shorter one, too."""
        starts = range(0, len(self.octets), self.size or 1)
        return [self.octets[at : at + self.size] for at in starts] or [self.octets]

    def views(self, begin: int, end: int) -> list[memoryview]:
        """The same octets of each datagram of the size."""
        return self.grid.views(begin, end)[self._first : self._first + self.count]

    def table(self, begin: int, end: int, kind: str = "u1") -> Numbers:
        """The same as numbers."""
        return self.grid.table(begin, end, kind)[self._first : self._first + self.count]

    def column(self, at: int, kind: str) -> Numbers:
        """One number of each."""
        return self.grid.column(at, kind)[self._first : self._first + self.count]

    @property
    def grid(self) -> Grid:
        if self._grid is None:
            self._grid = Grid(self.octets, self.size)
        return self._grid


class Stretch(NamedTuple):
    """Packets of one length that were all authentic, and all have the same next header.

    `streaks` are where those begin and end that may be joined: intact segments of one TCP stream,
    each the next, or datagrams of one flow, which differ in nothing that a policy looks at.
    """

    next_header: int
    packets: list[memoryview]
    streaks: list[tuple[int, int]]


def open_piece(sa: InboundSa, piece: Piece) -> Stretch | OpenedRun | None:
    """Open all but the shorter one at the end, in place.

    None if they must be opened one by one, and are as they were. An `OpenedRun` where they are not
    alike inside.
    """
    size, count, form = piece.size, piece.count, sa.form
    if form is None or not MIN_ROWS <= count <= MAX_ROWS:
        return None
    begin, end = form.head, size - form.icv
    if end <= begin or (end - begin) % form.alignment:
        return None
    if piece.table(0, 4).tobytes() != count * sa.entry.spi.to_bytes(4, "big"):
        return None
    sequences = sa.numbers_of_run(piece.column(4, ">u4").tolist(), count * size)
    if sequences is None:
        return None
    are_authentic = _open_each(sa, piece, sequences, form)
    plaintexts = sa.admit_run(sequences, are_authentic, piece.views(begin, end))
    trailer = trailer_in(plaintexts[0]) if len(plaintexts) == count else None
    if trailer is None or piece.table(end - len(trailer), end).tobytes() != count * trailer:
        return sa.read_run(plaintexts, count)
    packets = piece.views(begin, end - len(trailer))
    sa.count(count * len(packets[0]), count)
    return Stretch(trailer[-1], packets, _streaks(Inner(piece, begin, end), packets, trailer))


def _open_each(sa: InboundSa, piece: Piece, sequences: Sequence[int], form: Form) -> list[bool]:
    """Which are authentic: these are open then."""
    size, end = piece.size, piece.size - form.icv
    if form.is_aead:
        aead = sa.aead
        nonces, associated = nonces_with(len(aead.salt)), piece.views(0, _ASSOCIATED)
        if sa.entry.suite.esn:
            high = np.uint64(sequences[-1] >> 32 << 32)
            associated = nonces.extended(sa.entry.spi, piece.column(4, ">u4") + high)
        return aead.open_each(
            nonces.of(aead.salt, piece.column(_ASSOCIATED, ">u8")),
            piece.views(form.head, size),
            associated,
            piece.views(form.head, end),
        )
    return sa.open_chained(
        sequences,
        piece.views(0, end),
        piece.views(_ASSOCIATED, end),
        piece.views(_ASSOCIATED, size),
        piece.views(end, size),
    )


class Inner(NamedTuple):
    """The packets in those of a piece, once they are open: where they begin, and what is encrypted
    ends."""

    piece: Piece
    begin: int
    end: int

    def table(self, begin: int, end: int, kind: str = "u1") -> Numbers:
        return self.piece.table(self.begin + begin, self.begin + end, kind)

    def column(self, at: int, kind: str) -> Numbers:
        return self.piece.column(self.begin + at, kind)

    @property
    def size(self) -> int:
        """With the trailer."""
        return self.end - self.begin


def _streaks(inner: Inner, packets: list[memoryview], trailer: bytes) -> list[tuple[int, int]]:
    sizes, count = headers_of(packets[0]), len(packets)
    if sizes is None:
        return [(number, number + 1) for number in range(count)]
    ip, headers, protocol = sizes
    are_intact = _are_intact(inner, ip, protocol, trailer)
    if are_intact.all() and _is_one_streak(inner, sizes, packets):
        return [(0, count)]
    follows = are_intact[1:] & are_intact[:-1] & _are_like(inner, ip, headers, protocol)
    if protocol == TCP:
        follows &= _follow(inner, ip, headers, len(packets[0]))
    begins = [0, *((~follows).nonzero()[0] + 1).tolist()]
    streaks: list[tuple[int, int]] = []
    for begin, end in zip(begins, [*begins[1:], count], strict=True):
        # What is not headed like the first was read as if it were.
        if end - begin == 1 or headers_of(packets[begin]) == sizes:
            streaks.append((begin, end))
        else:
            streaks += [(number, number + 1) for number in range(begin, end)]
    return streaks


def _is_one_streak(inner: Inner, sizes: tuple[int, int, int], packets: list[memoryview]) -> bool:
    """Whether each packet certainly follows the one before: so it is with a stream on its way.

    To compare all with the first takes a third of the time of what follows below.
    """
    (ip, headers, protocol), count, first = sizes, len(packets), packets[0]
    alike = inner.table(0, headers, "=u4") & _alike(ip, headers, protocol)
    if alike.tobytes() != count * alike[0].tobytes():
        return False
    if ip == _IPV4_SIZE and not first[6] & DF:
        return False
    if protocol != TCP:
        return 0 not in inner.column(ip + CHECKSUM_AT[protocol], "=u2").tolist()
    sequences = inner.column(ip + 4, ">u4").tolist()
    begin, step = sequences[0], len(first) - headers
    flags = inner.column(ip + 13, "u1").tobytes()
    is_pushed = flags[0] & PSH or flags[:-1] != (count - 1) * flags[:1]
    return not is_pushed and sequences == [*range(begin, begin + count * step, step)]


def _are_like(inner: Inner, ip: int, headers: int, protocol: int) -> Answers:
    """Of each packet but the first whether its headers are those of the one before it, but for what
    tells their places in a stream."""
    words = inner.table(0, headers, "=u4")
    differences = (words[1:] ^ words[:-1]) & _alike(ip, headers, protocol)
    alike: Answers = np.bitwise_or.reduce(differences, axis=1) == 0
    if protocol != TCP:
        # RFC 768: "An all zero transmitted checksum value means that" there is none.
        has_sum = inner.column(ip + CHECKSUM_AT[protocol], "=u2") != 0
        alike &= has_sum[1:] & has_sum[:-1]
    if ip == _IPV4_SIZE:  # RFC 6864 section 4.1: with DF an Identification means nothing.
        numbers = inner.column(4, ">u2")
        has_df = inner.column(6, "u1")[1:] & DF != 0
        alike &= has_df | (numbers[1:] - numbers[:-1] == 1)
    return alike


def _follow(inner: Inner, ip: int, headers: int, length: int) -> Answers:
    """The same of segments of TCP, whether one is the next after the other."""
    sequences = inner.column(ip + 4, ">u4")
    follows: Answers = sequences[1:] - sequences[:-1] == length - headers
    follows &= inner.column(ip + 13, "u1")[:-1] & PSH == 0
    return follows


@cache
def _alike(ip: int, headers: int, protocol: int) -> Numbers:
    """The bits of the headers that are the same in all of a stream."""
    mask = bytearray(b"\xff" * headers)
    if ip == _IPV4_SIZE:
        mask[4:6] = mask[10:12] = bytes(2)  # Identification, checksum
    if protocol == TCP:
        mask[ip + 4 : ip + 8] = bytes(4)  # sequence number
        mask[ip + 13] = 0xFF & ~PSH
    checksum = ip + CHECKSUM_AT[protocol]
    mask[checksum : checksum + 2] = bytes(2)
    return np.frombuffer(bytes(mask), "=u4")


def _are_intact(inner: Inner, ip: int, protocol: int, trailer: bytes) -> Answers:
    """Of each packet whether its checksums are right."""
    # Addresses and segment are one stretch, and the trailer behind it ends a word.
    pseudo = native_sum(_WORD.pack(protocol + inner.size - len(trailer) - ip))
    sums = sums_of(inner.table(ADDRESSES_AT[ip], inner.size, "=u4"))
    intact: Answers = sums == (native_sum(trailer) - pseudo) % 0xFFFF
    if ip == _IPV4_SIZE:
        intact &= sums_of(inner.table(0, ip, "=u4")) == 0
    return intact
