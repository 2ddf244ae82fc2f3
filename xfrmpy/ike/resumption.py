"""Session resumption: tickets asked for, given, kept, and what they bring back.

Read RFC 5723 sections 4.1, 4.2, 5 and 6 first. The keys of a resumed IKE SA come from the old SK_d
and fresh nonces alone, so it is as secret as the one before it and no more: policy must ask for it.
What a ticket holds is the business of `tickets`, the exchange that presents it that of
`session_resume`.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from struct import Struct
from typing import TYPE_CHECKING, ClassVar

from xfrmpy.failures import Failure
from xfrmpy.ike.errors import AuthenticationFailed, PeerMisbehaved
from xfrmpy.ike.exchange import notifications
from xfrmpy.ike.tickets import TICKET_SECONDS, TicketRefused, TicketState, bind_to_key
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import Proposal, choose_proposal
from xfrmpy.policy.model import TunnelPolicy
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload

if TYPE_CHECKING:
    from xfrmpy.ike.core import Core
    from xfrmpy.ike.ike_sa import IkeSa
    from xfrmpy.ipsec.addresses import Path

MAX_TICKET = 2048
"""Octets of a peer's ticket. We send it back in clear and in one datagram."""

LEAST_TICKET = 16
"""Octets of a ticket that is presented to us: ours are longer, and so is the request that has one
than the cookie that we may demand of its sender."""

LONGEST_SECONDS = 24 * 3600
"""For how long we keep a peer's ticket, whatever it says."""

RENEWAL = 0.8
"""At this part of its life a ticket is replaced, if the IKE SA still lives."""

_LIFETIME = Struct(">I")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldTicket:
    """A peer's ticket, with all that section 5 takes "from the ticket", for us to keep."""

    ticket: bytes = field(repr=False)
    local: Identity
    remote: Identity
    proposal: Proposal
    sk_d: bytes = field(repr=False)
    ppk_id: str = ""
    binding: bytes = field(repr=False)
    renew_at: float
    expires_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """An IKE SA that goes on from an old one: who the ends are is settled.

    `ticket` and `old_spi` are a responder's: what is spent, and which IKE SA it replaces.
    """

    tunnel: TunnelPolicy
    local: Identity
    remote: Identity
    ticket: bytes = field(default=b"", repr=False)
    old_spi: bytes = b""


# Getting a ticket, and giving one (section 4.1 and 4.2).


def request_ticket(sa: IkeSa) -> tuple[NotifyPayload, ...]:
    """For our IKE_AUTH request."""
    assert sa.tunnel is not None
    if not sa.is_client or not sa.tunnel.resumption:
        return ()
    return (NotifyPayload(type=NotifyType.TICKET_REQUEST),)


def take_ticket(sa: IkeSa, given: NotifyPayload, now: float) -> tuple[OpenPayload, ...]:
    """The ticket that we asked for. It lives and dies with its IKE SA, unless that is lost."""
    assert sa.tunnel is not None
    if not sa.is_client or not sa.tunnel.resumption or len(given.data) <= _LIFETIME.size:
        return ()
    (seconds,) = _LIFETIME.unpack_from(given.data)
    ticket = given.data[_LIFETIME.size :]
    if len(ticket) <= MAX_TICKET:
        sa.keep_ticket(_held(sa, ticket, min(seconds, LONGEST_SECONDS), now))
    return ()


def _held(sa: IkeSa, ticket: bytes, seconds: float, now: float) -> HeldTicket:
    assert sa.tunnel is not None
    assert sa.keys is not None
    assert sa.proposal is not None
    assert sa.local_id is not None
    assert sa.remote_id is not None
    return HeldTicket(
        ticket=ticket,
        local=sa.local_id,
        remote=sa.remote_id,
        proposal=sa.proposal,
        sk_d=sa.keys.sk_d,
        ppk_id=sa.ppk_id,
        binding=bind_to_key(sa.tunnel.secrets, sa.keys.sk_d),
        renew_at=now + seconds * RENEWAL,
        expires_at=now + seconds,
    )


def give_ticket(sa: IkeSa, _asked: NotifyPayload, now: float) -> tuple[OpenPayload, ...]:
    """A ticket for a peer that asks, or TICKET_NACK. Only the responder of the IKE SA gives any."""
    if sa.is_client:
        return ()
    assert sa.tunnel is not None
    if not sa.tunnel.resumption:
        return (NotifyPayload(type=NotifyType.TICKET_NACK),)
    ticket = sa.core.ticket_keys.seal(_state(sa, now), now)
    data = _LIFETIME.pack(TICKET_SECONDS) + ticket
    return (NotifyPayload(type=NotifyType.TICKET_LT_OPAQUE, data=data),)


