"""The datagrams of the shared UDP port, as many at a time as have come (UDP_GRO of udp(7)).

The kernel hands over datagrams of one sender that follow each other as one buffer, and says of what
size each of them is; only the last may be shorter. Such buffers are read one behind the other, and
those that go on like the one before are one piece with it (`Piece`). Large ones stay where they
came until the next call, mostly in the same rows, so that what shows them there is made once.
"""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from dataclasses import dataclass
from ipaddress import ip_address
from struct import Struct
from typing import Any, NamedTuple

from xfrmpy.datapath.userspace.ancillary import ROOM, Ancillary, ask_for_fields, decode_fields
from xfrmpy.datapath.userspace.pieces import MIN_ROWS, Grid, Piece
from xfrmpy.datapath.userspace.turns import Turn
from xfrmpy.datapath.userspace.udp import ask_for_destination, decode_destination
from xfrmpy.datapath.userspace.vectors import MAX_ROWS
from xfrmpy.esp.transport import Fields
from xfrmpy.ipsec.addresses import SocketAddress

MAX_DATAGRAM = 65535
"""Octets, of several datagrams that come as one buffer, too."""

MAX_OCTETS = 2 * MAX_DATAGRAM
"""That stay where they came, before the other side gets its turn."""

SMALL = 1024
"""Octets that are moved out of the way of what comes next."""

MAX_READS = 64
"""Buffers before the other side gets its turn."""

MAX_KNOWN = 1024
"""What the kernel told of datagrams, and what it means."""

MAX_GRIDS = 32
"""Sizes and places of what has come. Each has some 100 KiB of views."""

_UDP_GRO = 104  # <linux/udp.h>
_SO_RXQ_OVFL = 40  # <asm-generic/socket.h>
_INTEGER = Struct("=i")
_COUNT = Struct("=I")
_HEADER = Struct(">II")  # of ESP: SPI, low half of the sequence number
_SIZE, _LOST = (socket.SOL_UDP, _UDP_GRO), (socket.SOL_SOCKET, _SO_RXQ_OVFL)


@dataclass(slots=True)
class Received:
    """Datagrams from one place to one place, with the same fields in the IP header."""

    piece: Piece
    source: SocketAddress
    fields: Fields
    told: Ancillary
    port: int

    @property
    def is_alone(self) -> bool:
        """Whether it is one datagram, and no large one."""
        return self.piece.count == 1 and not self.piece.rest and self.piece.size <= SMALL

    @property
    def destination(self) -> SocketAddress:
        """Which of our addresses they came to, and the port."""
        address = decode_destination(self.told, self.source.address.version)
        return SocketAddress(address, self.port)


class _Told(NamedTuple):
    """What is said of a buffer: how large each datagram in it is, 0 if it is one; how many buffers
    were lost so far, None where none were."""

    source: SocketAddress
    fields: Fields
    size: int
    lost: int | None


