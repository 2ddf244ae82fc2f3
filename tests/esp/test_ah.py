"""AH packets against a slow obvious twin: what is covered, what may change, what is dropped."""

from __future__ import annotations

import hashlib
import hmac
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address

import pytest
from cryptography.hazmat.primitives import cmac
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from hypothesis import given
from hypothesis import strategies as st

from tests.esp.conftest import xcbc_by_hand
from tests.suites import AH_SUITES
from xfrmpy.esp.ah import AH_PROTOCOL, InboundAh, OutboundAh, immutable
from xfrmpy.esp.sa import Dropped, EspDrop
from xfrmpy.esp.transport import Fields
from xfrmpy.ipsec.overhead import ah_size
from xfrmpy.ipsec.proposals import AhSuite
from xfrmpy.ipsec.sad import Direction, Lifetime, SadEntry

ENDS = {
    4: (ip_address("192.0.2.1"), ip_address("192.0.2.2")),
    6: (ip_address("2001:db8::1"), ip_address("2001:db8::2")),
}
PAYLOAD = bytes(range(84))
FIELDS = Fields(traffic_class=0xB9, hops=7)


def entry(suite: AhSuite, version: int = 4, **changes: object) -> SadEntry:
    made = SadEntry(
        direction=Direction.OUT,
        spi=0x81020304,
        source=ENDS[version][0],
        destination=ENDS[version][1],
        reqid=7,
        suite=suite,
        encryption_key=b"",
        integrity_key=bytes(range(suite.integrity.key)),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def sealed(sa: OutboundAh, payload: bytes = PAYLOAD) -> tuple[bytes, bytes]:
    """Header and the rest of a packet on the wire; the kernel makes the header of IPv6."""
    packet = sa.seal(payload, 4, FIELDS, has_df=True)
    if sa.entry.source.version == 4:
        return packet[:20], packet[20:]
    return ipv6_header(sa.entry, len(packet)), packet


def ipv6_header(sa: SadEntry, length: int, following: int = AH_PROTOCOL) -> bytes:
    first = (6 << 28 | 0xB9 << 20 | 0x12345).to_bytes(4, "big")
    ends = sa.source.packed + sa.destination.packed
    return first + length.to_bytes(2, "big") + bytes([following, 7]) + ends


# The twin: octet by octet, straight from the tables of RFC 4302.

_ZERO_IN_IPV4 = {1, 6, 7, 8, 10, 11}
_ZERO_IN_IPV6 = {1, 2, 3, 7}


def twin_header(header: bytes) -> bytes:
    if header[0] >> 4 == 6:
        base = bytes(0 if at in _ZERO_IN_IPV6 else header[at] for at in range(40))
        return bytes([base[0] & 0xF0]) + base[1:] + twin_extensions(header)
    base = bytes(0 if at in _ZERO_IN_IPV4 else header[at] for at in range(20))
    options, at = b"", 20
    while at < len(header):
        kind = header[at]
        if kind == 0:
            return base + options + header[at:]
        size = 1 if kind == 1 else header[at + 1]
        number = kind & 0x1F  # appendix A1 lists them by number; class and copy bit are above
        keeps = kind == 1 or (number in (2, 5, 6, 20, 21) and kind & 0xE0 == 0x80)
        options += header[at : at + size] if keeps else bytes(size)
        at += size
    return base + options


def twin_extensions(header: bytes) -> bytes:
    out, kind, at = b"", header[6], 40
    while at < len(header):
        size = 8 * (header[at + 1] + 1)
        block = header[at : at + size]
        out += block if kind == 43 else block[:2] + twin_tlvs(block[2:])
        kind, at = block[0], at + size
    return out


def twin_tlvs(options: bytes) -> bytes:
    if not options:
        return b""
    if options[0] == 0:
        return b"\0" + twin_tlvs(options[1:])
    size = options[1]
    data = bytes(size) if options[0] & 0x20 else options[2 : 2 + size]
    return options[:2] + data + twin_tlvs(options[2 + size :])


def twin_mac(suite: AhSuite, key: bytes, message: bytes) -> bytes:
    name = suite.integrity.name
    if name == "aesxcbc":
        return xcbc_by_hand(key, message)
    if name == "aescmac":
        made = cmac.CMAC(AES(key))
        made.update(message)
        return made.finalize()
    return hmac.new(key, message, getattr(hashlib, name)).digest()


def twin_packet(
    sa: SadEntry, header: bytes, sequence: int, next_header: int, payload: bytes
) -> bytes:
    suite = sa.suite
    assert isinstance(suite, AhSuite)
    size = 12 + suite.integrity.icv
    while size % (4 if sa.source.version == 4 else 8):
        size += 1
    whole = sequence.to_bytes(8, "big")
    fixed = bytes([next_header, size // 4 - 2, 0, 0]) + sa.spi.to_bytes(4, "big") + whole[4:]
    tail = bytes(size - 12 - suite.integrity.icv) + payload
    covered = twin_header(header) + fixed + bytes(suite.integrity.icv) + tail
    tag = twin_mac(suite, sa.integrity_key, covered + (whole[:4] if suite.esn else b""))
    return fixed + tag[: suite.integrity.icv] + tail


every_suite = pytest.mark.parametrize("suite", AH_SUITES, ids=str)
either_family = pytest.mark.parametrize("version", [4, 6])


@every_suite
@either_family
def test_a_packet_is_what_the_twin_makes(suite: AhSuite, version: int) -> None:
    sa = OutboundAh(entry(suite, version))
    for sequence in (1, 2, 3):
        header, rest = sealed(sa)
        assert rest == twin_packet(sa.entry, header, sequence, 4, PAYLOAD)
        assert len(rest) == ah_size(suite, version) + len(PAYLOAD)


@every_suite
@either_family
def test_what_is_sealed_opens_whatever_routers_change(suite: AhSuite, version: int) -> None:
    ours, theirs = OutboundAh(entry(suite, version)), InboundAh(entry(suite, version))
    changes = _ZERO_IN_IPV4 if version == 4 else _ZERO_IN_IPV6
    for number in range(4):
        header, rest = sealed(ours)
        routed = bytes(octet ^ (0xFF if at in changes else 0) for at, octet in enumerate(header))
        assert theirs.open(rest, routed) == (4, PAYLOAD, True), number
    assert (theirs.packets, theirs.octets) == (4, 4 * len(PAYLOAD))


@either_family
def test_nothing_else_may_change_in_any_octet(version: int) -> None:
    suite = AH_SUITES[0]
    header, rest = sealed(OutboundAh(entry(suite, version)))
    changes = _ZERO_IN_IPV4 if version == 4 else _ZERO_IN_IPV6
    theirs = InboundAh(entry(suite, version))
    for at in set(range(len(header) + len(rest))) - changes:
        whole = bytearray(header + rest)
        whole[at] ^= 0x10
        with pytest.raises(Dropped) as dropped:
            theirs.open(bytes(whole[len(header) :]), bytes(whole[: len(header)]))
        assert dropped.value.reason in (EspDrop.NOT_AUTHENTIC, EspDrop.BAD_HEADER)
    assert theirs.open(rest, header)[:2] == (4, PAYLOAD)


@either_family
def test_what_is_cut_short_or_drawn_out_does_not_open(version: int) -> None:
    header, rest = sealed(OutboundAh(entry(AH_SUITES[1], version)))
    theirs = InboundAh(entry(AH_SUITES[1], version))
    for other in [rest[:length] for length in range(len(rest))] + [rest + b"\0"]:
        with pytest.raises(Dropped):
            theirs.open(other, header)


def test_a_packet_opens_once_and_the_window_moves_for_what_is_authentic_alone() -> None:
    ours, theirs = OutboundAh(entry(AH_SUITES[0])), InboundAh(entry(AH_SUITES[0]))
    header, rest = sealed(ours)
    forged = rest[:8] + (1 << 31).to_bytes(4, "big") + rest[12:]
    with pytest.raises(Dropped) as dropped:
        theirs.open(forged, header)
    assert dropped.value.reason is EspDrop.NOT_AUTHENTIC
    assert theirs.open(rest, header)[2]
    with pytest.raises(Dropped) as dropped:
        theirs.open(rest, header)
    assert dropped.value.reason is EspDrop.REPLAYED
    assert (theirs.replayed, theirs.integrity_failed) == (1, 1)


def test_the_high_half_of_an_extended_sequence_number_is_covered_and_not_sent() -> None:
    suite = next(s for s in AH_SUITES if s.esn)
    ours, theirs = OutboundAh(entry(suite)), InboundAh(entry(suite))
    ours._sequence = theirs._window.highest = (5 << 32) - 2
    for low in ((1 << 32) - 1, 0, 1):
        header, rest = sealed(ours)
        assert rest[8:12] == low.to_bytes(4, "big")
        assert theirs.open(rest, header)[1] == PAYLOAD
    assert theirs._window.highest == (5 << 32) + 1


def test_an_sa_ends_with_its_sequence_numbers_and_its_lifetime() -> None:
    suite = next(s for s in AH_SUITES if not s.esn)
    sa = OutboundAh(entry(suite))
    sa._sequence = (1 << 32) - 1
    with pytest.raises(Dropped):
        sealed(sa)
    sa = OutboundAh(entry(suite, lifetime=Lifetime(hard_packets=1)))
    sealed(sa)
    with pytest.raises(Dropped):
        sealed(sa)


def test_no_packet_of_ipv4_has_an_identification_that_the_kernel_would_replace() -> None:
    """raw(7): with IP_HDRINCL an Identification of zero is filled in."""
    sa = OutboundAh(entry(AH_SUITES[1]))
    sa._sequence = 0xFFFD
    assert {sealed(sa)[0][4:6] for _ in range(4)} == {b"\xff\xff", b"\0\1", b"\0\2", b"\0\3"}


_OPTIONS = {
    "none": b"",
    "no operation": b"\1\1\1\1",
    "router alert": bytes([148, 4, 0, 0]),
    "record route": bytes([7, 7, 4, 1, 2, 3, 4, 0]),
    "security, then a time stamp": bytes([130, 3, 9, 68, 4, 5, 0, 1]),
    "end, and what is behind it": bytes([1, 0, 99, 98]),
    "an unknown one": bytes([0x9F, 4, 1, 2]),
}


@pytest.mark.parametrize("options", _OPTIONS.values(), ids=_OPTIONS)
def test_ipv4_options_are_covered_as_appendix_a_says(options: bytes) -> None:
    suite = AH_SUITES[0]
    header = bytearray(sealed(OutboundAh(entry(suite)))[0] + options)
    header[0] = 0x40 | len(header) // 4
    packet = twin_packet(entry(suite), bytes(header), 1, 6, PAYLOAD)
    assert immutable(bytes(header)) == twin_header(bytes(header))
    assert InboundAh(entry(suite)).open(packet, bytes(header)) == (6, PAYLOAD, True)


def _extension(following: int, body: bytes) -> bytes:
    return bytes([following, (len(body) + 2) // 8 - 1]) + body


_EXTENSIONS = {
    "hop-by-hop": (0, _extension(AH_PROTOCOL, b"\5\2\0\0\1\0")),
    "an option that may change": (60, _extension(AH_PROTOCOL, b"\x3e\4abcd")),
    "one that stays, with padding": (60, _extension(AH_PROTOCOL, b"\x1e\2ab\0\0")),
    "routing": (43, _extension(AH_PROTOCOL, b"\2\0\0\0\0\0" + bytes(16))),
    "two": (0, _extension(60, b"\5\2\0\0\1\0") + _extension(AH_PROTOCOL, b"\x3e\4wxyz")),
}


@pytest.mark.parametrize(("kind", "octets"), _EXTENSIONS.values(), ids=_EXTENSIONS)
def test_ipv6_extension_headers_are_covered_but_for_what_may_change(
    kind: int, octets: bytes
) -> None:
    suite = AH_SUITES[0]
    sa = entry(suite, 6)
    header = ipv6_header(sa, 200, kind) + octets
    packet = twin_packet(sa, header, 1, 6, PAYLOAD)
    assert immutable(header) == twin_header(header)
    assert InboundAh(sa).open(packet, header) == (6, PAYLOAD, True)


@given(st.binary(min_size=20, max_size=80))
def test_no_header_does_more_than_be_dropped(octets: bytes) -> None:
    for first in (0x45, 0x60):
        header = bytes([first]) + octets
        with suppress(Dropped):
            assert len(immutable(header)) == len(header)


def test_an_sa_of_esp_is_none_of_ours(make_entry: object) -> None:
    assert callable(make_entry)
    for kind in (OutboundAh, InboundAh):
        with pytest.raises(ValueError, match="no SA of AH"):
            kind(make_entry())
