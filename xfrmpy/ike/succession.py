"""How an IKE SA takes the place of another: after a rekeying, or after a reauthentication.

Read RFC 7296 sections 2.8, 2.8.2, 2.8.3 and 2.25 first. An IKE SA that is replaced ends without
being news: the tunnel goes on. Its Child SAs move to a rekeyed IKE SA; a reauthenticated one has
its own, and the old ones receive for a while what was on its way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfrmpy.failures import Failure
from xfrmpy.ike.child_sa import ChildSa
from xfrmpy.ike.lifetimes import RECREATE_SECONDS, retry_seconds
from xfrmpy.ike.outputs import IkeSaRekeyed, SaNotCreated
from xfrmpy.ike.states import ChildSaState, IkeSaState
from xfrmpy.ipsec.selectors import covered_by
from xfrmpy.policy.model import StartMode

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

DELETION_PATIENCE_SECONDS = 30.0
"""How long we wait for the peer to delete an IKE SA that it has replaced, before we do."""

OVERLAP_SECONDS = 5.0
"""How long a replaced Child SA still receives: strongSwan's delete_rekeyed_delay is the same."""

INCOMPLETE_SECONDS = RECREATE_SECONDS
"""How long an IKE SA stays because of a Child SA that its successor has not got yet."""

BUSY_PATIENCE_SECONDS = 180.0
"""RFC 7296 section 2.25: a peer that answers TEMPORARY_FAILURE "after several minutes" is out of
step with us, and the IKE SA SHOULD be closed."""


def inherit(new: IkeSa, old: IkeSa) -> None:
    """The Child SAs of a rekeyed IKE SA move to its successor."""
    new.core.touched |= {new, old}
    new.core.changed |= {new.our_spi, old.our_spi}
    new.up_since = old.up_since
    new.create_at, old.create_at = old.create_at, None
    new.widen_at, old.widen_at = old.widen_at, None
    new.replaces, old.replaces = old.replaces, None
    new.children += old.children
    new.retired += old.retired
    new.demand.take_over(old.demand)
    old.children.clear()
    old.retired.clear()
    for other in new.core.ike_sas_of(new.tunnel_name):
        if other.replaces is old:
            other.replaces = new
            new.core.changed.add(other.our_spi)
    _report(new, reauthenticated=False)


def living_heir(sa: IkeSa) -> IkeSa | None:
    """What the peer has made to take its place, unless the peer has undone it already."""
    heir = sa.heir
    return heir if heir is not None and heir.state is IkeSaState.ESTABLISHED else None


def supersede(new: IkeSa, old: IkeSa, now: float) -> None:
    """A reauthenticated IKE SA is complete: the old one is not needed any more."""
    new.core.changed.add(new.our_spi)
    new.up_since = old.up_since
    new.replaces = None
    _report(new, reauthenticated=True)
    leave(old, now)


def is_awaited(new: IkeSa, old: IkeSa, now: float) -> bool:
    """Whether an IKE SA is to have, soon, what only the other one carries: without that it would go
    in clear, or be lost."""
    assert new.tunnel is not None
    wanted = {policy.name for policy in new.tunnel.children}
    carried, there = (
        {child.policy.name for child in sa.children if child.is_in_use} for sa in (old, new)
    )
    is_over = now >= max(new.established_at, old.established_at) + INCOMPLETE_SECONDS
    return not (is_over or carried & wanted <= there)


def leave(sa: IkeSa, now: float) -> None:
    """Tell the peer that we delete what was replaced."""
    if sa.state in (IkeSaState.DELETING, IkeSaState.DELETED):
        return
    sa.is_reported = True
    _retire_children(sa, now)
    sa.bid_farewell(now)


def wait_for_deletion(sa: IkeSa, now: float) -> None:
    """The peer has replaced it, so the peer deletes it."""
    sa.is_reported = True
    sa.move_to(IkeSaState.REKEYED)
    sa.wait_until = now + DELETION_PATIENCE_SECONDS
    sa.core.touched.add(sa)


def deleted_by_peer(sa: IkeSa, now: float) -> None:
    """A Delete of the IKE SA has come, and was answered."""
    heir = living_heir(sa)
    if sa.state is IkeSaState.ESTABLISHED and heir is not None:
        # Section 2.8.2: the peer did not notice our own request, and "the first peer can forget
        # its own rekey attempt".
        inherit(heir, sa)
        sa.is_reported = True
    elif _has_replacement(sa):
        _retire_children(sa, now)
        sa.is_reported = True
    sa.close(Failure(code="XF2011", summary="the peer deleted the IKE SA"), now)


def begin_to_send(sa: IkeSa, child: ChildSa, now: float) -> None:
    """Its initiator has had time for our answer."""
    sa.core.touched.add(sa)
    child.start_sending()
    if child.replaces is None:
        sa.core.defer(sa, lambda moment: _end_if_refused(sa, child, moment), now)


