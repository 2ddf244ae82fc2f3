"""Who may call the control socket, and how many at a time: real users, real connections."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import json
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from xfrmpy.control.client import Client
from xfrmpy.control.protocol import DOWN, SOCKET_NAME, STATUS, UP, StatusReply
from xfrmpy.daemon import callers
from xfrmpy.daemon.callers import Doorkeeper, give_to_group, reading_group
from xfrmpy.daemon.control_server import MAX_CALL_OF_READERS, ControlServer
from xfrmpy.failures import OperatorError

STRANGER, GROUP = 65534, 4_000_000

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users, which takes root")


async def status(_parameters: dict[str, Any]) -> AsyncIterator[StatusReply]:
    yield StatusReply(version="1", pid=1, seconds_up=0.0, drops={}, tunnels=[])


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not pytest's own, which is closed to other users."""
    made = Path(tempfile.mkdtemp(prefix="xfrmpy-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def serve(directory: Path, gid: int | None, talk: Callable[[], Any]) -> Any:
    async def both() -> Any:
        server = ControlServer(
            directory / SOCKET_NAME, {STATUS: status, UP: status}, Doorkeeper(gid)
        )
        await server.start()
        try:
            return await asyncio.to_thread(talk)
        finally:
            await server.stop()

    return asyncio.run(both())


def call(path: Path, method: str) -> dict[str, Any]:
    parameters = {"tunnel": "a", "timeout_seconds": 1} if method in (UP, DOWN) else {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(5.0)
        caller.connect(str(path))
        with contextlib.suppress(BrokenPipeError):  # the refusal may be quicker than the call
            caller.sendall(
                json.dumps({"method": method, "parameters": parameters}).encode() + b"\0"
            )
        answer = b""
        while not answer.endswith(b"\0"):
            piece = caller.recv(65536)
            if not piece:
                raise ConnectionError
            answer += piece
    reply: dict[str, Any] = json.loads(answer[:-1])
    return reply


def as_stranger(groups: list[int], path: Path, method: str) -> dict[str, Any]:
    """A call by another user, from a process of his own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setresgid(STRANGER, STRANGER, STRANGER)
            os.setresuid(STRANGER, STRANGER, STRANGER)
            try:
                told = call(path, method)
            except OSError as error:
                told = {"error": type(error).__name__}
            os.write(writing, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    reply: dict[str, Any] = json.loads(answer)
    return reply


@as_root
@pytest.mark.parametrize("groups", [[GROUP], [1, GROUP, 7], [*range(1000, 1200), GROUP]])
def test_a_member_of_the_group_may_look_and_nothing_else(
    directory: Path, groups: list[int]
) -> None:
    path = directory / SOCKET_NAME

    def talk() -> list[dict[str, Any]]:
        return [as_stranger(groups, path, method) for method in (STATUS, UP, DOWN, "org.xfrmpy.X")]

    looked, *refused, unknown = serve(directory, GROUP, talk)
    assert looked["parameters"]["version"] == "1"
    assert [r["error"] for r in refused] == ["org.varlink.service.PermissionDenied"] * 2
    assert unknown["error"] == "org.varlink.service.MethodNotFound"


@as_root
@pytest.mark.parametrize("gid", [GROUP, None])
def test_a_stranger_does_not_even_connect(directory: Path, gid: int | None) -> None:
    path = directory / SOCKET_NAME
    told = serve(directory, gid, lambda: as_stranger([1, 2], path, STATUS))
    assert told == {"error": "PermissionError"}


@as_root
@pytest.mark.parametrize("gid", [GROUP, None])
def test_of_a_socket_opened_by_accident_a_stranger_has_one_clear_failure(
    directory: Path, gid: int | None
) -> None:
    path = directory / SOCKET_NAME

    def talk() -> dict[str, Any]:
        path.chmod(0o666)
        return as_stranger([1, 2], path, STATUS)

    told = serve(directory, gid, talk)
    assert told["error"] == "org.xfrmpy.Failed"
    assert told["parameters"]["code"] == "XF4003"


@as_root
def test_the_socket_is_the_groups_too_if_there_is_one(directory: Path) -> None:
    path = directory / SOCKET_NAME
    found = serve(directory, GROUP, path.stat)
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, GROUP)
    found = serve(directory, None, path.stat)
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o600, os.getegid())


def test_the_group_is_the_one_named_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    known = grp.getgrgid(os.getegid())
    assert reading_group(known.gr_name) == known.gr_gid
    assert reading_group("") is None
    with pytest.raises(OperatorError) as caught:
        reading_group("no-such-group-here")
    assert caught.value.failure.code == "XF4005"
    monkeypatch.setattr(callers, "DEFAULT_GROUP", "no-such-group-here")
    assert reading_group(None) is None
    monkeypatch.setattr(callers, "DEFAULT_GROUP", known.gr_name)
    assert reading_group(None) == known.gr_gid


def test_of_a_thousand_connections_with_half_a_call_most_are_told_that_there_are_too_many(
    directory: Path,
) -> None:
    path = directory / SOCKET_NAME

    def talk() -> list[bytes]:
        with contextlib.ExitStack() as held:
            connections = [
                held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                for _ in range(1000)
            ]
            for connection in connections:
                connection.connect(str(path))
                connection.settimeout(5.0)
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(b'{"method": "org.xfrm')
            return [c.recv(65536) for c in connections[callers.MAX_CALLERS_OF_A_USER :]]

    refusals = serve(directory, None, talk)
    assert {json.loads(r[:-1])["parameters"]["code"] for r in refusals} == {"XF4011"}


def test_a_caller_is_counted_until_he_is_gone(directory: Path) -> None:
    path = directory / SOCKET_NAME

    def talk() -> None:
        for _ in range(callers.MAX_CALLERS_OF_A_USER * 3):
            assert call(path, STATUS)["parameters"]["pid"] == 1
        assert Client(directory).status().pid == 1

    serve(directory, None, talk)


def test_who_looks_leaves_room_for_who_may_do_all() -> None:
    doorkeeper = Doorkeeper(GROUP)
    with contextlib.ExitStack() as present:
        for number in range(callers.MAX_CALLERS - callers.RESERVED_CALLERS):
            looker = callers.Caller(uid=1000 + number // 8, may_look=True, may_change=False)
            present.enter_context(doorkeeper.admit(looker))
        with pytest.raises(OperatorError) as caught, doorkeeper.admit(looker):
            pass
        assert caught.value.failure.code == "XF4011"
        with doorkeeper.admit(callers.Caller(uid=0, may_look=True, may_change=True)):
            pass
    with doorkeeper.admit(looker):
        pass


@as_root
def test_who_may_only_look_cannot_make_the_daemon_keep_much(directory: Path) -> None:
    path = directory / SOCKET_NAME
    long = f"org.xfrmpy.{'X' * (MAX_CALL_OF_READERS + 300_000)}"

    def talk() -> tuple[dict[str, Any], dict[str, Any]]:
        return as_stranger([GROUP], path, long), call(path, long)

    looked, changed = serve(directory, GROUP, talk)
    assert "Connection" in looked["error"]
    assert changed["error"] == "org.varlink.service.MethodNotFound"


@as_root
def test_a_daemon_that_is_not_root_gives_sockets_to_its_own_groups_only(directory: Path) -> None:
    path = directory / "socket"
    path.touch()
    os.chown(path, STRANGER, STRANGER)
    os.seteuid(STRANGER)
    try:
        give_to_group(path, STRANGER)
        with pytest.raises(OperatorError, match=r"XF4003.* of which we are no member"):
            give_to_group(path, GROUP)
    finally:
        os.seteuid(0)
    assert (path.stat().st_gid, stat.S_IMODE(path.stat().st_mode)) == (STRANGER, 0o660)
