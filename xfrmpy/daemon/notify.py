"""What a service manager is told: readiness, what goes on, and that we are alive (sd_notify(3)).

Alive is a daemon whose event loop runs and whose datapath answers. Nothing here depends on a
manager: one that is not there, or is gone, is not told.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping

STATUS_SECONDS = 1.0
"""How long changes are collected before the manager is told of them."""


class ServiceManager:
    """The one that the environment names, if any. To be made inside the event loop."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_seconds = _watchdog_seconds(environ)
        self._changed = asyncio.Event()

    def tell(self, *state: str) -> None:
        """Assignments such as `READY=1`."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            # It does not read just now: better no word than a daemon that waits.
            sender.setblocking(False)
            try:
                sender.connect(self._address)
                sender.sendall("\n".join(state).encode())
            except OSError:
                return

    def note_change(self) -> None:
        """The status may be another now."""
        self._changed.set()

    async def keep_status(self, status: Callable[[], str]) -> None:
        """Tell a line of what goes on, and again whenever that changes; until cancelled."""
        told = ""
        while self._address:
            self._changed.clear()
            if (line := status()) != told:
                self.tell(f"STATUS={line}")
                told = line
            await self._changed.wait()
            await asyncio.sleep(STATUS_SECONDS)

    async def keep_watchdog(self, is_well: Callable[[], bool]) -> None:
        """Say twice in the manager's time-out that all is well, if it is; until cancelled."""
        while self._address and self._watchdog_seconds:
            if is_well():
                self.tell("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_seconds / 2)


def _watchdog_seconds(environ: Mapping[str, str]) -> float:
    """sd_watchdog_enabled(3); zero if there is no watchdog, or it is not for this process."""
    microseconds = environ.get("WATCHDOG_USEC", "")
    is_for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(microseconds) / 1e6 if microseconds.isdecimal() and is_for_us else 0.0
