"""Deletes, liveness, news, and requests that are refused while the IKE SA lives on.

RFC 7296 sections 1.4, 2.4, 2.5 and 2.21.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.outputs import ChildSaClosed, RemovePolicy, RemoveSa, TunnelClosed
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ike.window import OUR_WINDOW_SIZE
from xfrmpy.ipsec.sad import Direction, SaId
from xfrmpy.registry import ExchangeType, NotifyType, PayloadType, ProtocolId
from xfrmpy.wire.message import Message, encrypted_prefix
from xfrmpy.wire.payloads import (
    DeletePayload,
    NotifyPayload,
    UnknownPayload,
)

ENDS = ["moon", "sun"]
ESP_DELETE = DeletePayload(protocol=ProtocolId.ESP, spis=(b"\0\0\1\0",))


@pytest.fixture
def up(pair: Any) -> Any:
    pair.up()
    pair.assert_up()
    return pair


def _other(pair: Any, host: Any) -> Any:
    return pair.sun if host is pair.moon else pair.moon


def _code(host: Any) -> str:
    (closed,) = host.reports(TunnelClosed)
    return "" if closed.failure is None else closed.failure.code


def _inbound_spi(host: Any) -> bytes:
    (spi,) = (e.spi for e in host.datapath.dump().sad if e.direction is Direction.IN)
    octets: bytes = spi.to_bytes(4, "big")
    return octets


# Deletion.


@pytest.mark.parametrize("end", ENDS)
def test_a_tunnel_is_taken_down_from_either_end(up: Any, sealing: Any, end: str) -> None:
    host = getattr(up, end)
    host.endpoint.terminate("tunnel-a", up.now)
    up.deliver()
    up.assert_down()
    assert [p for _, payloads in sealing.sent for p in payloads] == [
        DeletePayload(protocol=ProtocolId.IKE)
    ]
    assert _code(host) == ""
    assert _code(_other(up, host)) == "XF2011"
    for each in (up.moon, up.sun):
        assert len(each.reports(ChildSaClosed)) == 1
        kinds = [type(o) for o in each.outputs]
        assert kinds.index(RemovePolicy) < kinds.index(RemoveSa)
    up.run(100)
    up.assert_forgotten()


def test_deletes_may_cross(up: Any) -> None:
    for host in (up.moon, up.sun):
        host.endpoint.terminate("tunnel-a", up.now)
    up.deliver()
    up.assert_down()
    assert [_code(h) for h in (up.moon, up.sun)] == ["", ""]
    assert up.moon.views == up.sun.views == ()
    up.run(100)
    up.assert_forgotten()


def test_taking_down_twice_is_taking_down_once(up: Any) -> None:
    for _ in range(3):
        up.moon.endpoint.terminate("tunnel-a", up.now)
    up.deliver()
    up.moon.endpoint.terminate("tunnel-a", up.now)
    up.deliver()
    assert len(up.moon.reports(TunnelClosed)) == 1
    assert len([s for s in up.sent if s[0] == "moon"]) == 3


@pytest.mark.parametrize("end", ENDS)
def test_a_deleted_child_sa_takes_its_ike_sa_with_it(
    up: Any, sealing: Any, make_ask: Any, end: str
) -> None:
    host = getattr(up, end)
    other = _other(up, host)
    delete = DeletePayload(protocol=ProtocolId.ESP, spis=(_inbound_spi(host),))
    theirs = _inbound_spi(other)
    make_ask(ExchangeType.INFORMATIONAL, delete).on(host)
    up.deliver()
    # Section 1.4.1: the answer deletes the SA of the other direction.
    answer = DeletePayload(protocol=ProtocolId.ESP, spis=(theirs,))
    assert sealing.answers(ExchangeType.INFORMATIONAL)[0] == (answer,)
    assert _code(other) == _code(host) == "XF2011"
    up.assert_down()


@pytest.mark.parametrize(
    "spis",
    [(), (b"\1\2\3\4",), (b"\0\0\0\0", b"\xff\xff\xff\xff")],
    ids=["none", "unknown", "several unknown"],
)
@pytest.mark.parametrize("protocol", [ProtocolId.ESP, ProtocolId.AH], ids=str)
def test_a_delete_of_what_is_not_there_is_answered_and_changes_nothing(
    up: Any, make_ask: Any, protocol: ProtocolId, spis: tuple[bytes, ...]
) -> None:
    before = up.sun.snapshot()
    ask = make_ask(ExchangeType.INFORMATIONAL, DeletePayload(protocol=protocol, spis=spis)).on(
        up.moon
    )
    up.deliver()
    assert ask.answer == ()
    assert up.sun.snapshot() == before


def test_a_delete_names_the_senders_spi_and_no_other(up: Any, make_ask: Any) -> None:
    """The SPI of the SA that the receiver sees as inbound deletes nothing (section 1.4.1)."""
    before = up.sun.snapshot()
    delete = DeletePayload(protocol=ProtocolId.ESP, spis=(_inbound_spi(up.sun),))
    make_ask(ExchangeType.INFORMATIONAL, delete).on(up.moon)
    up.deliver()
    assert up.sun.snapshot() == before


def test_an_spi_deleted_twice_in_one_message_is_deleted_once(up: Any, make_ask: Any) -> None:
    spi = _inbound_spi(up.moon)
    deletes = [DeletePayload(protocol=ProtocolId.ESP, spis=(spi, spi))] * 3
    make_ask(ExchangeType.INFORMATIONAL, *deletes).on(up.moon)
    up.deliver()
    assert len(up.sun.reports(ChildSaClosed)) == 1
    up.assert_down()


@pytest.mark.parametrize("end", ENDS)
def test_an_sa_that_reached_its_hard_limit_ends_the_tunnel(up: Any, end: str) -> None:
    host = getattr(up, end)
    host.endpoint.handle_expire(host.datapath.dump().sad[0].id, up.now, hard=True)
    up.deliver()
    assert _code(host) == "XF2014"
    assert _code(_other(up, host)) == "XF2011"
    up.assert_down()


def test_an_expired_sa_of_somebody_else_is_none_of_ours(up: Any) -> None:
    before = up.moon.snapshot()
    entry = up.moon.datapath.dump().sad[0]
    foreign = SaId(spi=entry.spi ^ 1, protocol=entry.protocol, destination=entry.destination)
    up.moon.endpoint.handle_expire(foreign, up.now, hard=True)
    up.deliver()
    assert up.moon.snapshot() == before


# Liveness (section 2.4).


def test_a_quiet_peer_is_asked_whether_it_lives(up: Any, sealing: Any) -> None:
    up.run(29.9)
    assert sealing.sent == []
    up.run(0.2)
    assert {(m.exchange, p) for m, p in sealing.sent} == {(ExchangeType.INFORMATIONAL, ())}
    assert [m.is_response for m, _ in sealing.sent].count(True) == len(sealing.sent) / 2 > 0
    up.run(300)
    up.assert_up()


def test_who_has_just_been_heard_is_not_asked(up: Any, sealing: Any, make_ask: Any) -> None:
    up.run(20)
    make_ask(ExchangeType.INFORMATIONAL).on(up.moon, up.now)
    up.deliver()
    sealing.sent.clear()
    up.run(29)
    assert sealing.sent == []


def test_a_policy_without_liveness_never_asks(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], sealing: Any
) -> None:
    pair = make_pair(replace(make_policy(), dpd_seconds=0))
    pair.up()
    sealing.sent.clear()
    pair.run(2_500)  # No SA is replaced so soon.
    assert sealing.sent == []
    pair.assert_up()


def test_a_peer_that_does_not_live_is_given_up_at_both_ends(up: Any) -> None:
    up.impair = lambda _output, _sender: []
    up.run(30 + 64 * 1.1)
    for host in (up.moon, up.sun):
        assert _code(host) == "XF2001"
        (closed,) = host.reports(TunnelClosed)
        assert closed.was_established
        assert "INFORMATIONAL" in closed.failure.summary
    up.assert_down()
    up.run(100)
    up.assert_forgotten()


@pytest.mark.parametrize("kind", [NotifyType.INVALID_SYNTAX, NotifyType.AUTHENTICATION_FAILED])
def test_a_fatal_error_in_answer_to_a_liveness_check_ends_the_tunnel(
    up: Any, kind: NotifyType
) -> None:
    """Section 2.21.3: INVALID_SYNTAX "is considered fatal in both peers"."""
    up.sun.ike_sa.close(None, up.now)  # Sun has no IKE SA any more, but its keys still say so.
    up.sun.take_outputs()
    _answer_by_hand(up, NotifyPayload(type=kind))
    assert up.moon.views == ()
    assert up.moon.datapath.dump().sad == ()


def _answer_by_hand(pair: Any, *payloads: Any) -> None:
    """Moon asks whether sun lives, and sun's keys answer."""
    (sun,) = pair.sun.ike_sas
    pair.moon.endpoint.handle_timeout(pair.now + 31)
    (request,) = pair.moon.take_outputs()
    message = Message(
        spi_i=sun.channel.spi_i,
        spi_r=sun.channel.spi_r,
        exchange=ExchangeType.INFORMATIONAL,
        is_response=True,
        is_initiator=False,
        message_id=2,
        payloads=(),
    )
    data = sun.channel._protection.seal(message, payloads)
    pair.moon.endpoint.receive_datagram(data, request.path, pair.now + 31)
    pair.moon.take_outputs()


