"""What each Child SA of the policy has carried since the daemon began, through all its rekeyings.

The datapath counts for each SA. What an SA had carried is added up here just before it is removed,
so the totals only ever grow, as Prometheus wants of a counter. Of SAs that an earlier daemon left
in force, all that they have carried belongs to it.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from xfrmpy.datapath.interface import Datapath, DatapathError
from xfrmpy.ike.outputs import AddSa, MoveSa, Output, RemoveSa
from xfrmpy.ike.views import ChildSaView
from xfrmpy.ipsec.sad import Direction, SaId, Usage

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
    """See the module. `now` is a clock that nobody sets. `on_removal` is told what an SA that goes
    has carried in all."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.on_removal: Callable[[SaId, Usage], None] = _nobody
        self._now = now
        self._open: dict[SaId, _Open] = {}
        self._closed: dict[Carrier, Usage] = {}
        self._in_force: defaultdict[Carrier, set[SaId]] = defaultdict(set)
        self._since: dict[Carrier, float] = {}

    def note(self, output: Output, datapath: Datapath) -> None:
        """What is about to be done to a datapath."""
        match output:
            case AddSa():
                direction = output.entry.direction
                carrier = Carrier(tunnel=output.tunnel, child=output.child, direction=direction)
                self._begin(output.entry.id, carrier, datapath, self._now())
            case MoveSa() if output.sa in self._open:
                opened = self._open.pop(output.sa)
                self._open[output.entry.id] = opened
                self._in_force[opened.carrier] ^= {output.sa, output.entry.id}
            case RemoveSa() if output.sa in self._open:
                self._look(output.sa)
                self._put_away(output.sa)

    def adopt(self, tunnel: str, child: ChildSaView, datapath: Datapath) -> None:
        """Know the SAs of a Child SA that came into force without a word here."""
        for entry in child.entries:
            if entry.id not in self._open:
                carrier = Carrier(tunnel=tunnel, child=child.child, direction=entry.direction)
                self._begin(entry.id, carrier, datapath, child.established_at)

    def of(self, carrier: Carrier) -> Usage:
        """All of it, now; also of an SA that was replaced and still receives."""
        for sa in self._in_force.get(carrier, ()):
            self._look(sa)
        return self._sum(carrier)

    def seen(self, sa: SaId) -> Usage:
        """What one SA had carried when it was looked at last, by `of` or `carried`."""
        return self._open[sa].seen if sa in self._open else NOTHING

    def now_of(self, sa: SaId) -> Usage:
        """What one SA has carried."""
        if sa in self._open:
            self._look(sa)
        return self.seen(sa)

    def seconds_carrying(self, carrier: Carrier) -> float:
        """For how long there has been an SA in force without a gap."""
        return self._now() - self._since.get(carrier, self._now())

    def carried(self) -> dict[Carrier, Usage]:
        """All of it, now."""
        for sa in tuple(self._open):
            if not self._look(sa):
                self._put_away(sa)  # It did not come to be, or has ended by itself.
        return {carrier: self._sum(carrier) for carrier in {*self._closed, *self._in_force}}

    def _sum(self, carrier: Carrier) -> Usage:
        total = self._closed.get(carrier, NOTHING)
        for sa in self._in_force.get(carrier, ()):
            total = _sum(total, self._open[sa].seen)
        return total

    def _begin(self, sa: SaId, carrier: Carrier, datapath: Datapath, since: float) -> None:
        if not self._in_force[carrier]:
            self._since[carrier] = since
        self._in_force[carrier].add(sa)
        self._open[sa] = _Open(carrier=carrier, datapath=datapath)

    def _put_away(self, sa: SaId) -> None:
        opened = self._open.pop(sa)
        carrier = opened.carrier
        self._closed[carrier] = _sum(self._closed.get(carrier, NOTHING), opened.seen)
        self._in_force[carrier].discard(sa)
        if not self._in_force[carrier]:
            del self._in_force[carrier], self._since[carrier]
        self.on_removal(sa, opened.seen)

    def _look(self, sa: SaId) -> bool:
        opened = self._open[sa]
        try:
            opened.seen = opened.datapath.usage(sa)
        except DatapathError as error:
            log.debug("no counters for %s: %s", sa, error)
            return False
        return True


def _nobody(_sa: SaId, _usage: Usage) -> None:
    """Nobody wants to know."""


def _sum(one: Usage, other: Usage) -> Usage:
    return Usage(
        octets=one.octets + other.octets,
        packets=one.packets + other.packets,
        replayed=one.replayed + other.replayed,
        integrity_failed=one.integrity_failed + other.integrity_failed,
    )
