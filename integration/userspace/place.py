"""A userspace datapath in a network namespace, and what a test asks about it from outside."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from struct import Struct

from integration.contract.sites import run
from xfrmpy.datapath.routes import OUR_TABLE
from xfrmpy.datapath.userspace.client import UserspaceDatapath
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.datapath.userspace.udp import open_shared_udp_socket
from xfrmpy.ipsec.addresses import IKE_NATT_PORT
from xfrmpy.ipsec.overhead import inner_mtu
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import Mode

WORKER_SOCKET = "worker-0.sock"
ANY_WORKER_SOCKET = "worker-*.sock"

WORKERS = int(os.environ.get("XFRMPY_TEST_WORKERS", "1"))
"""How many workers a datapath has, unless a test says."""

_UCRED = Struct("=iII")


def open_here(directory: Path, workers: int = WORKERS) -> UserspaceDatapath:
    """A datapath in the namespace of this thread, with a runtime directory of its own."""
    own = directory / str(os.stat("/proc/thread-self/ns/net").st_ino)
    own.mkdir(exist_ok=True)
    return UserspaceDatapath.start(own, workers=workers)


def worker_of(path: Path) -> int:
    """The worker's process id."""
    with connected(path) as connection:
        octets = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    process: int = _UCRED.unpack(octets)[0]
    return process


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(10)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def end_workers(directory: Path) -> None:
    for path in directory.glob(f"*/{ANY_WORKER_SOCKET}"):
        process = worker_of(path)
        os.kill(process, signal.SIGTERM)
        with suppress(ChildProcessError):  # It may be the child of one that is no more.
            os.waitpid(process, 0)


@contextmanager
def daemon_sockets() -> Iterator[dict[int, socket.socket]]:
    """What the daemon has open on the shared port before it starts a worker, by IP version."""
    with ExitStack() as stack:
        yield {
            version: stack.enter_context(open_shared_udp_socket(family, IKE_NATT_PORT))
            for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6))
        }


def largest_inner(
    suite: EspSuite, outer: int, outer_mtu: int = 1500, *, encapsulated: bool = True
) -> int:
    mode = Mode.TUNNEL
    return inner_mtu(outer_mtu, suite, outer_version=outer, encapsulated=encapsulated, mode=mode)


def our_routes(namespace: str, version: int = 4) -> str:
    done = subprocess.run(
        ["ip", "-n", namespace, f"-{version}", "route", "show", "table", str(OUR_TABLE)],
        capture_output=True,
        text=True,
        check=False,  # a table that never was is an error
    )
    return done.stdout


def is_clean(namespace: str) -> bool:
    rules = run("ip", "-n", namespace, "rule") + run("ip", "-n", namespace, "-6", "rule")
    routes = our_routes(namespace) + our_routes(namespace, 6)
    links = run("ip", "-n", namespace, "link")
    return str(OUR_TABLE) not in rules and not routes and DEVICE not in links
