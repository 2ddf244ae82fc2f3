"""The worker process: its loop, its sockets, and the daemon's requests.

`python -m xfrmpy.datapath.userspace.worker SOCKET READY` makes the TUN device, listens on SOCKET
and writes an octet to the descriptor READY (or the reason why it cannot). It goes on forwarding
while the daemon is away, as a kernel would, and ends on request or SIGTERM. What happens to a
packet is decided in `forwarding`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from struct import Struct
from typing import Any

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.routes import OUR_MARK
from xfrmpy.datapath.userspace import requests
from xfrmpy.datapath.userspace.forwarding import MAX_EVENTS, Forwarder, Refused
from xfrmpy.datapath.userspace.tun import Tun
from xfrmpy.datapath.userspace.udp import (
    attach_reuseport_selector,
    open_shared_udp_socket,
    packet_info,
)
from xfrmpy.ipsec.addresses import IKE_NATT_PORT, SocketAddress
from xfrmpy.ipsec.plain import Plain, from_plain, to_plain
from xfrmpy.ipsec.sad import SadEntry, SaId
from xfrmpy.ipsec.spd import SpdEntry

DEVICE_MTU = 65535
"""Of the device; what a tunnel really carries is the MTU of its route."""

BATCH = 64
"""Packets taken from one side before the other gets its turn."""

RECEIVE_BUFFER = 4 * 1024 * 1024
"""Octets. Some 2,800 full packets: what arrives while a worker is busy for about 10 ms."""

MAX_DATAGRAM = 65535
MAX_COMPLAINTS = 10

TICK_SECONDS = 1.0
"""How late an SA may expire."""

RETRY_SECONDS = 0.05
"""How late a listener that did not keep up hears the rest."""

REPLY_SECONDS = 0.5
"""A connection that does not take its replies is closed: packets are waiting."""

_SO_RCVBUFFORCE = 33
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT = 10, 23, 0
_PR_SET_DUMPABLE = 4
UCRED = Struct("=iII")


class Worker:
    """See the module."""

    def __init__(self, control_path: Path) -> None:
        self._forwarder = Forwarder(secrets.token_bytes)
        self._selector = selectors.DefaultSelector()
        self._udp: dict[int, socket.socket] = {}
        self._listeners: dict[socket.socket, deque[bytes]] = {}
        self._running = True
        self._next_check_at = 0.0
        self._tun = Tun(DEVICE_MTU)
        self._selector.register(self._tun, selectors.EVENT_READ, self._read_tun)
        self._control_path = control_path
        self._control = _listen(control_path)
        self._selector.register(self._control, selectors.EVENT_READ, self._accept)

    def run(self) -> None:
        """Forward until told to stop."""
        while self._running:
            is_behind = any(self._listeners.values())
            for key, _ in self._selector.select(RETRY_SECONDS if is_behind else TICK_SECONDS):
                key.data()
            self._expire()
            self._send_events()

    def close(self) -> None:
        self._control_path.unlink(missing_ok=True)
        self._tun.close()
        self._close_udp()

    def _expire(self) -> None:
        now = time.monotonic()
        if now >= self._next_check_at:
            self._next_check_at = now + TICK_SECONDS
            self._forwarder.expire(now)

    # Packets.

    def _read_tun(self) -> None:
        for _ in range(BATCH):
            try:
                packet = self._tun.read()
            except BlockingIOError:
                return
            except OSError as error:
                self._count("tun-read")
                # A device that somebody removed does not come back, and is readable for ever.
                if error.errno == errno.EBADFD:
                    _complain("the TUN device is gone")
                    self._running = False
                return
            self._guarded(partial(self._protect, packet))

    def _protect(self, packet: bytes) -> None:
        sealed, entry = self._forwarder.protect(packet, time.monotonic())
        ports = entry.encapsulation
        assert ports is not None, "the forwarder takes no SA without"
        sender = self._udp.get(entry.source.version)
        if sender is None:
            raise Refused("no-udp-socket")
        destination = (str(entry.destination), ports.destination_port)
        try:
            sender.sendmsg([sealed], [packet_info(entry.source)], 0, destination)
        except OSError as error:
            raise _refused("udp-send", error) from error

    def _read_udp(self, receiver: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                datagram, address = receiver.recvfrom(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:
                continue  # An ICMP error for something sent earlier.
            self._guarded(partial(self._unprotect, datagram, address))

    def _unprotect(self, datagram: bytes, address: tuple[Any, ...]) -> None:
        source = SocketAddress(ip_address(address[0].partition("%")[0]), address[1])
        packet = self._forwarder.unprotect(datagram, source, time.monotonic())
        try:
            self._tun.write(packet)
        except OSError as error:
            raise _refused("tun-write", error) from error

    def _guarded(self, handle: Callable[[], None]) -> None:
        """No packet ends the worker."""
        try:
            handle()
        except Refused as refused:
            self._count(refused.reason)
        except Exception as error:
            self._count("defect")
            if self._forwarder.refused["defect"] <= MAX_COMPLAINTS:
                _complain(f"a packet met a defect: {error!r}")

    def _count(self, reason: str) -> None:
        self._forwarder.refused[reason] += 1

    # The daemon.

    def _accept(self) -> None:
        try:
            connection, _ = self._control.accept()
        except OSError:
            return  # It has gone again, or we have no descriptors left.
        octets = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        if UCRED.unpack(octets)[1] not in (0, os.geteuid()):
            connection.close()
            return
        connection.settimeout(REPLY_SECONDS)
        self._selector.register(
            connection, selectors.EVENT_READ, partial(self._read_request, connection)
        )

    def _read_request(self, connection: socket.socket) -> None:
        try:
            packet = connection.recv(requests.MAX_PACKET)
            if packet:
                for reply in self._answer(connection, packet):
                    connection.send(requests.encode(reply))
                return
        except OSError:
            pass  # The daemon is gone, or does not read: it comes back if it wants something.
        self._listeners.pop(connection, None)
        self._selector.unregister(connection)
        connection.close()

    def _answer(self, connection: socket.socket, packet: bytes) -> list[dict[str, Any]]:
        """The replies to a request. No request ends the worker."""
        try:
            request = requests.decode(packet)
            if request["do"] == "events":
                connection.setblocking(False)
                self._listeners[connection] = deque(maxlen=MAX_EVENTS)
                return [{"result": None}]
            return _HANDLERS[request["do"]](self, request.get("with"))
        except DatapathError as error:
            return [{"error": str(error), "errno": error.errno}]
        except Exception as error:
            return [{"error": f"a request that makes no sense: {error!r}", "errno": None}]

    def _send_events(self) -> None:
        """To whom listens, as far as they read; while nobody listens, events wait."""
        if not self._listeners:
            return
        events = [requests.encode_event(event) for event in self._forwarder.events]
        self._forwarder.events.clear()
        for listener, waiting in self._listeners.items():
            waiting.extend(events)
            with contextlib.suppress(OSError):  # It is full; or gone, which shows when it is read.
                while waiting:
                    listener.send(waiting[0])
                    waiting.popleft()

    # Requests, by their names.

    def join(self, _: Plain) -> None:
        """Open the UDP sockets behind the daemon's, so that it is the first of each group."""
        self._close_udp()
        try:
            for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
                if version == 6 and not Path("/proc/net/if_inet6").exists():
                    continue
                self._udp[version] = opened = _open_udp(family)
                self._selector.register(
                    opened, selectors.EVENT_READ, partial(self._read_udp, opened)
                )
        except OSError as error:
            self._close_udp()
            reason = f"UDP port {IKE_NATT_PORT} cannot be shared: {error.strerror}"
            raise DatapathError(reason, error.errno) from error

    def _close_udp(self) -> None:
        for each in self._udp.values():
            self._selector.unregister(each)
            each.close()
        self._udp.clear()

    def add_sa(self, plain: Plain) -> None:
        self._forwarder.add_sa(from_plain(SadEntry, plain), time.monotonic())

    def update_sa(self, plain: Plain) -> None:
        self._forwarder.update_sa(from_plain(SadEntry, plain))

    def move_sa(self, plain: Plain) -> None:
        """`plain` has the id of old, and the entry."""
        if not isinstance(plain, list) or len(plain) != 2:
            raise ValueError("a move has two parts")
        self._forwarder.move_sa(from_plain(SaId, plain[0]), from_plain(SadEntry, plain[1]))

    def remove_sa(self, plain: Plain) -> None:
        self._forwarder.remove_sa(from_plain(SaId, plain))

    def add_policy(self, plain: Plain) -> None:
        self._forwarder.add_policy(from_plain(SpdEntry, plain))

    def remove_policy(self, plain: Plain) -> None:
        self._forwarder.remove_policy(from_plain(SpdEntry, plain))

    def usage(self, plain: Plain) -> Plain:
        return to_plain(self._forwarder.usage(from_plain(SaId, plain), time.monotonic()))

    def seconds_idle(self, plain: Plain) -> Plain:
        sas, now = from_plain(tuple[SaId, ...], plain), time.monotonic()
        return [self._forwarder.seconds_idle(sa, now) for sa in sas]

    def drops(self, _: Plain) -> Plain:
        return dict(self._forwarder.refused)

    def remove_all(self, _: Plain) -> Plain:
        return self._forwarder.remove_all()

    def stop(self, _: Plain) -> None:
        self._running = False

    def dump(self) -> list[dict[str, Any]]:
        """Every entry, in as many packets as it takes."""
        dump = self._forwarder.dump()
        replies: list[dict[str, Any]] = []
        for table, entries in (("sad", dump.sad), ("spd", dump.spd)):
            replies += [
                {"result": {"table": table, "entries": piece}, "more": True}
                for piece in requests.in_pieces(entries)
            ]
        replies[-1]["more"] = False
        return replies


