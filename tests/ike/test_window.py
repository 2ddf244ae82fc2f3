"""Several requests at once: announced, sent, taken out of order, repeated.

RFC 7296 section 2.3.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.ike.errors import Drop, DropReason
from xfrmpy.ike.ike_sa import LINGER_SECONDS
from xfrmpy.ike.outputs import SendDatagram, TunnelClosed
from xfrmpy.ike.window import MAX_MESSAGE_ID, OUR_WINDOW_SIZE, Sent, Window
from xfrmpy.policy.model import Retransmission
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.message import Message, decode_message_untrusted
from xfrmpy.wire.payloads import NotifyPayload, VendorIdPayload

MakePair = Callable[..., Any]
MakePolicy = Callable[..., Any]

INFORMATIONAL = ExchangeType.INFORMATIONAL


def announcement(size: int) -> NotifyPayload:
    return NotifyPayload(type=NotifyType.SET_WINDOW_SIZE, data=size.to_bytes(4, "big"))


def _asks(make_ask: Any, host: Any, count: int, now: float = 0.0) -> list[Any]:
    """Requests that can be told apart, so that each answer shows which request it is for."""
    return [
        make_ask(INFORMATIONAL, VendorIdPayload(data=b"%d" % number)).on(host, now)
        for number in range(count)
    ]


def _answered(asks: list[Any]) -> list[bool]:
    return [ask.answer is not None for ask in asks]


def _message(output: SendDatagram) -> Message:
    return decode_message_untrusted(output.data[4:] if output.path.natt else output.data)


# What is announced, and when it holds.


def test_both_ends_announce_their_window_in_ike_auth(up: Any, sealing: Any) -> None:
    up.up()
    assert [announcement(OUR_WINDOW_SIZE) in payloads for _, payloads in sealing.sent] == [True] * 2


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_as_many_requests_leave_as_the_peer_keeps_state_for(
    up: Any, make_ask: Any, end: str
) -> None:
    host = getattr(up, end)
    asks = _asks(make_ask, host, OUR_WINDOW_SIZE + 3)
    sent = host.take_outputs()
    assert len(sent) == OUR_WINDOW_SIZE
    assert len({_message(output).message_id for output in sent}) == OUR_WINDOW_SIZE
    up.run(10)  # What was taken here is lost, and sent again.
    assert all(_answered(asks))
    assert host.ike_sa.channel.window.is_idle


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_a_peer_that_announces_nothing_is_asked_one_thing_after_the_other(
    pair: Any, make_ask: Any, sealing: Any, end: str
) -> None:
    sealing.change = lambda _message, payloads: tuple(
        p for p in payloads if getattr(p, "type", None) != NotifyType.SET_WINDOW_SIZE
    )
    pair.up()
    host = getattr(pair, end)
    asks = _asks(make_ask, host, 4)
    assert len(host.take_outputs()) == 1
    pair.run(10)
    assert all(_answered(asks))


@pytest.mark.parametrize("octets", [b"", b"\x08", bytes(3) + b"\x08\x00", bytes(4)])
def test_an_announcement_that_says_nothing_changes_nothing(
    pair: Any, make_ask: Any, sealing: Any, octets: bytes
) -> None:
    odd = NotifyPayload(type=NotifyType.SET_WINDOW_SIZE, data=octets)
    sealing.change = lambda _message, payloads: tuple(
        odd if p == announcement(OUR_WINDOW_SIZE) else p for p in payloads
    )
    pair.up()
    pair.assert_up()
    _asks(make_ask, pair.moon, 3)
    assert len(pair.moon.take_outputs()) == 1


def test_the_window_is_one_until_the_peer_is_authenticated(pair: Any, make_ask: Any) -> None:
    """Section 2.3: "The window size is always one until the initial exchanges complete"."""
    pair.initiate()
    pair._carry(pair.moon, pair.sun)
    pair._carry(pair.sun, pair.moon)
    _asks(make_ask, pair.moon, 2)
    assert len(pair.moon.take_outputs()) == 1


@pytest.mark.parametrize(("size", "expected"), [(2, OUR_WINDOW_SIZE), (11, 11)])
def test_a_window_may_grow_later_and_does_not_shrink(
    up: Any, make_ask: Any, size: int, expected: int
) -> None:
    make_ask(INFORMATIONAL, announcement(size)).on(up.sun)
    up.deliver()
    _asks(make_ask, up.moon, 20)
    assert len(up.moon.take_outputs()) == expected


def _successors(pair: Any, by: str = "moon") -> list[Any]:
    """The IKE SAs of both ends after a rekeying."""
    getattr(pair, by).endpoint.rekey_ike_sas("tunnel-a", pair.now)
    pair.deliver()
    return [host.ike_sa for host in (pair.moon, pair.sun)]


@pytest.mark.parametrize("end", ["moon", "sun"])
@pytest.mark.parametrize("by", ["moon", "sun"])
def test_after_a_rekeying_both_ends_announce_their_window_anew(
    up: Any, make_ask: Any, by: str, end: str
) -> None:
    """Section 2.3: "until it is explicitly increased by sending a new SET_WINDOW_SIZE"."""
    _successors(up, by)
    host = getattr(up, end)
    asks = _asks(make_ask, host, OUR_WINDOW_SIZE + 3)
    assert len(host.take_outputs()) == OUR_WINDOW_SIZE
    up.run(10)
    assert all(_answered(asks))
    assert not up.moon.drops
    assert not up.sun.drops


def test_a_window_is_announced_once_on_each_ike_sa(up: Any, make_ask: Any, sealing: Any) -> None:
    _successors(up)
    make_ask(INFORMATIONAL, announcement(9)).on(up.moon)
    up.deliver()
    said = [message for message, payloads in sealing.sent if announcement(8) in payloads]
    assert [message.is_response for message in said] == [False, True]


def test_who_never_announced_a_window_gets_no_announcement_after_a_rekeying(
    pair: Any, make_ask: Any, sealing: Any
) -> None:
    sealing.change = lambda _message, payloads: tuple(
        p for p in payloads if getattr(p, "type", None) != NotifyType.SET_WINDOW_SIZE
    )
    pair.up()
    sealing.change = lambda _message, payloads: payloads
    sealing.sent.clear()
    moon, _ = _successors(pair)
    assert not any(announcement(OUR_WINDOW_SIZE) in payloads for _, payloads in sealing.sent)
    assert moon.channel.window._next_id == 0
    _asks(make_ask, pair.moon, 3)
    assert len(pair.moon.take_outputs()) == 1
    pair.run(5)
    make_ask(INFORMATIONAL, announcement(3)).on(pair.sun, pair.now)
    pair.deliver()
    _asks(make_ask, pair.moon, 5, pair.now)
    assert len(pair.moon.take_outputs()) == 3


def test_an_ike_sa_that_was_rekeyed_keeps_what_was_agreed(up: Any) -> None:
    for sa in _successors(up):
        assert sa.channel.fragments
        assert sa.channel.may_sync


def test_nothing_goes_beside_the_rekeying_of_the_ike_sa(up: Any, make_ask: Any) -> None:
    up.moon.endpoint.rekey_ike_sas("tunnel-a", up.now)
    _asks(make_ask, up.moon, 3)
    assert len(up.moon.take_outputs()) == 1
    up.run(30)
    up.assert_up()


# Out of order, lost, repeated.


@pytest.mark.parametrize("seed", range(20))
def test_requests_may_arrive_in_any_order_and_each_gets_its_own_answer(
    up: Any, make_ask: Any, make_backwards: Any, sealing: Any, seed: int
) -> None:
    asks = _asks(make_ask, up.moon, OUR_WINDOW_SIZE)
    sent = up.moon.take_outputs()
    random.Random(seed).shuffle(sent)
    for output in sent:
        up.sun.receive(output.data, make_backwards(output.path), 0.0)
        (answer,) = up.sun.take_outputs()
        assert _message(answer).message_id == _message(output).message_id
        up.moon.receive(answer.data, output.path, 0.0)
    assert all(_answered(asks))
    assert not up.sun.drops
    assert len(sealing.answers(INFORMATIONAL)) == OUR_WINDOW_SIZE


@pytest.mark.parametrize("lost", range(OUR_WINDOW_SIZE))
def test_a_lost_request_holds_up_only_what_lies_a_window_further(
    up: Any, make_ask: Any, lost: int
) -> None:
    count = len(up.sent)

    def impair(output: SendDatagram, _sender: Any) -> list[bytes]:
        return [] if len(up.sent) == count + lost + 1 else [output.data]

    up.impair = impair
    asks = _asks(make_ask, up.moon, OUR_WINDOW_SIZE * 2)
    up.deliver()
    expected = [n != lost and n < lost + OUR_WINDOW_SIZE for n in range(OUR_WINDOW_SIZE * 2)]
    assert _answered(asks) == expected
    up.run(2)
    assert all(_answered(asks))


def test_each_request_has_a_timer_of_its_own(
    make_pair: MakePair, make_policy: MakePolicy, make_ask: Any
) -> None:
    policy = replace(make_policy(), retransmission=Retransmission(jitter=0))
    pair = make_pair(policy)
    pair.up()
    pair.impair = lambda _output, _sender: []
    times: dict[int, list[float]] = {}

    def impair(output: SendDatagram, sender: Any) -> list[bytes]:
        if sender is pair.moon:
            times.setdefault(_message(output).message_id, []).append(pair.now)
        return []

    pair.impair = impair
    _asks(make_ask, pair.moon, 1, pair.now)
    pair.run(0.4)
    _asks(make_ask, pair.moon, 1, pair.now)
    pair.run(20)
    assert times[2] == [0, 1, 3, 7, 15]
    assert times[3] == [pytest.approx(0.4 + t) for t in (0, 1, 3, 7, 15)]


def test_one_request_without_answer_is_enough_to_give_the_peer_up(up: Any, make_ask: Any) -> None:
    def impair(output: SendDatagram, sender: Any) -> list[bytes]:
        is_deaf = sender is up.moon and _message(output).message_id == 4
        return [] if is_deaf else [output.data]

    up.impair = impair
    asks = _asks(make_ask, up.moon, 5)
    up.run(80)
    (closed,) = up.moon.reports(TunnelClosed)
    assert "did not answer INFORMATIONAL, sent 6 times" in closed.failure.summary
    assert _answered(asks) == [True, True, False, True, True]


def test_every_answer_within_the_window_is_repeated_with_the_same_octets(
    up: Any, make_ask: Any, make_backwards: Any
) -> None:
    _asks(make_ask, up.moon, OUR_WINDOW_SIZE + 1)
    start = len(up.sent)
    up.deliver()
    later = [(name, o) for name, o in up.sent[start:]]
    requests = [o for name, o in later if name == "moon"]
    answers = {_message(o).message_id: o.data for name, o in later if name == "sun"}
    for request in requests[1:]:
        up.sun.receive(request.data, make_backwards(request.path), 0.0)
        (again,) = up.sun.take_outputs()
        assert again.data == answers[_message(request).message_id]
    up.sun.receive(requests[0].data, make_backwards(requests[0].path), 0.0)
    assert up.sun.take_outputs() == []
    assert up.sun.drops == [DropReason.WRONG_MESSAGE_ID]


def test_what_lies_beyond_the_window_is_ignored_and_never_answered(
    up: Any, make_ask: Any, sealing: Any
) -> None:
    """Section 2.3: INVALID_MESSAGE_ID "MUST NOT be sent in a response"; sending it is optional."""
    up.moon.ike_sa.channel.window._next_id += OUR_WINDOW_SIZE
    ask = make_ask(INFORMATIONAL).on(up.moon)
    up.deliver()
    assert up.sun.drops == [DropReason.WRONG_MESSAGE_ID]
    assert ask.answer is None
    assert sealing.answers(INFORMATIONAL) == []


def test_a_peer_that_tells_of_an_invalid_message_id_is_answered(up: Any, make_ask: Any) -> None:
    told = NotifyPayload(type=NotifyType.INVALID_MESSAGE_ID, data=bytes(4))
    ask = make_ask(INFORMATIONAL, told).on(up.moon)
    up.deliver()
    assert ask.answer == ()
    up.assert_up()


# The window alone.


def _sent() -> Sent:
    message = Message(
        spi_i=bytes(8),
        spi_r=bytes(8),
        exchange=INFORMATIONAL,
        is_response=True,
        is_initiator=True,
        message_id=0,
        payloads=(),
    )
    return Sent(message=message, datagrams=(b"",))


@pytest.fixture
def window(make_random: Callable[..., Any]) -> Window:
    return Window(Retransmission(jitter=0), make_random("window"))


class SlowWindow:
    """The rules of section 2.3 word for word, over all Message IDs ever seen: the slow twin."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.answered: set[int] = set()
        self.highest = -1

    def kind(self, message_id: int) -> str:
        first_unanswered = next(n for n in range(10_000) if n not in self.answered)
        if message_id in self.answered:
            return "repeat" if self.highest < message_id + self.size else "drop"
        is_new = first_unanswered <= message_id < first_unanswered + self.size
        return "new" if is_new else "drop"


