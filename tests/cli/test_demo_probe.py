"""What the demo's capture takes each frame for, against octets laid out by the RFCs."""

from __future__ import annotations

import struct

import pytest

from xfrmpy.cli.demo_probe import Kind, checksum, classify, echo_request

MACS = bytes(12)
IKE = bytes(8) + bytes(8) + bytes([33, 0x20, 34, 0x08]) + bytes(4) + (28).to_bytes(4, "big")
"""An IKE header: SPIs, next payload, version 2.0, exchange, flags, Message ID, length
(RFC 7296 section 3.1)."""

ESP = bytes.fromhex("c0ffee01 00000001") + bytes(40)


def ipv4(protocol: int, body: bytes, *, options: bytes = b"", fragment: int = 0) -> bytes:
    """RFC 791 section 3.1."""
    first = 0x40 | (5 + len(options) // 4)
    header = struct.pack("!BBHHHBBH", first, 0, 20 + len(body), 1, fragment, 64, protocol, 0)
    return MACS + b"\x08\x00" + header + bytes(8) + options + body


def ipv6(next_header: int, body: bytes) -> bytes:
    """RFC 8200 section 3."""
    header = struct.pack("!IHBB", 6 << 28, len(body), next_header, 64)
    return MACS + b"\x86\xdd" + header + bytes(32) + body


def udp(source: int, destination: int, payload: bytes) -> bytes:
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


FRAMES = {
    "IKE on port 500": (ipv4(17, udp(500, 500, IKE)), Kind.IKE),
    "IKE on port 500 over IPv6": (ipv6(17, udp(500, 500, IKE)), Kind.IKE),
    "IKE behind options": (ipv4(17, udp(500, 500, IKE), options=bytes(8)), Kind.IKE),
    "IKE on port 4500, after its marker": (ipv4(17, udp(4500, 4500, bytes(4) + IKE)), Kind.IKE),
    "IKE from a translated port": (ipv4(17, udp(31000, 4500, bytes(4) + IKE)), Kind.IKE),
    "ESP in UDP": (ipv4(17, udp(4500, 4500, ESP)), Kind.ESP),
    "ESP in UDP over IPv6": (ipv6(17, udp(4500, 4500, ESP)), Kind.ESP),
    "ESP": (ipv4(50, ESP), Kind.ESP),
    "ESP over IPv6": (ipv6(50, ESP), Kind.ESP),
    "a first fragment of ESP": (ipv4(50, ESP, fragment=0x2000), Kind.ESP),
    "a later fragment": (ipv4(50, ESP, fragment=0x2010), Kind.FRAGMENT),
    "a fragment over IPv6": (ipv6(44, bytes(8) + ESP), Kind.FRAGMENT),
    "a NAT keep-alive": (ipv4(17, udp(4500, 4500, b"\xff")), Kind.NAT_KEEPALIVE),
    "an ARP request": (MACS + b"\x08\x06" + bytes(28), Kind.NEIGHBOUR),
    "a neighbour solicitation": (ipv6(58, bytes([135]) + bytes(23)), Kind.NEIGHBOUR),
    "a listener report": (
        ipv6(0, bytes.fromhex("3a00050200000100") + bytes([143]) + bytes(27)),
        Kind.NEIGHBOUR,
    ),
    "a ping": (ipv4(1, echo_request(1, 1)), Kind.CLEAR),
    "a ping over IPv6": (ipv6(58, bytes([128]) + bytes(63)), Kind.CLEAR),
    "TCP": (ipv4(6, bytes(40)), Kind.CLEAR),
    "a DNS query": (ipv4(17, udp(53000, 53, bytes(30))), Kind.CLEAR),
    "text on port 500": (ipv4(17, udp(500, 500, b"hello" * 10)), Kind.CLEAR),
    "text on port 4500 behind a marker": (
        ipv4(17, udp(4500, 4500, bytes(4) + b"hello" * 10)),
        Kind.CLEAR,
    ),
    "IKE too short": (ipv4(17, udp(500, 500, IKE[:-1])), Kind.CLEAR),
    "ESP too short": (ipv4(50, ESP[:7]), Kind.CLEAR),
    "IP in IP": (ipv4(4, bytes(40)), Kind.CLEAR),
    "a frame too short": (bytes(20), Kind.CLEAR),
    "IPv6 too short": (ipv6(50, b"")[:50], Kind.CLEAR),
    "another protocol": (MACS + b"\x88\xcc" + bytes(40), Kind.CLEAR),
}


@pytest.mark.parametrize(("frame", "kind"), FRAMES.values(), ids=FRAMES)
def test_a_frame_is_taken_for_what_it_is(frame: bytes, kind: Kind) -> None:
    assert classify(frame) == (kind, 0xC0FFEE01 if kind is Kind.ESP else 0)


def test_a_frame_cut_anywhere_is_never_taken_for_protected_without_its_spi() -> None:
    frame = ipv4(17, udp(4500, 4500, ESP))
    for length in range(len(frame)):
        kind, spi = classify(frame[:length])
        assert (kind is Kind.ESP) == (spi == 0xC0FFEE01)


def test_the_checksum_is_the_one_of_rfc_1071() -> None:
    # RFC 1071 section 3: these octets sum to ddf2, whose complement is 220d.
    assert checksum(bytes.fromhex("0001f203f4f5f6f7")) == 0x220D


def test_an_echo_request_checks_out() -> None:
    request = echo_request(0x1234, 7)
    assert request[:2] == b"\x08\x00"
    assert request[4:8] == bytes.fromhex("12340007")
    assert len(request) == 64
    assert checksum(request) == 0
