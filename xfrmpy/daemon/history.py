"""The events that are kept, and who is told of new ones; both bounded, whoever makes them happen.

Anybody can make a responder refuse him, so what belongs to no tunnel has a place of its own and
cannot push out what does. Who listens and does not keep up loses the oldest, and is told how many.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator

from xfrmpy.control.observed import Event
from xfrmpy.daemon.events import is_of_stranger

MAX_EVENTS = 1000
MAX_EVENTS_OF_STRANGERS = 100
MAX_EVENTS_OF_A_TUNNEL = 50

MAX_WAITING = 1000
"""Events that wait for one listener, about a kilobyte each."""

MAX_AT_ONCE = 100


class Listener:
    """What one listener has not taken yet. `missed` counts what was dropped since he last did."""

    def __init__(self, tunnel: str | None) -> None:
        self.missed_ever = 0
        self._tunnel = tunnel
        self._waiting: deque[Event] = deque()
        self._missed = 0
        self._news = asyncio.Event()

    def offer(self, event: Event) -> None:
        if self._tunnel not in (None, event.tunnel):
            return
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popleft()
            self._missed += 1
            self.missed_ever += 1
        self._waiting.append(event)
        self._news.set()

    async def take(self) -> tuple[list[Event], int]:
        """At least one event and at most `MAX_AT_ONCE`, and how many were missed before them."""
        await self._news.wait()
        taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_AT_ONCE))]
        missed, self._missed = self._missed, 0
        if not self._waiting:
            self._news.clear()
        return taken, missed


class History:
    """See the module."""

    def __init__(self) -> None:
        self._missed_by_the_gone = 0
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._strangers: deque[Event] = deque(maxlen=MAX_EVENTS_OF_STRANGERS)
        self._of_tunnel: dict[str, list[Event]] = {}
        self._listeners: set[Listener] = set()

    def add(self, event: Event, *, keep: bool) -> None:
        """Tell everybody who listens; `keep` it for those who ask later."""
        for listener in self._listeners:
            listener.offer(event)
        if not keep:
            return
        (self._strangers if is_of_stranger(event) else self._events).append(event)
        if not event.tunnel:
            return
        # Lists, for most tunnels have a few events, and a deque has room for 64 from the beginning.
        own = self._of_tunnel.setdefault(event.tunnel, [])
        own.append(event)
        del own[:-MAX_EVENTS_OF_A_TUNNEL]

    @property
    def missed(self) -> int:
        """How many events listeners did not get, all together."""
        return self._missed_by_the_gone + sum(each.missed_ever for each in self._listeners)

    def recent(self, tunnel: str | None, last: int) -> list[Event]:
        """The last events, of one tunnel or of all, the oldest first."""
        if tunnel is None:
            found = sorted((*self._events, *self._strangers), key=lambda event: event.number)
        else:
            found = list(self._of_tunnel.get(tunnel, ()))
        return found[-last:] if last > 0 else []

    @contextlib.contextmanager
    def listen(self, tunnel: str | None) -> Iterator[Listener]:
        """Everything from now on, of one tunnel or of all."""
        listener = Listener(tunnel)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            self._missed_by_the_gone += listener.missed_ever
