"""The messages of one IKE SA as octets: numbered, sealed, sent, sent again.

Read RFC 7296 sections 2.1 to 2.4, 2.23 and 3.14 first. What a message means, and whether it may
come now, is the business of the IKE SA and of its exchanges; here are only its keys, its SPIs, its
path and its window.
"""

from __future__ import annotations

from dataclasses import dataclass

from xfrmpy.crypto.key_schedule import IkeKeys
from xfrmpy.ike.core import Core
from xfrmpy.ike.exchange import FIRST_EXCHANGES, Exchange
from xfrmpy.ike.outputs import ExchangeStarted, RequestRetransmitted, SendDatagram
from xfrmpy.ike.protection import Inner, Protection
from xfrmpy.ike.window import Window
from xfrmpy.ipsec.addresses import Path
from xfrmpy.ipsec.proposals import IkeSuite
from xfrmpy.policy.model import Retransmission
from xfrmpy.registry import ExchangeType
from xfrmpy.wire.message import Message, encode_message
from xfrmpy.wire.payloads import OpenPayload

NON_ESP_MARKER = bytes(4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request of the peer that is being handled, and where its answer goes."""

    message: Message
    path: Path


class Channel:
    """See the module. `spis` are ours and theirs; `tunnel` names the channel in what it reports."""

    def __init__(
        self,
        core: Core,
        *,
        path: Path,
        is_initiator: bool,
        schedule: Retransmission,
        spis: tuple[bytes, bytes] | None = None,
    ) -> None:
        self.path = path
        self.is_initiator = is_initiator
        self.our_spi, self.their_spi = spis or (core.new_ike_spi(), bytes(8))
        self.window = Window(schedule, core.random)
        self.tunnel = ""
        self.init_request = b""
        self.init_response = b""
        self._core = core
        self._question: Question | None = None
        self._protection: Protection | None = None

    @property
    def spi_i(self) -> bytes:
        return self.our_spi if self.is_initiator else self.their_spi

    @property
    def spi_r(self) -> bytes:
        return self.their_spi if self.is_initiator else self.our_spi

    # Keys.

    @property
    def is_protected(self) -> bool:
        return self._protection is not None

    def protect(self, suite: IkeSuite, keys: IkeKeys) -> None:
        """Seal and open every message from now on."""
        self._protection = Protection(
            suite, keys, is_initiator=self.is_initiator, random=self._core.random
        )

    def open(self, message: Message, data: bytes) -> Inner:
        """The inside of a received message. Raises `Drop` if it is not authentic."""
        assert self._protection is not None
        return self._protection.open(message, data)

    # Requests of ours.

    def ask(self, exchange: Exchange, now: float) -> None:
        """Send the request of an exchange; the window must have room."""
        message_id = self.window.begin(exchange)
        datagram = self._encode(exchange.type, message_id, exchange.request(), is_response=False)
        self.window.sent(datagram, now)
        if exchange.type in FIRST_EXCHANGES:
            self.init_request = datagram
        self._send(datagram, self.path)
        self._core.emit(ExchangeStarted(tunnel=self.tunnel, exchange=exchange.type, path=self.path))

    def retransmit(self, now: float) -> bool:
        """Send again what is due; whether anything was. Raises `PeerSilent` after the last time."""
        request = self.window.retransmit(now)
        if request is None:
            return False
        self._send(request.datagram, self.path)
        self._core.emit(
            RequestRetransmitted(
                tunnel=self.tunnel,
                exchange=request.exchange.type,
                path=self.path,
                count=request.retransmissions,
                of=self.window.schedule.tries,
            )
        )
        return True

    # Requests of the peer.

    def begin_answer(self, message: Message, path: Path) -> None:
        """A request is being handled; `respond` answers it, once."""
        self._question = Question(message=message, path=path)

    def respond(self, payloads: tuple[OpenPayload, ...]) -> bytes:
        """Answer the request that is being handled; returns the octets of the message."""
        assert self._question is not None
        question, self._question = self._question, None
        request = question.message
        datagram = self._encode(request.exchange, request.message_id, payloads, is_response=True)
        self.window.answered(datagram)
        self._send(datagram, question.path)
        return datagram

    def repeat_answer(self, datagram: bytes, path: Path) -> None:
        """The peer asks again what was answered before."""
        self._send(datagram, path)

    # Octets.

    def _encode(
        self,
        exchange: ExchangeType,
        message_id: int,
        payloads: tuple[OpenPayload, ...],
        *,
        is_response: bool,
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
        self._core.emit(SendDatagram(path=path, data=with_marker(path, datagram)))


def with_marker(path: Path, datagram: bytes) -> bytes:
    """The datagram as it goes on the wire (RFC 7296 section 2.23, RFC 3948 section 2.2)."""
    return NON_ESP_MARKER + datagram if path.natt else datagram
