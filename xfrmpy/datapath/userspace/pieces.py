"""Datagrams of one size that came as one piece, opened and read all at once.

The fast twin of `InboundSa.open_run` and of how `coalescing` reads, for many packets of one SA: one
look at all of them tells their sequence numbers, another what is behind their payloads, and a third
which segments of TCP follow one another, or which datagrams of UDP. Only the cipher is called for
each. What is not of this kind is left as it was, or given back to be read one by one.
"""

from __future__ import annotations

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
from xfrmpy.datapath.userspace.vectors import (
    MAX_ROWS,
    Answers,
    Numbers,
    native_sum,
    nonces_with,
    sums_of,
)
from xfrmpy.esp.packet import RUN_ICV, RUN_IV, InboundSa, OpenedRun, trailer_in
from xfrmpy.ipsec.overhead import ALIGNMENT

MIN_ROWS = 8
"""Packets. Fewer take longer in this way: four of TCP 93 us in the place of 75 (load 20)."""

_ESP = 8 + RUN_IV
_IPV4_SIZE = 20
_WORD = Struct(">H")


class Piece:
    """Datagrams of a size, one behind the other; behind them there may be a shorter one.

    What shows them there is made once, and is of use again for whatever comes to the same place.
    """

    __slots__ = ("_tables", "_views", "count", "octets", "rest", "size")

    def __init__(self, octets: memoryview, size: int) -> None:
        """`size` is that of each datagram, 0 if there is one only."""
        self.octets = octets
        self.size = size or len(octets)
        self.count = len(octets) // size if size else 1
        self.rest = octets[self.count * self.size :]
        self._tables: dict[tuple[int, int, str], Numbers] = {}
        self._views: dict[tuple[int, int], list[memoryview]] = {}

    @property
    def datagrams(self) -> list[memoryview]:
        """One by one, the shorter one, too."""
        alike = self.views(0, self.size)
        return [*alike, self.rest] if self.rest else alike

    def views(self, begin: int, end: int) -> list[memoryview]:
        """The same octets of each datagram of the size."""
        made = self._views.get((begin, end))
        if made is None:
            begins = [number * self.size for number in range(self.count)]
            made = [self.octets[at + begin : at + end] for at in begins]
            self._views[begin, end] = made
        return made

    def table(self, begin: int, end: int, kind: str = "u1") -> Numbers:
        """The same as numbers."""
        made = self._tables.get((begin, end, kind))
        if made is None:
            made = vectors.table(self.octets, self.count, self.size, begin, end - begin, kind)
            self._tables[begin, end, kind] = made
        return made

    def column(self, at: int, kind: str) -> Numbers:
        """One number of each."""
        made = self._tables.get((at, at, kind))
        if made is None:
            made = vectors.column(self.octets, self.count, self.size, at, kind)
            self._tables[at, at, kind] = made
        return made


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
    size, count, in_place = piece.size, piece.count, sa.in_place
    if not MIN_ROWS <= count <= MAX_ROWS or size % ALIGNMENT or size <= _ESP + RUN_ICV:
        return None
    if in_place is None or piece.table(0, 4).tobytes() != count * sa.entry.spi.to_bytes(4, "big"):
        return None
    lows = piece.column(4, ">u4")
    sequences = sa.numbers_of_run(lows.tolist(), count * size)
    if sequences is None:
        return None
    nonces = nonces_with(len(in_place.salt))
    associated, end = piece.views(0, 8), size - RUN_ICV
    if sa.entry.suite.esn:
        high = np.uint64(sequences[-1] >> 32 << 32)
        associated = nonces.extended(sa.entry.spi, lows + high)
    plaintexts = sa.verify_run(
        sequences,
        nonces.of(in_place.salt, piece.column(8, ">u8")),
        piece.views(_ESP, size),
        associated,
        piece.views(_ESP, end),
    )
    trailer = trailer_in(plaintexts[0]) if len(plaintexts) == count else None
    if trailer is None or piece.table(end - len(trailer), end).tobytes() != count * trailer:
        return sa.read_run(plaintexts, count - len(plaintexts))
    packets = piece.views(_ESP, end - len(trailer))
    sa.count(count * len(packets[0]), count)
    return Stretch(trailer[-1], packets, _streaks(piece, packets, trailer))


def _streaks(piece: Piece, packets: list[memoryview], trailer: bytes) -> list[tuple[int, int]]:
    sizes = headers_of(packets[0])
    if sizes is None:
        return [(number, number + 1) for number in range(piece.count)]
    ip, headers, protocol = sizes
    follows = _are_intact(piece, ip, protocol, trailer) & _are_like(piece, ip, headers, protocol)
    if protocol == TCP:
        follows &= _follow(piece, ip, headers, len(packets[0]))
    begins = [0, *((~follows).nonzero()[0] + 1).tolist()]
    streaks: list[tuple[int, int]] = []
    for begin, end in zip(begins, [*begins[1:], piece.count], strict=True):
        # What is not headed like the first was read as if it were.
        if end - begin == 1 or headers_of(packets[begin]) == sizes:
            streaks.append((begin, end))
        else:
            streaks += [(number, number + 1) for number in range(begin, end)]
    return streaks


def _are_like(piece: Piece, ip: int, headers: int, protocol: int) -> Answers:
    """Of each packet but the first whether its headers are those of the one before it, but for what
    tells their places in a stream."""
    words = piece.table(_ESP, _ESP + headers, "=u4")
    differences = (words[1:] ^ words[:-1]) & _alike(ip, headers, protocol)
    alike: Answers = np.bitwise_or.reduce(differences, axis=1) == 0
    if (
        protocol != TCP
    ):  # RFC 768: "An all zero transmitted checksum value means that" there is none.
        has_sum = piece.column(_ESP + ip + CHECKSUM_AT[protocol], "=u2") != 0
        alike &= has_sum[1:] & has_sum[:-1]
    if ip == _IPV4_SIZE:  # RFC 6864 section 4.1: with DF an Identification means nothing.
        numbers = piece.column(_ESP + 4, ">u2")
        has_df = piece.column(_ESP + 6, "u1")[1:] & DF != 0
        alike &= has_df | (numbers[1:] - numbers[:-1] == 1)
    return alike


def _follow(piece: Piece, ip: int, headers: int, length: int) -> Answers:
    """The same of segments of TCP, whether one is the next after the other."""
    tcp = _ESP + ip
    sequences = piece.column(tcp + 4, ">u4")
    follows: Answers = sequences[1:] - sequences[:-1] == length - headers
    follows &= piece.column(tcp + 13, "u1")[:-1] & PSH == 0
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


def _are_intact(piece: Piece, ip: int, protocol: int, trailer: bytes) -> Answers:
    """Of each packet but the first whether its checksums are right, and those of the one before."""
    begin, end = _ESP + ADDRESSES_AT[ip], piece.size - RUN_ICV
    # Addresses and segment are one stretch, and the trailer behind it ends a word.
    pseudo = native_sum(_WORD.pack(protocol + end - len(trailer) - _ESP - ip))
    sums = sums_of(piece.table(begin, end, "=u4"))
    intact: Answers = (sums + pseudo) % 0xFFFF == native_sum(trailer)
    if ip == _IPV4_SIZE:
        intact &= sums_of(piece.table(_ESP, _ESP + ip, "=u4")) == 0
    return intact[1:] & intact[:-1]
