"""Traffic selectors: what may pass an SA, as IKE negotiates it and as an SPD applies it.

IKE's `TrafficSelector` is a range of addresses and ports (RFC 7296 section 3.13.1); a `Selector`
of an SPD entry is a pair of prefixes and of masked ports, because that is what kernels match.
Read RFC 7296 section 2.9 (narrowing) and RFC 4301 section 4.4.1.1 first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_address, ip_network, summarize_address_range
from itertools import product

from xfrmpy.ipsec.addresses import IpAddress, IpNetwork

ANY_PROTOCOL = 0
MAX_PORT = 0xFFFF
PROTOCOLS_WITH_PORTS = frozenset({6, 17, 33, 132, 136})  # TCP, UDP, DCCP, SCTP, UDP-Lite
ICMP_PROTOCOLS = frozenset({1, 58})
MAX_ICMP = 0xFF
"""The largest type, and code. A selector has them in the place of ports (RFC 7296 section 3.13.1):
the type in the most significant eight bits, the code in the least."""
PROTOCOL_NAMES = {"icmp": 1, "tcp": 6, "udp": 17, "gre": 47, "icmpv6": 58, "ospf": 89, "sctp": 132}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSelector:
    """A protocol, a range of ports and a range of addresses, both ends included.

    Raises `ValueError` for a reversed range or mixed address families. Ports 65535 to 0 stand for
    OPAQUE (RFC 7296 section 3.13.1): ports that are not to be had, as in a fragment.
    """

    protocol: int = ANY_PROTOCOL
    start_port: int = 0
    end_port: int = MAX_PORT
    start_address: IpAddress
    end_address: IpAddress

    def __post_init__(self) -> None:
        if self.start_address.version != self.end_address.version:
            raise ValueError("a traffic selector's addresses must be of one family")
        if int(self.start_address) > int(self.end_address):
            raise ValueError(f"reversed address range {self.start_address}-{self.end_address}")
        if self.start_port > self.end_port and not self.is_opaque:
            raise ValueError(f"reversed port range {self.start_port}-{self.end_port}")
        if not (0 <= self.protocol <= 255 and 0 <= self.start_port <= MAX_PORT):
            raise ValueError("protocol or port out of range")
        if not 0 <= self.end_port <= MAX_PORT:
            raise ValueError("port out of range")

    @classmethod
    def parse(cls, text: str) -> TrafficSelector:
        """Read a prefix or a range of addresses, with `[PROTOCOL[/PORT[-PORT]]]` behind if wanted.

        Examples: `10.1.0.0/16`, `10.1.0.1-10.1.0.9[udp]`, `2001:db8::/32[tcp/443]`.
        Raises `ValueError` with a sentence for the operator.
        """
        addresses, bracket, rest = text.partition("[")
        if bracket and not rest.endswith("]"):
            raise ValueError(f"{text!r}: the bracket is not closed")
        start, end = _parse_addresses(addresses.strip())
        protocol, ports = parse_service(rest[:-1]) if bracket else (ANY_PROTOCOL, (0, MAX_PORT))
        return cls(
            protocol=protocol,
            start_port=ports[0],
            end_port=ports[1],
            start_address=start,
            end_address=end,
        )

    @property
    def is_opaque(self) -> bool:
        return self.start_port == MAX_PORT and self.end_port == 0

    @property
    def has_all_ports(self) -> bool:
        return self.start_port == 0 and self.end_port == MAX_PORT

    def networks(self) -> tuple[IpNetwork, ...]:
        """The fewest prefixes that cover exactly the address range."""
        return tuple(summarize_address_range(self.start_address, self.end_address))

    def intersect(self, other: TrafficSelector) -> TrafficSelector | None:
        """What both allow, or None. Opaque ports meet only opaque or all ports."""
        if self.start_address.version != other.start_address.version:
            return None
        if ANY_PROTOCOL not in (self.protocol, other.protocol) and self.protocol != other.protocol:
            return None
        ports = _intersect_ports(self, other)
        start = max(self.start_address, other.start_address, key=int)
        end = min(self.end_address, other.end_address, key=int)
        if ports is None or int(start) > int(end):
            return None
        return TrafficSelector(
            protocol=self.protocol or other.protocol,
            start_port=ports[0],
            end_port=ports[1],
            start_address=start,
            end_address=end,
        )

    def has(self, address: IpAddress) -> bool:
        """Whether some packet of this address is allowed."""
        if address.version != self.start_address.version:
            return False
        return int(self.start_address) <= int(address) <= int(self.end_address)

    def covers(self, other: TrafficSelector) -> bool:
        """Whether every packet that `other` allows is allowed here too."""
        return self.intersect(other) == other

    def __str__(self) -> str:
        networks = self.networks()
        if len(networks) == 1:
            addresses = str(networks[0])
        else:
            addresses = f"{self.start_address}-{self.end_address}"
        if self.protocol == ANY_PROTOCOL and self.has_all_ports:
            return addresses
        return f"{addresses}[{format_service(self.protocol, self.start_port, self.end_port)}]"


def narrow_selectors(
    offered: Iterable[TrafficSelector], allowed: Iterable[TrafficSelector]
) -> tuple[TrafficSelector, ...]:
    """The offered selectors cut down to what is allowed; empty if nothing is left.

    RFC 7296 section 2.9. The order of the offer is kept, and a result that another result covers
    is dropped.
    """
    allowed = tuple(allowed)
    results: list[TrafficSelector] = []
    for offer in offered:
        for limit in allowed:
            common = offer.intersect(limit)
            if common is not None and not any(kept.covers(common) for kept in results):
                results = [kept for kept in results if not common.covers(kept)]
                results.append(common)
    return tuple(results)


def covered_by(selectors: Iterable[TrafficSelector], limits: Iterable[TrafficSelector]) -> bool:
    """Whether each of `selectors` lies within one of `limits`."""
    limits = tuple(limits)
    return all(any(limit.covers(selector) for limit in limits) for selector in selectors)


def meet(local: TrafficSelector, remote: TrafficSelector) -> bool:
    """Whether any packet can go between the two."""
    same_family = local.start_address.version == remote.start_address.version
    protocols = {local.protocol, remote.protocol} - {ANY_PROTOCOL}
    return same_family and len(protocols) < 2


@dataclass(frozen=True, slots=True)
class MaskedPort:
    """Ports that equal `value` in the bits of `mask`: how kernels match port ranges."""

    value: int = 0
    mask: int = 0

    def matches(self, port: int) -> bool:
        return port & self.mask == self.value

    def overlaps(self, other: MaskedPort) -> bool:
        """Whether there is a port that both match."""
        return not (self.value ^ other.value) & self.mask & other.mask


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """What one SPD entry matches: prefixes, a protocol (0: any), and masked ports.

    Of ICMP, the source port is the type and the destination port the code, as in the kernel.
    """

    source: IpNetwork
    destination: IpNetwork
    protocol: int = ANY_PROTOCOL
    source_port: MaskedPort = MaskedPort()
    destination_port: MaskedPort = MaskedPort()

    def reversed(self) -> Selector:
        """The selector of the same traffic in the other direction.

        ICMP's type and code are those of the message, whoever sends it.
        """
        ports = (self.destination_port, self.source_port)
        if self.protocol in ICMP_PROTOCOLS:
            ports = (self.source_port, self.destination_port)
        return Selector(
            source=self.destination,
            destination=self.source,
            protocol=self.protocol,
            source_port=ports[0],
            destination_port=ports[1],
        )

    def overlaps(self, other: Selector) -> bool:
        """Whether there is a packet that both match."""
        return (
            _overlap(self.source, other.source)
            and _overlap(self.destination, other.destination)
            and (ANY_PROTOCOL in (self.protocol, other.protocol) or self.protocol == other.protocol)
            and self.source_port.overlaps(other.source_port)
            and self.destination_port.overlaps(other.destination_port)
        )

    def __str__(self) -> str:
        text = f"{self.source} -> {self.destination}"
        if self.protocol:
            text += f" {_protocol_name(self.protocol)}"
        return text


def _overlap(one: IpNetwork, other: IpNetwork) -> bool:
    return one.version == other.version and one.overlaps(other)


def selectors_between(
    sources: Iterable[TrafficSelector], destinations: Iterable[TrafficSelector]
) -> tuple[Selector, ...]:
    """The SPD selectors for traffic from any of `sources` to any of `destinations`.

    Pairs of different families or of different protocols match no packet and are left out.
    """
    destinations = tuple(destinations)
    found: dict[Selector, None] = {}
    for source in sources:
        for destination in destinations:
            found.update(dict.fromkeys(_selector_pairs(source, destination)))
    return tuple(found)


def parse_service(text: str) -> tuple[int, tuple[int, int]]:
    """Read `PROTOCOL[/PORT[-PORT]]` into a protocol number and a range of ports.

    `any`, `*` and `opaque` stand in the place of ports too. Of ICMP it is `TYPE[.CODE]`, or a range
    of them. Raises `ValueError` with a sentence for the operator.
    """
    name, slash, ports = text.strip().lower().partition("/")
    if name in ("any", "*"):
        protocol = ANY_PROTOCOL
    elif name in PROTOCOL_NAMES:
        protocol = PROTOCOL_NAMES[name]
    elif name.isdecimal() and int(name) < 256:
        protocol = int(name)
    else:
        known = ", ".join(sorted(PROTOCOL_NAMES))
        raise ValueError(f"unknown protocol {name!r}; known are {known}, and numbers below 256")
    if not slash or ports in ("any", "*"):
        return protocol, (0, MAX_PORT)
    if ports == "opaque":
        return protocol, (MAX_PORT, 0)
    if protocol in ICMP_PROTOCOLS:
        return protocol, _parse_icmp(ports)
    if protocol not in PROTOCOLS_WITH_PORTS:
        raise ValueError(f"{name!r} has no ports")
    first, _, last = ports.partition("-")
    last = last or first
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) <= MAX_PORT):
        raise ValueError(f"{ports!r} is neither a port nor a range of ports")
    return protocol, (int(first), int(last))


def format_service(protocol: int, start_port: int, end_port: int) -> str:
    """The inverse of `parse_service`, which refuses some of what peers may send."""
    name = "any" if protocol == ANY_PROTOCOL else _protocol_name(protocol)
    if (start_port, end_port) == (0, MAX_PORT):
        return name
    if (start_port, end_port) == (MAX_PORT, 0):
        return f"{name}/opaque"
    if protocol in ICMP_PROTOCOLS:
        return f"{name}/{_format_icmp(start_port, end_port)}"
    return f"{name}/{start_port}" if start_port == end_port else f"{name}/{start_port}-{end_port}"


_ICMP_TEXT = re.compile(r"([0-9]{1,3})(?:\.([0-9]{1,3}))?", re.ASCII)


def _parse_icmp(text: str) -> tuple[int, int]:
    """`8`, `3.4`, `3-5` or `3.1-3.9`: the first and the last type and code, each in 16 bits."""
    first, dash, last = text.partition("-")
    ends = [_ICMP_TEXT.fullmatch(end) for end in (first, last if dash else first)]
    if None not in ends:
        (start, end) = (
            (int(found[1]), int(found[2] or default))
            for found, default in zip(ends, (0, MAX_ICMP), strict=True)
            if found is not None
        )
        if start <= end <= (MAX_ICMP, MAX_ICMP) and max(*start, *end) <= MAX_ICMP:
            return start[0] << 8 | start[1], end[0] << 8 | end[1]
    raise ValueError(f"{text!r} is neither an ICMP type, with or without a code, nor a range")


def _format_icmp(start: int, end: int) -> str:
    """The inverse of `_parse_icmp`, the shortest form."""
    has_codes = start & MAX_ICMP or end & MAX_ICMP != MAX_ICMP
    first, last = (f"{e >> 8}.{e & MAX_ICMP}" if has_codes else str(e >> 8) for e in (start, end))
    return first if first == last else f"{first}-{last}"


def _protocol_name(protocol: int) -> str:
    return next((n for n, v in PROTOCOL_NAMES.items() if v == protocol), str(protocol))


def _parse_addresses(text: str) -> tuple[IpAddress, IpAddress]:
    if "%" in text:
        raise ValueError(f"{text!r}: a traffic selector has no zone")
    first, dash, last = text.partition("-")
    if dash:
        return ip_address(first.strip()), ip_address(last.strip())
    network = ip_network(text)
    return network[0], network[-1]


def _intersect_ports(a: TrafficSelector, b: TrafficSelector) -> tuple[int, int] | None:
    if a.is_opaque or b.is_opaque:
        both = (a.is_opaque or a.has_all_ports) and (b.is_opaque or b.has_all_ports)
        return (MAX_PORT, 0) if both else None
    start, end = max(a.start_port, b.start_port), min(a.end_port, b.end_port)
    return (start, end) if start <= end else None


def _selector_pairs(source: TrafficSelector, destination: TrafficSelector) -> Iterator[Selector]:
    if source.start_address.version != destination.start_address.version:
        return
    protocols = {source.protocol, destination.protocol} - {ANY_PROTOCOL}
    if len(protocols) > 1:
        return
    protocol = protocols.pop() if protocols else ANY_PROTOCOL
    ports = tuple(_port_pairs(protocol, source, destination))
    for source_network in source.networks():
        for destination_network in destination.networks():
            for source_port, destination_port in ports:
                yield Selector(
                    source=source_network,
                    destination=destination_network,
                    protocol=protocol,
                    source_port=source_port,
                    destination_port=destination_port,
                )


def _port_pairs(
    protocol: int, source: TrafficSelector, destination: TrafficSelector
) -> Iterator[tuple[MaskedPort, MaskedPort]]:
    if protocol in ICMP_PROTOCOLS:
        common = _intersect_ports(source, destination)
        if common is not None:
            yield from _masked_icmp(*common)
        return
    for source_port in _masked_ports(source):
        for destination_port in _masked_ports(destination):
            yield source_port, destination_port


def _masked_ports(selector: TrafficSelector) -> Iterator[MaskedPort]:
    if selector.is_opaque:
        yield MaskedPort()
    else:
        yield from _masked(selector.start_port, selector.end_port, MAX_PORT)


def _masked_icmp(start: int, end: int) -> Iterator[tuple[MaskedPort, MaskedPort]]:
    """Masked types with masked codes: of whole types in the middle, of parts of those at the ends.

    Opaque ports, as of a fragment, are any.
    """
    if start > end:
        start, end = 0, MAX_PORT
    (first, first_code), (last, last_code) = divmod(start, 256), divmod(end, 256)
    if first == last:
        yield from product(
            _masked(first, first, MAX_ICMP), _masked(first_code, last_code, MAX_ICMP)
        )
        return
    if first_code:
        yield from product(_masked(first, first, MAX_ICMP), _masked(first_code, MAX_ICMP, MAX_ICMP))
        first += 1
    if last_code < MAX_ICMP:
        yield from product(_masked(last, last, MAX_ICMP), _masked(0, last_code, MAX_ICMP))
        last -= 1
    yield from product(_masked(first, last, MAX_ICMP), (MaskedPort(),))


def _masked(first: int, last: int, most: int) -> Iterator[MaskedPort]:
    """The fewest masked values that cover a range, as prefixes cover a range of addresses."""
    while first <= last:
        size = (first & -first) or most + 1
        while first + size - 1 > last:
            size //= 2
        yield MaskedPort(first, MAX_PORT + 1 - size if size <= most else 0)
        first += size
