"""The messages of one IKE SA as octets: numbered, sealed, cut into fragments, sent, sent again.

Read RFC 7296 sections 2.1 to 2.4, 2.23 and 3.14 and RFC 7383 first. What a message means, and
whether it may come now, is the business of the IKE SA and of its exchanges; here are only its keys,
its SPIs, its path and its window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from xfrmpy.crypto.key_schedule import IkeKeys
from xfrmpy.ike.core import Core
from xfrmpy.ike.errors import Drop, DropReason
from xfrmpy.ike.exchange import FIRST_EXCHANGES, Exchange
from xfrmpy.ike.fragments import Reassembler, Whole
from xfrmpy.ike.outputs import (
    ExchangeStarted,
    FragmentSizeReduced,
    RequestRetransmitted,
    SendDatagram,
)
from xfrmpy.ike.protection import Inner, Protection, unsealed
from xfrmpy.ike.synchronization import SYNC_MESSAGE_ID, MessageIdSync
from xfrmpy.ike.timers import earliest
from xfrmpy.ike.window import Outstanding, Sent, Window
from xfrmpy.ipsec.addresses import Path
from xfrmpy.ipsec.proposals import IkeSuite
from xfrmpy.policy.model import Retransmission
from xfrmpy.registry import ExchangeType
from xfrmpy.wire.message import Message, encode_message, unfragmented_prefix
from xfrmpy.wire.payloads import EncryptedFragmentPayload, OpenPayload

NON_ESP_MARKER = bytes(4)
UDP_HEADER_SIZE = 8
IP_HEADER_SIZES = {4: 20, 6: 40}

DATAGRAM_SIZES = {4: (1200, 576), 6: (1280, 576)}
"""The IP datagrams that a large message is cut into, and those to fall to when they get no answer.

