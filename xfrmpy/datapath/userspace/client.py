"""The userspace datapath as the daemon sees it: requests to the worker, routes into its device.

The worker is a process of its own with a session of its own; starting is joining the one that is
there, or making one. `close` leaves it forwarding, `stop` ends it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xfrmpy.datapath.interface import Capabilities, DatapathError, Dump, Event
from xfrmpy.datapath.routes import RouteOwner, Routes
from xfrmpy.datapath.userspace import requests
from xfrmpy.datapath.userspace.guard import Guard
from xfrmpy.datapath.userspace.tun import DEVICE, MAX_MTU
from xfrmpy.datapath.userspace.worker import READY, UCRED
from xfrmpy.ipsec import algorithms
from xfrmpy.ipsec.overhead import inner_mtu
from xfrmpy.ipsec.plain import Plain, from_plain, to_plain
from xfrmpy.ipsec.sad import Direction, Mode, SadEntry, SaId, Usage
from xfrmpy.ipsec.selectors import Selector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry
from xfrmpy.registry import ProtocolId

ANSWER_SECONDS = 5.0
"""A worker answers within a batch of packets, microseconds to milliseconds; after so long it is
stuck, and the daemon must not be."""

START_SECONDS = 20.0
"""An interpreter starts in a tenth of a second, on an idle machine."""

IPV6_MINIMUM_MTU = 1280
"""RFC 8200 section 5. Where a tunnel has less, its outer packets are fragmented (RFC 4301 8.1)."""


class UserspaceDatapath:
    """See the module and `Datapath`."""

    name = "userspace"

    def __init__(self, path: Path, routes: Routes, guard: Guard, process: int | None) -> None:
        self._path = path
        self._process = process
        self._has_ended = False
        self._routes = routes
        self._guard = guard
        self._inner_mtu: dict[int, int] = {}
        self._routed: dict[Selector, SpdEntry] = {}
        self._routed_by_reqid: dict[int | None, set[Selector]] = {}
        self._requests: socket.socket | None = None
        self._events = _connect(path)
        try:
            self._ask("join")
            self._take_over()
            _exchange(self._events, "events", None)
        except (OSError, ValueError, DatapathError) as error:
            self._close_sockets()
            raise DatapathError(f"the userspace worker cannot be joined: {error}") from error
        self._events.setblocking(False)

    @classmethod
    def start(cls, runtime_dir: Path) -> UserspaceDatapath:
        """Join the worker of a runtime directory, made if need be. Raises `DatapathError`.

        The daemon's own sockets on the shared port must be open: the worker opens its behind them.
        """
        path = runtime_dir / "worker-0.sock"
        with contextlib.ExitStack() as undo:
            routes = undo.enter_context(contextlib.closing(Routes(RouteOwner.USERSPACE)))
            guard = undo.enter_context(contextlib.closing(Guard()))
            process = None if _is_listening(path) else _spawn_worker(path)
            if process is not None:
                undo.callback(os.waitpid, process, 0)
                undo.callback(os.kill, process, signal.SIGTERM)
            started = cls(path, routes, guard, process)
            undo.pop_all()
        return started

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
            missing={"transport mode": "the userspace datapath knows tunnel mode only"},
        )

    def add_sa(self, entry: SadEntry) -> None:
        mtu = self._mtu_of(entry)
        self._ask("add_sa", to_plain(entry))
        self._set_inner_mtu(entry.reqid, mtu)

    def update_sa(self, entry: SadEntry) -> None:
        mtu = self._mtu_of(entry)
        self._ask("update_sa", to_plain(entry))
        self._set_inner_mtu(entry.reqid, mtu)

    def move_sa(self, sa: SaId, entry: SadEntry) -> None:
        mtu = self._mtu_of(entry)
        self._ask("move_sa", [to_plain(sa), to_plain(entry)])
        self._set_inner_mtu(entry.reqid, mtu)

    def remove_sa(self, sa: SaId) -> None:
        self._ask("remove_sa", to_plain(sa))

    def add_policy(self, entry: SpdEntry) -> None:
        """A BYPASS entry has no route, so one that is narrower than a PROTECT entry bypasses
        nothing: its packets are led into the device, and dropped there."""
        self._ask("add_policy", to_plain(entry))
        try:
            if entry.direction is not PolicyDirection.OUT:
                self._guard.add(entry)
            elif entry.action is Action.BYPASS:
                self._remove_route(entry)
            else:
                self._add_route(entry)
        except DatapathError:
            self._ask("remove_policy", to_plain(entry))
            raise

    def remove_policy(self, entry: SpdEntry) -> None:
        if entry.direction is PolicyDirection.OUT:
            self._remove_route(entry)
        else:
            self._guard.remove(entry)
        self._ask("remove_policy", to_plain(entry))

    def usage(self, sa: SaId) -> Usage:
        return from_plain(Usage, self._ask("usage", to_plain(sa)))

    def seconds_idle(self, sas: Sequence[SaId]) -> tuple[float | None, ...]:
        answers: list[float | None] = []
        for start in range(0, len(sas), requests.IDS_PER_PACKET):
            piece = tuple(sas[start : start + requests.IDS_PER_PACKET])
            plain = self._ask("seconds_idle", to_plain(piece))
            answers += from_plain(tuple[float | None, ...], plain)
        return tuple(answers)

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
        self._guard.enforce(())
        self._routed.clear()
        self._routed_by_reqid.clear()
        self._inner_mtu.clear()
        count = self._ask("remove_all")
        assert isinstance(count, int)
        return count

    def fileno(self) -> int:
        return self._events.fileno()

    def read_events(self) -> tuple[Event, ...]:
        events: list[Event] = []
        try:
            while packet := self._events.recv(requests.MAX_PACKET):
                events.append(requests.decode_event(packet))
        except BlockingIOError:
            return tuple(events)
        except OSError:
            pass
        self._mute()
        raise DatapathError("the userspace worker has ended, and its SAs with it")

    def close(self) -> None:
        self._close_sockets()
        self._routes.close()
        self._guard.close()

    def stop(self) -> None:
        """End the worker, and with it its device and routes."""
        with contextlib.suppress(DatapathError):
            self._routes.remove_all()
        with contextlib.suppress(DatapathError):
            self._guard.enforce(())
        with contextlib.suppress(DatapathError):
            self._ask("stop")
        self._await_end()
        self.close()

    def _await_end(self) -> None:
        """Until the worker's end of a connection is closed: by the worker, or with it."""
        self._events.settimeout(0 if self._has_ended else ANSWER_SECONDS)
        try:
            while self._events.recv(requests.MAX_PACKET):
                pass
        except TimeoutError:
            os.kill(_peer_process(self._events), signal.SIGKILL)
        except OSError:
            pass
        if self._process is not None:
            os.waitpid(self._process, 0)
            self._process = None

    def _mute(self) -> None:
        """The end of a connection is readable for ever; whoever polls `fileno` need not be."""
        self._has_ended = True
        silence = os.eventfd(0)
        os.dup2(silence, self._events.fileno(), inheritable=False)
        os.close(silence)

    def _close_sockets(self) -> None:
        self._events.close()
        if self._requests is not None:
            self._requests.close()
            self._requests = None

    # Routes.

    def _take_over(self) -> None:
        """Know of the entries in force what a predecessor knew, and mend their routes."""
        dump = self.dump()
        for sa in dump.sad:
            with contextlib.suppress(DatapathError):  # No way to the peer at the moment.
                self._set_inner_mtu(sa.reqid, self._mtu_of(sa))
        self._guard.enforce(e for e in dump.spd if e.direction is not PolicyDirection.OUT)
        for policy in dump.spd:
            if policy.direction is PolicyDirection.OUT and policy.action is not Action.BYPASS:
                self._add_route(policy)

    def _add_route(self, entry: SpdEntry) -> None:
        """Lead packets to the device; also those to DISCARD, which end there."""
        reqid = _reqid_of(entry)
        mtu = None if reqid is None else self._inner_mtu.get(reqid)
        destination = entry.selector.destination
        if mtu is not None and destination.version == 6:
            mtu = max(mtu, IPV6_MINIMUM_MTU)
        self._routes.add(destination, local=entry.selector.source, via=DEVICE, mtu=mtu)
        self._remove_route(entry)  # It counts how often it was added.
        self._routed[entry.selector] = entry
        self._routed_by_reqid.setdefault(reqid, set()).add(entry.selector)

    def _remove_route(self, entry: SpdEntry) -> None:
        old = self._routed.pop(entry.selector, None)
        if old is None:
            return
        selectors = self._routed_by_reqid[_reqid_of(old)]
        selectors.remove(entry.selector)
        if not selectors:
            del self._routed_by_reqid[_reqid_of(old)]
        self._routes.remove(entry.selector.destination)

    def _set_inner_mtu(self, reqid: int, mtu: int | None) -> None:
        """Routes that are there follow a rekey to another suite, and a move of the peer."""
        if mtu is None or self._inner_mtu.get(reqid) == mtu:
            return
        self._inner_mtu[reqid] = mtu
        for selector in tuple(self._routed_by_reqid.get(reqid, ())):
            self._add_route(self._routed[selector])

    def _mtu_of(self, entry: SadEntry) -> int | None:
        """What fits through this SA, by the path that its outer packets take; not of an inbound."""
        if entry.direction is Direction.IN:
            return None
        path = self._routes.outer_path(entry.source, entry.destination)
        return inner_mtu(
            min(path.mtu, MAX_MTU),
            entry.suite,
            outer_version=entry.source.version,
            encapsulated=entry.encapsulation is not None,
            mode=entry.mode,
        )

    # Talking to the worker.

    def _ask(self, what: str, value: Plain = None) -> Plain:
        (result,) = self._ask_all(what, value)
        plain: Plain = result
        return plain

    def _ask_all(self, what: str, value: Plain = None) -> list[Any]:
        if self._requests is None:
            self._requests = _connect(self._path)
        try:
            return _exchange(self._requests, what, value)
        except (OSError, ValueError) as error:
            # A late answer must not be taken for that of the next request.
            self._requests.close()
            self._requests = None
            raise DatapathError(f"the userspace worker does not answer: {error}") from error


