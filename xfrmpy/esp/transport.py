"""Packets in transport mode: what ESP takes of them, and how they are put together again.

Read RFC 4303 section 3.1.1 first: ESP stands behind the IP header, and what is protected is a whole
datagram, never a fragment of one. The header itself is made by whoever sends, and of what arrives
little is left but the addresses; RFC 3948 section 3.1.2 says what that means for checksums.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from xfrmpy.esp.checksum import checksum_of, pseudo_header
from xfrmpy.ipsec.addresses import IpAddress

_IPV4 = Struct(">BBHHHBBH4s4s")
_IPV6 = Struct(">IHBB16s16s")
_IPV4_WITHOUT_OPTIONS = 0x45
_IPV4_FRAGMENT = 0x3FFF  # more of them, or not the first
_BEFORE_ESP = frozenset({0, 43, 44})  # RFC 4303 section 3.1.1: hop-by-hop, routing, fragment
_TCP, _UDP = 6, 17
_CHECKSUM_AT = {_TCP: 16, _UDP: 6}


class NotCarried(Exception):
    """Transport mode does not carry this: a fragment, or what a header has beside its fields."""


@dataclass(frozen=True, slots=True)
class Fields:
    """What an IP header says beside addresses and sizes: traffic class and hop limit (or TTL)."""

    traffic_class: int = 0
    hops: int = 64


def fields_of(packet: bytes) -> Fields:
    """Of a packet of either family."""
    return Fields(traffic_class_of(packet), packet[8 if packet[0] >> 4 == 4 else 7])


def traffic_class_of(packet: bytes) -> int:
    """Of a packet of either family."""
    if packet[0] >> 4 == 4:
        return packet[1]
    return (packet[0] << 4 | packet[1] >> 4) & 0xFF


def payload_of(packet: bytes) -> tuple[int, bytes]:
    """The protocol and what is behind the IP header. Raises `NotCarried`."""
    if packet[0] >> 4 == 4:
        if packet[0] != _IPV4_WITHOUT_OPTIONS or _is_fragment(packet):
            raise NotCarried
        return packet[9], packet[_IPV4.size :]
    if packet[6] in _BEFORE_ESP:
        raise NotCarried
    return packet[6], packet[_IPV6.size :]


def _is_fragment(packet: bytes) -> bool:
    return bool((packet[6] << 8 | packet[7]) & _IPV4_FRAGMENT)


def with_header(
    source: IpAddress, destination: IpAddress, protocol: int, payload: bytes, fields: Fields
) -> bytes:
    """The packet that a host is to take as if it had come in clear."""
    if source.version == 6:
        first = 6 << 28 | fields.traffic_class << 20
        ends = source.packed, destination.packed
        return _IPV6.pack(first, len(payload), protocol, fields.hops, *ends) + payload
    start = _IPV4_WITHOUT_OPTIONS, fields.traffic_class, _IPV4.size + len(payload), 0, 0
    rest = fields.hops, protocol
    ends = source.packed, destination.packed
    checksum = checksum_of(_IPV4.pack(*start, *rest, 0, *ends))
    return _IPV4.pack(*start, *rest, checksum, *ends) + payload


def with_checksum(
    source: IpAddress, destination: IpAddress, protocol: int, payload: bytes
) -> bytes:
    """The payload with the checksum that these addresses give, where a NAT has changed them.

    RFC 3948 section 3.1.2, the second way: "If the protocol header after the ESP header is a
    TCP/UDP header, recompute the checksum field in the TCP/UDP header." ESP vouches for the octets.
    """
    at = _CHECKSUM_AT.get(protocol)
    if at is None or len(payload) < at + 2:
        return payload
    if protocol == _UDP and payload[at : at + 2] == bytes(2):  # RFC 768: there is none.
        return payload
    blank = payload[:at] + bytes(2) + payload[at + 2 :]
    pseudo = pseudo_header(source.packed, destination.packed, protocol, len(payload))
    checksum = checksum_of(pseudo + blank)
    if protocol == _UDP:
        checksum = checksum or 0xFFFF
    return payload[:at] + checksum.to_bytes(2, "big") + payload[at + 2 :]
