"""SAs and policies to put in force, and the two gateways that they are for."""

from __future__ import annotations

import struct
from dataclasses import replace
from ipaddress import ip_address, ip_network
from socket import IPPROTO_UDP

import pytest

from tests.suites import AH_SUITES, ESP_SUITES
from xfrmpy.datapath.interface import Capabilities
from xfrmpy.esp.checksum import checksum_of
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.proposals import AhSuite, EspSuite
from xfrmpy.ipsec.sad import (
    OUR_REQIDS,
    Direction,
    InnerEnds,
    Mode,
    SadEntry,
    UdpEncapsulation,
)
from xfrmpy.ipsec.selectors import Selector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry, Template
from xfrmpy.registry import ProtocolId

ESP = {str(suite): suite for suite in ESP_SUITES}
SUITES: dict[str, EspSuite | AhSuite] = {**ESP, **{str(suite): suite for suite in AH_SUITES}}
GCM = ESP["aes256gcm16-esn"]
REQID = OUR_REQIDS[7]
OUTER = {
    4: (ip_address("198.51.100.1"), ip_address("198.51.100.2")),
    6: (ip_address("2001:db8:0:1::1"), ip_address("2001:db8:0:1::2")),
}
"""The addresses of the two gateways on the link between them."""
INNER = {
    4: (ip_network("10.1.0.0/24"), ip_network("10.2.0.0/24")),
    6: (ip_network("fd00:1::/64"), ip_network("fd00:2::/64")),
}
"""The networks behind them; each gateway has the first address of its own."""
ENDS = {
    version: InnerEnds(source=INNER[version][1][1], destination=INNER[version][0][1])
    for version in INNER
}
"""Of BEET mode, inbound at the first gateway."""


def spd_entry(
    direction: PolicyDirection = PolicyDirection.OUT,
    *,
    version: int = 4,
    action: Action = Action.PROTECT,
    mode: Mode = Mode.TUNNEL,
    compresses: bool = False,
) -> SpdEntry:
    """A policy of the first gateway's."""
    ours, theirs = INNER[version]
    from_us, to_us = OUTER[4], OUTER[4][::-1]
    outbound = direction is PolicyDirection.OUT
    source, destination = from_us if outbound else to_us
    selector = Selector(source=ours, destination=theirs)
    return SpdEntry(
        direction=direction,
        selector=selector if outbound else selector.reversed(),
        action=action,
        priority=1000,
        template=Template(
            source=source,
            destination=destination,
            reqid=REQID,
            mode=mode,
            compresses=compresses,
        )
        if action is Action.PROTECT
        else None,
    )


def sad_entry(spi_bits: int, **changes: object) -> SadEntry:
    """An inbound SA of the first gateway's."""
    suite = changes.get("suite", GCM)
    assert isinstance(suite, EspSuite | AhSuite)
    entry = SadEntry(
        direction=Direction.IN,
        spi=0x1234560 | spi_bits,
        source=OUTER[4][1],
        destination=OUTER[4][0],
        reqid=REQID,
        suite=suite,
        encryption_key=bytes(range(suite.keymat)),
        integrity_key=bytes(range(suite.integrity.key)) if suite.integrity else b"",
        # What is usual for each datapath.
        encapsulation=UdpEncapsulation(4500, 4500)
        if spi_bits and suite.protocol is ProtocolId.ESP
        else None,
    )
    return replace(entry, **changes)  # type: ignore[arg-type]


def skip_unless_able(capabilities: Capabilities, suite: EspSuite | AhSuite) -> None:
    """Skip a test of what this datapath says that it cannot do, with its reason."""
    name = str(replace(suite, esn=False))
    if name not in capabilities.suites:
        missing = capabilities.missing
        pytest.skip(missing.get(name) or missing.get("ah") or f"{name} is no suite of this one")


def inner_address(version: int, end: int) -> IpAddress:
    return INNER[version][end][1]


def inner_datagram(port: int, payload: bytes, source: IpAddress | None = None) -> bytes:
    """From inside the first site, or from another source, to inside the second."""
    ends = (source or inner_address(4, 0)).packed + inner_address(4, 1).packed
    size = 28 + len(payload)
    header = struct.pack(">BBHHHBBH", 0x45, 0, size, 0, 0, 64, IPPROTO_UDP, 0) + ends
    header = header[:10] + struct.pack(">H", checksum_of(header)) + header[12:]
    return header + struct.pack(">HHHH", port, port, size - 20, 0) + payload
