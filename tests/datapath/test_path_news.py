"""What ICMP messages of too large packets are news, whoever has sent them."""

from __future__ import annotations

from functools import partial
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.datapath.path_news import Quoted, quoted_untrusted
from xfrmpy.registry import ProtocolId

OURS = {4: "192.0.2.1", 6: "2001:db8::1"}
PEERS = {4: "192.0.2.2", 6: "2001:db8::2"}
SPI = 0x80001234
ESP, AH, UDP = 50, 51, 17
BEHIND = {
    ESP: SPI.to_bytes(4, "big") + bytes(4),
    AH: bytes(4) + SPI.to_bytes(4, "big") + bytes(4),
    UDP: b"\x11\x94" * 2 + bytes(4) + SPI.to_bytes(4, "big") + bytes(4),
}


quoted = partial(quoted_untrusted, natt_port=4500)


def quote(version: int, protocol: int, behind: bytes) -> bytes:
    ends = ip_address(OURS[version]).packed + ip_address(PEERS[version]).packed
    if version == 4:
        return b"\x45" + bytes(8) + bytes((protocol, 0, 0)) + ends + behind
    return b"\x60" + bytes(5) + bytes((protocol, 64)) + ends + behind


def message(version: int, quote: bytes) -> bytes:
    """As a raw socket gives it."""
    if version == 4:
        return b"\x45" + bytes(19) + b"\3\4" + bytes(4) + b"\x05\x14" + quote
    return b"\2\0" + bytes(2) + b"\0\0\x05\x14" + quote


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [ESP, AH, UDP])
def test_a_packet_of_ours_is_told_by_its_ends_and_spi(version: int, protocol: int) -> None:
    told = quoted(message(version, quote(version, protocol, BEHIND[protocol])), version)
    assert told == Quoted(
        source=ip_address(OURS[version]),
        destination=ip_address(PEERS[version]),
        protocol=ProtocolId.AH if protocol == AH else ProtocolId.ESP,
        spi=SPI,
    )


@pytest.mark.parametrize("version", [4, 6])
def test_routers_that_quote_eight_octets_are_heard_too(version: int) -> None:
    """RFC 792: "The internet header plus the first 64 bits of the original datagram's data"."""
    told = quoted(message(version, quote(version, UDP, BEHIND[UDP][:8])), version)
    assert told is not None
    assert told.spi is None


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("protocol", "behind"), [(6, bytes(20)), (1, bytes(20)), (UDP, b"\x01\xf4" * 2 + bytes(20))]
)
def test_packets_that_cannot_be_ours_are_no_news(
    version: int, protocol: int, behind: bytes
) -> None:
    assert quoted(message(version, quote(version, protocol, behind)), version) is None


def test_our_port_may_be_another_one() -> None:
    behind = b"\x27\x10\x11\x94" + BEHIND[UDP][4:]
    whole = message(4, quote(4, UDP, behind))
    assert quoted(whole, 4) is None
    assert quoted_untrusted(whole, 4, natt_port=10_000) is not None


def test_other_reasons_than_size_are_no_news() -> None:
    whole = message(4, quote(4, ESP, BEHIND[ESP]))
    assert quoted(whole[:21] + b"\1" + whole[22:], 4) is None
    assert quoted(b"\1" + message(6, quote(6, ESP, BEHIND[ESP]))[1:], 6) is None


@given(st.binary(max_size=120), st.sampled_from([4, 6]), st.booleans())
def test_any_octets_are_news_or_none(octets: bytes, version: int, is_icmp: bool) -> None:
    packet = message(version, octets) if is_icmp else octets
    told = quoted(packet, version)
    assert told is None or told.source.version == version


@pytest.mark.parametrize("version", [4, 6])
def test_whatever_is_cut_off_harms_nothing(version: int) -> None:
    whole = message(version, quote(version, UDP, BEHIND[UDP]))
    for end in range(len(whole)):
        told = quoted(whole[:end], version)
        assert told is None or told.spi in (None, SPI)
