"""Two workers' ends of what is handed over, beside each other on real sockets."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xfrmpy.datapath.userspace.control import ControlSocket
from xfrmpy.datapath.userspace.forwarding import Refused
from xfrmpy.datapath.userspace.neighbours import Kind, Neighbours
from xfrmpy.datapath.userspace.requests import socket_name
from xfrmpy.datapath.userspace.shares import Share
from xfrmpy.datapath.userspace.turns import Readable
from xfrmpy.datapath.userspace.virtio import COMPLETE, Offload, Segments

COUNT = 2
SECONDS = 5.0

Handed = tuple[Kind, int, bytes, Offload]


class Worker:
    """As much of one as its neighbours see."""

    def __init__(self, directory: Path, index: int) -> None:
        self.handed: list[Handed] = []
        self.turns = 0
        self.is_closed = False
        self.hands_on: Neighbours | None = None
        self.refusals: list[str] = []
        self.readable = Readable()
        share = Share(index, COUNT)
        self.neighbours = Neighbours(share, directory, self.readable, self._take, self._finish)
        path = directory / socket_name(index)
        self.control = ControlSocket(
            path, self.readable, lambda _name, _plain: [], lambda: None, self
        )

    def join(self, given: Sequence[int]) -> None:
        raise NotImplementedError

    def lend(self) -> Sequence[int]:
        raise NotImplementedError

    def hear(self, channel: socket.socket) -> None:
        self.neighbours.hear(channel)

    def _take(self, kind: Kind, if_id: int, packet: bytes, offload: Offload) -> None:
        self.handed.append((kind, if_id, packet, offload))
        if self.hands_on is not None:
            with refusing(self.refusals):
                self.hands_on.hand(0, kind, if_id, offload, [packet])

    def _finish(self) -> None:
        self.turns += 1

    def serve_until(self, count: int) -> None:
        while len(self.handed) < count:
            self.readable.serve(SECONDS)

    def close(self) -> None:
        if not self.is_closed:
            self.control.close()
            self.neighbours.close()
        self.is_closed = True


@contextmanager
def refusing(reasons: list[str]) -> Iterator[None]:
    try:
        yield
    except Refused as refused:
        reasons.append(refused.reason)


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[tuple[Worker, Worker]]:
    made = Worker(tmp_path, 0), Worker(tmp_path, 1)
    yield made
    for worker in made:
        worker.close()


OFFLOADS = st.sampled_from(
    [COMPLETE, Offload(True, Segments.TCP_IPV4, 40, 1400, 20, 16), Offload(has_ecn=True)]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(Kind),
    if_id=st.integers(0, 0xFFFFFFFF),
    offload=OFFLOADS,
    pieces=st.lists(st.binary(max_size=40_000), max_size=3),
)
def test_a_packet_arrives_as_it_was_handed(
    workers: tuple[Worker, Worker],
    kind: Kind,
    if_id: int,
    offload: Offload,
    pieces: list[bytes],
) -> None:
    giver, taker = workers
    taker.handed.clear()
    giver.neighbours.hand(1, kind, if_id, offload, pieces)
    taker.serve_until(1)
    assert taker.handed == [(kind, if_id, b"".join(pieces), offload)]
    assert taker.turns > 0


def test_what_has_no_room_is_lost_and_the_next_goes_again(workers: tuple[Worker, Worker]) -> None:
    giver, taker = workers
    refusals: list[str] = []
    sent = 0
    while not refusals:
        with refusing(refusals):
            giver.neighbours.hand(1, Kind.OUTBOUND, 0, COMPLETE, [bytes(60_000)])
            sent += 1
    assert refusals == ["handed-overflow"]
    taker.serve_until(sent)
    giver.neighbours.hand(1, Kind.OUTBOUND, 7, COMPLETE, [b"again"])
    taker.serve_until(sent + 1)
    assert taker.handed[-1] == (Kind.OUTBOUND, 7, b"again", COMPLETE)


def test_nothing_is_handed_on(workers: tuple[Worker, Worker]) -> None:
    giver, taker = workers
    taker.hands_on = taker.neighbours
    giver.neighbours.hand(1, Kind.OUTBOUND, 0, COMPLETE, [b"a packet"])
    taker.serve_until(1)
    assert taker.refusals == ["handed-twice"]
    taker.neighbours.hand(0, Kind.OUTBOUND, 0, COMPLETE, [b"one of its own"])
    giver.serve_until(1)


def test_a_neighbour_that_was_replaced_gets_what_is_handed(
    workers: tuple[Worker, Worker], tmp_path: Path
) -> None:
    giver, taker = workers
    giver.neighbours.hand(1, Kind.OUTBOUND, 0, COMPLETE, [b"first"])
    taker.serve_until(1)
    taker.close()
    for expected in (errno.EPIPE, errno.ENOENT):
        with pytest.raises(Refused, match=errno.errorcode[expected].lower()):
            giver.neighbours.hand(1, Kind.OUTBOUND, 0, COMPLETE, [b"lost"])
    other = Worker(tmp_path, 1)
    giver.neighbours.hand(1, Kind.OUTBOUND, 0, COMPLETE, [b"second"])
    other.serve_until(1)
    assert [packet for _, _, packet, _ in other.handed] == [b"second"]
    other.close()
