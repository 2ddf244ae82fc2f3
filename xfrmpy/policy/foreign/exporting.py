"""A tunnel of ours as its other end is to see it: what `rendering.py` writes."""

from __future__ import annotations

from collections.abc import Iterable

from xfrmpy.ipsec.proposals import FURTHER_KEY_EXCHANGES, Proposal
from xfrmpy.ipsec.sad import Mode
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.foreign.rendering import ForeignChild, ForeignEnd, Unrenderable
from xfrmpy.policy.model import ChildPolicy, StartMode, TunnelPolicy
from xfrmpy.registry import ProtocolId, TransformType


def other_end(tunnel: TunnelPolicy, address: str = "") -> ForeignEnd:
    """The other gateway's view. `address` is ours, by default the one that the policy names.

    Proposals with further key exchanges (ML-KEM, RFC 9370) stay at home where there are others:
    strongSwan before version 6 and libreswan refuse a file that has them. Raises `Unrenderable`.
    """
    if tunnel.interface is not None:
        raise Unrenderable("interface has nothing that stands for it there")
    if tunnel.local_null or tunnel.remote_null:
        raise Unrenderable("null_auth is not carried over: write the other end by hand")
    if tunnel.rounds:
        raise Unrenderable("auth.then is not carried over: write the other end by hand")
    has_eap = tunnel.local_eap is not None or tunnel.remote_eap is not None
    if tunnel.shared_key is None or tunnel.signs or has_eap:
        raise Unrenderable(
            "keys, certificates and EAP are not carried over: write the other end by hand"
        )
    if tunnel.ppk_required:
        raise Unrenderable("ppk is not carried over, and required: write the other end by hand")
    ours = address or (str(tunnel.local_address) if tunnel.local_address is not None else "")
    if not ours:
        raise Unrenderable("no address of this end is known: give --address, or `local_address`")
    theirs = tunnel.peers[0] if tunnel.peers else "%any"
    if tunnel.remote_id is None and not tunnel.peers:
        raise Unrenderable("who the other end is, is not known: it needs `peer` or `peer_id`")
    return ForeignEnd(
        name=tunnel.name,
        our_address=theirs,
        their_address=ours,
        our_id=str(tunnel.remote_id or theirs),
        their_id=str(tunnel.local_id or ours),
        mode=tunnel.children[0].mode.value,
        calls=tunnel.start is StartMode.LISTEN or not tunnel.peers,
        in_udp=tunnel.forces_encapsulation,
        ike=tuple(map(str, _without_further(tunnel.proposals))),
        children=tuple(_child(child) for child in tunnel.children),
        has_ah=tunnel.children[0].protocol == ProtocolId.AH,
        compresses=tunnel.children[0].compresses,
        secret=tunnel.shared_key.octets,
    )


def _child(child: ChildPolicy) -> ForeignChild:
    is_limited = child.mode is not Mode.TRANSPORT or not (
        _is_everything(child.local) and _is_everything(child.remote)
    )
    return ForeignChild(
        name=child.name,
        local=tuple(map(str, child.remote)) if is_limited else (),
        remote=tuple(map(str, child.local)) if is_limited else (),
        esp=tuple(map(str, _with_forward_secrecy(child.proposals))),
    )


def _with_forward_secrecy(proposals: tuple[Proposal, ...]) -> tuple[Proposal, ...]:
    """Those with a key exchange of their own, if some have one: libreswan takes all or none."""
    secrecy = tuple(p for p in proposals if p.of_type(TransformType.KE))
    return _without_further(secrecy or proposals)


def _is_everything(selectors: Iterable[TrafficSelector]) -> bool:
    """What a policy in transport mode means that limits nothing."""
    return {str(each) for each in selectors} == {"0.0.0.0/0", "::/0"}


def _without_further(proposals: tuple[Proposal, ...]) -> tuple[Proposal, ...]:
    plain = tuple(
        p for p in proposals if not any(p.of_type(kind) for kind in FURTHER_KEY_EXCHANGES)
    )
    return plain or proposals
