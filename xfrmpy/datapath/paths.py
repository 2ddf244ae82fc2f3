"""The ways to the peers, as they were when somebody last went by them, to notice that they change.

A path is between two addresses. It changes when another route leads to the peer, or the route's
device gets another MTU, and there is none any more when our own address is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.routes import OuterPath, Routes
from xfrmpy.ipsec.drift import Difference, Ends, Finding
from xfrmpy.ipsec.overhead import inner_mtu
from xfrmpy.ipsec.sad import SadEntry

MAX_MTU = 65535
"""No IP packet is larger, whatever a device says, `lo` for one."""

LEAST_MTU = {4: 576, 6: 1280}
"""Whatever the path is said to be, for anybody may say it: RFC 791 section 3.2 and RFC 8200 section
5. Where it is so narrow, the outer packets are fragmented."""


class Paths:
    """See the module. `Routes` is where they are looked up."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._known: dict[Ends, OuterPath | DatapathError] = {}

    def find(self, ends: Ends) -> OuterPath:
        """The path as it is now, which is remembered. Raises `DatapathError` if there is none."""
        found = self.find_many([ends])[ends]
        if isinstance(found, DatapathError):
            raise found
        return found

    def find_many(self, ends: Iterable[Ends]) -> dict[Ends, OuterPath | DatapathError]:
        """`find` of many, which is cheaper: the path, or why there is none."""
        wanted = tuple(dict.fromkeys(ends))
        found = dict(zip(wanted, self._routes.outer_paths(wanted), strict=True))
        self._known |= found
        return found

    def inner_mtu(self, entry: SadEntry) -> int:
        """What fits through an SA, by the way that its packets take. Raises as `find` does."""
        path = self.find((entry.source, entry.destination))
        return inner_mtu(
            min(max(path.mtu, LEAST_MTU[entry.source.version]), MAX_MTU),
            entry.suite,
            outer_version=entry.source.version,
            encapsulated=entry.encapsulation is not None,
            mode=entry.mode,
        )

    def find_amiss(self, in_use: Iterable[Ends]) -> Iterator[Difference]:
        """Which of those that are used are not as they were; the rest is forgotten."""
        used = set(in_use)
        self._known = {ends: path for ends, path in self._known.items() if ends in used}
        now = self._routes.outer_paths(tuple(used))
        for ends, found in zip(used, now, strict=True):
            if _there_is(found) != _there_is(self._known.get(ends)):
                what = f"the path from {ends[0]} to {ends[1]}"
                yield Difference(finding=Finding.PATH_CHANGED, what=what, subject=ends)


def _there_is(found: OuterPath | DatapathError | None) -> OuterPath | None:
    return found if isinstance(found, OuterPath) else None