# News, and what is not understood (sections 2.5 and 3.10).


@pytest.mark.parametrize("kind", [*NotifyType, NotifyType(8000), NotifyType(40959)], ids=str)
def test_a_notification_that_means_nothing_here_is_ignored(
    up: Any, make_ask: Any, kind: NotifyType
) -> None:
    fatal = {
        NotifyType.INVALID_SYNTAX,
        NotifyType.AUTHENTICATION_FAILED,
        NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD,
    }
    before = up.sun.snapshot()
    ask = make_ask(ExchangeType.INFORMATIONAL, NotifyPayload(type=kind, data=b"x")).on(up.moon)
    up.deliver()
    # RFC 5723 section 4.1: whoever knows of tickets and gives none says so.
    refusal = NotifyPayload(type=NotifyType.TICKET_NACK)
    assert ask.answer == ((refusal,) if kind is NotifyType.TICKET_REQUEST else ())
    assert (up.sun.snapshot() != before) == (kind in fatal)


def _unknown(*, critical: bool) -> UnknownPayload:
    return UnknownPayload(type=PayloadType(200), critical=critical, data=b"?")


def test_an_unknown_payload_is_skipped_unless_it_is_critical(up: Any, make_ask: Any) -> None:
    before = up.sun.snapshot()
    for critical in (False, True):
        ask = make_ask(ExchangeType.INFORMATIONAL, _unknown(critical=critical)).on(up.moon)
        up.deliver()
        refusals = [p for p in ask.answer if p.type == NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD]
        assert [r.data for r in refusals] == ([b"\xc8"] if critical else [])
    assert up.sun.snapshot() == before


