"""Pieces opened and read at once, against those who take their datagrams one by one."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.datapath.userspace.super_packets import ACK, DF, ECE, FIN, PSH, Stream
from tests.datapath.userspace.test_arrivals import one_by_one, state, written
from tests.datapath.userspace.test_bursts import CHAINING, GCM, SAMPLE
from tests.datapath.userspace.test_forwarding import FIRST, gateway, policies, received, sa
from xfrmpy.datapath.userspace.arrivals import Arrivals
from xfrmpy.datapath.userspace.forwarding import Forwarder, Refusal
from xfrmpy.datapath.userspace.pieces import MIN_ROWS, Piece, Stretch, open_piece
from xfrmpy.datapath.userspace.segments import complete
from xfrmpy.datapath.userspace.shares import ALL
from xfrmpy.datapath.userspace.vectors import MAX_ROWS
from xfrmpy.datapath.userspace.virtio import Offload
from xfrmpy.esp.packet import IPV4_IN_ESP, IPV6_IN_ESP, NO_NEXT_HEADER, InboundSa, OutboundSa
from xfrmpy.esp.sa import EspDrop, Progress
from xfrmpy.esp.transport import Fields
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import SadEntry

NO_FIELDS = Fields()
HEADERS = {4: IPV4_IN_ESP, 6: IPV6_IN_ESP}


def entry_of(suite: EspSuite) -> SadEntry:
    return replace(
        sa(0, 3),
        suite=suite,
        encryption_key=bytes(range(suite.cipher.keymat)),
        integrity_key=bytes(0 if suite.integrity is None else suite.integrity.key),
    )


def receiver(entry: SadEntry, sequence: int = 0) -> Forwarder:
    """A gateway that lets in streams of either version, and has received so many packets."""
    end = gateway(1)
    end.add_sa(received(entry), 0.0)
    found = end.sad.inbound.get(entry.spi.to_bytes(4, "big"))
    assert found is not None
    found[0].resume(Progress(sequence=sequence, octets=0, packets=0))
    for policy in policies(1, local="fd02::/16", remote="fd01::/16"):
        end.add_policy(policy)
    return end


def in_one_buffer(datagrams: list[bytes], offset: int = 0) -> Piece:
    buffer = memoryview(bytearray(bytes(offset) + b"".join(datagrams)))
    return Piece(buffer[offset:], len(datagrams[0]))


HARMS = (
    *("", "pushed", "fin", "ece", "tcp sum", "ip sum", "payload", "gap", "no df", "ttl", "udp"),
    "no sum",
    *("other version", "forged", "dummy", "wrong header", "padding", "twice", "swapped", "lost"),
)
"""What may be strange about the last of a run, or about its headers."""


def of_two_flows() -> st.SearchStrategy[list[tuple[int, int, str]]]:
    """Runs of segments: of which flow, how many, and what is strange."""
    run = st.tuples(st.sampled_from([0, 0, 0, 1]), st.integers(2, 8), st.sampled_from(("", *HARMS)))
    return st.lists(run, min_size=1, max_size=6)


MSS = 24


def flipped(packet: bytes, at: int) -> bytes:
    return packet[:at] + bytes([packet[at] ^ 1]) + packet[at + 1 :]


def inner(stream: Stream, harm: str) -> list[bytes]:
    """Segments of one size each, the last of which is strange."""
    *before, last = stream.packets()
    ip = 20 if stream.version == 4 else 40
    match harm:
        case "tcp sum":
            last = flipped(last, ip + (17 if stream.is_tcp else 7))
        case "no sum":
            at = ip + (16 if stream.is_tcp else 6)
            last = last[:at] + bytes(2) + last[at + 2 :]
        case "ip sum":
            last = flipped(last, 11 if stream.version == 4 else ip + 17)
        case "ttl":
            last = flipped(last, 8 if stream.version == 4 else 7)
        case "payload":
            last = flipped(last, len(last) - 1)
        case "udp":
            udp = replace(stream, is_tcp=False, options=b"", payload=bytes(len(last) - ip - 8))
            last = replace(udp, mss=len(udp.payload)).packet()
        case "other version":
            other = replace(stream, version=10 - stream.version, payload=b"")
            size = max(1, len(last) - len(other.packet()))
            last = replace(other, payload=bytes(size), mss=size).packet()
    return [*before, last]


def sent(
    sender: OutboundSa, base: Stream, runs: list[tuple[int, int, str]], rest: int
) -> list[bytes]:
    """A sender's packets, all but the last of one size, and what the way has done to them."""
    sequences, out = [base.sequence, 2**32 - 60], []
    for flow, count, harm in runs:
        flags = {"pushed": ACK | PSH, "fin": ACK | FIN, "ece": ACK | ECE}.get(harm, ACK)
        if harm == "gap":
            sequences[flow] += MSS
        stream = replace(
            base,
            ports=(40000 + flow, 443),
            payload=secrets.token_bytes(count * MSS),
            sequence=sequences[flow] % 2**32,
            flags=flags,
            fragment_bits=0 if harm == "no df" else base.fragment_bits,
        )
        sequences[flow] += count * MSS
        out += across(sender, inner(stream, harm), harm)
    if rest:
        last = replace(base, payload=bytes(rest), sequence=sequences[0] % 2**32).packet()
        out.append(sender.seal(last, HEADERS[last[0] >> 4]))
    return out