@pytest.mark.parametrize("size", [1, 2, 8])
@pytest.mark.parametrize("seed", range(20))
def test_the_window_agrees_with_a_slow_twin(window: Window, size: int, seed: int) -> None:
    chance, twin = random.Random(seed), SlowWindow(size)
    window.widen_ours(size)
    for _ in range(300):
        message_id = max(0, twin.highest + chance.randint(-size - 2, size + 2))
        try:
            kind = "new" if window.accept_request(message_id) is None else "repeat"
        except Drop:
            kind = "drop"
        assert kind == twin.kind(message_id)
        if kind == "new":
            window.begin_answer(message_id)
            window.answered(message_id, _sent())
            twin.answered.add(message_id)
            twin.highest = max(twin.highest, message_id)
        assert len(window._answers) <= size


def test_a_request_in_hand_is_not_begun_twice(window: Window) -> None:
    assert window.accept_request(0) is None
    window.begin_answer(0)
    with pytest.raises(Drop) as drop:
        window.accept_request(0)
    assert drop.value.reason is DropReason.REQUEST_IN_HAND


def test_room_is_counted_from_the_oldest_request_without_answer(
    window: Window, make_ask: Any
) -> None:
    window.widen_theirs(3)
    for number in range(3):
        assert window.has_room
        assert window.begin(make_ask(INFORMATIONAL)) == number
    window.complete(1)
    window.complete(2)
    assert not window.has_room
    window.complete(0)
    assert window.has_room
    assert window.is_idle


def test_the_last_message_id_is_used_and_then_the_ike_sa_is_closed(up: Any, make_ask: Any) -> None:
    """Section 2.2: when they "grow too large to fit in 32 bits, the IKE SA MUST be closed"."""
    up.moon.ike_sa.channel.window._next_id = MAX_MESSAGE_ID
    up.sun.ike_sa.channel.window._expected_id = MAX_MESSAGE_ID
    ask = make_ask(INFORMATIONAL).on(up.moon)
    up.deliver()
    assert ask.answer == ()
    make_ask(INFORMATIONAL).on(up.moon)
    up.deliver()
    (closed,) = up.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2014"
    assert up.moon.datapath.dump().sad == ()
    up.run(LINGER_SECONDS)
    assert up.moon.ike_sas == []
