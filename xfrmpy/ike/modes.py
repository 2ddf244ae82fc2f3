"""Tunnel, transport, BEET, IP-TFS: what is asked and answered, and whose addresses selectors mean.

Read RFC 7296 sections 1.3.1 and 2.23.1 first. In transport mode the traffic is that between the two
ends of the IKE SA, so the policy limits protocols and ports, and the addresses are the path's. A
NAT between makes each end see others than the peer has: what the peer sends is put into the
addresses as they are seen here before it is used for anything. BEET mode is a tunnel between one
address and another (draft-nikander-esp-beet-mode); no RFC has a word to ask for it. IP-TFS is RFC
9347, section 5: where policy says so and the peer does not, there is no Child SA, for a plain
tunnel would show what it is to hide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xfrmpy.failures import Failure
from xfrmpy.ike.compression import named_cpi
from xfrmpy.ike.errors import PeerIncompatible, PeerMisbehaved
from xfrmpy.ike.exchange import notifications, only
from xfrmpy.ike.nat import NatSituation
from xfrmpy.ike.resource_info import has_resource_info
from xfrmpy.ipsec.addresses import IpAddress, Path
from xfrmpy.ipsec.sad import InnerEnds, Mode
from xfrmpy.ipsec.selectors import TrafficSelector, covered_by, narrow_selectors
from xfrmpy.policy.model import ChildPolicy, TunnelPolicy
from xfrmpy.registry import NotifyType, ProtocolId
from xfrmpy.wire.payloads import (
    NotifyPayload,
    OpenPayload,
    TsiPayload,
    TsrPayload,
    VendorIdPayload,
)

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

Selectors = tuple[TrafficSelector, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Who is where: the path of the IKE SA, and which ends are behind a NAT."""

    path: Path
    nat: NatSituation


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Selectors by the end that they belong to, and the mode that the peer spoke of.

    `peer_address` is the one that the peer has itself, known in transport mode only; `peer_cpi`
    what it names for compressed packets that it receives; `peer_takes_tfc` if it has not said that
    it will not accept padding to hide sizes (RFC 7296 section 1.3.1), `peer_takes_fragments` if not
    that an IP-TFS packet must have whole ones (RFC 9347). It `is_per_resource` if the
    peer would have several Child SAs for it (RFC 9611).
    """

    mode: Mode
    local: Selectors
    remote: Selectors
    peer_address: IpAddress | None = None
    peer_cpi: int | None = None
    peer_takes_tfc: bool = True
    peer_takes_fragments: bool = True
    is_per_resource: bool = False


def ends_of(sa: IkeSa) -> Ends:
    return Ends(path=sa.path, nat=sa.nat)


def mode_payloads(mode: Mode) -> tuple[NotifyPayload, ...]:
    """What asks for another mode than a tunnel, or agrees to it; that needs no words."""
    if mode not in _ASKS_FOR:
        return ()
    return (NotifyPayload(type=_ASKS_FOR[mode], data=_IPTFS_FLAGS if mode is Mode.IPTFS else b""),)


_ASKS_FOR = {
    Mode.TRANSPORT: NotifyType.USE_TRANSPORT_MODE,
    Mode.BEET: NotifyType(40961),
    Mode.IPTFS: NotifyType.USE_AGGFRAG,
}
"""BEET by a number of private use, strongSwan's: what it means is known because policy says so."""

_IPTFS_FLAGS = bytes(1)
"""RFC 9347 sections 5.1 and 6.1.4, of our own: we take fragments, and want no word of
congestion."""
_WANTS_CONGESTION, _TAKES_NO_FRAGMENTS = 2, 1

STRONGSWAN = VendorIdPayload(data=bytes.fromhex("882fe56d6fd20dbc2251613b2ebe5beb"))
"""What strongSwan must have seen in IKE_SA_INIT before it takes that number so: MD5 of its name."""


def policy_between(policy: ChildPolicy, path: Path) -> ChildPolicy:
    """The policy with the selectors of these ends, where transport mode makes them the ends'."""
    if policy.mode is not Mode.TRANSPORT:
        return policy
    return replace(
        policy,
        local=narrow_selectors(policy.local, (_only_of(path.local.address),)),
        remote=narrow_selectors(policy.remote, (_only_of(path.remote.address),)),
    )


