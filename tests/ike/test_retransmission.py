"""What is sent again and when, and that no loss, doubling, delay or reordering does harm.

RFC 7296 sections 2.1 to 2.4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.ike.errors import Drop, DropReason
from xfrmpy.ike.ike_sa import HALF_OPEN_SECONDS, LINGER_SECONDS
from xfrmpy.ike.liveness import IDLE_PATIENCE
from xfrmpy.ike.outputs import (
    RequestRefused,
    RequestRetransmitted,
    SendDatagram,
    TunnelClosed,
)
from xfrmpy.ike.window import Outstanding, PeerSilent, Sent, Window
from xfrmpy.policy.model import Retransmission
from xfrmpy.registry import ExchangeType
from xfrmpy.wire.message import Message

MakePair = Callable[..., Any]
MakePolicy = Callable[..., Any]

# The window alone.


@pytest.fixture
def window(make_random: Callable[..., Any]) -> Window:
    return Window(Retransmission(jitter=0), make_random("window"))


def _sent(datagram: bytes) -> Sent:
    message = Message(
        spi_i=bytes(8),
        spi_r=bytes(8),
        exchange=ExchangeType.INFORMATIONAL,
        is_response=False,
        is_initiator=True,
        message_id=0,
        payloads=(),
    )
    return Sent(message=message, datagrams=(datagram,))


def _begin(window: Window, make_ask: Any, now: float = 0.0) -> int:
    message_id = window.begin(make_ask(ExchangeType.INFORMATIONAL))
    window.sent(message_id, _sent(b"request"), now)
    return message_id


def _retransmit(window: Window, now: float) -> Outstanding | None:
    request = window.due(now)
    if request is not None:
        window.retransmit(request, now)
    return request


def _answer(window: Window, message_id: int, datagram: bytes) -> None:
    window.begin_answer(message_id)
    window.answered(message_id, _sent(datagram))


def _answer_to(window: Window, message_id: int) -> tuple[bytes, ...] | None:
    answer = window.accept_request(message_id)
    return None if answer is None else answer.datagrams


def test_requests_are_numbered_from_zero(window: Window, make_ask: Any) -> None:
    for number in range(3):
        assert _begin(window, make_ask) == number
        assert window.outstanding_for(number).sent == _sent(b"request")
        window.complete(number)


def test_only_one_request_may_be_on_its_way(window: Window, make_ask: Any) -> None:
    _begin(window, make_ask)
    with pytest.raises(AssertionError):
        _begin(window, make_ask)


@pytest.mark.parametrize("message_id", [1, 2, 0xFFFFFFFF])
def test_a_response_to_what_was_not_asked_is_unexpected(
    window: Window, make_ask: Any, message_id: int
) -> None:
    _begin(window, make_ask)
    with pytest.raises(Drop) as drop:
        window.outstanding_for(message_id)
    assert drop.value.reason is DropReason.UNEXPECTED_RESPONSE


def test_a_second_response_is_unexpected(window: Window, make_ask: Any) -> None:
    _begin(window, make_ask)
    window.complete(0)
    with pytest.raises(Drop):
        window.outstanding_for(0)


def test_each_wait_is_a_factor_longer_and_the_last_one_is_waited_too(
    window: Window, make_ask: Any
) -> None:
    _begin(window, make_ask, now=10.0)
    for moment in (11, 13, 17, 25, 41):
        assert window.next_timeout == moment
        assert _retransmit(window, moment) is window.outstanding[0]
    assert window.next_timeout == 73
    with pytest.raises(PeerSilent) as silent:
        _retransmit(window, 73)
    assert silent.value.request is window.outstanding[0]


def test_nothing_is_sent_again_before_its_time(window: Window, make_ask: Any) -> None:
    assert _retransmit(window, 1e9) is None
    _begin(window, make_ask)
    assert _retransmit(window, 0.999) is None
    request = _retransmit(window, 1.0)
    assert request is not None
    assert request.retransmissions == 1


@pytest.mark.parametrize(("octets", "expected"), [(0, 0.9), (0xFF, 1.1)])
def test_jitter_stays_within_its_share(make_ask: Any, octets: int, expected: float) -> None:
    window = Window(Retransmission(jitter=0.1), lambda size: bytes([octets]) * size)
    _begin(window, make_ask)
    assert window.next_timeout == pytest.approx(expected)


def test_requests_of_the_peer_come_one_after_the_other(window: Window) -> None:
    assert window.accept_request(0) is None
    _answer(window, 0, b"first")
    assert _answer_to(window, 0) == (b"first",)
    assert window.accept_request(1) is None
    _answer(window, 1, b"second")
    assert _answer_to(window, 1) == (b"second",)
    for stale in (0, 3, 0xFFFFFFFF):
        with pytest.raises(Drop) as drop:
            window.accept_request(stale)
        assert drop.value.reason is DropReason.WRONG_MESSAGE_ID


def test_nothing_is_repeated_before_there_was_an_answer(window: Window) -> None:
    with pytest.raises(Drop):
        window.accept_request(0xFFFFFFFF)


def test_who_leaves_hurries(window: Window, make_ask: Any) -> None:
    _begin(window, make_ask)
    window.hurry(1)
    assert _retransmit(window, 1.0) is not None
    with pytest.raises(PeerSilent):
        _retransmit(window, 3.0)


# A peer that does not answer.


def test_a_silent_peer_is_given_up_after_the_last_wait(
    make_pair: MakePair, make_policy: MakePolicy
) -> None:
    policy = replace(make_policy(), retransmission=Retransmission(jitter=0))
    pair = make_pair(policy)
    pair.impair = lambda _output, _sender: []
    times: list[float] = []
    send = pair.moon.take_outputs

    def noted() -> Any:
        sent = send()
        times.extend(pair.now for _ in sent)
        return sent

    pair.moon.take_outputs = noted
    pair.initiate()
    pair.run(100)
    assert times == [0, 1, 3, 7, 15, 31]
    assert len({o.data for o in pair.moon.reports(SendDatagram)}) == 1
    counts = [(o.count, o.of) for o in pair.moon.reports(RequestRetransmitted)]
    assert counts == [(n, 5) for n in range(1, 6)]
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2001"
    assert "sent 6 times" in closed.failure.summary
    assert not closed.was_established
    pair.assert_forgotten()


def test_jitter_spreads_the_attempts_within_bounds(
    make_pair: MakePair, make_policy: MakePolicy
) -> None:
    firsts = set()
    for attempt in range(40):
        pair = make_pair(make_policy())
        for _ in range(attempt):
            pair.moon.endpoint._core.random(7)
        pair.initiate()
        pair.moon.take_outputs()
        firsts.add(pair.moon.endpoint.next_timeout())
    assert all(0.9 <= first <= 1.1 for first in firsts)
    assert len(firsts) > 30


def test_a_peer_that_falls_silent_before_it_authenticates_is_given_up(pair: Any) -> None:
    pair.impair = lambda output, sender: (
        [] if sender is pair.sun and pair.sent[2:] else [output.data]
    )
    pair.up()
    pair.run(200)
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2001"
    assert "IKE_AUTH" in closed.failure.summary
    assert pair.moon.datapath.dump().sad == ()


# One datagram is impaired, at each position.

HANDSHAKE, WHOLE_LIFE = range(4), range(6)


def _impair_nth(pair: Any, nth: int, what: Callable[[bytes], list[bytes]]) -> None:
    count = 0

    def impair(output: SendDatagram, _sender: Any) -> list[bytes]:
        nonlocal count
        count += 1
        return what(output.data) if count == nth + 1 else [output.data]

    pair.impair = impair


@pytest.mark.parametrize("copies", [0, 2, 5], ids=["lost", "doubled", "five times"])
@pytest.mark.parametrize("nth", HANDSHAKE)
def test_a_datagram_lost_or_doubled_does_no_harm(pair: Any, nth: int, copies: int) -> None:
    _impair_nth(pair, nth, lambda data: [data] * copies)
    pair.up()
    pair.run(10)
    pair.assert_up()
    pair.run(HALF_OPEN_SECONDS + LINGER_SECONDS)
    pair.assert_up()
    assert len(pair.moon.ike_sas) == len(pair.sun.ike_sas) == 1


@pytest.mark.parametrize("copies", [0, 2, 5], ids=["lost", "doubled", "five times"])
@pytest.mark.parametrize("nth", [4, 5])
@pytest.mark.parametrize("end", ["moon", "sun"])
def test_a_farewell_lost_or_doubled_does_no_harm(
    pair: Any, nth: int, copies: int, end: str
) -> None:
    _impair_nth(pair, nth, lambda data: [data] * copies)
    pair.up()
    getattr(pair, end).endpoint.terminate("tunnel-a", pair.now)
    pair.run(100)
    pair.assert_forgotten()


@pytest.mark.parametrize("seconds", [0.5, 1.5, 5.0, 40.0])
@pytest.mark.parametrize("nth", WHOLE_LIFE)
def test_a_late_copy_does_no_harm(pair: Any, nth: int, seconds: float) -> None:
    """A datagram comes, and once more much later: established by then, or deleted."""
    late: list[tuple[Any, bytes, Any]] = []
    count = 0

    def impair(output: SendDatagram, sender: Any) -> list[bytes]:
        nonlocal count
        if count == nth:
            receiver = pair.sun if sender is pair.moon else pair.moon
            path = replace(output.path, local=output.path.remote, remote=output.path.local)
            late.append((receiver, output.data, path))
        count += 1
        return [output.data]

    pair.impair = impair
    pair.up()
    if nth > 3:
        pair.moon.endpoint.terminate("tunnel-a", pair.now)
        pair.deliver()
    pair.run(seconds)
    ((receiver, data, path),) = late
    before = receiver.snapshot()
    receiver.endpoint.receive_datagram(data, path, pair.now)
    pair.deliver()
    assert receiver.snapshot() == before
    pair.run(HALF_OPEN_SECONDS * 3)
    if nth > 3:
        pair.assert_forgotten()
    else:
        pair.assert_up()


@pytest.mark.parametrize("nth", HANDSHAKE)
def test_a_datagram_that_comes_after_its_retransmission_does_no_harm(pair: Any, nth: int) -> None:
    held: list[tuple[Any, bytes, Any]] = []
    count = 0

    def impair(output: SendDatagram, sender: Any) -> list[bytes]:
        nonlocal count
        count += 1
        if count == nth + 1:
            receiver = pair.sun if sender is pair.moon else pair.moon
            path = replace(output.path, local=output.path.remote, remote=output.path.local)
            held.append((receiver, output.data, path))
            return []
        return [output.data]

    pair.impair = impair
    pair.up()
    pair.run(1.2)  # The retransmission overtakes it.
    pair.assert_up()
    ((receiver, data, path),) = held
    before = receiver.snapshot()
    receiver.endpoint.receive_datagram(data, path, pair.now)
    pair.deliver()
    assert receiver.snapshot() == before
    pair.assert_up()


# The responder's memory of IKE_SA_INIT (section 2.1).


@pytest.fixture
def first_request(pair: Any, make_backwards: Callable[..., Any]) -> tuple[bytes, Any]:
    pair.initiate()
    (output,) = pair.moon.take_outputs()
    return output.data, make_backwards(output.path)


def test_a_repeated_first_request_gets_the_same_octets(
    pair: Any, first_request: tuple[bytes, Any]
) -> None:
    answers = set()
    for _ in range(5):
        pair.sun.endpoint.receive_datagram(*first_request, pair.now)
        (answer,) = pair.sun.take_outputs()
        answers.add(answer.data)
    assert len(answers) == 1
    assert len(pair.sun.ike_sas) == 1


def test_a_first_request_after_the_tunnel_is_up_changes_nothing_of_it(
    pair: Any, first_request: tuple[bytes, Any]
) -> None:
    pair.sun.endpoint.receive_datagram(*first_request, pair.now)
    pair.deliver()
    pair.assert_up()
    before = pair.sun.snapshot()
    for _ in range(3):
        pair.sun.endpoint.receive_datagram(*first_request, pair.now)
        pair.deliver()
    assert pair.sun.snapshot() == before
    assert len(pair.sun.ike_sas) == 2  # A new half-open one, once.
    pair.run(HALF_OPEN_SECONDS * 2)
    assert len(pair.sun.ike_sas) == 1
    pair.assert_up()


def test_a_half_open_ike_sa_expires_and_is_forgotten(
    pair: Any, first_request: tuple[bytes, Any]
) -> None:
    pair.sun.endpoint.receive_datagram(*first_request, pair.now)
    pair.sun.take_outputs()
    assert pair.sun.endpoint.next_timeout() == HALF_OPEN_SECONDS
    pair.impair = lambda _output, _sender: []
    pair.run(HALF_OPEN_SECONDS)
    (refused,) = pair.sun.reports(RequestRefused)
    assert refused.failure.code == "XF2001"
    pair.run(100)
    pair.assert_forgotten()


# Leaving a peer that is gone.


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "with a request on its way"])
def test_nobody_waits_long_for_a_peer_that_may_be_gone(pair: Any, busy: bool) -> None:
    pair.up()
    pair.impair = lambda _output, _sender: []
    if busy:
        pair.run(IDLE_PATIENCE * pair.moon.policy.dpd_seconds + 1)
        assert not pair.moon.ike_sa.channel.window.is_idle
    pair.moon.endpoint.terminate("tunnel-a", pair.now)
    pair.run(9)
    assert pair.moon.views == ()
    assert pair.moon.datapath.dump().sad == ()


def test_an_attempt_that_is_taken_down_before_it_has_keys_is_gone_at_once(pair: Any) -> None:
    pair.initiate()
    pair.moon.take_outputs()
    pair.moon.endpoint.terminate("tunnel-a", pair.now)
    pair.moon.take_outputs()
    assert pair.moon.views == ()
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure is None


@pytest.mark.parametrize("answered", [True, False])
def test_an_attempt_that_is_taken_down_while_it_authenticates_leaves_nothing(
    pair: Any, answered: bool
) -> None:
    pair.initiate()
    pair._carry(pair.moon, pair.sun)
    pair._carry(pair.sun, pair.moon)
    pair.moon.endpoint.terminate("tunnel-a", pair.now)
    if not answered:
        pair.impair = lambda _output, _sender: []
    pair.run(200)
    pair.assert_forgotten()
    assert len(pair.moon.reports(TunnelClosed)) == 1
