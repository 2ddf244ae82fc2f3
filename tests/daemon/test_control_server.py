"""The control server over a real Unix socket, with the real client and with rude ones."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfrmpy.control.client import Client
from xfrmpy.control.protocol import MAX_CALL, SOCKET_NAME, STATUS, UP, Progress, StatusReply
from xfrmpy.daemon.callers import Doorkeeper
from xfrmpy.daemon.control_server import ControlServer
from xfrmpy.failures import OperatorError


async def status(_parameters: dict[str, Any]) -> AsyncIterator[StatusReply]:
    yield StatusReply(version="1", pid=1, seconds_up=0.0, drops={}, tunnels=[])


async def up(parameters: dict[str, Any]) -> AsyncIterator[Progress]:
    yield Progress(tunnel=parameters["tunnel"], seconds=0.5, text="a step")
    raise OperatorError("XF2001", "nobody there", (("sent", "6 times"),))


def serve(directory: Path, talk: Callable[[], Any]) -> Any:
    """Run `talk`, which blocks, beside a server."""

    async def both() -> Any:
        server = ControlServer(directory / SOCKET_NAME, {STATUS: status, UP: up}, Doorkeeper(None))
        await server.start()
        try:
            return await asyncio.to_thread(talk)
        finally:
            await server.stop()

    return asyncio.run(both())


def exchange(directory: Path, octets: bytes) -> bytes:
    """Everything that comes back for some octets, until the server hangs up or is silent."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(2.0)
        caller.connect(str(directory / SOCKET_NAME))
        try:
            caller.sendall(octets)
            caller.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        answer = b""
        try:
            while piece := caller.recv(65536):
                answer += piece
        except ConnectionError:
            pass
        return answer


def test_the_real_client_reads_a_reply(tmp_path: Path) -> None:
    assert serve(tmp_path, lambda: Client(tmp_path).status()).version == "1"


def test_progress_comes_before_the_failure_with_its_evidence(tmp_path: Path) -> None:
    seen: list[object] = []

    def talk() -> None:
        seen.extend(Client(tmp_path).up("a", 5.0))

    with pytest.raises(OperatorError) as caught:
        serve(tmp_path, talk)
    assert caught.value.failure.code == "XF2001"
    assert caught.value.failure.evidence == (("sent", "6 times"),)


def test_the_socket_is_for_its_owner_only(tmp_path: Path) -> None:
    mode = serve(tmp_path, lambda: (tmp_path / SOCKET_NAME).stat().st_mode)
    assert stat.S_IMODE(mode) == 0o600


def test_a_stale_socket_is_replaced_and_a_stopped_server_leaves_none(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(tmp_path / SOCKET_NAME))
    assert serve(tmp_path, lambda: Client(tmp_path).status()).pid == 1
    assert not (tmp_path / SOCKET_NAME).exists()


@pytest.mark.parametrize(
    "call",
    [
        b"{}",
        b"[]",
        b"nonsense",
        b'{"method": 5}',
        b'{"method": "org.xfrmpy.Up", "parameters": []}',
        b'{"method": "org.xfrmpy.Up", "parameters": {"timeout_seconds": NaN}}',
        b'{"method": "org.xfrmpy.Up", "parameters": {"timeout_seconds": ' + b"9" * 5000 + b"}}",
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"a":' * 10_000,
    ],
)
def test_a_call_that_makes_no_sense_gets_a_failure_and_the_next_one_an_answer(
    tmp_path: Path, call: bytes
) -> None:
    good = json.dumps({"method": STATUS}).encode()
    answer = serve(tmp_path, lambda: exchange(tmp_path, call + b"\0" + good + b"\0"))
    first, second, rest = answer.split(b"\0")
    assert json.loads(first)["parameters"]["code"] == "XF5001"
    assert json.loads(second)["parameters"]["version"] == "1"
    assert rest == b""


def test_a_call_without_end_is_hung_up_on(tmp_path: Path) -> None:
    assert serve(tmp_path, lambda: exchange(tmp_path, b"x" * (MAX_CALL + 1))) == b""


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300))
def test_no_octets_stop_the_server(tmp_path_factory: pytest.TempPathFactory, octets: bytes) -> None:
    directory = tmp_path_factory.mktemp("control")

    def talk() -> str:
        exchange(directory, octets)
        return Client(directory).status().version

    assert serve(directory, talk) == "1"
