"""The state of tunnels as the control socket tells it."""

from __future__ import annotations

from xfrmpy.control.protocol import ChildSaStatus, InterfaceStatus, TunnelStatus
from xfrmpy.daemon.replies import reply_of
from xfrmpy.daemon.totals import Carrier, Totals
from xfrmpy.daemon.tunnel import Tunnel
from xfrmpy.ike.nat import NatSituation
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ike.views import ChildSaView, IkeSaView


def tunnel_status(
    tunnel: Tunnel,
    ike_sas: tuple[IkeSaView, ...],
    totals: Totals | None,
    now: float,
    *,
    is_trapped: bool = False,
    interface: InterfaceStatus | None = None,
) -> TunnelStatus:
    """A tunnel as its operator sees it; of several IKE SAs, the one that carries a Child SA.

    Without `totals` its Child SAs are left out: to read what they have carried takes time. One that
    is down is `waiting` if it `is_trapped`: a packet would bring it up.
    """
    state = tunnel_state(tunnel, ike_sas)
    state = "waiting" if state == "down" and is_trapped else state
    sa = max(ike_sas, key=lambda sa: (bool(sa.children), sa.established_at), default=None)
    policy = tunnel.policy
    failure = tunnel.last_failure if state in {"down", "waiting"} else None
    children = [] if sa is None else sa.children
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
        ppk="" if sa is None else sa.ppk_id,
        ppk_exchange="" if sa is None else sa.ppk_exchange,
        nat="" if sa is None else _nat(sa.nat),
        datapath="" if tunnel.placement.failure else policy.datapath.value,
        datapath_reason=tunnel.placement.reason,
        seconds_up=now - sa.up_since if sa is not None and state == "up" else 0.0,
        spi_i="" if sa is None else sa.spi_i.hex(),
        spi_r="" if sa is None else sa.spi_r.hex(),
        children=[
            _child_status(policy.name, child, totals, now)
            for child in children
            if totals is not None
        ],
        failure=None if failure is None else reply_of(failure),
        interface=interface,
    )


def tunnel_state(tunnel: Tunnel, ike_sas: tuple[IkeSaView, ...]) -> str:
    """`up`, `connecting`, `disconnecting` or `down`."""
    if any(sa.children for sa in ike_sas):
        return "up"
    if tunnel.is_connecting or any(sa.state in _BEGINNING for sa in ike_sas):
        return "connecting"
    return "disconnecting" if any(sa.state is IkeSaState.DELETING for sa in ike_sas) else "down"


_BEGINNING = (IkeSaState.INITIATING, IkeSaState.AUTHENTICATING)


def _child_status(tunnel: str, child: ChildSaView, totals: Totals, now: float) -> ChildSaStatus:
    inbound, outbound = child.entries
    into, out = (
        Carrier(tunnel=tunnel, child=child.child, direction=entry.direction)
        for entry in child.entries
    )
    all_received, all_sent = totals.of(into), totals.of(out)
    received, sent = totals.seen(inbound.id), totals.seen(outbound.id)
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
        worker=inbound.resource,
        cpu=outbound.resource if inbound.resource is None else None,
        total_octets_in=all_received.octets,
        total_octets_out=all_sent.octets,
        total_packets_in=all_received.packets,
        total_packets_out=all_sent.packets,
        total_replayed=all_received.replayed,
        total_integrity_failed=all_received.integrity_failed,
        total_seconds_up=totals.seconds_carrying(into),
    )


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