@pytest.mark.parametrize("critical", [False, True])
def test_an_unknown_payload_in_front_of_sk_is_skipped_unless_it_is_critical(
    up: Any, make_ask: Any, monkeypatch: pytest.MonkeyPatch, critical: bool
) -> None:
    """It is authentic too: the integrity of an SK payload covers what stands before it."""
    outer = bytes([46, 0x80 if critical else 0, 0, 5]) + b"?"
    plain = encrypted_prefix

    def prefix(**fields: Any) -> bytes:
        octets = plain(**fields)
        if fields["is_response"]:
            return octets
        length = (int.from_bytes(octets[24:28], "big") + len(outer)).to_bytes(4, "big")
        return octets[:16] + b"\xc8" + octets[17:24] + length + outer + octets[28:]

    monkeypatch.setattr("xfrmpy.ike.protection.encrypted_prefix", prefix)
    ask = make_ask(ExchangeType.INFORMATIONAL).on(up.moon)
    up.deliver()
    assert [p.data for p in ask.answer] == ([b"\xc8"] if critical else [])
    assert up.sun.views


@pytest.mark.parametrize("critical", [False, True])
def test_an_unknown_payload_in_ike_auth_refuses_it_if_critical(
    pair: Any, sealing: Any, critical: bool
) -> None:
    sealing.change = lambda m, p: p if m.is_response else (*p, _unknown(critical=critical))
    pair.up()
    if not critical:
        pair.assert_up()
        return
    assert _code(pair.moon) == "XF2009"
    assert pair.sun.views == ()
    assert [sa.state for sa in pair.sun.ike_sas] == [IkeSaState.DELETED]
    pair.assert_down()


def test_a_critical_payload_in_a_response_ends_the_ike_sa(up: Any, sealing: Any) -> None:
    sealing.change = lambda m, p: (*p, _unknown(critical=True)) if m.is_response else p
    up.run(31)
    assert "XF2008" in {_code(h) for h in (up.moon, up.sun) if h.reports(TunnelClosed)}
    up.run(200)
    up.assert_forgotten()


