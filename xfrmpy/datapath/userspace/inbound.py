"""From the network to a TUN device: the receiving half of the worker.

Datagrams come as many at a time as there are (`receiving`), are opened together (`arrivals`), and
what of them is one flow reaches the host as one super-packet (`coalescing`). All that has come is
written before more is read: no packet waits for others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from socket import socket

from xfrmpy.datapath.userspace.arrivals import Arrivals
from xfrmpy.datapath.userspace.coalescing import Joined
from xfrmpy.datapath.userspace.forwarding import Forwarder, Refusal, Refused, refused_by_system
from xfrmpy.datapath.userspace.neighbours import Kind, Neighbours
from xfrmpy.datapath.userspace.raw import Arrived, RawSocket
from xfrmpy.datapath.userspace.receiving import MAX_READS, Received, UdpReceiver
from xfrmpy.datapath.userspace.shares import ALL, FIRST, Share
from xfrmpy.datapath.userspace.tun import Tun
from xfrmpy.datapath.userspace.turns import Readable, Turn
from xfrmpy.datapath.userspace.udp import whole_datagram
from xfrmpy.datapath.userspace.virtio import Offload
from xfrmpy.esp.transport import fields_of
from xfrmpy.registry import ProtocolId

TURN = 64
"""Packets taken from a raw socket before other descriptors get their turn."""


class Inbound:
    """See the module. `guarded` calls, and lets no exception out; `device_of` gives that of an
    `if_id`, if it is there; `send_in_clear` sends whole packets. `neighbours` are the other
    workers, if there are any.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        guarded: Callable[[Callable[[], None]], None],
        device_of: Callable[[int], Tun | None],
        send_in_clear: Callable[[list[bytes]], None],
        share: Share = ALL,
    ) -> None:
        self.neighbours: Neighbours | None = None
        self._share = share
        self._forwarder = forwarder
        self._guarded = guarded
        self._device_of = device_of
        self._send_in_clear = send_in_clear
        self._arrivals = Arrivals(forwarder, share, self._takes_datagrams)

    def listen(self, opened: socket, version: int, readable: Readable) -> None:
        """Read a UDP socket from now on, whenever there is something. Raises `OSError`."""
        turn = Turn(readable, MAX_READS)
        receiver = UdpReceiver(opened, version, self._forwarder.refused, turn)
        readable.register(opened, partial(self._guarded, partial(self._read_udp, receiver, turn)))

    def _read_udp(self, receiver: UdpReceiver, turn: Turn) -> None:
        if receiver.was_alone and turn.is_single():
            self._read_one(receiver)
            return
        received, now = receiver.receive(), time.monotonic()
        receiver.was_alone = len(received) == 1 and received[0].is_alone
        self._take(received, now)

    def _take(self, received: list[Received], now: float) -> None:
        for each in received:
            self._guarded(partial(self._unprotect, each, now))
        for if_id, joined in self._arrivals.take():
            self._guarded(partial(self._write, if_id, joined))

    def _read_one(self, receiver: UdpReceiver) -> None:
        """A datagram that is likely to have come alone, so that it goes the shortest way. Raises
        `Refused`."""
        try:
            octets, told, known = receiver.receive_one()
        except OSError:
            return  # As in `UdpReceiver.receive`.
        if known.size:
            receiver.was_alone = False
            self._take([receiver.of(octets, told, known)], time.monotonic())
            return
        packet, entry = self._forwarder.unprotect(
            octets, known.source, time.monotonic(), fields=known.fields
        )
        device = self._device_of(entry.if_id)
        if device is None:
            self._hand(entry.if_id, Joined(memoryview(packet), None))
            return
        try:
            device.write(packet)
        except OSError as error:
            raise refused_by_system("tun-write", error) from error

    def read_raw(self, receiver: RawSocket) -> None:
        for _ in range(TURN):
            try:
                arrived = receiver.receive()
            except BlockingIOError:
                return
            except OSError:
                continue  # An ICMP error for something sent earlier.
            self._guarded(partial(self._unprotect_raw, receiver.protocol, arrived))

    def _unprotect(self, received: Received, now: float) -> None:
        source, fields = received.source, received.fields
        others = self._arrivals.add_piece(received.piece, source, fields, now)
        if len(received.piece.datagrams) == 1 and others:
            # It has been told apart, and would come again.
            raise Refused(Refusal.UNKNOWN_SPI)
        for other in others:
            self._guarded(partial(self._pass_on, bytes(other), received))

    def _pass_on(self, datagram: bytes, received: Received) -> None:
        """To whom it would have come by itself: the daemon, most likely."""
        ends = received.source, received.destination
        self._send_in_clear([whole_datagram(*ends, datagram, received.fields)])

    def _unprotect_raw(self, protocol: ProtocolId, arrived: Arrived) -> None:
        fields, now = fields_of(arrived.header), time.monotonic()
        packet, entry = self._forwarder.unprotect(
            arrived.payload, None, now, protocol=protocol, fields=fields, header=arrived.header
        )
        self._write(entry.if_id, Joined(memoryview(packet), None))

    def _takes_datagrams(self, if_id: int) -> bool:
        device = self._device_of(if_id)
        return device is not None and device.takes_datagrams

    def _write(self, if_id: int, joined: Joined) -> None:
        device = self._device_of(if_id)
        if device is None:
            self._hand(if_id, joined)
            return
        try:
            device.write(*joined.pieces, offload=joined.offload)
        except OSError as error:
            raise refused_by_system("tun-write", error) from error

    def _hand(self, if_id: int, joined: Joined) -> None:
        """To the worker that has a device of which there can be no more than one queue."""
        if self.neighbours is None or self._share.index == FIRST:
            raise Refused("no-interface")
        self.neighbours.hand(FIRST, Kind.INBOUND, if_id, joined.offload, joined.pieces)

    def write_handed(self, packet: bytes, offload: Offload, if_id: int) -> None:
        """A packet that another worker has let in. Raises `Refused`."""
        device = self._device_of(if_id)
        if device is None:
            raise Refused("no-interface")
        try:
            device.write(packet, offload=offload)
        except OSError as error:
            raise refused_by_system("tun-write", error) from error
