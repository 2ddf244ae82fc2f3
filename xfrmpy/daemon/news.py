"""Where everything that happens comes in: it is kept, told to who listens, and logged."""

from __future__ import annotations

import asyncio
import logging
import time

from xfrmpy.control.protocol import Event
from xfrmpy.daemon.events import Report, Severity, event_of, is_of_stranger
from xfrmpy.daemon.history import History
from xfrmpy.daemon.narration import is_routine
from xfrmpy.daemon.tally import Tally

log = logging.getLogger("xfrmpy.events")

STRANGER_LOG_SECONDS = 5.0
"""How often what somebody unknown causes is a line of the log; the rest is, when asked for."""

_LEVELS = {
    Severity.DEBUG: logging.DEBUG,
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.ERROR: logging.ERROR,
    Severity.CRITICAL: logging.CRITICAL,
}


class News:
    """See the module."""

    def __init__(self) -> None:
        self.history = History()
        self.tally = Tally()
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._next_stranger_at = 0.0

    def hear(self, report: Report) -> None:
        if is_routine(report) and not log.isEnabledFor(logging.DEBUG):
            return
        event = event_of(report, self._number + 1, time.time(), self._loop.time())
        if event is None:
            return
        self._number += 1
        self.tally.count(event)
        self.history.add(event, keep=event.severity != Severity.DEBUG)
        name = event.tunnel or ("no tunnel" if is_of_stranger(event) else "")
        text = f"{name}: {event.text}" if name else event.text
        log.log(self._level(event), "%s", text, extra={"event": event})

    def _level(self, event: Event) -> int:
        """Anybody can be refused, as often as he likes; the log is not for him to fill."""
        level = _LEVELS[Severity(event.severity)]
        if level != logging.WARNING or not is_of_stranger(event):
            return level
        now = self._loop.time()
        if now < self._next_stranger_at:
            return logging.DEBUG
        self._next_stranger_at = now + STRANGER_LOG_SECONDS
        return level
