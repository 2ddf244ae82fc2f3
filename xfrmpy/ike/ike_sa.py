"""One IKE SA: its state, its keys, and the way of a message through it.

Read RFC 7296 sections 1.4, 2.1 to 2.4 and 2.21 first. What an exchange means stands in the modules
of the exchanges (`init`, `auth`, `informational`); Message IDs and retransmission in `window`; the
Child SAs in `child_sa`. Here they meet: a message is checked, opened, and given to its exchange.
"""

from __future__ import annotations

from typing import TypeAlias

from xfrmpy.crypto.key_schedule import IkeKeys, derive_ike_keys
from xfrmpy.failures import Failure
from xfrmpy.ike.child_sa import ChildSa
from xfrmpy.ike.core import Core
from xfrmpy.ike.errors import Drop, DropReason, PeerMisbehaved
from xfrmpy.ike.exchange import Exchange, payloads_in_clear
from xfrmpy.ike.informational import Farewell, LivenessCheck
from xfrmpy.ike.nat import NatSituation
from xfrmpy.ike.outputs import (
    ExchangeStarted,
    IkeSaEstablished,
    NatDetected,
    RequestRefused,
    RequestRetransmitted,
    SendDatagram,
    TunnelClosed,
)
from xfrmpy.ike.protection import Inner, Protection
from xfrmpy.ike.requests import REQUESTS
from xfrmpy.ike.states import IKE_SA_TRANSITIONS, IkeSaState, IllegalTransition
from xfrmpy.ike.window import PeerSilent, Window
from xfrmpy.ipsec.addresses import Path
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import IkeSuite, Proposal, ike_suite
from xfrmpy.policy.model import Retransmission, TunnelPolicy
from xfrmpy.registry import ExchangeType, NotifyType, PayloadType
from xfrmpy.wire.cursor import Malformed
from xfrmpy.wire.message import Message, decode_payloads_untrusted, encode_message
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload, Payload, UnknownPayload

