"""What each Child SA of the policy has carried since the daemon began, through all its rekeyings.

The datapath counts for each SA. What an SA had carried is added up here just before it is removed,
so the totals only ever grow, as Prometheus wants of a counter.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from xfrmpy.datapath.interface import Datapath, DatapathError
from xfrmpy.ike.outputs import AddSa, MoveSa, Output, RemoveSa
from xfrmpy.ipsec.sad import Direction, SadEntry, SaId, Usage

log = logging.getLogger(__name__)

NOTHING = Usage(octets=0, packets=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Carrier:
    """Whom the traffic of an SA is put down to."""

    tunnel: str
    child: str
    direction: Direction


@dataclass(slots=True, kw_only=True)
class _Open:
    carrier: Carrier
    datapath: Datapath
    seen: Usage = NOTHING


class Totals:
    """See the module."""

    def __init__(self) -> None:
        self._open: dict[SaId, _Open] = {}
        self._closed: dict[Carrier, Usage] = {}

    def note(self, output: Output, datapath: Datapath) -> None:
        """What is about to be done to a datapath."""
        match output:
            case AddSa():
                carrier = _carrier(output, output.entry)
                self._open[output.entry.id] = _Open(carrier=carrier, datapath=datapath)
            case MoveSa() if output.sa in self._open:
                self._open[output.entry.id] = self._open.pop(output.sa)
            case RemoveSa() if output.sa in self._open:
                self._look(output.sa)
                self._put_away(output.sa)

    def carried(self) -> dict[Carrier, Usage]:
        """All of it, now."""
        totals = dict(self._closed)
        for sa, opened in tuple(self._open.items()):
            if not self._look(sa):
                self._put_away(sa)  # It did not come to be, or has ended by itself.
            totals[opened.carrier] = _sum(totals.get(opened.carrier), opened.seen)
        return totals

    def _put_away(self, sa: SaId) -> None:
        opened = self._open.pop(sa)
        self._closed[opened.carrier] = _sum(self._closed.get(opened.carrier), opened.seen)

    def _look(self, sa: SaId) -> bool:
        opened = self._open[sa]
        try:
            opened.seen = opened.datapath.usage(sa)
        except DatapathError as error:
            log.debug("no counters for %s: %s", sa, error)
            return False
        return True


def _carrier(output: AddSa, entry: SadEntry) -> Carrier:
    return Carrier(tunnel=output.tunnel, child=output.child, direction=entry.direction)


def _sum(one: Usage | None, other: Usage) -> Usage:
    if one is None:
        return other
    return Usage(
        octets=one.octets + other.octets,
        packets=one.packets + other.packets,
        replayed=one.replayed + other.replayed,
        integrity_failed=one.integrity_failed + other.integrity_failed,
    )
