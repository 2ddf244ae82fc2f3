"""The inner MTU against packets laid out octet by octet (RFC 4303 section 2, RFC 3948)."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from tests.suites import ESP_SUITES
from xfrmpy.esp.packet import OutboundSa
from xfrmpy.ipsec.algorithms import CIPHERS, INTEGRITY
from xfrmpy.ipsec.overhead import inner_mtu
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import Direction, Mode, SadEntry

OUTER_MTUS = [*range(576, 612), 1280, 1400, 1492, 1500, 9000, 65_535]


def on_the_wire(
    inner: int, suite: EspSuite, *, version: int, encapsulated: bool, mode: Mode
) -> int:
    """The octets of the outer packet; in transport mode the inner one's header goes outside."""
    ip_header = bytes(20 if version == 4 else 40)
    udp_header = bytes(8 if encapsulated else 0)
    # In BEET mode an inner IPv4 header is left out, and its options have a header of their own.
    spared = {Mode.TUNNEL: 0, Mode.TRANSPORT: len(ip_header), Mode.BEET: 20 - 8}
    aggfrag_header = bytes(4 if mode is Mode.IPTFS else 0)
    payload = aggfrag_header + bytes(inner - spared.get(mode, 0))
    padding = b""
    while len(payload + padding + b"LN") % 4 or len(payload + padding + b"LN") % suite.cipher.block:
        padding += b"\1"
    tag = bytes(suite.cipher.icv if suite.integrity is None else suite.integrity.icv)
    esp = b"SPI#" + b"seq#" + bytes(suite.cipher.iv) + payload + padding + b"LN" + tag
    return len(ip_header + udp_header + esp)


@pytest.mark.parametrize("suite", [s for s in ESP_SUITES if s.esn], ids=str)
@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("encapsulated", [False, True], ids=["plain", "udp"])
def test_the_largest_inner_packet_fits_and_one_octet_more_does_not(
    suite: EspSuite, mode: Mode, version: int, encapsulated: bool
) -> None:
    for outer in OUTER_MTUS:
        inner = inner_mtu(outer, suite, outer_version=version, encapsulated=encapsulated, mode=mode)
        size, more = (
            on_the_wire(n, suite, version=version, encapsulated=encapsulated, mode=mode)
            for n in (inner, inner + 1)
        )
        assert size <= outer < more


@pytest.mark.parametrize("suite", ESP_SUITES, ids=str)
def test_a_sealed_packet_of_that_size_fits(suite: EspSuite) -> None:
    integrity = 0 if suite.integrity is None else suite.integrity.key
    sa = OutboundSa(
        SadEntry(
            direction=Direction.OUT,
            spi=256,
            source=ip_address("192.0.2.1"),
            destination=ip_address("192.0.2.2"),
            reqid=1,
            suite=suite,
            encryption_key=bytes(suite.cipher.keymat),
            integrity_key=bytes(integrity),
        ),
        bytes,
    )
    inner = inner_mtu(1500, suite, outer_version=4, encapsulated=True, mode=Mode.TUNNEL)
    headers = 20 + 8
    assert headers + len(sa.seal(bytes(inner), 4)) <= 1500
    assert headers + len(sa.seal(bytes(inner + 1), 4)) > 1500


@pytest.mark.parametrize(
    ("cipher", "integrity", "inner"),
    [("aes256gcm16", None, 1446), ("chacha20poly1305", None, 1446), ("aes128", "sha256", 1438)],
)
def test_the_common_suites_have_their_well_known_sizes(
    cipher: str, integrity: str | None, inner: int
) -> None:
    """IPv4 over Ethernet without UDP, counted by hand once: 1500 - 20 - 8 - IV - ICV, aligned."""
    suite = EspSuite(
        cipher=next(c for c in CIPHERS if c.name == cipher),
        integrity=next((i for i in INTEGRITY if i.name == integrity), None),
        esn=False,
    )
    for mode, header in ((Mode.TUNNEL, 0), (Mode.TRANSPORT, 20)):
        assert (
            inner_mtu(1500, suite, outer_version=4, encapsulated=False, mode=mode) == inner + header
        )
