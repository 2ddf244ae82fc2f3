"""One IKE SA: its state, its keys, and the way of a message through it.

Read RFC 7296 sections 1.4, 2.1 to 2.4 and 2.21 first. What an exchange means stands in the modules
of the exchanges (`init`, `auth`, `informational`); sealing, Message IDs and retransmission in
`channel`; the Child SAs in `child_sa`. Here they meet: a message is checked, opened, and given to
its exchange.
"""

from __future__ import annotations

from typing import TypeAlias

from xfrmpy.crypto.key_schedule import IkeKeys, derive_ike_keys
from xfrmpy.failures import Failure
from xfrmpy.ike.channel import Channel
from xfrmpy.ike.child_sa import ChildSa
from xfrmpy.ike.core import Core
from xfrmpy.ike.errors import Drop, DropReason, PeerMisbehaved
from xfrmpy.ike.exchange import Exchange, payloads_in_clear
from xfrmpy.ike.informational import Farewell, LivenessCheck
from xfrmpy.ike.nat import NatSituation
from xfrmpy.ike.outputs import (
    IkeSaEstablished,
    NatDetected,
    RequestRefused,
    TunnelClosed,
)
from xfrmpy.ike.protection import Inner
from xfrmpy.ike.requests import REQUESTS
from xfrmpy.ike.states import IKE_SA_TRANSITIONS, IkeSaState, IllegalTransition
from xfrmpy.ike.window import PeerSilent
from xfrmpy.ipsec.addresses import Path
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import IkeSuite, Proposal, ike_suite
from xfrmpy.policy.model import Retransmission, TunnelPolicy
from xfrmpy.registry import ExchangeType, NotifyType, PayloadType
from xfrmpy.wire.cursor import Malformed
from xfrmpy.wire.message import Message, decode_payloads_untrusted
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload, Payload, UnknownPayload

HALF_OPEN_SECONDS = 30.0
"""How long a responder waits for IKE_AUTH. strongSwan's half_open_timeout is the same."""

REFUSAL_SECONDS = 2.0
"""How long an initiator goes on trying after an IKE_SA_INIT was refused: nothing protects that
message, so anybody on the way may have sent it (RFC 7296 section 2.21.1). Long enough for the true
answer of a peer far away, and for the first retransmission."""

FAREWELL_TRIES = 2
"""Retransmissions once we are leaving: nobody waits long for a peer that may be gone."""

LINGER_SECONDS = 30.0
"""How long a deleted IKE SA still repeats its last response to a peer that missed it."""

Payloads: TypeAlias = tuple[OpenPayload, ...]


