"""Whether the peer lives, and whether a Child SA is used: the datapath is asked before the peer.

Read RFC 7296 section 2.4 first: "receipt of a fresh cryptographically protected message on an IKE
SA or any of its Child SAs ensures liveness of the IKE SA and all of its Child SAs".
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from xfrmpy.failures import Failure
from xfrmpy.ike.child_sa import ChildSa
from xfrmpy.ike.informational import LivenessCheck
from xfrmpy.ike.resources import group_of
from xfrmpy.ike.states import ChildSaState, IkeSaState

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

IDLE_PATIENCE = 3
"""So many times as long a peer may be silent to which we send nothing: nothing of ours is lost if
it is dead, and most tunnels of a large gateway are idle. (Section 2.4 asks for a check "in order to
prevent sending messages to a dead peer".)"""

GRAINS = 10
"""A check waits for the next of so many moments in an interval, and those of many peers for the
same: to ask the datapath, and to wake up, costs more than a check, which nobody waits for. So one
is late by a tenth of the interval at most."""


def liveness_at(sa: IkeSa) -> float | None:
    """When the peer will have been silent for too long, or we must look whether we send to it."""
    assert sa.tunnel is not None
    if not sa.tunnel.dpd_seconds or sa.is_asking_usage:
        return None
    return _patience_ends(sa, max(sa.heard_at, sa.seen_idle_at))


def _patience_ends(sa: IkeSa, since: float, times: int = 1) -> float:
    assert sa.tunnel is not None
    grain = sa.tunnel.dpd_seconds / GRAINS
    return math.ceil((since + times * sa.tunnel.dpd_seconds) / grain) * grain


def check_liveness(sa: IkeSa, now: float) -> None:
    """Ask the datapath what has come in and gone out, and then, if it must be, the peer."""
    sa.is_asking_usage = True
    asked = [sa_id for child in sa.children for sa_id in child.ids]
    sa.core.ask_usage(sa, asked, partial(_ask_peer_if_silent, sa), now)


def ask_peer(sa: IkeSa, now: float) -> None:
    """Whether it still lives, whatever was heard of it before."""
    if sa.state is IkeSaState.ESTABLISHED and sa.channel.window.is_idle:
        sa.start(LivenessCheck(sa), now)


def idle_at(child: ChildSa) -> float | None:
    """When a Child SA will have been without traffic for too long, if that matters."""
    limit = child.policy.inactivity_seconds
    return child.last_used_at + limit if limit and not child.is_asking_usage else None


def check_idleness(sa: IkeSa, child: ChildSa, now: float) -> None:
    """Ask the datapath about both directions, and delete the Child SA if it carried nothing.

    Of several with the same traffic, the kernel chooses which carries a packet: if one is used, all
    are.
    """
    child.is_asking_usage = True
    asked = [sa_id for each in (child, *_group_of(sa, child)) for sa_id in each.ids]
    sa.core.ask_usage(sa, asked, partial(_delete_if_idle, sa, child), now)


def _group_of(sa: IkeSa, child: ChildSa) -> tuple[ChildSa, ...]:
    return group_of(sa, child) if child.is_per_resource else ()


def _ask_peer_if_silent(sa: IkeSa, now: float) -> None:
    sa.is_asking_usage = False
    if sa.state is not IkeSaState.ESTABLISHED:
        return
    heard = (child.last_received_at for child in sa.children)
    sa.heard_at = max(sa.heard_at, *heard, 0.0)
    due_at = liveness_at(sa)
    if due_at is None or due_at > now or not sa.channel.window.is_idle:
        return
    is_in_vain = any(child.last_sent_at > sa.heard_at for child in sa.children)
    if is_in_vain or _patience_ends(sa, sa.heard_at, IDLE_PATIENCE) <= now:
        sa.start(LivenessCheck(sa), now)
    else:
        sa.seen_idle_at = now


def _delete_if_idle(sa: IkeSa, child: ChildSa, now: float) -> None:
    child.is_asking_usage = False
    used = [other.last_used_at for other in _group_of(sa, child)]
    child.last_used_at = max(child.last_used_at, *used, 0.0)
    due_at = idle_at(child)
    if child.state is not ChildSaState.INSTALLED or due_at is None or due_at > now:
        return
    if len(sa.children) > 1:
        child.give_way()
        return
    seconds = child.policy.inactivity_seconds
    summary = f"nothing has passed {child.policy.name} for {seconds:g} seconds"
    sa.terminate(Failure(code="XF2017", summary=summary), now)
