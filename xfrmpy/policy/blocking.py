"""What `on_down: block` keeps from going in clear: the traffic of tunnels, as selectors."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from xfrmpy.ipsec.sad import Mode
from xfrmpy.ipsec.selectors import (
    Selector,
    TrafficSelector,
    narrow_selectors,
    selectors_between,
)
from xfrmpy.policy.model import ChildPolicy, OnDown, TunnelPolicy


def blocked_traffic(policies: Iterable[TunnelPolicy]) -> tuple[Selector, ...]:
    """Each as it leaves this host; all that the policy allows, whatever peers have narrowed."""
    found: dict[Selector, None] = {}
    for policy in policies:
        if policy.on_down is OnDown.BLOCK:
            for child in policy.children:
                found.update(dict.fromkeys(selectors_between(child.local, _remote(policy, child))))
    return tuple(found)


def block_exits(policies: Iterable[TunnelPolicy]) -> frozenset[str]:
    """The interfaces into which what is blocked may go: from there it leaves protected or not."""
    blocked = (policy.interface for policy in policies if policy.on_down is OnDown.BLOCK)
    return frozenset(interface.name for interface in blocked if interface is not None)


def _remote(policy: TunnelPolicy, child: ChildPolicy) -> tuple[TrafficSelector, ...]:
    if policy.interface is not None and policy.interface.routes:
        routed = (
            TrafficSelector(start_address=r.network_address, end_address=r.broadcast_address)
            for r in policy.interface.routes
        )
        return narrow_selectors(routed, child.remote)
    if child.mode is not Mode.TRANSPORT:
        return child.remote
    peers = map(ip_address, policy.peers)
    ends = (TrafficSelector(start_address=peer, end_address=peer) for peer in peers)
    return narrow_selectors(ends, child.remote)