def across(sender: OutboundSa, packets: list[bytes], harm: str) -> list[bytes]:
    sealed = [sender.seal(each, HEADERS[each[0] >> 4]) for each in packets]
    size = len(packets[-1])
    match harm:
        case "forged":
            sealed[-1] = flipped(sealed[-1], 30)
        case "dummy":
            sealed.append(sender.seal(bytes(size), NO_NEXT_HEADER))
        case "wrong header":
            other = IPV4_IN_ESP + IPV6_IN_ESP - HEADERS[packets[-1][0] >> 4]
            sealed.append(sender.seal(packets[-1], other))
        case "padding":
            sealed.append(sender.seal(packets[-1][:-3], HEADERS[4], hidden_in=size))
        case "twice":
            sealed.append(sealed[-1])
        case "swapped":
            sealed.reverse()
        case "lost":
            sealed.pop()
    return sealed


def super_packets(arrivals: Arrivals) -> list[tuple[int, bytes, Offload]]:
    return [(number, b"".join(each.pieces), each.offload) for number, each in arrivals.take()]


SOME = [GCM, *(each for each in SAMPLE if each.cipher.name in ("chacha20poly1305", "aes128"))]


@pytest.mark.parametrize("suite", SOME, ids=str)
@example(
    runs=[(0, 3, ""), (0, 8, "")],
    version=4,
    options=b"",
    first=1,
    fragment_bits=DF,
    rest=5,
    is_tcp=True,
    traffic_class=2,
    marks=3,
    offset=0,
    earlier=2**32 - 12,
)
@given(
    runs=of_two_flows(),
    version=st.sampled_from([4, 6]),
    options=st.integers(0, 10).map(lambda n: b"\1" * (4 * n)),
    first=st.sampled_from([1, 2**32 - 100]),
    fragment_bits=st.sampled_from([DF, DF, 0]),
    rest=st.sampled_from([0, 0, 5, 23]),
    is_tcp=st.sampled_from([True, True, False]),
    traffic_class=st.sampled_from([0, 2]),
    marks=st.sampled_from([0, 3]),
    offset=st.sampled_from([0, 0, 4, 1]),
    earlier=st.sampled_from([0, 2**32 - 12, 2**32 + 5]),
)
def test_of_a_piece_becomes_what_becomes_of_its_datagrams(
    suite: EspSuite,
    runs: list[tuple[int, int, str]],
    version: int,
    options: bytes,
    first: int,
    fragment_bits: int,
    rest: int,
    is_tcp: bool,
    traffic_class: int,
    marks: int,
    offset: int,
    earlier: int,
) -> None:
    """The same packets in the same super-packets; drops, usage and windows, too."""
    entry = entry_of(suite)
    base = Stream(
        version=version,
        is_tcp=is_tcp,
        mss=MSS,
        options=options,
        sequence=first,
        fragment_bits=fragment_bits,
        traffic_class=traffic_class,
    )
    sequence = earlier if suite.esn else 0
    sender = OutboundSa(entry, secrets.token_bytes)
    sender.resume(Progress(sequence=sequence, octets=0, packets=0))
    datagrams = sent(sender, base, runs, rest)
    sizes = {len(each) for each in datagrams[:-1]}
    if len(sizes) != 1 or len(datagrams[-1]) > len(datagrams[0]):
        return  # Not what the kernel hands over as one.
    check(entry, datagrams, Fields(marks), sequence, offset)


