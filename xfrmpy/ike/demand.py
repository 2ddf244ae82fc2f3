"""What traffic asks of an IKE SA: which children, and for which packet each.

Read RFC 7296 section 2.9 first: the selectors of the packet come first in what is offered, so that
a responder which narrows leaves it in.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from xfrmpy.ike.child_sa import ChildSa, Scope
from xfrmpy.ike.states import ChildSaState
from xfrmpy.ipsec.selectors import covered_by
from xfrmpy.policy.model import ChildPolicy, StartMode, TunnelPolicy

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

_GOES = (ChildSaState.DELETING, ChildSaState.DELETED)


class Demand:
    """See the module. `packets` are those that wait for their child; `children` the names of those
    that are to be made, None for all of the policy."""

    __slots__ = ("children", "packets")

    def __init__(
        self,
        packets: Iterable[tuple[ChildPolicy, Scope]] = (),
        children: frozenset[str] | None = None,
    ) -> None:
        self.packets = [*packets]
        self.children = children

    def add(self, policy: ChildPolicy, packet: Scope) -> None:
        """One packet of each child is enough until that is there."""
        if all(policy.name != waiting.name for waiting, _ in self.packets):
            self.packets.append((policy, packet))
        if self.children is not None:
            self.children |= {policy.name}

    def leaves_out(self, policy: ChildPolicy) -> bool:
        """Whether nobody has asked for it."""
        return self.children is not None and policy.name not in self.children

    def give_up(self, policy: ChildPolicy) -> None:
        """It cannot be had at present; the next packet will ask for it again."""
        if self.children is not None:
            self.children -= {policy.name}

    def take_over(self, other: Demand) -> None:
        """What another IKE SA was asked for is asked of this one."""
        self.packets += other.packets
        other.packets = []
        self.children = other.children

    def restrict_to(self, children: Iterable[ChildSa], policy: TunnelPolicy) -> None:
        """On demand, what is there is what was asked for; of another tunnel all is wanted."""
        on_demand = policy.start is StartMode.ON_DEMAND
        self.children = frozenset(c.policy.name for c in children) if on_demand else None


def demand_of(policy: TunnelPolicy, packets: dict[str, Scope]) -> Demand:
    """What a new IKE SA is asked for, by packets for children of its policy; all, if by none."""
    wanted = [(child, packets[child.name]) for child in policy.children if child.name in packets]
    return Demand(wanted, frozenset(child.name for child, _ in wanted) if wanted else None)


def take_first_child(sa: IkeSa, tunnel: TunnelPolicy) -> tuple[ChildPolicy, Scope | None]:
    """The child that comes with the IKE SA, with its packet, if it is for one."""
    if sa.demand.packets:
        return sa.demand.packets.pop(0)
    asked = (child for child in tunnel.children if not sa.demand.leaves_out(child))
    return next(asked, tunnel.children[0]), None


def carries(child: ChildSa, policy: str, packet: Scope) -> bool:
    """Whether a packet for a child of this name has its Child SA, or is to have it soon."""
    return (
        child.policy.name == policy
        and child.state not in _GOES
        and covered_by(packet[0], child.local)
        and covered_by(packet[1], child.remote)
    )