def check_ends(children: tuple[ChildPolicy, ...], path: Path) -> Failure | None:
    """Why a child cannot be had on a path, if one cannot."""
    betweens = ((policy, policy_between(policy, path)) for policy in children)
    policy = next((p for p, between in betweens if not (between.local and between.remote)), None)
    if policy is None:
        return None
    return Failure(
        code="XF2021",
        summary="transport mode carries what the two ends say, and the policy leaves that out",
        evidence=(
            ("our address", str(path.local.address)),
            ("our local", ", ".join(map(str, policy.local))),
            ("their address", str(path.remote.address)),
            ("our remote", ", ".join(map(str, policy.remote))),
        ),
    )


def traffic_of(payloads: tuple[OpenPayload, ...], ends: Ends, *, is_initiator: bool) -> Traffic:
    """What a message of the peer says of a Child SA; `is_initiator` tells whether we asked."""
    tsi, tsr = only(payloads, TsiPayload).selectors, only(payloads, TsrPayload).selectors
    local, remote = (tsi, tsr) if is_initiator else (tsr, tsi)
    cpi = named_cpi(payloads, is_answer=is_initiator)
    takes_tfc = not notifications(payloads, NotifyType.ESP_TFC_PADDING_NOT_SUPPORTED)
    is_per_resource = has_resource_info(payloads)
    asked = [mode for mode in _ASKS_FOR if _asks_for(mode, payloads)]
    if Mode.TRANSPORT not in asked:
        return Traffic(
            mode=asked[0] if asked else Mode.TUNNEL,
            local=local,
            remote=remote,
            peer_cpi=cpi,
            peer_takes_tfc=takes_tfc,
            is_per_resource=is_per_resource,
            peer_takes_fragments=not _aggfrag_flags(payloads) & _TAKES_NO_FRAGMENTS,
        )
    return Traffic(
        mode=Mode.TRANSPORT,
        local=_put(local, ends.path.local.address) if ends.nat.ours else local,
        remote=_put(remote, ends.path.remote.address) if ends.nat.theirs else remote,
        peer_address=_address_of(remote),
        peer_cpi=cpi,
        peer_takes_tfc=takes_tfc,
        is_per_resource=is_per_resource,
    )


def _asks_for(mode: Mode, payloads: tuple[OpenPayload, ...]) -> bool:
    """Of IP-TFS as far as we can agree: we tell nobody of congestion (RFC 9347 section 3)."""
    found = notifications(payloads, _ASKS_FOR[mode])
    if mode is not Mode.IPTFS:
        return bool(found)
    return bool(found and found[0].data) and not _aggfrag_flags(payloads) & _WANTS_CONGESTION


def _aggfrag_flags(payloads: tuple[OpenPayload, ...]) -> int:
    found = notifications(payloads, NotifyType.USE_AGGFRAG)
    return found[0].data[0] if found and found[0].data else 0


def choose_child(
    children: tuple[ChildPolicy, ...], payloads: tuple[OpenPayload, ...], ends: Ends
) -> tuple[ChildPolicy, Traffic]:
    """The child that the request of an initiator means; else simply the first.

    Where it meets several, the one that asks for just as much, then the one that need not narrow,
    then the one that carries what is named first.
    RFC 7296 section 2.23.1: "If no SPD entry was found, or (if found) the SPD entry does not allow
    transport mode, undo the Traffic Selector substitutions", and take it for tunnel mode.
    """
    asked = traffic_of(payloads, ends, is_initiator=False)
    as_tunnel = asked
    if asked.mode is not Mode.TUNNEL:
        as_tunnel = traffic_of(_without_modes(payloads), ends, is_initiator=False)
    candidates = [
        (policy_between(child, ends.path), asked if child.mode is asked.mode else as_tunnel)
        for child in children
    ]
    if len(candidates) == 1:
        return candidates[0]
    return max(candidates, key=lambda candidate: _likeness(*candidate))


def check_mode_asked(policy: ChildPolicy, traffic: Traffic) -> None:
    """A responder's view. Raises `PeerIncompatible` for a tunnel where policy allows none."""
    if policy.mode is not Mode.TUNNEL and traffic.mode is Mode.TUNNEL:
        raise PeerIncompatible.of(
            "XF2020",
            f"the peer wants tunnel mode, and our policy {_named(policy.mode)}",
            NotifyType.NO_PROPOSAL_CHOSEN,
        )


