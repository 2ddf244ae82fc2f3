"""A restarted daemon takes over what an earlier one has left: its records, and what is in force.

The records are never newer than what is in force, and older by one step at most (`sequence`). What
is in force and stands in no record is surplus, unless an exchange that is repeated now will want it
again: the same keys must not be put in force a second time, for the sequence numbers would begin
anew (RFC 4303 section 3.3.3, RFC 4106 section 3.1). For the same reason an SA that is missing is
lost: the peer is told, and another one is made.

The IKE SAs come back under the policies that were in force, and then follow those of today, as they
would have with the earlier daemon (`reconfigure`). Where a tunnel has to go for that, if only to
come again, its IKE SAs say goodbye; so do those on a port that this daemon has not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from xfrmpy.ike.child_sa import ChildSa
from xfrmpy.ike.comparison import match_sas, move_back, name_of
from xfrmpy.ike.core import Core
from xfrmpy.ike.ike_sa import IkeSa
from xfrmpy.ike.kept_policy import is_policy, read_policies
from xfrmpy.ike.nat import on_our_port
from xfrmpy.ike.outputs import AddSa
from xfrmpy.ike.reconfigure import reconfigure
from xfrmpy.ike.snapshot import read_ike_sas
from xfrmpy.ike.states import ChildSaState, IkeSaState
from xfrmpy.ike.traps import adopt_traps
from xfrmpy.ipsec.sad import Direction, SadEntry, SaId
from xfrmpy.ipsec.spd import Place, SpdEntry
from xfrmpy.policy.changes import Change, compare_tunnels


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """What was taken over, and what of that was in force is wanted; all else of ours is surplus.

    `given_up` is how many IKE SAs are closed because their tunnels are gone or must be made anew;
    `replaced` are those of the latter that were up. `lost` are the SPIs of Child SAs of which
    something was in force no more. `unreadable` has a sentence for each record that was refused.
    """

    ike_sas: int
    child_sas: int
    sad: frozenset[SaId]
    spd: frozenset[Place]
    given_up: int
    replaced: frozenset[str]
    lost: tuple[int, ...]
    unreadable: tuple[str, ...]


def changes_of_policy(core: Core, records: Mapping[bytes, bytes]) -> dict[str, Change]:
    """From the policies that records have to those of today, of the tunnels that have both."""
    kept = read_policies(records)
    return {
        name: compare_tunnels(kept[name].beside(tunnel.policy), tunnel.policy)
        for name, tunnel in core.tunnels.items()
        if name in kept
    }


def restore(
    core: Core,
    records: Mapping[bytes, bytes],
    changes: Mapping[str, Change],
    sad: Iterable[SadEntry],
    spd: Sequence[SpdEntry],
    now: float,
) -> Restored:
    """Fill an endpoint that has no IKE SAs. What is to be done follows as its outputs."""
    followed = {name: change for name, change in changes.items() if not change.takes_down}
    for name, change in followed.items():
        if change.differences and change.before is not None:
            core.tunnels[name].policy = change.before
    of_ike_sas = {name: record for name, record in records.items() if not is_policy(name)}
    ike_sas, given_up, unreadable = read_ike_sas(core, of_ike_sas, followed)
    adopt_traps(core, spd)
    core.authentications = max((sa.authenticated_as for sa in ike_sas), default=0)
    children = tuple(core.children.values())
    _claim_policies(core, ike_sas, spd)
    lost, moving = _compare(core, children, sad)
    for sa in ike_sas:
        core.touched.add(sa)
        _take_stock(sa, lost, now)
    up = [sa.tunnel_name for sa in given_up if sa.state is IkeSaState.ESTABLISHED]
    for sa in given_up:
        _say_goodbye(sa, now)
    for change in followed.values():
        if change.differences and change.after is not None:
            reconfigure(core, change.after, now)
    in_force = [entry.id for child in children for entry in child.in_force]
    return Restored(
        ike_sas=len(ike_sas),
        child_sas=sum(child.sends for child in children),
        sad=frozenset([*in_force, *core.leftovers, *moving]),
        spd=frozenset(addition.entry.place for addition in core.policies.in_force()),
        given_up=len(given_up),
        replaced=frozenset(up) & changes.keys(),
        lost=tuple(lost),
        unreadable=tuple(unreadable),
    )


_ENDING = frozenset({IkeSaState.REKEYED, IkeSaState.DELETING, IkeSaState.DELETED})


def _claim_policies(core: Core, ike_sas: list[IkeSa], spd: Iterable[SpdEntry]) -> None:
    """In the order in which they were claimed at first. What is not in force as it should be is
    asked for: a policy has no sequence numbers, and may come back."""
    claims = [(c.claimed_as, c, sa) for sa in ike_sas for c in sa.children if c.claimed_as]
    for number, child, sa in sorted(claims, key=lambda claim: claim[0]):
        core.policies.count = number
        child.claim_policies(sa.path)
    there = set(spd)
    for addition in core.policies.in_force():
        if addition.entry not in there:
            core.emit(addition)


def _compare(
    core: Core, children: tuple[ChildSa, ...], sad: Iterable[SadEntry]
) -> tuple[dict[int, list[SadEntry]], list[SaId]]:
    """Find every SA of the Child SAs.

    Gives those that are missing, by the Child SA's SPI, and those that go back to where the record
    has them: the next authentic packet will move them again.
    """
    match = match_sas(children, sad)
    lost: dict[int, list[SadEntry]] = {}
    for child, entry in match.missing:
        lost.setdefault(child.spi_in, []).append(entry)
    moving: list[SaId] = []
    for child, there, entry in match.displaced:
        core.emit(move_back(child, there.id, entry))
        moving.append(there.id)
    for child in children:
        if child.state is ChildSaState.INSTALLED and not child.sends:
            # It waited to send, and a step that is in no record may have begun to.
            unrecorded = match.rest.pop(name_of(child.entries[1]), None)
            if unrecorded is not None:
                child.adopt_outbound()
                moving.append(unrecorded.id)
    _keep_leftovers(core, children, tuple(match.rest.values()))
    return lost, moving


def _keep_leftovers(core: Core, children: tuple[ChildSa, ...], rest: tuple[SadEntry, ...]) -> None:
    """What belongs to a Child SA that is being made, by an exchange that is repeated now."""
    creating = {c.spi_in: c for c in children if c.state is ChildSaState.CREATING}
    known = {entry.spi for child in children for entry in child.entries}
    owners = {
        entry.reqid: creating[entry.spi]
        for entry in rest
        if entry.direction is Direction.IN and entry.spi in creating
    }
    for entry in rest:
        owner = owners.get(entry.reqid)
        if owner is not None and entry.spi not in known:
            core.leftovers[entry.id] = AddSa(
                owner=owner.spi_in, tunnel=owner.tunnel.name, child=owner.policy.name, entry=entry
            )


def _take_stock(sa: IkeSa, lost: Mapping[int, list[SadEntry]], now: float) -> None:
    """Put another in the place of what is lost: a rekeying, as the peer would see it any day."""
    if sa.state in _ENDING:  # Its policy may be another now.
        sa.core.changed.add(sa.our_spi)
    for child in (*sa.children, *(child for _, child in sa.retired)):
        if child.spi_in in lost:
            child.lose(lost[child.spi_in], now)


def _say_goodbye(sa: IkeSa, now: float) -> None:
    """Whatever it was about, it ends with a Delete; what is on its way is not heeded any more."""
    sa.core.touched.add(sa)
    sa.is_reported = True
    sa.channel.path = on_our_port(sa.path, sa.core.natt_port)
    if sa.state is not IkeSaState.DELETED:
        sa.state = IkeSaState.ESTABLISHED
        sa.terminate(None, now)
