"""NAT keepalives: when the mapping of a NAT before us must be refreshed (RFC 3948 section 4).

The core knows when IKE has sent something; whether ESP has, only the datapath knows, and is asked.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from xfrmpy.ike.outputs import SendDatagram
from xfrmpy.ike.states import IkeSaState

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

KEEPALIVE = b"\xff"
"""RFC 3948 section 2.3. It has no non-ESP marker."""

_RECHECK = 4
"""As long as ESP keeps the mapping, it is asked again after this part of the interval: a datapath
may not know more exactly when it sent last."""


def keepalive_at(sa: IkeSa) -> float | None:
    """When nothing will have been sent for too long; None where there is no NAT before us."""
    assert sa.tunnel is not None
    interval = sa.tunnel.nat_keepalive_seconds
    if not sa.nat.ours or not interval or not sa.path.natt or sa.is_asking_sent:
        return None
    return sa.sent_at + interval


def check_keepalive(sa: IkeSa, now: float) -> None:
    """Ask the datapath what it has sent, and send a keepalive if that was nothing."""
    sa.is_asking_sent = True
    asked = [sa_id for child in sa.children for sa_id in child.ids[1:]]
    sa.core.ask_usage(sa, asked, partial(_send_if_idle, sa), now)


def _send_if_idle(sa: IkeSa, now: float) -> None:
    sa.is_asking_sent = False
    if sa.state is not IkeSaState.ESTABLISHED:
        return
    assert sa.tunnel is not None
    interval = sa.tunnel.nat_keepalive_seconds
    sent_at = max([sa.sent_at, *(child.last_sent_at for child in sa.children)])
    if sent_at + interval <= now:
        sa.sent_at = now
        sa.core.emit(SendDatagram(path=sa.path, data=KEEPALIVE))
    else:
        sa.sent_at = min(sent_at, now - interval * (1 - 1 / _RECHECK))