@pytest.mark.parametrize(
    "odd",
    [
        _unknown(critical=True),
        UnknownPayload(type=PayloadType.NONCE, critical=False, data=b"short"),
    ],
    ids=["critical", "malformed"],
)
def test_an_odd_answer_to_a_farewell_is_an_answer(up: Any, sealing: Any, odd: Any) -> None:
    sealing.change = lambda m, p: (odd,) if m.is_response else p
    up.moon.endpoint.terminate("tunnel-a", up.now)
    up.deliver()
    assert up.moon.views == ()
    up.run(200)
    up.assert_forgotten()


# What is refused while the IKE SA lives on, and what ends it.


MALFORMED = [
    UnknownPayload(type=PayloadType.DELETE, critical=False, data=b"\3\4\0\2\0\0\1\0"),
    UnknownPayload(type=PayloadType.NOTIFY, critical=False, data=b"\0"),
    UnknownPayload(type=PayloadType.SK, critical=False, data=b""),
    UnknownPayload(type=PayloadType.NONCE, critical=False, data=b"short"),
    UnknownPayload(type=PayloadType.SA, critical=False, data=b"\0\0\0\4"),
]


@pytest.mark.parametrize("payload", MALFORMED, ids=lambda p: p.type.name)
@pytest.mark.parametrize(
    "exchange", [ExchangeType.INFORMATIONAL, ExchangeType.CREATE_CHILD_SA], ids=lambda e: e.name
)
def test_an_authentic_request_of_bad_syntax_ends_the_ike_sa_at_both_ends(
    up: Any, sealing: Any, make_ask: Any, exchange: ExchangeType, payload: UnknownPayload
) -> None:
    """Section 2.21.3: INVALID_SYNTAX is the answer, and no Delete is needed."""
    ask = make_ask(exchange, payload).on(up.moon)
    up.deliver()
    assert ask.answer == (NotifyPayload(type=NotifyType.INVALID_SYNTAX),)
    assert _code(up.sun) == "XF2008"
    assert up.sun.datapath.dump().sad == ()
    assert len(sealing.sent) == 2


@pytest.mark.parametrize("payload", MALFORMED, ids=lambda p: p.type.name)
def test_a_response_of_bad_syntax_ends_the_ike_sa(
    up: Any, sealing: Any, payload: UnknownPayload
) -> None:
    sealing.change = lambda m, p: (payload,) if m.is_response else p
    up.run(31)
    up.run(200)
    assert "XF2008" in {_code(up.moon), _code(up.sun)}
    up.assert_forgotten()


@pytest.mark.parametrize("payload", MALFORMED, ids=lambda p: p.type.name)
def test_ike_auth_of_bad_syntax_is_refused(
    pair: Any, sealing: Any, payload: UnknownPayload
) -> None:
    sealing.change = lambda m, p: p if m.is_response else (*p, payload)
    pair.up()
    assert [p.type for p in sealing.answers(ExchangeType.IKE_AUTH)[0]] == [
        NotifyType.INVALID_SYNTAX
    ]
    pair.assert_down()
    pair.run(100)
    pair.assert_forgotten()


@pytest.mark.parametrize("exchange", [ExchangeType.GSA_AUTH, ExchangeType(240)])
def test_an_exchange_that_we_do_not_know_is_ignored(
    up: Any, make_ask: Any, exchange: ExchangeType
) -> None:
    before = up.sun.snapshot()
    make_ask(exchange).on(up.moon)
    up.deliver()
    assert up.sun.drops == [DropReason.WRONG_EXCHANGE]
    assert up.sun.snapshot() == before


def test_what_waits_goes_when_the_tunnel_goes(up: Any, make_ask: Any) -> None:
    asks = [make_ask(ExchangeType.INFORMATIONAL).on(up.moon) for _ in range(OUR_WINDOW_SIZE + 2)]
    up.moon.endpoint.terminate("tunnel-a", up.now)
    up.deliver()
    assert {a.answer for a in asks} == {None}
    up.assert_down()
    up.run(100)
    up.assert_forgotten()


def test_requests_of_both_ends_may_cross(up: Any, make_ask: Any) -> None:
    asks = [make_ask(ExchangeType.INFORMATIONAL).on(h) for h in (up.moon, up.sun)]
    up.deliver()
    assert [a.answer for a in asks] == [(), ()]
    up.assert_up()
