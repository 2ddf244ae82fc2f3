"""Running things, and waiting for them: every wait has a deadline and says what it waited for."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

LAB = Path(__file__).resolve().parent

IN_VM = os.environ.get("KERNEL_VM") == "1"
"""Whether this is the emulated machine of `kernel-vm`."""

PATIENCE = 6.0 if IN_VM else 1.0
"""By how much every deadline is stretched: emulation is slow, and slower on a busy machine."""

LOG_TAIL = 6000
"""Characters of a log that a failure shows."""

_CLONE_NEWNET = 0x4000_0000

_THREADS = 16
"""Behind the state in `stat` of proc(5): of a zombie, how many others are still on their way."""

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


def enter(namespace: str) -> None:
    """Have the thread that calls in a network namespace from now on, and what it starts."""
    with Path("/run/netns", namespace).open("rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns to {namespace}")


def eventually(what: str, condition: Callable[[], T], seconds: float = 10.0) -> T:
    """What `condition` returns as soon as that is true; `AssertionError` after `seconds`."""
    deadline_at = time.monotonic() + seconds * PATIENCE
    while not (found := condition()):
        if time.monotonic() > deadline_at:
            raise AssertionError(f"not within {seconds * PATIENCE:.0f} s: {what}")
        time.sleep(0.02)
    return found


def has_ended(pid: int) -> bool:
    """Whether a process is gone, all its threads with it; nobody need have waited for it."""
    try:
        state, *others = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z" and int(others[_THREADS]) <= 1


class Process(Protocol):
    """What we ask of one that runs; see `subprocess.Popen`."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...

    def kill(self) -> None: ...


Start = Callable[[Sequence[str], Mapping[str, str], tuple[int, int, int]], Process]
"""Runs a command with an environment and these as its standard input, output and error."""


def popen(
    argv: Sequence[str], environment: Mapping[str, str], files: tuple[int, int, int]
) -> subprocess.Popen[bytes]:
    """In a session of its own."""
    stdin, stdout, stderr = files
    return subprocess.Popen(
        argv, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
    )


class Background:
    """A process that goes on by itself; its output goes to `log`. Stopped by its own pid."""

    def __init__(
        self,
        argv: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        start: Start = popen,
    ) -> None:
        self.log = log
        self._argv = argv
        with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
            files = nothing.fileno(), output.fileno(), output.fileno()
            self.process = start(argv, {**os.environ, **(environment or {})}, files)

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
            raise AssertionError(f"{self._argv!r} did not stop\n{tail}") from None
