"""SAs and policies put in force together, a hundred in one exchange with the kernel.

Those before one that is refused stay; it and those behind it are taken back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from xfrmpy.datapath.interface import DatapathError, NotAdded
from xfrmpy.datapath.kernel.compression import Compressions
from xfrmpy.datapath.kernel.per_cpu import bound_reqids, look_again
from xfrmpy.datapath.kernel.sad_in_force import SadInForce
from xfrmpy.datapath.kernel.spd_in_force import SpdInForce
from xfrmpy.datapath.kernel.ways import PolicyWays
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Reply, Request
from xfrmpy.ipsec.sad import SadEntry
from xfrmpy.ipsec.spd import SpdEntry

_PIECE = 100
"""Entries that are put in force, or taken back, together: some twenty tunnels. What more of them
need at a time gets so old that the collector goes through all that there is, again and again."""


class Additions:
    """See the module."""

    def __init__(
        self,
        requests: NetlinkSocket,
        sad: SadInForce,
        spd: SpdInForce,
        compressions: Compressions,
        ways: PolicyWays,
    ) -> None:
        self._requests = requests
        self._sad = sad
        self._spd = spd
        self._compressions = compressions
        self._ways = ways

    def add(self, entries: Sequence[SadEntry | SpdEntry]) -> None:
        """In their order, up to one that is refused. Raises `NotAdded`."""
        for start in range(0, len(entries), _PIECE):
            piece = entries[start : start + _PIECE]
            done, reason = self._add_piece(piece)
            if reason is not None:
                raise NotAdded(start + done, reason) from reason

    def _add_piece(self, piece: Sequence[SadEntry | SpdEntry]) -> tuple[int, DatapathError | None]:
        """How many are in force by it, and why the next is not."""
        indices = [
            self._spd.take_index(entry) if isinstance(entry, SpdEntry) else 0 for entry in piece
        ]
        requests = [*map(self._request, piece, indices)]
        try:
            compressions = self._compressions.add(piece)
            replies = self._requests.exchange(requests)
        except DatapathError as error:  # Nobody knows what was done before it.
            for entry in piece:
                with suppress(DatapathError):
                    self._take_back(entry)
            return 0, error
        concluded, reason = self._conclude(piece, indices, replies, compressions.refused)
        try:
            done, unled = self._ways.add(piece[:concluded])
        except DatapathError as error:
            done, unled = 0, error
        for place in range(done, len(piece)):
            if place < concluded or replies[place].error is None:
                self._take_back(piece[place])
            else:
                self._spd.give_back(indices[place])
        for place, sa in compressions.new.items():
            if place >= done:
                self._compressions.remove(sa)
        with suppress(DatapathError):  # They would go on with the SA that they have.
            look_again(self._requests, bound_reqids(piece[:done]))
        return done, unled or reason

    def _request(self, entry: SadEntry | SpdEntry, index: int) -> Request:
        if isinstance(entry, SadEntry):
            return self._sad.addition(entry)
        return self._spd.addition(entry, index)

    def _conclude(
        self,
        piece: Sequence[SadEntry | SpdEntry],
        indices: Sequence[int],
        replies: Sequence[Reply],
        refused: Mapping[int, DatapathError],
    ) -> tuple[int, DatapathError | None]:
        """How many the kernel has taken, or takes in the place of others of ours."""
        for place, (entry, reply) in enumerate(zip(piece, replies, strict=True)):
            if place in refused:
                return place, refused[place]
            try:
                if isinstance(entry, SadEntry):
                    self._sad.conclude(entry, reply)
                else:
                    self._spd.conclude(entry, indices[place], reply)
            except DatapathError as error:
                return place, error
        return len(piece), None

    def _take_back(self, entry: SadEntry | SpdEntry) -> None:
        if isinstance(entry, SadEntry):
            self._sad.remove(entry.id)
        else:
            self._spd.remove(entry)