def _refused(what: str, error: OSError) -> Refused:
    """Such as `udp-send-enobufs`: what the system did not take, and why."""
    return Refused(f"{what}-{errno.errorcode.get(error.errno or 0, 'error').lower()}")


_Handler = Callable[[Worker, Plain], list[dict[str, Any]]]


def _single(method: Callable[[Worker, Plain], Plain | None]) -> _Handler:
    """A request with one reply."""
    return lambda worker, plain: [{"result": method(worker, plain)}]


_HANDLERS: dict[str, _Handler] = {
    "join": _single(Worker.join),
    "add_sa": _single(Worker.add_sa),
    "update_sa": _single(Worker.update_sa),
    "move_sa": _single(Worker.move_sa),
    "remove_sa": _single(Worker.remove_sa),
    "add_policy": _single(Worker.add_policy),
    "remove_policy": _single(Worker.remove_policy),
    "usage": _single(Worker.usage),
    "seconds_idle": _single(Worker.seconds_idle),
    "drops": _single(Worker.drops),
    "remove_all": _single(Worker.remove_all),
    "stop": _single(Worker.stop),
    "dump": lambda worker, _plain: worker.dump(),
}


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path.unlink(missing_ok=True)
    old_mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old_mask)
    listener.listen()
    return listener


def _open_udp(family: socket.AddressFamily) -> socket.socket:
    opened = open_shared_udp_socket(family, IKE_NATT_PORT)
    opened.setblocking(False)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, OUR_MARK)
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:  # Root of a user namespace only: as much as the host allows.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    # The inner MTU keeps outer packets within the path we know of; where the path is narrower
    # farther on, a fragmented packet arrives and a dropped one does not (RFC 4301 section 8.1).
    if family == socket.AF_INET:
        opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
    attach_reuseport_selector(opened, workers=1)
    return opened


def _complain(words: str) -> None:
    with contextlib.suppress(OSError):  # Whoever read our words may be gone.
        print(f"worker: {words}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    control_path, ready = Path(arguments[0]), int(arguments[1])
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)  # No core dump, no ptrace: keys are here.
    # An exception, for without one a wait for packets goes on after a signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        worker = Worker(control_path)
    except (DatapathError, OSError) as error:
        os.write(ready, str(error).encode())
        return 1
    os.write(ready, READY)
    os.close(ready)
    try:
        worker.run()
    finally:
        worker.close()
    return 0


READY = b"\0"

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
