"""Client puzzles: work that an initiator does so that a busy responder serves it.

Read RFC 8019 sections 4.4, 7.1 and 8 first. A puzzle is to find four keys under which a PRF of a
given string ends in so many zero bits. To check a solution costs four calls of the PRF; to find
one costs 4 * 2**difficulty, which `Solver` does in slices: nobody waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Self

from xfrmpy.crypto.prf import prf
from xfrmpy.ike.errors import PeerMisbehaved
from xfrmpy.ipsec import algorithms
from xfrmpy.registry import NotifyType, PseudorandomFunction
from xfrmpy.wire.payloads import PUZZLE_KEYS, NotifyPayload, PuzzleSolutionPayload

HARDEST = 20
"""Zero bits; beyond it we do not try. Section 9: "a good compromise", about a second in C; about
ten seconds here."""

OUR_CHOICE = 15
"""Zero bits, where the responder leaves it to us (difficulty 0, section 7.1.1.1): what a responder
like us takes for enough as long as it does."""

TRIES = 4096
"""Keys that are tried in one slice: some milliseconds."""

_NOTIFY = Struct(">HB")
_KEY_SIZE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Puzzle:
    """What a PUZZLE notification asks for (section 8.1)."""

    prf: PseudorandomFunction
    difficulty: int

    def __str__(self) -> str:
        return f"{self.difficulty} bits of {self.prf.name}"

    def encode(self) -> bytes:
        return _NOTIFY.pack(self.prf, self.difficulty)

    @classmethod
    def of(cls, notify: NotifyPayload) -> Self:
        """Raises `PeerMisbehaved`."""
        if len(notify.data) != _NOTIFY.size:
            raise PeerMisbehaved("PUZZLE names a PRF and a difficulty in three octets")
        return cls.decode(notify.data)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        number, difficulty = _NOTIFY.unpack(data)
        return cls(prf=PseudorandomFunction(number), difficulty=difficulty)

    def notify(self) -> NotifyPayload:
        return NotifyPayload(type=NotifyType.PUZZLE, data=self.encode())

    @property
    def is_solvable(self) -> bool:
        """Whether we would try."""
        is_known = any(row.id == self.prf for row in algorithms.PRFS)
        return is_known and self.difficulty <= HARDEST


def check_solution(puzzle: Puzzle, text: bytes, solution: PuzzleSolutionPayload) -> bool:
    """Whether a solution solves a puzzle about `text`."""
    return solved_bits(puzzle.prf, text, solution) >= puzzle.difficulty


def solved_bits(number: PseudorandomFunction, text: bytes, solution: PuzzleSolutionPayload) -> int:
    """The fewest zero bits of four different keys of a size that the PRF takes; else 0.

    RFC 8019 section 7.1.4: "The Responder MUST take the smallest number".
    """
    row = algorithms.prf(number)
    keys = solution.keys
    if len(set(keys)) != PUZZLE_KEYS or len(keys[0]) > row.key:
        return 0
    return min(zero_bits(prf(row, key, text)) for key in keys)


class Solver:
    """Looks for the solution of one puzzle about `text`, a slice at a time."""

    def __init__(self, puzzle: Puzzle, text: bytes) -> None:
        self.puzzle = puzzle
        self._row = algorithms.prf(puzzle.prf)
        self._text = text
        self._difficulty = puzzle.difficulty or OUR_CHOICE
        self._next = 0
        self._found: list[bytes] = []

    def work(self) -> PuzzleSolutionPayload | None:
        """Try the next keys; the solution once there is one."""
        row, text, mask = self._row, self._text, (1 << self._difficulty) - 1
        for number in range(self._next, self._next + TRIES):
            key = number.to_bytes(_KEY_SIZE, "big")
            if not int.from_bytes(prf(row, key, text)[-4:], "big") & mask:
                self._found.append(key)
                if len(self._found) == PUZZLE_KEYS:
                    return PuzzleSolutionPayload(keys=tuple(self._found))
        self._next += TRIES
        return None


def zero_bits(octets: bytes) -> int:
    """How many zero bits octets end in."""
    number = int.from_bytes(octets, "big")
    return (number & -number).bit_length() - 1 if number else 8 * len(octets)
