"""Datagrams read from a socket as pieces, against what was sent."""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.datapath.userspace.pieces import MIN_ROWS, Piece
from xfrmpy.datapath.userspace.receiving import MAX_DATAGRAM, SMALL, UdpReceiver
from xfrmpy.datapath.userspace.turns import Readable, Turn
from xfrmpy.datapath.userspace.vectors import MAX_ROWS

UDP_SEGMENT = 103
SIZE = 1456


class Line:
    """A sender and a receiver. What is sent has come when `send` returns: it is the loopback."""

    def __init__(self) -> None:
        self._opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._opened.bind(("127.0.0.1", 0))
        self._opened.setblocking(False)
        self._opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sender.connect(self._opened.getsockname())
        self._turn = Turn(Readable(), 64)
        self.receiver = UdpReceiver(self._opened, 4, Counter(), self._turn)

    def send(self, *datagrams: bytes) -> None:
        """At once: all are as long as the first, but the last, which may be shorter."""
        self._sender.setsockopt(socket.SOL_UDP, UDP_SEGMENT, len(datagrams[0]))
        self._sender.send(b"".join(datagrams))

    def receive(self) -> list[Piece]:
        """In one turn, whatever there is."""
        self._turn.size = 64
        return [each.piece for each in self.receiver.receive()]

    def close(self) -> None:
        self._opened.close()
        self._sender.close()


@pytest.fixture(scope="module")
def line() -> Iterator[Line]:
    opened = Line()
    yield opened
    opened.close()


def datagrams(first: int, count: int, *, spi: int = 0x80000001, size: int = SIZE) -> list[bytes]:
    """Numbered from `first` on."""
    filled = range(first, first + count)
    return [struct.pack(">II", spi, n).ljust(size, bytes([n % 251])) for n in filled]


def contents(piece: Piece) -> list[bytes]:
    """Read in every way in which a piece can be."""
    one_by_one = [bytes(each) for each in piece.datagrams]
    alike = one_by_one[:-1] if piece.rest else one_by_one
    assert [bytes(each) for each in piece.views(0, piece.size)] == alike
    assert piece.table(0, piece.size).tobytes() == b"".join(alike)
    assert piece.column(piece.size - 1, "u1").tobytes() == bytes(each[-1] for each in alike)
    assert bytes(piece.octets) == b"".join(one_by_one)
    assert piece.count == len(alike)
    assert not piece.rest or bytes(piece.rest) == one_by_one[-1]
    return one_by_one


BURSTS = st.lists(
    st.tuples(
        st.sampled_from([0x80000001, 0x80000001, 0x80000001, 0x80000002]),
        st.sampled_from([SIZE, SIZE, SIZE, 104, 1000]),
        st.integers(1, 20),
        st.sampled_from([0, 0, 0, 1, 60]),
        st.sampled_from([0, 0, 0, 5, -30]),
    ),
    min_size=1,
    max_size=12,
)
"""Each of an SA, a size and a count, with a shorter one behind it, and its numbers after a gap."""


@given(bursts=BURSTS)
def test_what_is_read_is_what_was_sent_in_its_order(
    line: Line, bursts: list[tuple[int, int, int, int, int]]
) -> None:
    sent: list[bytes] = []
    number = 100
    for spi, size, count, rest, gap in bursts:
        number = max(1, number + gap)
        burst = datagrams(number, count, spi=spi, size=size)
        burst += [bytes([7]) * rest] if rest else []
        line.send(*burst)
        sent += burst
        number += count
    pieces: list[Piece] = []
    while new := line.receive():
        # They are overwritten by the next call.
        assert [octets for each in new for octets in contents(each)] == sent[: _count(new)]
        del sent[: _count(new)]
        pieces += new
    assert not sent
    assert len(pieces) <= len(bursts)


def _count(pieces: list[Piece]) -> int:
    return sum(len(each.datagrams) for each in pieces)


def test_bursts_of_one_sa_are_one_piece(line: Line) -> None:
    """Which is opened in one pass, however short the bursts were (four streams in one tunnel)."""
    for first in range(1, 31, 3):
        line.send(*datagrams(first, 3))
    (piece,) = line.receive()
    assert contents(piece) == datagrams(1, 30)
    assert piece.count >= MIN_ROWS


@pytest.mark.parametrize(
    "second",
    [datagrams(9, 8, spi=0x80000002), datagrams(8, 8), datagrams(9, 8, size=SIZE - 4)],
    ids=["of another SA", "not newer", "of another size"],
)
def test_what_could_not_be_opened_with_the_others_is_a_piece_of_its_own(
    line: Line, second: list[bytes]
) -> None:
    line.send(*datagrams(1, 8))
    line.send(*second)
    assert [contents(each) for each in line.receive()] == [datagrams(1, 8), second]


def test_behind_a_shorter_one_another_piece_begins(line: Line) -> None:
    short = struct.pack(">II", 0x80000001, 9).ljust(200)
    line.send(*datagrams(1, 8), short)
    line.send(*datagrams(10, 8))
    assert [contents(each) for each in line.receive()] == [
        [*datagrams(1, 8), short],
        datagrams(10, 8),
    ]


def test_a_single_datagram_is_never_a_part_of_another_piece(line: Line) -> None:
    """It may be the daemon's, and is passed on with the addresses that it came with."""
    line.send(*datagrams(1, 8))
    line.send(*datagrams(9, 1))
    line.send(*datagrams(10, 1))
    assert [each.count for each in line.receive()] == [8, 1, 1]


def test_no_piece_is_larger_than_what_is_opened_in_one_pass(line: Line) -> None:
    size = SMALL // 60
    for first in range(0, 4 * 63, 63):
        line.send(*datagrams(first, 63, size=size))
    assert [each.count for each in line.receive()] == [126, 126]
    assert MAX_ROWS == 128


def test_a_turn_ends_while_there_is_room_for_whatever_comes_next(line: Line) -> None:
    for first in range(1, 221, 44):
        line.send(*datagrams(first, 44))
    turns = [line.receive() for _ in range(2)]
    assert [[each.count for each in turn] for turn in turns] == [[88, 44], [88]]
    assert 3 * 44 * SIZE > 2 * MAX_DATAGRAM
    assert line.receive() == []
