"""What leads packets to the OUT policies in force, or past our routes: routes, and shunts' rules.

A policy does not choose the way that a packet takes, so a PROTECT entry of tunnel mode has a route
beside it, with the inner MTU, and a BYPASS has a rule. What goes into an interface of a tunnel is
led there by others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.paths import Paths
from xfrmpy.datapath.routes import Routes, Way
from xfrmpy.datapath.shunt_rules import ShuntRules
from xfrmpy.ipsec.addresses import IpNetwork
from xfrmpy.ipsec.drift import Difference, Ends, Finding
from xfrmpy.ipsec.sad import Mode, SadEntry
from xfrmpy.ipsec.spd import Place, SpdEntry


class PolicyWays:
    """See the module. `routes`, `shunts` and `paths` are the caller's, who closes them."""

    def __init__(self, routes: Routes, shunts: ShuntRules, paths: Paths) -> None:
        self._routes = routes
        self._shunts = shunts
        self._paths = paths
        self._routed: dict[Place, SpdEntry] = {}  # those that have a route

    def add(self, added: Sequence[SadEntry | SpdEntry]) -> tuple[int, DatapathError | None]:
        """Lead packets to the policies among them; how many can stay, and why the next cannot."""
        routed: dict[int, SpdEntry] = {}
        failed: dict[int, DatapathError] = {}
        for place, entry in enumerate(added):
            if not isinstance(entry, SpdEntry) or not entry.is_led:
                continue
            try:
                self._set_shunt(entry)
            except DatapathError as error:
                failed[place] = error
                continue
            if entry.template is None or entry.template.mode is Mode.TRANSPORT:
                self._drop_route(entry)  # this one may replace one that had a route
            else:
                routed[place] = entry
        ends = {place: _ends(entry) for place, entry in routed.items()}
        paths = self._paths.find_many(ends.values())
        wanted: dict[int, tuple[IpNetwork, Way]] = {}
        for place, entry in routed.items():
            via, selector = paths[ends[place]], entry.selector
            if isinstance(via, DatapathError):
                failed[place] = via
            else:
                wanted[place] = (selector.destination, Way(local=selector.source, via=via))
        refusals = self._routes.add_many(tuple(wanted.values()))
        for place, refusal in zip(wanted, refusals, strict=True):
            if refusal is None:
                self._note_route(routed[place])
            else:
                failed[place] = refusal
        first = min(failed, default=len(added))
        return first, failed.get(first)

    def remove(self, entry: SpdEntry) -> None:
        if entry.is_led:
            self._drop_route(entry)
            self._shunts.remove(entry)

    def adopt(self, entries: Sequence[SpdEntry]) -> None:
        """Know of those in force since before this process, and mend what leads to them."""
        for entry in entries:
            try:
                self._add_one(entry)
            except DatapathError:  # The way to the peer may be down just now.
                self._routes.claim(entry.selector.destination, local=entry.selector.source)
                self._routed[entry.place] = entry
        self._shunts.claim(entries)
        self._routes.remove_unclaimed()

    def clear(self) -> None:
        self._routes.remove_all()
        self._shunts.clear()
        self._routed.clear()

    def find_amiss(self, others: Iterable[Ends]) -> Iterator[Difference]:
        """Also of the paths between `others`, which have no route of ours."""
        yield from self._paths.find_amiss((*map(_ends, self._routed.values()), *others))
        yield from self._routes.find_amiss()
        yield from self._shunts.find_amiss()

    def mend(self, amiss: Difference) -> None:
        """But for a path: see `follow`."""
        if amiss.finding is Finding.SHUNT_RULES_CHANGED:
            self._shunts.mend()
        else:
            self._routes.mend(amiss)

    def follow(self, ends: Ends) -> None:
        """Go by the path that there is now between two ends. Raises `DatapathError`."""
        for entry in tuple(self._routed.values()):
            if _ends(entry) == ends:
                self._add_one(entry)

    def _add_one(self, entry: SpdEntry) -> None:
        _, reason = self.add([entry])
        if reason is not None:
            raise reason

    def _note_route(self, entry: SpdEntry) -> None:
        if entry.place in self._routed:
            self._routes.remove(entry.selector.destination)  # It counts how often it was added.
        self._routed[entry.place] = entry

    def _set_shunt(self, entry: SpdEntry) -> None:
        """A PROTECT entry may be in the place of one that passed by our routes."""
        if self._shunts.concerns(entry):
            self._shunts.add(entry)
        else:
            self._shunts.remove(entry)

    def _drop_route(self, entry: SpdEntry) -> None:
        if entry.place in self._routed:
            self._routes.remove(entry.selector.destination)
            del self._routed[entry.place]


def _ends(entry: SpdEntry) -> Ends:
    assert entry.template is not None, "only PROTECT entries have a route"
    return entry.template.source, entry.template.destination
