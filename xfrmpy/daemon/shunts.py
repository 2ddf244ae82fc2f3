"""The shunts of the policy, in force on every datapath that has tunnels, or on one if none has.

They belong to nobody's tunnel, so the IKE core knows nothing of them: what a datapath has is
compared here, apart from what the core wants there.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from itertools import product

from xfrmpy.daemon.datapaths import Datapaths
from xfrmpy.datapath.interface import Datapath, DatapathError
from xfrmpy.failures import Failure, OperatorError
from xfrmpy.ipsec.drift import Difference, Dump, Finding
from xfrmpy.ipsec.spd import Place, SpdEntry, beyond_rules
from xfrmpy.policy.model import Shunt
from xfrmpy.policy.shunts import blocked_by_default, entries_of

log = logging.getLogger(__name__)


class Shunts:
    """See the module. `wanted` are those that the policy in force has."""

    def __init__(self, datapaths: Datapaths, wanted: Iterable[Shunt]) -> None:
        self.wanted = tuple(wanted)
        self._datapaths = datapaths
        self._entries = _by_place(self.wanted)

    @property
    def places(self) -> frozenset[Place]:
        """Of the entries that are not the core's, and that no Child SA may have."""
        return frozenset(self._entries)

    def refusal(self, wanted: Iterable[Shunt]) -> Failure | None:
        """Why the datapaths that are open do not take shunts, if they do not: XF3010."""
        wanted = tuple(wanted)
        for datapath in self._datapaths.opened() if blocked_by_default(wanted) else ():
            if reason := datapath.default_policy.refusal():
                summary = f"the {datapath.name} datapath has no default policy"
                return Failure(code="XF3010", summary=summary, evidence=(("because", reason),))
        for datapath, entry in product(self._datapaths.opened(), entries_of(wanted)):
            if entry.action in datapath.ruled and (reason := beyond_rules(entry)):
                summary = f"the {datapath.name} datapath does not take a shunt"
                evidence = ((str(entry.selector), reason),)
                return Failure(code="XF3010", summary=summary, evidence=evidence)
        return None

    def enforce(self) -> None:
        """Put them in force, and on datapaths opened since. Raises `OperatorError` XF3010."""
        self._enforce_all({})

    def follow(self, wanted: Iterable[Shunt]) -> None:
        """Have others in force than before; what is new comes first. Raises `OperatorError`."""
        before, self.wanted = self._entries, tuple(wanted)
        self._entries = _by_place(self.wanted)
        self._enforce_all(before)

    def _enforce_all(self, before: dict[Place, SpdEntry]) -> None:
        if self._entries:
            self._datapaths.open_one()
        if (failure := self.refusal(self.wanted)) is not None:
            raise OperatorError(failure.code, failure.summary, failure.evidence)
        for datapath in self._datapaths.opened():
            self._enforce(datapath, before)

    def _enforce(self, datapath: Datapath, before: dict[Place, SpdEntry]) -> None:
        try:
            dump = datapath.dump()
            there = {entry.place: entry for entry in dump.spd}
            for place, entry in self._entries.items():
                if there.get(place) != entry:
                    datapath.add_policy(entry)
            blocked = blocked_by_default(self.wanted)
            if dump.blocked != blocked:
                datapath.default_policy.set(blocked)
            for place, entry in before.items():
                if place not in self._entries:
                    datapath.remove_policy(entry)
        except DatapathError as error:
            raise OperatorError(
                "XF3010", f"the {datapath.name} datapath does not take the shunts: {error}"
            ) from error

    def part(self, dump: Dump) -> tuple[Dump, tuple[Difference, ...]]:
        """A dump without them, and how they differ from those wanted."""
        there = {e.place: e for e in dump.spd if e.place in self._entries}
        differences: list[Difference] = []
        for place, entry in self._entries.items():
            found = there.get(place)
            if found != entry:
                finding = Finding.POLICY_MISSING if found is None else Finding.POLICY_CHANGED
                what = f"the {entry.direction} shunt {entry.selector}"
                differences.append(Difference(finding=finding, what=what, subject=entry))
        if dump.blocked != blocked_by_default(self.wanted):
            what = "the default policy"
            differences.append(Difference(finding=Finding.DEFAULT_CHANGED, what=what))
        rest = tuple(entry for entry in dump.spd if entry.place not in there)
        return replace(dump, spd=rest), tuple(differences)


def _by_place(shunts: Iterable[Shunt]) -> dict[Place, SpdEntry]:
    return {entry.place: entry for entry in entries_of(shunts)}