RFC 7383 section 2.5.1 recommends 1280 octets for IPv6 and 576 for IPv4, and allows others. Ours for
IPv4 leaves room for a tunnel within a path of 1280 octets; the small ones find a way that the large
ones do not."""

PROBES = 2
"""Repetitions of a large message before it is cut smaller, ours: three copies in seven seconds.
RFC 7383 section 2.5.2: "a few retries within several seconds for each probe seems appropriate"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request of the peer that is being handled, where its answer goes, and how large it may be.

    `fragment_size` is that of the request, if it came in fragments: "The responder in the exchange
    may use the maximum size of the received IKE Fragment message IP datagrams as a threshold" (RFC
    7383 section 2.5.1).
    """

    message: Message
    path: Path
    fragment_size: int | None


class Channel:
    """See the module. `spis` are ours and theirs; `tunnel` names the channel in what it reports.

    Both ends have agreed on `fragments` (RFC 7383 section 2.3) and that the peer, which may be a
    cluster, `may_sync` Message IDs (RFC 6311 section 5). `intermediate_request` and
    `intermediate_response` are those of the newest IKE_INTERMEDIATE, as AUTH covers them.
    """

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
        self.intermediate_request = b""
        self.intermediate_response = b""
        self.fragments = False
        self.may_sync = False
        self._core = core
        self._question: Question | None = None
        self._protection: Protection | None = None
        self._replaced: tuple[int, Protection] | None = None
        self._prefix = b""
        self._reassembler = Reassembler(core.fragments)
        self._size_step = 0
        self._is_closed = False

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

    def protect_anew(self, suite: IkeSuite, keys: IkeKeys, *, behind: int) -> None:
        """The same with other keys, but for what belongs to the IKE_INTERMEDIATE `behind` which
        they are: it may be repeated (RFC 9370 section 2.2.2)."""
        assert self._protection is not None
        self._replaced = (behind, self._protection)
        self.protect(suite, keys)

    def forget_replaced_keys(self) -> None:
        """No IKE_INTERMEDIATE is repeated any more."""
        self._replaced = None

    def _protection_of(self, message: Message) -> Protection:
        assert self._protection is not None
        if self._replaced is not None and message.exchange is ExchangeType.IKE_INTERMEDIATE:
            behind, replaced = self._replaced
            return replaced if message.message_id <= behind else self._protection
        return self._protection

    @property
    def sealed(self) -> int:
        """How many IVs have been used: see `Protection`."""
        assert self._protection is not None
        return self._protection.sealed

    @sealed.setter
    def sealed(self, count: int) -> None:
        assert self._protection is not None
        self._protection.sealed = count

    def inherit(self, other: Channel) -> None:
        """Take the place of another: what was agreed on it, and found out about the path."""
        self.fragments, self.may_sync = other.fragments, other.may_sync
        self._size_step = other._size_step

    # What comes.

    def open(self, message: Message, data: bytes) -> Inner:
        """The inside of a received message. Raises `Drop` if it is not authentic."""
        fragment = message.sealed if isinstance(message.sealed, EncryptedFragmentPayload) else None
        if fragment is not None and not self.fragments:
            raise Drop(DropReason.FRAGMENTS_NOT_AGREED)
        inner = self._protection_of(message).open(message, data)
        is_intermediate = message.exchange is ExchangeType.IKE_INTERMEDIATE
        if is_intermediate and (fragment is None or fragment.number == 1):
            self._prefix = data[: message.sealed_at]
        return inner

    def note_intermediate(self, whole: Whole) -> None:
        """Keep a message of IKE_INTERMEDIATE that has come, for AUTH."""
        if whole.message.exchange is not ExchangeType.IKE_INTERMEDIATE:
            return
        prefix = unfragmented_prefix(whole.message, self._prefix, len(whole.octets))
        self._keep_intermediate(whole.message, prefix + whole.octets)

    def _keep_intermediate(self, message: Message, octets: bytes) -> None:
        if message.is_response:
            self.intermediate_response = octets
        else:
            self.intermediate_request = octets

    def collect(
        self, message: Message, inner: Inner, size: int, path: Path, now: float
    ) -> Whole | None:
        """The message that an authentic datagram of `size` octets is or completes, if it is due.

        None if there is nothing more to do: the rest of the message is to come, or it was answered
        before, and the answer is sent again. Raises `Drop`, or `PeerMisbehaved` for fragments
        without measure.
        """
        if message.is_response:
            self.window.outstanding_for(message.message_id)
        elif (answer := self.window.accept_request(message.message_id)) is not None:
            self._repeat_answer(answer, message, path)
            return None
        if self._is_closed and isinstance(message.sealed, EncryptedFragmentPayload):
            raise Drop(DropReason.WRONG_STATE)
        return self._reassembler.collect(message, inner[1], size, now)

    def answer_sync(self, asked: MessageIdSync, request: Message, path: Path) -> None:
        """The peer has failed over: agree on Message IDs, outside the window (RFC 6311).

        Raises `Drop` for a replay. The answer is not kept: who missed it asks with higher numbers.
        """
        theirs, ours = self.window.synchronize(asked.next_sent, asked.next_expected)
        self._core.changed.add(self.our_spi)
        self.discard_fragments()
        answer = MessageIdSync(nonce=asked.nonce, next_sent=ours, next_expected=theirs)
        message = self._message(
            request.exchange, SYNC_MESSAGE_ID, (answer.encode(),), is_response=True
        )
        self._send(self._seal(message, self._limit(path, self._size_step)), path)

    def _repeat_answer(self, answer: Sent, request: Message, path: Path) -> None:
        """RFC 7383 section 2.6.1: a fragment triggers it only "if the Fragment Number field in the
        received fragment is set to 1; otherwise, it MUST be ignored"."""
        fragment = request.sealed
        if answer.message.exchange != request.exchange:
            raise Drop(DropReason.WRONG_EXCHANGE)
        if isinstance(fragment, EncryptedFragmentPayload) and fragment.number != 1:
            raise Drop(DropReason.FRAGMENT_REPEATED)
        if not self._shrink(answer, path):
            answer.retransmissions += 1
        self._send(answer, path)

    # Requests of ours.

    def ask(self, exchange: Exchange, now: float) -> None:
        """Send the request of an exchange; the window must have room."""
        message_id = self.window.begin(exchange)
        message = self._message(exchange.type, message_id, exchange.request(), is_response=False)
        sent = self._seal(message, self._limit(self.path, self._size_step))
        self.window.sent(message_id, sent, now)
        if exchange.type in FIRST_EXCHANGES:
            (self.init_request,) = sent.datagrams
        self._send(sent, self.path)
        self._core.emit(ExchangeStarted(tunnel=self.tunnel, exchange=exchange.type, path=self.path))

    def retransmit(self, now: float) -> bool:
        """Send again what is due; whether anything was. Raises `PeerSilent` after the last time."""
        request = self.window.due(now)
        if request is None or request.sent is None:
            return False
        if self._shrink(request.sent, self.path):
            self.window.start_over(request, now)
        else:
            self.window.retransmit(request, now)
            self._report_retransmission(request)
        self._send(request.sent, self.path)
        return True

    def _report_retransmission(self, request: Outstanding) -> None:
        self._core.emit(
            RequestRetransmitted(
                tunnel=self.tunnel,
                exchange=request.exchange.type,
                path=self.path,
                count=request.retransmissions,
                of=self.window.schedule.tries,
            )
        )

    # Requests of the peer.

    def begin_answer(self, message: Message, path: Path, fragment_size: int | None = None) -> None:
        """A request is being handled; `respond` answers it, once."""
        self.window.begin_answer(message.message_id)
        self._question = Question(message=message, path=path, fragment_size=fragment_size)

    def respond(self, payloads: tuple[OpenPayload, ...]) -> None:
        """Answer the request that is being handled."""
        assert self._question is not None
        question, self._question = self._question, None
        request = question.message
        answer = self._message(request.exchange, request.message_id, payloads, is_response=True)
        limit = self._limit(question.path, self._size_step)
        sent = self._seal(answer, min(limit, question.fragment_size or limit))
        self.window.answered(request.message_id, sent)
        if request.exchange in FIRST_EXCHANGES:
            (self.init_response,) = sent.datagrams
        self._send(sent, question.path)

    # Time, and the end.

    @property
    def next_timeout(self) -> float | None:
        return earliest(self.window.next_timeout, self._reassembler.next_timeout)

    def forget_fragments(self, now: float) -> None:
        """Give up the messages whose rest does not come."""
        self._reassembler.expire(now)

    def discard_fragments(self) -> None:
        """Give up every message that is here in part."""
        self._reassembler.clear()

    def close(self) -> None:
        """Ask nothing more, and take no more parts of messages, but repeat the last answer."""
        self.window.abandon()
        self._is_closed = True
        self.discard_fragments()

    # Octets.

    def _message(
        self,
        exchange: ExchangeType,
        message_id: int,
        payloads: tuple[OpenPayload, ...],
        *,
        is_response: bool,
    ) -> Message:
        return Message(
            spi_i=self.spi_i,
            spi_r=self.spi_r,
            exchange=exchange,
            is_response=is_response,
            is_initiator=self.is_initiator,
            message_id=message_id,
            payloads=payloads,
        )

    def _seal(self, message: Message, limit: int) -> Sent:
        """What is never cut into smaller parts is not kept beside its octets."""
        sent = Sent(message=message, datagrams=self._datagrams(message, limit))
        if message.exchange is ExchangeType.IKE_INTERMEDIATE:
            payloads = cast("tuple[OpenPayload, ...]", message.payloads)
            self._keep_intermediate(message, unsealed(message, payloads))
        if message.payloads and not self.may_shrink(sent):
            sent.message = replace(message, payloads=())
        return sent

    def _datagrams(self, message: Message, limit: int) -> tuple[bytes, ...]:
        if self._protection is None:
            return (encode_message(message),)
        protection = self._protection_of(message)
        self._core.counted.add(self.our_spi)
        payloads = cast("tuple[OpenPayload, ...]", message.payloads)
        whole = protection.seal(message, payloads)
        if self.fragments and len(whole) > limit:
            return protection.seal_in_parts(message, payloads, limit)
        return (whole,)

    def may_shrink(self, sent: Sent) -> bool:
        """Whether a message could ever go out in smaller fragments."""
        if not self.fragments:
            return False
        last = len(DATAGRAM_SIZES[self.path.remote.address.version]) - 1
        return max(map(len, sent.datagrams)) > self._limit(self.path, last)

    def _shrink(self, sent: Sent, path: Path) -> bool:
        """Whether a large message that gets no answer goes out in smaller fragments from now on.

        "the sender MUST ensure that the value in the Total Fragments field is really increased"
        (RFC 7383 section 2.5.2). Sealed anew, each fragment has a nonce of its own.
        """
        if not self.fragments or sent.retransmissions < PROBES:
            return False
        largest = max(map(len, sent.datagrams))
        for step in range(self._size_step, len(DATAGRAM_SIZES[path.remote.address.version])):
            limit = self._limit(path, step)
            if largest <= limit:
                continue
            datagrams = self._datagrams(sent.message, limit)
            if len(datagrams) > len(sent.datagrams):
                sent.datagrams, sent.retransmissions = datagrams, 0
                self._size_step = step
                self._core.changed.add(self.our_spi)
                self._report_size(sent, path)
                return True
        return False

    def _report_size(self, sent: Sent, path: Path) -> None:
        octets = DATAGRAM_SIZES[path.remote.address.version][self._size_step]
        exchange = sent.message.exchange
        self._core.emit(
            FragmentSizeReduced(tunnel=self.tunnel, exchange=exchange, path=path, octets=octets)
        )

    def _limit(self, path: Path, step: int) -> int:
        """The octets of a message that fit into an IP datagram of one of the sizes."""
        version = path.remote.address.version
        size = DATAGRAM_SIZES[version][step] - IP_HEADER_SIZES[version] - UDP_HEADER_SIZE
        return size - len(NON_ESP_MARKER) if path.natt else size

    def _send(self, sent: Sent, path: Path) -> None:
        for datagram in sent.datagrams:
            self._core.emit(SendDatagram(path=path, data=with_marker(path, datagram)))


def with_marker(path: Path, datagram: bytes) -> bytes:
    """The datagram as it goes on the wire (RFC 7296 section 2.23, RFC 3948 section 2.2)."""
    return NON_ESP_MARKER + datagram if path.natt else datagram
