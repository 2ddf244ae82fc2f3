"""Which policy a packet meets, against the slow and obvious: every range compared for itself."""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st

from xfrmpy.datapath.userspace.forwarding import Forwarder, Refused, Waits
from xfrmpy.esp.ip import parse_inner_header
from xfrmpy.ipsec.selectors import (
    ANY_PROTOCOL,
    ICMP_PROTOCOLS,
    MAX_PORT,
    TrafficSelector,
    selectors_between,
)
from xfrmpy.ipsec.spd import PolicyDirection, SpdEntry, Template, selector_priority

TCP, UDP, ICMP, GRE = 6, 17, 1, 47
PORTS = st.sampled_from([0, 1, 7, 8, 255, 256, 2047, 2048, 2049, 65534, MAX_PORT])


@dataclass(frozen=True)
class Sent:
    """A packet; of ICMP the ports are a type and a code."""

    protocol: int
    source: int
    destination: int
    ports: tuple[int, int]

    def octets(self) -> bytes:
        shape = ">BB2x4x" if self.protocol in ICMP_PROTOCOLS else ">HH4x"
        body = struct.pack(shape, *self.ports)
        addresses = struct.pack(">II", self.source, self.destination)
        start = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, self.protocol, 0)
        return start + addresses + body


@st.composite
def traffic(draw: st.DrawFn, base: int) -> TrafficSelector:
    first, last = sorted(draw(st.tuples(st.integers(0, 8), st.integers(0, 8))))
    low, high = sorted(draw(st.tuples(PORTS, PORTS)))
    protocol = draw(st.sampled_from([ANY_PROTOCOL, TCP, UDP, ICMP]))
    if protocol == ANY_PROTOCOL or draw(st.booleans()):
        low, high = 0, MAX_PORT
    return TrafficSelector(
        protocol=protocol,
        start_port=low,
        end_port=high,
        start_address=ip_address(base + first),
        end_address=ip_address(base + last),
    )


@st.composite
def packets(draw: st.DrawFn) -> Sent:
    protocol = draw(st.sampled_from([TCP, UDP, ICMP, GRE]))
    most = 255 if protocol == ICMP else MAX_PORT
    port = PORTS.map(lambda value: min(value, most))
    return Sent(
        protocol=protocol,
        source=OURS + draw(st.integers(0, 9)),
        destination=THEIRS + draw(st.integers(0, 9)),
        ports=(draw(port), draw(port)),
    )


OURS, THEIRS = 0x0A010000, 0x0A020000
PAIRS = st.tuples(traffic(OURS), traffic(THEIRS))


def is_meant(local: TrafficSelector, remote: TrafficSelector, packet: Sent) -> bool:
    """By RFC 4301 section 4.4.1.1, an end at a time."""
    kind = packet.ports[0] << 8 | packet.ports[1]
    ports = (kind, kind) if packet.protocol == ICMP else packet.ports
    has_ports = packet.protocol in (TCP, UDP, ICMP)
    for end, address, port in (
        (local, packet.source, ports[0]),
        (remote, packet.destination, ports[1]),
    ):
        if not int(end.start_address) <= address <= int(end.end_address):
            return False
        if end.protocol not in (ANY_PROTOCOL, packet.protocol):
            return False
        if not end.has_all_ports and not (has_ports and end.start_port <= port <= end.end_port):
            return False
    return True


@given(PAIRS, packets())
@settings(max_examples=300)
def test_a_packet_matches_the_spds_selectors_if_it_is_in_every_range(
    pair: tuple[TrafficSelector, TrafficSelector], packet: Sent
) -> None:
    header = parse_inner_header(packet.octets())
    found = [s for s in selectors_between([pair[0]], [pair[1]]) if header.matches(s)]
    assert bool(found) == is_meant(*pair, packet)


@given(st.lists(PAIRS, min_size=1, max_size=6), packets())
@settings(max_examples=150)
def test_the_policy_that_a_packet_meets_is_the_first_of_those_that_mean_it(
    pairs: list[tuple[TrafficSelector, TrafficSelector]], packet: Sent
) -> None:
    forwarder = Forwarder(secrets.token_bytes)
    entries: dict[object, SpdEntry] = {}
    for reqid, (local, remote) in enumerate(pairs, 1):
        for selector in selectors_between([local], [remote]):
            template = Template(
                source=ip_address("192.0.2.1"), destination=ip_address("192.0.2.2"), reqid=reqid
            )
            entry = SpdEntry(
                direction=PolicyDirection.OUT,
                selector=selector,
                priority=selector_priority(selector),
                template=template,
            )
            entries[selector] = entry
            forwarder.add_policy(entry)
    header = parse_inner_header(packet.octets())
    meant = [entry for entry in entries.values() if header.matches(entry.selector)]
    try:
        forwarder.protect(packet.octets(), 0.0)
    except Waits:
        (acquire,) = forwarder.events
        first = min(entry.priority for entry in meant)
        of_first = {e.template.reqid for e in meant if e.priority == first and e.template}
        assert acquire.reqid in of_first
    except Refused:
        assert not any(is_meant(*pair, packet) for pair in pairs)
    assert bool(meant) == any(is_meant(*pair, packet) for pair in pairs)