class UdpReceiver:
    """Reads a socket, which does not block; counts in `refused` what did not fit into it."""

    def __init__(
        self, opened: socket.socket, version: int, refused: Counter[str], turn: Turn
    ) -> None:
        """Raises `OSError`."""
        self._refused = refused
        self._lost = 0
        self._socket = opened
        self._version = version
        self._port: int = opened.getsockname()[1]
        self._room = memoryview(bytearray(MAX_OCTETS + MAX_DATAGRAM))
        self._turn = turn
        self.was_alone = False
        self._known: dict[tuple[Any, ...], _Told] = {}
        self._grids: dict[tuple[int, int], Grid] = {}
        ask_for_fields(opened, version)
        ask_for_destination(opened, version)
        opened.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
        with contextlib.suppress(OSError):  # Without it each comes by itself.
            opened.setsockopt(socket.SOL_UDP, _UDP_GRO, 1)

    def receive(self) -> list[Received]:
        """A turn's worth of what has come, as far as there is room; nothing if nothing has."""
        received: list[Received] = []
        before: _Told | None = None  # Of the piece that lies before `at`, if it may go on.
        reads = begin = at = 0
        for _ in range(self._turn.begin()):
            try:
                size, told, _, address = self._socket.recvmsg_into([self._room[at:]], ROOM)
            except BlockingIOError:
                break
            except OSError:
                continue  # An ICMP error for something sent earlier.
            reads += 1
            known = self._known.get((address, *told)) or self._learn(told, address)
            if known.lost is not None:
                self._note_lost(known.lost)
            end, each = at + size, known.size or size
            if known is before and self._goes_on(begin, at, end, each):
                received[-1].piece = self._piece(begin, end, known.size)
            elif size <= SMALL:
                piece = Piece(memoryview(bytearray(self._room[at:end])), known.size)
                received.append(Received(piece, known.source, known.fields, told, self._port))
                before = None
                continue
            else:
                begin = at
                piece = self._piece(begin, end, known.size)
                received.append(Received(piece, known.source, known.fields, told, self._port))
            before = known if known.size and not size % each else None
            at = end + -(end - begin) % each
            if at > MAX_OCTETS:
                break
        self._turn.end(reads)
        return received

    def _goes_on(self, begin: int, at: int, end: int, each: int) -> bool:
        """Whether the datagrams at a place may be one piece with those before, which are as long:
        of the same SA and newer, for a piece with others in it is opened one by one."""
        if end - begin > MAX_ROWS * each:
            return False
        before: tuple[int, int] = _HEADER.unpack_from(self._room, at - each)
        first: tuple[int, int] = _HEADER.unpack_from(self._room, at)
        return before[0] == first[0] and before[1] < first[1]

    def _piece(self, begin: int, end: int, each: int) -> Piece:
        octets = self._room[begin:end]
        if not each or end - begin < MIN_ROWS * each:
            return Piece(octets, each)
        first, offset = divmod(begin, each)
        grid = self._grids.get((offset, each)) or self._make_grid(offset, each)
        return Piece(octets, each, grid, first) if end <= grid.end + offset else Piece(octets, each)

    def _make_grid(self, offset: int, each: int) -> Grid:
        if len(self._grids) >= MAX_GRIDS:
            self._grids.clear()
        made = self._grids[offset, each] = Grid(self._room[offset:], each, MAX_ROWS * 3 // 2)
        return made

    def _learn(self, told: Ancillary, address: tuple[Any, ...]) -> _Told:
        """To take it apart takes 6 us, three times as long as to open a packet."""
        words = {(level, kind): octets for level, kind, octets in told}
        size, lost = words.get(_SIZE), words.get(_LOST)
        known = _Told(
            SocketAddress(ip_address(address[0].partition("%")[0]), address[1]),
            decode_fields(told, self._version),
            0 if size is None else _INTEGER.unpack(size)[0],
            None if lost is None else _COUNT.unpack(lost)[0],
        )
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[address, *told] = known
        return known

    def receive_one(self) -> tuple[bytes, Ancillary, _Told]:
        """What has come first. Raises `OSError`, and `BlockingIOError` if nothing has."""
        octets, told, _, address = self._socket.recvmsg(MAX_DATAGRAM, ROOM)
        known = self._known.get((address, *told)) or self._learn(told, address)
        if known.lost is not None:
            self._note_lost(known.lost)
        return octets, told, known

    def of(self, octets: bytes, told: Ancillary, known: _Told) -> Received:
        """What `receive_one` has given as `receive` gives it."""
        piece = Piece(memoryview(bytearray(octets)), known.size)
        return Received(piece, known.source, known.fields, told, self._port)

    def _note_lost(self, lost: int) -> None:
        """`lost` is how many buffers in all the kernel had no room for, modulo 2**32."""
        self._refused["udp-overflow"] += (lost - self._lost) & 0xFFFFFFFF
        self._lost = lost
