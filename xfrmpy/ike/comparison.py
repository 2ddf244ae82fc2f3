"""What should be in force against what is: the one comparison, at a start and at any time later.

An SA is found by its keys, wherever it leads at the moment. One that is missing is never put back,
for its sequence numbers would begin anew (RFC 4303 section 3.3.3): its Child SA is rekeyed at once.
A policy has none, and may come back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

from xfrmpy.ike.child_sa import ChildSa
from xfrmpy.ike.core import Core
from xfrmpy.ike.outputs import AddPolicy, MoveSa
from xfrmpy.ike.states import ChildSaState
from xfrmpy.ipsec.drift import Difference, Dump, Finding
from xfrmpy.ipsec.marks import are_apart
from xfrmpy.ipsec.sad import SadEntry, SaId
from xfrmpy.ipsec.spd import SpdEntry


@dataclass(slots=True, kw_only=True)
class Match:
    """The SAs of Child SAs found among those in force.

    `missing` are not there; `displaced` are there (the first) otherwise than they should be (the
    second); `rest` is what nobody claims, by its name.
    """

    missing: list[tuple[ChildSa, SadEntry]]
    displaced: list[tuple[ChildSa, SadEntry, SadEntry]]
    rest: dict[tuple[object, ...], SadEntry]


def match_sas(children: Iterable[ChildSa], sad: Iterable[SadEntry]) -> Match:
    """Find every SA that Child SAs have in force; how long it lives is not looked at."""
    match = Match(missing=[], displaced=[], rest={name_of(entry): entry for entry in sad})
    for child in children:
        for entry in child.in_force:
            there = match.rest.pop(name_of(entry), None)
            if there is None:
                match.missing.append((child, entry))
            elif replace(there, lifetime=entry.lifetime) != entry:
                match.displaced.append((child, there, entry))
    return match


def name_of(entry: SadEntry) -> tuple[object, ...]:
    """What an SA is, wherever it leads at the moment."""
    return (entry.direction, entry.protocol, entry.spi, entry.encryption_key, entry.integrity_key)


def find_lost(core: Core, differences: Iterable[Difference]) -> dict[ChildSa, list[SadEntry]]:
    """The Child SAs that have lost SAs, with these."""
    lost: dict[ChildSa, list[SadEntry]] = {}
    for child, difference in _with_holders(core, differences, Finding.SA_MISSING):
        assert isinstance(difference.subject, SadEntry)
        lost.setdefault(child, []).append(difference.subject)
    return lost


def find_moved(core: Core, differences: Iterable[Difference]) -> Iterator[MoveSa]:
    """What moves SAs back that are not where, or how, they were put in force."""
    for child, difference in _with_holders(core, differences, Finding.SA_CHANGED):
        assert isinstance(difference.subject, SadEntry)
        assert difference.there is not None
        yield move_back(child, difference.there, difference.subject)


def _with_holders(
    core: Core, differences: Iterable[Difference], finding: Finding
) -> Iterator[tuple[ChildSa, Difference]]:
    for difference in differences:
        entry = difference.subject
        if difference.finding is finding and isinstance(entry, SadEntry):
            holder = core.holders.get(entry.id)
            if holder is not None:
                yield holder, difference


def is_recovering(child: ChildSa, now: float) -> bool:
    """Whether it has lost an SA, and another Child SA is being made in its place, or is due."""
    is_due = child.rekey_at is not None and child.rekey_at <= now
    return child.is_lost and (is_due or child.state is ChildSaState.REKEYING)


def move_back(child: ChildSa, there: SaId, entry: SadEntry) -> MoveSa:
    """An SA goes to where it should be."""
    return MoveSa(
        owner=child.spi_in,
        tunnel=child.tunnel.name,
        child=child.policy.name,
        sa=there,
        entry=entry,
    )


def compare(core: Core, tunnels: Collection[str], dump: Dump) -> tuple[Difference, ...]:
    """How a datapath differs from what the Child SAs of its tunnels want in force on it."""
    return (*_compare_sas(core, tunnels, dump), *_compare_policies(core, tunnels, dump))


def _compare_sas(core: Core, tunnels: Collection[str], dump: Dump) -> Iterator[Difference]:
    children = [child for child in core.children.values() if child.tunnel.name in tunnels]
    match = match_sas(children, dump.sad)
    for child, entry in match.missing:
        yield _of_child(child, Finding.SA_MISSING, entry)
    for child, there, entry in match.displaced:
        yield replace(_of_child(child, Finding.SA_CHANGED, entry), there=there.id)
    surplus = [entry.id for entry in match.rest.values() if entry.id not in core.leftovers]
    for sa in (*surplus, *dump.strange):
        yield Difference(finding=Finding.SA_SURPLUS, what=f"the SA {sa}", subject=sa)


def _of_child(child: ChildSa, finding: Finding, entry: SadEntry) -> Difference:
    return Difference(
        finding=finding,
        what=f"the {entry.direction}bound SA {entry.id}",
        subject=entry,
        tunnel=child.tunnel.name,
        child=child.policy.name,
    )


def _compare_policies(core: Core, tunnels: Collection[str], dump: Dump) -> Iterator[Difference]:
    there = {entry.place: entry for entry in dump.spd}
    wanted = [policy for policy in core.policies.in_force() if policy.tunnel in tunnels]
    for policy in wanted:
        found = there.pop(policy.entry.place, None)
        if found is None:
            yield _of_policy(policy, Finding.POLICY_MISSING)
        elif found != policy.entry:
            yield _of_policy(policy, Finding.POLICY_CHANGED)
        for other in dump.others:
            if overrules(other, policy.entry):
                yield replace(_of_policy(policy, Finding.POLICY_SHADOWED), subject=other)
                break
    for entry in there.values():
        yield Difference(finding=Finding.POLICY_SURPLUS, what=_name(entry), subject=entry)


def _of_policy(policy: AddPolicy, finding: Finding) -> Difference:
    return Difference(
        finding=finding,
        what=_name(policy.entry),
        subject=policy.entry,
        tunnel=policy.tunnel,
        child=policy.child,
    )


def _name(entry: SpdEntry) -> str:
    return f"the {entry.direction} policy {entry.selector}"


def overrules(other: SpdEntry, ours: SpdEntry) -> bool:
    """Whether packets that we mean meet a policy of another program's before ours."""
    return (
        other.priority < ours.priority
        and other.direction is ours.direction
        and not are_apart(other.mark, ours.mark)
        and other.if_id == ours.if_id
        and other.selector.overlaps(ours.selector)
    )
