"""Shunts: traffic that no tunnel is asked about, because it passes in clear or not at all.

Read RFC 4301 section 4.4.1 first: BYPASS and DISCARD beside PROTECT, in an order. A shunt comes
before every tunnel unless its `priority` says otherwise; of two of the same priority that overlap,
nothing says which holds, so they are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.selectors import Selector, meet, selectors_between
from xfrmpy.ipsec.spd import (
    Action,
    PolicyDirection,
    SpdEntry,
    beyond_rules,
    default_exceptions,
    entries_inside,
    shunt_entries,
)
from xfrmpy.policy.model import DatapathChoice, Shunt, TunnelPolicy
from xfrmpy.policy.resolve import EVERYTHING, Place
from xfrmpy.policy.schema.shunts import ShuntKeys
from xfrmpy.policy.values import DEFAULT_DIRECTIONS


def resolve_shunt(name: str, keys: ShuntKeys, place: Place) -> Shunt | None:
    """The shunt of a map of keys; or None, with an error for each reason."""
    if keys.default is not None:
        return _resolve_default(name, keys, keys.default, place)
    before = len(place.findings.errors)
    for key, example in (("action", "drop"), ("remote", "PREFIX")):
        if getattr(keys, key) is None:
            place.error("XF1005", (), f"'{key}' is missing", f"{key}: {example}", at_key=True)
    local, remote = tuple(keys.local or EVERYTHING), tuple(keys.remote or ())
    if remote and not any(meet(ours, theirs) for ours in local for theirs in remote):
        message = "'local' and 'remote' have no address family and protocol in common"
        place.error("XF1004", ("remote",), message)
    if len(place.findings.errors) > before or keys.action is None:
        return None
    return Shunt(
        name=name,
        origin=f"{place.findings.file}:{place.node.key_mark.line}",
        action=Action.DISCARD if keys.action == "drop" else Action.BYPASS,
        local=local,
        remote=remote,
        priority=keys.priority,
    )


def _resolve_default(
    name: str, keys: ShuntKeys, directions: tuple[PolicyDirection, ...], place: Place
) -> Shunt | None:
    before = len(place.findings.errors)
    for key in ("local", "remote", "priority"):
        if getattr(keys, key) is not None:
            message = f"'{key}' and 'default' exclude each other: the rest has no {key}"
            place.error("XF1004", (key,), message)
    if keys.action != "drop":
        message = "'default' goes with 'action: drop': what nothing names passes by itself"
        place.error("XF1004", (), message, at_key=True)
    if len(place.findings.errors) > before:
        return None
    return Shunt(
        name=name,
        origin=f"{place.findings.file}:{place.node.key_mark.line}",
        action=Action.DISCARD,
        local=(),
        remote=(),
        default=directions,
    )


def with_inside(shunts: Sequence[Shunt], tunnels: Iterable[TunnelPolicy]) -> tuple[Shunt, ...]:
    """A default knows what bypasses and these tunnels carry for the hosts behind this one.

    Not of tunnels with an interface or a mark, where routes or rules say what that is. What has an
    entry of its own in an SPD is left to that.
    """
    outbound = {entry.selector: entry.action for shunt in shunts for entry in _outbound(shunt)}
    bypasses = (each for each, action in outbound.items() if action is Action.BYPASS)
    carried = dict.fromkeys((*_selectors_of(tunnels), *bypasses))
    named = carried.keys() | outbound.keys()
    inside = tuple(each for each in carried if each.reversed() not in named)
    return tuple(replace(each, inside=inside) if each.default else each for each in shunts)


def entries_of(shunts: Iterable[Shunt]) -> tuple[SpdEntry, ...]:
    """What shunts are in an SPD; of a default, what passes in spite of it."""
    return tuple(
        entry
        for shunt in shunts
        for entry in (
            (*default_exceptions(), *entries_inside(shunt.inside, shunt.default))
            if shunt.default
            else shunt_entries(
                local=shunt.local,
                remote=shunt.remote,
                action=shunt.action,
                priority=shunt.priority,
            )
        )
    )


def blocked_by_default(shunts: Iterable[Shunt]) -> frozenset[PolicyDirection]:
    """The directions in which nothing passes that no entry of an SPD matches."""
    return frozenset(direction for shunt in shunts for direction in shunt.default)


def bypassed(shunts: Iterable[Shunt]) -> tuple[Selector, ...]:
    """What they let through in clear, as it leaves."""
    return tuple(
        entry.selector
        for entry in entries_of(shunt for shunt in shunts if shunt.action is Action.BYPASS)
        if entry.direction is PolicyDirection.OUT
    )


def lets_through(shunt: Shunt, local: IpAddress, remote: IpAddress) -> bool:
    """Whether some packets between two addresses pass by it in clear."""
    return shunt.action is Action.BYPASS and _is_between(shunt, local, remote)


def _is_between(shunt: Shunt, local: IpAddress, remote: IpAddress) -> bool:
    return any(s.has(local) for s in shunt.local) and any(s.has(remote) for s in shunt.remote)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuntChange:
    """What happens to one shunt; `before` is None if it is new, `after` if it goes."""

    before: Shunt | None
    after: Shunt | None

    @property
    def name(self) -> str:
        shunt = self.after or self.before
        assert shunt is not None
        return shunt.name

    def cuts(self, local: IpAddress, remote: IpAddress) -> bool:
        """Whether packets between two addresses may be dropped from now on.

        Of a default, those that neither a tunnel nor another shunt is about.
        """
        after = self.after
        if after is not None and after.default:
            added = {*after.default} - {*(self.before.default if self.before else ())}
            return bool(added - {PolicyDirection.FORWARD})
        return (
            after is not None
            and after.action is Action.DISCARD
            and _is_between(after, local, remote)
        )

    def differences(self) -> Iterator[tuple[str, str, str]]:
        """Each key that has another value, with what it was and what it is to be."""
        before, after = _shown(self.before), _shown(self.after)
        for key in before.keys() | after.keys():
            values = before.get(key, ""), after.get(key, "")
            if values[0] != values[1]:
                yield key, *values


def _shown(shunt: Shunt | None) -> dict[str, str]:
    if shunt is None:
        return {}
    if shunt.default:
        words = (word for word, each in DEFAULT_DIRECTIONS.items() if each in shunt.default)
        inside = ", ".join(map(str, shunt.inside))
        return {"action": "drop", "default": ", ".join(words), "inside": inside}
    return {
        "action": "drop" if shunt.action is Action.DISCARD else "bypass",
        "local": ", ".join(map(str, shunt.local)),
        "remote": ", ".join(map(str, shunt.remote)),
        "priority": "default" if shunt.priority is None else str(shunt.priority),
    }


def compare_shunts(before: Iterable[Shunt], after: Iterable[Shunt]) -> Iterator[ShuntChange]:
    """What changes, by name; where a shunt is written is no difference."""
    old, new = ({shunt.name: shunt for shunt in shunts} for shunts in (before, after))
    for name in sorted(old.keys() | new.keys()):
        change = ShuntChange(before=old.get(name), after=new.get(name))
        if any(change.differences()):
            yield change


@dataclass(frozen=True, slots=True, kw_only=True)
class Impossibility:
    """A shunt, by its number, that cannot be had, and why."""

    shunt: int
    reason: str


def find_impossible(
    shunts: Sequence[Shunt], tunnels: Iterable[TunnelPolicy]
) -> Iterator[Impossibility]:
    """The shunts that need rules of routing which cannot be: see `Datapath.ruled`.

    What `datapath: auto` comes to, only the host knows.
    """
    in_userspace = next((t for t in tunnels if t.datapath is DatapathChoice.USERSPACE), None)
    for number, shunt in enumerate(shunts):
        if shunt.default and in_userspace is not None:
            where = f"beside tunnel '{in_userspace.name}' ({in_userspace.origin}) in user space"
            yield Impossibility(
                shunt=number,
                reason=f"cannot be had {where}: the kernel's default policy would drop what that "
                "carries, too",
            )
        reason = next(filter(None, map(beyond_rules, _outbound(shunt))), "")
        if reason and shunt.action is Action.BYPASS:
            yield Impossibility(shunt=number, reason=f"cannot lead past the tunnels: {reason}")
        elif reason and in_userspace is not None:
            where = f"in user space, where tunnel '{in_userspace.name}' ({in_userspace.origin}) is"
            yield Impossibility(shunt=number, reason=f"cannot be had {where}: {reason}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ambiguity:
    """A shunt, by its number, of whose traffic something else says another thing no less."""

    shunt: int
    what: str
    origin: str
    selector: Selector


def find_ambiguities(
    shunts: Sequence[Shunt], tunnels: Iterable[TunnelPolicy]
) -> Iterator[Ambiguity]:
    """For each shunt one thing that it cannot stand beside, if there is one."""
    outbound = [_outbound(shunt) for shunt in shunts]
    of_tunnels = _selectors_of(tunnels) if shunts else {}
    for number, entries in enumerate(outbound):
        found = next(_rivals(number, shunts, outbound), None)
        for entry in entries:
            tunnel = of_tunnels.get(entry.selector)
            if found is None and tunnel is not None:
                found = Ambiguity(
                    shunt=number,
                    what=f"tunnel '{tunnel.name}'",
                    origin=tunnel.origin,
                    selector=entry.selector,
                )
        if found is not None:
            yield found


def _rivals(
    number: int, shunts: Sequence[Shunt], outbound: Sequence[Sequence[SpdEntry]]
) -> Iterator[Ambiguity]:
    for other in range(number):
        for entry in outbound[number]:
            if any(_clash(entry, theirs) for theirs in outbound[other]):
                yield Ambiguity(
                    shunt=number,
                    what=f"shunt '{shunts[other].name}'",
                    origin=shunts[other].origin,
                    selector=entry.selector,
                )


def _clash(one: SpdEntry, other: SpdEntry) -> bool:
    """Of one selector an SPD has one entry, whatever the priorities."""
    return one.selector == other.selector or (
        one.action is not other.action
        and one.priority == other.priority
        and one.selector.overlaps(other.selector)
    )


def _outbound(shunt: Shunt) -> tuple[SpdEntry, ...]:
    return tuple(e for e in entries_of([shunt]) if e.direction is PolicyDirection.OUT)


def _selectors_of(tunnels: Iterable[TunnelPolicy]) -> dict[Selector, TunnelPolicy]:
    return {
        selector: tunnel
        for tunnel in tunnels
        for child in tunnel.children
        if not child.if_id and child.mark_out is None  # Those stand apart in an SPD.
        for selector in selectors_between(child.local, child.remote)
    }
