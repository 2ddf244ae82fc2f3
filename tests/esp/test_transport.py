"""Transport mode: a header taken off and put on again, checksums, fragments gathered."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.esp.ip import parse_inner_header
from xfrmpy.esp.reassembly import MAX_GATHERING, Reassembly, fragment_of
from xfrmpy.esp.transport import (
    Fields,
    NotCarried,
    fields_of,
    payload_of,
    with_checksum,
    with_header,
)
from xfrmpy.ipsec.addresses import IpAddress

PAIRS: dict[int, tuple[IpAddress, IpAddress]] = {
    4: (IPv4Address("198.51.100.1"), IPv4Address("198.51.100.2")),
    6: (IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")),
}
VERSIONS = pytest.mark.parametrize("version", [4, 6])
OCTET = st.integers(0, 255)
SOME_FIELDS = st.builds(Fields, OCTET, OCTET)


def slow_checksum(octets: bytes) -> int:
    """RFC 1071 section 4.1, word by word."""
    total = 0
    for at in range(0, len(octets), 2):
        total += int.from_bytes(octets[at : at + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@VERSIONS
@given(protocol=st.integers(1, 42), payload=st.binary(max_size=200), fields=SOME_FIELDS)
def test_a_header_put_on_is_the_one_that_was_taken_off(
    version: int, protocol: int, payload: bytes, fields: Fields
) -> None:
    packet = with_header(*PAIRS[version], protocol, payload, fields)
    assert payload_of(packet) == (protocol, payload)
    assert fields_of(packet) == fields
    if version == 4:
        assert slow_checksum(packet[:20]) == 0


@pytest.mark.parametrize(
    "packet",
    [
        b"\x46" + bytes(23),  # options
        b"\x45" + bytes(5) + b"\x20" + bytes(13),  # the first of several fragments
        b"\x45" + bytes(6) + b"\x01" + bytes(12),  # a later one
        b"\x60" + bytes(5) + b"\x00" + bytes(33),  # hop-by-hop options
        b"\x60" + bytes(5) + b"\x2b" + bytes(33),  # a routing header
        b"\x60" + bytes(5) + b"\x2c" + bytes(33),  # a fragment
    ],
    ids=["options", "first", "later", "hop-by-hop", "routing", "fragment"],
)
def test_what_stands_before_esp_is_not_carried(packet: bytes) -> None:
    """RFC 4303 section 3.1.1."""
    with pytest.raises(NotCarried):
        payload_of(packet)


@VERSIONS
@pytest.mark.parametrize(("protocol", "at"), [(6, 16), (17, 6)])
@given(payload=st.binary(min_size=20, max_size=64))
def test_checksums_are_right_for_the_addresses_that_are_seen(
    version: int, protocol: int, at: int, payload: bytes
) -> None:
    """RFC 3948 section 3.1.2."""
    mended = with_checksum(*PAIRS[version], protocol, payload)
    if protocol == 17 and payload[at : at + 2] == bytes(2):
        assert mended == payload
        return
    source, destination = PAIRS[version]
    pseudo = source.packed + destination.packed + len(payload).to_bytes(4, "big")
    assert slow_checksum(pseudo + protocol.to_bytes(4, "big") + mended) == 0
    assert mended[:at] + mended[at + 2 :] == payload[:at] + payload[at + 2 :]
    assert protocol == 6 or mended[at : at + 2] != bytes(2), "zero would mean that there is none"


def test_of_other_protocols_and_stumps_nothing_is_changed() -> None:
    for protocol, payload in ((1, bytes(20)), (50, bytes(20)), (6, bytes(17)), (17, bytes(7))):
        assert with_checksum(*PAIRS[4], protocol, payload) == payload


def cut(version: int, payload: bytes, size: int, number: int = 7) -> list[bytes]:
    """The fragments of a datagram, as RFC 791 section 3.2 and RFC 8200 section 4.5 make them."""
    pieces = []
    for at in range(0, len(payload), size):
        more = at + size < len(payload)
        part = payload[at : at + size]
        if version == 6:
            header = bytes([17, 0]) + (at | more).to_bytes(2, "big") + number.to_bytes(4, "big")
            pieces.append(with_header(*PAIRS[6], 44, header + part, Fields()))
            continue
        whole = with_header(*PAIRS[4], 17, part, Fields())
        bits = at // 8 | (0x2000 if more else 0)
        pieces.append(whole[:4] + number.to_bytes(2, "big") + bits.to_bytes(2, "big") + whole[8:])
    return pieces


def gathered(reassembly: Reassembly, packets: list[bytes]) -> list[tuple[bytes, list[bytes]]]:
    found = []
    for packet in packets:
        fragment = fragment_of(packet)
        assert fragment is not None
        whole = reassembly.add(packet, fragment)
        if whole is not None:
            found.append(whole)
    return found


@VERSIONS
@given(payload=st.binary(min_size=9, max_size=400), units=st.integers(1, 10))
def test_fragments_become_the_datagram_that_they_were(
    version: int, payload: bytes, units: int
) -> None:
    size = units * 8
    if size >= len(payload):
        size = 8
    pieces = cut(version, payload, size)
    ((whole, same),) = gathered(Reassembly(), pieces)
    assert payload_of(whole) == (17, payload)
    assert same == pieces
    assert parse_inner_header(whole).length == len(whole)


@VERSIONS
def test_two_datagrams_may_come_in_turns(version: int) -> None:
    one, other = (cut(version, bytes([n]) * 40, 16, number=n) for n in (1, 2))
    turns = [piece for pair in zip(one, other, strict=True) for piece in pair]
    assert [payload_of(whole)[1] for whole, _ in gathered(Reassembly(), turns)] == [
        bytes([n]) * 40 for n in (1, 2)
    ]


@VERSIONS
def test_a_gap_or_an_overlap_is_given_up(version: int) -> None:
    pieces = cut(version, bytes(64), 16)
    for order in ((0, 2, 3), (1, 2, 3), (0, 1, 1, 2, 3), (3, 2, 1, 0)):
        assert gathered(Reassembly(), [pieces[at] for at in order]) == []
    assert len(gathered(Reassembly(), [pieces[0], *pieces])) == 1, "a first one begins anew"


def test_so_many_are_gathered_at_a_time_and_no_more() -> None:
    reassembly = Reassembly()
    all_cut = [cut(4, bytes(24), 16, number=n) for n in range(MAX_GATHERING + 1)]
    assert gathered(reassembly, [pieces[0] for pieces in all_cut]) == []
    assert gathered(reassembly, [all_cut[0][1]]) == []
    assert len(gathered(reassembly, [pieces[1] for pieces in all_cut[1:]])) == MAX_GATHERING


@given(packet=st.binary(min_size=40, max_size=80), first=st.sampled_from([0x45, 0x60]))
def test_junk_is_no_defect(packet: bytes, first: int) -> None:
    packet = bytes([first]) + packet[1:]
    fragment = fragment_of(packet)
    if fragment is not None:
        Reassembly().add(packet, fragment)
