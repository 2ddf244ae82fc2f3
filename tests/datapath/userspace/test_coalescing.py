"""Segments joined, against a slow twin and the cutting that is its reverse."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.datapath.userspace.super_packets import (
    ACK,
    CWR,
    DF,
    ECE,
    FIN,
    PSH,
    SYN,
    Stream,
    slow_sum,
)
from xfrmpy.datapath.userspace.coalescing import MAX_PIECES, MAX_SIZE, Coalescer, Joined
from xfrmpy.datapath.userspace.segments import complete
from xfrmpy.datapath.userspace.virtio import COMPLETE


def coalesced(
    packets: list[bytes], tags: list[int] | None = None, *, datagrams: bool = True
) -> list[Joined]:
    coalescer = Coalescer(joins_datagrams=datagrams)
    for packet, tag in zip(packets, tags or [0] * len(packets), strict=True):
        if not coalescer.extend(memoryview(packet), tag):
            coalescer.start(memoryview(packet), tag)
    return coalescer.joined


def cut(joined: list[Joined]) -> list[list[bytes]]:
    """What a host makes of each."""
    return [complete(b"".join(each.pieces), each.offload) for each in joined]


def changed(packet: bytes, at: int, bits: int = 1) -> bytes:
    octets = bytearray(packet)
    octets[at] ^= bits
    return bytes(octets)


# The slow twin: every packet is taken apart anew, and asked of every group that is there already.


@dataclass(frozen=True, slots=True)
class Seen:
    """A packet, as the twin reads it. `stream` is None if it is of none that could be told."""

    stream: bytes | None
    may_be_of_any: bool
    alike: bytes = b""
    sequence: int = 0
    payload: bytes = b""
    flags: int = 0
    number: int | None = None
    is_intact: bool = False


def seen(packet: bytes, *, datagrams: bool = True) -> Seen:
    if packet[0] >> 4 == 4:
        protocol, size, start = packet[9], int.from_bytes(packet[2:4], "big"), 20
        is_plain = packet[0] == 0x45 and not int.from_bytes(packet[6:8], "big") & 0x3FFF
        ip, ends, is_ip_right = (
            packet[:2] + packet[6:10],
            packet[12:20],
            slow_sum(packet[:20]) == 0xFFFF,
        )
        number = None if packet[6] & 0x40 else int.from_bytes(packet[4:6], "big")
        may_be_of_any = protocol == 6 or (datagrams and protocol == 17)
    else:
        protocol, size, start = packet[6], 40 + int.from_bytes(packet[4:6], "big"), 40
        is_plain, is_ip_right, number = True, True, None
        ip, ends = packet[:4] + packet[6:8], packet[8:40]
        may_be_of_any = protocol not in ((58,) if datagrams else (17, 58))
    tcp = packet[start:size]
    if datagrams and protocol == 17 and is_plain and len(tcp) >= 8:
        pseudo = ends + len(tcp).to_bytes(4, "big") + bytes((0, 0, 0, 17))
        is_whole = int.from_bytes(tcp[4:6], "big") == len(tcp) and any(tcp[6:8])
        return Seen(
            stream=b"datagram" + ends + tcp[:4],
            may_be_of_any=True,
            alike=ip + b"datagram",
            payload=tcp[8:],
            flags=ACK,
            number=number,
            is_intact=is_whole and is_ip_right and slow_sum(pseudo + tcp) == 0xFFFF,
        )
    if protocol != 6 or not is_plain or len(tcp) < 20 or not 20 <= tcp[12] // 16 * 4 <= len(tcp):
        return Seen(None, may_be_of_any)
    header = tcp[12] // 16 * 4
    pseudo = ends + len(tcp).to_bytes(4, "big") + bytes((0, 0, 0, 6))
    return Seen(
        stream=ends + tcp[:4],
        may_be_of_any=True,
        alike=ip + tcp[8:13] + tcp[14:16] + tcp[18:header],
        sequence=int.from_bytes(tcp[4:8], "big"),
        payload=tcp[header:],
        flags=tcp[13],
        number=number,
        is_intact=is_ip_right and slow_sum(pseudo + tcp) == 0xFFFF,
    )


def twin(packets: list[bytes], tags: list[int], *, datagrams: bool = True) -> list[list[bytes]]:
    groups: list[list[bytes]] = []
    group_tags: list[int] = []
    for packet, tag in zip(packets, tags, strict=True):
        this = seen(packet, datagrams=datagrams)
        place = None
        for at in reversed(range(len(groups))):
            last = seen(groups[at][-1], datagrams=datagrams)
            if last.stream == this.stream is not None:
                place = at
                break
            if last.stream is None and last.may_be_of_any:
                break
        if place is not None and group_tags[place] == tag and follows(groups[place], packet):
            groups[place].append(packet)
        else:
            groups.append([packet])
            group_tags.append(tag)
    return groups


def follows(group: list[bytes], packet: bytes) -> bool:
    all_seen = [seen(each) for each in (*group, packet)]
    first, before, this = all_seen[0], all_seen[-2], all_seen[-1]
    flags = {each.flags & ~PSH for each in all_seen}
    sizes = {len(each.payload) for each in all_seen[:-1]}
    header = len(group[0]) - len(first.payload)
    return (
        all(each.is_intact and each.payload for each in all_seen)
        and len({each.alike for each in all_seen}) == 1
        and flags in ({ACK}, {ACK | ECE})
        and not any(each.flags & PSH for each in all_seen[:-1])
        and sizes == {len(first.payload)}
        and len(this.payload) <= len(first.payload)
        and (
            this.alike.endswith(b"datagram")
            or this.sequence == (before.sequence + len(before.payload)) % 2**32
        )
        and (before.number is None or this.number == (before.number + 1) % 2**16)
        and header + sum(len(each.payload) for each in all_seen) <= 65535
    )


PIECES = st.builds(
    Stream,
    version=st.sampled_from([4, 6]),
    is_tcp=st.sampled_from([True, True, False]),
    payload=st.binary(min_size=0, max_size=60),
    mss=st.integers(1, 20),
    options=st.sampled_from([b"", bytes(12)]),
    ip_options=st.sampled_from([b"", b"", b"", bytes(8)]),
    traffic_class=st.sampled_from([0, 0, 1]),
    identification=st.sampled_from([0, 1, 0xFFFE]),
    fragment_bits=st.sampled_from([0, DF, DF, 0x2000, 0x0010]),
    sequence=st.sampled_from([1, 21, 2**32 - 10]),
    flags=st.sampled_from([ACK, ACK, ACK | PSH, ACK | ECE, ACK | FIN, ACK | CWR, SYN, 0]),
    ports=st.sampled_from([(40000, 443), (40001, 443)]),
)


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[list[bytes], list[int]]:
    """Packets of several streams, some damaged, some lost, some in another order."""
    queues = [each.packets() for each in draw(st.lists(PIECES, min_size=1, max_size=5))]
    packets: list[bytes] = []
    while any(queues):
        queue = draw(st.sampled_from([queue for queue in queues if queue]))
        for packet in [queue.pop(0) for _ in range(min(len(queue), draw(st.integers(1, 9))))]:
            match draw(st.integers(0, 30)):
                case 0:
                    packets.append(changed(packet, draw(st.integers(1, len(packet) - 1))))
                case 1:
                    pass
                case 2:
                    packets += [packet, packet]
                case _:
                    packets.append(packet)
    if draw(st.integers(0, 4)) == 0:
        packets = draw(st.permutations(packets))
    tags = draw(
        st.lists(st.sampled_from([0] * 9 + [1]), min_size=len(packets), max_size=len(packets))
    )
    return packets, tags


def is_whole(packet: bytes) -> bool:
    """What the forwarder has made sure of."""
    if packet[0] >> 4 == 4:
        return 20 <= (packet[0] & 15) * 4 <= int.from_bytes(packet[2:4], "big") == len(packet)
    return packet[0] >> 4 == 6 and 40 + int.from_bytes(packet[4:6], "big") == len(packet)


def without_identification(packet: bytes) -> bytes:
    """RFC 6864 section 4.1: that of an atomic datagram means nothing."""
    if packet[0] >> 4 == 6 or not packet[6] & 0x40 or slow_sum(packet[:20]) != 0xFFFF:
        return packet
    return packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:]


@given(arrivals(), st.booleans())
def test_it_joins_what_its_twin_joins_and_a_host_cuts_it_into_the_same_packets(
    arrived: tuple[list[bytes], list[int]], datagrams: bool
) -> None:
    kept = [(packet, tag) for packet, tag in zip(*arrived, strict=True) if is_whole(packet)]
    packets, tags = [packet for packet, _ in kept], [tag for _, tag in kept]
    joined = coalesced(packets, tags, datagrams=datagrams)
    expected = twin(packets, tags, datagrams=datagrams)
    for group, pieces in zip(expected, cut(joined), strict=True):
        assert [without_identification(p) for p in pieces] == [
            without_identification(p) for p in group
        ]


@given(arrivals())
def test_the_packets_of_a_stream_stay_in_their_order(
    arrived: tuple[list[bytes], list[int]],
) -> None:
    packets = [packet for packet in arrived[0] if is_whole(packet)]
    before, after = defaultdict(list), defaultdict(list)
    for packet in packets:
        before[seen(packet).stream].append(without_identification(packet))
    for packet in (packet for pieces in cut(coalesced(packets)) for packet in pieces):
        after[seen(packet).stream].append(without_identification(packet))
    assert after == before


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("is_tcp", [True, False])
@pytest.mark.parametrize("payload", [1000, 1001, 3000, 44 * 1000 + 7])
def test_a_burst_becomes_the_super_packet_of_its_sender(
    version: int, is_tcp: bool, payload: int
) -> None:
    stream = Stream(
        version=version,
        is_tcp=is_tcp,
        payload=bytes(range(250)) * 200,
        options=b"\1" * 12,
        flags=ACK | PSH,
    )
    stream = replace(stream, payload=stream.payload[:payload])
    (joined,) = coalesced(stream.packets())
    whole, offload = stream.super_packet()
    if payload <= 1000:
        assert joined.offload == COMPLETE
    else:
        assert joined.offload == offload
        assert b"".join(joined.pieces) == whole
    assert cut([joined]) == [stream.packets()]


def test_streams_that_come_in_turns_are_joined_each_for_itself() -> None:
    one, other = Stream(), Stream(ports=(40001, 443))
    packets = [
        packet for pair in zip(one.packets(), other.packets(), strict=True) for packet in pair
    ]
    assert cut(coalesced(packets)) == [one.packets(), other.packets()]


def test_datagrams_between_segments_hold_up_nothing() -> None:
    datagram = Stream(is_tcp=False, payload=bytes(9), mss=9).packet()
    first, *others = Stream().packets()
    assert [len(each) for each in cut(coalesced([first, datagram, *others]))] == [3, 1]


@pytest.mark.parametrize("options", [b"\1" * 4, b""])
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("is_tcp", [True, False])
def test_what_may_be_of_any_stream_is_overtaken_by_none(
    version: int, options: bytes, is_tcp: bool
) -> None:
    """A fragment, or TCP behind headers that are not read, may belong to the stream around it."""
    stranger = Stream(
        version=version,
        is_tcp=is_tcp,
        payload=bytes(9),
        mss=9,
        ip_options=bytes(8) if version == 6 or options else b"",
        fragment_bits=DF if options else 0x0010,
    ).packet()
    first, *others = Stream(version=version, is_tcp=is_tcp).packets()
    assert [len(each) for each in cut(coalesced([first, stranger, *others]))] == [1, 1, 2]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("is_tcp", [True, False])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_wrong_checksum_stays_wrong(version: int, is_tcp: bool, which: int) -> None:
    """Of TCP or UDP, in the header, the payload or the checksum itself, and of IPv4."""
    start = 20 if version == 4 else 40
    checksum = start + (16 if is_tcp else 6)
    places = [checksum, start + 20, start + 999, *([10, 11] if version == 4 else [])]
    for place in places:
        packets = Stream(version=version, is_tcp=is_tcp).packets()
        packets[which] = changed(packets[which], place)
        written = [packet for pieces in cut(coalesced(packets)) for packet in pieces]
        assert written == packets


@pytest.mark.parametrize("version", [4, 6])
def test_datagrams_without_a_checksum_go_by_themselves(version: int) -> None:
    """Which IPv6 has only in a few tunnels (RFC 6935); they would be given one."""
    at = (20 if version == 4 else 40) + 6
    packets = [
        packet[:at] + bytes(2) + packet[at + 2 :]
        for packet in Stream(version=version, is_tcp=False).packets()
    ]
    assert cut(coalesced(packets)) == [[each] for each in packets]


def test_a_datagram_that_is_shorter_than_its_packet_goes_by_itself() -> None:
    """UDP's own length is another one, and the options of RFC 9868 may be behind it."""
    first, second, third = Stream(is_tcp=False).packets()
    packets = [first, second[:24] + (999).to_bytes(2, "big") + second[26:], third]
    assert sizes(packets) == [1, 1, 1]
    assert [piece for pieces in cut(coalesced(packets)) for piece in pieces] == packets


