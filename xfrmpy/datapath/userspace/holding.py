"""Packets that wait for an SA, as a kernel's policies hold them: few, and not for long.

What is bounded: packets of one reqid, octets in all, and time. The newest is the one that does not
fit: the first of a conversation is what its sender waits for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

PACKETS = 100
"""Of one reqid: XFRM_MAX_QUEUE_LEN of Linux."""

OCTETS = 4 << 20
"""Of all together."""

SECONDS = 60.0
"""XFRM_QUEUE_TMO_MAX of Linux, after which a queue is given up."""


class Holding:
    """See the module."""

    def __init__(self) -> None:
        self._waiting: dict[int, deque[tuple[float, bytes]]] = {}
        self._octets = 0

    def hold(self, reqid: int, packet: bytes, now: float) -> bool:
        """Whether it is kept, and not lost."""
        if len(self._waiting.get(reqid, ())) >= PACKETS or self._octets + len(packet) > OCTETS:
            return False
        self._waiting.setdefault(reqid, deque()).append((now, packet))
        self._octets += len(packet)
        return True

    def take(self, is_ready: Callable[[int, bytes], bool], now: float) -> list[tuple[int, bytes]]:
        """Those that can go now, with their reqids, in their order; the others go on waiting."""
        self.expire(now)
        taken: list[tuple[int, bytes]] = []
        for reqid, waiting in tuple(self._waiting.items()):
            left: deque[tuple[float, bytes]] = deque()
            for item in waiting:
                if is_ready(reqid, item[1]):
                    taken.append((reqid, item[1]))
                    self._octets -= len(item[1])
                else:
                    left.append(item)
            self._keep(reqid, left)
        return taken

    def firsts(self) -> Iterator[tuple[int, bytes]]:
        """The packet of each reqid that has waited longest."""
        for reqid, waiting in self._waiting.items():
            yield reqid, waiting[0][1]

    def expire(self, now: float) -> None:
        """Give up what has waited for too long."""
        for reqid, waiting in tuple(self._waiting.items()):
            self._forget_old(waiting, now)
            self._keep(reqid, waiting)

    def clear(self) -> None:
        self._waiting.clear()
        self._octets = 0

    def _keep(self, reqid: int, waiting: deque[tuple[float, bytes]]) -> None:
        if waiting:
            self._waiting[reqid] = waiting
        else:
            del self._waiting[reqid]

    def _forget_old(self, waiting: deque[tuple[float, bytes]], now: float) -> None:
        while waiting and waiting[0][0] <= now - SECONDS:
            self._octets -= len(waiting.popleft()[1])
