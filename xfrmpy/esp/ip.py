"""The header of an inner packet, as far as an SPD looks at it (RFC 4301 section 4.4.1.1)."""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from struct import error as StructError  # noqa: N812 (a class with a function's name)

from xfrmpy.ipsec.addresses import IpNetwork
from xfrmpy.ipsec.selectors import MaskedPort, Selector

IPV4, IPV6 = 4, 6

_IPV4_HEADER = Struct(">BxHxxHxBxx4s4s")  # version+ihl, length, fragment, protocol, addresses
_IPV6_HEADER = Struct(">B3xHBx16s16s")  # version, payload length, next header, addresses
_PORTS = Struct(">HH")
_TWO_OCTETS = Struct(">BB")
_FRAGMENT = Struct(">BxH")

_FRAGMENT_OFFSET = 0x1FFF
_OPTIONS = frozenset({0, 43, 60})  # hop-by-hop, routing, destination options
_FRAGMENT_HEADER = 44
_ICMP = frozenset({1, 58})
_WITH_PORTS = frozenset({6, 17, 33, 132, 136})  # TCP, UDP, DCCP, SCTP, UDP-Lite

_FLOWS = {6: 4, 17: 4, 1: 2, 58: 2}
"""Octets behind the IP header that an SPD looks at: ports, or the type and code of ICMP."""
_LEAST_FLOW, _LEAST_FLOW_IPV6 = 28, 48
_WITHOUT_OPTIONS = 0x45

MAX_EXTENSIONS = 16
"""RFC 8200 gives an order in which each occurs once or twice; more is an attack on our patience."""


class NotIp(Exception):
    """The octets are no whole IP packet."""


@dataclass(frozen=True, slots=True)
class InnerHeader:
    """Addresses as integers. Ports are None where there are none, or none to be had (fragments).

    `length` is the packet's own idea of its size; octets beyond it are padding (RFC 4303 2.7).
    """

    version: int
    source: int
    destination: int
    protocol: int
    source_port: int | None
    destination_port: int | None
    length: int

    def matches(self, selector: Selector) -> bool:
        """Whether the SPD entry of a selector is for this packet."""
        return (
            _within(self.version, self.source, selector.source)
            and _within(self.version, self.destination, selector.destination)
            and selector.protocol in (0, self.protocol)
            and _port_matches(self.source_port, selector.source_port)
            and _port_matches(self.destination_port, selector.destination_port)
        )


def parse_inner_header(packet: bytes) -> InnerHeader:
    """Read a packet that starts with its IP header. Raises `NotIp`."""
    try:
        version = packet[0] >> 4
        if version == IPV4:
            header = _parse_ipv4(packet)
        elif version == IPV6:
            header = _parse_ipv6(packet)
        else:
            raise NotIp
    except (StructError, IndexError) as error:
        raise NotIp from error
    if header.length > len(packet):
        raise NotIp
    return header


def flow_of(packet: bytes, *, is_whole: bool = True) -> bytes | None:
    """What an SPD looks at in the packets of one flow: protocol, addresses, and ports or ICMP type.

    None for a packet that must be parsed, as it has options, is a fragment or something else, or
    is not as long as it says; that last is not looked at if only its headers are there.
    """
    if len(packet) < _LEAST_FLOW:
        return None
    if packet[0] == _WITHOUT_OPTIONS:
        size, protocol = packet[2] << 8 | packet[3], packet[9]
        if packet[6] & 0x3F or packet[7]:  # More fragments, or not the first.
            return None
        kind, start, end = packet[9:10], 12, 20
    elif packet[0] >> 4 == IPV6 and len(packet) >= _LEAST_FLOW_IPV6:
        size, protocol = _IPV6_HEADER.size + (packet[4] << 8 | packet[5]), packet[6]
        kind, start, end = packet[6:7], 8, 40
    else:
        return None
    if protocol not in _FLOWS or (is_whole and size != len(packet)):
        return None
    return kind + packet[start : end + _FLOWS[protocol]]


def begins_at(packet: bytes | memoryview, start: int, protocol: int) -> bool:
    """Whether a header of that protocol is the first behind those of IP, and begins there, in a
    packet of IPv4 or IPv6 that is longer than `start`, and no fragment."""
    if packet[0] >> 4 == IPV4:
        is_fragment = packet[6] & 0x3F or packet[7]
        return packet[9] == protocol and (packet[0] & 0xF) * 4 == start and not is_fragment
    following, at = packet[6], _IPV6_HEADER.size
    while following in _OPTIONS and at + 1 < start:
        following, at = packet[at], at + (packet[at + 1] + 1) * 8
    return following == protocol and at == start


def _parse_ipv4(packet: bytes) -> InnerHeader:
    first, length, fragment, protocol, source, destination = _IPV4_HEADER.unpack_from(packet)
    size = (first & 0xF) * 4
    if size < 20 or length < size:
        raise NotIp
    has_ports = not fragment & _FRAGMENT_OFFSET
    return _header(IPV4, packet, source, destination, protocol, size if has_ports else None, length)


def _parse_ipv6(packet: bytes) -> InnerHeader:
    _, payload, following, source, destination = _IPV6_HEADER.unpack_from(packet)
    length = _IPV6_HEADER.size + payload
    protocol, offset = _skip_extensions(packet[:length], following)
    return _header(IPV6, packet, source, destination, protocol, offset, length)


def _skip_extensions(packet: bytes, following: int) -> tuple[int, int | None]:
    """The protocol behind the extension headers, and where it begins, if in this fragment."""
    offset = _IPV6_HEADER.size
    for _ in range(MAX_EXTENSIONS):
        if following in _OPTIONS:
            following, size = _TWO_OCTETS.unpack_from(packet, offset)
            offset += (size + 1) * 8
        elif following == _FRAGMENT_HEADER:
            following, fragment = _FRAGMENT.unpack_from(packet, offset)
            offset += 8
            if fragment >> 3:
                return following, None
        elif offset > len(packet):
            break
        else:
            return following, offset
    raise NotIp


def _header(
    version: int,
    packet: bytes,
    source: bytes,
    destination: bytes,
    protocol: int,
    offset: int | None,
    length: int,
) -> InnerHeader:
    ports: tuple[int | None, int | None] = (None, None)
    if offset is not None and offset + 4 <= length:
        if protocol in _WITH_PORTS:
            ports = _PORTS.unpack_from(packet, offset)
        elif protocol in _ICMP:
            ports = _TWO_OCTETS.unpack_from(packet, offset)
    return InnerHeader(
        version=version,
        source=int.from_bytes(source, "big"),
        destination=int.from_bytes(destination, "big"),
        protocol=protocol,
        source_port=ports[0],
        destination_port=ports[1],
        length=length,
    )


def _within(version: int, address: int, network: IpNetwork) -> bool:
    if network.version != version:
        return False
    return address & int(network.netmask) == int(network.network_address)


def _port_matches(port: int | None, wanted: MaskedPort) -> bool:
    """A packet whose port is not to be had matches only an entry that wants none in particular."""
    return wanted.mask == 0 or (port is not None and wanted.matches(port))
