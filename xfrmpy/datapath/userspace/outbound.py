"""From a TUN device to the network: the reading half of the worker.

Super-packets of TCP are sealed where they were read to (`bursts`), those together that follow each
other and leave by one SA, if its suite, mode and limits let them be one run. Anything else is
completed (`segments`) and goes packet by packet. Either way datagrams leave together where they can
(`sending`), in the order in which the host gave them.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from xfrmpy.datapath.userspace.bursts import Layout, Layouts, shape_of
from xfrmpy.datapath.userspace.forwarding import (
    Elsewhere,
    Forwarder,
    InClear,
    Refusal,
    Refused,
    Way,
    refused_by_system,
)
from xfrmpy.datapath.userspace.neighbours import Kind, Neighbours
from xfrmpy.datapath.userspace.raw import RawSockets
from xfrmpy.datapath.userspace.segments import BadOffload, complete
from xfrmpy.datapath.userspace.sending import UdpSender
from xfrmpy.datapath.userspace.trains import MIN_TRAIN, Train, Trains
from xfrmpy.datapath.userspace.tun import Tun
from xfrmpy.datapath.userspace.turns import Readable, Turn
from xfrmpy.datapath.userspace.virtio import COMPLETE, Offload, Segments
from xfrmpy.esp.outer import outer_header
from xfrmpy.esp.packet import Run
from xfrmpy.esp.transport import traffic_class_of
from xfrmpy.ipsec.sad import SadEntry

TURN = 128
"""Packets sent of one device before other descriptors get their turn: about a millisecond."""


class _Batch(NamedTuple):
    """What super-packets have in common that leave together."""

    way: Way
    if_id: int
    traffic_class: int


class Outbound:
    """See the module. `senders` are by the type of an SA's addresses; `guarded` calls, and lets no
    exception out; `lose` is told of a device that somebody has removed.

    `neighbours` are the other workers, if there are any.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        guarded: Callable[[Callable[[], None]], None],
        lose: Callable[[Tun], None],
    ) -> None:
        self.senders: dict[type[IPv4Address] | type[IPv6Address], UdpSender] = {}
        self.raw: RawSockets | None = None
        self.neighbours: Neighbours | None = None
        self._forwarder = forwarder
        self._guarded = guarded
        self._lose = lose
        self._layouts = Layouts()
        self._layout: Layout | None = None
        self._batch: _Batch | None = None  # Of what was added to the layout.
        self._trains = Trains(forwarder.form_of)
        self._train: Train | None = None

    @staticmethod
    def turn(readable: Readable) -> Turn:
        """Of one device."""
        return Turn(readable, TURN)

    def carry(self, tun: Tun, if_id: int, turn: Turn) -> None:
        """What is to be read, one packet or a turn's worth. Raises as `protect`."""
        if self._layout is None and turn.is_single():
            # What is likely to be alone goes the shortest way, but for a super-packet, which waits.
            self._train = None
            try:
                packet, offload = tun.read()
            except OSError as error:
                self._note_failure(error, tun)
                return
            if offload is COMPLETE:
                self.protect(packet, if_id, is_alone=True)
                return
            self._carry(packet, offload, if_id)
            if self._batch is None:
                self.flush()
                return
        self._carry_turn(tun, if_id, turn)

    def _carry_turn(self, tun: Tun, if_id: int, turn: Turn) -> None:
        """A turn's worth of packets, and more where super-packets wait for others: they are the
        cheaper, the more of them are sealed and sent together."""
        done, size = 0, turn.begin()
        try:
            while done < size or (self._batch is not None and done < TURN):
                done += self._carry_next(tun, if_id, size - done)
        except OSError as error:
            self._note_failure(error, tun)
        finally:
            turn.end(done)
            self.flush()

    def _note_failure(self, error: OSError, tun: Tun) -> None:
        """Of a device that was to be read."""
        if isinstance(error, BlockingIOError):  # There is no packet.
            return
        self._forwarder.refused["tun-read"] += 1
        if error.errno == errno.EBADFD:  # It does not come back, and is readable for ever.
            self._lose(tun)

    def flush(self) -> None:
        self._send_batch()
        for sender in self.senders.values():
            sender.flush()

    def _carry_next(self, tun: Tun, if_id: int, most: int) -> int:
        """One packet or super-packet, or as many packets of one size as there are, up to `most`;
        returns how many leave. It is read as the one before was laid out, for a stream has
        super-packets of one shape."""
        layout = self._layout
        if layout is None:
            if most < MIN_TRAIN:
                self._train = None
            elif self._train is not None:
                return self._carry_train(self._train, tun, if_id, most)
            packet, offload = tun.read()
            if most >= MIN_TRAIN:
                self._train = self._trains.after(packet, offload, if_id)
            if offload is not COMPLETE:
                return self._carry(packet, offload, if_id)
            self._guarded(partial(self.protect, packet, if_id))
            return 1
        size = tun.read_into(layout.next_places())
        offload, head = layout.offload, layout.headers
        payload = size - layout.shape.headers
        way = self._forwarder.way_of(head, if_id)
        if (
            way is None
            or way[0].form != layout.form
            or payload <= layout.shape.segment
            or shape_of(head, offload) != layout.shape
        ):
            return self._carry(layout.gather(size), offload, if_id)
        return self._add(layout, payload, _Batch(way, if_id, traffic_class_of(head)))

    def _carry(self, packet: bytes, offload: Offload, if_id: int) -> int:
        """Of one that was read whole."""
        self._send_batch()
        self._layout = None
        if offload.segments != Segments.NONE:
            shape = shape_of(packet, offload)
            way = self._forwarder.way_of(packet, if_id) if shape is not None else None
            form = None if way is None else way[0].form
            if shape and way and form and len(packet) > shape.headers + shape.segment:
                self._layout = layout = self._layouts.of(shape, form)
                layout.scatter(packet, offload)
                batch = _Batch(way, if_id, traffic_class_of(packet))
                return self._add(layout, len(packet) - shape.headers, batch)
        return self._carry_each(packet, offload, if_id)

    def _add(self, layout: Layout, payload: int, batch: _Batch) -> int:
        """A super-packet that was read into the layout. It leaves with those before it, if their
        outer headers are the same, and with the next `flush` at the latest."""
        if self._batch is not None and self._batch != batch:
            self._send_batch()
        self._batch = batch
        count = layout.add(payload)
        if layout.is_full:
            self._send_batch()
        return count

    def _send_batch(self) -> None:
        layout, batch = self._layout, self._batch
        if layout is None or batch is None:
            return
        self._batch = None
        now = time.monotonic()
        run = self._forwarder.take_run(batch.way, layout.count, layout.octets, now)
        if run is None:
            for packet, offload in layout.withdraw():
                self._carry_each(packet, offload, batch.if_id)
        else:
            self._guarded(partial(self._send_run, layout, run, batch.way[0].entry))

    def _carry_train(self, train: Train, tun: Tun, if_id: int, most: int) -> int:
        """Raises `BlockingIOError` if there is no packet."""
        count, odd = 0, None
        try:
            while count < min(most, train.room):
                size = tun.read_into(train.parts[count])
                if size != train.size:
                    odd = train.gather(count, size), train.offload(count)
                    break
                count += 1
        except BlockingIOError:
            if not count:
                raise
        for begin, end in train.streaks(count):
            self._carry_streak(train, begin, end, if_id)
        if odd is None:
            return count
        self._train = self._trains.after(*odd, if_id)
        return count + self._carry(*odd, if_id)

    def _carry_streak(self, train: Train, begin: int, end: int, if_id: int) -> None:
        found, count = None, end - begin
        if count >= MIN_TRAIN and train.is_fit(begin):
            head, octets = train.packet(begin), count * train.size
            if self._forwarder.form_of(head, if_id) == train.form:
                found = self._forwarder.run_of(head, count, octets, time.monotonic(), if_id)
            else:
                self._train = None
        if found is not None:
            self._guarded(partial(self._send_streak, train, begin, end, *found))
            return
        for number in range(begin, end):
            self._carry(train.packet(number), train.offload(number), if_id)

    def _send_streak(self, train: Train, begin: int, end: int, run: Run, entry: SadEntry) -> None:
        fields, has_df = outer_header(train.packet(begin), entry)
        sealed = train.seal(begin, end, run)
        sender = self._sender_for(entry)
        sender.send_run(sealed, train.stride, entry, fields, has_df=has_df)

    def _carry_each(self, packet: bytes, offload: Offload, if_id: int) -> int:
        if self.neighbours is not None and offload.segments != Segments.NONE:
            worker = self._forwarder.worker_of(packet, if_id)
            if worker is not None:
                self._guarded(partial(self._hand, worker, if_id, [packet], offload))
                return 1
        return self._complete(packet, offload, if_id)

    def _complete(self, packet: bytes, offload: Offload, if_id: int) -> int:
        try:
            packets = complete(packet, offload)
        except BadOffload:
            self._forwarder.refused[Refusal.BAD_OFFLOAD] += 1
            return 1
        for each in packets:
            self._guarded(partial(self.protect, each, if_id))
        return len(packets)

    def _send_run(self, layout: Layout, run: Run, entry: SadEntry) -> None:
        head, rest = layout.head, layout.rest
        sealed = layout.seal(run)
        sender = self._sender_for(entry)
        # What an outer header has may depend on the length of the inner packet, too.
        fields, has_df = outer_header(head.ljust(len(head) + layout.shape.segment), entry)
        last = (len(sealed) - 1) // layout.stride * layout.stride
        last_df = outer_header(head.ljust(len(head) + rest), entry)[1]
        end = len(sealed) if last_df is has_df else last
        sender.send_run(sealed[:end], layout.stride, entry, fields, has_df=has_df)
        if end == last:
            sender.send_run(sealed[last:], layout.stride, entry, fields, has_df=last_df)

    def protect(self, packet: bytes, if_id: int, *, is_alone: bool = False) -> None:
        """One packet, which leaves with the next `flush` at the latest, or now if it `is_alone`.

        Raises `Refused` and `Waits`.
        """
        try:
            sealed, entry = self._forwarder.protect(packet, time.monotonic(), if_id)
        except InClear as exempt:
            self.send_in_clear(exempt.packets)
            return
        except Elsewhere as elsewhere:
            self._hand(elsewhere.worker, if_id, elsewhere.packets, COMPLETE)
            return
        fields, has_df = outer_header(packet, entry)
        if entry.encapsulation is not None:
            sender = self.senders.get(type(entry.source)) or self._sender_for(entry)
            send = sender.send_one if is_alone else sender.add
            send(sealed, entry, fields, has_df=has_df)
            return
        try:
            self._raw_sockets.send(sealed, entry, fields, has_df)
        except OSError as error:
            raise refused_by_system("raw-send", error) from error

    def carry_handed(self, packet: bytes, offload: Offload, if_id: int) -> None:
        """A packet that another worker has read and that is ours."""
        self._carry(packet, offload, if_id)

    def _hand(self, worker: int, if_id: int, packets: list[bytes], offload: Offload) -> None:
        """To the worker whose it is. Raises `Refused`."""
        assert self.neighbours is not None, "only a neighbour has an SA that is elsewhere"
        for packet in packets:
            self.neighbours.hand(worker, Kind.OUTBOUND, if_id, offload, [packet])

    def send_in_clear(self, packets: list[bytes]) -> None:
        """Raises `Refused`."""
        try:
            for packet in packets:
                self._raw_sockets.send_in_clear(packet)
        except OSError as error:
            raise refused_by_system("clear-send", error) from error

    def _sender_for(self, entry: SadEntry) -> UdpSender:
        sender = self.senders.get(type(entry.source))
        if sender is None:
            raise Refused("no-udp-socket")
        return sender

    @property
    def _raw_sockets(self) -> RawSockets:
        assert self.raw is not None, "without a device there are no packets"
        return self.raw