NON_ESP_MARKER = bytes(4)

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
        self.path = path
        self.is_initiator = is_initiator
        self.tunnel = tunnel
        self.state = IkeSaState.INITIATING
        self.our_spi = core.new_ike_spi()
        self.their_spi = bytes(8)
        self.window = Window(schedule, core.random)
        self.nat = NatSituation()
        self.proposal: Proposal | None = None
        self.suite: IkeSuite | None = None
        self.keys: IkeKeys | None = None
        self.remote_id: Identity | None = None
        self.local_id: Identity | None = None
        self.nonce_i = b""
        self.nonce_r = b""
        self.init_request = b""
        self.init_response = b""
        self.children: list[ChildSa] = []
        self.established_at = 0.0
        self._heard_at = 0.0
        self._expires_at: float | None = None
        self._refusal: Failure | None = None
        self._was_established = False
        self._is_reported = False
        self._answering: tuple[Message, Path] | None = None
        self._protection: Protection | None = None
        core.ike_sas[self.our_spi] = self

    @property
    def spi_i(self) -> bytes:
        return self.our_spi if self.is_initiator else self.their_spi

    @property
    def spi_r(self) -> bytes:
        return self.their_spi if self.is_initiator else self.our_spi

    @property
    def tunnel_name(self) -> str:
        return "" if self.tunnel is None else self.tunnel.name

    # A message of the peer.

    def receive(self, message: Message, data: bytes, path: Path, now: float) -> None:
        """Take a message whose SPI is ours. Raises `Drop` if it changes nothing."""
        if message.is_initiator == self.is_initiator:
            raise Drop(DropReason.WRONG_ROLE)
        if self._protection is None:
            self._receive_in_clear(message, data, now)
            return
        if message.exchange is ExchangeType.IKE_SA_INIT:
            raise Drop(DropReason.WRONG_STATE)
        inner = self._protection.open(message, data)
        self.core.handling = self
        if message.is_response:
            self._receive_response(message, inner, now)
        else:
            self._receive_request(message, inner, path, now)

    def _receive_in_clear(self, message: Message, data: bytes, now: float) -> None:
        if message.exchange is not ExchangeType.IKE_SA_INIT or not message.is_response:
            raise Drop(DropReason.WRONG_STATE)
        request = self.window.outstanding_for(message.message_id)
        self.core.handling = self
        self.their_spi = message.spi_r
        self.init_response = data
        try:
            payloads = payloads_in_clear(message)
            check_critical(payloads)
            request.exchange.handle_response(payloads, now)
        except (PeerMisbehaved, CriticalPayload) as error:
            # Anybody can send this: go on waiting for the real one (RFC 7296 section 2.21.1).
            raise Drop(DropReason.MALFORMED) from error
        finally:
            if self._protection is None:
                self.their_spi = bytes(8)

    def _receive_response(self, message: Message, inner: Inner, now: float) -> None:
        request = self.window.outstanding_for(message.message_id)
        if request.exchange.type is not message.exchange:
            raise Drop(DropReason.WRONG_EXCHANGE)
        self._heard_at = now
        self.window.complete()
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
        cached = self.window.accept_request(message.message_id)
        if cached is not None:
            self._send(cached, path)
            return
        row = REQUESTS.get(message.exchange)
        if row is None:
            raise Drop(DropReason.WRONG_EXCHANGE)
        if self.state not in row.states:
            raise Drop(DropReason.WRONG_STATE)
        self._heard_at = now
        if self.state is IkeSaState.AUTHENTICATING:
            self.path = path  # The initiator moves to port 4500 here (RFC 7296 section 2.23).
        self.begin_answer(message, path)
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
        if self.window.outstanding is not None:
            self.window.waiting.append(exchange)
            return
        self.core.touched.add(self)
        message_id = self.window.begin(exchange)
        datagram = self._encode(exchange.type, message_id, exchange.request(), is_response=False)
        self.window.sent(datagram, now)
        if exchange.type is ExchangeType.IKE_SA_INIT:
            self.init_request = datagram
        self._send(datagram, self.path)
        self.core.emit(
            ExchangeStarted(tunnel=self.tunnel_name, exchange=exchange.type, path=self.path)
        )

    def begin_answer(self, message: Message, path: Path) -> None:
        """A request is being handled; `respond` answers it, once."""
        self._answering = (message, path)

    def respond(self, payloads: Payloads) -> bytes:
        """Answer the request that is being handled; returns the octets of the message."""
        assert self._answering is not None
        (request, path), self._answering = self._answering, None
        datagram = self._encode(request.exchange, request.message_id, payloads, is_response=True)
        self.window.answered(datagram)
        self._send(datagram, path)
        return datagram

    def _encode(
        self, exchange: ExchangeType, message_id: int, payloads: Payloads, *, is_response: bool
    ) -> bytes:
        message = Message(
            spi_i=self.spi_i,
            spi_r=self.spi_r,
            exchange=exchange,
            is_response=is_response,
            is_initiator=self.is_initiator,
            message_id=message_id,
            payloads=payloads,
        )
        if self._protection is None:
            return encode_message(message)
        return self._protection.seal(message, payloads)

    def _send(self, datagram: bytes, path: Path) -> None:
        self.core.emit(SendDatagram(path=path, data=with_marker(path, datagram)))

    def _start_waiting(self, now: float) -> None:
        if self.window.waiting and self.window.outstanding is None:
            self.start(self.window.waiting.popleft(), now)

    # Its life.

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
            spi_i=self.spi_i,
            spi_r=self.spi_r,
        )
        self._protection = Protection(
            self.suite, self.keys, is_initiator=self.is_initiator, random=self.core.random
        )
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
        self.tunnel, self.local_id, self.remote_id = tunnel, local, remote
        self.window.schedule = tunnel.retransmission
        self.init_request = self.init_response = b""
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
        if self._protection is None:
            self.close(failure, now)
            return
        self._close_children()
        self._move_to(IkeSaState.DELETING)
        if failure is not None:
            self._report_closed(failure)
        self.window.waiting.clear()
        self.window.hurry(FAREWELL_TRIES)
        self.start(Farewell(self, payloads), now)

    def close(self, failure: Failure | None, now: float) -> None:
        """The end. Our last response is repeated for a while to a peer that missed it."""
        if self.state is IkeSaState.DELETED:
            return
        if self.state is IkeSaState.DELETING:
            failure = None  # It has its reason already; how the peer took it is no other.
        self._close_children()
        self.window.abandon()
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
        moments = (self.window.next_timeout, self._expires_at, self._liveness_at)
        return min((m for m in moments if m is not None), default=None)

    @property
    def _liveness_at(self) -> float | None:
        if self.state is not IkeSaState.ESTABLISHED or self.window.outstanding is not None:
            return None
        assert self.tunnel is not None
        return self._heard_at + self.tunnel.dpd_seconds if self.tunnel.dpd_seconds else None

    def handle_timeout(self, now: float) -> None:
        """Whatever is due: expiry, a retransmission, a liveness check."""
        if self._expires_at is not None and now >= self._expires_at:
            self._expire(now)
            return
        try:
            request = self.window.retransmit(now)
        except PeerSilent:
            self._give_up(now)
            return
        if request is not None:
            self._send(request.datagram, self.path)
            self.core.emit(
                RequestRetransmitted(
                    tunnel=self.tunnel_name,
                    exchange=request.exchange.type,
                    path=self.path,
                    count=request.retransmissions,
                    of=self.window.schedule.tries,
                )
            )
        elif self._liveness_at is not None and now >= self._liveness_at:
            self.start(LivenessCheck(self), now)

    def _expire(self, now: float) -> None:
        if self.state is not IkeSaState.DELETED:
            summary = f"{self.path.remote} began an exchange and did not go on with IKE_AUTH"
            self.close(self._refusal or Failure(code="XF2001", summary=summary), now)
        self.core.forget(self)

    def _give_up(self, now: float) -> None:
        assert self.window.outstanding is not None
        exchange = self.window.outstanding.exchange.type.name
        count = self.window.outstanding.retransmissions + 1
        summary = f"{self.path.remote} did not answer {exchange}, sent {count} times"
        self.close(Failure(code="XF2001", summary=summary), now)

    def _move_to(self, state: IkeSaState) -> None:
        if state not in IKE_SA_TRANSITIONS[self.state]:
            raise IllegalTransition(f"IKE SA: {self.state} to {state}")
        self.state = state


def with_marker(path: Path, datagram: bytes) -> bytes:
    """The datagram as it goes on the wire (RFC 7296 section 2.23, RFC 3948 section 2.2)."""
    return NON_ESP_MARKER + datagram if path.natt else datagram


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
