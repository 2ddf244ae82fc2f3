"""The SAs in force in a worker: how far each has got, its limits, and where its peer was seen.

RFC 4301 section 4.4.2 and RFC 4303 section 3.3.3. No packets, which are the forwarder's, and no
clock. What the daemon should know of an SA becomes an event.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import TypeAlias

from xfrmpy.datapath.interface import DatapathError, Event, Expired, MappingChanged
from xfrmpy.datapath.userspace.ledger import Ledger, Line, fingerprint
from xfrmpy.esp.ah import InboundAh, OutboundAh
from xfrmpy.esp.packet import InboundSa, OutboundSa
from xfrmpy.ipsec.addresses import SocketAddress
from xfrmpy.ipsec.sad import USERSPACE_SPI_BIT, Direction, Mode, SadEntry, SaId, Usage
from xfrmpy.registry import ProtocolId

MAPPING_SECONDS = 5.0
"""How often the same new address of a peer is told, as long as the SA is not updated to it."""

Inbound: TypeAlias = InboundSa | InboundAh
Outbound: TypeAlias = OutboundSa | OutboundAh


class Held:
    """An SA with the moments that its user wants to know."""

    __slots__ = (
        "due_at",
        "installed_at",
        "is_plain",
        "is_soft_reported",
        "note",
        "own_source",
        "sa",
        "told_source",
        "used_at",
    )

    def __init__(self, sa: Inbound | Outbound, line: Line) -> None:
        """It goes on where it has got to by its `line` in the ledger."""
        progress, self.used_at = line.read()
        sa.resume(progress)
        self.sa = sa
        self.note = line.note
        self.installed_at = line.installed_at
        self.is_soft_reported = False
        self.due_at = inf  # When the next limit by time is reached.
        self.is_plain = _is_plain(sa.entry)
        self.own_source: SocketAddress | None = None  # As the entry has it, once it was seen.
        self.told_source: tuple[SocketAddress, float] | None = None

    @property
    def takes_runs(self) -> bool:
        """Whether several packets may be sealed at once, as far as the suite lets them."""
        return self.is_plain and self.sa.entry.encapsulation is not None

    def is_due(self, now: float) -> bool:
        """Whether its hard limit by time is reached."""
        seconds = self.sa.entry.lifetime.hard_seconds
        return seconds is not None and now >= self.installed_at + seconds


class Sad:
    """See the module. `changed` is called when packets may have another way out than before.

    How far each SA has got is in the `ledger`: one that is added again goes on from there.
    """

    def __init__(
        self,
        random: Callable[[int], bytes],
        ledger: Ledger,
        events: deque[Event],
        changed: Callable[[], None],
    ) -> None:
        self.outbound: dict[int, list[tuple[Outbound, Held]]] = {}
        """By reqid; the newest is the last."""
        self._random = random
        self._ledger = ledger
        self._events = events
        self._changed = changed
        self._held: dict[SaId, Held] = {}
        self.inbound: dict[bytes, tuple[Inbound, Held]] = {}
        """By SPI, which for AH has the protocol behind it (`ah_key`)."""
        self._limits: list[tuple[float, int, SaId]] = []
        self._serial = count()

    def __len__(self) -> int:
        return len(self._held)

    @property
    def entries(self) -> tuple[SadEntry, ...]:
        return tuple(held.sa.entry for held in self._held.values())

    def add(self, entry: SadEntry, now: float) -> None:
        """Raises `DatapathError` for an entry that is there already, or not for us."""
        if entry.id in self._held:
            raise DatapathError(f"{entry.id} is in force already", errno.EEXIST)
        if entry.direction is Direction.IN:
            self._add_inbound(entry, now)
        else:
            outbound: Outbound
            if entry.protocol is ProtocolId.AH:
                outbound = OutboundAh(entry)
            else:
                outbound = OutboundSa(entry, self._random)
            self._held[entry.id] = self._hold(outbound, now)
            self._changed()
            self.outbound.setdefault(entry.reqid, []).append((outbound, self._held[entry.id]))
        self._expect_limit(self._held[entry.id])

    def _add_inbound(self, entry: SadEntry, now: float) -> None:
        if not entry.spi & USERSPACE_SPI_BIT:
            raise DatapathError(f"SPI 0x{entry.spi:08x} is not of the userspace datapath's half")
        if _inbound_key(entry) in self.inbound:
            raise DatapathError(f"SPI 0x{entry.spi:08x} is in force already", errno.EEXIST)
        inbound = InboundAh(entry) if entry.protocol is ProtocolId.AH else InboundSa(entry)
        self._held[entry.id] = self._hold(inbound, now)
        self.inbound[_inbound_key(entry)] = (inbound, self._held[entry.id])

    def _hold(self, sa: Inbound | Outbound, now: float) -> Held:
        return Held(sa, self._ledger.line_of(sa.entry, now))

    def is_resumable(self, entry: SadEntry) -> bool:
        """Whether an SA that is not in force could go on where it was."""
        return entry.id not in self._held and fingerprint(entry) in self._ledger

    def update(self, entry: SadEntry) -> None:
        """As `move`, for the SA of the same id."""
        self.move(entry.id, entry)

    def move(self, sa: SaId, entry: SadEntry) -> None:
        """New addresses, ports and lifetimes; keys, counters and window stay.

        Raises `DatapathError` for no such SA, and for anything else that would change.
        """
        held = self._find(sa)
        old = held.sa.entry
        changed = replace(
            old,
            source=entry.source,
            destination=entry.destination,
            encapsulation=entry.encapsulation,
            lifetime=entry.lifetime,
        )
        if entry != changed:
            raise DatapathError(f"{sa} cannot become another SA", errno.EINVAL)
        if entry.id != sa and entry.id in self._held:
            raise DatapathError(f"{entry.id} is in force already", errno.EEXIST)
        if entry.lifetime != old.lifetime:
            held.is_soft_reported = False
        self._changed()
        held.sa.become(entry)
        held.own_source = None
        self._held[entry.id] = self._held.pop(sa)
        self._expect_limit(held)

    def remove(self, sa: SaId) -> None:
        held = self._held.pop(sa, None)
        if held is None:
            return
        entry = held.sa.entry
        self._ledger.strike(entry)
        if entry.direction is Direction.IN:
            del self.inbound[_inbound_key(entry)]
            return
        self._changed()
        left = [pair for pair in self.outbound[entry.reqid] if pair[1] is not held]
        self.outbound[entry.reqid] = left
        if not left:
            del self.outbound[entry.reqid]

    def clear(self) -> None:
        for table in (self._held, self.inbound, self.outbound, self._limits):
            table.clear()
        self._ledger.clear()
        self._changed()

    def usage(self, sa: SaId, now: float) -> Usage:
        return self._find(sa).sa.usage(self.seconds_idle(sa, now))

    def seconds_idle(self, sa: SaId, now: float) -> float | None:
        """Since the last packet; None if there was none, or there is no such SA."""
        held = self._held.get(sa)
        return None if held is None or held.used_at is None else now - held.used_at

    def seconds_old(self, sa: SaId, now: float) -> float | None:
        """Since it was put in force; None if there is no such SA."""
        held = self._held.get(sa)
        return None if held is None else now - held.installed_at

    def _find(self, sa: SaId) -> Held:
        if sa not in self._held:
            raise DatapathError(f"{sa} is not in force", errno.ESRCH)
        return self._held[sa]

    # Where its peer is.

    def note_source(self, held: Held, source: SocketAddress, now: float) -> None:
        if source is held.own_source and held.told_source is None:
            return
        entry = held.sa.entry
        if entry.encapsulation is None:  # No NAT is known of that would forget a mapping.
            return
        old = SocketAddress(entry.source, entry.encapsulation.source_port)
        if source == old:
            held.own_source, held.told_source = source, None
            return
        told, at = held.told_source or (old, now)
        if source == told and now < at + MAPPING_SECONDS:
            return
        held.told_source = (source, now)
        self._events.append(MappingChanged(sa=entry.id, reqid=entry.reqid, old=old, new=source))

    # Lifetimes.

    def expire(self, now: float) -> None:
        """Report soft limits, and take out what is past a hard one, by time."""
        due: list[Held] = []
        while self._limits and self._limits[0][0] <= now:
            held = self._held.get(heappop(self._limits)[2])
            if held is not None:
                due.append(held)
        for held in due:
            self.check_limits(held, now)
            self._expect_limit(held)

    def remind(self) -> None:
        """Tell again of the SAs past a soft limit: whoever was told may have died of it since."""
        for held in self._held.values():
            if held.is_soft_reported:
                self._expired(held, hard=False)

    def _expect_limit(self, held: Held) -> None:
        """Be there when its next limit is reached; a moment that is out of date does no harm."""
        life = held.sa.entry.lifetime
        seconds = (None if held.is_soft_reported else life.soft_seconds, life.hard_seconds)
        next_seconds = min((s for s in seconds if s), default=None)
        held.due_at = inf
        if next_seconds is not None:
            held.due_at = held.installed_at + next_seconds
            heappush(self._limits, (held.due_at, next(self._serial), held.sa.entry.id))

    def note_use(self, held: Held, now: float) -> None:
        """Before what it has sealed leaves, and with what it has opened."""
        held.used_at, sa = now, held.sa
        held.note(sa.sequence, sa.octets, sa.packets, now)
        if sa.leeway <= 0 or now >= held.due_at:
            self.check_limits(held, now)

    def check_limits(self, held: Held, now: float) -> None:
        sa, life, age = held.sa, held.sa.entry.lifetime, now - held.installed_at
        if sa.is_past_hard_limit or (life.hard_seconds and age >= life.hard_seconds):
            self._expired(held, hard=True)
            self.remove(sa.entry.id)
        elif not held.is_soft_reported and (
            sa.is_past_soft_limit or (life.soft_seconds and age >= life.soft_seconds)
        ):
            held.is_soft_reported = True
            self._expired(held, hard=False)
        if sa.leeway <= 0:
            sa.look_ahead()

    def _expired(self, held: Held, *, hard: bool) -> None:
        entry = held.sa.entry
        self._events.append(Expired(sa=entry.id, reqid=entry.reqid, hard=hard))


def _is_plain(entry: SadEntry) -> bool:
    """Whether nothing but sealing is to be done with a packet: no header taken off, no compression,
    no hiding of its length. None of that changes with an update."""
    is_esp = entry.protocol is ProtocolId.ESP
    return is_esp and entry.mode is Mode.TUNNEL and entry.cpi is None and not entry.tfc


def ah_key(spi: bytes) -> bytes:
    """What AH's SAs are found by. Of whatever is no SPI, it is none of ESP's, either."""
    return spi + b" of AH"


def _inbound_key(entry: SadEntry) -> bytes:
    """RFC 4301 section 4.1: the SPI "in conjunction with the IPsec protocol type" specifies an SA.

    The destination is left out, for SPIs are of our choice and no two SAs have the same one.
    """
    spi = entry.spi.to_bytes(4, "big")
    return ah_key(spi) if entry.protocol is ProtocolId.AH else spi