def end_if_mute(sa: IkeSa, child: ChildSa, now: float) -> None:
    """What it replaces goes, and nothing could leave any more if the datapath refuses this one."""
    if child.state is ChildSaState.INSTALLED and not child.sends:
        _end_if_refused(sa, child, now)


def _end_if_refused(sa: IkeSa, child: ChildSa, now: float) -> None:
    if child.failure:
        summary = f"the datapath refused a part of it: {child.failure}"
        sa.terminate(Failure(code="XF3002", summary=summary), now)


def remove_child(sa: IkeSa, child: ChildSa, now: float) -> None:
    """Both ends know that a Child SA is deleted.

    One that we are rekeying stays as it is until we know whether the peer has put another in its
    place: some responders delete what the initiator should, and that may overtake their answer.
    """
    if child.state is ChildSaState.REKEYING and child.heir is None and not child.is_gone:
        child.note_gone()
        return
    sa.children.remove(child)
    if child.is_in_use and child.heir is None and not _is_carried_by_another(sa, child):
        child.close()
        if sa.is_initiator and child.tunnel.start is StartMode.AUTO:
            sa.create_at = now + RECREATE_SECONDS
    else:
        if child.is_in_use and child.heir is None and child.is_per_resource and sa.is_client:
            sa.widen_at = now + RECREATE_SECONDS
        child.retire()
        sa.retired.append((now + OVERLAP_SECONDS, child))


def _is_carried_by_another(sa: IkeSa, child: ChildSa) -> bool:
    """Whether all its traffic has another Child SA by now, so that the rest of it is on its way."""
    return any(
        other.policy.name == child.policy.name
        and other.is_in_use
        and covered_by(child.local, other.local)
        and covered_by(child.remote, other.remote)
        for other in sa.children
    )


def end_if_childless(sa: IkeSa, now: float) -> None:
    """A tunnel is its Child SAs: an IKE SA without any would pass for one that works."""
    if not sa.children and sa.create_at is None:
        sa.terminate(Failure(code="XF2011", summary="the last Child SA is deleted"), now)


def retry_at(sa: IkeSa, now: float) -> float:
    return now + retry_seconds(sa.core.random)


def put_off(sa: IkeSa, now: float) -> None:
    """The peer cannot do just now what we have asked."""
    if sa.busy_since is None:
        sa.busy_since = now
    elif now - sa.busy_since > BUSY_PATIENCE_SECONDS:
        summary = "the peer has been answering TEMPORARY_FAILURE for minutes"
        sa.terminate(Failure(code="XF2016", summary=summary), now)


def cannot_rekey(sa: IkeSa, now: float) -> None:
    """The peer does not rekey as we would: only a new IKE SA gives new keys (section 2.8)."""
    if sa.can_begin_anew:
        sa.reauth_at = now


def report_unreplaced(new: IkeSa, old: IkeSa, failure: Failure | None, now: float) -> None:
    """The IKE SA that was to take another's place ends before it has, and the tunnel goes on."""
    # One that was tried elsewhere is tried again by whoever has found the other place.
    if old.state is IkeSaState.ESTABLISHED and _is_of_same_ends(new, old):
        old.reauth_at = retry_at(old, now)
        old.core.touched.add(old)
    if failure is not None:
        new.core.emit(SaNotCreated(tunnel=new.tunnel_name, child="", failure=failure))


def _is_of_same_ends(one: IkeSa, other: IkeSa) -> bool:
    return (one.path.local.address, one.path.remote.address) == (
        other.path.local.address,
        other.path.remote.address,
    )


def _retire_children(sa: IkeSa, now: float) -> None:
    sa.core.touched.add(sa)
    for other in sa.core.ike_sas_of(sa.tunnel_name):
        waiting = [c for c in other.children if c.waits_to_send and c.replaces is None]
        for child in waiting if other is not sa else ():
            begin_to_send(other, child, now)
    for child in sa.children:
        if child.state is ChildSaState.CREATING:
            child.close()
            continue
        child.retire()
        sa.retired.append((now + OVERLAP_SECONDS, child))
    sa.children.clear()


def _has_replacement(sa: IkeSa) -> bool:
    """Whether another IKE SA with the same peer does the work."""
    return any(
        other is not sa
        and other.remote_id == sa.remote_id
        and other.state is IkeSaState.ESTABLISHED
        and any(child.state in _IN_FORCE for child in other.children)
        for other in sa.core.ike_sas_of(sa.tunnel_name)
    )


_IN_FORCE = frozenset({ChildSaState.INSTALLED, ChildSaState.REKEYING})


def _report(new: IkeSa, *, reauthenticated: bool) -> None:
    new.core.emit(
        IkeSaRekeyed(
            tunnel=new.tunnel_name,
            path=new.path,
            suite=str(new.suite),
            is_initiator=new.is_initiator,
            reauthenticated=reauthenticated,
        )
    )
