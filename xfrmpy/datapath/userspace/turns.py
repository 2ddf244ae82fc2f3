"""Which descriptors are readable, and how much is read from each before others get their turn.

As much as there was the last time; twice as much where it turned out that there was more. So a
packet that comes alone is read by one system call, and not by two of which the second finds nothing
while the packet waits; and what has much to say gets a large turn soon, but never a larger one than
the others can wait for.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Protocol

MAX_READY = 16
"""Descriptors told at a time; room for them is made for each call, and of its own accord the
library makes it for a thousand."""


class _Source(Protocol):
    def fileno(self) -> int: ...


class Readable:
    """Calls for whatever is readable. `rounds` counts how often it has been asked.

    `selectors` does the same, and makes three objects for each call.
    """

    def __init__(self) -> None:
        self.rounds = 0
        self._epoll = select.epoll()
        self._calls: dict[int, Callable[[], None]] = {}

    def register(self, source: _Source, call: Callable[[], None]) -> None:
        self._calls[source.fileno()] = call
        self._epoll.register(source.fileno(), select.EPOLLIN)

    def unregister(self, source: _Source) -> None:
        """To be done before it is closed."""
        self._epoll.unregister(source.fileno())
        del self._calls[source.fileno()]

    def serve(self, seconds: float | None) -> None:
        """Wait for one, as long at most, and call once for each."""
        ready = self._epoll.poll(seconds, MAX_READY)
        self.rounds += 1
        for descriptor, _ in ready:
            call = self._calls.get(descriptor)
            if call is not None:  # Or one called before has unregistered it.
                call()


class Turn:
    """Of one descriptor: `size` is how much of it is read in this round, up to `most`."""

    __slots__ = ("_ended", "_is_spent", "_most", "_readable", "size")

    def __init__(self, readable: Readable, most: int) -> None:
        self._readable = readable
        self._most = most
        self._ended = 0
        self._is_spent = False
        self.size = 1

    def begin(self) -> int:
        """The size. It grows if the descriptor is readable again as soon as all others had their
        turn."""
        if self._is_spent and self._ended + 1 == self._readable.rounds:
            self.size = min(self._most, 2 * self.size)
        return self.size

    def is_single(self) -> bool:
        """As `begin`, and as `end(1)` if the size is 1: the next thing to be read is likely to be
        alone."""
        rounds = self._readable.rounds
        if self.size != 1 or (self._is_spent and self._ended + 1 == rounds):
            return False
        self._is_spent = True
        self._ended = rounds
        return True

    def end(self, done: int) -> None:
        """So much was done of it; if it was less, there was no more."""
        self._is_spent = done >= self.size
        self._ended = self._readable.rounds
        if not self._is_spent:
            self.size = max(1, done)
