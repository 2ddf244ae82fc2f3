"""The metrics over HTTP and as a file: real sockets, real files."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xfrmpy.daemon import exposition
from xfrmpy.daemon.exposition import Exposition, Exposure, write_whole
from xfrmpy.failures import OperatorError

TEXT = "xfrmpy_build_info 1\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def serve(exposure: Exposure, talk: Callable[[], Any], gid: int | None = None) -> Any:
    async def both() -> Any:
        served = Exposition(exposure, lambda: TEXT, gid)
        await served.start()
        try:
            return await asyncio.to_thread(talk)
        finally:
            await served.stop()

    return asyncio.run(both())


def test_prometheus_gets_them_over_http() -> None:
    port = free_port()

    def talk() -> tuple[int, str | None, str, int]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/metrics")
            response = connection.getresponse()
            body = response.read().decode()
            kind = response.getheader("Content-Type")
        with contextlib.closing(connection):
            connection.request("HEAD", "/metrics")
            return response.status, kind, body, len(connection.getresponse().read())

    told = serve(Exposure(listen=f"127.0.0.1:{port}"), talk)
    assert told == (200, "text/plain; version=0.0.4; charset=utf-8", TEXT, 0)


def exchange(address: Any, octets: bytes) -> bytes:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as caller:
        caller.settimeout(5)
        caller.connect(address)
        caller.sendall(octets)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := caller.recv(65536):
                answer += piece
        return answer


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"POST /metrics HTTP/1.1", b"405"),
        (b"GET /secret HTTP/1.1", b"404"),
        (b"GET /metrics?x=1 HTTP/1.0", b"200"),
        (b"", b"405"),
        (b"\xff\xfe\x00", b"405"),
    ],
)
def test_what_is_no_question_for_metrics_gets_no_metrics(
    request_line: bytes, status: bytes
) -> None:
    port = free_port()
    answer = serve(
        Exposure(listen=f"127.0.0.1:{port}"),
        lambda: exchange(("127.0.0.1", port), request_line + b"\r\n\r\n"),
    )
    assert answer.split()[1] == status
    assert (TEXT.encode() in answer) == (status == b"200")


def test_a_request_without_end_and_one_that_never_comes_are_hung_up_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exposition, "REQUEST_SECONDS", 0.3)
    port = free_port()

    def talk() -> tuple[bytes, bytes]:
        return exchange(("127.0.0.1", port), b"G" * 30_000), exchange(("127.0.0.1", port), b"GET")

    assert serve(Exposure(listen=f"127.0.0.1:{port}"), talk) == (b"", b"")


def test_more_readers_than_there_is_room_for_are_hung_up_on() -> None:
    port = free_port()

    def talk() -> tuple[bytes, bytes]:
        with contextlib.ExitStack() as stack:
            for _ in range(exposition.MAX_READERS):
                held = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
                held.sendall(b"GET")
            try:
                refused = exchange(("127.0.0.1", port), b"GET /metrics HTTP/1.1\r\n\r\n")
            except ConnectionError:
                refused = b""
        return refused, exchange(("127.0.0.1", port), b"GET /metrics HTTP/1.1\r\n\r\n")

    refused, later = serve(Exposure(listen=f"127.0.0.1:{port}"), talk)
    assert refused == b""
    assert later.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("gid", [None, os.getegid()])
def test_a_unix_socket_is_for_those_who_may_look(tmp_path: Path, gid: int | None) -> None:
    path = tmp_path / "metrics.sock"

    def talk() -> tuple[bytes, int]:
        answer = exchange(str(path), b"GET /metrics HTTP/1.1\r\n\r\n")
        return answer, stat.S_IMODE(path.stat().st_mode)

    answer, mode = serve(Exposure(listen=f"unix:{path}"), talk, gid)
    assert answer.endswith(TEXT.encode())
    assert mode == (0o600 if gid is None else 0o660)
    assert not path.exists()


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:9788", "[::]:9788", "192.0.2.1:9788", "gw.example:9788", "9788", "unix"]
)
def test_what_is_no_address_of_this_host_alone_is_refused(listen: str) -> None:
    with pytest.raises(OperatorError) as caught:
        Exposure(listen=listen)
    assert caught.value.failure.code == "XF5001"
    assert ("--metrics", listen) in caught.value.failure.evidence


@pytest.mark.parametrize("listen", ["127.0.0.1:9788", "127.8.8.8:0", "[::1]:9788", "unix:/a", ""])
def test_addresses_of_this_host_alone_are_taken(listen: str) -> None:
    assert Exposure(listen=listen).listen == listen


def test_other_hosts_are_let_in_if_it_is_said() -> None:
    assert Exposure(listen="0.0.0.0:9788", anywhere=True).place() == ("0.0.0.0", "9788")


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OperatorError) as caught:
            serve(Exposure(listen=f"127.0.0.1:{port}"), lambda: None)
    assert caught.value.failure.code == "XF4005"


def test_the_file_is_written_again_and_again_and_does_not_outlive_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposition, "FILE_SECONDS", 0.01)
    path = tmp_path / "xfrmpy.prom"

    def talk() -> tuple[str, int]:
        found = path.read_text()
        mode = stat.S_IMODE(path.stat().st_mode)
        path.unlink()
        while not path.exists():
            pass
        return found, mode

    async def both() -> Any:
        served = Exposition(Exposure(file=str(path)), lambda: TEXT, None)
        await served.start()
        await asyncio.sleep(0)
        try:
            return await asyncio.wait_for(asyncio.to_thread(talk), 10)
        finally:
            await served.stop()

    assert asyncio.run(both()) == (TEXT, 0o644)
    assert list(tmp_path.iterdir()) == []


def test_whoever_reads_the_file_sees_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "xfrmpy.prom"
    write_whole(path, b"old\n")
    with path.open() as reader:
        write_whole(path, b"new\n" * 1000)
        assert reader.read() == "old\n"
    assert path.read_text() == "new\n" * 1000


def test_a_file_that_cannot_be_written_leaves_nothing_half(tmp_path: Path) -> None:
    path = tmp_path / "xfrmpy.prom"
    path.mkdir()
    with pytest.raises(OSError, match=re.escape(path.name)):
        write_whole(path, b"new\n")
    assert list(tmp_path.iterdir()) == [path]
