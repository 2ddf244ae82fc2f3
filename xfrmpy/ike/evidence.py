"""What a failure shows of many values: the first few.

A failure may be anybody's doing, and a gateway may have thousands of tunnels.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

MOST_SHOWN = 16


def listed(values: Iterable[object]) -> str:
    """The first of the values; no more of them are looked at."""
    shown = [str(value) for value in islice(values, MOST_SHOWN + 1)]
    return ", ".join(shown if len(shown) <= MOST_SHOWN else [*shown[:MOST_SHOWN], "and more"])