def test_two_wrong_checksums_do_not_make_a_right_one() -> None:
    """As their sum would: each segment is looked at by itself."""
    first, second, third = Stream(payload=b"\0\1" * 1500).packets()
    packets = [changed(first, 101, 1), changed(second, 101, 3), third]
    assert slow_sum(b"".join(packets)) == slow_sum(first + second + third)
    assert [piece for pieces in cut(coalesced(packets)) for piece in pieces] == packets


@pytest.mark.parametrize("flag", [FIN, SYN, CWR, 0x20, 0x04])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_segment_with_another_flag_goes_by_itself(flag: int, which: int) -> None:
    packets = Stream().packets()
    apart = Stream(payload=bytes(1000), sequence=1 + 1000 * which, flags=ACK | flag).packet()
    packets[which] = apart
    assert [apart] in cut(coalesced(packets))
    assert [piece for pieces in cut(coalesced(packets)) for piece in pieces] == packets


def test_what_is_behind_a_push_begins_anew() -> None:
    pushed = replace(Stream(), flags=ACK | PSH)
    later = replace(pushed, sequence=3001)
    assert cut(coalesced(pushed.packets() + later.packets())) == [pushed.packets(), later.packets()]


def test_a_super_packet_is_no_longer_than_an_ip_header_can_say() -> None:
    stream = Stream(payload=bytes(70_000), mss=1000)
    joined = coalesced([s for half in halves(stream) for s in half.packets()])
    lengths = [sum(map(len, each.pieces)) for each in joined]
    assert lengths[0] <= MAX_SIZE < lengths[0] + 1000
    assert len(joined) == 2


