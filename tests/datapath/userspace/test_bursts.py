"""Super-packets sealed in place, against those who cut and seal slowly."""

from __future__ import annotations

import random
import secrets
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.datapath.userspace.super_packets import ACK, CWR, FIN, PSH, Stream
from tests.suites import ESP_SUITES
from xfrmpy.datapath.userspace import bursts
from xfrmpy.datapath.userspace.bursts import (
    MAX_SEGMENT,
    MIN_SEGMENT,
    Layout,
    Layouts,
    shape_of,
)
from xfrmpy.datapath.userspace.segments import complete
from xfrmpy.datapath.userspace.virtio import COMPLETE, Offload, encode_offload
from xfrmpy.esp.packet import IPV4_IN_ESP, IPV6_IN_ESP, Form, InboundSa, OutboundSa
from xfrmpy.esp.sa import Progress
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import Direction, Lifetime, SadEntry

NOISE = random.Random(1).randbytes(65000)
COUNTING = [s for s in ESP_SUITES if s.integrity is None and s.cipher.iv == 8]
COUNTING = [s for s in COUNTING if not s.cipher.name.endswith(("gmac", "gcm8", "gcm12"))]
CHAINING = [s for s in ESP_SUITES if s.cipher.block > 1 and s.icv >= s.cipher.block - 1]
FAST = COUNTING + CHAINING
"""Suites that seal and open several packets at once."""

_NAMES = {"aes128gcm16", "aes256gcm16", "aes128ccm8", "aes256ccm16", "chacha20poly1305"}
_NAMES |= {"aes128", "3des"}
SAMPLE = [s for s in FAST if s.cipher.name in _NAMES or s.icv == 32]
"""Of each kind and size of IV, block and ICV; more would prove no more."""
GCM = next(s for s in FAST if s.cipher.name == "aes128gcm16" and not s.esn)

STREAMS = st.builds(
    Stream,
    version=st.sampled_from([4, 6]),
    payload=st.builds(
        lambda at, size: NOISE[at : at + size], st.integers(0, 50000), st.integers(0, 9000)
    ),
    mss=st.integers(MIN_SEGMENT, 1500) | st.integers(MIN_SEGMENT, 9000),
    options=st.integers(0, 10).map(lambda n: b"\1" * (4 * n)),
    ip_options=st.sampled_from([b"", bytes(8), bytes(16)]),
    traffic_class=st.integers(0, 255),
    identification=st.integers(0, 0xFFFF),
    sequence=st.integers(0, 2**32 - 1) | st.integers(2**32 - 9000, 2**32 - 1),
    flags=st.integers(0, 255),
    ports=st.tuples(st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)),
)


