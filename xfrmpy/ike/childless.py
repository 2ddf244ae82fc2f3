"""IKE SAs that begin without a Child SA (RFC 6023).

A responder says that it knows of them, and then takes an IKE_AUTH request that has neither SA nor
traffic selectors. An initiator sends one only to such a responder, and if policy says so: then the
first Child SA too has a key exchange of its own. A tunnel is not up by that: it is up when
CREATE_CHILD_SA has made its Child SA, and an IKE SA that stays without one is closed. So is one
whose first Child SA we have refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from xfrmpy.failures import Failure
from xfrmpy.ike.exchange import only
from xfrmpy.ike.modes import Traffic, choose_child, ends_of
from xfrmpy.policy.model import ChildPolicy
from xfrmpy.registry import NotifyType
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload, SaPayload, TsiPayload, TsrPayload

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa
    from xfrmpy.policy.model import TunnelPolicy

CHILDLESS_SECONDS = 30.0
"""How long an IKE SA may be without a Child SA: as long as a half-open one may be half open."""

ChildOffer: TypeAlias = tuple[SaPayload, ChildPolicy, Traffic]


def childless_supported() -> NotifyPayload:
    """For our answer in IKE_SA_INIT."""
    return NotifyPayload(type=NotifyType.CHILDLESS_IKEV2_SUPPORTED)


def begins_childless(sa: IkeSa, tunnel: TunnelPolicy) -> bool:
    """Whether our IKE_AUTH request leaves the Child SA out: policy wants it, the peer knows it."""
    return tunnel.childless and sa.peer_takes_childless


def child_offer(
    sa: IkeSa, tunnel: TunnelPolicy, payloads: tuple[OpenPayload, ...]
) -> ChildOffer | None:
    """The Child SA that an IKE_AUTH request wants, and the child of the policy that it means.

    None if it leaves out all that speaks of one.

    Raises `PeerMisbehaved` if only a part is there.
    """
    if not any(isinstance(p, SaPayload | TsiPayload | TsrPayload) for p in payloads):
        return None
    return only(payloads, SaPayload), *choose_child(tunnel.children, payloads, ends_of(sa))


def close_if_childless(sa: IkeSa, now: float) -> None:
    """The time for a first Child SA is over."""
    sa.childless_until = None
    if not sa.children:
        summary = f"{sa.path.remote} made an IKE SA, and no Child SA in it"
        sa.terminate(Failure(code="XF2023", summary=summary), now)
