"""What an IKE SA does of itself, and when: a list that is asked anew after everything that happens.

Nothing here remembers anything: whatever is due follows from the moments that the IKE SA and its
Child SAs hold. So nothing that waits can be forgotten, and nothing is done without its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from xfrmpy.ike.child_sa import ChildSa
from xfrmpy.ike.childless import close_if_childless
from xfrmpy.ike.collisions import UNSETTLED
from xfrmpy.ike.create_child_sa import CreateChildSa
from xfrmpy.ike.demand import carries
from xfrmpy.ike.first_contact import end_doubted
from xfrmpy.ike.informational import DeleteChildSas
from xfrmpy.ike.keepalive import check_keepalive, keepalive_at
from xfrmpy.ike.lifetimes import RECREATE_SECONDS
from xfrmpy.ike.liveness import check_idleness, check_liveness, idle_at, liveness_at
from xfrmpy.ike.missing import next_missing
from xfrmpy.ike.reconfigure import conform, conform_at
from xfrmpy.ike.rekey_ike_sa import RekeyIkeSa
from xfrmpy.ike.resumption import renew_ticket
from xfrmpy.ike.states import ChildSaState, IkeSaState
from xfrmpy.ike.succession import begin_to_send, is_awaited, leave, supersede
from xfrmpy.ike.uniqueness import close_surplus

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

AT_ONCE = float("-inf")


class Duty(NamedTuple):
    """Something to do `at` a moment; if it `asks`, it waits for room in the window.

    A tuple, for a handful is made for every IKE SA after everything that happens.
    """

    at: float
    do: Callable[[float], None]
    asks: bool = False


def next_duty(sa: IkeSa) -> Duty | None:
    """The earliest of what an IKE SA has to do and can do, if there is anything."""
    can_ask = sa.can_ask
    earliest: Duty | None = None
    for duty in _duties(sa):
        if (can_ask or not duty.asks) and (earliest is None or duty.at < earliest.at):
            earliest = duty
    return earliest


def _duties(sa: IkeSa) -> Iterator[Duty]:
    if sa.state is IkeSaState.ESTABLISHED:
        yield from _of_ike_sa(sa)
        for child in sa.children:
            yield from _of_child(sa, child)
    elif sa.state is IkeSaState.REKEYED and sa.wait_until is not None:
        yield Duty(sa.wait_until, lambda now: leave(sa, now))
    for until, child in sa.retired:
        yield _of_retired(sa, until, child)


def _of_ike_sa(sa: IkeSa) -> Iterator[Duty]:
    if any(child.state is ChildSaState.DELETING and not child.is_told for child in sa.children):
        yield Duty(AT_ONCE, lambda now: sa.start(DeleteChildSas(sa), now), asks=True)
    yield from _of_rivals(sa)
    if sa.demand.packets:
        yield Duty(AT_ONCE, lambda now: _create_wanted(sa, now), asks=True)
    if sa.create_at is not None:
        yield Duty(sa.create_at, lambda now: _create_next(sa, now), asks=True)
    if sa.childless_until is not None:
        yield Duty(sa.childless_until, lambda now: close_if_childless(sa, now))
    if sa.ticket_at is not None:
        yield Duty(sa.ticket_at, lambda now: renew_ticket(sa, now), asks=True)
    if sa.reauth_at is not None:
        yield Duty(sa.reauth_at, lambda now: _reauthenticate(sa, now))
    if not sa.channel.window.is_idle:
        return
    if sa.rekey_at is not None and UNSETTLED.isdisjoint(c.state for c in sa.children):
        yield Duty(sa.rekey_at, lambda now: _rekey(sa, now), asks=True)
    moment = liveness_at(sa)
    if moment is not None:
        yield Duty(moment, lambda now: check_liveness(sa, now), asks=True)
    moment = keepalive_at(sa)
    if moment is not None:
        yield Duty(moment, lambda now: check_keepalive(sa, now))


def _of_rivals(sa: IkeSa) -> Iterator[Duty]:
    """Of one tunnel there may be several IKE SAs, for a while."""
    if sa.alone_at is not None:
        yield Duty(sa.alone_at, lambda now: close_surplus(sa, now))
    if sa.doubted_until is not None:
        yield Duty(sa.doubted_until, lambda now: end_doubted(sa, now))


def _of_child(sa: IkeSa, child: ChildSa) -> Iterator[Duty]:
    moment = conform_at(sa, child)
    if moment is not None:
        yield Duty(moment, lambda now: conform(sa, child, now))
    if child.state is ChildSaState.INSTALLED:
        if child.rekey_at is not None and (child.sends or child.is_lost):
            yield Duty(child.rekey_at, lambda now: _rekey_child(sa, child, now), asks=True)
        if child.wait_until is not None and child.waits_to_send:
            yield Duty(child.wait_until, lambda now: begin_to_send(sa, child, now))
        moment = idle_at(child)
        if moment is not None:
            yield Duty(moment, lambda now: check_idleness(sa, child, now))
    elif child.state is ChildSaState.REKEYED and child.wait_until is not None:
        yield Duty(child.wait_until, lambda _now: child.move_to(ChildSaState.DELETING), asks=True)


def _of_retired(sa: IkeSa, until: float, child: ChildSa) -> Duty:
    def bury(_now: float) -> None:
        sa.retired.remove((until, child))
        sa.core.changed.add(sa.our_spi)
        child.close()

    return Duty(until, bury)


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


def _reauthenticate(sa: IkeSa, now: float) -> None:
    sa.reauth_at = None
    sa.core.reauthenticate(sa, now)


def _rekey(sa: IkeSa, now: float) -> None:
    sa.rekey_at = None
    sa.start(RekeyIkeSa(sa), now)


def _rekey_child(sa: IkeSa, child: ChildSa, now: float) -> None:
    sa.start(CreateChildSa(sa, child.policy, replaces=child), now)
