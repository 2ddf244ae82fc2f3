"""The state of tunnels as the control socket tells it."""

from __future__ import annotations

import logging

from xfrmpy.control.protocol import ChildSaStatus, TunnelStatus
from xfrmpy.daemon.interfaces import interface_status
from xfrmpy.daemon.replies import reply_of
from xfrmpy.daemon.tunnel import Tunnel
from xfrmpy.datapath.interface import Datapath, DatapathError
from xfrmpy.ike.nat import NatSituation
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ike.views import ChildSaView, IkeSaView
from xfrmpy.ipsec.sad import SadEntry, Usage

log = logging.getLogger(__name__)


def tunnel_status(
    tunnel: Tunnel, ike_sas: tuple[IkeSaView, ...], datapath: Datapath | None, now: float
) -> TunnelStatus:
    """A tunnel as its operator sees it; of several IKE SAs, the one that carries a Child SA."""
    state = tunnel_state(tunnel, ike_sas)
    sa = max(ike_sas, key=lambda sa: (bool(sa.children), sa.established_at), default=None)
    policy = tunnel.policy
    failure = tunnel.last_failure if state == "down" else None
    children = [] if sa is None or datapath is None else sa.children
    return TunnelStatus(
        name=policy.name,
        state=state,
        peer=", ".join(policy.peers) or "any",
        local_address="" if sa is None else str(sa.path.local),
        remote_address="" if sa is None else str(sa.path.remote),
        local_id=_first(None if sa is None else sa.local_id, policy.local_id),
        remote_id=_first(None if sa is None else sa.remote_id, policy.remote_id),
        role="" if sa is None else ("initiator" if sa.is_initiator else "responder"),
        suite="" if sa is None else sa.suite,
        nat="" if sa is None else _nat(sa.nat),
        datapath="" if tunnel.placement.failure else policy.datapath.value,
        datapath_reason=tunnel.placement.reason,
        seconds_up=now - sa.up_since if sa is not None and state == "up" else 0.0,
        spi_i="" if sa is None else sa.spi_i.hex(),
        spi_r="" if sa is None else sa.spi_r.hex(),
        children=[_child_status(c, datapath, now) for c in children if datapath is not None],
        failure=None if failure is None else reply_of(failure),
        interface=interface_status(policy, datapath),
    )


def tunnel_state(tunnel: Tunnel, ike_sas: tuple[IkeSaView, ...]) -> str:
    """`up`, `connecting`, `disconnecting` or `down`."""
    if any(sa.children for sa in ike_sas):
        return "up"
    if tunnel.is_connecting or any(sa.state in _BEGINNING for sa in ike_sas):
        return "connecting"
    return "disconnecting" if any(sa.state is IkeSaState.DELETING for sa in ike_sas) else "down"


_BEGINNING = (IkeSaState.INITIATING, IkeSaState.AUTHENTICATING)


def _child_status(child: ChildSaView, datapath: Datapath, now: float) -> ChildSaStatus:
    inbound, outbound = child.entries
    received, sent = _usage(datapath, inbound), _usage(datapath, outbound)
    return ChildSaStatus(
        child=child.child,
        spi_in=f"0x{inbound.spi:08x}",
        spi_out=f"0x{outbound.spi:08x}",
        suite=str(inbound.suite),
        mode=inbound.mode.value,
        local=[str(s) for s in child.local],
        remote=[str(s) for s in child.remote],
        octets_in=received.octets,
        octets_out=sent.octets,
        packets_in=received.packets,
        packets_out=sent.packets,
        replayed=received.replayed,
        integrity_failed=received.integrity_failed,
        seconds_up=now - child.established_at,
    )


def _usage(datapath: Datapath, entry: SadEntry) -> Usage:
    try:
        return datapath.usage(entry.id)
    except DatapathError as error:
        log.warning("no counters for %s: %s", entry.id, error)
        return Usage(octets=0, packets=0)


def _nat(nat: NatSituation) -> str:
    parts = [
        word
        for word, holds in (
            ("local", nat.ours),
            ("remote", nat.theirs),
            ("forced", nat.forced),
        )
        if holds
    ]
    return ", ".join(parts) or "none"


def _first(*values: object) -> str:
    return next((str(v) for v in values if v is not None), "")
