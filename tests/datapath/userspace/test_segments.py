"""The cutting of super-packets and the completing of checksums, against an obvious twin."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.datapath.userspace.super_packets import ACK, CWR, DF, FIN, PSH, STREAMS, Stream
from xfrmpy.datapath.userspace.segments import MAX_SEGMENTS, BadOffload, complete
from xfrmpy.datapath.userspace.virtio import COMPLETE, Offload, decode_offload, encode_offload


@given(stream=STREAMS)
def test_a_super_packet_becomes_what_a_host_would_have_sent_by_itself(stream: Stream) -> None:
    assert complete(*stream.super_packet()) == stream.packets()


def test_cwr_is_in_the_first_segment_and_fin_and_psh_in_the_last() -> None:
    """RFC 3168 section 6.1.2."""
    stream = Stream(payload=bytes(5), mss=2, flags=ACK | CWR | PSH | FIN)
    flags = [packet[33] for packet in complete(*stream.super_packet())]
    assert flags == [ACK | CWR, ACK, ACK | PSH | FIN]


def test_an_identification_that_means_something_is_each_packets_own() -> None:
    """RFC 6864 section 4.2."""
    for bits, expected in ((0, [0xFFFF, 0, 1]), (DF, [0xFFFF] * 3)):
        stream = Stream(payload=bytes(5), mss=2, fragment_bits=bits, identification=0xFFFF)
        packets = complete(*stream.super_packet())
        assert [int.from_bytes(packet[4:6], "big") for packet in packets] == expected


@given(stream=STREAMS)
def test_a_partial_checksum_is_completed(stream: Stream) -> None:
    packet, offload = stream.super_packet()
    alone = offload._replace(segments=0, segment_size=0)
    assert complete(packet, alone) == [stream.packet()]


@given(packet=st.binary(max_size=100))
def test_a_complete_packet_is_left_alone(packet: bytes) -> None:
    assert complete(packet, COMPLETE) == [packet]


OFFLOADS = st.builds(
    Offload,
    needs_checksum=st.booleans(),
    segments=st.sampled_from([0, 1, 2, 3, 4, 5, 127]),
    header_size=st.integers(0, 0xFFFF),
    segment_size=st.integers(0, 0xFFFF),
    checksum_start=st.integers(0, 0xFFFF) | st.integers(0, 60),
    checksum_offset=st.integers(0, 0xFFFF) | st.sampled_from([6, 16]),
    has_ecn=st.booleans(),
)


@given(offload=OFFLOADS)
def test_a_header_reads_as_it_was_written(offload: Offload) -> None:
    assert decode_offload(encode_offload(offload)) == offload


@given(packet=st.binary(max_size=100) | STREAMS.map(Stream.packet), offload=OFFLOADS)
def test_whatever_a_header_says_the_packet_is_cut_or_refused(
    packet: bytes, offload: Offload
) -> None:
    with suppress(BadOffload):
        assert complete(packet, offload)


@pytest.mark.parametrize(
    "wrong",
    [
        {"needs_checksum": False},
        {"segments": 3},
        {"segments": 4},
        {"segment_size": 0},
        {"checksum_start": 0},
        {"checksum_start": 65535},
        {"checksum_offset": 6},
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_is_refused(wrong: dict[str, int]) -> None:
    packet, offload = Stream().super_packet()
    with pytest.raises(BadOffload):
        complete(packet, offload._replace(**wrong))  # type: ignore[arg-type]


def test_a_super_packet_without_payload_is_refused() -> None:
    packet, offload = Stream().super_packet()
    with pytest.raises(BadOffload):
        complete(packet[:40], offload)


@pytest.mark.parametrize("version", [4, 6])
def test_a_super_packet_is_not_cut_into_as_many_segments_as_it_has_octets(version: int) -> None:
    """One of 65,000 would take a second, for whoever can write one octet in a header."""
    packet, offload = Stream(version=version, payload=bytes(MAX_SEGMENTS + 1)).super_packet()
    with pytest.raises(BadOffload):
        complete(packet, offload._replace(segment_size=1))
    assert len(complete(packet[:-1], offload._replace(segment_size=1))) == MAX_SEGMENTS


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("is_tcp", [True, False], ids=["tcp", "udp"])
def test_what_is_cut_is_what_the_ip_header_says(version: int, is_tcp: bool) -> None:
    """Not something else, nor at another place, nor a fragment of it."""
    packet, offload = Stream(version=version, is_tcp=is_tcp).super_packet()
    protocol = {4: 9, 6: 6}[version]
    others = [packet[:protocol] + bytes([other]) + packet[protocol + 1 :] for other in (1, 44, 60)]
    if version == 4:
        others += [packet[:6] + bits + packet[8:] for bits in (b"\x20\x00", b"\x00\x01")]
        others += [b"\x46" + packet[1:], b"\x44" + packet[1:]]
    for each in others:
        with pytest.raises(BadOffload):
            complete(each, offload)
