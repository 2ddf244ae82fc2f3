"""Whether many peers live: what that costs is counted in questions and wake-ups, not in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.ike.duties import Duty, next_duty
from xfrmpy.ike.ike_sa import IkeSa
from xfrmpy.ike.outputs import AskUsage, ExchangeStarted, SendDatagram
from xfrmpy.ipsec.sad import Direction, Usage
from xfrmpy.policy.model import Uniqueness
from xfrmpy.registry import ExchangeType

COUNT = 100


@pytest.fixture
def many(
    make_policy: Callable[..., Any], make_mirror: Callable[..., Any], make_pair: Callable[..., Any]
) -> Any:
    """A hundred IKE SAs with as many Child SAs, all made at about 10.3; moon alone checks."""
    policy = replace(make_policy(), unique=Uniqueness.NEVER)
    sun = replace(make_mirror(policy), dpd_seconds=0)
    pair = make_pair(policy, sun)
    for number in range(COUNT):
        pair.now = 10 + 0.3 * (number + 1) / COUNT
        pair.up()
    assert len(pair.moon.views) == COUNT
    pair.moon.outputs.clear()
    return pair


@pytest.fixture
def asked_for_duties(monkeypatch: pytest.MonkeyPatch) -> Counter[IkeSa]:
    """How often it was looked what an IKE SA has to do next."""
    counted = Counter[IkeSa]()

    def count(sa: IkeSa) -> Duty | None:
        counted[sa] += 1
        return next_duty(sa)

    monkeypatch.setattr("xfrmpy.ike.ike_sa.next_duty", count)
    return counted


def checks(pair: Any) -> int:
    started = pair.moon.reports(ExchangeStarted)
    return sum(report.exchange is ExchangeType.INFORMATIONAL for report in started)


def test_a_hundred_that_are_due_are_one_question_to_the_datapath(many: Any) -> None:
    many.run(11)
    (question,) = many.moon.reports(AskUsage)
    entries = many.moon.datapath.sad.values()
    assert set(question.sas) == {("tunnel-a", entry.id) for entry in entries}
    assert len(question.sas) == 2 * COUNT


def test_a_look_at_one_that_is_idle_asks_twice_what_is_next(
    many: Any, asked_for_duties: Counter[IkeSa]
) -> None:
    """When its moment has come, and when the datapath has answered: thousands are looked at."""
    many.now = many.moon.endpoint.next_timeout()
    asked_for_duties.clear()
    many.moon.endpoint.handle_timeout(many.now)
    many.moon.take_outputs()
    assert many.moon.endpoint.next_timeout() > many.now
    assert list(asked_for_duties.values()) == [2] * COUNT


def test_a_hundred_checks_are_one_wake_up(many: Any) -> None:
    """And those that have their answers are no reason to wake up again before the next."""
    for due_at in (20.3, 30.3, 40.3, 50.3):
        assert 0 <= many.moon.endpoint.next_timeout() - due_at < 1
        many.now = many.moon.endpoint.next_timeout()
        many.moon.endpoint.handle_timeout(many.now)
        many.deliver()
        assert checks(many) == (0 if due_at < 40 else COUNT)


def test_who_sends_and_hears_nothing_asks_sooner_than_who_is_idle(many: Any) -> None:
    """RFC 7296 section 2.4: a check is to prevent that messages are sent to a dead peer."""
    outbound = [e for e in many.moon.datapath.sad.values() if e.direction is Direction.OUT]
    for entry in outbound[: COUNT // 4]:
        many.moon.datapath.used[entry.id] = Usage(octets=1, packets=1, seconds_idle=5.0)
    many.run(11)
    assert checks(many) == COUNT // 4
    many.run(20)
    assert checks(many) == 3 * (COUNT // 4) + COUNT - COUNT // 4


def test_what_was_sent_before_the_peer_was_heard_is_not_in_vain(many: Any) -> None:
    for entry in many.moon.datapath.sad.values():
        is_out = entry.direction is Direction.OUT
        idle = 5.2 if is_out else 5.0
        many.moon.datapath.used[entry.id] = Usage(octets=1, packets=1, seconds_idle=idle)
    many.run(10.1)
    many.moon.datapath.used.clear()
    many.run(20)
    assert checks(many) == 0


def test_only_who_was_silent_is_asked(many: Any) -> None:
    many.run(20)
    inbound = [e for e in many.moon.datapath.sad.values() if e.direction is Direction.IN]
    for entry in inbound[: COUNT // 4]:
        many.moon.datapath.used[entry.id] = Usage(octets=1, packets=1, seconds_idle=12.0)
    many.run(12)
    assert checks(many) == COUNT - COUNT // 4


@pytest.mark.parametrize("seconds", [0.1, 1.0, 10.0, 30.0, 77.7])
def test_a_check_is_never_early_and_hardly_late(
    make_policy: Callable[..., Any],
    make_mirror: Callable[..., Any],
    make_pair: Callable[..., Any],
    seconds: float,
) -> None:
    policy = replace(make_policy(), dpd_seconds=seconds)
    pair = make_pair(policy, replace(make_mirror(policy), dpd_seconds=0))
    pair.now = 12_345.678
    pair.up()
    late = pair.moon.endpoint.next_timeout() - (pair.now + seconds)
    assert -1e-9 <= late <= seconds / 10


def test_an_end_that_is_asked_need_not_ask(
    make_policy: Callable[..., Any], make_mirror: Callable[..., Any], make_pair: Callable[..., Any]
) -> None:
    """RFC 7296 section 2.4: a request of the peer shows that it lives, like any fresh message."""
    policy = make_policy()
    pair = make_pair(policy, replace(make_mirror(policy), dpd_seconds=policy.dpd_seconds + 2))
    pair.up()
    pair.run(600)
    assert pair.sun.reports(ExchangeStarted) == []
    assert checks(pair) == pytest.approx(600 / 30, abs=1)


def test_more_than_a_batch_that_is_due_is_done_in_turns(
    many: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has arrived is looked at in between."""
    monkeypatch.setattr("xfrmpy.ike.endpoint.MAX_DUE", COUNT // 4)
    many.now = 41.0
    for _ in range(4):
        assert many.moon.endpoint.next_timeout() <= many.now
        many.moon.endpoint.handle_timeout(many.now)
        sent = many.moon.take_outputs()
        assert all(isinstance(each, SendDatagram) for each in sent)
        assert len(sent) == COUNT // 4
    assert many.moon.endpoint.next_timeout() > many.now
