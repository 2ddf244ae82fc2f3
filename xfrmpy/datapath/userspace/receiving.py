"""The datagrams of the shared UDP port, as many at a time as have come (UDP_GRO of udp(7)).

The kernel hands over datagrams of one sender that follow each other as one buffer, and says of what
size each of them is; only the last may be shorter. Large ones stay where they came until the next
call, which is in one of few places, so that what shows them there is soon made (`Piece`).
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
from xfrmpy.datapath.userspace.pieces import Piece
from xfrmpy.datapath.userspace.turns import Turn
from xfrmpy.datapath.userspace.udp import ask_for_destination, decode_destination
from xfrmpy.esp.transport import Fields
from xfrmpy.ipsec.addresses import SocketAddress

MAX_DATAGRAM = 65535
"""Octets, of several datagrams that come as one buffer, too."""

PLACES = 2
"""Buffers that stay where they came, before the other side gets its turn."""

SMALL = 4096
"""Octets that are moved out of the way of what comes next."""

MAX_READS = 64
"""Buffers before the other side gets its turn."""

MAX_KNOWN = 1024
"""What the kernel told of datagrams, and what it means."""

MAX_PIECES = 64
"""Shapes and places of what has come. Each has some 40 KiB of views."""

_UDP_GRO = 104  # <linux/udp.h>
_SO_RXQ_OVFL = 40  # <asm-generic/socket.h>
_INTEGER = Struct("=i")
_COUNT = Struct("=I")
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
        self._places = [memoryview(bytearray(MAX_DATAGRAM)) for _ in range(PLACES)]
        self._turn = turn
        self.was_alone = False
        self._known: dict[tuple[Any, ...], _Told] = {}
        self._pieces: dict[tuple[int, int, int], Piece] = {}
        ask_for_fields(opened, version)
        ask_for_destination(opened, version)
        opened.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
        with contextlib.suppress(OSError):  # Without it each comes by itself.
            opened.setsockopt(socket.SOL_UDP, _UDP_GRO, 1)

    def receive(self) -> list[Received]:
        """A turn's worth of what has come, as far as there is room; nothing if nothing has."""
        received: list[Received] = []
        place = 0
        for _ in range(self._turn.begin()):
            try:
                size, told, _, address = self._socket.recvmsg_into([self._places[place]], ROOM)
            except BlockingIOError:
                break
            except OSError:
                continue  # An ICMP error for something sent earlier.
            received.append(self._received(place, size, told, address))
            place += size > SMALL
            if place == PLACES:
                break
        self._turn.end(len(received))
        return received

    def _received(
        self, place: int, size: int, told: Ancillary, address: tuple[Any, ...]
    ) -> Received:
        known = self._known.get((address, *told)) or self._learn(told, address)
        if known.lost is not None:
            self._note_lost(known.lost)
        piece = self._piece_of(place, size, known.size)
        return Received(piece, known.source, known.fields, told, self._port)

    def _piece_of(self, place: int, size: int, each: int) -> Piece:
        if size <= SMALL:
            return Piece(memoryview(bytearray(self._places[place][:size])), each)
        made = self._pieces.get((place, size, each))
        if made is None:
            if len(self._pieces) >= MAX_PIECES:
                self._pieces.clear()
            made = Piece(self._places[place][:size], each)
            self._pieces[place, size, each] = made
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
