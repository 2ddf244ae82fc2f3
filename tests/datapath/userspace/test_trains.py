"""Packets of one size that came one behind the other, beside a twin that goes packet by packet."""

from __future__ import annotations

import select
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.datapath.userspace.super_packets import DF, Stream
from tests.datapath.userspace.test_bursts import CHAINING, FORM, SAMPLE, with_ivs_of
from tests.datapath.userspace.test_forwarding import policies
from tests.datapath.userspace.test_outbound import (
    FIELDS,
    NOISE,
    Laboratory,
    Reader,
    Written,
    one_by_one,
    protecting,
)
from xfrmpy.datapath.userspace.outbound import TURN
from xfrmpy.datapath.userspace.segments import complete
from xfrmpy.datapath.userspace.trains import MAX_TRAINS, MIN_TRAIN, Trains
from xfrmpy.datapath.userspace.virtio import COMPLETE, Offload, Segments
from xfrmpy.esp.packet import InboundSa
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import Direction, SadEntry

HARMS = ("", "", "", "size", "offload", "flow", "octet", "super-packet")


def datagram(base: Stream, number: int, *, is_left: bool) -> Written:
    """One of a flow; with `is_left` its checksum is left to the device."""
    stream = replace(base, identification=(base.identification + number) % 2**16)
    packet, offload = stream.super_packet()
    if is_left:
        return Written(packet, offload._replace(segments=Segments.NONE, segment_size=0))
    return Written(replace(stream, mss=len(stream.payload)).packet(), COMPLETE)


def spoiled(written: Written, harm: str, at: int, fields: dict[str, int]) -> Written:
    packet = written.packet
    match harm:
        case "size":
            return Written(packet[: 20 + at % len(packet)], written.offload)
        case "offload":
            return Written(packet, written.offload._replace(**fields))  # type: ignore[arg-type]
        case "flow":
            return Written(packet[:15] + bytes([at % 256]) + packet[16:], written.offload)
        case "octet":
            at %= min(44, len(packet))
            return Written(packet[:at] + bytes([packet[at] ^ 1]) + packet[at + 1 :], COMPLETE)
        case "super-packet":
            stream = Stream(payload=NOISE[: len(packet) - 40], mss=600)
            return Written(*stream.super_packet())
    return written


BASES = st.builds(
    Stream,
    version=st.sampled_from([4, 6]),
    is_tcp=st.sampled_from([False, False, True]),
    payload=st.sampled_from([1, 16, 17, 64, 1001, 1372]).map(lambda size: NOISE[:size]),
    options=st.sampled_from([b"", b"\1" * 12]),
    traffic_class=st.sampled_from([0, 0, 0xB8, 1]),
    fragment_bits=st.sampled_from([DF, 0]),
    identification=st.sampled_from([0, 0xFFFE]),
    ports=st.sampled_from([(40000, 443), (40001, 443)]),
)
RUNS = st.tuples(
    BASES,
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from(HARMS),
    st.integers(0, 2000),
    FIELDS,
)


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    opened = Laboratory()
    yield opened
    opened.close()


def given_at_once(laboratory: Laboratory, entry: SadEntry, written: list[Written]) -> None:
    """What leaves of packets that wait for a worker is what each of them becomes by itself."""
    forwarder, twin = protecting(entry), protecting(entry)
    reader = Reader(laboratory, forwarder)
    for each in written:
        laboratory.device.give(each)
    for _ in written:
        reader.turn.size = TURN
        reader.read()
    counted = protecting(entry)
    count = sum(len(one_by_one(counted, each)) for each in written)
    arrived = laboratory.loop.received(count)
    with_ivs_of(arrived, twin.sad.outbound[entry.reqid][0][0])  # type: ignore[arg-type]
    assert arrived == [sealed for each in written for sealed in one_by_one(twin, each)]
    assert forwarder.refused == twin.refused
    assert not select.select([laboratory.loop.receiver], [], [], 0)[0], "nothing else has left"
    assert forwarder.sad.usage(entry.id, 2.0).packets == twin.sad.usage(entry.id, 2.0).packets
    assert forwarder.sad.usage(entry.id, 2.0).octets == twin.sad.usage(entry.id, 2.0).octets


@example(runs=[(Stream(is_tcp=False, payload=NOISE[:1372]), 12, True, "", 0, {})] * 5)
@given(runs=st.lists(RUNS, min_size=1, max_size=5))
def test_whatever_comes_one_behind_the_other_leaves_as_if_packet_by_packet(
    laboratory: Laboratory,
    runs: list[tuple[Stream, int, bool, str, int, dict[str, int]]],
) -> None:
    written = []
    for base, count, is_left, harm, at, fields in runs:
        written += [datagram(base, number, is_left=is_left) for number in range(count)]
        written[-1] = spoiled(written[-1], harm, at, fields)
    given_at_once(laboratory, laboratory.entry, written)