def _exchange(connection: socket.socket, what: str, value: Plain) -> list[Any]:
    """The results of a request. Raises `DatapathError`, `OSError` or `ValueError`."""
    results: list[Any] = []
    connection.send(requests.encode({"do": what, "with": value}))
    while True:
        packet = connection.recv(requests.MAX_PACKET)
        if not packet:
            raise ConnectionResetError("it has closed the connection")
        reply = requests.decode(packet)
        if "error" in reply:
            raise DatapathError(reply["error"], reply["errno"])
        results.append(reply["result"])
        if not reply.get("more"):
            return results


def _reqid_of(entry: SpdEntry) -> int | None:
    return None if entry.template is None else entry.template.reqid


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(ANSWER_SECONDS)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise DatapathError(f"no userspace worker at {path}: {error}", error.errno) from error
    return connection


def _peer_process(connection: socket.socket) -> int:
    octets = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    process: int = UCRED.unpack(octets)[0]
    return process


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
            # -P: no modules from the current directory, which may be anybody's.
            [sys.executable, "-P", "-m", module, str(path), str(writing)],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
            setsid=True,
        )
        os.close(writing)
        if not select.select([ready], [], [], START_SECONDS)[0]:
            os.kill(process, signal.SIGKILL)
        words = ready.read()
    if words == READY:
        return process
    os.waitpid(process, 0)
    reason = words.decode(errors="replace") or "it ended without a word"
    raise DatapathError(f"the userspace worker cannot start: {reason}")
