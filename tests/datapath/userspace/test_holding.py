"""Packets that wait for an SA: in order, few, not for long, and none is lost that can be kept."""

from __future__ import annotations

from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.datapath.userspace.holding import OCTETS, PACKETS, SECONDS, Holding


def test_what_is_ready_goes_in_its_order_and_the_rest_goes_on_waiting() -> None:
    held = Holding()
    for number in range(6):
        assert held.hold(number % 2, bytes([number]), 0.0)
    assert held.take(lambda _, packet: packet[0] in (0, 2, 5), 1.0) == [
        (0, b"\0"),
        (0, b"\2"),
        (1, b"\5"),
    ]
    assert [*held.firsts()] == [(0, b"\4"), (1, b"\1")]
    assert held.take(lambda *_: True, 1.0) == [(0, b"\4"), (1, b"\1"), (1, b"\3")]
    assert held.take(lambda *_: True, 1.0) == []


def test_there_are_so_many_of_a_reqid_and_the_first_are_kept() -> None:
    held = Holding()
    kept = [held.hold(1, bytes([number]), 0.0) for number in range(PACKETS + 3)]
    assert kept == [True] * PACKETS + [False] * 3
    assert held.hold(2, b"another's", 0.0)
    assert held.take(lambda *_: True, 0.0)[0] == (1, b"\0")


def test_there_are_so_many_octets_and_they_are_free_again() -> None:
    held = Holding()
    large = bytes(OCTETS // 4)
    assert [held.hold(number, large, 0.0) for number in range(5)] == [True] * 4 + [False]
    held.take(lambda *_: True, 0.0)
    assert held.hold(9, large, 0.0)


def test_what_has_waited_for_too_long_is_given_up() -> None:
    held = Holding()
    held.hold(1, b"old", 0.0)
    held.hold(1, b"new", 1.0)
    held.expire(SECONDS)
    assert held.take(lambda *_: True, SECONDS) == [(1, b"new")]
    assert [*held.firsts()] == []


@given(st.lists(st.tuples(st.integers(0, 3), st.binary(min_size=1, max_size=5), st.booleans())))
def test_octets_are_counted_right_whatever_comes(steps: list[tuple[int, bytes, bool]]) -> None:
    held = Holding()
    for now, (reqid, packet, takes) in enumerate(steps):
        held.hold(reqid, packet, now * 7.0)
        if takes:
            held.take(partial(_is_same, packet), now * 7.0)
        waiting = [p for queue in held._waiting.values() for _, p in queue]
        assert held._octets == sum(map(len, waiting))
        assert all(held._waiting.values())


def _is_same(wanted: bytes, _reqid: int, packet: bytes) -> bool:
    return packet == wanted
