"""xfrmpy's processes in the emulated machine: each begins as a copy of one that has all imported.

Importing is what a command or a daemon does for most of its first seconds there, and there are some
thousand of them. The copies run what the real ones run, from `main` on, each with an environment,
files, a namespace and a session of its own. On the machine itself nothing of this is used.

The copies are made by a process without threads, which is asked through a socket: each request
brings standard input, output and error, a pipe that tells the copy's process id and, in the end,
its exit status, and one more file: for a worker the pipe by which it says that it is ready, for
others the socket itself, by which a daemon has its workers made in the same way.
"""

from __future__ import annotations

import contextlib
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
from typing import Any

import xfrmpy
from integration.lab.process import enter

_LARGEST = 1 << 17
"""Octets of a request: an environment may be long."""

_WORKER = "xfrmpy.datapath.userspace.worker"

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
    maker = _maker()
    return Copy(_ask(maker, [*argv], environment, (*files, maker.fileno()), namespace))


def _ask(
    maker: socket.socket,
    argv: list[str],
    environment: Mapping[str, str],
    files: tuple[int, int, int, int],
    namespace: str,
) -> int:
    """The end of the pipe by which the copy is told of."""
    request = {"namespace": namespace, "argv": argv, "environment": dict(environment)}
    told, tell = os.pipe()
    try:
        socket.send_fds(maker, [json.dumps(request).encode()], [tell, *files])
    finally:
        os.close(tell)
    return told


@functools.cache
def _maker() -> socket.socket:
    """The socket of the process that makes the copies; it ends with ours."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)
    with theirs:
        theirs.set_inheritable(True)
        command = (sys.executable, "-P", "-m", __name__, str(theirs.fileno()))
        # One thread: numpy's algebra would start more.
        more = {"PYTHONPATH": str(Path(__file__).parents[2]), "OPENBLAS_NUM_THREADS": "1"}
        os.posix_spawn(sys.executable, command, {**os.environ, **more})
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
        message, (*files,), _, _ = socket.recv_fds(requests, _LARGEST, 5)
        if not message:
            return None
        tell, *files = files
        pid = os.fork()
        if not pid:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for left in (requests, woken, wake):
                left.close()
            for other in (tell, *running.values()):
                os.close(other)
            return _become(json.loads(message), files)
        running[pid] = tell
        os.write(tell, b"%-8d" % pid)
        for file in files:
            os.close(file)


def _tell_ends(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        tell = running.pop(pid)
        with contextlib.suppress(BrokenPipeError):  # Nobody waits for it.
            os.write(tell, b"%-8d" % os.waitstatus_to_exitcode(status))
        os.close(tell)


def _become(request: dict[str, Any], files: list[int]) -> _Main:
    os.setsid()
    *standard, last = files
    for number, file in enumerate(standard):
        os.dup2(file, number)
        os.close(file)
    enter(request["namespace"])
    os.environ.clear()
    os.environ.update(request["environment"])
    what, *argv = request["argv"]
    if what == _WORKER:
        path, _, *share = argv
        return functools.partial(_run, _WORKER, [path, str(last), *share])
    maker = socket.socket(fileno=last)
    if what == "daemon":
        gc.disable()  # as the first lines of its module have it, until it is ready
        os.posix_spawn = functools.partial(_spawn_worker, os.posix_spawn, maker, request)
        return functools.partial(_run, "xfrmpy.daemon.__main__", argv)
    maker.close()
    sys.argv = ["xfrmpy", what, *argv]
    return _command


def _spawn_worker(
    spawn: Callable[..., int],
    maker: socket.socket,
    request: dict[str, Any],
    executable: str,
    argv: list[str],
    environment: Mapping[str, str],
    *,
    file_actions: Sequence[tuple[int, int, str, int, int]],
    setsid: bool,
) -> int:
    """What `os.posix_spawn` does for a daemon that starts a worker."""
    if _WORKER not in argv:
        return spawn(executable, argv, environment, file_actions=file_actions, setsid=setsid)
    wanted = argv[argv.index(_WORKER) :]
    opened = [os.open(path, flags, mode) for _, _, path, flags, mode in file_actions]
    stdin, stdout, stderr = opened
    ready = int(wanted[2])
    told = _ask(maker, wanted, environment, (stdin, stdout, stderr, ready), request["namespace"])
    for file in opened:
        os.close(file)
    with os.fdopen(told, "rb", buffering=0) as pipe:
        return int(pipe.read(8))


def _run(module: str, argv: list[str]) -> int:
    status: int = importlib.import_module(module).main(argv)
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