def check(
    entry: SadEntry,
    datagrams: list[bytes],
    fields: Fields = NO_FIELDS,
    sequence: int = 0,
    offset: int = 0,
) -> None:
    ends = [receiver(entry, sequence) for _ in range(4)]
    fast, slow, slower = (Arrivals(end, ALL, lambda _: True) for end in ends[1:])
    assert fast.add_piece(in_one_buffer(datagrams, offset), FIRST, fields, 1.0) == []
    whole = in_one_buffer(datagrams).datagrams
    # What is opened together is of one size. (It need not be one stretch of sequence numbers with
    # the shorter one behind it: at 2**32 that would have all of them opened one by one.)
    alike = len(whole) - (len(datagrams[-1]) < len(datagrams[0]))
    for part in filter(None, (whole[:alike], whole[alike:])):
        assert slow.add(part, FIRST, fields, 1.0) == []
    one = one_by_one(ends[0], datagrams, FIRST, fields)
    joined = super_packets(fast)
    if joined != super_packets(slow):
        # Where there is nothing to be opened together, all are taken alike, the shorter one, too.
        assert slower.add(in_one_buffer(datagrams).datagrams, FIRST, fields, 1.0) == []
        assert joined == super_packets(slower)
        assert state(ends[3]) == state(ends[0])
    assert state(ends[0]) == state(ends[1]) == state(ends[2])
    cut = [piece for _, octets, offload in joined for piece in complete(octets, offload)]
    assert sorted(cut) == sorted(one)


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("is_tcp", [True, False])
def test_one_strange_packet_is_no_part_of_the_streak_around_it(
    harm: str, version: int, is_tcp: bool
) -> None:
    entry = entry_of(GCM)
    sender = OutboundSa(entry, secrets.token_bytes)
    runs = [(0, 4, ""), (0, 4, harm), (0, 4, "")]
    datagrams = sent(sender, Stream(version=version, is_tcp=is_tcp, mss=MSS), runs, 0)
    assert len({*map(len, datagrams)}) == 1
    check(entry, datagrams)


def test_segments_that_are_headed_otherwise_than_the_first_are_read_by_themselves() -> None:
    """With four octets more of TCP options, four of the stream are lost between each two."""
    entry = entry_of(GCM)
    sender = OutboundSa(entry, secrets.token_bytes)
    plain = Stream(payload=bytes(4 * MSS), mss=MSS).packets()
    others = [
        Stream(payload=bytes(MSS - 4), mss=MSS, options=bytes([1] * 4), sequence=at, ports=(1, 2))
        for at in range(1, 4 * MSS, MSS)
    ]
    inside = [*plain, *(each.packet() for each in others)]
    check(entry, [sender.seal(each, IPV4_IN_ESP) for each in inside])


@pytest.mark.parametrize("suite", SAMPLE, ids=str)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mss", [1377, 1378, 1379, 1380])
def test_a_whole_stream_is_one_streak(suite: EspSuite, version: int, mss: int) -> None:
    """Whatever its padding is."""
    stream = Stream(version=version, payload=secrets.token_bytes(42 * mss), mss=mss)
    sender = OutboundSa(entry_of(suite), secrets.token_bytes)
    piece = in_one_buffer([sender.seal(each, HEADERS[version]) for each in stream.packets()])
    opened = open_piece(InboundSa(received(entry_of(suite))), piece)
    assert isinstance(opened, Stretch)
    assert opened.streaks == [(0, 42)]
    assert [bytes(each) for each in opened.packets] == stream.packets()


def test_what_comes_to_the_same_place_is_read_anew() -> None:
    sender, end = OutboundSa(entry_of(GCM), secrets.token_bytes), receiver(entry_of(GCM))
    piece, arrivals = None, Arrivals(end)
    for number in range(3):
        stream = replace(STREAM, payload=secrets.token_bytes(8 * 24), ports=(number, 443))
        datagrams = [sender.seal(each, IPV4_IN_ESP) for each in stream.packets()]
        piece = piece or in_one_buffer(datagrams)
        piece.octets[:] = b"".join(datagrams)
        assert arrivals.add_piece(piece, FIRST, NO_FIELDS, 1.0) == []
        assert [each for _, each in written(arrivals)] == stream.packets()


