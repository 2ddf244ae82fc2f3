"""The userspace datapath as the daemon sees it: requests to the worker, routes into its device.

The worker is a process of its own with a session of its own; starting is joining the one that is
there, or making one. `close` leaves it forwarding, `stop` ends it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import Any

from xfrmpy.datapath.interface import Capabilities, DatapathError, Dump, Event
from xfrmpy.datapath.routes import RouteOwner, Routes
from xfrmpy.datapath.userspace import requests
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.datapath.userspace.worker import READY
from xfrmpy.ipsec import algorithms
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.overhead import inner_mtu
from xfrmpy.ipsec.plain import Plain, from_plain, to_plain
from xfrmpy.ipsec.sad import Direction, Mode, SadEntry, SaId, Usage
from xfrmpy.ipsec.selectors import Selector
from xfrmpy.ipsec.spd import PolicyDirection, SpdEntry
from xfrmpy.registry import ProtocolId

ANSWER_SECONDS = 5.0
"""A worker answers within a batch of packets, microseconds to milliseconds; after so long it is
stuck, and the daemon must not be."""


class UserspaceDatapath:
    """See the module and `Datapath`."""

    name = "userspace"

    def __init__(self, path: Path, routes: Routes, process: int | None) -> None:
        self._process = process
        self._routes = routes
        self._requests = _connect(path)
        self._events = _connect(path)
        self._inner_mtu: dict[int, int] = {}
        self._routed: set[Selector] = set()
        self._ask("join")
        self._ask("events", connection=self._events)
        self._events.setblocking(False)

    @classmethod
    def start(cls, runtime_dir: Path) -> UserspaceDatapath:
        """Join the worker of a runtime directory, made if need be. Raises `DatapathError`.

        The daemon's own sockets on the shared port must be open: the worker opens its behind them.
        """
        path = runtime_dir / "worker-0.sock"
        process = None if _is_listening(path) else _spawn_worker(path)
        routes = Routes(RouteOwner.USERSPACE)
        try:
            return cls(path, routes, process)
        except BaseException:
            routes.close()
            raise

    def probe(self) -> Capabilities:
        """The ciphers are the library's, tried by the daemon's self-test; the rest is ours."""
        combined = {
            f"{cipher.name}-{integrity.name}"
            for cipher in algorithms.CIPHERS
            if not cipher.is_aead
            for integrity in algorithms.INTEGRITY
        }
        aead = {cipher.name for cipher in algorithms.CIPHERS if cipher.is_aead}
        return Capabilities(
            protocols=frozenset({ProtocolId.ESP}),
            modes=frozenset({Mode.TUNNEL}),
            suites=frozenset(combined | aead),
            esn=True,
            udp_encapsulation=True,
            raw_esp=False,
            missing={"transport": "the userspace datapath knows tunnel mode only"},
        )

    def add_sa(self, entry: SadEntry) -> None:
        self._ask("add_sa", to_plain(entry))
        self._inner_mtu[entry.reqid] = self._mtu_of(entry)

    def update_sa(self, entry: SadEntry) -> None:
        self._ask("update_sa", to_plain(entry))

    def remove_sa(self, sa: SaId) -> None:
        self._ask("remove_sa", to_plain(sa))

    def add_policy(self, entry: SpdEntry) -> None:
        self._ask("add_policy", to_plain(entry))
        if entry.direction is PolicyDirection.OUT and entry.selector not in self._routed:
            self._add_route(entry)

    def remove_policy(self, entry: SpdEntry) -> None:
        if entry.selector in self._routed and entry.direction is PolicyDirection.OUT:
            self._routed.discard(entry.selector)
            self._routes.remove(entry.selector.destination)
        self._ask("remove_policy", to_plain(entry))

    def usage(self, sa: SaId) -> Usage:
        return from_plain(Usage, self._ask("usage", to_plain(sa)))

    def drops(self) -> dict[str, int]:
        counts = self._ask("drops")
        assert isinstance(counts, dict)
        return counts

    def dump(self) -> Dump:
        tables: dict[str, list[Plain]] = {"sad": [], "spd": []}
        for piece in self._ask_all("dump"):
            tables[piece["table"]] += piece["entries"]
        return Dump(
            sad=tuple(from_plain(SadEntry, plain) for plain in tables["sad"]),
            spd=tuple(from_plain(SpdEntry, plain) for plain in tables["spd"]),
        )

    def remove_ours(self) -> int:
        self._routes.remove_all()
        self._routed.clear()
        self._inner_mtu.clear()
        count = self._ask("remove_all")
        assert isinstance(count, int)
        return count

    def fileno(self) -> int:
        return self._events.fileno()

    def read_events(self) -> tuple[Event, ...]:
        events: list[Event] = []
        with contextlib.suppress(BlockingIOError):
            while packet := self._events.recv(requests.MAX_PACKET):
                events.append(requests.decode_event(packet))
        return tuple(events)

    def close(self) -> None:
        self._requests.close()
        self._events.close()
        self._routes.close()

    def stop(self) -> None:
        """End the worker, and with it its device and routes."""
        with contextlib.suppress(DatapathError):
            self._routes.remove_all()
            self._ask("stop")
            self._requests.recv(1)  # The end of the connection: the worker has gone.
        if self._process is not None:
            os.waitpid(self._process, 0)
        self.close()

    def _add_route(self, entry: SpdEntry) -> None:
        assert entry.template is not None
        try:
            self._routes.add(
                entry.selector.destination,
                local=entry.selector.source,
                via=DEVICE,
                mtu=self._inner_mtu.get(entry.template.reqid),
            )
        except DatapathError:
            self._ask("remove_policy", to_plain(entry))
            raise
        self._routed.add(entry.selector)

    def _mtu_of(self, entry: SadEntry) -> int:
        """What fits through this SA, by the path that its outer packets take."""
        path = self._routes.outer_path(*_ends(entry))
        return inner_mtu(
            path.mtu,
            entry.suite,
            outer_version=entry.source.version,
            encapsulated=entry.encapsulation is not None,
            mode=entry.mode,
        )

    # Talking to the worker.

    def _ask(
        self, what: str, value: Plain = None, *, connection: socket.socket | None = None
    ) -> Plain:
        (result,) = self._ask_all(what, value, connection=connection)
        plain: Plain = result
        return plain

    def _ask_all(
        self, what: str, value: Plain = None, *, connection: socket.socket | None = None
    ) -> list[Any]:
        results: list[Any] = []
        used = connection or self._requests
        try:
            used.send(requests.encode({"do": what, "with": value}))
            while True:
                reply = requests.decode(used.recv(requests.MAX_PACKET))
                if "error" in reply:
                    raise DatapathError(reply["error"], reply["errno"])
                results.append(reply["result"])
                if not reply.get("more"):
                    return results
        except (OSError, ValueError) as error:
            raise DatapathError(f"the worker does not answer: {error}") from error


def _ends(entry: SadEntry) -> tuple[IpAddress, IpAddress]:
    """Our address and the peer's."""
    ends = (entry.source, entry.destination)
    return ends if entry.direction is Direction.OUT else ends[::-1]


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(ANSWER_SECONDS)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise DatapathError(f"no worker at {path}: {error.strerror}", error.errno) from error
    return connection


def _is_listening(path: Path) -> bool:
    try:
        _connect(path).close()
    except DatapathError:
        return False
    return True


def _spawn_worker(path: Path) -> int:
    """Its process id. Raises `DatapathError` with the worker's own words if it cannot start."""
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    module = "xfrmpy.datapath.userspace.worker"
    with open(reading, "rb") as ready:
        process = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", module, str(path), str(writing)],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            setsid=True,
        )
        os.close(writing)
        words = ready.read()
    if words == READY:
        return process
    os.waitpid(process, 0)
    reason = words.decode(errors="replace") or "it ended without a word"
    raise DatapathError(f"the userspace worker cannot start: {reason}")
