"""Which Child SAs of a policy are not there yet, in whole or in part.

Read RFC 7296 section 2.9 first. A responder may narrow what it is offered, and some take one pair
of selectors for a Child SA and no more: then the other pairs are asked for one by one. What was
narrowed within a pair is served: asked again, the peer would say the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from xfrmpy.ike.child_sa import ChildSa, Scope
from xfrmpy.ike.reconfigure import is_displaced
from xfrmpy.ipsec.selectors import meet, narrow_selectors
from xfrmpy.policy.model import ChildPolicy

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa


def next_missing(sa: IkeSa) -> tuple[ChildPolicy, Scope | None] | None:
    """The first child of the policy to ask for; with a scope, only so much of it.

    Those that the peer has refused lately are `postponed`: they do not stand in the others' way.
    """
    assert sa.tunnel is not None
    for policy in sa.tunnel.children:
        if policy.name in sa.postponed or sa.demand.leaves_out(policy):
            continue
        named = (child for child in sa.children if child.policy.name == policy.name)
        there = [child for child in named if not is_displaced(child, policy)]
        if not there and not sa.asks_pairs:
            return policy, None
        for scope in _pairs(policy):
            if scope not in sa.refused_scopes and not any(_serves(c, scope) for c in there):
                return policy, scope
    return None


def _pairs(policy: ChildPolicy) -> Iterator[Scope]:
    """Every pair of selectors between which a packet can go."""
    for local in policy.local:
        for remote in policy.remote:
            if meet(local, remote):
                yield (local,), (remote,)


def _serves(child: ChildSa, scope: Scope) -> bool:
    local, remote = scope
    return bool(narrow_selectors(local, child.local) and narrow_selectors(remote, child.remote))
