"""A tunnel's policy changes while it is up: what becomes of the IKE SAs and Child SAs there are.

What a change takes is told by `policy.changes`. A Child SA is marked, and made to follow as soon as
nothing else is being done with it (`duties`). Where other traffic is to be carried, the new Child
SA is made before the old one is deleted, so that nothing goes in clear in between.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xfrmpy.ike.child_sa import ChildSa
from xfrmpy.ike.core import Core
from xfrmpy.ike.inquiries import revoked_meanwhile
from xfrmpy.ike.lifetimes import replacement_seconds
from xfrmpy.ike.modes import policy_between
from xfrmpy.ike.resources import is_surplus
from xfrmpy.ike.states import ChildSaState, IkeSaState
from xfrmpy.ike.traps import follow_policy
from xfrmpy.ipsec.selectors import covered_by
from xfrmpy.policy.changes import Impact, child_impact, compare_tunnels
from xfrmpy.policy.model import ChildPolicy, TunnelPolicy

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

PATIENCE_SECONDS = 5.0
"""How long an original responder leaves it to the peer, which may have been told the same, to make
a further Child SA: both at once would make two."""

LAST_CHILD_SECONDS = 2 * PATIENCE_SECONDS
"""How long the last Child SA of an IKE SA outlives its policy: the peer is told a little later."""

_STEADY = ChildSaState.INSTALLED
_HALF_OPEN = (IkeSaState.INITIATING, IkeSaState.AUTHENTICATING)


def reconfigure(core: Core, policy: TunnelPolicy, now: float) -> None:
    """Have a tunnel follow a policy, and what is up of it too, short of taking it down.

    Impacts up to REAUTH. What is half-open began under the old policy, and ends.
    """
    before = core.tunnels[policy.name].policy
    core.tunnels[policy.name].policy = policy
    core.tunnels_changed()
    follow_policy(core, policy.name)
    found = core.ike_sas_of(policy.name)
    core.touched.update(found)
    core.changed.update(sa.our_spi for sa in found)
    for sa in found:
        if sa.state in _HALF_OPEN:
            sa.terminate(None, now)
    for sa in found:
        if sa.state is IkeSaState.ESTABLISHED:
            _adopt(sa, before, policy, now)


def is_unsettled(sa: IkeSa, now: float) -> bool:
    """Whether an IKE SA is on its way to what its policy says, or to its end."""
    waits = (
        sa.rekey_at,
        sa.reauth_at,
        sa.create_at,
        sa.widen_at,
        *(c.rekey_at for c in sa.children),
    )
    return (
        sa.state is not IkeSaState.ESTABLISHED
        or sa.replaces is not None
        or not sa.channel.window.is_idle
        or any(child.is_outdated or child.state is not _STEADY for child in sa.children)
        or any(moment is not None and moment <= now + PATIENCE_SECONDS for moment in waits)
    )


def conform_at(sa: IkeSa, child: ChildSa) -> float | None:
    """When a Child SA of an older policy can follow the present one, or go; None if not now.

    The last one of an IKE SA, which would end with it, waits a while for those that are to come.
    """
    if child.outdated_at is None or child.state is not _STEADY:
        return None
    policy = _present_policy(sa, child)
    if policy is None:
        is_last = not any(other is not child and other.is_in_use for other in sa.children)
        return child.outdated_at + (LAST_CHILD_SECONDS if is_last else 0.0)
    if is_displaced(child, policy) and not _has_replacement(sa, child, policy):
        return None
    return child.outdated_at


def conform(sa: IkeSa, child: ChildSa, now: float) -> None:
    """Have it follow, or go."""
    policy = _present_policy(sa, child)
    goes = policy is None or is_displaced(child, policy)
    child.outdated_at = None
    if policy is None or goes or is_surplus(sa, child, policy.per_resource):
        child.move_to(ChildSaState.DELETING)
        return
    seconds = policy.lifetime_seconds
    # What it carries is as it should be, or it would go.
    before = replace(child.policy, local=policy.local, remote=policy.remote)
    if not sa.is_client:  # Who called rekeys for another number of them, or both would.
        before = replace(before, per_resource=policy.per_resource)
    if child_impact(before, policy) is Impact.REKEY:
        child.rekey_at = now
    elif seconds is not None and seconds != child.policy.lifetime_seconds:
        due_at = child.established_at + replacement_seconds(seconds, sa.core.random)
        child.rekey_at = min(due_at, child.rekey_at or due_at)
    child.policy = policy


def is_displaced(child: ChildSa, policy: ChildPolicy) -> bool:
    """Whether it carries other traffic than its policy now says, so that another must be made."""
    return (
        child.is_outdated
        and child_impact(child.policy, policy) is Impact.REPLACE
        and not (child.policy.mode is policy.mode and _is_just(child, policy))
    )


def _is_just(child: ChildSa, policy: ChildPolicy) -> bool:
    """Whether it carries what the policy says, all of it and nothing else."""
    return all(
        covered_by(there, wanted) and covered_by(wanted, there)
        for there, wanted in ((child.local, policy.local), (child.remote, policy.remote))
    )


def _present_policy(sa: IkeSa, child: ChildSa) -> ChildPolicy | None:
    """What the tunnel's policy now says of a Child SA, if anything."""
    assert sa.tunnel is not None
    named = (p for p in sa.tunnel.children if p.name == child.policy.name)
    return next((policy_between(policy, sa.path) for policy in named), None)


def _adopt(sa: IkeSa, before: TunnelPolicy, policy: TunnelPolicy, now: float) -> None:
    revoked = revoked_meanwhile(sa, policy)
    if revoked is not None:
        sa.terminate(revoked, now)
        return
    sa.core.unfile(sa)
    sa.belong_to(policy)
    sa.channel.window.schedule = policy.retransmission
    for child in sa.children:
        child.tunnel = policy
    if _needs_proof(before, policy):
        if not _needs_proof(sa.proved or before, policy):
            sa.need_not_reauthenticate()
        elif sa.can_begin_anew:
            sa.reauth_at = now
            return  # The new IKE SA has Child SAs of the new policy.
    if policy.lifetime_seconds not in (None, before.lifetime_seconds):
        sa.limit_life(policy.lifetime_seconds, now)
    if policy.reauth_seconds not in (None, before.reauth_seconds):
        sa.limit_authentication(policy.reauth_seconds, now)
    if policy.proposals != before.proposals:
        sa.rekey_at = now
    for child in sa.children:
        child.outdated_at = now
    sa.refused_scopes = frozenset()
    sa.filled = ()
    sa.asks_pairs = False
    sa.demand.restrict_to(sa.children, policy)
    sa.create_at = now if sa.is_client else now + PATIENCE_SECONDS


def _needs_proof(before: TunnelPolicy, after: TunnelPolicy) -> bool:
    """Whether it takes another authentication to get from one policy to the other."""
    differences = compare_tunnels(before, after).differences
    return any(d.impact is Impact.REAUTH for d in differences)


def _has_replacement(sa: IkeSa, child: ChildSa, policy: ChildPolicy) -> bool:
    return any(c is not child and c.policy == policy and c.is_in_use for c in sa.children)
