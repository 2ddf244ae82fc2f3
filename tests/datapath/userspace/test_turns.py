"""Turns: what comes alone is read alone, what floods gets more, and nobody is kept waiting."""

from __future__ import annotations

import os
from functools import partial

import pytest

from xfrmpy.datapath.userspace.turns import Readable, Turn

MOST = 64


class Pipe:
    """A descriptor from which a turn reads an octet for each packet."""

    def __init__(self, readable: Readable) -> None:
        self.reading, self._writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.turn = Turn(readable, MOST)
        self.reads: list[bool] = []
        readable.register(self, self._serve)

    def fileno(self) -> int:
        return self.reading

    def put(self, packets: int) -> None:
        os.write(self._writing, bytes(packets))

    def close(self) -> None:
        os.close(self.reading)
        os.close(self._writing)

    def _serve(self) -> None:
        done = 0
        for _ in range(self.turn.begin()):
            try:
                os.read(self.reading, 1)
            except BlockingIOError:
                self.reads.append(False)
                break
            self.reads.append(True)
            done += 1
        self.turn.end(done)


def test_packets_that_come_alone_cost_one_read_each() -> None:
    readable = Readable()
    one, other = Pipe(readable), Pipe(readable)
    for _ in range(10):
        for pipe in (one, other):
            pipe.put(1)
            readable.serve(1)
    assert one.reads == other.reads == [True] * 10


def test_a_flood_gets_large_turns_soon_and_never_larger_ones_than_the_most() -> None:
    readable = Readable()
    pipe = Pipe(readable)
    pipe.put(1000)
    sizes = []
    for _ in range(10):
        before = len(pipe.reads)
        readable.serve(1)
        sizes.append(len(pipe.reads) - before)
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 64, 64, 64]


def test_behind_a_flood_the_other_has_its_turn_in_the_same_round() -> None:
    readable = Readable()
    flooded, other = Pipe(readable), Pipe(readable)
    flooded.put(2000)
    for _ in range(8):
        readable.serve(1)
    other.put(1)
    before = len(flooded.reads)
    readable.serve(1)
    assert other.reads == [True]
    assert len(flooded.reads) == before + MOST


def test_a_turn_that_found_less_than_its_size_is_smaller_the_next_time() -> None:
    readable = Readable()
    pipe = Pipe(readable)
    pipe.put(1 + 2 + 4 + 3)
    for _ in range(4):
        readable.serve(1)
    assert pipe.reads[-1] is False
    assert pipe.turn.size == 3


def test_what_one_call_has_unregistered_is_not_called_in_the_same_round() -> None:
    readable = Readable()
    pipes: list[Pipe] = []
    called: list[Pipe] = []

    def drop_the_other(mine: int) -> None:
        called.append(pipes[mine])
        readable.unregister(pipes[1 - mine])
        pipes[1 - mine].close()

    for mine in range(2):
        pipes.append(Pipe(readable))
        readable.unregister(pipes[mine])
        readable.register(pipes[mine], partial(drop_the_other, mine))
        pipes[mine].put(1)
    readable.serve(1)
    assert len(called) == 1


def test_without_anything_to_read_the_wait_ends() -> None:
    readable = Readable()
    readable.serve(0.001)
    assert readable.rounds == 1


@pytest.mark.parametrize("seconds", [None, 5.0])
def test_the_wait_ends_with_what_comes(seconds: float | None) -> None:
    readable = Readable()
    pipe = Pipe(readable)
    pipe.put(1)
    readable.serve(seconds)
    assert pipe.reads == [True]


def test_a_single_read_is_a_turn_of_one_as_long_as_nothing_floods() -> None:
    readable = Readable()
    plain, short = Turn(readable, MOST), Turn(readable, MOST)
    for rounds in (1, 3, 4, 5, 9):  # The third is right behind the second.
        readable.rounds = rounds
        size = plain.begin()
        assert short.is_single() is (size == 1)
        plain.end(1)
        if size != 1:
            assert short.begin() == size
            short.end(1)
    assert plain.size == short.size
