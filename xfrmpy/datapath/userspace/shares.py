"""Which part of the SAs is a worker's, where there are several.

An inbound SA belongs to the worker that its SPI names (`lane_of`), so that the kernel can tell its
packets apart before anybody has read them. The IKE core chooses SPIs so that the SAs of one tunnel
have one lane.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from xfrmpy.ipsec.sad import MAX_RESOURCES, USERSPACE_SPI_BIT, lane_of

MAX_WORKERS = MAX_RESOURCES

FIRST = 0
"""The worker that there always is."""

_WORD = Struct(">I")


@dataclass(frozen=True, slots=True)
class Share:
    """Of the worker number `index` of `count`."""

    index: int = FIRST
    count: int = 1

    def has(self, first_word: bytes) -> bool:
        """Whether an ESP packet that begins like this is for this worker."""
        if len(first_word) != _WORD.size:
            return False
        (spi,) = _WORD.unpack(first_word)
        return bool(spi & USERSPACE_SPI_BIT) and lane_of(spi, self.count) == self.index


ALL = Share()
"""Of the only one."""
