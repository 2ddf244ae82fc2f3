"""xfrmpy's processes as copies of one that has all imported: all of them in the emulated machine.

Importing is what a command or a daemon does for most of its first seconds there, and there are some
thousand of them. On the machine itself it is still most of the work of a test: those marked
`copied` have copies, too, for nothing in them depends on how a process begins. The copies run what
the real ones run, from `main` on, each with an environment, files, a namespace and a session of its
own.

The copies are made by a process without threads, which is asked through a socket: each request
brings standard input, output and error, and a pipe that tells the copy's process id and, in the
end, its exit status.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import xfrmpy
from integration.lab.process import enter

_LARGEST = 1 << 17
"""Octets of a request: an environment may be long."""

_Main = Callable[[], int]


class Copy:
    """A running copy; what a `subprocess.Popen` is for another process."""

    def __init__(self, told: int) -> None:
        self.returncode: int | None = None
        self._told = os.fdopen(told, "rb", buffering=0)
        self.pid = int(self._told.read(8))

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            # Nothing, if whoever makes the copies was killed: so was this one, then.
            self.returncode = int(self._told.read(8) or -signal.SIGKILL)
            self._told.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status; negative for a signal. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None and not select.select([self._told], [], [], timeout)[0]:
            assert timeout is not None
            raise subprocess.TimeoutExpired("xfrmpy", timeout)
        status = self.poll()
        assert status is not None
        return status

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_copy(
    argv: Sequence[str],
    environment: Mapping[str, str],
    files: tuple[int, int, int],
    *,
    namespace: str,
) -> Copy:
    """`xfrmpy ARGV...` in a network namespace, with these as its first three files."""
    request = {"namespace": namespace, "argv": [*argv], "environment": dict(environment)}
    told, tell = os.pipe()
    try:
        message = json.dumps(request).encode()
        socket.send_fds(_maker(), [message], [*files, tell])
    finally:
        os.close(tell)
    return Copy(told)


@functools.cache
def _maker() -> socket.socket:
    """The socket of the process that makes the copies; it ends with ours."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)
    with theirs:
        theirs.set_inheritable(True)
        command = (sys.executable, "-P", "-m", __name__, str(theirs.fileno()))
        here = str(Path(__file__).parents[2])
        os.posix_spawn(sys.executable, command, {**os.environ, "PYTHONPATH": here})
    return ours


# The other side.


def _serve(requests: socket.socket) -> _Main | None:
    """Make copies until nobody is there to ask. In a copy: what it is to run."""
    running: dict[int, int] = {}
    woken, wake = socket.socketpair()
    for end in (woken, wake):
        end.setblocking(False)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready = select.select([requests, woken], [], [])[0]
        if woken in ready:
            woken.recv(4096)
            _tell_ends(running)
        if requests not in ready:
            continue
        message, files, _, _ = socket.recv_fds(requests, _LARGEST, 4)
        if not message:
            return None
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for left in (requests, woken, wake):
                left.close()
            for tell in running.values():
                os.close(tell)
            return _become(json.loads(message), files)
        running[pid] = files.pop()
        os.write(running[pid], b"%-8d" % pid)
        for file in files:
            os.close(file)


def _tell_ends(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        tell = running.pop(pid)
        os.write(tell, b"%-8d" % os.waitstatus_to_exitcode(status))
        os.close(tell)


def _become(request: dict[str, object], files: list[int]) -> _Main:
    os.setsid()
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    for file in files:
        os.close(file)
    enter(str(request["namespace"]))
    environment, argv = request["environment"], request["argv"]
    assert isinstance(environment, dict)
    assert isinstance(argv, list)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["xfrmpy", *argv]
    return functools.partial(_daemon, argv[1:]) if argv[0] == "daemon" else _command


def _daemon(argv: list[str]) -> int:
    gc.disable()  # as the first lines of its module have it, until it is ready
    status: int = importlib.import_module("xfrmpy.daemon.__main__").main(argv)
    return status


def _command() -> int:
    importlib.import_module("xfrmpy.cli.main").main()
    return 0


def _import_all() -> None:
    """What commands import when they need it as well: it is all in xfrmpy's own modules."""
    gc.disable()
    for module in pkgutil.walk_packages(xfrmpy.__path__, "xfrmpy."):
        importlib.import_module(module.name)
    importlib.import_module("rich.live")
    gc.freeze()
    gc.enable()


if __name__ == "__main__":
    channel = socket.socket(fileno=int(sys.argv[1]))
    _import_all()
    run = _serve(channel)
    if run is not None:
        sys.exit(run())
