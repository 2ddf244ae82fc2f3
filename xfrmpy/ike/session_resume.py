"""IKE_SESSION_RESUME in both roles: it stands in the place of IKE_SA_INIT.

Read RFC 5723 sections 4.3 and 5.1 first. Nothing in this exchange is authentic: IKE_AUTH follows,
by which each end proves that it has the keys. An initiator whose ticket is refused, or who hears
nothing, goes on with IKE_SA_INIT in the same IKE SA.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from xfrmpy.crypto.key_schedule import derive_resumed_ike_keys
from xfrmpy.ike.auth import IkeAuth
from xfrmpy.ike.core import Core
from xfrmpy.ike.errors import PeerIncompatible, PeerMisbehaved
from xfrmpy.ike.exchange import check_critical, first_error, notifications, only, payloads_in_clear
from xfrmpy.ike.ike_sa import IkeSa
from xfrmpy.ike.init import (
    FRAGMENTATION_SUPPORTED,
    MAX_COOKIE,
    MAX_REPETITIONS,
    IkeSaInit,
    can_fragment,
)
from xfrmpy.ike.modes import check_nat
from xfrmpy.ike.nat import detect_nat, detection_payloads, natt_path
from xfrmpy.ike.nonces import NONCE_SIZE
from xfrmpy.ike.outputs import ExchangeRepeated
from xfrmpy.ike.resumption import HeldTicket, Resumed, presented_ticket, tunnel_of_ticket
from xfrmpy.ike.tickets import TicketRefused
from xfrmpy.ipsec.addresses import Path
from xfrmpy.ipsec.proposals import Proposal, ike_suite
from xfrmpy.policy.model import Retransmission, TunnelPolicy
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.message import Message
from xfrmpy.wire.payloads import NoncePayload, NotifyPayload, OpenPayload

RESUME_TRIES = 2
"""Retransmissions, seven seconds in all by default: a peer that has forgotten the exchange type
(an older version, another daemon) says nothing, and must not keep the tunnel down."""


class SessionResume:
    """The initiator's side."""

    type: ClassVar[ExchangeType] = ExchangeType.IKE_SESSION_RESUME

    def __init__(self, sa: IkeSa, tunnel: TunnelPolicy, held: HeldTicket) -> None:
        self._sa = sa
        self._tunnel = tunnel
        self._held = held
        self._nonce = sa.core.random(NONCE_SIZE)
        self._cookie: bytes | None = None
        # Made once: nothing but the cookie changes when one is returned (RFC 7296 section 2.6).
        self._detection = detection_payloads(
            sa.channel.spi_i,
            bytes(8),
            sa.path,
            force=tunnel.forces_encapsulation,
            random=sa.core.random,
        )
        self._repetitions = 0
        sa.channel.window.hurry(RESUME_TRIES)
        sa.on_silence = lambda now: self._begin_anew("the peer does not answer our ticket", now)

    def request(self) -> tuple[OpenPayload, ...]:
        payloads: list[OpenPayload] = []
        if self._cookie is not None:
            payloads.append(NotifyPayload(type=NotifyType.COOKIE, data=self._cookie))
        payloads.append(NoncePayload(data=self._nonce))
        payloads.append(NotifyPayload(type=NotifyType.TICKET_OPAQUE, data=self._held.ticket))
        payloads += self._detection
        if self._tunnel.fragmentation:
            payloads.append(FRAGMENTATION_SUPPORTED)
        return tuple(payloads)

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        if cookies := notifications(payloads, NotifyType.COOKIE):
            self._repeat_with_cookie(cookies[0], now)
        elif notifications(payloads, NotifyType.TICKET_NACK) or first_error(payloads):
            self._sa.core.tickets.pop(self._tunnel.name, None)
            self._begin_anew("the peer does not take our ticket", now)
        else:
            self._resume(payloads, now)

    def _repeat_with_cookie(self, cookie: NotifyPayload, now: float) -> None:
        if not 1 <= len(cookie.data) <= MAX_COOKIE:
            raise PeerMisbehaved("a cookie has 1 to 64 octets")
        self._cookie = cookie.data
        self._repetitions += 1
        if self._repetitions > MAX_REPETITIONS:
            self._begin_anew("the peer asks for cookies again and again", now)
        else:
            self._repeat("the peer is busy and asks for a cookie")
            self._sa.start(self, now)

    def _resume(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        sa, held = self._sa, self._held
        nonce = only(payloads, NoncePayload).data
        if not any(sa.channel.their_spi):
            raise PeerMisbehaved("the peer gave no SPI")
        forced = self._tunnel.forces_encapsulation
        nat = detect_nat(payloads, sa.channel.spi_i, sa.channel.spi_r, sa.path, forced=forced)
        sa.core.tickets.pop(self._tunnel.name, None)
        sa.on_silence = None
        sa.channel.window.complete(0)
        sa.channel.window.schedule = self._tunnel.retransmission
        sa.channel.fragments = self._tunnel.fragmentation and can_fragment(payloads)
        sa.resumed = Resumed(tunnel=self._tunnel, local=held.local, remote=held.remote)
        sa.ppk_id = held.ppk_id
        use_resumed_keys(sa, held.proposal, held.sk_d, self._nonce, nonce)
        sa.found_nat(nat)
        impassable = check_nat(self._tunnel, nat)
        if impassable is not None:
            sa.close(impassable, now)
            return
        if nat.encapsulated:
            sa.channel.path = natt_path(sa.path, sa.core.natt_port)
        IkeAuth(sa, self._tunnel).begin(now)

    def _begin_anew(self, reason: str, now: float) -> None:
        """The full exchange. A ticket that nobody spoke of is kept for the next attempt."""
        self._sa.on_silence = None
        self._sa.channel.window.schedule = self._tunnel.retransmission
        self._repeat(reason)
        self._sa.start(IkeSaInit(self._sa, self._tunnel), now)

    def _repeat(self, reason: str) -> None:
        self._sa.channel.their_spi = bytes(8)
        self._sa.channel.window.restart()
        self._sa.core.emit(
            ExchangeRepeated(tunnel=self._tunnel.name, exchange=self.type, reason=reason)
        )


def answer_session_resume(
    core: Core, message: Message, data: bytes, path: Path, now: float
) -> IkeSa:
    """Answer a ticket of ours with an IKE SA that waits for IKE_AUTH.

    Raises `PeerIncompatible` with TICKET_NACK, `CriticalPayload`, or `PeerMisbehaved`. Whoever
    repeats what he has heard gets no further than this: he lacks the keys.
    """
    payloads = payloads_in_clear(message)
    check_critical(payloads)
    nonce_i = only(payloads, NoncePayload).data
    ticket = presented_ticket(payloads)
    try:
        state = core.ticket_keys.open(ticket, now)
        tunnel = tunnel_of_ticket(core, state, path)
    except TicketRefused as refused:
        summary = f"{path.remote} presented a ticket: {refused}"
        raise PeerIncompatible.of("XF2025", summary, NotifyType.TICKET_NACK) from refused
    nonce_r = core.random(NONCE_SIZE)
    forced = tunnel.forces_encapsulation
    sa = IkeSa(core, path=path, is_initiator=False, schedule=Retransmission())
    sa.channel.their_spi = message.spi_i
    nat = detect_nat(payloads, message.spi_i, bytes(8), path, forced=forced)
    sa.channel.begin_answer(message, path)
    sa.channel.init_request = data
    sa.channel.fragments = tunnel.fragmentation and can_fragment(payloads)
    sa.channel.respond(
        (
            NoncePayload(data=nonce_r),
            *detection_payloads(
                sa.channel.spi_i, sa.channel.spi_r, path, force=forced, random=core.random
            ),
            *([FRAGMENTATION_SUPPORTED] if sa.channel.fragments else []),
        )
    )
    sa.resumed = Resumed(
        tunnel=tunnel, local=state.id_r, remote=state.id_i, ticket=ticket, old_spi=state.spi
    )
    sa.ppk_id = state.ppk_id
    proposal = replace(state.proposal, number=1)
    use_resumed_keys(sa, proposal, state.sk_d, nonce_i, nonce_r)
    sa.found_nat(nat)
    return sa


def use_resumed_keys(
    sa: IkeSa, proposal: Proposal, old_sk_d: bytes, nonce_i: bytes, nonce_r: bytes
) -> None:
    """Both nonces are known: derive the keys (section 5.1)."""
    keys = derive_resumed_ike_keys(
        ike_suite(proposal),
        old_sk_d=old_sk_d,
        nonce_i=nonce_i,
        nonce_r=nonce_r,
        spi_i=sa.channel.spi_i,
        spi_r=sa.channel.spi_r,
    )
    sa.use_keys(proposal, keys, (nonce_i, nonce_r))
