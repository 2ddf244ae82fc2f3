"""What is kept of what has happened, and what a listener gets who is too slow."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from xfrmpy.control.observed import Event
from xfrmpy.daemon.history import (
    MAX_AT_ONCE,
    MAX_EVENTS,
    MAX_EVENTS_OF_A_TUNNEL,
    MAX_EVENTS_OF_STRANGERS,
    MAX_WAITING,
    History,
)

EVENT = Event(
    number=0,
    time="2025-11-25T17:00:00.125Z",
    monotonic=0.0,
    tunnel="a",
    child="",
    event="peer-moved",
    severity="info",
    text="",
    code="",
    failure=None,
    details={},
)
STRANGER = replace(EVENT, tunnel="", event="request-refused", details={"remote": "192.0.2.9:500"})


def add(history: History, event: Event, *numbers: int) -> None:
    for number in numbers:
        history.add(replace(event, number=number), keep=True)


def numbers(events: list[Event]) -> list[int]:
    return [event.number for event in events]


def test_the_last_are_kept_of_all_and_of_each_tunnel() -> None:
    history = History()
    add(history, replace(EVENT, tunnel="quiet"), 1)
    add(history, EVENT, *range(2, 2000))
    assert len(history.recent(None, 10_000)) == MAX_EVENTS
    assert numbers(history.recent("a", 3)) == [1997, 1998, 1999]
    assert len(history.recent("a", 10_000)) == MAX_EVENTS_OF_A_TUNNEL
    assert numbers(history.recent("quiet", 10)) == [1]
    assert history.recent("a", 0) == history.recent("b", 10) == []


def test_strangers_push_out_nothing_but_strangers() -> None:
    history = History()
    add(history, EVENT, 1)
    add(history, replace(EVENT, tunnel="", event="daemon-started"), 2)
    add(history, STRANGER, *range(3, 5000))
    add(history, EVENT, 5000)
    kept = numbers(history.recent(None, 10_000))
    assert kept[:2] == [1, 2]
    assert kept[-1] == 5000
    assert len(kept) == MAX_EVENTS_OF_STRANGERS + 3


def test_what_is_not_to_be_kept_is_told_and_forgotten() -> None:
    async def hear() -> list[int]:
        history = History()
        with history.listen(None) as listener:
            history.add(replace(EVENT, number=1), keep=False)
            assert history.recent(None, 10) == []
            events, _ = await listener.take()
            return numbers(events)

    assert asyncio.run(hear()) == [1]


def test_a_listener_hears_of_his_tunnel_alone() -> None:
    async def hear() -> list[int]:
        history = History()
        with history.listen("a") as listener:
            add(history, replace(EVENT, tunnel="b"), 1)
            add(history, STRANGER, 2)
            add(history, EVENT, 3)
            events, _ = await listener.take()
            return numbers(events)

    assert asyncio.run(hear()) == [3]


def test_a_listener_who_does_not_keep_up_is_told_how_many_he_missed_and_goes_on() -> None:
    async def hear() -> tuple[list[int], int, list[int], int]:
        history = History()
        with history.listen(None) as listener:
            add(history, EVENT, *range(100_000))
            first, missed = await listener.take()
            seen = numbers(first)
            while seen[-1] != 99_999:
                more, again = await listener.take()
                assert len(more) <= MAX_AT_ONCE
                assert again == 0
                seen += numbers(more)
            add(history, EVENT, 100_000)
            last, none = await listener.take()
        return seen, missed, numbers(last), none

    seen, missed, last, none = asyncio.run(hear())
    assert seen == list(range(100_000 - MAX_WAITING, 100_000))
    assert missed == 100_000 - MAX_WAITING
    assert (last, none) == ([100_000], 0)


def test_nobody_is_told_who_has_left() -> None:
    async def hear() -> int:
        history = History()
        with history.listen(None):
            pass
        add(history, EVENT, 1)
        return len(history._listeners)

    assert asyncio.run(hear()) == 0
