"""What is told outside of any IKE SA, and what is made of it (RFC 7296 sections 1.5 and 2.21.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.ike_sa import SUSPICION_SECONDS
from xfrmpy.ike.notices import (
    ANSWERS_PER_SECOND,
    MOST_ANSWERS,
    MOST_NOTICES,
    NOTICES_PER_SECOND,
)
from xfrmpy.ike.outputs import ExchangeStarted, SendDatagram
from xfrmpy.ipsec.addresses import Path, SocketAddress
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.message import Message, decode_message_untrusted, encode_message
from xfrmpy.wire.payloads import NotifyPayload


@pytest.fixture
def wayward(pair: Any, make_backwards: Callable[[Path], Path]) -> tuple[SendDatagram, Path]:
    """A protected request of moon, whom sun has forgotten, and the path it comes on."""
    pair.up()
    pair.moon.endpoint.handle_timeout(31.0)
    (request,) = pair.moon.take_outputs()
    pair.sun.endpoint._core.ike_sas.clear()
    pair.now = 31.0
    return request, make_backwards(request.path)


def test_a_protected_request_of_an_unknown_ike_sa_is_told_so(
    pair: Any, wayward: tuple[SendDatagram, Path]
) -> None:
    request, path = wayward
    pair.sun.endpoint.receive_datagram(request.data, path, pair.now)
    (answer,) = pair.sun.take_outputs()
    asked, told = (decode_message_untrusted(d.data) for d in (request, answer))
    assert told == replace(
        asked,
        is_response=True,
        is_initiator=False,
        payloads=(NotifyPayload(type=NotifyType.INVALID_IKE_SPI),),
    )
    assert answer.path == path
    assert len(answer.data) <= len(request.data)
    assert pair.sun.drops == [DropReason.UNKNOWN_SPI]


def test_a_response_of_an_unknown_ike_sa_is_never_answered(
    pair: Any, wayward: tuple[SendDatagram, Path]
) -> None:
    request, path = wayward
    response = bytearray(request.data)
    response[19] |= 0x20
    pair.sun.endpoint.receive_datagram(bytes(response), path, pair.now)
    assert pair.sun.take_outputs() == []
    assert pair.sun.drops == [DropReason.UNKNOWN_SPI]


def test_two_ends_without_state_do_not_answer_each_other_for_ever(
    pair: Any, wayward: tuple[SendDatagram, Path]
) -> None:
    request, path = wayward
    pair.moon.endpoint._core.ike_sas.clear()
    pair.sun.endpoint.receive_datagram(request.data, path, pair.now)
    pair.deliver()
    assert len(pair.sent) - 4 == 1
    assert pair.moon.drops == [DropReason.UNKNOWN_SPI]


def _unprotected(request: SendDatagram) -> bytes:
    return encode_message(replace(decode_message_untrusted(request.data), payloads=()))


def test_what_is_in_clear_or_too_short_is_not_answered(
    pair: Any, wayward: tuple[SendDatagram, Path]
) -> None:
    request, path = wayward
    sealed = decode_message_untrusted(request.data)
    assert sealed.sealed is not None
    tiny = encode_message(replace(sealed, payloads=(replace(sealed.sealed, sealed=b""),)))
    header = _unprotected(request)
    newer = header[:17] + b"\x30" + header[18:]
    for data in (header, tiny, newer):
        pair.sun.endpoint.receive_datagram(data, path, pair.now)
    assert pair.sun.take_outputs() == []
    assert pair.sun.drops == [
        DropReason.UNKNOWN_SPI,
        DropReason.UNKNOWN_SPI,
        DropReason.WRONG_VERSION,
    ]


@pytest.mark.parametrize("what", [NotifyType.INVALID_IKE_SPI, NotifyType.INVALID_MAJOR_VERSION])
def test_strangers_are_told_only_so_often(
    pair: Any, wayward: tuple[SendDatagram, Path], what: NotifyType
) -> None:
    """Section 2.21.4: "A node needs to limit the rate"."""
    request, path = wayward
    data = request.data
    if what is NotifyType.INVALID_MAJOR_VERSION:
        data = data[:17] + b"\x30" + data[18:]
    for number in range(1000):
        pair.sun.endpoint.receive_datagram(data, path, pair.now + number / 500)
    answers = pair.sun.take_outputs()
    assert len(answers) <= MOST_NOTICES + 2 * NOTICES_PER_SECOND
    kinds = {p.type for a in answers for p in decode_message_untrusted(a.data).payloads}  # type: ignore[union-attr]
    assert kinds == {what}
    assert len(pair.sun.drops) == 1000


def test_all_the_world_together_is_told_only_so_often(
    pair: Any, wayward: tuple[SendDatagram, Path]
) -> None:
    request, path = wayward
    for number in range(3000):
        remote = SocketAddress(ip_address(0xCB007100 + number), 500)
        pair.sun.endpoint.receive_datagram(
            request.data, replace(path, remote=remote), pair.now + number / 1500
        )
    answers = pair.sun.take_outputs()
    assert MOST_ANSWERS <= len(answers) <= MOST_ANSWERS + 2 * ANSWERS_PER_SECOND


# Being told.


def _told(host: Any, data: bytes, now: float, source: str = "") -> list[SendDatagram]:
    path = host.ike_sa.path
    if source:
        path = replace(path, remote=SocketAddress(ip_address(source), 500))
    host.endpoint.receive_datagram(data, path, now)
    sent: list[SendDatagram] = host.take_outputs()
    return sent


def _invalid_ike_spi(host: Any) -> bytes:
    channel = host.ike_sa.channel
    return encode_message(
        Message(
            spi_i=channel.spi_i,
            spi_r=channel.spi_r,
            exchange=ExchangeType.INFORMATIONAL,
            is_response=True,
            is_initiator=not channel.is_initiator,
            message_id=channel.window._next_id,
            payloads=(NotifyPayload(type=NotifyType.INVALID_IKE_SPI),),
        )
    )


def _invalid_spi(host: Any) -> bytes:
    """Section 1.5: random or zero IKE SPIs, the Initiator flag, no Response flag."""
    spi = host.ike_sa.children[0].spi_out.to_bytes(4, "big")
    return encode_message(
        Message(
            spi_i=bytes(8),
            spi_r=bytes(8),
            exchange=ExchangeType.INFORMATIONAL,
            is_response=False,
            is_initiator=True,
            message_id=0,
            payloads=(NotifyPayload(type=NotifyType.INVALID_SPI, data=spi),),
        )
    )


HINTS = pytest.mark.parametrize("hint", [_invalid_ike_spi, _invalid_spi])
ENDS = pytest.mark.parametrize("end", ["moon", "sun"])


@HINTS
@ENDS
def test_a_hint_hastens_a_liveness_check_and_changes_nothing(
    pair: Any, hint: Callable[[Any], bytes], end: str
) -> None:
    pair.up()
    host = getattr(pair, end)
    before = host.snapshot()
    (check,) = _told(host, hint(host), 1.0)
    assert decode_message_untrusted(check.data).exchange is ExchangeType.INFORMATIONAL
    assert host.snapshot() == before
    assert host.drops == [DropReason.HINT]


@HINTS
@ENDS
def test_hints_without_end_ask_rarely_and_a_peer_that_lives_loses_nothing(
    pair: Any, hint: Callable[[Any], bytes], end: str
) -> None:
    pair.up()
    host = getattr(pair, end)
    before = [h.datapath.dump() for h in (pair.moon, pair.sun)]
    for number in range(300):
        host.endpoint.receive_datagram(hint(host), host.ike_sa.path, pair.now)
        pair.run(0.1)
        assert number < 300
    pair.assert_up()
    assert [h.datapath.dump() for h in (pair.moon, pair.sun)] == before
    checks = [o for o in host.reports(ExchangeStarted) if o.exchange is ExchangeType.INFORMATIONAL]
    assert 1 <= len(checks) <= 30 / SUSPICION_SECONDS + 1


@HINTS
def test_a_hint_from_another_address_is_none(pair: Any, hint: Callable[[Any], bytes]) -> None:
    pair.up()
    assert _told(pair.moon, hint(pair.moon), 1.0, "203.0.113.9") == []
    assert DropReason.HINT not in pair.moon.drops


def test_a_hint_about_an_spi_that_is_not_ours_is_none(pair: Any) -> None:
    pair.up()
    data = _invalid_spi(pair.moon)
    other = data[:-4] + bytes([data[-4] ^ 1]) + data[-3:]
    assert _told(pair.moon, other, 1.0) == []
    assert pair.moon.drops == [DropReason.WRONG_EXCHANGE]


def test_a_hint_while_a_child_sa_is_being_made_finds_none(pair: Any) -> None:
    """Found by fuzzing: it has no outbound SPI yet."""
    pair.up()
    data, path = _invalid_spi(pair.moon), pair.moon.ike_sa.path
    pair.moon.endpoint.rekey_child_sas("tunnel-a", pair.now)
    other = data[:-4] + bytes([data[-4] ^ 1]) + data[-3:]
    for hint in (other, data):
        pair.moon.endpoint.receive_datagram(hint, path, pair.now)
    pair.deliver()
    assert pair.moon.drops == [DropReason.WRONG_EXCHANGE, DropReason.HINT]


def test_a_peer_that_lost_its_state_is_found_out_after_a_hint(pair: Any) -> None:
    pair.up()
    pair.sun.endpoint._core.ike_sas.clear()
    _told(pair.moon, _invalid_spi(pair.moon), 1.0)
    pair.impair = lambda output, sender: [output.data] if sender is pair.moon else []
    pair.now = 1.0
    pair.run(70)
    assert pair.moon.views == ()


def test_an_authentic_invalid_spi_is_answered_and_changes_nothing(pair: Any, make_ask: Any) -> None:
    """Section 2.21.4: "The recipient MUST NOT change the state of any SAs as a result"."""
    pair.up()
    before = pair.sun.snapshot()
    spi = pair.sun.ike_sa.children[0].spi_out.to_bytes(4, "big")
    notify = NotifyPayload(type=NotifyType.INVALID_SPI, data=spi)
    asked = make_ask(ExchangeType.INFORMATIONAL, notify).on(pair.moon)
    pair.deliver()
    assert asked.answer == ()
    assert pair.sun.snapshot() == before
