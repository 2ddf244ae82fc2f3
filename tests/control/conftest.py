"""A daemon of one connection at a time, which answers with the octets that a test gives it."""

from __future__ import annotations

import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xfrmpy.control.protocol import SOCKET_NAME


class CannedDaemon:
    """`answers` are sent to every call; the connection is then held open, or closed."""

    def __init__(self, runtime_dir: Path) -> None:
        self.runtime_dir = runtime_dir
        self.answers: list[bytes] = []
        self.holds = False
        self.calls: list[dict[str, Any]] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(runtime_dir / SOCKET_NAME))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        call = b""
        while not call.endswith(b"\0"):
            octets = connection.recv(4096)
            if not octets:
                return
            call += octets
        self.calls.append(json.loads(call[:-1]))
        try:
            for answer in self.answers:
                connection.sendall(answer)
            if self.holds:
                connection.recv(1)
        except ConnectionError:
            return


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """Not pytest's own directory: the path of a socket has 107 octets at most."""
    directory = Path(tempfile.mkdtemp(prefix="xfrmpy-test-"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def daemon(runtime_dir: Path) -> Iterator[CannedDaemon]:
    canned = CannedDaemon(runtime_dir)
    yield canned
    canned.close()