def check_mode_answered(policy: ChildPolicy, traffic: Traffic) -> Failure | None:
    """An initiator's view: why the answer is unacceptable, if it is.

    RFC 7296 section 1.3.1: "If the responder declines the request, the Child SA will be established
    in tunnel mode. If this is unacceptable to the initiator, the initiator MUST delete the SA."
    Raises `PeerMisbehaved` for a mode that was not asked for.
    """
    if policy.mode is traffic.mode:
        return None
    if traffic.mode in (Mode.TRANSPORT, Mode.IPTFS):
        raise PeerMisbehaved(f"the peer chose {_named(traffic.mode)}, which we did not ask for")
    if policy.mode is Mode.TUNNEL:  # To whom we did not speak of BEET means something else by it.
        return None
    summary = f"the peer makes a tunnel of what we want in {_named(policy.mode)}"
    return Failure(code="XF2020", summary=summary)


def check_nat(tunnel: TunnelPolicy, nat: NatSituation) -> Failure | None:
    """Why an initiator's Child SAs cannot be had with this NAT, or this lack of one, if so."""
    if tunnel.forces_encapsulation and not nat.supported:
        summary = "the peer cannot put ESP in UDP, and nothing else works here"
        return Failure(code="XF3001", summary=summary)
    failures = (check_passage(child, nat) for child in tunnel.children)
    return next((failure for failure in failures if failure is not None), None)


def check_passage(policy: ChildPolicy, nat: NatSituation) -> Failure | None:
    """RFC 3948 section 1: AH is "inherently incompatible with NAT", and does not go in UDP."""
    if not (nat.encapsulated and policy.protocol is ProtocolId.AH):
        return None
    behind = [end for end, is_behind in (("we", nat.ours), ("they", nat.theirs)) if is_behind]
    return Failure(
        code="XF2030",
        summary=f"{policy.name}: there is a NAT between the two ends, which AH cannot pass",
        evidence=(("behind it", ", ".join(behind) or "nobody; one end asks for ESP in UDP"),),
    )


def check_passage_asked(policy: ChildPolicy, nat: NatSituation) -> None:
    """A responder's view. Raises `PeerIncompatible`."""
    failure = check_passage(policy, nat)
    if failure is not None:
        raise PeerIncompatible(failure, NotifyPayload(type=NotifyType.NO_PROPOSAL_CHOSEN))


def _named(mode: Mode) -> str:
    return {Mode.BEET: "BEET mode", Mode.IPTFS: "IP-TFS mode"}.get(mode, f"{mode} mode")


def _without_modes(payloads: tuple[OpenPayload, ...]) -> tuple[OpenPayload, ...]:
    asking = [n for words in _ASKS_FOR.values() for n in notifications(payloads, words)]
    return tuple(p for p in payloads if p not in asking)


def _likeness(policy: ChildPolicy, traffic: Traffic) -> int:
    pairs = ((traffic.remote, policy.remote), (traffic.local, policy.local))
    is_met = all(narrow_selectors(theirs, ours) for theirs, ours in pairs)
    if not is_met or policy.mode is not traffic.mode:
        return 0
    is_within = all(covered_by(theirs, ours) for theirs, ours in pairs)
    is_all = all(covered_by(ours, theirs) for theirs, ours in pairs)
    # RFC 7296 section 2.9: what comes first may be of the packet that the peer wants to send.
    has_first = all(covered_by(theirs[:1], ours) for theirs, ours in pairs)
    return 1 + 2 * has_first + 2 * is_within + is_all + (is_within and is_all)


def inner_ends(source: Selectors, destination: Selectors) -> InnerEnds:
    """The two addresses of BEET mode, of selectors that policy limits to one each."""
    one, other = _address_of(source), _address_of(destination)
    assert one is not None
    assert other is not None
    return InnerEnds(source=one, destination=other)


def _address_of(selectors: Selectors) -> IpAddress | None:
    """The one address of selectors that have exactly one."""
    found = {address for s in selectors for address in (s.start_address, s.end_address)}
    return found.pop() if len(found) == 1 else None


def _put(selectors: Selectors, address: IpAddress) -> Selectors:
    """The selectors of one address, about another; others are left alone, and will not fit."""
    if _address_of(selectors) is None:
        return selectors
    return tuple(replace(s, start_address=address, end_address=address) for s in selectors)


def _only_of(address: IpAddress) -> TrafficSelector:
    return TrafficSelector(start_address=address, end_address=address)
