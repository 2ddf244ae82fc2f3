"""Which packets an SA carries: selectors by protocol, ports, and ICMP's types and codes."""

from __future__ import annotations

import socket
import struct
import time
from contextlib import closing, suppress
from dataclasses import dataclass

import pytest

from integration.contract.entries import GCM, OUTER, REQID, inner_address
from integration.contract.sites import CleanSites, SaPair, Site, inside, make_pair
from xfrmpy.datapath.interface import Capabilities
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import Template, protect_entries

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
_KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}
_SETTLED_SECONDS = 0.3


@dataclass(frozen=True, slots=True)
class Packet:
    """Ports, or of ICMP a type and a code."""

    protocol: int
    source: int
    destination: int

    def __str__(self) -> str:
        return f"{self.protocol}-{self.source}-{self.destination}"


@dataclass(frozen=True, slots=True)
class Case:
    """What the first site's end and the second's are limited to, and what that lets in and out."""

    first: str
    second: str
    carried: tuple[Packet, ...]
    left: tuple[Packet, ...]
    version: int = 4

    def __str__(self) -> str:
        return f"{self.first}-{self.second}-ipv{self.version}"


CASES = (
    Case(
        "udp",
        "udp/7000-7010",
        carried=(Packet(UDP, 9, 7000), Packet(UDP, 9, 7007), Packet(UDP, 9, 7010)),
        left=(Packet(UDP, 9, 6999), Packet(UDP, 9, 7011), Packet(TCP, 9, 7000)),
    ),
    Case(
        "udp/53",
        "udp",
        carried=(Packet(UDP, 53, 1), Packet(UDP, 53, 65535)),
        left=(Packet(UDP, 54, 53), Packet(ICMP, 8, 0)),
    ),
    Case(
        "tcp",
        "tcp/443",
        carried=(Packet(TCP, 1234, 443),),
        left=(Packet(TCP, 443, 1234), Packet(UDP, 1234, 443)),
    ),
    Case(
        "icmp/8",
        "icmp/8",
        carried=(Packet(ICMP, 8, 0), Packet(ICMP, 8, 7)),
        left=(Packet(ICMP, 13, 0), Packet(UDP, 8, 0)),
    ),
    Case(
        "icmp/3.1-5.2",
        "icmp",
        carried=(
            *(Packet(ICMP, 3, 1), Packet(ICMP, 3, 255), Packet(ICMP, 4, 0), Packet(ICMP, 5, 2)),
        ),
        left=(Packet(ICMP, 3, 0), Packet(ICMP, 5, 3), Packet(ICMP, 8, 0)),
    ),
    Case(
        "any",
        "132",
        carried=(Packet(132, 5, 6),),
        left=(Packet(UDP, 5, 6), Packet(ICMP, 8, 0)),
    ),
    Case(
        "udp",
        "udp/7000-7010",
        carried=(Packet(UDP, 9, 7000),),
        left=(Packet(UDP, 9, 7011),),
        version=6,
    ),
    Case(
        "icmpv6/128",
        "icmpv6",
        carried=(Packet(ICMPV6, 128, 0),),
        left=(Packet(ICMPV6, 1, 0), Packet(UDP, 128, 0)),
        version=6,
    ),
)


class SelectorContract(CleanSites):
    """Two gateways, and packets of every kind from the first to the second."""

    @pytest.mark.parametrize("case", CASES, ids=map(str, CASES))
    def test_an_sa_carries_what_the_selectors_say_and_nothing_else(
        self, sites: tuple[Site, Site], spi_bits: int, case: Case
    ) -> None:
        capabilities = sites[0].datapath.probe()
        pair = _install(sites, case, spi_bits, capabilities)
        for packet in case.carried:
            before = _counts(sites, pair)
            _send(sites[0], packet, case.version)
            _await_counts(sites, pair, (before[0] + 1, before[1] + 1), packet)
        before = _counts(sites, pair)
        for packet in case.left:
            _send(sites[0], packet, case.version)
        time.sleep(_SETTLED_SECONDS)
        assert _counts(sites, pair) == before


def _install(
    sites: tuple[Site, Site], case: Case, spi_bits: int, capabilities: Capabilities
) -> SaPair:
    pair = make_pair(GCM, spi_bits=spi_bits, encapsulated=not capabilities.raw_esp)
    selectors = [
        TrafficSelector.parse(f"{inner_address(case.version, end)}[{service}]")
        for end, service in enumerate((case.first, case.second))
    ]
    for site in sites:
        us, them = site.end, 1 - site.end
        pair.add_to(site)
        outer = OUTER[4]
        for entry in protect_entries(
            local=[selectors[us]],
            remote=[selectors[them]],
            outbound=Template(source=outer[us], destination=outer[them], reqid=REQID),
            inbound=Template(source=outer[them], destination=outer[us], reqid=REQID),
        ):
            site.datapath.add_policy(entry)
    return pair


def _counts(sites: tuple[Site, Site], pair: SaPair) -> tuple[int, int]:
    first, second = (site.datapath.usage(pair.forth.id).packets for site in sites)
    return first, second


def _await_counts(
    sites: tuple[Site, Site], pair: SaPair, wanted: tuple[int, int], packet: Packet
) -> None:
    deadline = time.monotonic() + 10
    while (found := _counts(sites, pair)) != wanted:
        assert time.monotonic() < deadline, f"{packet}: {found}, not {wanted}"
        time.sleep(0.02)


def _send(site: Site, packet: Packet, version: int) -> None:
    """As an application does: of what a raw socket sends the kernel's policies see no ports."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    kind = _KINDS.get(packet.protocol, socket.SOCK_RAW)
    ports = (packet.source, packet.destination) if packet.protocol in _KINDS else (0, 0)
    us, them = (str(inner_address(version, end)) for end in (site.end, 1 - site.end))
    with inside(site.namespace):
        sender = socket.socket(family, kind, packet.protocol)
    with closing(sender), suppress(OSError):  # What meets no policy may find no way either.
        sender.setblocking(False)
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sender.bind((us, ports[0]))
        if packet.protocol == TCP:
            sender.connect((them, ports[1]))
        else:
            sender.sendto(_body(packet), (them, ports[1]))


def _body(packet: Packet) -> bytes:
    """Nobody need understand more of it."""
    if packet.protocol in (ICMP, ICMPV6):
        return struct.pack(">BBHI", packet.source, packet.destination, 0, 0) + bytes(12)
    return struct.pack(">HHII", packet.source, packet.destination, 0, 0)
