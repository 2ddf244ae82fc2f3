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
from xfrmpy.datapath.userspace.forwarding import Forwarder, Refused, Waits
from xfrmpy.datapath.userspace.ledger import Ledger
from xfrmpy.datapath.userspace.neighbours import Kind, Neighbours
from xfrmpy.datapath.userspace.raw import RawSockets
from xfrmpy.datapath.userspace.scheduling import ask_for_short_slices
from xfrmpy.datapath.userspace.sending import UdpSender
from xfrmpy.datapath.userspace.shares import FIRST, Share
from xfrmpy.datapath.userspace.tun import (
    DEVICE,
    ONE_QUEUE,
    SHARED_QUEUES,
    Tun,
    bring_up,
    queue_name,
)
from xfrmpy.datapath.userspace.turns import Readable, Turn
from xfrmpy.datapath.userspace.udp import (
    attach_reuseport_selector,
    open_shared_udp_socket,
)
from xfrmpy.datapath.userspace.virtio import Offload
from xfrmpy.ipsec.addresses import IKE_NATT_PORT
from xfrmpy.ipsec.plain import Plain, from_plain, to_plain
from xfrmpy.ipsec.sad import SadEntry, SaId
from xfrmpy.ipsec.spd import SpdEntry

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
        self._tun: Tun | None = None
        self._tunnel_tuns: dict[int, Tun] = {}
        self._queues: dict[int, Tun] = {}
        self._tun_queues = SHARED_QUEUES if self._is_one_of_many else ONE_QUEUE
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

        made = Outbound(self._forwarder, self._guarded)
        if self._is_one_of_many:
            made.neighbours = self._neighbours
        return made

    @cached_property
    def _inbound(self) -> Inbound:
        from xfrmpy.datapath.userspace.inbound import Inbound  # noqa: PLC0415

        in_clear = self._outbound.send_in_clear
        made = Inbound(self._forwarder, self._guarded, self._device_of, in_clear, self._share)
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
                serve(None if self._tun is None else TICK_SECONDS)
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

    def _read_tun(self, tun: Tun, if_id: int, turn: Turn) -> None:
        try:
            self._outbound.carry(tun, if_id, turn)
        except OSError as error:
            self._count("tun-read")
            # A device that somebody removed does not come back, and is readable for ever.
            if error.errno == errno.EBADFD:
                self._lose_tun(tun)

    def _lose_tun(self, tun: Tun) -> None:
        """What another device than that of all has besides its name, only the daemon knows."""
        if tun is self._tun:
            self._replace_tun()
        for tuns in (self._tunnel_tuns, self._queues):
            for number in [number for number, each in tuns.items() if each is tun]:
                self._close_one(tuns, number)

    def _replace_tun(self) -> None:
        """Make another device. Without one there is no use in going on."""
        self._close_tun()
        try:
            self._open_tun()
        except DatapathError as error:
            _complain(f"the TUN device is gone: {error}")
            self._running = False

    def _open_tun(self) -> None:
        self._tun = Tun.of_all_tunnels(queues=self._tun_queues)
        self._listen_to(self._tun, 0)

    def _close_tun(self) -> None:
        if self._tun is not None:
            self._readable.unregister(self._tun)
            self._tun.close()
            self._tun = None

    def _listen_to(self, tun: Tun, if_id: int) -> None:
        turn = self._outbound.turn(self._readable)
        self._readable.register(tun, partial(self._read_tun, tun, if_id, turn))

    def _close_one(self, tuns: dict[int, Tun], number: int) -> None:
        tun = tuns.pop(number, None)
        if tun is not None:
            self._readable.unregister(tun)
            tun.close()

    def _device_of(self, if_id: int) -> Tun | None:
        return self._tunnel_tuns.get(if_id) if if_id else self._tun

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
        if self._tun is not None and not self._is_one_of_many:
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
                self._outbound.senders[version] = sender
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
        for tuns in (self._tunnel_tuns, self._queues):
            for number in tuple(tuns):
                self._close_one(tuns, number)
        if self._raw is not None:
            for opened in self._raw:
                self._readable.unregister(opened)
            self._raw.close()
            self._raw = self._outbound.raw = None
        self._close_tun()

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
                self._tun = Tun(DEVICE, lent=descriptor)
                self._listen_to(self._tun, 0)
                self._open_raw()
        sockets = [socket.socket(fileno=each) for each in numbers]
        for each in sockets:
            self._natt_port = each.getsockname()[1]
        self._join(sockets)

    def lend(self) -> Sequence[int]:
        """See `Colleague`."""
        device = () if self._tun is None else (self._tun,)
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
            "is_open": self._tun is not None,
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
        if self._tun is not None and self._control.kept and not is_moved:
            return
        if self._is_one_of_many and is_moved:
            self._close_udp()
        try:
            if self._tun is None:
                self._open_tun()
                self._open_raw()
            # Whoever did not leave us its sockets may have opened others since.
            if not self._is_one_of_many:
                self._join()
        except DatapathError:
            self._shut()
            raise

    def shut(self, _: Plain) -> None:
        """Carry no packets any more."""
        self.remove_all(None)
        self._shut()

    def leave_port(self, _: Plain) -> None:
        """Receive nothing more until told to `join`."""
        self._close_udp()

    def lead(self, plain: Plain) -> None:
        """Of each reqid in `plain` the worker that has its outbound SA."""
        for reqid, worker in from_plain(tuple[tuple[int, int], ...], plain):
            self._forwarder.lead(reqid, None if worker == self._share.index else worker)
        self._send_waiting()

    def add(self, plain: Plain) -> Plain:
        """Entries, each with its kind, in their order: how many are in force, and why no more."""
        if not isinstance(plain, list):
            raise ValueError("entries are a list")
        entries = [from_plain(_ENTRIES[kind], entry) for kind, entry in plain]
        for done, entry in enumerate(entries):
            try:
                self._add(entry)
            except Exception as error:
                reason = str(error) if isinstance(error, DatapathError) else repr(error)
                return {"done": done, "error": reason, "errno": getattr(error, "errno", None)}
        self._send_waiting()
        return {"done": len(entries)}

    def _send_waiting(self) -> None:
        """What waited for an SA that is in force now."""
        for packet, if_id in self._forwarder.take_waiting(time.monotonic()):
            self._guarded(partial(self._outbound.protect, packet, if_id))
        self._flush()

    def _add(self, entry: SadEntry | SpdEntry) -> None:
        if isinstance(entry, SadEntry):
            self._check_carriage(entry)
            self._forwarder.add_sa(entry, time.monotonic())
        else:
            self._forwarder.add_policy(entry)

    def _check_carriage(self, entry: SadEntry) -> None:
        if entry.encapsulation is None:
            if self._raw is None:
                raise DatapathError("the worker carries nothing", errno.ENOTCONN)
            self._raw.check(entry)

    def update_sa(self, plain: Plain) -> None:
        entry = from_plain(SadEntry, plain)
        self._check_carriage(entry)
        self._forwarder.sad.update(entry)

    def move_sa(self, plain: Plain) -> None:
        """`plain` has the id of old, and the entry."""
        if not isinstance(plain, list) or len(plain) != 2:
            raise ValueError("a move has two parts")
        entry = from_plain(SadEntry, plain[1])
        self._check_carriage(entry)
        self._forwarder.sad.move(from_plain(SaId, plain[0]), entry)

    def set_room(self, plain: Plain) -> None:
        """`plain` has a reqid and the size of an inner packet."""
        reqid, octets = from_plain(tuple[int, ...], plain)
        self._forwarder.set_room(reqid, octets)

    def remove_sa(self, plain: Plain) -> None:
        self._forwarder.sad.remove(from_plain(SaId, plain))

    def remove_policy(self, plain: Plain) -> None:
        self._forwarder.remove_policy(from_plain(SpdEntry, plain))

    def open_interface(self, plain: Plain) -> None:
        """A tunnel's own device, unless it is there; `plain` has its number and what to call it."""
        if_id, name = from_plain(int, plain[0]), from_plain(str, plain[1])  # type: ignore[index]
        if if_id not in self._tunnel_tuns:
            try:
                self._tunnel_tuns[if_id] = Tun(name, queues=self._tun_queues)
            except DatapathError as error:
                # One of which the first worker has the only queue: it does the writing.
                if self._share.index == FIRST or error.errno != errno.EBUSY:
                    raise
                return
            self._listen_to(self._tunnel_tuns[if_id], if_id)

    def join_interface(self, plain: Plain) -> None:
        """As `open_interface`, one that another worker has; it must be in our own namespace."""
        name = from_plain(str, plain[1])  # type: ignore[index]
        try:
            socket.if_nametoindex(name)
        except OSError as error:
            raise DatapathError(f"the device {name} is not here", errno.ENODEV) from error
        self.open_interface(plain)

    def close_interface(self, plain: Plain) -> None:
        """Remove it, if it is one that was made here."""
        self._close_one(self._tunnel_tuns, from_plain(int, plain))

    def interfaces(self, _: Plain) -> Plain:
        """Number and name of each tunnel's own device, and whether somebody else has made it."""
        tuns = self._tunnel_tuns.items()
        return [[if_id, tun.name, tun.is_adopted] for if_id, tun in tuns]

    def open_queue(self, plain: Plain) -> None:
        """A device behind that of all tunnels for what is of the reqid `plain` (`queues`), up."""
        reqid = from_plain(int, plain)
        name, there = queue_name(reqid), self._queues.get(reqid)
        if there is not None and there.name == name:
            bring_up(name)
            return
        self._close_one(self._queues, reqid)
        self._queues[reqid] = made = Tun.brought_up(name, queues=self._tun_queues)
        self._listen_to(made, 0)

    def close_queue(self, plain: Plain) -> None:
        self._close_one(self._queues, from_plain(int, plain))

    def queues(self, _: Plain) -> Plain:
        """The reqids that have such a device here."""
        return [*self._queues]

    def usage(self, plain: Plain) -> Plain:
        return to_plain(self._forwarder.sad.usage(from_plain(SaId, plain), time.monotonic()))

    def seconds_idle(self, plain: Plain) -> Plain:
        names, now = from_plain(tuple[str, ...], plain), time.monotonic()
        return [self._forwarder.sad.seconds_idle(requests.named(name), now) for name in names]

    def resumable(self, plain: Plain) -> Plain:
        """Of each SA whether it could go on where it was, if it were added again."""
        entries = from_plain(tuple[SadEntry, ...], plain)
        return [self._forwarder.sad.is_resumable(entry) for entry in entries]

    def survey(self, plain: Plain) -> Plain:
        """Of each SA how long it is in force, and what it has carried; null of one that is not."""
        sas, now = from_plain(tuple[SaId, ...], plain), time.monotonic()
        ages = [(sa, self._forwarder.sad.seconds_old(sa, now)) for sa in sas]
        return [
            None if age is None else [age, to_plain(self._forwarder.sad.usage(sa, now))]
            for sa, age in ages
        ]

    def drops(self, _: Plain) -> Plain:
        return dict(self._forwarder.refused)

    def remove_all(self, _: Plain) -> Plain:
        return self._forwarder.remove_all()

    def stop(self, _: Plain) -> None:
        self._ledger.remove()
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


_ENTRIES: dict[str, type[SadEntry] | type[SpdEntry]] = {
    kind.__name__: kind for kind in (SadEntry, SpdEntry)
}

_Handler = Callable[[Worker, Plain], list[dict[str, Any]]]


def _single(method: Callable[[Worker, Plain], Plain | None]) -> _Handler:
    """A request with one reply."""
    return lambda worker, plain: [{"result": method(worker, plain)}]


_HANDLERS: dict[str, _Handler] = {
    name: _single(getattr(Worker, name)) for name in requests.REQUESTS - {"dump"}
}
_HANDLERS["dump"] = lambda worker, _plain: worker.dump()


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