class IkeSa:
    """See the module. `tunnel` is None on a responder until it knows who the peer is."""

    def __init__(
        self,
        core: Core,
        *,
        path: Path,
        is_initiator: bool,
        schedule: Retransmission,
        tunnel: TunnelPolicy | None = None,
    ) -> None:
        self.core = core
        self.channel = Channel(core, path=path, is_initiator=is_initiator, schedule=schedule)
        self.is_initiator = is_initiator
        self.tunnel: TunnelPolicy | None = None
        self.state = IkeSaState.INITIATING
        self.nat = NatSituation()
        self.proposal: Proposal | None = None
        self.suite: IkeSuite | None = None
        self.keys: IkeKeys | None = None
        self.remote_id: Identity | None = None
        self.local_id: Identity | None = None
        self.nonce_i = b""
        self.nonce_r = b""
        self.children: list[ChildSa] = []
        self.established_at = 0.0
        self._heard_at = 0.0
        self._expires_at: float | None = None
        self._refusal: Failure | None = None
        self._was_established = False
        self._is_reported = False
        if tunnel is not None:
            self.belong_to(tunnel)
        core.ike_sas[self.our_spi] = self

    @property
    def our_spi(self) -> bytes:
        return self.channel.our_spi

    @property
    def path(self) -> Path:
        return self.channel.path

    @property
    def tunnel_name(self) -> str:
        return "" if self.tunnel is None else self.tunnel.name

    # A message of the peer.

    def receive(self, message: Message, data: bytes, path: Path, now: float) -> None:
        """Take a message whose SPI is ours. Raises `Drop` if it changes nothing."""
        if message.is_initiator == self.is_initiator:
            raise Drop(DropReason.WRONG_ROLE)
        if not self.channel.is_protected:
            self._receive_in_clear(message, data, now)
            return
        if message.exchange is ExchangeType.IKE_SA_INIT:
            raise Drop(DropReason.WRONG_STATE)
        inner = self.channel.open(message, data)
        self.core.handling = self
        if message.is_response:
            self._receive_response(message, inner, now)
        else:
            self._receive_request(message, inner, path, now)

    def _receive_in_clear(self, message: Message, data: bytes, now: float) -> None:
        if message.exchange is not ExchangeType.IKE_SA_INIT or not message.is_response:
            raise Drop(DropReason.WRONG_STATE)
        channel = self.channel
        request = channel.window.outstanding_for(message.message_id)
        self.core.handling = self
        channel.their_spi = message.spi_r
        channel.init_response = data
        try:
            payloads = payloads_in_clear(message)
            check_critical(payloads)
            request.exchange.handle_response(payloads, now)
        except (PeerMisbehaved, CriticalPayload) as error:
            # Anybody can send this: go on waiting for the real one (RFC 7296 section 2.21.1).
            raise Drop(DropReason.MALFORMED) from error
        finally:
            if not channel.is_protected:
                channel.their_spi = bytes(8)

    def _receive_response(self, message: Message, inner: Inner, now: float) -> None:
        request = self.channel.window.outstanding_for(message.message_id)
        if request.exchange.type is not message.exchange:
            raise Drop(DropReason.WRONG_EXCHANGE)
        self._heard_at = now
        self.channel.window.complete()
        try:
            payloads = decode_payloads_untrusted(*inner)
            check_critical((*message.payloads, *payloads))
            if self.state is not IkeSaState.DELETING or isinstance(request.exchange, Farewell):
                request.exchange.handle_response(payloads, now)
        except (Malformed, PeerMisbehaved, CriticalPayload) as error:
            failure = Failure(code="XF2008", summary=str(error))
            if isinstance(request.exchange, Farewell):
                self.close(failure, now)
            else:
                self.terminate(failure, now)
        self._start_waiting(now)

    def _receive_request(self, message: Message, inner: Inner, path: Path, now: float) -> None:
        cached = self.channel.window.accept_request(message.message_id)
        if cached is not None:
            self.channel.repeat_answer(cached, path)
            return
        row = REQUESTS.get(message.exchange)
        if row is None:
            raise Drop(DropReason.WRONG_EXCHANGE)
        if self.state not in row.states:
            raise Drop(DropReason.WRONG_STATE)
        self._heard_at = now
        if self.state is IkeSaState.AUTHENTICATING:
            self.channel.path = (
                path  # The initiator moves to port 4500 here (RFC 7296 section 2.23).
            )
        self.channel.begin_answer(message, path)
        try:
            payloads = decode_payloads_untrusted(*inner)
            check_critical((*message.payloads, *payloads))
            row.handler(self, payloads, now)
        except CriticalPayload as error:
            self.respond((error.notify,))
            if self.state is IkeSaState.AUTHENTICATING:  # Section 2.21.2: it is not created.
                self.close(Failure(code="XF2008", summary=str(error)), now)
        except (Malformed, PeerMisbehaved) as error:
            self.respond((NotifyPayload(type=NotifyType.INVALID_SYNTAX),))
            self.close(Failure(code="XF2008", summary=str(error)), now)

    # Messages of ours.

    def start(self, exchange: Exchange, now: float) -> None:
        """Send a request, or let it wait for the one that is on its way."""
        if self.channel.window.outstanding is not None:
            self.channel.window.waiting.append(exchange)
            return
        self.core.touched.add(self)
        self.channel.ask(exchange, now)

    def respond(self, payloads: Payloads) -> None:
        """Answer the request that is being handled, once."""
        self.channel.respond(payloads)

    def _start_waiting(self, now: float) -> None:
        window = self.channel.window
        if window.waiting and window.outstanding is None:
            self.start(window.waiting.popleft(), now)

    # Its life.

    def belong_to(self, tunnel: TunnelPolicy) -> None:
        """It is known whose policy holds."""
        self.tunnel = tunnel
        self.channel.tunnel = tunnel.name

    def agree_keys(
        self, proposal: Proposal, shared_secret: bytes, nonce_i: bytes, nonce_r: bytes
    ) -> None:
        """Both public values are known: derive the keys; messages are protected from now on."""
        self.proposal, self.nonce_i, self.nonce_r = proposal, nonce_i, nonce_r
        self.suite = ike_suite(proposal)
        self.keys = derive_ike_keys(
            self.suite,
            shared_secret=shared_secret,
            nonce_i=nonce_i,
            nonce_r=nonce_r,
            spi_i=self.channel.spi_i,
            spi_r=self.channel.spi_r,
        )
        self.channel.protect(self.suite, self.keys)
        self._expires_at = self._refusal = None
        self._move_to(IkeSaState.AUTHENTICATING)

    def refused(self, failure: Failure, now: float) -> None:
        """Somebody refuses our IKE_SA_INIT: give up soon, unless the peer answers better."""
        if self._refusal is None:
            self._refusal = failure
            self._expires_at = now + REFUSAL_SECONDS
            self.core.touched.add(self)

    def expect_authentication(self, now: float) -> None:
        """A responder waits only so long for IKE_AUTH."""
        self._expires_at = now + HALF_OPEN_SECONDS
        self.core.touched.add(self)

    def found_nat(self, nat: NatSituation) -> None:
        self.nat = nat
        if nat.encapsulated:
            self.core.emit(
                NatDetected(
                    tunnel=self.tunnel_name, ours=nat.ours, theirs=nat.theirs, forced=nat.forced
                )
            )

    def authenticated(
        self, tunnel: TunnelPolicy, *, local: Identity, remote: Identity, now: float
    ) -> None:
        """The peer has proved who it is. There is no other way to ESTABLISHED."""
        self._move_to(IkeSaState.ESTABLISHED)
        self.belong_to(tunnel)
        self.local_id, self.remote_id = local, remote
        self.channel.window.schedule = tunnel.retransmission
        self.channel.init_request = self.channel.init_response = b""
        self._expires_at = None
        self._was_established = True
        self.established_at = self._heard_at = now
        self.core.emit(
            IkeSaEstablished(
                tunnel=tunnel.name,
                path=self.path,
                suite=str(self.suite),
                remote_id=str(remote),
                is_initiator=self.is_initiator,
            )
        )

    def terminate(self, failure: Failure | None, now: float, *payloads: OpenPayload) -> None:
        """Take everything out of force and tell the peer.

        `failure` None is our operator's wish. `payloads` go to the peer in place of a Delete.
        """
        if self.state in (IkeSaState.DELETING, IkeSaState.DELETED):
            return
        if not self.channel.is_protected:
            self.close(failure, now)
            return
        self._close_children()
        self._move_to(IkeSaState.DELETING)
        if failure is not None:
            self._report_closed(failure)
        self.channel.window.waiting.clear()
        self.channel.window.hurry(FAREWELL_TRIES)
        self.start(Farewell(self, payloads), now)

    def close(self, failure: Failure | None, now: float) -> None:
        """The end. Our last response is repeated for a while to a peer that missed it."""
        if self.state is IkeSaState.DELETED:
            return
        if self.state is IkeSaState.DELETING:
            failure = None  # It has its reason already; how the peer took it is no other.
        self._close_children()
        self.channel.window.abandon()
        self._move_to(IkeSaState.DELETED)
        self._expires_at = now + LINGER_SECONDS
        self.core.touched.add(self)
        self._report_closed(failure)

    def _close_children(self) -> None:
        for child in self.children:
            child.close()
        self.children.clear()

    def _report_closed(self, failure: Failure | None) -> None:
        if self._is_reported:
            return
        self._is_reported = True
        if self.is_initiator or self._was_established:
            self.core.emit(
                TunnelClosed(
                    tunnel=self.tunnel_name,
                    was_established=self._was_established,
                    is_initiator=self.is_initiator,
                    failure=failure,
                )
            )
        elif failure is not None:
            self.core.emit(RequestRefused(tunnel=self.tunnel_name, path=self.path, failure=failure))

    # Time.

    @property
    def next_timeout(self) -> float | None:
        moments = (self.channel.window.next_timeout, self._expires_at, self._liveness_at)
        return min((m for m in moments if m is not None), default=None)

    @property
    def _liveness_at(self) -> float | None:
        if self.state is not IkeSaState.ESTABLISHED or self.channel.window.outstanding is not None:
            return None
        assert self.tunnel is not None
        return self._heard_at + self.tunnel.dpd_seconds if self.tunnel.dpd_seconds else None

    def handle_timeout(self, now: float) -> None:
        """Whatever is due: expiry, a retransmission, a liveness check."""
        if self._expires_at is not None and now >= self._expires_at:
            self._expire(now)
            return
        try:
            was_sent = self.channel.retransmit(now)
        except PeerSilent:
            self._give_up(now)
            return
        if not was_sent and self._liveness_at is not None and now >= self._liveness_at:
            self.start(LivenessCheck(self), now)

    def _expire(self, now: float) -> None:
        if self.state is not IkeSaState.DELETED:
            summary = f"{self.path.remote} began an exchange and did not go on with IKE_AUTH"
            self.close(self._refusal or Failure(code="XF2001", summary=summary), now)
        self.core.forget(self)

    def _give_up(self, now: float) -> None:
        assert self.channel.window.outstanding is not None
        exchange = self.channel.window.outstanding.exchange.type.name
        count = self.channel.window.outstanding.retransmissions + 1
        summary = f"{self.path.remote} did not answer {exchange}, sent {count} times"
        self.close(Failure(code="XF2001", summary=summary), now)

    def _move_to(self, state: IkeSaState) -> None:
        if state not in IKE_SA_TRANSITIONS[self.state]:
            raise IllegalTransition(f"IKE SA: {self.state} to {state}")
        self.state = state


class CriticalPayload(Exception):
    """An unknown payload with the critical bit: the message must be refused (section 2.5)."""

    def __init__(self, kind: PayloadType) -> None:
        super().__init__(f"the critical payload {kind.value} is unknown")
        self.notify = NotifyPayload(
            type=NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD, data=bytes([kind.value])
        )


def check_critical(payloads: tuple[Payload, ...]) -> None:
    for payload in payloads:
        if isinstance(payload, UnknownPayload) and payload.critical:
            raise CriticalPayload(payload.type)
