"""Protected packets that came together, opened together, and what is to be written of them.

`Forwarder.unprotect` says what becomes of a packet; here the same becomes of several of them for
less. They are opened in place, the replay window moves once, and of a run of segments of one TCP
stream only the first meets the policies, for nothing that a policy looks at differs in the others.
What is no such run goes one by one. No sockets and no clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from xfrmpy.datapath.userspace.coalescing import Coalescer, Joined
from xfrmpy.datapath.userspace.forwarding import (
    NEXT_HEADER,
    Forwarder,
    Refused,
    check_version,
    with_outer,
)
from xfrmpy.datapath.userspace.shares import ALL, Share
from xfrmpy.esp.packet import InboundSa, OpenedRun
from xfrmpy.esp.sa import EspDrop
from xfrmpy.esp.transport import Fields
from xfrmpy.ipsec.addresses import SocketAddress
from xfrmpy.ipsec.sad import Mode, SadEntry
from xfrmpy.registry import ProtocolId


class Arrivals:
    """What has come and is not written yet."""

    def __init__(self, forwarder: Forwarder, share: Share = ALL) -> None:
        self._share = share
        self._forwarder = forwarder
        self._coalescers: dict[int, Coalescer] = {}

    def take(self) -> Iterator[tuple[int, Joined]]:
        """What is to be written, in its order, each with the `if_id` of the SA that it came by."""
        coalescers, self._coalescers = self._coalescers, {}
        for if_id, coalescer in coalescers.items():
            for joined in coalescer.joined:
                yield if_id, joined

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
        found = self._forwarder.inbound_sa(_first_word(packets[0]), ProtocolId.ESP)
        if found is None or found[0].entry.mode is Mode.TRANSPORT or found[0].entry.cpi is not None:
            return False
        sa, held = found
        run = sa.open_run(packets) if isinstance(sa, InboundSa) else None
        if run is None:
            return False
        if run.drops:
            self._forwarder.refused.update(run.drops)
        if run.payloads or EspDrop.DUMMY in run.drops:
            self._forwarder.note_use(held, now)
        if self._accept(run, sa.entry, fields):
            self._forwarder.note_source(held, source, now)
        return True

    def _accept(self, run: OpenedRun, entry: SadEntry, fields: Fields) -> int:
        """How many of the packets in a run the policies let pass."""
        coalescer, accepted = self._coalescer_of(entry), 0
        for next_header, packet in run.payloads:
            tag = entry, fields.traffic_class, next_header
            if coalescer.extend(packet, tag):
                accepted += 1
                continue
            try:
                inner = bytes(packet)
                check_version(inner, next_header)
                inner = self._forwarder.let_in(inner, entry)
                accepted += 1
                coalescer.start(memoryview(with_outer(inner, entry, fields)), tag)
            except Refused as refused:
                self._forwarder.refused[refused.reason] += 1
        return accepted

    def _add_one(self, packet: bytes, source: SocketAddress, fields: Fields, now: float) -> None:
        try:
            opened, entry = self._forwarder.unprotect(packet, source, now, fields=fields)
        except Refused as refused:
            self._forwarder.refused[refused.reason] += 1
            return
        coalescer, inner = self._coalescer_of(entry), memoryview(opened)
        tag = entry, fields.traffic_class, NEXT_HEADER[opened[0] >> 4]
        if not coalescer.extend(inner, tag):
            coalescer.start(inner, tag)

    def _coalescer_of(self, entry: SadEntry) -> Coalescer:
        coalescer = self._coalescers.get(entry.if_id)
        if coalescer is None:
            coalescer = self._coalescers[entry.if_id] = Coalescer()
        return coalescer


def _first_word(datagram: memoryview) -> bytes:
    return bytes(datagram[:4])
