"""The worker process: its loop, its device and sockets, and the daemon's requests.

`python -m xfrmpy.datapath.userspace.worker SOCKET READY INDEX COUNT` listens on SOCKET and writes
an octet to the descriptor READY (or the reason why it cannot); it is number INDEX of COUNT. It
keeps the daemon's sockets (`control`) and, when asked to `carry`, carries packets. It goes on with
both while the daemon is away, as a kernel would, and ends on request or SIGTERM. What happens to a
packet is decided in `forwarding`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from stat import S_ISSOCK
from typing import TYPE_CHECKING, Any

from xfrmpy import __version__
from xfrmpy.datapath.dumps import forbid_dumps
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.routes import OUR_MARK
from xfrmpy.datapath.userspace import requests
from xfrmpy.datapath.userspace.control import ControlSocket
from xfrmpy.datapath.userspace.devices import TunDevices
from xfrmpy.datapath.userspace.forwarding import Forwarder, Refused, Waits
from xfrmpy.datapath.userspace.in_force import InForce
from xfrmpy.datapath.userspace.ledger import Ledger
from xfrmpy.datapath.userspace.neighbours import Kind, Neighbours
from xfrmpy.datapath.userspace.pages import use_large_pages
from xfrmpy.datapath.userspace.raw import RawSockets
from xfrmpy.datapath.userspace.scheduling import ask_for_short_slices
from xfrmpy.datapath.userspace.sending import UdpSender
from xfrmpy.datapath.userspace.shares import Share
from xfrmpy.datapath.userspace.tun import Tun
from xfrmpy.datapath.userspace.turns import Readable
from xfrmpy.datapath.userspace.udp import (
    attach_reuseport_selector,
    open_shared_udp_socket,
)
from xfrmpy.datapath.userspace.virtio import Offload
from xfrmpy.ipsec.addresses import ADDRESS_KINDS, IKE_NATT_PORT
from xfrmpy.ipsec.plain import Plain
from xfrmpy.ipsec.sad import SadEntry

if TYPE_CHECKING:
    from xfrmpy.datapath.userspace.inbound import Inbound
    from xfrmpy.datapath.userspace.outbound import Outbound

RECEIVE_BUFFER = 256 * 1024
"""Octets, which the kernel doubles for what it needs itself: 2 ms at 2 Gbit/s. What waits longer is
late for everybody. With twice as much, a ping beside a stream took twice as long on a machine that
had too much to do (9 ms became 15 to 23), and the stream was no faster; with half as much it was
slower by a third."""

MAX_COMPLAINTS = 10

LEDGER_SUFFIX = ".ledger"
"""Of the file beside the socket by which another worker goes on with the SAs of this one."""

TICK_SECONDS = 1.0
"""How late an SA may expire."""

RETRY_SECONDS = 0.05
"""How late a listener that did not keep up hears the rest."""

_SO_RCVBUFFORCE = 33
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT = 10, 23, 0


class Worker:
    """See the module."""

    def __init__(self, control_path: Path, share: Share) -> None:
        self._share = share
        self._is_one_of_many = share.count > 1
        self._ledger = Ledger(control_path.with_suffix(LEDGER_SUFFIX))
        self._forwarder = Forwarder(secrets.token_bytes, self._ledger)
        self._natt_port = IKE_NATT_PORT
        self._readable = Readable()
        self._udp: dict[int, socket.socket] = {}
        self._raw: RawSockets | None = None
        self.devices = TunDevices(share, self._readable, self._reader_of)
        self.in_force = InForce(self._forwarder, share, self._check_carriage, self._send_waiting)
        self._running = True
        self._next_check_at = 0.0
        self._control = ControlSocket(
            control_path,
            self._readable,
            self._answer,
            self._settle,
            self if self._is_one_of_many else None,
        )
        self._neighbours = Neighbours(
            share,
            control_path.parent,
            self._readable,
            self._take_handed,
            self._flush,
        )

    def _flush(self) -> None:
        self._outbound.flush()

    # The two halves that carry packets. They are made, and their modules loaded, when there are
    # some to be carried: numpy takes a tenth of a second and 15 MiB, and on most hosts a worker
    # keeps the daemon's sockets and nothing else.

    @cached_property
    def _outbound(self) -> Outbound:
        from xfrmpy.datapath.userspace.outbound import Outbound  # noqa: PLC0415

        made = Outbound(self._forwarder, self._guarded, self._lose)
        if self._is_one_of_many:
            made.neighbours = self._neighbours
        return made

    @cached_property
    def _inbound(self) -> Inbound:
        from xfrmpy.datapath.userspace.inbound import Inbound  # noqa: PLC0415

        in_clear = self._outbound.send_in_clear
        made = Inbound(self._forwarder, self._guarded, self.devices.of, in_clear, self._share)
        if self._is_one_of_many:
            made.neighbours = self._neighbours
        return made

    def run(self) -> None:
        """Keep and carry until told to stop."""
        control, events, serve = self._control, self._forwarder.events, self._readable.serve
        while self._running:
            if control.is_behind:
                serve(RETRY_SECONDS)
            else:
                # For ever, if it is only to keep sockets.
                serve(None if self.devices.shared is None else TICK_SECONDS)
            now = time.monotonic()
            if now >= self._next_check_at:
                self._next_check_at = now + TICK_SECONDS
                self._forwarder.expire(now)
            if events or control.is_behind:
                control.tell(events)
                events.clear()

    def close(self) -> None:
        self._control.close()
        self._neighbours.close()
        self._shut()

    # Packets.

    def _lose(self, tun: Tun) -> None:
        """Without the device of all tunnels there is no use in going on."""
        try:
            self.devices.lose(tun)
        except DatapathError as error:
            _complain(f"the TUN device is gone: {error}")
            self._running = False

    def _reader_of(self, tun: Tun, if_id: int) -> Callable[[], None]:
        outbound = self._outbound
        carry = partial(outbound.carry, tun, if_id, outbound.turn(self._readable))
        return partial(self._guarded, carry)

    def _guarded(self, handle: Callable[[], None]) -> None:
        """No packet ends the worker."""
        try:
            handle()
        except Waits:
            pass
        except Refused as refused:
            self._count(refused.reason)
        except Exception as error:
            self._count("defect")
            if self._forwarder.refused["defect"] <= MAX_COMPLAINTS:
                _complain(f"a packet met a defect: {error!r}")

    def _count(self, reason: str) -> None:
        self._forwarder.refused[reason] += 1

    # What packets come by.

    def _settle(self) -> None:
        """Take a place behind the daemon's sockets, if there are others than before; of several
        workers the daemon says when, for their order counts."""
        if self.devices.shared is not None and not self._is_one_of_many:
            self._join()

    def _join(self, given: Sequence[socket.socket] = ()) -> None:
        """Open the UDP sockets behind the daemon's, so that it is the first of each group, or go on
        with those that are there already."""
        self._close_udp()
        there = {4 if each.family == socket.AF_INET else 6: each for each in given}
        try:
            for family, version in ((socket.AF_INET, 4), (socket.AF_INET6, 6)):
                if version == 6 and not _has_ipv6():
                    continue
                opened = there.get(version) or _open_udp(family, self._natt_port, self._share.count)
                self._udp[version] = opened
                sender = UdpSender(opened, version, self._forwarder.refused)
                self._outbound.senders[ADDRESS_KINDS[version]] = sender
                self._inbound.listen(opened, version, self._readable)
        except OSError as error:
            self._close_udp()
            reason = f"UDP port {self._natt_port} cannot be shared: {error.strerror}"
            raise DatapathError(reason, error.errno) from error

    def _open_raw(self) -> None:
        self._raw = self._outbound.raw = RawSockets(
            _prepare, (4, 6) if _has_ipv6() else (4,), self._share
        )
        for opened in self._raw:
            self._readable.register(opened, partial(self._inbound.read_raw, opened))

    def _shut(self) -> None:
        self._close_udp()
        if self._raw is not None:
            for opened in self._raw:
                self._readable.unregister(opened)
            self._raw.close()
            self._raw = self._outbound.raw = None
        self.devices.close()

    def _close_udp(self) -> None:
        for each in self._udp.values():
            self._readable.unregister(each)
            each.close()
        if self._udp:
            self._udp.clear()
            self._outbound.senders.clear()

    # What concerns the other workers.

    def join(self, given: Sequence[int]) -> None:
        """See `Colleague`."""
        numbers = [each for each in given if S_ISSOCK(os.fstat(each).st_mode)]
        for descriptor in set(given) - set(numbers):
            with contextlib.suppress(DatapathError):  # Removed: `carry` makes another.
                self.devices.join_shared(descriptor)
                self._open_raw()
        sockets = [socket.socket(fileno=each) for each in numbers]
        for each in sockets:
            self._natt_port = each.getsockname()[1]
        self._join(sockets)

    def lend(self) -> Sequence[int]:
        """See `Colleague`."""
        device = () if self.devices.shared is None else (self.devices.shared,)
        return [each.fileno() for each in (*self._udp.values(), *device)]

    def hear(self, channel: socket.socket) -> None:
        """See `Colleague`."""
        self._neighbours.hear(channel)

    def _take_handed(self, kind: Kind, if_id: int, packet: bytes, offload: Offload) -> None:
        if kind is Kind.OUTBOUND:
            self._guarded(partial(self._outbound.carry_handed, packet, offload, if_id))
        else:
            self._guarded(partial(self._inbound.write_handed, packet, offload, if_id))

    # Requests, by their names.

    def _answer(self, name: str, plain: Plain) -> list[dict[str, Any]]:
        return _HANDLERS[name](self, plain)

    def hello(self, _: Plain) -> Plain:
        """What a daemon must know before it asks for anything else."""
        return {
            "version": __version__,
            "format": requests.FORMAT,
            "requests": [*_HANDLERS],
            "network": requests.network_namespace(),
            "is_open": self.devices.shared is not None,
            "share": [self._share.index, self._share.count],
        }

    def raw_refusal(self, _: Plain) -> Plain:
        """Why packets cannot go without UDP; None if they can, or nothing is open."""
        refusal = None if self._raw is None else self._raw.refusal
        return None if refusal is None else str(refusal)

    def carry(self, natt_port: Plain) -> None:
        """Begin to carry packets, those in UDP on this port, or go on."""
        if not isinstance(natt_port, int):
            raise ValueError("a port is a number")
        self._forwarder.remind()
        is_moved, self._natt_port = natt_port != self._natt_port, natt_port
        if self.devices.shared is not None and self._control.kept and not is_moved:
            return
        if self._is_one_of_many and is_moved:
            self._close_udp()
        try:
            if self.devices.shared is None:
                self.devices.open_shared()
                self._open_raw()
                use_large_pages()
            # Whoever did not leave us its sockets may have opened others since.
            if not self._is_one_of_many:
                self._join()
        except DatapathError:
            self._shut()
            raise

    def shut(self, _: Plain) -> None:
        """Carry no packets any more."""
        self.in_force.remove_all(None)
        self._shut()

    def leave_port(self, _: Plain) -> None:
        """Receive nothing more until told to `join`."""
        self._close_udp()

    def _send_waiting(self) -> None:
        """What waited for an SA that is in force now."""
        for packet, if_id in self._forwarder.take_waiting(time.monotonic()):
            self._guarded(partial(self._outbound.protect, packet, if_id))
        self._flush()

    def _check_carriage(self, entry: SadEntry) -> None:
        if entry.encapsulation is None:
            if self._raw is None:
                raise DatapathError("the worker carries nothing", errno.ENOTCONN)
            self._raw.check(entry)

    def stop(self, _: Plain) -> None:
        self._ledger.remove()
        self._running = False


_Handler = Callable[[Worker, Plain], list[dict[str, Any]]]

_PARTS: Sequence[tuple[type, Callable[[Worker], object]]] = (
    (Worker, lambda worker: worker),
    (TunDevices, lambda worker: worker.devices),
    (InForce, lambda worker: worker.in_force),
)
"""Who answers requests, each by a method of its name."""


def _single(name: str) -> _Handler:
    """A request with one reply."""
    method, part_of = next(
        (getattr(kind, name), part_of) for kind, part_of in _PARTS if hasattr(kind, name)
    )
    return lambda worker, plain: [{"result": method(part_of(worker), plain)}]


_HANDLERS: dict[str, _Handler] = {name: _single(name) for name in requests.REQUESTS - {"dump"}}
_HANDLERS["dump"] = lambda worker, _plain: worker.in_force.dump()


def _open_udp(family: socket.AddressFamily, port: int, workers: int) -> socket.socket:
    version = 4 if family == socket.AF_INET else 6
    opened = open_shared_udp_socket(family, port)
    opened.setblocking(False)
    _prepare(opened, version)
    attach_reuseport_selector(opened, workers)
    return opened


def _prepare(opened: socket.socket, version: int) -> None:
    """What every socket has that protected packets go and come by."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, OUR_MARK)
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:  # Root of a user namespace only: as much as the host allows.
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    # The inner MTU keeps outer packets within the path we know of; where the path is narrower
    # farther on, a fragmented packet arrives and a dropped one does not (RFC 4301 section 8.1).
    if version == 4:
        opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)


def _has_ipv6() -> bool:
    return Path("/proc/net/if_inet6").exists()


def _complain(words: str) -> None:
    with contextlib.suppress(OSError):  # Whoever read our words may be gone.
        print(f"worker: {words}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    control_path, ready = Path(arguments[0]), int(arguments[1])
    share = Share(int(arguments[2]), int(arguments[3]))
    forbid_dumps()
    ask_for_short_slices()
    # An exception, for without one a wait for packets goes on after a signal.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        worker = Worker(control_path, share)
    except (DatapathError, OSError) as error:
        os.write(ready, str(error).encode())
        return 1
    os.write(ready, requests.READY)
    os.close(ready)
    try:
        worker.run()
    finally:
        worker.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
