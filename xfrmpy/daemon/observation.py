"""What callers may look at, and change nothing by: events, and the state that a tunnel comes to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from xfrmpy.control.protocol import EventsReply, TunnelStatus, WaitReply
from xfrmpy.daemon.history import History
from xfrmpy.daemon.tunnel import Tunnel
from xfrmpy.failures import OperatorError

LOOK_SECONDS = 0.5
"""The end of an attempt is not reported; whoever waits for `down` looks as often as this."""


class Observation:
    """See the module. `find` raises `OperatorError` for a tunnel that there is not."""

    def __init__(
        self,
        history: History,
        find: Callable[[object], Tunnel],
        status_of: Callable[[Tunnel], TunnelStatus],
    ) -> None:
        self._history = history
        self._find = find
        self._status_of = status_of

    async def monitor(self, parameters: dict[str, Any]) -> AsyncIterator[EventsReply]:
        name, last = parameters.get("tunnel"), parameters.get("last")
        if name is not None:
            self._find(name)
        with self._history.listen(name) as listener:
            yield EventsReply(events=self._history.recent(name, 10 if last is None else last))
            while True:
                events, missed = await listener.take()
                yield EventsReply(events=events, missed=missed)

    async def wait(self, parameters: dict[str, Any]) -> AsyncIterator[WaitReply]:
        name, state = parameters["tunnel"], parameters["state"]
        seconds = float(parameters["timeout_seconds"])
        if state not in {"up", "down"}:
            raise OperatorError("XF5001", f"a tunnel comes to be up or down, not {state!r}")
        tunnel = self._find(name)
        try:
            async with asyncio.timeout(seconds):
                await self._until(tunnel, state)
        except TimeoutError as error:
            now = self._status_of(tunnel).state
            reason = f"{name} is {now}, not {state}, after {seconds:g} seconds"
            raise OperatorError("XF4007", reason) from error
        yield WaitReply(tunnel=self._status_of(tunnel))

    async def _until(self, tunnel: Tunnel, state: str) -> None:
        with tunnel.listen() as reports:
            while self._status_of(tunnel).state != state:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await reports.get()
