"""A budget that fills with time: how much may be spent at once, and how much in the long run."""

from __future__ import annotations


class Budget:
    """A token bucket, full at first: `per_second` flows in, and no more than `most` is kept."""

    def __init__(self, *, per_second: float, most: float) -> None:
        self._per_second = per_second
        self.most = most
        self._left = most
        self._counted_at: float | None = None

    def left(self, now: float) -> float:
        """What can be spent now."""
        if self._counted_at is not None:
            self.give_back((now - self._counted_at) * self._per_second)
        self._counted_at = now
        return self._left

    def spend(self, amount: float, now: float) -> bool:
        """Whether there was enough; if not, nothing is spent."""
        if self.left(now) < amount:
            return False
        self._left -= amount
        return True

    def give_back(self, amount: float) -> None:
        """What was spent was well spent, and does not count."""
        self._left = min(self.most, self._left + amount)
