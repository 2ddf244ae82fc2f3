"""What callers may look at, and change nothing by: events, and the state that a tunnel comes to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from xfrmpy.control.observed import DescribeReply, EventsReply, WaitReply
from xfrmpy.control.protocol import TunnelStatus
from xfrmpy.daemon.description import child_sa_details, ike_sa_details, policy_status
from xfrmpy.daemon.history import MAX_EVENTS_OF_A_TUNNEL, History, Listener
from xfrmpy.daemon.tunnel import Tunnel
from xfrmpy.failures import OperatorError
from xfrmpy.ike.views import IkeSaView

DESCRIBED_EVENTS = 10

LOOK_SECONDS = 0.5
"""The end of an attempt is not reported; whoever waits for `down` looks as often as this."""


class Observation:
    """See the module. `find` raises `OperatorError` for a tunnel that there is not."""

    def __init__(
        self,
        history: History,
        find: Callable[[object], Tunnel],
        status_of: Callable[[Tunnel], TunnelStatus],
        ike_sas: Callable[[str], tuple[IkeSaView, ...]],
    ) -> None:
        self._history = history
        self._ike_sas = ike_sas
        self._find = find
        self._status_of = status_of

    async def describe(self, parameters: dict[str, Any]) -> AsyncIterator[DescribeReply]:
        tunnel = self._find(parameters["tunnel"])
        name, now = tunnel.policy.name, asyncio.get_running_loop().time()
        kept = self._history.recent(name, MAX_EVENTS_OF_A_TUNNEL)
        failures = [event for event in kept if event.failure is not None]
        ike_sas = self._ike_sas(name)
        yield DescribeReply(
            tunnel=self._status_of(tunnel),
            wanted=tunnel.wanted,
            policy=policy_status(tunnel.policy),
            ike_sas=[ike_sa_details(sa, now) for sa in ike_sas],
            child_sas=[child_sa_details(child, now) for sa in ike_sas for child in sa.children],
            last_failure=failures[-1] if failures else None,
            events=kept[-DESCRIBED_EVENTS:],
        )

    async def monitor(self, parameters: dict[str, Any]) -> AsyncIterator[EventsReply]:
        name, last = parameters.get("tunnel"), parameters.get("last")
        if name is not None:
            self._find(name)
        with self._history.listen(name) as listener:
            yield EventsReply(events=self._history.recent(name, 10 if last is None else last))
            while True:
                yield await _next_events(listener, parameters.get("heartbeat_seconds"))

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
            while _in_brief(self._status_of(tunnel).state) != state:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await reports.get()


def _in_brief(state: str) -> str:
    """One that waits for traffic is down, too."""
    return "down" if state == "waiting" else state


async def _next_events(listener: Listener, heartbeat_seconds: float | None) -> EventsReply:
    try:
        async with asyncio.timeout(heartbeat_seconds):
            events, missed = await listener.take()
    except TimeoutError:
        return EventsReply(events=[])
    return EventsReply(events=events, missed=missed)
