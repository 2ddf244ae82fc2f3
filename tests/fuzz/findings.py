"""What counts as a finding besides an exception, and how much work one input may cause."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

MAX_CPU_SECONDS = 1.0
"""For one input, with or without the instrumentation of the fuzzer."""


class Finding(Exception):
    """Something that must not be; the message says what."""


class Endless(BaseException):
    """One input has taken too long; no firewall of the code under test may swallow this."""


@contextlib.contextmanager
def limited_cpu(seconds: float = MAX_CPU_SECONDS) -> Iterator[None]:
    """Raise `Endless` where the code stands when it has used up its time."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Endless(f"more than {seconds} s of CPU for one input")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
