"""The anti-replay window of an inbound SA, with and without extended sequence numbers.

Read RFC 4303 section 3.4.3 and appendix A first. Checking and advancing are apart, because the
window may move only after the packet's ICV has been verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from operator import lt

_LOW = 1 << 32
END = 1 << 64


class Replayed(Exception):
    """The sequence number was seen before, or lies left of the window."""


class ReplayWindow:
    """`size` packets back from the highest sequence number that was authentic.

    `seen` has bit n set if `highest - n` has been received.
    """

    __slots__ = ("_mask", "esn", "highest", "seen", "size")

    def __init__(self, size: int, *, esn: bool) -> None:
        self.size = size
        self.esn = esn
        self.highest = 0
        self.seen = 0
        self._mask = (1 << size) - 1

    def close_up_to(self, sequence: int) -> None:
        """Take all up to this number as seen: what was, nobody knows any more."""
        self.highest, self.seen = sequence, self._mask

    def infer(self, low: int) -> int:
        """The whole sequence number whose low 32 bits were in a packet.

        RFC 4303 appendix A2.2: the window tells the high half, for a packet cannot be 2**32 late.
        """
        if not self.esn:
            return low
        high, highest_low = divmod(self.highest, _LOW)
        bottom = highest_low - self.size + 1
        if bottom >= 0:
            return (high if low >= bottom else high + 1) * _LOW + low
        # The window reaches back into the subspace before.
        return (high - 1 if high and low >= bottom + _LOW else high) * _LOW + low

    def infer_run(self, lows: Sequence[int]) -> list[int] | None:
        """The whole numbers of packets that came together, if each is newer than all before it.

        Then none of them is a replay, whichever of the others prove authentic. None if they must be
        looked at one by one.
        """
        first = self.infer(lows[0])
        if len(lows) == 1:
            return [first] if self.highest < first < END else None
        last = self.infer(lows[-1])
        high = first - lows[0]
        is_rising = lows == [*range(lows[0], lows[0] + len(lows))]  # None is missing, mostly.
        is_rising = is_rising or all(map(lt, lows, islice(lows, 1, None)))
        if first <= self.highest or last != high + lows[-1] or last >= END or not is_rising:
            return None
        return [high + low for low in lows]

    def check(self, sequence: int) -> None:
        """Raises `Replayed` for a number that may not be accepted any more."""
        if not 0 < sequence < END:
            raise Replayed
        behind = self.highest - sequence
        if behind >= self.size or (behind >= 0 and self.seen >> behind & 1):
            raise Replayed

    def advance(self, sequence: int) -> bool:
        """Note an authentic packet; tells whether it is the newest so far."""
        ahead = sequence - self.highest
        if ahead <= 0:
            self.seen |= 1 << -ahead
            return False
        self.seen = 1 if ahead >= self.size else (self.seen << ahead | 1) & self._mask
        self.highest = sequence
        return True

    def advance_run(self, sequences: Sequence[int]) -> None:
        """Note the authentic ones, one at least, among what `infer_run` gave."""
        highest = sequences[-1]
        bits = 0
        if highest - sequences[0] == len(sequences) - 1:
            bits = (1 << len(sequences)) - 1
        else:
            for sequence in sequences:
                bits |= 1 << highest - sequence if highest - sequence < self.size else 0
        ahead = highest - self.highest
        seen = self.seen << ahead if ahead < self.size else 0
        self.seen = (seen | bits) & self._mask
        self.highest = highest