def with_suite(entry: SadEntry, suite: EspSuite) -> SadEntry:
    return replace(
        entry,
        suite=suite,
        encryption_key=bytes(range(suite.cipher.keymat)),
        integrity_key=bytes(0 if suite.integrity is None else suite.integrity.key),
    )


@pytest.mark.parametrize("suite", SAMPLE, ids=str)
@pytest.mark.parametrize("size", [16, 1372])
def test_every_fast_suite_seals_them_alike(
    laboratory: Laboratory, suite: EspSuite, size: int
) -> None:
    entry = with_suite(laboratory.entry, suite)
    base = Stream(is_tcp=False, payload=NOISE[:size])
    given_at_once(laboratory, entry, [datagram(base, n, is_left=True) for n in range(20)])


def test_flows_of_two_suites_by_one_device_leave_each_in_its_own_form(
    laboratory: Laboratory,
) -> None:
    """Whatever was laid out for the one before: super-packets in turns, and packets of one size."""
    cbc = replace(with_suite(laboratory.entry, CHAINING[0]), spi=0x80000077, reqid=77)
    forwarder = protecting(laboratory.entry)
    forwarder.add_sa(cbc, 0.0)
    for policy in policies(0, 77, local="0.0.0.0/0", remote="10.9.0.0/16"):
        forwarder.add_policy(replace(policy, priority=1))
    opening = {
        entry.spi: InboundSa(replace(entry, direction=Direction.IN))
        for entry in (laboratory.entry, cbc)
    }
    bases = [Stream(addresses=("10.1.0.2", to), payload=NOISE[:9000]) for to in (TO_GCM, TO_CBC)]
    of_udp = [replace(base, is_tcp=False, payload=NOISE[:200]) for base in bases]
    written = [Written(*base.super_packet()) for base in bases * 3]
    written += [datagram(base, n, is_left=True) for base in of_udp for n in range(80)]
    reader = Reader(laboratory, forwarder)
    for each in written:
        laboratory.device.give(each)
    for _ in written:
        reader.turn.size = TURN
        reader.read()
    whole = [packet for each in written for packet in complete(each.packet, each.offload)]
    arrived = laboratory.loop.received(len(whole))
    spis = [int.from_bytes(each[:4], "big") for each in arrived]
    assert spis == [cbc.spi if packet[17] == 9 else laboratory.entry.spi for packet in whole]
    assert [opening[spi].open(each)[1] for spi, each in zip(spis, arrived, strict=True)] == whole
    outbound = reader.outbound
    assert {layout.form.is_aead for layout in outbound._layouts._made.values()} == {True, False}
    assert {train.form.is_aead for train in outbound._trains._made.values()} == {True, False}


TO_GCM, TO_CBC = "10.2.0.2", "10.9.0.2"


def test_only_what_comes_twice_in_one_size_is_expected_again() -> None:
    """Packets of ever other sizes would each take places of their own."""
    trains, offload = Trains(lambda _, __: FORM), Offload()
    packets = [
        datagram(Stream(is_tcp=False, payload=NOISE[:n]), 0, is_left=False) for n in (50, 60)
    ]
    first, other = (each.packet for each in packets)
    assert trains.after(first, offload) is None
    assert trains.after(other, offload) is None
    assert trains.after(first, offload) is None
    made = trains.after(first, offload)
    assert made is not None
    assert made.size == len(first)
    assert trains.after(first, offload) is made


def test_only_so_many_sizes_are_remembered() -> None:
    trains = Trains(lambda _, __: FORM)
    for size in range(100, 100 + 3 * MAX_TRAINS):
        packet = datagram(Stream(is_tcp=False, payload=NOISE[:size]), 0, is_left=False).packet
        assert trains.after(packet, COMPLETE) is None
        assert trains.after(packet, COMPLETE) is not None
        assert len(trains._made) <= MAX_TRAINS


@pytest.mark.parametrize("size", [0, 19, 43, 9001])
def test_what_is_too_short_or_too_long_is_not_expected(size: int) -> None:
    trains, packet = Trains(lambda _, __: FORM), b"\x45" + bytes(max(0, size - 1))
    assert trains.after(packet[:size], COMPLETE) is None
    assert trains.after(packet[:size], COMPLETE) is None


def test_jumbo_frames_leave_together_as_many_as_one_send_takes() -> None:
    packet = datagram(Stream(is_tcp=False, payload=bytes(8900)), 0, is_left=False).packet
    trains = Trains(lambda _, __: FORM)
    assert trains.after(packet, COMPLETE) is None
    made = trains.after(packet, COMPLETE)
    assert made is not None
    assert MIN_TRAIN <= made.room == 65507 // made.stride
