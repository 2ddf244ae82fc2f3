"""Looking on over a real socket: streams, those who do not read them, those who leave, waiting."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.daemon.test_history import EVENT
from tests.daemon.test_varlink import TUNNEL
from xfrmpy.control.client import Client
from xfrmpy.control.protocol import MONITOR, SOCKET_NAME, WAIT, EventsReply, TunnelStatus
from xfrmpy.daemon import control_server
from xfrmpy.daemon.callers import Doorkeeper
from xfrmpy.daemon.control_server import ControlServer
from xfrmpy.daemon.history import History
from xfrmpy.daemon.observation import Observation
from xfrmpy.daemon.tunnel import Tunnel
from xfrmpy.failures import OperatorError


class Daemon:
    """A history, and one tunnel `a` whose state is what a test says."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.history = History()
        self.state = "down"
        self.loop: asyncio.AbstractEventLoop | None = None
        self.tunnel = Tunnel(cast("Any", _Placed()))
        self._numbers = itertools.count(1)

    def happen(self, count: int = 1, tunnel: str = "a") -> None:
        """From another thread: so many events happen in one turn of the daemon."""
        assert self.loop is not None
        done = threading.Event()
        self.loop.call_soon_threadsafe(self._happen, count, tunnel, done)
        assert done.wait(60)

    def _happen(self, count: int, tunnel: str, done: threading.Event) -> None:
        for _ in range(count):
            event = replace(EVENT, number=next(self._numbers), tunnel=tunnel)
            self.history.add(event, keep=True)
        done.set()

    def become(self, state: str) -> None:
        """From another thread: the tunnel has another state, and says so."""
        assert self.loop is not None
        self.state = state
        self.loop.call_soon_threadsafe(self.tunnel.tell, cast("Any", object()))

    def listeners(self) -> int:
        return len(self.history._listeners)

    def serve(self, talk: Callable[[], Any]) -> Any:
        async def both() -> Any:
            self.loop = asyncio.get_running_loop()
            observation = Observation(self.history, self._find, self._status, lambda _: ())
            server = ControlServer(
                self.directory / SOCKET_NAME,
                {MONITOR: observation.monitor, WAIT: observation.wait},
                Doorkeeper(None),
            )
            await server.start()
            try:
                return await asyncio.to_thread(talk)
            finally:
                await server.stop()

        return asyncio.run(both())

    def _find(self, name: object) -> Tunnel:
        if name != "a":
            raise OperatorError("XF1013", "no such tunnel")
        return self.tunnel

    def _status(self, _tunnel: Tunnel) -> TunnelStatus:
        return replace(TUNNEL, name="a", state=self.state)


class _Placed:
    failure = None


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path)


