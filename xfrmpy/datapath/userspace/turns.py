"""How much is read from one descriptor before others get their turn.

As much as there was the last time; twice as much where it turned out that there was more. So a
packet that comes alone is read by one system call, and not by two of which the second finds nothing
while the packet waits; and what has much to say gets a large turn soon, but never a larger one than
the others can wait for.
"""

from __future__ import annotations


class Rounds:
    """`number` counts how often the worker has asked which descriptors are readable."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0


class Turn:
    """Of one descriptor: `size` is how much of it is read in this round, up to `most`."""

    __slots__ = ("_ended", "_is_spent", "_most", "_rounds", "size")

    def __init__(self, rounds: Rounds, most: int) -> None:
        self._rounds = rounds
        self._most = most
        self._ended = 0
        self._is_spent = False
        self.size = 1

    def begin(self) -> int:
        """The size. It grows if the descriptor is readable again as soon as all others had their
        turn."""
        if self._is_spent and self._ended + 1 == self._rounds.number:
            self.size = min(self._most, 2 * self.size)
        return self.size

    def end(self, done: int) -> None:
        """So much was done of it; if it was less, there was no more."""
        self._is_spent = done >= self.size
        self._ended = self._rounds.number
        if not self._is_spent:
            self.size = max(1, done)
