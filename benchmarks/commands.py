"""What the hot commands cost: CPU and waiting of each, beside the empty start of Python.

`python -m benchmarks.commands --tunnels 100`. It needs no root: a control server of the daemon's
own answers for so many tunnels, all up, each with its last events. Each round runs each command
once, so that a load that comes and goes meets all of them; figures are medians, and ratios to
`python -c pass` of the same rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from tests.statuses import OFFICE
from xfrmpy.control.observed import Event, EventsReply, MetricsReply
from xfrmpy.control.protocol import (
    METRICS,
    MONITOR,
    SOCKET_NAME,
    STATUS,
    StatusReply,
)
from xfrmpy.daemon.callers import Doorkeeper
from xfrmpy.daemon.control_server import ControlServer
from xfrmpy.daemon.metrics import Measured, render
from xfrmpy.daemon.tally import Tally

XFRMPY = [str(Path(sys.executable).parent / "xfrmpy")]
EMPTY = "python -c pass"

COMMANDS = {
    EMPTY: [sys.executable, "-c", "pass"],
    "xfrmpy status": [*XFRMPY, "status"],
    "xfrmpy status net1": [*XFRMPY, "status", "net1"],
    "xfrmpy status -o json": [*XFRMPY, "status", "-o", "json"],
    "xfrmpy log -n 100": [*XFRMPY, "log", "-n", "100"],
    "xfrmpy metrics": [*XFRMPY, "metrics"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Milliseconds."""

    cpu: float
    wall: float


class Answers:
    """The answers of a daemon with so many tunnels."""

    def __init__(self, tunnels: int) -> None:
        self.tunnels = [replace(OFFICE, name=f"net{number}") for number in range(1, tunnels + 1)]
        self.events = [_event(number, self.tunnels[number % tunnels].name) for number in range(100)]

    async def status(self, parameters: dict[str, Any]) -> AsyncIterator[StatusReply]:
        name = parameters.get("tunnel")
        chosen = [tunnel for tunnel in self.tunnels if name in (None, tunnel.name)]
        yield StatusReply(version="0", pid=1, seconds_up=1.0, drops={}, tunnels=chosen)

    async def monitor(self, _parameters: dict[str, Any]) -> AsyncIterator[EventsReply]:
        yield EventsReply(events=self.events)

    async def metrics(self, _parameters: dict[str, Any]) -> AsyncIterator[MetricsReply]:
        names = [tunnel.name for tunnel in self.tunnels]
        measured = Measured(
            version="0",
            started=0.0,
            tunnels=self.tunnels,
            children={name: [name] for name in names},
            ike_sas=dict.fromkeys(names, 1),
            up={name: {name} for name in names},
            carried={},
            tally=Tally(),
            missed=0,
            drops={},
            expiries={},
        )
        yield MetricsReply(text=render(measured))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tunnels", type=int, default=100)
    options.add_argument("--rounds", type=int, default=20)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="xfrmpy-") as directory:
        serving = threading.Thread(
            target=lambda: asyncio.run(_serve(Path(directory), Answers(chosen.tunnels))),
            daemon=True,
        )
        serving.start()
        while not (Path(directory) / SOCKET_NAME).exists():
            time.sleep(0.01)
        os.environ["XFRMPY_RUNTIME_DIR"] = directory
        costs = _measure(chosen.rounds)
    _tell(costs, chosen.tunnels)


async def _serve(directory: Path, answers: Answers) -> None:
    methods = {STATUS: answers.status, MONITOR: answers.monitor, METRICS: answers.metrics}
    server = ControlServer(directory / SOCKET_NAME, methods, Doorkeeper(None))
    await server.start()
    await asyncio.Event().wait()


def _measure(rounds: int) -> dict[str, Cost]:
    taken: dict[str, list[Cost]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            taken[name].append(_run(command))
    return {
        name: Cost(cpu=median(c.cpu for c in costs), wall=median(c.wall for c in costs))
        for name, costs in taken.items()
    }


def _run(command: list[str]) -> Cost:
    begun_at = time.perf_counter()
    nowhere = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    pid = os.posix_spawn(command[0], command, os.environ, file_actions=nowhere)
    _, status, usage = os.wait4(pid, 0)
    assert status == 0, command
    wall = time.perf_counter() - begun_at
    return Cost(cpu=1000 * (usage.ru_utime + usage.ru_stime), wall=1000 * wall)


def _tell(costs: dict[str, Cost], tunnels: int) -> None:
    print(f"{tunnels} tunnels, load {os.getloadavg()[0]:.1f}\n")
    print("| | CPU, ms | ratio | wall, ms | ratio |")
    print("|---|---:|---:|---:|---:|")
    empty = costs[EMPTY]
    for name, cost in costs.items():
        cpu, wall = cost.cpu / empty.cpu, cost.wall / empty.wall
        print(f"| `{name}` | {cost.cpu:.0f} | {cpu:.1f} | {cost.wall:.0f} | {wall:.1f} |")


def _event(number: int, tunnel: str) -> Event:
    return Event(
        number=number,
        time="2025-11-25T17:00:00.125Z",
        monotonic=100.5,
        tunnel=tunnel,
        child=tunnel,
        event="child-sa-rekeyed",
        severity="info",
        text=f"Child SA {tunnel} rekeyed: aes256gcm16, SPI in 0xc0ffee01, out 0xdeadbeef",
        code="",
        failure=None,
        details={"spi_in": "0xc0ffee01", "spi_out": "0xdeadbeef", "suite": "aes256gcm16"},
    )


if __name__ == "__main__":
    main()