def _state(sa: IkeSa, now: float) -> TicketState:
    assert sa.tunnel is not None
    assert sa.keys is not None
    assert sa.proposal is not None
    assert sa.local_id is not None
    assert sa.remote_id is not None
    return TicketState(
        tunnel=sa.tunnel.name,
        id_i=sa.remote_id,
        id_r=sa.local_id,
        proposal=sa.proposal,
        sk_d=sa.keys.sk_d,
        spi=sa.our_spi,
        ppk_id=sa.ppk_id,
        binding=bind_to_key(sa.tunnel.secrets, sa.keys.sk_d),
        expires_at=now + TICKET_SECONDS,
    )


def renew_ticket(sa: IkeSa, now: float) -> None:
    """The time of the ticket has come, or its IKE SA has been rekeyed."""
    sa.ticket_at = None
    sa.start(TicketRequest(sa), now)


class TicketRequest:
    """Asks for a ticket on an IKE SA that is up."""

    type: ClassVar[ExchangeType] = ExchangeType.INFORMATIONAL

    def __init__(self, sa: IkeSa) -> None:
        self._sa = sa

    def request(self) -> tuple[OpenPayload, ...]:
        return request_ticket(self._sa)

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        for given in notifications(payloads, NotifyType.TICKET_LT_OPAQUE):
            take_ticket(self._sa, given, now)


# Using it.


def presented_ticket(payloads: tuple[OpenPayload, ...]) -> bytes:
    """The ticket in an IKE_SESSION_RESUME request. Raises `PeerMisbehaved` if there is not one."""
    tickets = notifications(payloads, NotifyType.TICKET_OPAQUE)
    if len(tickets) != 1 or len(tickets[0].data) < LEAST_TICKET:
        raise PeerMisbehaved("IKE_SESSION_RESUME presents one ticket")
    return tickets[0].data


def usable_ticket(core: Core, tunnel: TunnelPolicy, now: float) -> HeldTicket | None:
    """The ticket of a tunnel's lost IKE SA, if it has not expired and the policy is still that."""
    held = core.tickets.get(tunnel.name)
    if held is None:
        return None
    binding = bind_to_key(tunnel.secrets, held.sk_d)
    is_bound = hmac.compare_digest(held.binding, binding)
    is_allowed = _allows(tunnel, held.local, held.remote, held.proposal, held.ppk_id)
    if now < held.expires_at and is_bound and is_allowed:
        return held
    del core.tickets[tunnel.name]
    return None


def _allows(
    tunnel: TunnelPolicy, local: Identity, remote: Identity, proposal: Proposal, ppk_id: str
) -> bool:
    """Whether a tunnel's policy would make the same IKE SA again."""
    return (
        tunnel.resumption
        and bool(ppk_id or not tunnel.ppk_required)
        and tunnel.remote_id is not None
        and (tunnel.remote_id == remote or tunnel.remote_id.matches(remote))
        and tunnel.local_id in (None, local)
        and choose_proposal((proposal,), tunnel.proposals) is not None
    )


def tunnel_of_ticket(core: Core, state: TicketState, path: Path) -> TunnelPolicy:
    """The tunnel of ours that a ticket brings back. Raises `TicketRefused`."""
    tunnel = core.tunnel_index.candidates(path).named(state.tunnel)
    if tunnel is not None:
        binding = bind_to_key(tunnel.secrets, state.sk_d)
        is_bound = hmac.compare_digest(state.binding, binding)
        ends = state.id_r, state.id_i
        if is_bound and _allows(tunnel, *ends, state.proposal, state.ppk_id):
            return tunnel
    raise TicketRefused("our policy has changed since, or is for another address")


def tunnel_of_resumed(
    resumed: Resumed, initiator: Identity, wanted: Identity | None
) -> TunnelPolicy:
    """Section 4.3.3: identities "MUST be identical to the value included in the ticket".

    Raises `AuthenticationFailed` otherwise.
    """
    if initiator == resumed.remote and wanted in (None, resumed.local):
        return resumed.tunnel
    raise AuthenticationFailed(
        Failure(
            code="XF2007",
            summary=f"{initiator} presented the ticket of {resumed.remote}",
            evidence=(
                ("they want", "anybody" if wanted is None else str(wanted)),
                ("we are", str(resumed.local)),
            ),
        )
    )


def settle_resumption(sa: IkeSa, resumed: Resumed, now: float) -> None:
    """The initiator has proved the new keys: its ticket is spent, and the old IKE SA is gone.

    Section 4.3.4: it "SHOULD be silently deleted without sending a DELETE". Raises
    `AuthenticationFailed` if another IKE SA has been established with the same ticket meanwhile.
    """
    try:
        sa.core.ticket_keys.spend(resumed.ticket, now)
    except TicketRefused as refused:
        summary = f"{resumed.remote} presented a ticket: {refused}"
        raise AuthenticationFailed(Failure(code="XF2025", summary=summary)) from refused
    old = sa.core.ike_sas.get(resumed.old_spi)
    if old is not None:
        old.close(Failure(code="XF2011", summary="the peer resumed its session"), now)
