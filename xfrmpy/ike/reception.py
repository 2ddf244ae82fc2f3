"""The way of a received message through its IKE SA: checked, opened, put together, handed on.

Read RFC 7296 sections 2.1 to 2.3 and 2.21 first. From the moment at which a message has opened it
is authentic; until then it changes nothing. What it means is the business of its exchange.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xfrmpy.failures import Failure
from xfrmpy.ike.auth_puzzle import take_solution
from xfrmpy.ike.crash import take_proof
from xfrmpy.ike.errors import CriticalPayload, Drop, DropReason, PeerMisbehaved
from xfrmpy.ike.exchange import (
    FIRST_EXCHANGES,
    check_critical,
    payloads_in_clear,
)
from xfrmpy.ike.fragments import Whole
from xfrmpy.ike.informational import Farewell, LivenessCheck
from xfrmpy.ike.protection import Inner
from xfrmpy.ike.requests import REQUESTS
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ike.synchronization import find_sync, is_sync_candidate
from xfrmpy.ike.window_size import note_window
from xfrmpy.ipsec.addresses import Path
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.cursor import Malformed
from xfrmpy.wire.message import Message, decode_payloads_untrusted
from xfrmpy.wire.payloads import NotifyPayload

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa


def receive(sa: IkeSa, message: Message, data: bytes, path: Path, now: float) -> None:
    """Take a message whose SPI is ours. Raises `Drop` if it changes nothing."""
    if message.is_initiator == sa.is_initiator:
        raise Drop(DropReason.WRONG_ROLE)
    take_solution(sa, message, now)
    if not sa.channel.is_protected:
        _receive_in_clear(sa, message, data, now)
        return
    if message.exchange in FIRST_EXCHANGES:
        raise Drop(DropReason.WRONG_STATE)
    if message.sealed is None:
        take_proof(sa, message, now)
        return
    inner = sa.channel.open(message, data)
    sa.core.handling = sa
    if _synchronizes(sa, message, inner, path, now):
        return
    try:
        whole = sa.channel.collect(message, inner, len(data), path, now)
    except PeerMisbehaved as error:
        _refuse_fragments(sa, error, now)
        return
    if whole is None:
        return
    sa.channel.note_intermediate(whole)
    if message.is_response:
        _receive_response(sa, whole, path, now)
    else:
        _receive_request(sa, whole, path, now)


def _receive_in_clear(sa: IkeSa, message: Message, data: bytes, now: float) -> None:
    if message.exchange not in FIRST_EXCHANGES or not message.is_response:
        raise Drop(DropReason.WRONG_STATE)
    channel = sa.channel
    request = channel.window.outstanding_for(message.message_id)
    if request.exchange.type is not message.exchange:
        raise Drop(DropReason.WRONG_EXCHANGE)
    sa.core.handling = sa
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


def _synchronizes(sa: IkeSa, message: Message, inner: Inner, path: Path, now: float) -> bool:
    """Whether the message is a peer's that has failed over, which is then answered.

    Raises `Drop` for a replay, `PeerMisbehaved` for one that is not as it must be.
    """
    if not sa.channel.may_sync or not is_sync_candidate(message):
        return False
    if sa.state not in REQUESTS[message.exchange].states:
        return False
    try:
        asked = find_sync(decode_payloads_untrusted(*inner))
    except Malformed:
        return False  # Like any other request that is.
    if asked is None:
        return False
    sa.channel.answer_sync(asked, message, path)
    sa.heard_at = now
    sa.start_waiting(now)
    return True


def resume(sa: IkeSa, step: Callable[[float], None], now: float) -> None:
    """The rest of IKE_AUTH, which had to wait for an answer from outside."""
    sa.core.changed.add(sa.our_spi)
    try:
        step(now)
    except (Malformed, PeerMisbehaved) as error:
        failure = Failure(code="XF2008", summary=str(error))
        if sa.is_initiator:
            sa.terminate(failure, now)
        else:
            sa.respond((NotifyPayload(type=NotifyType.INVALID_SYNTAX),))
            sa.close(failure, now)
    sa.start_waiting(now)


def _refuse_fragments(sa: IkeSa, error: PeerMisbehaved, now: float) -> None:
    """RFC 7383 section 5: "the receiver SHOULD drop the connection and discard all the received
    fragments"."""
    failure = Failure(code="XF2008", summary=str(error))
    if sa.state is IkeSaState.ESTABLISHED:
        sa.channel.discard_fragments()
        sa.terminate(failure, now)
    else:
        sa.close(failure, now)


def _receive_response(sa: IkeSa, whole: Whole, path: Path, now: float) -> None:
    message = whole.message
    request = sa.channel.window.outstanding_for(message.message_id)
    if request.exchange.type is not message.exchange:
        raise Drop(DropReason.WRONG_EXCHANGE)
    sa.heard_at = now
    sa.follow_peer(path)
    sa.channel.window.complete(message.message_id)
    if whole.octets or type(request.exchange) is not LivenessCheck:
        sa.core.changed.add(sa.our_spi)
    # That a peer lives is in no record: at worst it is asked once more, and answers the same.
    try:
        payloads = decode_payloads_untrusted(whole.first_inner, whole.octets)
        check_critical((*message.payloads, *payloads))
        if sa.state is not IkeSaState.DELETING or isinstance(request.exchange, Farewell):
            request.exchange.handle_response(payloads, now)
        note_window(sa, payloads)
    except (Malformed, PeerMisbehaved, CriticalPayload) as error:
        failure = Failure(code="XF2008", summary=str(error))
        if isinstance(request.exchange, Farewell):
            sa.close(failure, now)
        else:
            sa.terminate(failure, now)
    sa.start_waiting(now)


def _receive_request(sa: IkeSa, whole: Whole, path: Path, now: float) -> None:
    message = whole.message
    row = REQUESTS.get(message.exchange)
    if row is None:
        raise Drop(DropReason.WRONG_EXCHANGE)
    handler = row.handler_for(sa)
    if handler is None:
        raise Drop(DropReason.WRONG_STATE)
    if any(sa in waiting for waiting in (sa.core.lookups, sa.core.inquiries, sa.core.signings)):
        # One that comes beside IKE_AUTH has no business here.
        raise Drop(DropReason.REQUEST_IN_HAND)
    sa.heard_at = sa.sent_at = now
    sa.follow_peer(path)
    if whole.octets or message.exchange is not ExchangeType.INFORMATIONAL:
        sa.core.changed.add(sa.our_spi)
    if sa.state is IkeSaState.AUTHENTICATING:
        # The initiator moves to port 4500 here (RFC 7296 section 2.23).
        sa.channel.path = path
    sa.channel.begin_answer(message, path, whole.fragment_size)
    try:
        payloads = decode_payloads_untrusted(whole.first_inner, whole.octets)
        check_critical((*message.payloads, *payloads))
        handler(sa, payloads, now)
        note_window(sa, payloads)
    except CriticalPayload as error:
        sa.respond((error.notify,))
        if sa.state is IkeSaState.AUTHENTICATING:  # Section 2.21.2: it is not created.
            sa.close(Failure(code="XF2008", summary=str(error)), now)
    except (Malformed, PeerMisbehaved) as error:
        sa.respond((NotifyPayload(type=NotifyType.INVALID_SYNTAX),))
        sa.close(Failure(code="XF2008", summary=str(error)), now)
