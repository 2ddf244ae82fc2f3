"""Replacing the SAs of a tunnel at once: somebody asks, or it is to be seen whether it can be."""

from __future__ import annotations

from xfrmpy.daemon.core import Core
from xfrmpy.daemon.tunnel import Tunnel
from xfrmpy.failures import Failure
from xfrmpy.ike.outputs import ChildSaRekeyed, IkeSaRekeyed, SaNotCreated, TunnelClosed
from xfrmpy.policy.model import TunnelPolicy
from xfrmpy.registry import TransformType


def has_forward_secrecy(policy: TunnelPolicy) -> bool:
    """Whether a rekeyed Child SA has a key exchange, which the first one does without."""
    proposals = (proposal for child in policy.children for proposal in child.proposals)
    return any(proposal.of_type(TransformType.KE) for proposal in proposals)


async def replace_sas(tunnel: Tunnel, core: Core) -> Failure | None:
    """Every Child SA, then the IKE SA; returns what the peer or the datapath had against it."""
    return await replace_child_sas(tunnel, core) or await _replace_ike_sas(tunnel, core)


async def replace_child_sas(tunnel: Tunnel, core: Core) -> Failure | None:
    """Every Child SA that is in force."""
    name = tunnel.policy.name
    waiting = sum(len(sa.children) for sa in core.ike_sas(name))
    with tunnel.listen() as reports:
        core.rekey_child_sas(name)
        while waiting:
            match await reports.get():
                case ChildSaRekeyed():
                    waiting -= 1
                case SaNotCreated(failure=failure):
                    return failure
                case TunnelClosed(failure=failure):
                    return failure or _CLOSED
    return None


async def _replace_ike_sas(tunnel: Tunnel, core: Core) -> Failure | None:
    name = tunnel.policy.name
    with tunnel.listen() as reports:
        core.rekey_ike_sas(name)
        while True:
            match await reports.get():
                case IkeSaRekeyed():
                    return None
                case SaNotCreated(failure=failure):
                    return failure
                case TunnelClosed(failure=failure):
                    return failure or _CLOSED


_CLOSED = Failure(code="XF2015", summary="the tunnel was taken down meanwhile")