def entry(suite: EspSuite, **changes: object) -> SadEntry:
    made = SadEntry(
        direction=Direction.OUT,
        spi=0x81020304,
        source=ip_address("198.51.100.1"),
        destination=ip_address("198.51.100.2"),
        reqid=7,
        suite=suite,
        encryption_key=bytes(range(suite.cipher.keymat)),
        integrity_key=b"" if suite.integrity is None else bytes(range(suite.integrity.key)),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def outbound(suite: EspSuite = GCM, sealed: int = 0, **changes: object) -> OutboundSa:
    """An SA that has sealed so many packets already."""
    sa = OutboundSa(entry(suite, **changes), secrets.token_bytes)
    sa._sequence = sealed
    return sa


LAYOUTS = Layouts()
FORM = Form(head=16, icv=16, alignment=4, is_aead=True)


def slowly(stream: Stream, sa: OutboundSa) -> list[bytes]:
    following = IPV4_IN_ESP if stream.version == 4 else IPV6_IN_ESP
    return [sa.seal(packet, following) for packet in complete(*stream.super_packet())]


def with_ivs_of(sealed: list[bytes], sa: OutboundSa) -> OutboundSa:
    """An SA that chooses the IVs that these packets have, as far as it chooses any."""
    size = sa.entry.suite.cipher.iv  # type: ignore[union-attr]
    ivs = iter([packet[8 : 8 + size] for packet in sealed])
    sa._random = lambda _: next(ivs)
    return sa


def fast(stream: Stream, sa: OutboundSa, *, by_reading: bool) -> list[bytes]:
    packet, offload = stream.super_packet()
    shape = shape_of(packet, offload)
    assert shape is not None
    form = sa.form
    assert form is not None
    layout = LAYOUTS.of(shape, form)
    take(layout, stream, by_reading=by_reading)
    return sealed_by(layout, sa)


def take(layout: Layout, stream: Stream, *, by_reading: bool) -> None:
    packet, offload = stream.super_packet()
    if by_reading:
        octets = encode_offload(offload) + packet
        for place in layout.next_places():
            place[: len(octets)] = octets[: len(place)]
            octets = octets[len(place) :]
    else:
        layout.scatter(packet, offload)
    assert layout.offload == offload
    assert layout.gather(len(packet)) == packet
    assert layout.add(len(stream.payload)) == len(stream.packets())


def sealed_by(layout: Layout, sa: OutboundSa) -> list[bytes]:
    run = sa.take_run(layout.count, layout.octets)
    assert run is not None
    sealed = bytes(layout.seal(run))
    assert not layout.count
    return [sealed[at : at + layout.stride] for at in range(0, len(sealed), layout.stride)]


@pytest.mark.parametrize("suite", SAMPLE, ids=str)
@given(stream=STREAMS, by_reading=st.booleans(), sealed=st.integers(0, 2**31))
def test_in_place_the_same_octets_come_out(
    suite: EspSuite, stream: Stream, by_reading: bool, sealed: int
) -> None:
    payload = NOISE[: stream.mss] + stream.payload + b"\1"  # more than one segment
    stream = replace(stream, payload=payload)
    ours, twin = outbound(suite, sealed), outbound(suite, sealed)
    together = fast(stream, ours, by_reading=by_reading)
    assert together == slowly(stream, with_ivs_of(together, twin))
    assert ours.usage(None) == twin.usage(None)
    following = ours.seal(b"", 59)
    twin = with_ivs_of([following], twin)
    assert following == twin.seal(b"", 59), "the next one has the next number"


@pytest.mark.parametrize("suite", SAMPLE, ids=str)
@given(
    sizes=st.lists(st.integers(2, 5), min_size=2, max_size=6),
    rest=st.integers(1, 600),
    flags=st.lists(st.integers(0, 255), min_size=6, max_size=6),
    options=st.integers(0, 3),
)
def test_super_packets_one_behind_the_other_are_sealed_at_once(
    suite: EspSuite, sizes: list[int], rest: int, flags: list[int], options: int
) -> None:
    """Only the last may end with a shorter segment."""
    streams = [
        Stream(
            payload=NOISE[number : number + 600 * (size - 1)] + NOISE[:600],
            mss=600,
            options=b"\1" * (4 * options),
            flags=flags[number],
            sequence=2**32 - 1 - 500 * number,
            identification=number,
            ports=(number, 443),
        )
        for number, size in enumerate(sizes)
    ]
    last = replace(streams[-1], payload=streams[-1].payload[: -600 + rest])
    streams[-1] = last if len(last.payload) > 600 else streams[-1]
    ours, twin = outbound(suite), outbound(suite)
    shape, form = shape_of(*streams[0].super_packet()), ours.form
    assert shape is not None
    assert form is not None
    layout = LAYOUTS.of(shape, form)
    for stream in streams:
        take(layout, stream, by_reading=True)
    together = sealed_by(layout, ours)
    twin = with_ivs_of(together, twin)
    assert together == [sealed for stream in streams for sealed in slowly(stream, twin)]
    assert ours.usage(None) == twin.usage(None)


def test_super_packets_that_are_not_sealed_after_all_are_whole_again() -> None:
    streams = [Stream(payload=NOISE[: 1000 * n], mss=1000, sequence=n) for n in (2, 3, 4)]
    shape = shape_of(*streams[0].super_packet())
    assert shape is not None
    layout = LAYOUTS.of(shape, FORM)
    for stream in streams[:2]:
        take(layout, stream, by_reading=True)
    assert layout.withdraw() == [stream.super_packet() for stream in streams[:2]]
    assert not layout.count
    take(layout, streams[2], by_reading=True)
    assert layout.withdraw() == [streams[2].super_packet()]


@pytest.mark.parametrize("suite", CHAINING, ids=str)
def test_the_ivs_of_a_burst_are_nothing_but_chance(suite: EspSuite) -> None:
    """RFC 3602 section 3: whoever knows all packets before knows nothing of the next IV. What the
    cipher is given for it is new random octets, which are in no packet."""
    given: list[bytes] = []

    def random(size: int) -> bytes:
        given.append(secrets.token_bytes(size))
        return given[-1]

    sa, size = OutboundSa(entry(suite), random), suite.cipher.iv
    stream = Stream(payload=bytes(9 * 1000), mss=1000)
    sealed = [each for _ in range(2) for each in fast(stream, sa, by_reading=False)]
    assert list(map(len, given)) == [9 * size] * 2
    asked = {octets[at : at + size] for octets in given for at in range(0, 9 * size, size)}
    ivs = {packet[8 : 8 + size] for packet in sealed}
    assert len(asked) == len(ivs) == 18
    assert not asked & ivs


@pytest.mark.parametrize("suite", [s for s in CHAINING if s.esn], ids=str)
def test_numbers_with_another_upper_half_are_another_run(suite: EspSuite) -> None:
    """Which a MAC has behind all packets of one, and so has who opens it."""
    sa = outbound(suite, 2**32 - 5)
    assert sa.take_run(5, 1) is None
    sealed = fast(FOUR, sa, by_reading=False) + fast(FOUR, sa, by_reading=False)
    receiver = InboundSa(entry(suite, direction=Direction.IN))
    receiver.resume(Progress(sequence=2**32 - 5, octets=0, packets=0))
    assert [receiver.open(each)[1] for each in sealed] == FOUR.packets() * 2
    assert receiver.sequence == 2**32 + 3


FOUR = Stream(payload=NOISE[:4000], mss=1000)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mss", [MIN_SEGMENT, 513, 1379, 1448, 8949, MAX_SEGMENT])
def test_the_largest_super_packets_fit(version: int, mss: int) -> None:
    flags = ACK | PSH | FIN | CWR
    stream = Stream(version=version, payload=NOISE[:65000], mss=mss, options=bytes(40), flags=flags)
    assert fast(stream, outbound(), by_reading=True) == slowly(stream, outbound())


@pytest.mark.parametrize(
    "stream",
    [
        Stream(is_tcp=False),
        Stream(fragment_bits=0),
        Stream(mss=MIN_SEGMENT - 1),
        Stream(mss=MAX_SEGMENT + 1),
        Stream(version=6, ip_options=bytes(240)),
    ],
    ids=["udp", "without DF", "many small ones", "large ones", "long headers"],
)
def test_what_is_not_cut_in_place_has_no_shape(stream: Stream) -> None:
    assert shape_of(*stream.super_packet()) is None


OFFLOADS = st.builds(
    Offload,
    needs_checksum=st.booleans(),
    segments=st.sampled_from([1, 4]),
    segment_size=st.integers(0, 2000),
    checksum_start=st.integers(0, 0xFFFF) | st.integers(0, 80),
    checksum_offset=st.just(16) | st.integers(0, 40),
)


@given(packet=st.binary(min_size=1, max_size=100) | STREAMS.map(Stream.packet), offload=OFFLOADS)
def test_whatever_has_a_shape_is_one_that_can_be_cut(packet: bytes, offload: Offload) -> None:
    shape = shape_of(packet, offload)
    if shape is not None and len(packet) > shape.headers:
        assert complete(packet, offload)


def test_a_packet_that_came_in_place_of_another_shape_is_whole() -> None:
    shape = shape_of(*Stream().super_packet())
    assert shape is not None
    layout = LAYOUTS.of(shape, FORM)
    for size in (1, 20, 39, 40, 41, 1039, 1040, 1041, 60_000):
        octets = encode_offload(COMPLETE) + NOISE[:size]
        for place in layout.next_places():
            place[: len(octets)] = octets[: len(place)]
            octets = octets[len(place) :]
        assert layout.gather(size) == NOISE[:size]


def test_layouts_of_many_shapes_are_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bursts, "MAX_LAYOUTS", 2)
    layouts = Layouts()
    for mss in range(1000, 1010):
        shape = shape_of(*Stream(mss=mss).super_packet())
        assert shape is not None
        assert layouts.of(shape, FORM) is layouts.of(shape, FORM)
    assert len(layouts._made) <= 2


