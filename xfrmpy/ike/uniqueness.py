"""One tunnel, one IKE SA: what happens when there are two.

RFC 7296 section 2.8 deliberately allows parallel SAs, but two ends that begin at the same moment,
or a peer that has forgotten us, leave an IKE SA that nobody wants. Both stay for a while, for the
peer may be about to delete one itself, as after a reauthentication; then the two ends must close
the same one, each for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfrmpy.ike.collisions import survives
from xfrmpy.ike.informational import LivenessCheck
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ike.succession import is_awaited, leave

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

OURS_SECONDS, THEIRS_SECONDS = 3.0, 10.0
"""How long a surplus IKE SA stays: one that we began, and one whose initiator may end it first."""

CROSSING_SECONDS, REPETITION_SECONDS = 120.0, 5.0
"""IKE SAs that the two ends began, or one end twice, are of one moment if not farther apart: the
ends need not have seen them in one order, so the nonces decide. Else the newer one stays."""


def expect_one(sa: IkeSa, now: float) -> None:
    """A new IKE SA is established: see to it that it will be the only one."""
    if _is_enforced(sa) and _others(sa):
        sa.alone_at = now + (OURS_SECONDS if sa.is_initiator else THEIRS_SECONDS)


def close_surplus(sa: IkeSa, now: float) -> None:
    """Of this IKE SA and each other of its tunnel, end the one that is not to stay."""
    sa.alone_at = None
    for other in _others(sa):
        winner, loser = (sa, other) if _stays(sa, other) else (other, sa)
        if not _is_known_to_peer(winner):
            if winner.channel.window.is_idle:
                winner.start(LivenessCheck(winner), now)
            sa.alone_at = now + OURS_SECONDS
        elif is_awaited(winner, loser, now):
            sa.alone_at = now + OURS_SECONDS
        elif loser.is_initiator or now >= _latest(sa, other) + THEIRS_SECONDS:
            leave(loser, now)
        else:
            sa.alone_at = _latest(sa, other) + THEIRS_SECONDS
        if loser is sa:
            return


def _is_enforced(sa: IkeSa) -> bool:
    return sa.tunnel is not None and sa.tunnel.tells_apart


def _is_known_to_peer(sa: IkeSa) -> bool:
    """Whether the peer has an IKE SA too.

    That an initiator has got our last answer, nothing tells but that it goes on; until then it has
    only the other. And one that has begun anew may have lost what was made before.
    """
    if sa.doubted_until is not None:
        return False
    return sa.is_initiator or sa.heard_at > sa.established_at


def _others(sa: IkeSa) -> list[IkeSa]:
    return [
        other
        for other in sa.core.ike_sas_of(sa.tunnel_name)
        if other is not sa
        and other.state is IkeSaState.ESTABLISHED
        and other.remote_id == sa.remote_id
        and any(child.is_in_use for child in other.children)
    ]


def _stays(one: IkeSa, other: IkeSa) -> bool:
    apart = abs(one.established_at - other.established_at)
    same_initiator = one.is_initiator == other.is_initiator
    if apart > (REPETITION_SECONDS if same_initiator else CROSSING_SECONDS):
        return one.established_at > other.established_at
    return survives(one.nonces, other.nonces)


def _latest(one: IkeSa, other: IkeSa) -> float:
    return max(one.established_at, other.established_at)
