"""When each IKE SA wants to be attended to: one moment each, the earliest found at once.

A heap of moments, in which one that was changed stays behind and is passed over when its turn
comes; so to set a moment anew costs little, and most are: a request is answered long before it
would be retransmitted.
"""

from __future__ import annotations

import heapq

_SLACK = 64
"""Moments that may stay behind beside those that count, before the heap is made anew."""


def earliest(*moments: float | None) -> float | None:
    """The first of some moments, if there is one. (`min` over a generator takes three times as
    long, and this is asked for with every message.)"""
    found = None
    for moment in moments:
        if moment is not None and (found is None or moment < found):
            found = moment
    return found


class Timers:
    """See the module. Keys are SPIs."""

    def __init__(self) -> None:
        self._moments: dict[bytes, float] = {}
        self._heap: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        """How many keys have a moment."""
        return len(self._moments)

    def set(self, key: bytes, at: float | None) -> None:
        """From now on the one moment of `key` is `at`, or it has none."""
        if at is None:
            self._moments.pop(key, None)
        elif self._moments.get(key) != at:
            self._moments[key] = at
            heapq.heappush(self._heap, (at, key))
            self._compact()

    @property
    def next_at(self) -> float | None:
        """The earliest moment of all."""
        heap, moments = self._heap, self._moments
        while heap and moments.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take_due(self, now: float, count: int) -> list[bytes]:
        """The first `count` keys whose moment has come; they have none then."""
        heap, moments, due = self._heap, self._moments, list[bytes]()
        while heap and heap[0][0] <= now and len(due) < count:
            at, key = heapq.heappop(heap)
            if moments.get(key) == at:
                del moments[key]
                due.append(key)
        return due

    def _compact(self) -> None:
        if len(self._heap) > 2 * len(self._moments) + _SLACK:
            self._heap = [(at, key) for key, at in self._moments.items()]
            heapq.heapify(self._heap)
