"""Sessions lost and resumed between two ends (RFC 5723)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.failures import Failure
from xfrmpy.ike.admission import AdmissionLimits
from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.ike_sa import HALF_OPEN_SECONDS
from xfrmpy.ike.outputs import IkeSaEstablished, RequestRefused, SendDatagram, TunnelClosed
from xfrmpy.ike.resumption import LEAST_TICKET, LONGEST_SECONDS, MAX_TICKET, RENEWAL
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ike.tickets import TICKET_SECONDS
from xfrmpy.ipsec.addresses import Path
from xfrmpy.ipsec.identity import Identity
from xfrmpy.policy.model import SharedKey
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.message import Message, decode_message_untrusted, encode_message
from xfrmpy.wire.payloads import (
    AuthPayload,
    DeletePayload,
    IdiPayload,
    IdrPayload,
    KePayload,
    NoncePayload,
    NotifyPayload,
    SaPayload,
)

INIT, RESUME = ExchangeType.IKE_SA_INIT, ExchangeType.IKE_SESSION_RESUME
NACK = NotifyPayload(type=NotifyType.TICKET_NACK)


@pytest.fixture
def pair(make_pair: Any, make_policy: Any) -> Any:
    """Both ends resume; sun never asks whether moon lives, so it keeps what moon has lost."""
    pair = make_pair(replace(make_policy(), resumption=True))
    pair.sun.policy = replace(pair.sun.policy, dpd_seconds=0.0)
    pair.sun.start()
    return pair


@pytest.fixture
def lost(pair: Any) -> Any:
    """Moon has lost sun by its silence; the way is open again."""
    pair.up()
    pair.assert_up()
    deliver, pair.impair = pair.impair, lambda _output, _sender: []
    pair.run(150)
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2001"
    pair.impair = deliver
    pair.sent.clear()
    for host in (pair.moon, pair.sun):
        host.outputs.clear()
    return pair


def notified(payloads: Any, kind: NotifyType) -> list[NotifyPayload]:
    return [p for p in payloads if isinstance(p, NotifyPayload) and p.type == kind]


def firsts(pair: Any) -> list[Message]:
    """The messages in clear, with their payloads."""
    messages = (decode_message_untrusted(output.data) for _, output in pair.sent)
    return [message for message in messages if message.sealed is None]


def exchanges(pair: Any) -> list[tuple[str, ExchangeType]]:
    return [(n, decode_message_untrusted(o.data).exchange) for n, o in pair.sent]


# Getting a ticket (sections 4.1, 4.2).


def test_a_ticket_is_asked_for_and_given_in_ike_auth(pair: Any, sealing: Any) -> None:
    pair.up()
    (_, request), (_, response) = sealing.sent
    assert notified(request, NotifyType.TICKET_REQUEST) == [
        NotifyPayload(type=NotifyType.TICKET_REQUEST)
    ]
    (given,) = notified(response, NotifyType.TICKET_LT_OPAQUE)
    assert int.from_bytes(given.data[:4], "big") == TICKET_SECONDS
    assert (given.protocol, given.spi) == (0, b"")
    held = pair.moon.ike_sa.ticket
    assert held.ticket == given.data[4:]
    assert held.expires_at == pair.now + TICKET_SECONDS
    assert pair.sun.ike_sa.ticket is None


def test_who_does_not_want_to_resume_neither_asks_nor_gives(
    make_pair: Any, make_policy: Any, make_mirror: Any, sealing: Any
) -> None:
    """Section 4.1: whoever knows of tickets and gives none answers TICKET_NACK."""
    moon = replace(make_policy(), resumption=True)
    pair = make_pair(moon, replace(make_mirror(moon), resumption=False))
    pair.up()
    pair.assert_up()
    assert notified(sealing.sent[1][1], NotifyType.TICKET_NACK) == [NACK]
    assert pair.moon.ike_sa.ticket is None
    other = make_pair(make_policy())
    other.up()
    assert not notified(sealing.sent[2][1], NotifyType.TICKET_REQUEST)


def test_a_ticket_that_was_not_asked_for_is_not_kept(
    make_pair: Any, make_policy: Any, sealing: Any
) -> None:
    given = NotifyPayload(type=NotifyType.TICKET_LT_OPAQUE, data=b"\0\0\x10\0ticket")
    sealing.change = lambda message, payloads: (
        (*payloads, given) if message.exchange is ExchangeType.IKE_AUTH else payloads
    )
    pair = make_pair(make_policy())
    pair.up()
    pair.assert_up()
    assert pair.moon.ike_sa.ticket is pair.sun.ike_sa.ticket is None


@pytest.mark.parametrize("data", [b"", b"\0\0\x10\0", b"\0\0\x10\0" + bytes(MAX_TICKET + 1)])
def test_an_odd_ticket_is_not_kept(pair: Any, sealing: Any, data: bytes) -> None:
    def odd(_message: Message, payloads: Any) -> Any:
        given = notified(payloads, NotifyType.TICKET_LT_OPAQUE)
        return tuple(replace(p, data=data) if p in given else p for p in payloads)

    sealing.change = odd
    pair.up()
    pair.assert_up()
    assert pair.moon.ike_sa.ticket is None


def test_no_ticket_is_kept_for_longer_than_a_day(pair: Any, sealing: Any) -> None:
    def longer(_message: Message, payloads: Any) -> Any:
        given = notified(payloads, NotifyType.TICKET_LT_OPAQUE)
        return tuple(
            replace(p, data=b"\xff" * 4 + p.data[4:]) if p in given else p for p in payloads
        )

    sealing.change = longer
    pair.up()
    assert pair.moon.ike_sa.ticket.expires_at == pair.now + LONGEST_SECONDS


def test_a_ticket_is_renewed_before_it_expires(pair: Any) -> None:
    pair.up()
    first = pair.moon.ike_sa.ticket
    pair.run(TICKET_SECONDS * RENEWAL + 40)
    second = pair.moon.ike_sa.ticket
    assert second.ticket != first.ticket
    assert second.expires_at > first.expires_at
    pair.run(TICKET_SECONDS)
    pair.assert_up()
    assert pair.moon.ike_sa.ticket.ticket not in (first.ticket, second.ticket)


def test_a_peer_that_renews_no_ticket_is_asked_once(pair: Any, sealing: Any) -> None:
    pair.up()
    sealing.sent.clear()
    sealing.change = lambda _message, payloads: tuple(
        p for p in payloads if not notified((p,), NotifyType.TICKET_LT_OPAQUE)
    )
    pair.run(TICKET_SECONDS * 0.99)
    asked = [p for _, ps in sealing.sent for p in notified(ps, NotifyType.TICKET_REQUEST)]
    assert len(asked) == 1
    pair.assert_up()


def test_a_ticket_asked_for_from_the_responder_is_not_given(pair: Any, make_ask: Any) -> None:
    """Section 4.1: such exchanges "MUST be initiated by the client"."""
    pair.up()
    ask = make_ask(ExchangeType.INFORMATIONAL, NotifyPayload(type=NotifyType.TICKET_REQUEST))
    ask.on(pair.sun)
    pair.deliver()
    assert ask.answer == ()


# Resuming (section 4.3).


def test_a_lost_session_is_resumed(lost: Any) -> None:
    lost.up()
    lost.assert_up()
    request, response = firsts(lost)
    assert (request.exchange, response.exchange) == (RESUME, RESUME)
    assert (request.message_id, response.message_id) == (0, 0)
    for message in (request, response):
        kinds = {type(p) for p in message.payloads}
        assert NoncePayload in kinds
        assert not kinds & {SaPayload, KePayload}
    assert [exchange for _, exchange in exchanges(lost)] == [RESUME] * 2 + [
        ExchangeType.IKE_AUTH
    ] * 2
    assert len(lost.sun.reports(IkeSaEstablished)) == 1


def test_the_keys_are_new(pair: Any) -> None:
    pair.up()
    before = pair.moon.ike_sa.keys
    pair.impair = lambda _output, _sender: []
    pair.run(150)
    pair.impair = lambda output, _sender: [output.data]
    pair.up()
    after = pair.moon.ike_sa.keys
    assert after == pair.sun.ike_sa.keys
    for name in ("sk_d", "sk_ei", "sk_er", "sk_pi", "sk_pr"):
        assert getattr(before, name) != getattr(after, name)


def test_the_old_ike_sa_is_deleted_silently(lost: Any, sealing: Any) -> None:
    """Section 4.3.4."""
    assert len(lost.sun.views) == 1
    sealing.sent.clear()
    lost.up()
    assert len(lost.sun.views) == 1
    (closed,) = lost.sun.reports(TunnelClosed)
    assert closed.failure.code == "XF2011"
    assert not [p for _, ps in sealing.sent for p in ps if isinstance(p, DeletePayload)]


def test_the_old_ike_sa_lives_until_the_new_one_is_proved(lost: Any) -> None:
    before = lost.sun.snapshot()
    lost.initiate()
    lost._carry(lost.moon, lost.sun)
    assert lost.sun.snapshot()[1] == before[1]
    assert [v.state for v in lost.sun.views] == [IkeSaState.ESTABLISHED]


def test_a_new_ticket_comes_with_the_resumed_session(lost: Any) -> None:
    lost.up()
    assert lost.moon.ike_sa.ticket is not None
    assert lost.moon.endpoint._core.tickets == {}


def test_a_session_is_resumed_again_and_again(pair: Any) -> None:
    for _ in range(3):
        pair.up()
        pair.assert_up()
        pair.impair = lambda _output, _sender: []
        pair.run(150)
        pair.impair = lambda output, _sender: [output.data]
        pair.sent.clear()
    pair.up()
    assert firsts(pair)[0].exchange is RESUME


def test_the_identities_are_said_again_and_are_those_of_the_ticket(lost: Any, sealing: Any) -> None:
    sealing.sent.clear()
    lost.up()
    (_, request), (_, response) = sealing.sent[:2]
    assert IdiPayload(identity=Identity.parse("moon")) in request
    assert IdrPayload(identity=Identity.parse("sun")) in response


def test_a_resumed_tunnel_lives_on(lost: Any) -> None:
    lost.up()
    lost.run(300)
    lost.assert_up()
    lost.moon.endpoint.terminate("tunnel-a", lost.now)
    lost.deliver()
    lost.assert_down()


def test_a_cookie_is_returned(lost: Any, make_answer: Any) -> None:
    lost.initiate()
    (request,) = lost.moon.take_outputs()[-1:]
    cookie = NotifyPayload(type=NotifyType.COOKIE, data=b"a cookie")
    path = replace(request.path)
    lost.moon.endpoint.receive_datagram(make_answer(request.data, cookie), path, lost.now)
    (again,) = lost.moon.take_outputs()[-1:]
    first, second = map(decode_message_untrusted, (request.data, again.data))
    assert second.payloads[0] == cookie
    assert notified(second.payloads, NotifyType.TICKET_OPAQUE) == notified(
        first.payloads, NotifyType.TICKET_OPAQUE
    )
    assert (second.exchange, second.message_id) == (RESUME, 0)


def test_a_gateway_under_load_demands_a_cookie_before_it_opens_a_ticket(
    make_pair: Any, make_policy: Any
) -> None:
    """RFC 8019 section 4.5."""
    policy = replace(make_policy(), resumption=True)
    pair = make_pair(policy, limits=AdmissionLimits(cookies_at=0))
    pair.up()
    pair.moon.ike_sa.lose(Failure(code="XF2001", summary="lost"), pair.now)
    pair.moon.take_outputs()
    pair.sent.clear()
    pair.up()
    requests = [m for m in firsts(pair) if not m.is_response]
    assert [m.exchange for m in requests] == [RESUME, RESUME]
    assert requests[1].payloads[1:] == requests[0].payloads
    demand, answer = (m for m in firsts(pair) if m.is_response)
    assert demand.payloads == requests[1].payloads[:1]
    assert not any(demand.spi_r)
    assert any(answer.spi_r)
    assert pair.sun.drops.count(DropReason.COOKIE_DEMANDED) == 2


@pytest.mark.parametrize("size", [0, LEAST_TICKET - 1, LEAST_TICKET])
def test_a_demand_is_never_larger_than_the_request_that_presents_a_ticket(
    make_pair: Any, make_policy: Any, size: int
) -> None:
    pair = make_pair(make_policy(), limits=AdmissionLimits(cookies_at=0))
    ticket = NotifyPayload(type=NotifyType.TICKET_OPAQUE, data=bytes(size))
    message = Message(
        spi_i=b"initiatr",
        spi_r=bytes(8),
        exchange=RESUME,
        is_response=False,
        is_initiator=True,
        message_id=0,
        payloads=(NoncePayload(data=bytes(16)), ticket),
    )
    data = encode_message(message)
    pair.initiate()
    (init,) = pair.moon.take_outputs()[-1:]
    pair.sun.endpoint.receive_datagram(data, back(init.path), pair.now)
    answers = pair.sun.take_outputs()
    assert len(answers) == (size >= LEAST_TICKET)
    assert all(len(answer.data) <= len(data) for answer in answers)


@pytest.mark.parametrize(("moon", "sun"), [(True, True), (True, False), (False, True)])
def test_fragments_are_agreed_anew_in_a_resumed_session(
    make_pair: Any, make_policy: Any, make_mirror: Any, moon: bool, sun: bool
) -> None:
    """RFC 7383 section 3: fragmentation goes with resumption."""
    policy = replace(make_policy(), resumption=True)
    pair = make_pair(
        replace(policy, fragmentation=moon), replace(make_mirror(policy), fragmentation=sun)
    )
    pair.up()
    pair.moon.ike_sa.lose(Failure(code="XF2001", summary="lost"), pair.now)
    pair.moon.take_outputs()
    pair.sent.clear()
    pair.up()
    pair.assert_up()
    assert firsts(pair)[0].exchange is RESUME
    for host in (pair.moon, pair.sun):
        assert host.ike_sa.channel.fragments is (moon and sun)


# When there is no ticket to use.


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_a_tunnel_that_was_deleted_is_not_resumed(pair: Any, end: str) -> None:
    """Section 6.2: when an IKE SA is deleted, "the client MUST delete its stored ticket"."""
    pair.up()
    getattr(pair, end).endpoint.terminate("tunnel-a", pair.now)
    pair.run(60)
    pair.sent.clear()
    pair.up()
    assert firsts(pair)[0].exchange is INIT


def test_a_tunnel_taken_down_after_its_loss_is_not_resumed(lost: Any) -> None:
    lost.moon.endpoint.terminate("tunnel-a", lost.now)
    lost.up()
    assert firsts(lost)[0].exchange is INIT


def test_an_expired_ticket_is_not_presented(lost: Any) -> None:
    """Section 4.3.1: "MUST NOT present a ticket when it knows that [its] lifetime has expired"."""
    lost.run(TICKET_SECONDS)
    lost.sent.clear()
    lost.up()
    assert firsts(lost)[0].exchange is INIT


@pytest.mark.parametrize(
    "change",
    [
        {"resumption": False},
        {"remote_id": Identity.parse("venus")},
        {"local_id": Identity.parse("mars")},
        {"shared_key": SharedKey(octets=b"another key of thirty-two octets", origin="test")},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("end", ["moon", "sun"])
def test_a_ticket_is_void_when_the_policy_has_changed(
    lost: Any, end: str, change: dict[str, Any]
) -> None:
    host = getattr(lost, end)
    host.endpoint.replace_tunnel(replace(host.policy, **change))
    lost.initiate()
    lost.deliver()
    requests = [m.exchange for m in firsts(lost) if not m.is_response]
    assert requests == ([INIT] if end == "moon" else [RESUME, INIT])


def test_a_ticket_is_void_when_its_algorithms_are_not_allowed_any_more(
    lost: Any, make_policy: Any
) -> None:
    stronger = make_policy(ike="aes256gcm16-prfsha384-ecp384").proposals
    lost.sun.endpoint.replace_tunnel(replace(lost.sun.policy, proposals=stronger))
    lost.initiate()
    lost.deliver()
    assert NACK in firsts(lost)[1].payloads


# When the ticket is refused.


def test_a_gateway_that_was_started_anew_refuses_and_the_full_exchange_follows(
    lost: Any,
) -> None:
    lost.sun.datapath.sad.clear()
    lost.sun.datapath.spd.clear()
    lost.sun.start()
    lost.up()
    lost.assert_up()
    seen = [(m.exchange, m.is_response) for m in firsts(lost)]
    assert seen == [(RESUME, False), (RESUME, True), (INIT, False), (INIT, True)]
    refusal = firsts(lost)[1]
    assert refusal.payloads == (NACK,)
    assert not any(refusal.spi_r)
    (refused,) = lost.sun.reports(RequestRefused)
    assert refused.failure.code == "XF2025"
    assert lost.moon.endpoint._core.tickets == {}


def test_a_forged_refusal_costs_a_full_exchange_and_no_more(lost: Any, make_answer: Any) -> None:
    lost.initiate()
    (request,) = lost.moon.take_outputs()[-1:]
    lost.moon.endpoint.receive_datagram(make_answer(request.data, NACK), request.path, lost.now)
    lost.run(20)
    lost.assert_up()


def test_a_peer_that_says_nothing_to_a_ticket_gets_the_full_exchange(lost: Any) -> None:
    def deaf(output: SendDatagram, _sender: Any) -> list[bytes]:
        is_resume = decode_message_untrusted(output.data).exchange is RESUME
        return [] if is_resume else [output.data]

    lost.impair = deaf
    begun_at = lost.now
    lost.initiate()
    lost.run(9)
    assert lost.moon.views[0].children
    assert lost.now - begun_at < 10
    lost.run(20)
    lost.assert_up()
    assert not lost.moon.reports(TunnelClosed)


def test_a_ticket_survives_an_attempt_that_nobody_answers(lost: Any) -> None:
    deliver, lost.impair = lost.impair, lambda _output, _sender: []
    lost.initiate()
    lost.run(200)
    assert len(lost.moon.reports(TunnelClosed)) == 1
    lost.impair = deliver
    lost.sent.clear()
    lost.up()
    lost.assert_up()
    assert firsts(lost)[0].exchange is RESUME


# Attacks (sections 9.1 to 9.3).


def stolen(lost: Any) -> SendDatagram:
    """The request with which moon presents its ticket, as anybody on the way sees it."""
    lost.initiate()
    request = lost.moon.take_outputs()[-1]
    assert isinstance(request, SendDatagram)
    return request


def back(path: Path) -> Path:
    return replace(path, local=path.remote, remote=path.local)


def test_a_repeated_request_makes_no_ike_sa_and_ends_none(lost: Any) -> None:
    request = stolen(lost)
    lost.sun.endpoint.receive_datagram(request.data, back(request.path), lost.now)
    lost.sun.take_outputs()
    before = lost.sun.datapath.dump()
    other = replace(back(request.path), remote=replace(request.path.local, port=4321))
    for number in range(5):
        message = replace(decode_message_untrusted(request.data), spi_i=bytes([number + 1] * 8))
        lost.sun.endpoint.receive_datagram(encode_message(message), other, lost.now)
    lost.sun.take_outputs()
    assert lost.sun.datapath.dump() == before
    states = sorted(sa.state.value for sa in lost.sun.ike_sas)
    assert states == ["authenticating"] * 6 + ["established"]
    lost.impair = lambda _output, _sender: []
    lost.run(HALF_OPEN_SECONDS + 31)
    assert [sa.state for sa in lost.sun.ike_sas] == [IkeSaState.ESTABLISHED]


def test_a_spent_ticket_is_refused(lost: Any) -> None:
    request = stolen(lost)
    lost.sun.endpoint.receive_datagram(request.data, back(request.path), lost.now)
    lost.deliver()
    lost.assert_up()
    before = lost.sun.snapshot()
    message = replace(decode_message_untrusted(request.data), spi_i=b"attacker")
    lost.sun.endpoint.receive_datagram(encode_message(message), back(request.path), lost.now)
    (answer,) = lost.sun.take_outputs()
    assert decode_message_untrusted(answer.data).payloads == (NACK,)
    assert lost.sun.snapshot() == before


def test_of_two_ike_sas_with_one_ticket_the_second_is_refused(lost: Any) -> None:
    """The peer itself presents its ticket twice at once."""
    lost.initiate()
    lost.initiate()
    lost.deliver()
    assert len([v for v in lost.sun.views if v.state is IkeSaState.ESTABLISHED]) == 1
    assert [r.failure.code for r in lost.sun.reports(RequestRefused)] == ["XF2025"]


def test_a_changed_ticket_is_refused(lost: Any) -> None:
    def change(output: SendDatagram, _sender: Any) -> list[bytes]:
        message = decode_message_untrusted(output.data)
        if message.exchange is not RESUME or message.is_response:
            return [output.data]
        payloads = tuple(
            replace(p, data=p.data[:-1] + bytes([p.data[-1] ^ 1]))
            if isinstance(p, NotifyPayload) and p.type == NotifyType.TICKET_OPAQUE
            else p
            for p in message.payloads
        )
        return [encode_message(replace(message, payloads=payloads))]

    lost.impair = change
    lost.up()
    assert firsts(lost)[1].payloads == (NACK,)
    lost.run(20)
    lost.assert_up()


@pytest.mark.parametrize("kind", [IdiPayload, IdrPayload], ids=lambda kind: kind.__name__)
def test_the_ticket_of_one_is_nothing_to_another(lost: Any, sealing: Any, kind: Any) -> None:
    """Section 4.3.3: identities "MUST be identical to the value included in the ticket"."""

    def lie(message: Message, payloads: Any) -> Any:
        if message.is_response:
            return payloads
        other = kind(identity=Identity.parse("venus"))
        return tuple(other if isinstance(p, kind) else p for p in payloads)

    sealing.change = lie
    lost.up()
    assert lost.moon.views == ()
    assert lost.sun.reports(RequestRefused)[0].failure.code == "XF2007"
    assert len(lost.sun.views) == 1  # The old one.


@pytest.mark.parametrize("forger", ["moon", "sun"])
def test_auth_of_a_resumed_session_is_verified(lost: Any, sealing: Any, forger: str) -> None:
    def forge(message: Message, payloads: Any) -> Any:
        if message.is_response is (forger == "moon"):
            return payloads
        return tuple(
            replace(p, data=bytes(len(p.data))) if isinstance(p, AuthPayload) else p
            for p in payloads
        )

    sealing.change = forge
    lost.up()
    assert not any(view.children for view in lost.moon.views)
    if forger == "moon":
        assert lost.sun.reports(RequestRefused)[0].failure.code == "XF2006"
        assert len(lost.sun.views) == 1


@pytest.mark.parametrize("count", [0, 2])
def test_a_request_with_no_ticket_or_two_is_ignored(lost: Any, count: int) -> None:
    request = stolen(lost)
    message = decode_message_untrusted(request.data)
    tickets = tuple(notified(message.payloads, NotifyType.TICKET_OPAQUE))
    others = tuple(p for p in message.payloads if p not in tickets)
    changed = encode_message(replace(message, payloads=others + tickets * count))
    lost.sun.endpoint.receive_datagram(changed, back(request.path), lost.now)
    assert [type(o).__name__ for o in lost.sun.take_outputs()] == []
    assert lost.sun.drops[-1] is DropReason.MALFORMED


def test_an_answer_of_the_other_exchange_is_ignored(lost: Any, make_answer: Any) -> None:
    request = stolen(lost)
    answer = decode_message_untrusted(make_answer(request.data, NoncePayload(data=bytes(32))))
    data = encode_message(replace(answer, exchange=INIT, spi_r=b"attacker"))
    lost.moon.endpoint.receive_datagram(data, request.path, lost.now)
    lost.moon.take_outputs()
    assert lost.moon.drops[-1] is DropReason.WRONG_EXCHANGE


def test_who_answers_without_the_keys_is_found_out(lost: Any, make_answer: Any) -> None:
    """Nobody but the gateway can open the ticket: a forged answer leads to no IKE SA."""
    request = stolen(lost)
    answer = make_answer(request.data, NoncePayload(data=bytes(32)), spi_r=b"attacker")
    lost.moon.endpoint.receive_datagram(answer, request.path, lost.now)
    lost.moon.take_outputs()
    assert not lost.moon.reports(IkeSaEstablished)
    lost.impair = lambda _output, _sender: []
    lost.run(200)
    assert lost.moon.views == ()


def test_a_crash_proved_by_a_token_keeps_the_ticket(make_pair: Any, make_policy: Any) -> None:
    """RFC 6290 section 7: the two go together; here the new gateway's keys are others."""
    pair = make_pair(replace(make_policy(), resumption=True), secrets=True)
    pair.up()
    pair.sun.datapath.sad.clear()
    pair.sun.datapath.spd.clear()
    pair.sun.start()
    pair.run(35)
    assert pair.moon.views == ()
    pair.sent.clear()
    pair.up()
    pair.assert_up()
    assert [m.exchange for m in firsts(pair) if not m.is_response] == [RESUME, INIT]


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_a_rekeyed_ike_sa_gets_a_ticket_of_its_own(pair: Any, end: str) -> None:
    """Sections 4.1 and 6.2: asked for by the client, whoever rekeyed."""
    pair.up()
    old = pair.moon.ike_sa.ticket
    getattr(pair, end).endpoint.rekey_ike_sas("tunnel-a", pair.now)
    pair.run(1)
    new = pair.moon.ike_sa.ticket
    assert new is not None
    assert new.ticket != old.ticket
    assert new.sk_d == pair.moon.ike_sa.keys.sk_d != old.sk_d
    assert pair.sun.ike_sa.ticket is None
    pair.impair = lambda _output, _sender: []
    pair.run(150)
    pair.impair = lambda output, _sender: [output.data]
    pair.sent.clear()
    pair.up()
    pair.assert_up()
    assert firsts(pair)[0].exchange is RESUME
