"""Inner headers: what a SPD is told of a packet, and what is no packet."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.esp.ip import MAX_EXTENSIONS, InnerHeader, NotIp, flow_of, parse_inner_header
from xfrmpy.ipsec.selectors import MaskedPort, Selector

TCP, UDP, ICMP, ICMPV6, GRE = 6, 17, 1, 58, 47
SOURCE = {4: ip_address("10.1.0.9"), 6: ip_address("fd00:1::9")}
DESTINATION = {4: ip_address("10.2.0.7"), 6: ip_address("fd00:2::7")}
PORTS = (40_000).to_bytes(2, "big") + (443).to_bytes(2, "big")


def ipv4(payload: bytes, protocol: int = TCP, *, fragment: int = 0, options: bytes = b"") -> bytes:
    size = 20 + len(options)
    return (
        bytes([0x40 | size // 4, 0])
        + (size + len(payload)).to_bytes(2, "big")
        + bytes(2)
        + fragment.to_bytes(2, "big")
        + bytes([64, protocol, 0, 0])
        + SOURCE[4].packed
        + DESTINATION[4].packed
        + options
        + payload
    )


def ipv6(payload: bytes, following: int = TCP) -> bytes:
    return (
        b"\x60\x00\x00\x00"
        + len(payload).to_bytes(2, "big")
        + bytes([following, 64])
        + SOURCE[6].packed
        + DESTINATION[6].packed
        + payload
    )


def option_header(following: int, units: int = 0) -> bytes:
    """A hop-by-hop, routing or destination options header of (units + 1) * 8 octets."""
    return bytes([following, units]) + bytes(6 + 8 * units)


def ports_of(packet: bytes) -> tuple[int, int | None, int | None]:
    header = parse_inner_header(packet)
    return header.protocol, header.source_port, header.destination_port


@pytest.mark.parametrize("protocol", [TCP, UDP, 33, 132, 136])
def test_ports_and_addresses_are_found(protocol: int) -> None:
    for version, packet in ((4, ipv4(PORTS, protocol)), (6, ipv6(PORTS, protocol))):
        assert parse_inner_header(packet) == InnerHeader(
            version=version,
            source=int(SOURCE[version]),
            destination=int(DESTINATION[version]),
            protocol=protocol,
            source_port=40_000,
            destination_port=443,
            length=len(packet),
        )


def test_ipv4_options_are_stepped_over() -> None:
    assert ports_of(ipv4(PORTS, options=bytes(40))) == (TCP, 40_000, 443)


def test_ipv6_extension_headers_are_stepped_over() -> None:
    chain = option_header(43, 2) + option_header(60) + option_header(60) + option_header(TCP)
    assert ports_of(ipv6(chain + PORTS, 0)) == (TCP, 40_000, 443)


def test_icmp_has_type_and_code() -> None:
    assert ports_of(ipv4(b"\x03\x04\x00\x00", ICMP)) == (ICMP, 3, 4)
    assert ports_of(ipv6(b"\x02\x00\x00\x00", ICMPV6)) == (ICMPV6, 2, 0)


def test_other_protocols_have_no_ports() -> None:
    assert ports_of(ipv4(PORTS, GRE)) == (GRE, None, None)
    assert ports_of(ipv6(option_header(59), 135)) == (135, None, None)  # mobility
    assert ports_of(ipv6(PORTS, 59)) == (59, None, None)


def test_only_a_first_fragment_has_ports() -> None:
    assert ports_of(ipv4(PORTS, fragment=0x2000)) == (TCP, 40_000, 443)
    assert ports_of(ipv4(PORTS, fragment=0x4000)) == (TCP, 40_000, 443)  # DF is no fragment
    assert ports_of(ipv4(PORTS, fragment=1)) == (TCP, None, None)
    first = bytes([TCP, 0, 0, 1]) + bytes(4)
    later = bytes([TCP, 0, 0, 9]) + bytes(4)
    assert ports_of(ipv6(first + PORTS, 44)) == (TCP, 40_000, 443)
    assert ports_of(ipv6(later + PORTS, 44)) == (TCP, None, None)


def test_ports_that_are_cut_off_are_not_to_be_had() -> None:
    assert ports_of(ipv4(PORTS[:3])) == (TCP, None, None)
    assert ports_of(ipv6(PORTS[:3])) == (TCP, None, None)


def test_octets_behind_the_packet_are_not_part_of_it() -> None:
    for packet in (ipv4(b""), ipv6(b"")):
        header = parse_inner_header(packet + PORTS)
        assert header.length == len(packet)
        assert header.source_port is None


def test_a_jumbogram_is_no_packet() -> None:
    """RFC 2675: payload length 0, the true one in a hop-by-hop option."""
    jumbo = bytes([TCP, 0, 0xC2, 4]) + (70_000).to_bytes(4, "big") + bytes(70_000 - 8)
    with pytest.raises(NotIp):
        parse_inner_header(ipv6(b"", 0) + jumbo)


def test_an_extension_header_may_not_reach_beyond_the_packet() -> None:
    with pytest.raises(NotIp):
        parse_inner_header(ipv6(option_header(TCP, 3)[:16], 60) + bytes(40))


def test_every_length_field_is_a_packet_or_none() -> None:
    for packet in (ipv4(PORTS + bytes(16)), ipv6(PORTS + bytes(16))):
        at, header = (2, 0) if packet[0] >> 4 == 4 else (4, 40)
        for claimed in range(len(packet) + 40):
            lying = packet[:at] + claimed.to_bytes(2, "big") + packet[at + 2 :]
            if max(header, 20) <= header + claimed <= len(packet):
                assert parse_inner_header(lying).length == header + claimed
            else:
                with pytest.raises(NotIp):
                    parse_inner_header(lying)


def test_extension_headers_may_not_come_from_behind_the_packet() -> None:
    with pytest.raises(NotIp):
        parse_inner_header(ipv6(b"", 0) + option_header(TCP) + PORTS)


@pytest.mark.parametrize("packet", [ipv4(PORTS), ipv6(option_header(TCP) + PORTS, 0)])
def test_a_truncated_packet_is_no_packet(packet: bytes) -> None:
    for length in range(len(packet)):
        with pytest.raises(NotIp):
            parse_inner_header(packet[:length])


@pytest.mark.parametrize(
    "packet",
    [
        b"",
        b"\x50" + ipv4(PORTS)[1:],  # version 5
        b"\x44" + ipv4(PORTS)[1:],  # a header of 16 octets
        b"\x45\x00\x00\x13" + ipv4(PORTS)[4:],  # shorter than its header
        b"\x4f" + ipv4(PORTS)[1:],  # a header beyond the packet
        ipv6(option_header(0, 255)[:16], 0),
    ],
)
def test_what_is_no_ip_packet_is_refused(packet: bytes) -> None:
    with pytest.raises(NotIp):
        parse_inner_header(packet)


def test_a_chain_of_extension_headers_ends_somewhere() -> None:
    longest = option_header(60) * (MAX_EXTENSIONS - 2) + option_header(TCP)
    assert ports_of(ipv6(longest + PORTS, 60)) == (TCP, 40_000, 443)
    with pytest.raises(NotIp):
        parse_inner_header(ipv6(option_header(60) * MAX_EXTENSIONS + PORTS, 60))


@given(
    first=st.sampled_from([b"", b"\x45", b"\x4f", b"\x60"]),
    following=st.sampled_from([0, 6, 43, 44, 58, 60]),
    packet=st.binary(max_size=120),
)
def test_junk_is_no_packet_or_has_a_header_within_itself(
    first: bytes, following: int, packet: bytes
) -> None:
    junk = first + packet[:5] + bytes([following]) + packet[5:]
    with suppress(NotIp):
        header = parse_inner_header(junk)
        assert 20 <= header.length <= len(junk)
        assert header.version in (4, 6)


@given(
    address=st.integers(0, 0xFFFFFFFF),
    prefix=st.integers(0, 32),
    port=st.one_of(st.none(), st.integers(0, 0xFFFF)),
    bits=st.integers(0, 16),
    protocol=st.sampled_from([0, TCP, UDP]),
)
def test_a_selector_matches_what_its_twin_in_ipaddress_does(
    address: int, prefix: int, port: int | None, bits: int, protocol: int
) -> None:
    network = ip_network((0x0A010000 >> (32 - prefix) << (32 - prefix), prefix))
    mask = 0xFFFF << (16 - bits) & 0xFFFF
    selector = Selector(
        source=network,
        destination=ip_network("10.2.0.0/16"),
        protocol=protocol,
        destination_port=MaskedPort(443 & mask, mask),
    )
    near = address & 0x0001FFFF | 0x0A000000
    for source in (address, near):
        header = InnerHeader(
            version=4,
            source=source,
            destination=int(DESTINATION[4]),
            protocol=TCP,
            source_port=port,
            destination_port=port,
            length=40,
        )
        expected = (
            ip_address(source) in network
            and protocol in (0, TCP)
            and (mask == 0 or (port is not None and (port ^ 443) & mask == 0))
        )
        assert header.matches(selector) == expected


def test_a_selector_of_the_other_family_never_matches() -> None:
    everything = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
    for version, packet in ((4, ipv4(PORTS)), (6, ipv6(PORTS))):
        header = parse_inner_header(packet)
        for family, network in everything.items():
            selector = Selector(source=network, destination=network)
            assert header.matches(selector) == (family == version)


def test_a_fragment_meets_no_selector_that_wants_a_port() -> None:
    """RFC 4301 section 7: ports that are not to be had match only ANY."""
    without = Selector(
        source=ip_network("10.1.0.0/16"), destination=ip_network("10.2.0.0/16"), protocol=TCP
    )
    with_port = replace(without, destination_port=MaskedPort(443, 0xFFFF))
    fragment = parse_inner_header(ipv4(PORTS, fragment=1))
    assert not fragment.matches(with_port)
    assert fragment.matches(without)
    assert parse_inner_header(ipv4(PORTS)).matches(with_port)


SOMETHING = PORTS + bytes(16)


@pytest.mark.parametrize(
    "packet",
    [
        *(ipv4(SOMETHING), ipv6(SOMETHING), ipv4(SOMETHING, UDP)),
        *(ipv4(SOMETHING, ICMP), ipv6(SOMETHING, ICMPV6)),
    ],
)
def test_packets_of_one_flow_are_one_to_an_spd(packet: bytes) -> None:
    flow, header = flow_of(packet), parse_inner_header(packet)
    assert flow is not None
    for at in range(len(packet)):
        for bit in range(8):
            other = packet[:at] + bytes([packet[at] ^ 1 << bit]) + packet[at + 1 :]
            if flow_of(other) == flow:
                assert parse_inner_header(other) == header


@pytest.mark.parametrize(
    "packet",
    [
        *(b"", b"\x45", ipv4(b""), ipv6(b""), ipv6(PORTS)),
        ipv4(SOMETHING, GRE),
        *(ipv4(SOMETHING, options=bytes(4)), ipv6(option_header(TCP) + SOMETHING, 60)),
        *(ipv4(SOMETHING, fragment=0x2000), ipv4(SOMETHING, fragment=1)),
        ipv6(bytes([TCP, 0, 0, 1]) + bytes(4) + SOMETHING, 44),
        *(ipv4(SOMETHING) + b"x", ipv6(SOMETHING)[:-1], b"\x55" + ipv4(SOMETHING)[1:]),
    ],
)
def test_what_must_be_parsed_is_of_no_flow(packet: bytes) -> None:
    assert flow_of(packet) is None


def test_of_its_headers_alone_a_flow_is_known() -> None:
    for packet in (ipv4(SOMETHING), ipv6(SOMETHING + bytes(8))):
        assert flow_of(packet[:60][: len(packet) - 1], is_whole=False) == flow_of(packet)