def halves(stream: Stream) -> list[Stream]:
    return [
        replace(stream, payload=stream.payload[:35_000]),
        replace(stream, payload=stream.payload[35_000:], sequence=stream.sequence + 35_000),
    ]


def test_a_super_packet_has_no_more_pieces_than_the_kernel_takes_at_once() -> None:
    packets = Stream(payload=bytes(2 * MAX_PIECES), mss=1).packets()
    assert [len(each) for each in cut(coalesced(packets))] == [MAX_PIECES, MAX_PIECES]


def test_octets_behind_a_packet_are_left_away() -> None:
    """RFC 4303 section 2.7: traffic flow confidentiality padding."""
    first, *others = Stream().packets()
    coalescer = Coalescer()
    coalescer.start(memoryview(first), 0)
    assert all(coalescer.extend(memoryview(each + bytes(100)), 0) for each in others)
    assert cut(coalescer.joined) == [Stream().packets()]


def test_what_is_of_another_tag_is_not_joined() -> None:
    packets = Stream().packets()
    assert [len(each) for each in cut(coalesced(packets, [0, 1, 1]))] == [1, 2]


@given(st.lists(st.binary(min_size=40, max_size=80), max_size=8))
def test_junk_passes_as_it_is(packets: list[bytes]) -> None:
    assert [piece for pieces in cut(coalesced(packets)) for piece in pieces] == packets


def sizes(packets: list[bytes]) -> list[int]:
    return [len(each) for each in cut(coalesced(packets))]


def test_behind_a_short_segment_another_super_packet_begins() -> None:
    short, later = Stream(payload=bytes(2500)), Stream(sequence=2501)
    assert sizes(short.packets() + later.packets()) == [3, 3]


def test_a_segment_without_payload_is_overtaken_by_none_of_its_stream() -> None:
    first, *others = Stream().packets()
    acknowledgement = Stream(payload=b"", sequence=1001).packet()
    assert sizes([first, acknowledgement, *others]) == [1, 1, 2]


@pytest.mark.parametrize(("fragment_bits", "expected"), [(DF, [3]), (0, [1, 2])])
def test_only_identifications_in_sequence_are_joined_where_they_mean_something(
    fragment_bits: int, expected: list[int]
) -> None:
    """RFC 6864 section 4: those of packets without DF."""
    stream = Stream(fragment_bits=fragment_bits)
    others = replace(stream, identification=7).packets()[1:]
    assert sizes([stream.packets()[0], *others]) == expected
