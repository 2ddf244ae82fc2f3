"""Datagrams that leave together, over the loopback."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.datapath.userspace.loop import Loop
from xfrmpy.datapath.userspace.ancillary import ROOM, decode_fields
from xfrmpy.datapath.userspace.sending import MAX_OCTETS, MAX_TOGETHER
from xfrmpy.esp.transport import Fields


@pytest.fixture(scope="module", params=[4, 6])
def loop(request: pytest.FixtureRequest) -> Iterator[Loop]:
    opened = Loop(request.param)
    yield opened
    opened.close()


def numbered(sizes: list[int]) -> list[bytes]:
    return [number.to_bytes(2, "big") + bytes(size) for number, size in enumerate(sizes)]


SIZES = st.lists(st.sampled_from([0, 1, 60, 60, 60, 1400, 1400]), max_size=150)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(sizes=SIZES)
def test_each_datagram_arrives_by_itself_and_in_order(loop: Loop, sizes: list[int]) -> None:
    entry, datagrams = loop.entry(), numbered(sizes)
    for datagram in datagrams:
        loop.sender.add(datagram, entry, None, has_df=False)
    loop.sender.flush()
    assert loop.received(len(datagrams)) == datagrams
    assert not loop.refused


@pytest.mark.parametrize("stride", [2, 100, 1400, 30_000, 65_000])
@pytest.mark.parametrize("rest", [1, 2])
def test_a_run_is_cut_where_its_datagrams_end(loop: Loop, stride: int, rest: int) -> None:
    count = min(2 * MAX_TOGETHER, 200_000 // stride) + 1
    octets = b"".join(n.to_bytes(2, "big").ljust(stride, b"x") for n in range(count))
    octets = octets[: (count - 1) * stride + rest]
    loop.sender.send_run(memoryview(octets), stride, loop.entry(), None, has_df=False)
    pieces = [octets[at : at + stride] for at in range(0, len(octets), stride)]
    assert loop.received(count) == pieces
    assert not loop.refused


def test_what_waits_leaves_before_a_run(loop: Loop) -> None:
    entry = loop.entry()
    loop.sender.add(b"first", entry, None, has_df=False)
    loop.sender.send_run(memoryview(b"aabbc"), 2, entry, None, has_df=False)
    assert loop.received(4) == [b"first", b"aa", b"bb", b"c"]


def test_no_more_wait_than_one_datagram_could_hold(loop: Loop) -> None:
    entry = loop.entry()
    datagrams = numbered([30_000, 30_000, 30_000])
    assert sum(map(len, datagrams)) > MAX_OCTETS
    for datagram in datagrams:
        loop.sender.add(datagram, entry, None, has_df=False)
    loop.sender.flush()
    assert loop.received(3) == datagrams


def test_each_has_the_fields_of_its_own_header(loop: Loop) -> None:
    entry = loop.entry()
    classes = [None, Fields(0xB8, 64), Fields(0xB8, 64), Fields(2, 64), None]
    for fields in classes:
        loop.sender.add(b"datagram", entry, fields, has_df=False)
    loop.sender.flush()
    seen = [loop.receiver.recvmsg(100, ROOM)[1] for _ in classes]
    told = [decode_fields(each, loop.version).traffic_class for each in seen]
    assert told == [0, 0xB8, 0xB8, 2, 0]


def test_those_of_other_peers_go_to_them(loop: Loop) -> None:
    other = Loop(loop.version)
    try:
        entries = [loop.entry(), other.entry()]
        for number in range(6):
            entry = entries[number % 2]
            loop.sender.add(bytes([number]), entry, None, has_df=False)
        loop.sender.flush()
        assert loop.received(3) == [b"\0", b"\2", b"\4"]
        assert other.received(3) == [b"\1", b"\3", b"\5"]
    finally:
        other.close()


def test_an_sa_that_has_moved_sends_to_where_it_is_now(loop: Loop) -> None:
    other = Loop(loop.version)
    try:
        entry = loop.entry()
        loop.sender.add(b"before", entry, None, has_df=False)
        moved = replace(entry, encapsulation=other.entry().encapsulation)
        loop.sender.add(b"behind", moved, None, has_df=False)
        loop.sender.flush()
        assert (loop.received(1), other.received(1)) == ([b"before"], [b"behind"])
    finally:
        other.close()


def test_each_of_those_that_the_system_does_not_take_is_counted() -> None:
    opened = Loop()
    try:
        nowhere = opened.entry(destination=ip_address("255.255.255.255"))
        for _ in range(3):
            opened.sender.add(b"datagram", nowhere, None, has_df=False)
        opened.sender.flush()
        opened.sender.send_run(memoryview(bytes(7)), 2, nowhere, None, has_df=False)
        assert opened.refused == {"udp-send-eacces": 7}
    finally:
        opened.close()


def test_what_is_too_long_for_any_datagram_is_counted_once() -> None:
    opened = Loop()
    try:
        opened.sender.add(bytes(70_000), opened.entry(), None, has_df=False)
        opened.sender.flush()
        assert opened.refused == {"udp-send-emsgsize": 1}
    finally:
        opened.close()