@pytest.mark.parametrize(
    "lifetime",
    [
        Lifetime(hard_bytes=3000),
        Lifetime(soft_bytes=3000),
        Lifetime(hard_packets=3),
        Lifetime(soft_packets=3),
    ],
    ids=str,
)
def test_no_run_meets_a_limit(lifetime: Lifetime) -> None:
    """Which is met packet by packet, with all that is to be told of it."""
    sa = outbound(lifetime=lifetime)
    assert sa.take_run(3, 3000) is None
    assert sa.take_run(2, 2999) is not None
    assert sa.take_run(1, 1) is None


def test_a_soft_limit_that_is_past_is_no_limit_any_more() -> None:
    sa = outbound(lifetime=Lifetime(soft_packets=1, hard_packets=9))
    sa.seal(b"", 59)
    assert sa.take_run(7, 1) is not None
    assert sa.take_run(1, 1) is None


def test_no_run_goes_beyond_the_last_sequence_number() -> None:
    sa = outbound(sealed=2**32 - 5)
    assert sa.take_run(4, 1) is None
    assert sa.take_run(3, 1) is not None


@pytest.mark.parametrize("suite", [s for s in ESP_SUITES if s not in FAST], ids=str)
def test_other_suites_have_no_runs(suite: EspSuite) -> None:
    assert outbound(suite).take_run(1, 1) is None
