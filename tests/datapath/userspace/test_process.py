"""A real worker that is asked to carry nothing: it needs no privilege, and keeps sockets."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.userspace import process, requests
from xfrmpy.datapath.userspace.process import LOG_NAME, SOCKET_NAME, WorkerProcess
from xfrmpy.datapath.userspace.udp import attach_reuseport_selector, open_shared_udp_socket
from xfrmpy.ipsec.sad import USERSPACE_SPI_BIT

SECONDS = 20.0


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[WorkerProcess]:
    """Made by a daemon that is gone by now."""
    made = WorkerProcess.attach(tmp_path)
    yield made
    made.close()
    if (last := WorkerProcess.find(tmp_path)) is not None:
        last.stop()
    with suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_the_next_daemon_has_the_same_worker(worker: WorkerProcess, tmp_path: Path) -> None:
    worker.close()
    later = WorkerProcess.attach(tmp_path)
    assert (worker.is_new, later.is_new, later.replaced) == (True, False, "")
    later.close()
    assert (tmp_path / SOCKET_NAME).stat().st_mode & 0o777 == 0o600


def test_a_worker_is_out_of_reach_of_terminals_and_pipes(
    worker: WorkerProcess, tmp_path: Path
) -> None:
    number = worker.process
    assert os.getsid(number) == number
    streams = [Path(f"/proc/{number}/fd/{each}").readlink() for each in range(3)]
    assert streams == [Path(os.devnull), Path(os.devnull), tmp_path / LOG_NAME]


def test_what_came_while_there_was_no_daemon_waits(worker: WorkerProcess, tmp_path: Path) -> None:
    with _loopback() as ours:
        worker.keep([ours])
        place = ours.getsockname()
    worker.close()
    with _loopback() as peer:
        peer.sendto(b"a request", place)
    later = WorkerProcess.attach(tmp_path)
    (ours,) = later.kept()
    with ours:
        assert ours.getsockname() == place
        ours.settimeout(SECONDS)
        assert ours.recv(100) == b"a request"
        assert not ours.get_inheritable()
    later.close()


def test_the_order_on_the_shared_port_outlives_the_daemon(worker: WorkerProcess) -> None:
    """Without the worker's hold, the second socket would move up and get IKE as well."""
    with ExitStack() as stack:
        first = open_shared_udp_socket(socket.AF_INET, 0)
        port = first.getsockname()[1]
        second = stack.enter_context(open_shared_udp_socket(socket.AF_INET, port))
        second.settimeout(SECONDS)
        attach_reuseport_selector(second, workers=1)
        worker.keep([first])
        first.close()
        peer = stack.enter_context(_loopback())
        ike, esp = bytes(4) + b"ike", USERSPACE_SPI_BIT.to_bytes(4, "big") + b"esp"
        for datagram in (ike, esp):
            peer.sendto(datagram, ("127.0.0.1", port))
        assert second.recv(100) == esp
        (first,) = worker.kept()
        stack.enter_context(first)
        first.settimeout(SECONDS)
        assert first.recv(100) == ike


def test_a_kept_socket_blocks_neither_daemon(worker: WorkerProcess) -> None:
    """Whether it blocks is one fact for all who have it open."""
    with _loopback() as ours:
        ours.setblocking(False)
        worker.keep([ours])
        assert not os.get_blocking(ours.fileno())
        (theirs,) = worker.kept()
        with theirs:
            assert not os.get_blocking(theirs.fileno())


def test_sockets_that_are_replaced_are_closed(worker: WorkerProcess) -> None:
    with _loopback() as one, _loopback() as other:
        before = _open_files(worker)
        worker.keep([one, other])
        assert _open_files(worker) == before + 2
        worker.keep([other])
        assert _open_files(worker) == before + 1


def test_descriptors_beside_nonsense_are_closed(worker: WorkerProcess, tmp_path: Path) -> None:
    with _connected(tmp_path) as connection:
        _talk(connection, b"nonsense")
        before = _open_files(worker)
        reading, writing = os.pipe()
        for packet in (b"nonsense", requests.encode({"do": "keep"})):
            assert "error" in _talk(connection, packet, reading, writing)
        os.close(reading)
        os.close(writing)
        assert _open_files(worker) == before


@pytest.mark.parametrize(
    ("where", "name", "value", "words"),
    [
        (requests, "FORMAT", "of another day", "another format"),
        (requests, "REQUESTS", frozenset({"foretell"}), "fewer requests"),
        (requests, "network_namespace", lambda: 1, "another network namespace"),
    ],
    ids=["format", "requests", "network"],
)
def test_a_worker_of_no_use_is_replaced_and_that_is_said(
    worker: WorkerProcess,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: Any,
    name: str,
    value: object,
    words: str,
) -> None:
    before = os.pidfd_open(worker.process)
    monkeypatch.setattr(where, name, value)
    later = WorkerProcess.attach(tmp_path)
    assert later.is_new
    assert words in later.replaced
    assert select.select([before], [], [], 0)[0], "the earlier one has ended"
    os.close(before)
    later.stop()


def test_a_worker_that_is_stuck_is_replaced_in_time(
    worker: WorkerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "ANSWER_SECONDS", 0.3)
    os.kill(worker.process, signal.SIGSTOP)
    later = WorkerProcess.attach(tmp_path)
    assert later.is_new
    assert "timed out" in later.replaced
    assert isinstance(later.ask("hello"), dict)
    later.stop()


def test_a_worker_that_has_to_load_what_carries_packets_is_given_time(
    worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "ANSWER_SECONDS", 0.1)
    os.kill(worker.process, signal.SIGSTOP)
    wakes = Timer(1.0, os.kill, (worker.process, signal.SIGCONT))
    wakes.start()
    with pytest.raises(DatapathError, match="a port is a number"):
        worker.ask("carry", "no port")
    wakes.join()


def test_a_socket_that_nobody_listens_at_is_no_worker(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(str(tmp_path / SOCKET_NAME))
        stale.listen()
    made = WorkerProcess.attach(tmp_path)
    assert (made.is_new, made.replaced) == (True, "")
    made.stop()


def test_a_worker_may_be_stopped_when_it_has_ended(worker: WorkerProcess, tmp_path: Path) -> None:
    os.kill(worker.process, signal.SIGKILL)
    worker.stop()
    assert WorkerProcess.find(tmp_path) is None


def _open_files(worker: WorkerProcess) -> int:
    """When it has done with what it was asked before."""
    worker.ask("hello")
    return len(os.listdir(f"/proc/{worker.process}/fd"))


def _connected(directory: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(SECONDS)
    connection.connect(str(directory / SOCKET_NAME))
    return connection


def _talk(connection: socket.socket, packet: bytes, *descriptors: int) -> dict[str, Any]:
    socket.send_fds(connection, [packet], descriptors)
    return requests.decode(connection.recv(requests.MAX_PACKET))


def _loopback() -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind(("127.0.0.1", 0))
    return opened
