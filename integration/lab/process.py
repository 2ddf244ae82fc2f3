"""Running things, and waiting for them: every wait has a deadline and says what it waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

LAB = Path(__file__).resolve().parent

IN_VM = os.environ.get("KERNEL_VM") == "1"
"""Whether this is the emulated machine of `kernel-vm`."""

PATIENCE = 6.0 if IN_VM else 1.0
"""By how much every deadline is stretched: emulation is slow, and slower on a busy machine."""

LOG_TAIL = 6000
"""Characters of a log that a failure shows."""

T = TypeVar("T")


def run(
    *argv: str, check: bool = True, seconds: float = 60.0, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; raises `AssertionError` with its output if it fails."""
    done = subprocess.run(
        argv, capture_output=True, text=True, input=stdin, timeout=seconds * PATIENCE, check=False
    )
    if check and done.returncode != 0:
        raise AssertionError(
            f"{' '.join(argv)} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done


def eventually(what: str, condition: Callable[[], T], seconds: float = 10.0) -> T:
    """What `condition` returns as soon as that is true; `AssertionError` after `seconds`."""
    deadline_at = time.monotonic() + seconds * PATIENCE
    while not (found := condition()):
        if time.monotonic() > deadline_at:
            raise AssertionError(f"not within {seconds * PATIENCE:.0f} s: {what}")
        time.sleep(0.02)
    return found


class Background:
    """A process that goes on by itself; its output goes to `log`. Stopped by its own pid."""

    def __init__(
        self, argv: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, number: int = signal.SIGTERM, seconds: float = 10.0) -> int:
        """Send a signal and return the exit status; one that does not end is killed and raises."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(seconds * PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            tail = self.output[-LOG_TAIL:]
            raise AssertionError(f"{self.process.args!r} did not stop\n{tail}") from None