STREAM = Stream(payload=bytes(8 * 24), mss=24)


@pytest.mark.parametrize("count", [1, MIN_ROWS - 1, MIN_ROWS, MAX_ROWS, MAX_ROWS + 1])
def test_a_piece_of_any_number_is_one_super_packet(count: int) -> None:
    stream = replace(STREAM, payload=bytes(count * 24 - 1))
    sender, end = OutboundSa(entry_of(GCM), secrets.token_bytes), receiver(entry_of(GCM))
    datagrams = [sender.seal(each, IPV4_IN_ESP) for each in stream.packets()]
    arrivals = Arrivals(end)
    assert arrivals.add_piece(in_one_buffer(datagrams), FIRST, NO_FIELDS, 1.0) == []
    ((_, octets, offload),) = super_packets(arrivals)
    assert complete(octets, offload) == stream.packets()


@pytest.mark.parametrize("octets", [b"", b"\xff", bytes(4) + b"IKE"])
def test_a_datagram_by_itself_that_is_not_ours_is_given_back(octets: bytes) -> None:
    arrivals = Arrivals(receiver(entry_of(GCM)))
    given_back = arrivals.add_piece(Piece(memoryview(bytearray(octets)), 0), FIRST, NO_FIELDS, 1.0)
    assert [bytes(each) for each in given_back] == [octets]


def test_what_came_with_it_and_is_the_daemons_is_given_back() -> None:
    sender, end = OutboundSa(entry_of(GCM), secrets.token_bytes), receiver(entry_of(GCM))
    datagrams = [sender.seal(each, IPV4_IN_ESP) for each in STREAM.packets()]
    strangers = [bytes(len(datagrams[0])), bytes(4) + b"IKE"]
    arrivals = Arrivals(end)
    piece = in_one_buffer([*datagrams, *strangers])
    given_back = arrivals.add_piece(piece, FIRST, NO_FIELDS, 1.0)
    assert [bytes(each) for each in given_back] == strangers
    assert [each for _, each in written(arrivals)] == STREAM.packets()


def test_every_packet_of_a_streak_is_refused_where_its_first_is() -> None:
    sender, end = OutboundSa(entry_of(GCM), secrets.token_bytes), receiver(entry_of(GCM))
    outside = [each[:13] + b"\x09" + each[14:] for each in STREAM.packets()]
    datagrams = [sender.seal(each, IPV4_IN_ESP) for each in outside]
    arrivals = Arrivals(end)
    arrivals.add_piece(in_one_buffer(datagrams), FIRST, NO_FIELDS, 1.0)
    assert written(arrivals) == []
    assert end.refused == {Refusal.OUTSIDE_SELECTORS: 8}


def test_what_is_cut_within_a_block_is_opened_one_by_one() -> None:
    sender, end = (
        OutboundSa(entry_of(CHAINING[0]), secrets.token_bytes),
        receiver(entry_of(CHAINING[0])),
    )
    datagrams = [sender.seal(each, IPV4_IN_ESP)[:-1] for each in STREAM.packets()]
    piece = in_one_buffer(datagrams)
    assert open_piece(InboundSa(received(entry_of(CHAINING[0]))), piece) is None
    assert piece.octets == b"".join(datagrams)
    Arrivals(end).add_piece(piece, FIRST, NO_FIELDS, 1.0)
    assert end.refused == {EspDrop.NOT_AUTHENTIC: 8}


@pytest.mark.parametrize("suite", [GCM, CHAINING[0], CHAINING[1]], ids=str)
@pytest.mark.parametrize("at", [9, 30, -1])
def test_a_forged_datagram_moves_no_window(suite: EspSuite, at: int) -> None:
    sender, end = OutboundSa(entry_of(suite), secrets.token_bytes), receiver(entry_of(suite))
    datagrams = [sender.seal(each, IPV4_IN_ESP) for each in STREAM.packets()]
    at %= len(datagrams[-1])
    forged = [*datagrams[:-1], flipped(datagrams[-1], at)]
    arrivals = Arrivals(end)
    for each in (forged, datagrams):
        arrivals.add_piece(in_one_buffer(each), FIRST, NO_FIELDS, 1.0)
    assert [each for _, each in written(arrivals)] == STREAM.packets()
    assert end.refused == {EspDrop.NOT_AUTHENTIC: 1, EspDrop.REPLAYED: 7}
