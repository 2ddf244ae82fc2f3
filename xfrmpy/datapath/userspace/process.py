"""A worker as its daemon sees it: a process in a session of its own, with a socket to ask it by.

Whoever needs one attaches to that of the runtime directory, which may have outlived the daemon that
made it. One that is of another network namespace, speaks another format or does not answer is of no
use: it is ended, and another takes its place. `close` leaves it as it is, `stop` ends it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from xfrmpy import __version__
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.userspace import requests
from xfrmpy.datapath.userspace.control import UCRED, receive
from xfrmpy.datapath.userspace.shares import ALL, Share
from xfrmpy.ipsec.plain import Plain

ANSWER_SECONDS = 5.0
"""A worker answers within a batch of packets, microseconds to milliseconds; after so long it is
stuck, and the daemon must not be."""

START_SECONDS = 20.0
"""An interpreter starts in a tenth of a second on an idle machine, and numpy takes another."""

_LOADING = frozenset({"carry", "join"})
"""What a worker answers only when it has loaded all that carries packets."""

_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}
"""numpy's algebra, of which a worker has no use, would start a thread for each core."""

SOCKET_NAME, LOG_NAME = requests.socket_name(0), requests.log_name(0)
"""Of the first, which there always is."""


class WorkerProcess:
    """See the module. Asking may raise `DatapathError`.

    `process` is its number, `share` what it has of the SAs, `version` what it was made by; `is_new`
    tells whether this daemon made it, and `replaced` why an earlier one was ended, if so.
    """

    def __init__(
        self, runtime_dir: Path, process: int, share: Share = ALL, *, is_new: bool
    ) -> None:
        self.share = share
        self.version = __version__
        self.is_new = is_new
        self.replaced = ""
        self._runtime_dir = runtime_dir
        self._path = runtime_dir / requests.socket_name(share.index)
        self._log = runtime_dir / requests.log_name(share.index)
        self.process = process
        # Its number may become another's; this stays its own.
        self.handle = os.pidfd_open(process)
        self._requests: socket.socket | None = None

    @classmethod
    def attach(cls, runtime_dir: Path, share: Share = ALL) -> WorkerProcess:
        """The worker of a runtime directory that has this share, made if need be."""
        found = cls.find(runtime_dir, share)
        replaced = "" if found is None else found.shortcoming()
        if found is not None and not replaced:
            return found
        if found is not None:
            found.kill()
        made = cls(runtime_dir, _spawn(runtime_dir, share), share, is_new=True)
        made.replaced = replaced
        return made

    def begin_anew(self) -> None:
        """Another process takes the place of one that has ended; who holds this has that then."""
        self.kill()
        other = WorkerProcess.attach(self._runtime_dir, self.share)
        self.process, self.handle = other.process, other.handle
        self.version, self.is_new, self.replaced = other.version, other.is_new, other.replaced

    @classmethod
    def find(cls, runtime_dir: Path, share: Share = ALL) -> WorkerProcess | None:
        """A process that listens where a worker does, whatever it is good for."""
        try:
            connection = _connect(runtime_dir / requests.socket_name(share.index))
        except DatapathError:
            return None
        with connection:
            octets = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
            process, user, _ = UCRED.unpack(octets)
            if user not in (0, os.geteuid()):
                raise DatapathError(f"user {user} listens in {runtime_dir}, and is not us")
            try:
                found = cls(runtime_dir, process, share, is_new=False)
            except OSError as error:
                reason = f"process {process}, a userspace worker, cannot be watched: {error}"
                raise DatapathError(reason, error.errno) from error
            if _has_hung_up(connection):  # The number may have been another's by then.
                found.close()
                return None
        return found

    def ask(self, what: str, value: Plain = None) -> Plain:
        """The result of a request that has one."""
        (result,) = self.ask_all(what, value)
        plain: Plain = result
        return plain

    def ask_all(self, what: str, value: Plain = None) -> list[Any]:
        with self._connected(what) as connection:
            return _exchange(connection, what, value)

    def keep(self, sockets: Iterable[socket.socket]) -> None:
        """Leave it our sockets, and take back those left before: what is here stays open here."""
        self._send("keep", [each.fileno() for each in sockets])

    def kept(self) -> tuple[socket.socket, ...]:
        """The sockets that an earlier daemon left, to go on with."""
        return tuple(socket.socket(fileno=each) for each in self._receive("kept"))

    def join(self, lent: Sequence[int] = ()) -> None:
        """Have one of several go on with what was lent, or open sockets on the shared port."""
        self._send("join", lent)

    def lend(self) -> list[int]:
        """Descriptors of what one of several receives by: while they are open here, it stays."""
        return self._receive("lend")

    def _send(self, what: str, descriptors: Sequence[int]) -> None:
        request = requests.encode({"do": what})
        with self._connected(what) as connection:
            socket.send_fds(connection, [request], [*descriptors])
            _results(connection)

    def _receive(self, what: str) -> list[int]:
        with self._connected(what) as connection:
            connection.send(requests.encode({"do": what}))
            packet, descriptors = receive(connection)
            _result(packet)
        return descriptors

    def listen(self) -> socket.socket:
        """A connection of its own on which events come; reading never blocks."""
        connection = _connect(self._path)
        try:
            _exchange(connection, "events", None)
        except (OSError, ValueError, DatapathError) as error:
            connection.close()
            raise DatapathError(f"the userspace worker tells no events: {error}") from error
        connection.setblocking(False)
        return connection

    def fileno(self) -> int:
        """Readable when it has ended."""
        return self.handle

    def last_words(self) -> str:
        """What it has said last on standard error, if anything."""
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace").splitlines()
            return lines[-1] if lines else ""
        return ""

    def shortcoming(self) -> str:
        """Why it is of no use to this version, here; nothing if it is."""
        try:
            told = self.ask("hello")
        except DatapathError as error:
            return str(error)
        if not isinstance(told, dict) or told.get("format") != requests.FORMAT:
            return "it speaks another format"
        if not set(told["requests"]) >= requests.REQUESTS:
            return "it knows fewer requests"
        if told["share"] != [self.share.index, self.share.count]:
            return "it is one of another number of workers"
        if told["network"] != requests.network_namespace():
            return "it is in another network namespace"
        self.version = told["version"]
        return ""

    def stop(self) -> None:
        """End it, and with it all that it holds."""
        with contextlib.suppress(DatapathError):
            self.ask("stop")
        if self._ends_within(ANSWER_SECONDS):
            self._bury()
        else:
            self.kill()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)
        self._ends_within(ANSWER_SECONDS)
        self._bury()

    def _bury(self) -> None:
        if self.is_new:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.process, os.WNOHANG)
        self.close()

    def close(self) -> None:
        """It goes on."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1

    def has_ended(self) -> bool:
        return self._ends_within(0)

    def _ends_within(self, seconds: float) -> bool:
        return bool(select.select([self.handle], [], [], seconds)[0])

    @contextlib.contextmanager
    def _connected(self, what: str) -> Iterator[socket.socket]:
        if self._requests is None:
            self._requests = _connect(self._path)
        self._requests.settimeout(START_SECONDS if what in _LOADING else ANSWER_SECONDS)
        try:
            yield self._requests
        except (OSError, ValueError) as error:
            # A late answer must not be taken for that of the next request.
            self._requests.close()
            self._requests = None
            raise DatapathError(f"the userspace worker does not answer: {error}") from error


def _exchange(connection: socket.socket, what: str, value: Plain) -> list[Any]:
    """The results of a request. Raises `DatapathError`, `OSError` or `ValueError`."""
    connection.send(requests.encode({"do": what, "with": value}))
    return _results(connection)


def _results(connection: socket.socket) -> list[Any]:
    results: list[Any] = []
    while True:
        result, is_last = _result(connection.recv(requests.MAX_PACKET))
        results.append(result)
        if is_last:
            return results


def _result(packet: bytes) -> tuple[Any, bool]:
    """The result in a reply, and whether it is the last."""
    if not packet:
        raise ConnectionResetError("it has closed the connection")
    reply = requests.decode(packet)
    if "error" in reply:
        raise DatapathError(reply["error"], reply["errno"])
    return reply["result"], not reply.get("more")


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(ANSWER_SECONDS)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise DatapathError(f"no userspace worker at {path}: {error}", error.errno) from error
    return connection


def _has_hung_up(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _spawn(runtime_dir: Path, share: Share) -> int:
    """Its process id. Raises `DatapathError` with the worker's own words if it cannot start."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    module = "xfrmpy.datapath.userspace.worker"
    numbers = str(share.index), str(share.count)
    path = str(runtime_dir / requests.socket_name(share.index))
    with open(reading, "rb") as ready:
        try:
            process = os.posix_spawn(
                sys.executable,
                # -P: no modules from the current directory, which may be anybody's.
                [sys.executable, "-P", "-m", module, path, str(writing), *numbers],
                {**os.environ, **_ONE_THREAD},
                file_actions=_standard_streams(runtime_dir / requests.log_name(share.index)),
                setsid=True,
            )
        except OSError as error:
            raise DatapathError(f"the userspace worker cannot start: {error}") from error
        finally:
            os.close(writing)
        if not select.select([ready], [], [], START_SECONDS)[0]:
            os.kill(process, signal.SIGKILL)
        words = ready.read()
    if words == requests.READY:
        return process
    os.waitpid(process, 0)
    reason = words.decode(errors="replace") or "it ended without a word"
    raise DatapathError(f"the userspace worker cannot start: {reason}")


def _standard_streams(log: Path) -> list[tuple[int, int, str, int, int]]:
    """None of the daemon's: whoever waits for the end of its output must not wait for the worker's.

    What a worker says, which is little, is in a file beside its socket.
    """
    kept = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    return [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, str(log), kept, 0o600),
    ]
