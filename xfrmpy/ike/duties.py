"""What an IKE SA does of itself, and when: a list that is asked anew after everything that happens.

Nothing here remembers anything: whatever is due follows from the moments that the IKE SA and its
Child SAs hold. So nothing that waits can be forgotten, and nothing is done without its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, TypeAlias

from xfrmpy.ike.child_sa import ChildSa, scope_of
from xfrmpy.ike.childless import close_if_childless
from xfrmpy.ike.collisions import UNSETTLED
from xfrmpy.ike.create_child_sa import CreateChildSa
from xfrmpy.ike.demand import carries
from xfrmpy.ike.first_contact import end_doubted
from xfrmpy.ike.followup import expire_unfinished
from xfrmpy.ike.informational import DeleteChildSas
from xfrmpy.ike.keepalive import check_keepalive, keepalive_at
from xfrmpy.ike.lifetimes import RECREATE_SECONDS
from xfrmpy.ike.liveness import check_idleness, check_liveness, idle_at, liveness_at
from xfrmpy.ike.missing import next_missing
from xfrmpy.ike.reconfigure import conform, conform_at
from xfrmpy.ike.rekey_ike_sa import RekeyIkeSa
from xfrmpy.ike.resources import next_to_widen
from xfrmpy.ike.resumption import renew_ticket
from xfrmpy.ike.states import ChildSaState, IkeSaState
from xfrmpy.ike.succession import begin_to_send, is_awaited, leave, supersede
from xfrmpy.ike.uniqueness import close_surplus

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

AT_ONCE = float("-inf")

Duty: TypeAlias = tuple[float, Callable[[float], None], bool]
"""A moment, what is to be done then, and whether that waits for room in the window."""

_INSTALLED = ChildSaState.INSTALLED


def next_duty(sa: IkeSa) -> Duty | None:
    """The earliest of what an IKE SA has to do and can do, if there is anything.

    It is asked for several times with every message: so all that there is stands in one list.
    """
    found = _duties(sa)
    if found and not sa.can_ask:
        found = [duty for duty in found if not duty[2]]
    return min(found, key=itemgetter(0), default=None)


def _duties(sa: IkeSa) -> list[Duty]:
    found: list[Duty] = []
    if sa.state is IkeSaState.ESTABLISHED:
        _add_of_ike_sa(sa, found)
        for child in sa.children:
            _add_of_child(sa, child, found)
    elif sa.state is IkeSaState.REKEYED and sa.wait_until is not None:
        found.append((sa.wait_until, partial(leave, sa), False))
    found += [(u.until, partial(expire_unfinished, sa, u), False) for u in sa.unfinished]
    for until, child in sa.retired:
        found.append((until, partial(_bury, sa, until, child), False))
    return found


def _add_of_ike_sa(sa: IkeSa, found: list[Duty]) -> None:
    moving = [child for child in sa.children if child.state is not _INSTALLED]
    if moving and any(c.state is ChildSaState.DELETING and not c.is_told for c in moving):
        found.append((AT_ONCE, partial(_delete_children, sa), True))
    # Of one tunnel there may be several IKE SAs, for a while.
    if sa.alone_at is not None:
        found.append((sa.alone_at, partial(close_surplus, sa), False))
    if sa.doubted_until is not None:
        found.append((sa.doubted_until, partial(end_doubted, sa), False))
    if sa.demand.packets:
        found.append((AT_ONCE, partial(_create_wanted, sa), True))
    found += [
        (moment, partial(step, sa), True)
        for moment, step in (
            (sa.create_at, _create_next),
            (sa.widen_at, _widen),
            (sa.ticket_at, renew_ticket),
        )
        if moment is not None
    ]
    if sa.childless_until is not None:
        found.append((sa.childless_until, partial(close_if_childless, sa), False))
    if sa.reauth_at is not None:
        found.append((sa.reauth_at, partial(_reauthenticate, sa), False))
    if not sa.channel.window.is_idle:
        return
    is_settled = not moving or UNSETTLED.isdisjoint([child.state for child in moving])
    if sa.rekey_at is not None and is_settled:
        found.append((sa.rekey_at, partial(_rekey, sa), True))
    if (moment := liveness_at(sa)) is not None:
        found.append((moment, partial(check_liveness, sa), True))
    if (moment := keepalive_at(sa)) is not None:
        found.append((moment, partial(check_keepalive, sa), False))


def _add_of_child(sa: IkeSa, child: ChildSa, found: list[Duty]) -> None:
    if child.outdated_at is not None and (moment := conform_at(sa, child)) is not None:
        found.append((moment, partial(conform, sa, child), False))
    if child.state is _INSTALLED:
        if child.rekey_at is not None and (child.is_lost or child.sends):
            found.append((child.rekey_at, partial(_rekey_child, sa, child), True))
        if child.wait_until is not None and child.waits_to_send:
            found.append((child.wait_until, partial(begin_to_send, sa, child), False))
        if (moment := idle_at(child)) is not None:
            found.append((moment, partial(check_idleness, sa, child), False))
    elif child.state is ChildSaState.REKEYED and child.wait_until is not None:
        found.append((child.wait_until, partial(_part_with, child), True))


def _delete_children(sa: IkeSa, now: float) -> None:
    sa.start(DeleteChildSas(sa), now)


def _part_with(child: ChildSa, _now: float) -> None:
    child.move_to(ChildSaState.DELETING)


def _bury(sa: IkeSa, until: float, child: ChildSa, _now: float) -> None:
    sa.retired.remove((until, child))
    sa.core.changed.add(sa.our_spi)
    child.close()


def _create_wanted(sa: IkeSa, now: float) -> None:
    """Begin a Child SA for a packet, unless it has come to be meanwhile."""
    policy, packet = sa.demand.packets.pop(0)
    if not any(carries(child, policy.name, packet) for child in sa.children):
        sa.start(CreateChildSa(sa, policy, packet=packet), now)


def _create_next(sa: IkeSa, now: float) -> None:
    """Begin the first Child SA of the policy that is not there; one after the other.

    With the last of them it can take the place of another IKE SA, and not before: what only that
    one carries would go in clear.
    """
    sa.create_at = None
    missing = next_missing(sa)
    if missing is not None:
        policy, scope = missing
        sa.start(CreateChildSa(sa, policy, scope=scope), now)
        return
    old = sa.replaces
    waits = old is not None and is_awaited(sa, old, now)
    if sa.postponed or waits:
        sa.postponed, sa.create_at = (), now + RECREATE_SECONDS
    if old is not None and not waits:
        supersede(sa, old, now)


def _widen(sa: IkeSa, now: float) -> None:
    """Begin a Child SA beside one that is there, for another worker."""
    sa.widen_at = None
    child = next_to_widen(sa)
    if child is not None:
        sa.start(CreateChildSa(sa, child.policy, scope=scope_of(child)), now)


def _reauthenticate(sa: IkeSa, now: float) -> None:
    sa.reauth_at = None
    sa.core.reauthenticate(sa, now)


def _rekey(sa: IkeSa, now: float) -> None:
    sa.rekey_at = None
    sa.start(RekeyIkeSa(sa), now)


def _rekey_child(sa: IkeSa, child: ChildSa, now: float) -> None:
    sa.start(CreateChildSa(sa, child.policy, replaces=child), now)
