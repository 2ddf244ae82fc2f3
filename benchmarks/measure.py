"""What a process has used, where a figure was taken, and how figures of several rounds are put.

Every figure is the median of its rounds, and the two rivals' rounds alternate, so that a load that
comes and goes meets both.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import cryptography
from cryptography.hazmat.backends.openssl import backend

from integration.lab.gateway import XfrmpyGateway
from integration.lab.process import LAB, run
from integration.lab.strongswan import StrongswanPeer

RIVALS = ("xfrmpy", "strongswan")

PACKAGES = (
    "strongswan-swanctl",
    "charon-systemd",
    "libstrongswan-standard-plugins",
    "libstrongswan-extra-plugins",
    "libcharon-extra-plugins",
    "iproute2",
    "nftables",
    "iputils-ping",
    "iperf3",
)

_UTIME, _STIME = 11, 12
"""Fields of /proc/PID/stat behind the name, which may hold blanks; proc(5) counts from 1."""


def prepare(*packages: str) -> None:
    """Install what is missing, and let SIGTERM unwind like any other end."""
    run(str(LAB / "install-packages"), *PACKAGES, *packages, seconds=600)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far, in steps of 10 ms."""
    return sum(cpu_times(pid))


def cpu_times(pid: int) -> tuple[float, float]:
    """User and system time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    hertz = os.sysconf("SC_CLK_TCK")
    return int(fields[_UTIME]) / hertz, int(fields[_STIME]) / hertz


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


def processes(gateway: XfrmpyGateway | StrongswanPeer) -> dict[str, int]:
    """The pids of a gateway's processes, by their trade."""
    if isinstance(gateway, StrongswanPeer):
        return {"charon": int((gateway.logs[0].parent / "pid").read_text())}
    daemon = gateway.pid
    workers = map(int, Path(f"/proc/{daemon}/task/{daemon}/children").read_text().split())
    names = ("worker" if n == 0 else f"worker {n}" for n in count())
    return {"daemon": daemon, **dict(zip(names, workers, strict=False))}


def conditions() -> dict[str, str]:
    """What the figures depend upon, for who compares them with others; to be asked beforehand."""
    return {
        "cpu": f"{len(os.sched_getaffinity(0))} x {_cpu_model()}",
        "kernel": platform.release(),
        "python": f"{platform.python_version()}, {sys.base_prefix}",
        "cryptography": f"{cryptography.__version__}, {backend.openssl_version_text()}",
        "strongswan": _version_of("strongswan-swanctl"),
        "iperf3": _version_of("iperf3"),
        "load before": " ".join(f"{load:.1f}" for load in os.getloadavg()),
    }


def medians(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each figure; one that a round lacks is taken from the others."""
    names = dict.fromkeys(name for figures in rounds for name in figures)
    return {name: median(r[name] for r in rounds if name in r) for name in names}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """For people: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def write_json(file: Path | None, **document: Any) -> None:
    if file is not None:
        file.write_text(json.dumps(document, indent=1) + "\n")


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _version_of(package: str) -> str:
    """Not every benchmark needs every rival."""
    return run("dpkg-query", "-W", "-f", "${Version}", package, check=False).stdout or "none"
