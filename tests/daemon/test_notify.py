"""What a service manager hears, over a real datagram socket as it listens to it."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from xfrmpy.daemon import notify
from xfrmpy.daemon.notify import ServiceManager


class Manager:
    """The other end."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.environment = {"NOTIFY_SOCKET": str(path)}

    def heard(self) -> list[str]:
        """Since it was asked last."""
        messages = []
        with suppress(BlockingIOError):
            while True:
                messages.append(self._socket.recv(4096).decode())
        return messages

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path / "notify")
    yield made
    made.close()


def run(environment: dict[str, str], scene: Callable[[ServiceManager], Awaitable[None]]) -> None:
    async def play() -> None:
        await scene(ServiceManager(environment))

    asyncio.run(play())


async def told(environment: dict[str, str], *state: str) -> None:
    ServiceManager(environment).tell(*state)


def test_readiness_reaches_the_service_manager(manager: Manager) -> None:
    asyncio.run(told(manager.environment, "READY=1", "STATUS=1 of 2 tunnels up"))
    assert manager.heard() == ["READY=1\nSTATUS=1 of 2 tunnels up"]


def test_an_abstract_socket_is_meant_by_an_at_sign(tmp_path: Path) -> None:
    name = f"xfrmpy-test-{tmp_path.name}-{id(tmp_path)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        asyncio.run(told({"NOTIFY_SOCKET": "@" + name}, "STOPPING=1"))
        assert listener.recv(100) == b"STOPPING=1"


def test_without_a_manager_or_with_one_that_is_gone_nothing_happens(tmp_path: Path) -> None:
    asyncio.run(told({}, "READY=1"))
    asyncio.run(told({"NOTIFY_SOCKET": str(tmp_path / "gone")}, "READY=1"))


def test_a_manager_that_does_not_read_is_not_waited_for(manager: Manager) -> None:
    async def scene(ours: ServiceManager) -> None:
        for _ in range(10_000):
            ours.tell("WATCHDOG=1")

    run(manager.environment, scene)
    assert 0 < len(manager.heard()) < 10_000


def test_the_watchdog_is_told_twice_in_its_time_while_all_is_well(manager: Manager) -> None:
    async def scene(ours: ServiceManager) -> None:
        task = asyncio.create_task(ours.keep_watchdog(lambda: True))
        await asyncio.sleep(0.5)
        task.cancel()

    run({**manager.environment, "WATCHDOG_USEC": "100000"}, scene)
    heard = manager.heard()
    assert set(heard) == {"WATCHDOG=1"}
    assert 5 <= len(heard) <= 10


def test_an_event_loop_that_is_stuck_tells_the_watchdog_nothing(manager: Manager) -> None:
    async def scene(ours: ServiceManager) -> None:
        task = asyncio.create_task(ours.keep_watchdog(lambda: True))
        await asyncio.sleep(0.1)
        assert manager.heard()
        time.sleep(0.3)
        assert manager.heard() == []
        await asyncio.sleep(0.1)
        assert manager.heard()
        task.cancel()

    run({**manager.environment, "WATCHDOG_USEC": "40000"}, scene)


def test_a_datapath_that_does_not_answer_is_no_reason_to_say_that_all_is_well(
    manager: Manager,
) -> None:
    answers = iter([True, False, False])

    async def scene(ours: ServiceManager) -> None:
        with suppress(RuntimeError):  # the answers are at their end
            await ours.keep_watchdog(lambda: next(answers))

    run({**manager.environment, "WATCHDOG_USEC": "2000"}, scene)
    assert manager.heard() == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    "watchdog",
    [
        {},
        {"WATCHDOG_USEC": "much"},
        {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": str(os.getpid() + 1)},
    ],
)
def test_a_watchdog_that_is_not_ours_is_left_alone(
    manager: Manager, watchdog: dict[str, str]
) -> None:
    run({**manager.environment, **watchdog}, lambda ours: ours.keep_watchdog(lambda: True))
    assert manager.heard() == []


def test_the_status_is_told_once_for_many_changes(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "STATUS_SECONDS", 0.02)
    up = 0

    async def scene(ours: ServiceManager) -> None:
        nonlocal up
        task = asyncio.create_task(ours.keep_status(lambda: f"{up} of 9 tunnels up"))
        await asyncio.sleep(0)
        for _ in range(9):
            up += 1
            ours.note_change()
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)
        ours.note_change()
        await asyncio.sleep(0.2)
        task.cancel()

    run(manager.environment, scene)
    assert manager.heard() == ["STATUS=0 of 9 tunnels up", "STATUS=9 of 9 tunnels up"]
