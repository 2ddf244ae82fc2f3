"""What every SA counts, whichever way and in whichever protocol: packets, octets, its limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum

from xfrmpy.esp.replay import ReplayWindow
from xfrmpy.ipsec.sad import SadEntry, Usage

MAX_PACKET = 65535
"""Octets, of any IP packet."""

FAR = 1 << 32
"""Packets: more than need be looked ahead."""


class EspDrop(StrEnum):
    """Why a packet of ESP or AH went no further; each is a counter."""

    TOO_SHORT = "too-short"
    REPLAYED = "replayed"
    NOT_AUTHENTIC = "not-authentic"
    BAD_PADDING = "bad-padding"
    BAD_HEADER = "bad-header"
    DUMMY = "dummy"
    EXPIRED = "expired"


class Dropped(Exception):
    """The packet is dropped, and `reason` counted."""

    def __init__(self, reason: EspDrop) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an SA has got: what another process needs to go on with it.

    `sequence` is the last number that was taken, or the highest that was authentic.
    """

    sequence: int
    octets: int
    packets: int


class Sa(ABC):
    """The counters of one SA, and the limits of its lifetime.

    `leeway` is how many packets it may carry, however large, before a limit must be looked at.
    """

    # The numbers are those of `Sending`, which cannot have slots beside those of a protocol.
    __slots__ = (
        "_esn",
        "_last_sequence",
        "_sequence",
        "entry",
        "integrity_failed",
        "leeway",
        "octets",
        "packets",
        "replayed",
    )

    def __init__(self, entry: SadEntry) -> None:
        self.entry = entry
        self.octets = 0
        self.packets = 0
        self.replayed = 0
        self.integrity_failed = 0
        self.leeway = 0
        self._esn = entry.suite.esn

    @property
    def is_past_soft_limit(self) -> bool:
        life = self.entry.lifetime
        return _reached(self.octets, life.soft_bytes) or _reached(self.packets, life.soft_packets)

    @property
    def is_past_hard_limit(self) -> bool:
        life = self.entry.lifetime
        return _reached(self.octets, life.hard_bytes) or _reached(self.packets, life.hard_packets)

    @property
    @abstractmethod
    def sequence(self) -> int:
        """See `Progress`."""

    def resume(self, progress: Progress) -> None:
        """Go on where another process has got to."""
        self.octets, self.packets = progress.octets, progress.packets

    def become(self, entry: SadEntry) -> None:
        """Go on under other addresses, or with another lifetime."""
        self.entry = entry
        self.leeway = 0

    def look_ahead(self) -> None:
        """Renew `leeway`, of which nothing is left."""
        life = self.entry.lifetime
        packets = (life.soft_packets, life.hard_packets)
        octets = (life.soft_bytes, life.hard_bytes)
        left = [limit - self.packets for limit in packets if limit is not None]
        left += [(limit - self.octets) // MAX_PACKET for limit in octets if limit is not None]
        self.leeway = min(left, default=FAR) - 1

    def has_room(self, packets: int, octets: int) -> bool:
        """Whether it may carry so much more and reach no limit by it."""
        if packets <= self.leeway:
            return True
        life = self.entry.lifetime
        packets += self.packets
        octets += self.octets
        if _reached(octets, life.hard_bytes) or _reached(packets, life.hard_packets):
            return False
        is_soft = _reached(octets, life.soft_bytes) or _reached(packets, life.soft_packets)
        return is_soft is self.is_past_soft_limit

    def usage(self, seconds_idle: float | None) -> Usage:
        return Usage(
            octets=self.octets,
            packets=self.packets,
            replayed=self.replayed,
            integrity_failed=self.integrity_failed,
            seconds_idle=seconds_idle,
        )

    def count(self, octets: int, packets: int = 1) -> None:
        self.octets += octets
        self.packets += packets
        self.leeway -= packets


class Sending(Sa):
    """What outbound SAs of either protocol share. Numbers are taken once and never given back."""

    __slots__ = ()

    def _begin_to_send(self) -> None:
        self._sequence = 0
        self._last_sequence = (1 << (64 if self._esn else 32)) - 1

    @property
    def sequence(self) -> int:
        return self._sequence

    @property
    def is_past_hard_limit(self) -> bool:
        return super().is_past_hard_limit or self._sequence >= self._last_sequence

    def look_ahead(self) -> None:
        super().look_ahead()
        self.leeway = min(self.leeway, self._last_sequence - self._sequence - 1)

    def resume(self, progress: Progress) -> None:
        super().resume(progress)
        self._sequence = progress.sequence


class Receiving(Sa):
    """What inbound SAs of either protocol share."""

    __slots__ = ()

    _window: ReplayWindow

    @property
    def sequence(self) -> int:
        return self._window.highest

    def resume(self, progress: Progress) -> None:
        super().resume(progress)
        self._window.close_up_to(progress.sequence)


def _reached(count: int, limit: int | None) -> bool:
    return limit is not None and count >= limit