def eventually(what: str, holds: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline_at = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline_at, what
        threading.Event().wait(0.01)


def dial(daemon: Daemon, call: dict[str, Any]) -> socket.socket:
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    caller.settimeout(10.0)
    caller.connect(str(daemon.directory / SOCKET_NAME))
    caller.sendall(json.dumps(call).encode() + b"\0")
    return caller


def replies(caller: socket.socket) -> Iterator[dict[str, Any]]:
    buffer = b""
    while piece := caller.recv(65536):
        *whole, buffer = (buffer + piece).split(b"\0")
        yield from (json.loads(message) for message in whole)


FOLLOW = {"method": MONITOR, "parameters": {"last": 2}, "more": True}


def test_a_stream_begins_with_what_has_been_and_goes_on_with_what_happens(daemon: Daemon) -> None:
    def talk() -> tuple[EventsReply, EventsReply]:
        daemon.happen(5)
        stream = Client(daemon.directory).follow(None, 2)
        begun = next(stream)
        daemon.happen()
        return begun, next(stream)

    begun, went_on = daemon.serve(talk)
    assert [event.number for event in begun.events] == [4, 5]
    assert [event.number for event in went_on.events] == [6]
    assert went_on.events[0] == replace(EVENT, number=6)


def test_without_more_there_is_one_reply(daemon: Daemon) -> None:
    def talk() -> tuple[EventsReply, list[dict[str, Any]]]:
        daemon.happen(5)
        with dial(daemon, {"method": MONITOR}) as caller:
            caller.shutdown(socket.SHUT_WR)
            return Client(daemon.directory).events("a", 3), list(replies(caller))

    asked, raw = daemon.serve(talk)
    assert [event.number for event in asked.events] == [3, 4, 5]
    assert [len(reply["parameters"]["events"]) for reply in raw] == [5]
    assert "continues" not in raw[0]


def test_a_tunnel_that_there_is_not_has_no_events(daemon: Daemon) -> None:
    with pytest.raises(OperatorError) as caught:
        daemon.serve(lambda: Client(daemon.directory).events("b", 3))
    assert caught.value.failure.code == "XF1013"


def test_who_never_reads_costs_little_keeps_nobody_waiting_and_is_hung_up_on(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_server, "SEND_SECONDS", 1.0)

    def talk() -> tuple[int, float]:
        with dial(daemon, FOLLOW):
            eventually("it listens", lambda: daemon.listeners() == 1)
            tracemalloc.start()
            for _ in range(100):
                daemon.happen(1000)
            grown, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            begun_at = time.monotonic()
            Client(daemon.directory).events("a", 1)
            waited = time.monotonic() - begun_at
            eventually("it is hung up on", lambda: daemon.listeners() == 0)
        return grown, waited

    grown, waited = daemon.serve(talk)
    assert grown < 8 << 20
    assert waited < 1.0


def test_who_reads_slowly_is_told_what_he_missed_and_goes_on(daemon: Daemon) -> None:
    def talk() -> tuple[int, int, int]:
        with dial(daemon, FOLLOW) as caller:
            stream = replies(caller)
            next(stream)
            daemon.happen(100_000)
            seen = missed = last = 0
            while last < 100_000:
                told = next(stream)["parameters"]
                seen += len(told["events"])
                missed += told["missed"]
                last = told["events"][-1]["number"]
            return seen, missed, last

    seen, missed, last = daemon.serve(talk)
    assert missed > 0
    assert seen + missed == last == 100_000


@pytest.mark.parametrize(
    "call",
    [
        FOLLOW,
        {
            "method": WAIT,
            "parameters": {"tunnel": "a", "state": "up", "timeout_seconds": 3600},
        },
    ],
)
def test_who_hangs_up_is_not_listened_for_any_more(daemon: Daemon, call: dict[str, Any]) -> None:
    listening = daemon.listeners if call is FOLLOW else lambda: len(daemon.tunnel._listeners)

    def talk() -> None:
        with dial(daemon, call):
            eventually("it listens", lambda: listening() == 1)
        eventually("it does not", lambda: listening() == 0)

    daemon.serve(talk)


def test_who_will_not_call_again_goes_on_listening(daemon: Daemon) -> None:
    def talk() -> int:
        with dial(daemon, FOLLOW) as caller:
            caller.shutdown(socket.SHUT_WR)
            stream = replies(caller)
            next(stream)
            daemon.happen()
            number: int = next(stream)["parameters"]["events"][0]["number"]
            return number

    assert daemon.serve(talk) == 1


@pytest.mark.parametrize("state", ["up", "down"])
def test_waiting_ends_when_the_tunnel_has_come_to_its_state(daemon: Daemon, state: str) -> None:
    daemon.state = "connecting"

    def talk() -> TunnelStatus:
        threading.Timer(0.05, daemon.become, [state]).start()
        return Client(daemon.directory).wait("a", state, 30.0).tunnel

    assert daemon.serve(talk).state == state


def test_waiting_ends_when_the_time_is_over(daemon: Daemon) -> None:
    with pytest.raises(OperatorError) as caught:
        daemon.serve(lambda: Client(daemon.directory).wait("a", "up", 0.1))
    assert caught.value.failure.code == "XF4007"
    assert "is down, not up" in caught.value.failure.summary


def test_there_are_two_states_to_wait_for(daemon: Daemon) -> None:
    with pytest.raises(OperatorError) as caught:
        daemon.serve(lambda: Client(daemon.directory).wait("a", "happy", 0.1))
    assert caught.value.failure.code == "XF5001"


def test_a_heartbeat_is_a_reply_without_events(daemon: Daemon) -> None:
    def talk() -> list[list[int]]:
        stream = Client(daemon.directory).follow(None, 0, heartbeat_seconds=0.1)
        told = [next(stream), next(stream)]
        daemon.happen()
        while not told[-1].events:
            told.append(next(stream))
        return [[event.number for event in reply.events] for reply in told]

    *silence, last = daemon.serve(talk)
    assert len(silence) >= 2
    assert set(map(tuple, silence)) == {()}
    assert last == [1]


@pytest.mark.parametrize("seconds", [0, -1, 0.001])
def test_a_heart_does_not_race(daemon: Daemon, seconds: float) -> None:
    def talk() -> dict[str, Any]:
        call = {"method": MONITOR, "parameters": {"heartbeat_seconds": seconds}, "more": True}
        with dial(daemon, call) as caller:
            return next(replies(caller))

    assert daemon.serve(talk)["error"] == "org.varlink.service.InvalidParameter"
