"""Several Child SAs with one traffic, each for a userspace worker of its own (RFC 9611).

Once both ends have said SA_RESOURCE_INFO of the first, either may make more, as many as it has
workers; the one that called begins. They are a group: the same child of the policy, the same
selectors, one reqid; each is rekeyed and deleted by itself. A peer that wants no more says
TS_MAX_QUEUE, and is not asked again by the same IKE SA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfrmpy.ike.child_sa import ChildSa, scope_of
from xfrmpy.ike.errors import PeerIncompatible
from xfrmpy.ike.modes import Traffic
from xfrmpy.ike.states import ChildSaState
from xfrmpy.policy.model import ChildPolicy
from xfrmpy.registry import NotifyType

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

PATIENCE_SECONDS = 5.0
"""How long an end leaves it to the other, which has made one, to make more. What then is missing
for its own workers it makes itself; both at once might make too many."""

_HERE = frozenset({ChildSaState.CREATING, ChildSaState.INSTALLED, ChildSaState.REKEYING})


def group_of(sa: IkeSa, child: ChildSa) -> tuple[ChildSa, ...]:
    """The others of an IKE SA that carry the traffic of one, each lineage once."""
    return tuple(
        other
        for other in sa.children
        if other is not child
        and other.policy.name == child.policy.name
        and scope_of(other) == scope_of(child)
        and other.state in _HERE
        and not other.is_outdated
        and not _is_heir(other, sa)
    )


def per_resource_kin(sa: IkeSa, policy: ChildPolicy) -> tuple[ChildSa, ...]:
    """Those whose workers need no other of this child."""
    return tuple(c for c in sa.children if c.is_per_resource and c.policy.name == policy.name)


def _is_heir(child: ChildSa, sa: IkeSa) -> bool:
    """Whether it stands beside the one whose place it is to take."""
    old = child.replaces
    return old is not None and old in sa.children and old.state in _HERE


def check_group_asked(sa: IkeSa, child: ChildSa, traffic: Traffic) -> None:
    """A responder's view of one more. Raises `PeerIncompatible` if there are enough."""
    there, most = len(group_of(sa, child)), max(1, child.policy.per_resource)
    if not traffic.is_per_resource or there < most:
        return
    raise PeerIncompatible.of(
        "XF2032",
        f"the peer wants more Child SAs of {child.policy.name}",
        NotifyType.TS_MAX_QUEUE,
        evidence=(("there are", str(there)), ("we accept", str(most))),
    )


def expect_more(sa: IkeSa, child: ChildSa, now: float) -> None:
    """One is in force: see to it that there will be as many as we have workers."""
    if _wants_more(sa, child):
        sa.widen_at = now if child.is_initiator else now + PATIENCE_SECONDS
        sa.core.touched.add(sa)


def next_to_widen(sa: IkeSa) -> ChildSa | None:
    """One that is not there for every worker of ours."""
    return next((c for c in sa.children if c.is_in_use and _wants_more(sa, c)), None)


def is_surplus(sa: IkeSa, child: ChildSa, most: int) -> bool:
    """Whether policy allows no more than `most`, without this one. Who called tidies up: what both
    ends delete at once might be all of them."""
    there = len(group_of(sa, child))
    return sa.is_client and there >= max(1, most)


def _wants_more(sa: IkeSa, child: ChildSa) -> bool:
    wanted = min(child.policy.per_resource, sa.core.lanes_of(child.tunnel, child.policy))
    is_apt = child.is_per_resource and not child.is_outdated
    return is_apt and child.policy.name not in sa.filled and len(group_of(sa, child)) + 1 < wanted
