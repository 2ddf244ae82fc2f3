"""A tunnel's policy and SAs in the words of the control socket, for `xfrmpy describe`."""

from __future__ import annotations

from xfrmpy.control.observed import ChildPolicyStatus, ChildSaDetails, IkeSaDetails, PolicyStatus
from xfrmpy.ike.views import ChildSaView, IkeSaView
from xfrmpy.policy.model import ChildPolicy, TunnelPolicy

_NULL = "null_auth"
"""In the place of a key's origin."""


def policy_status(policy: TunnelPolicy) -> PolicyStatus:
    return PolicyStatus(
        origin=policy.origin,
        start=policy.start.value,
        key_from=_origins(policy),
        ppks=[str(ppk) for ppk in policy.ppks],
        ppk_required=policy.ppk_required,
        proposals=[str(proposal) for proposal in policy.proposals],
        lifetime_seconds=policy.lifetime_seconds,
        reauth_seconds=policy.reauth_seconds,
        dpd_seconds=policy.dpd_seconds,
        children=[_child_policy_status(child) for child in policy.children],
    )


def _origins(policy: TunnelPolicy) -> str:
    """Where the keys are from by which the two ends prove themselves."""
    ours = policy.local_key or policy.shared_key
    theirs = policy.remote_key or policy.remote_authorities or policy.shared_key
    ends = ((policy.local_null, ours), (policy.remote_null, theirs))
    origins = [_NULL if is_null else key.origin if key else "" for is_null, key in ends]
    return ", ".join(dict.fromkeys(filter(None, origins)))


def _child_policy_status(child: ChildPolicy) -> ChildPolicyStatus:
    return ChildPolicyStatus(
        child=child.name,
        mode=child.mode.value,
        local=[str(selector) for selector in child.local],
        remote=[str(selector) for selector in child.remote],
        proposals=[str(proposal) for proposal in child.proposals],
        lifetime_seconds=child.lifetime_seconds,
    )


def ike_sa_details(sa: IkeSaView, now: float) -> IkeSaDetails:
    return IkeSaDetails(
        state=sa.state.name.lower(),
        role="initiator" if sa.is_initiator else "responder",
        suite=sa.suite,
        spi_i=sa.spi_i.hex(),
        spi_r=sa.spi_r.hex(),
        local_address=str(sa.path.local),
        remote_address=str(sa.path.remote),
        seconds_established=max(0.0, now - sa.established_at) if sa.established_at else 0.0,
        rekey_in_seconds=_until(sa.rekey_at, now),
        reauth_in_seconds=_until(sa.reauth_at, now),
    )


def child_sa_details(child: ChildSaView, now: float) -> ChildSaDetails:
    inbound = child.entries[0]
    hard = inbound.lifetime.hard_seconds
    return ChildSaDetails(
        child=child.child,
        spi_in=f"0x{inbound.spi:08x}",
        rekey_in_seconds=_until(child.rekey_at, now),
        expires_in_seconds=None if hard is None else _until(child.established_at + hard, now),
    )


def _until(moment: float | None, now: float) -> float | None:
    return None if moment is None else max(0.0, moment - now)
