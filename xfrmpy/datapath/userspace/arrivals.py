"""Protected packets that came together, opened together, and what is to be written of them.

`Forwarder.unprotect` says what becomes of a packet; here the same becomes of several of them for
less. They are opened in place, the replay window moves once, and of a run of segments of one TCP
stream only the first meets the policies, for nothing that a policy looks at differs in the others.
What is no such run goes one by one. No sockets and no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby

from xfrmpy.datapath.userspace.coalescing import Coalescer, Joined
from xfrmpy.datapath.userspace.forwarding import (
    NEXT_HEADER,
    Forwarder,
    Refused,
    check_version,
    with_outer,
)
from xfrmpy.datapath.userspace.pieces import MIN_ROWS, Piece, Stretch, open_piece
from xfrmpy.datapath.userspace.sad import Held
from xfrmpy.datapath.userspace.shares import ALL, Share
from xfrmpy.esp.packet import InboundSa, OpenedRun
from xfrmpy.esp.sa import EspDrop
from xfrmpy.esp.transport import Fields
from xfrmpy.ipsec.addresses import SocketAddress
from xfrmpy.ipsec.sad import Mode, SadEntry


class Arrivals:
    """What has come and is not written yet."""

    def __init__(
        self,
        forwarder: Forwarder,
        share: Share = ALL,
        takes_datagrams: Callable[[int], bool] = lambda _if_id: False,
    ) -> None:
        """`takes_datagrams` says of an `if_id` whether its device takes several as one."""
        self._takes_datagrams = takes_datagrams
        self._share = share
        self._forwarder = forwarder
        self._coalescers: dict[int, Coalescer] = {}

    def take(self) -> Iterator[tuple[int, Joined]]:
        """What is to be written, in its order, each with the `if_id` of the SA that it came by."""
        coalescers, self._coalescers = self._coalescers, {}
        for if_id, coalescer in coalescers.items():
            for joined in coalescer.joined:
                yield if_id, joined

    def add_piece(
        self, piece: Piece, source: SocketAddress, fields: Fields, now: float
    ) -> list[memoryview]:
        """As `add`."""
        if not self._open_piece(piece, source, fields, now):
            return self.add(piece.datagrams, source, fields, now)
        return self.add([piece.rest], source, fields, now) if piece.rest else []

    def add(
        self, datagrams: list[memoryview], source: SocketAddress, fields: Fields, now: float
    ) -> list[memoryview]:
        """Take what came from one place at once, in UDP, one at least; it is overwritten.

        Returns what is not for us: where datagrams of one place come together, the kernel goes by
        the first.
        """
        if self._add_run(datagrams, source, fields, now):  # Almost always, all are of one SA.
            return []
        others: list[memoryview] = []
        for word, grouped in groupby(datagrams, _first_word):
            run = list(grouped)
            if not self._share.has(word):
                others += run
            elif not self._add_run(run, source, fields, now):
                for packet in run:
                    self._add_one(bytes(packet), source, fields, now)
        return others

    def _add_run(
        self, packets: list[memoryview], source: SocketAddress, fields: Fields, now: float
    ) -> bool:
        """Open packets together, if that goes, as it does if they are of one SA."""
        found = self._fast_sa(packets[0])
        run = None if found is None else found[0].open_run(packets)
        if found is None or run is None:
            return False
        self._take_run(run, found[1], source, fields, now)
        return True

    def _open_piece(self, piece: Piece, source: SocketAddress, fields: Fields, now: float) -> bool:
        """The same of those of one size."""
        if piece.count < MIN_ROWS:
            return False
        found = self._fast_sa(piece.octets)
        opened = None if found is None else open_piece(found[0], piece)
        if found is None or opened is None:
            return False
        if isinstance(opened, Stretch):
            self._take_stretch(opened, found[1], source, fields, now)
        else:
            self._take_run(opened, found[1], source, fields, now)
        return True

    def _fast_sa(self, packet: memoryview) -> tuple[InboundSa, Held] | None:
        """That of the packet, if it opens packets that lie together."""
        found = self._forwarder.sad.inbound.get(_first_word(packet))
        if found is None:
            return None
        sa, held = found
        if sa.entry.mode is Mode.TRANSPORT or sa.entry.cpi is not None:
            return None
        return (sa, held) if isinstance(sa, InboundSa) else None

    def _take_run(
        self, run: OpenedRun, held: Held, source: SocketAddress, fields: Fields, now: float
    ) -> None:
        """What was opened of an SA's packets."""
        if run.drops:
            self._forwarder.refused.update(run.drops)
        if run.payloads or EspDrop.DUMMY in run.drops:
            self._forwarder.sad.note_use(held, now)
        entry, accepted = held.sa.entry, 0
        for next_header, packet in run.payloads:
            accepted += self._accept(packet, next_header, entry, fields)[0]
        if accepted:
            self._forwarder.sad.note_source(held, source, now)

    def _take_stretch(
        self, stretch: Stretch, held: Held, source: SocketAddress, fields: Fields, now: float
    ) -> None:
        """The same of packets of which it is known which follow which."""
        self._forwarder.sad.note_use(held, now)
        entry, packets, accepted = held.sa.entry, stretch.packets, 0
        for begin, end in stretch.streaks:
            at = begin
            while at < end:
                is_accepted, joined = self._accept(packets[at], stretch.next_header, entry, fields)
                accepted += is_accepted
                at += 1
                if joined is not None and at < end:
                    at += joined.append_streak(packets[at:end])
        if accepted:
            self._forwarder.sad.note_source(held, source, now)

    def _accept(
        self, packet: memoryview, next_header: int, entry: SadEntry, fields: Fields
    ) -> tuple[bool, Joined | None]:
        """Whether the policies let a packet pass, and what those that follow it may join."""
        coalescer = self._coalescer_of(entry)
        tag = entry, fields.traffic_class, next_header
        joined = coalescer.extend(packet, tag)
        if joined is not None:
            return True, joined
        is_accepted = False
        try:
            inner = bytes(packet)
            check_version(inner, next_header)
            inner = self._forwarder.let_in(inner, entry)
            is_accepted = True
            written = with_outer(inner, entry, fields)
        except Refused as refused:
            self._forwarder.refused[refused.reason] += 1
            return is_accepted, None
        joined = coalescer.start(memoryview(written), tag)
        return True, joined if written is inner else None

    def _add_one(self, packet: bytes, source: SocketAddress, fields: Fields, now: float) -> None:
        try:
            opened, entry = self._forwarder.unprotect(packet, source, now, fields=fields)
        except Refused as refused:
            self._forwarder.refused[refused.reason] += 1
            return
        coalescer, inner = self._coalescer_of(entry), memoryview(opened)
        tag = entry, fields.traffic_class, NEXT_HEADER[opened[0] >> 4]
        if coalescer.extend(inner, tag) is None:
            coalescer.start(inner, tag)

    def _coalescer_of(self, entry: SadEntry) -> Coalescer:
        coalescer = self._coalescers.get(entry.if_id)
        if coalescer is None:
            coalescer = Coalescer(joins_datagrams=self._takes_datagrams(entry.if_id))
            self._coalescers[entry.if_id] = coalescer
        return coalescer


def _first_word(datagram: memoryview) -> bytes:
    return bytes(datagram[:4])
