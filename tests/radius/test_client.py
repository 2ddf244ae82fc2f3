"""Who is asked, how often, and whose answer counts; time and randomness are the test's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest

from tests.radius.replies import FAILURE, SECRET, reply
from xfrmpy.radius.attributes import Attribute, Code, Kind, split_untrusted
from xfrmpy.radius.client import (
    HOLD_DOWN_SECONDS,
    MAX_OUTSTANDING,
    MAX_WAITING,
    Answered,
    Output,
    RadiusClient,
    Send,
    Server,
    ServerBack,
    ServerSilent,
    Timing,
    Unanswered,
)
from xfrmpy.radius.packet import Refusal

ONE = Server(address=("192.0.2.1", 1812), secret=SECRET)
TWO = Server(address=("192.0.2.2", 1812), secret=b"another")
USER = (Attribute(type=Kind.USER_NAME, value=b"alice"),)


def middle() -> Callable[[int], bytes]:
    """Octets without a swing, and authenticators that differ."""
    numbers = count(1)
    return lambda size: b"\x7f" if size == 1 else next(numbers).to_bytes(size, "big")


def client(*servers: Server, tries: int = 3) -> RadiusClient:
    return RadiusClient(servers or (ONE,), Timing(wait_seconds=2.0, tries=tries), middle())


def outputs(of: RadiusClient) -> list[Output]:
    def each() -> Iterator[Output]:
        while (output := of.next_output()) is not None:
            yield output

    return list(each())


def sent(of: RadiusClient) -> list[Send]:
    return [output for output in outputs(of) if isinstance(output, Send)]


def answer(of: RadiusClient, send: Send, now: float, ticket: int = 1) -> None:
    server = of.servers[send.server]
    octets = reply(send.octets, Code.ACCESS_REJECT, eap=FAILURE, secret=server.secret)
    of.receive_datagram(send.server, server.address, octets, now)
    answered = [each for each in outputs(of) if isinstance(each, Answered)]
    assert [each.ticket for each in answered] == [ticket]


def test_a_request_is_sent_again_unchanged_with_growing_waits_and_then_given_up() -> None:
    asking = client()
    asking.ask(1, Code.ACCESS_REQUEST, USER, now=100.0)
    first = sent(asking)
    moments = []
    while (due := asking.next_timeout()) is not None:
        asking.handle_timeout(due - 0.01)
        assert outputs(asking) == []
        asking.handle_timeout(due)
        moments.append(round(due))
        found = outputs(asking)
        assert [o for o in found if isinstance(o, Send)] == (first if len(moments) < 3 else [])
    assert moments == [102, 106, 114]
    assert found[0] == ServerSilent(server=0)
    assert isinstance(found[1], Unanswered)
    assert "192.0.2.1:1812" in found[1].reason


def test_the_next_server_is_asked_with_its_secret_and_a_request_of_its_own() -> None:
    asking = client(ONE, TWO, tries=1)
    asking.ask(1, Code.ACCESS_REQUEST, USER, now=0.0)
    (first,) = sent(asking)
    asking.handle_timeout(3.0)
    (second,) = sent(asking)
    assert (first.server, second.server) == (0, 1)
    assert first.octets[4:20] != second.octets[4:20]
    answer(asking, second, 3.1)


def test_a_silent_server_is_asked_last_for_a_while_and_first_again_then() -> None:
    asking = client(ONE, TWO, tries=1)
    asking.ask(1, Code.ACCESS_REQUEST, USER, now=0.0)
    asking.handle_timeout(3.0)
    answer(asking, sent(asking)[-1], 3.0)
    asking.ask(2, Code.ACCESS_REQUEST, USER, now=4.0)
    (during,) = sent(asking)
    assert during.server == 1
    answer(asking, during, 4.0, ticket=2)
    asking.ask(3, Code.ACCESS_REQUEST, USER, now=4.0 + HOLD_DOWN_SECONDS)
    (after,) = sent(asking)
    assert after.server == 0
    asking.receive_datagram(0, ONE.address, reply(after.octets, Code.ACCESS_REJECT), 70.0)
    assert outputs(asking)[0] == ServerBack(server=0)


def test_a_request_for_one_server_goes_to_no_other() -> None:
    """Its State means something to that one alone."""
    asking = client(ONE, TWO, tries=1)
    asking.ask(1, Code.ACCESS_REQUEST, USER, now=0.0, server=0)
    asking.handle_timeout(3.0)
    assert [type(each) for each in outputs(asking)] == [Send, ServerSilent, Unanswered]


def test_only_the_server_itself_can_answer_and_only_once() -> None:
    asking = client(ONE, TWO)
    asking.ask(1, Code.ACCESS_REQUEST, USER, now=0.0)
    (send,) = sent(asking)
    octets = reply(send.octets, Code.ACCESS_REJECT, eap=FAILURE)
    asking.receive_datagram(0, ("192.0.2.1", 1813), octets, 0.1)
    asking.receive_datagram(0, TWO.address, octets, 0.1)
    asking.receive_datagram(1, TWO.address, octets, 0.1)
    asking.receive_datagram(0, ONE.address, octets[:1], 0.1)
    assert outputs(asking) == []
    asking.receive_datagram(0, ONE.address, octets, 0.2)
    asking.receive_datagram(0, ONE.address, octets, 0.3)
    assert [type(each) for each in outputs(asking)] == [Answered]
    assert asking.refused == {Refusal.SOURCE: 2, Refusal.NOT_ASKED: 2, Refusal.MALFORMED: 1}
    assert asking.next_timeout() is None


def test_an_answer_to_the_request_that_had_the_identifier_before_is_refused() -> None:
    asking = client()
    asking.ask(0, Code.ACCESS_REQUEST, USER, now=0.0)
    (old,) = sent(asking)
    late = reply(old.octets, Code.ACCESS_ACCEPT)
    asking.forget(0)
    for ticket in range(1, 257):
        asking.ask(ticket, Code.ACCESS_REQUEST, USER, now=0.0)
        (new,) = sent(asking)
        if new.octets[1] == old.octets[1]:
            break
        asking.forget(ticket)
    else:
        pytest.fail("the identifier does not come again")
    assert ticket == 256
    asking.receive_datagram(0, ONE.address, late, 0.1)
    assert asking.refused == {Refusal.NOT_GENUINE: 1}


def test_outstanding_and_waiting_requests_are_bounded_and_each_gets_its_turn() -> None:
    asking = client(tries=1)
    for ticket in range(MAX_OUTSTANDING + MAX_WAITING + 1):
        asking.ask(ticket, Code.ACCESS_REQUEST, USER, now=0.0)
    found = outputs(asking)
    first = [each for each in found if isinstance(each, Send)]
    assert len(first) == MAX_OUTSTANDING
    assert len({each.octets[1] for each in first}) == MAX_OUTSTANDING
    refused = [each for each in found if isinstance(each, Unanswered)]
    assert [each.ticket for each in refused] == [MAX_OUTSTANDING + MAX_WAITING]
    octets = reply(first[0].octets, Code.ACCESS_REJECT)
    asking.receive_datagram(0, ONE.address, octets, 0.1)
    (answered, follower) = outputs(asking)
    assert isinstance(answered, Answered)
    assert isinstance(follower, Send)
    now = 0.1
    while (due := asking.next_timeout()) is not None:
        assert due >= now
        asking.handle_timeout(now := due)
    assert sum(isinstance(each, Unanswered) for each in outputs(asking)) == (
        MAX_OUTSTANDING + MAX_WAITING - 1
    )


def test_an_accounting_request_says_how_late_it_is_and_is_another_each_time() -> None:
    asking = client()
    asking.ask(1, Code.ACCOUNTING_REQUEST, USER, now=10.0, since=3.0)
    (first,) = sent(asking)
    asking.handle_timeout(12.5)
    (second,) = sent(asking)
    delays = [dict(split_untrusted(each.octets[20:]))[41] for each in (first, second)]
    assert [int.from_bytes(delay, "big") for delay in delays] == [7, 9]
    assert first.octets[1] != second.octets[1]
    asking.receive_datagram(0, ONE.address, reply(first.octets, Code.ACCOUNTING_RESPONSE), 12.6)
    assert outputs(asking) == []
    asking.receive_datagram(0, ONE.address, reply(second.octets, Code.ACCOUNTING_RESPONSE), 12.6)
    assert [type(each) for each in outputs(asking)] == [Answered]
