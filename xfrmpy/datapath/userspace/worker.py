"""The worker process: its loop, its sockets, and the daemon's requests.

`python -m xfrmpy.datapath.userspace.worker SOCKET READY` makes the TUN device, listens on SOCKET
and writes an octet to the descriptor READY (or the reason why it cannot). It goes on forwarding
while the daemon is away, as a kernel would, and ends on request or SIGTERM. What happens to a
packet is decided in `forwarding`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from struct import Struct
from typing import Any

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.routes import OUR_MARK
from xfrmpy.datapath.userspace import requests
from xfrmpy.datapath.userspace.forwarding import Forwarder, Refused
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
LIFETIME_CHECK_SECONDS = 1.0

_SO_RCVBUFFORCE = 33
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT = 10, 23, 0
_PR_SET_DUMPABLE = 4
_UCRED = Struct("=iII")


class Worker:
    """See the module."""

    def __init__(self, control_path: Path) -> None:
        self._forwarder = Forwarder(secrets.token_bytes)
        self._selector = selectors.DefaultSelector()
        self._udp: dict[int, socket.socket] = {}
        self._listeners: set[socket.socket] = set()
        self._running = True
        self._tun = Tun(DEVICE_MTU)
        self._selector.register(self._tun, selectors.EVENT_READ, self._read_tun)
        self._control_path = control_path
        self._control = _listen(control_path)
        self._selector.register(self._control, selectors.EVENT_READ, self._accept)

    def run(self) -> None:
        """Forward until told to stop."""
        signal.signal(signal.SIGTERM, lambda *_: self.stop(None))
        while self._running:
            wait = LIFETIME_CHECK_SECONDS if self._forwarder.has_time_limits else None
            for key, _ in self._selector.select(wait):
                key.data()
            if wait is not None:
                self._forwarder.expire(time.monotonic())
            self._send_events()

    def close(self) -> None:
        self._control_path.unlink(missing_ok=True)
        self._tun.close()
        for each in self._udp.values():
            each.close()

    # Packets.

    def _read_tun(self) -> None:
        for _ in range(BATCH):
            try:
                packet = self._tun.read()
            except BlockingIOError:
                return
            except OSError:
                self._count("tun-read")
                return
            self._guarded(partial(self._protect, packet))

    def _protect(self, packet: bytes) -> None:
        sealed, entry = self._forwarder.protect(packet, time.monotonic())
        ports = entry.encapsulation
        assert ports is not None
        destination = (str(entry.destination), ports.destination_port)
        try:
            sender = self._udp[entry.source.version]
            sender.sendmsg([sealed], [packet_info(entry.source)], 0, destination)
        except (OSError, KeyError) as error:
            raise Refused("udp-send") from error

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
            raise Refused("tun-write") from error

    def _guarded(self, handle: Callable[[], None]) -> None:
        """No packet ends the worker."""
        try:
            handle()
        except Refused as refused:
            self._count(refused.reason)
        except Exception as error:
            self._count("defect")
            print(f"worker: a packet met a defect: {error!r}", file=sys.stderr, flush=True)

    def _count(self, reason: str) -> None:
        self._forwarder.refused[reason] += 1

    # The daemon.

    def _accept(self) -> None:
        connection, _ = self._control.accept()
        octets = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        if _UCRED.unpack(octets)[1] not in (0, os.geteuid()):
            connection.close()
            return
        self._selector.register(
            connection, selectors.EVENT_READ, partial(self._read_request, connection)
        )

    def _read_request(self, connection: socket.socket) -> None:
        try:
            packet = connection.recv(requests.MAX_PACKET)
            if packet:
                self._answer(connection, packet)
                return
        except OSError:
            pass  # The daemon is gone, or does not read: it comes back if it wants something.
        self._listeners.discard(connection)
        self._selector.unregister(connection)
        connection.close()

    def _answer(self, connection: socket.socket, packet: bytes) -> None:
        try:
            request = requests.decode(packet)
            replies = _HANDLERS[request["do"]](self, request.get("with"))
            if request["do"] == "events":
                connection.setblocking(False)
                self._listeners.add(connection)
        except DatapathError as error:
            replies = [{"error": str(error), "errno": error.errno}]
        except (ValueError, KeyError, TypeError) as error:
            replies = [{"error": f"a request that makes no sense: {error!r}", "errno": None}]
        for reply in replies:
            connection.send(requests.encode(reply))

    def _send_events(self) -> None:
        for event in self._forwarder.events:
            for listener in self._listeners:
                with contextlib.suppress(OSError):
                    listener.send(requests.encode_event(event))
        self._forwarder.events.clear()

    # Requests, by their names.

    def join(self, _: Plain) -> None:
        """Open the UDP sockets behind the daemon's, so that it is the first of each group."""
        for each in self._udp.values():
            self._selector.unregister(each)
            each.close()
        self._udp.clear()
        try:
            for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
                if version == 6 and not Path("/proc/net/if_inet6").exists():
                    continue
                self._udp[version] = opened = _open_udp(family)
                self._selector.register(
                    opened, selectors.EVENT_READ, partial(self._read_udp, opened)
                )
        except OSError as error:
            reason = f"UDP port {IKE_NATT_PORT} cannot be shared: {error.strerror}"
            raise DatapathError(reason, error.errno) from error

    def add_sa(self, plain: Plain) -> None:
        self._forwarder.add_sa(from_plain(SadEntry, plain), time.monotonic())

    def update_sa(self, plain: Plain) -> None:
        self._forwarder.update_sa(from_plain(SadEntry, plain))

    def remove_sa(self, plain: Plain) -> None:
        self._forwarder.remove_sa(from_plain(SaId, plain))

    def add_policy(self, plain: Plain) -> None:
        self._forwarder.add_policy(from_plain(SpdEntry, plain))

    def remove_policy(self, plain: Plain) -> None:
        self._forwarder.remove_policy(from_plain(SpdEntry, plain))

    def usage(self, plain: Plain) -> Plain:
        return to_plain(self._forwarder.usage(from_plain(SaId, plain), time.monotonic()))

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


_Handler = Callable[[Worker, Plain], list[dict[str, Any]]]


def _single(method: Callable[[Worker, Plain], Plain | None]) -> _Handler:
    """A request with one reply."""
    return lambda worker, plain: [{"result": method(worker, plain)}]


_HANDLERS: dict[str, _Handler] = {
    "join": _single(Worker.join),
    "events": _single(lambda _worker, _plain: None),
    "add_sa": _single(Worker.add_sa),
    "update_sa": _single(Worker.update_sa),
    "remove_sa": _single(Worker.remove_sa),
    "add_policy": _single(Worker.add_policy),
    "remove_policy": _single(Worker.remove_policy),
    "usage": _single(Worker.usage),
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
    opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    # The inner MTU keeps outer packets within the path we know of; where the path is narrower
    # farther on, a fragmented packet arrives and a dropped one does not (RFC 4301 section 8.1).
    if family == socket.AF_INET:
        opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)
    attach_reuseport_selector(opened, workers=1)
    return opened


def main(arguments: list[str]) -> int:
    control_path, ready = Path(arguments[0]), int(arguments[1])
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)  # No core dump, no ptrace: keys are here.
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
