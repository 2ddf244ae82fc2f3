"""What selectors of one shape have in common: a rule of nf_tables that looks packets up in a map.

A shape is the lengths of the prefixes, and which of protocol and ports matter. Its rule cuts a
packet's fields to that and looks them up, so one selector more is one element more, whatever their
number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_network

from xfrmpy.datapath import nftables
from xfrmpy.datapath.nftables import Field
from xfrmpy.ipsec.addresses import IpNetwork
from xfrmpy.ipsec.selectors import ANY_PROTOCOL, ICMP_PROTOCOLS, MaskedPort, Selector

_ADDRESS_OFFSETS = {4: (12, 16), 6: (8, 24)}  # of source and destination
_ADDRESS_TYPES = {4: 7, 6: 8}  # nft's numbers of its datatypes
_PROTOCOL_TYPE, _PORT_TYPE = 12, 13
_ICMP_TYPES = {4: (14, 32), 6: (29, 33)}  # of a type, and a code


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the selectors of one map have in common, and their priority.

    Traffic within `own_side` is not judged: from it where it comes in, to it where it goes out. Of
    `fragments` it is all but the first, which have no ports.
    """

    priority: int
    is_outbound: bool
    version: int
    source_length: int
    destination_length: int
    own_side: IpNetwork | None
    has_protocol: bool
    is_icmp: bool
    source_port_mask: int
    destination_port_mask: int
    fragments: bool = False

    @property
    def name(self) -> str:
        parts = [
            f"{'out-' if self.is_outbound else ''}p{self.priority}",
            f"ip{self.version}",
            f"from-{self.source_length}",
            f"to-{self.destination_length}",
        ]
        if self.own_side is not None:
            parts.append(f"but-{self.own_side.network_address.packed.hex()}")
        if self.fragments:
            parts.append("fragments")
        if self.has_protocol:
            parts.append("icmp" if self.is_icmp else "protocol")
        which = ("type", "code") if self.is_icmp else ("sport", "dport")
        parts += [f"{w}-{bits:x}" for w, bits in zip(which, self._port_masks, strict=True) if bits]
        return "-".join(parts)

    def rule(self) -> bytes:
        """The expressions of its rule."""
        parts = [nftables.is_of_version(self.version)]
        if self.own_side is not None:
            parts += self._is_not_of(self.own_side)
        if self.fragments:
            parts.append(nftables.is_later_fragment(self.version))
        parts += [field.load for field in self.fields()]
        return b"".join([*parts, nftables.look_up(self.name)])

    def fields(self) -> list[Field]:
        """Those of its map's key, in the order of `element_of`."""
        fields: list[Field] = []
        register = nftables.FIRST_REGISTER
        for size, datatype, base, offset, cut in self._wanted():
            if base is None:
                octets = nftables.load_meta(nftables.META_L4PROTO, register)
            else:
                octets = nftables.load(base, offset, size, register)
            if not set(cut) <= {0xFF}:
                octets += nftables.mask(cut, register)
            fields.append(Field(size, datatype, octets))
            register += -(-size // 4)
        return fields

    def _wanted(self) -> Iterator[tuple[int, int, int | None, int, bytes]]:
        """Size, datatype, header, offset and mask of each field; the protocol is in no header."""
        lengths = (self.source_length, self.destination_length)
        for offset, length in zip(_ADDRESS_OFFSETS[self.version], lengths, strict=True):
            cut = _netmask(self.version, length)
            yield len(cut), _ADDRESS_TYPES[self.version], nftables.NETWORK_HEADER, offset, cut
        if self.has_protocol:
            yield 1, _PROTOCOL_TYPE, None, 0, b"\xff"
        size = _port_size(self.is_icmp)
        datatypes = _ICMP_TYPES[self.version] if self.is_icmp else (_PORT_TYPE, _PORT_TYPE)
        for position, bits in enumerate(self._port_masks):
            if bits:
                where = (nftables.TRANSPORT_HEADER, position * size)
                yield size, datatypes[position], *where, bits.to_bytes(size, "big")

    @property
    def _port_masks(self) -> tuple[int, int]:
        return self.source_port_mask, self.destination_port_mask

    def _is_not_of(self, network: IpNetwork) -> Iterator[bytes]:
        cut = network.netmask.packed
        offset = _ADDRESS_OFFSETS[self.version][self.is_outbound]
        yield nftables.load(nftables.NETWORK_HEADER, offset, len(cut))
        yield nftables.mask(cut)
        yield nftables.compare(network.network_address.packed, nftables.UNEQUAL)


def shape_of(selector: Selector, priority: int = 0, *, is_outbound: bool = False) -> Shape:
    source, destination = selector.source, selector.destination
    ours, theirs = (source, destination) if is_outbound else (destination, source)
    return Shape(
        priority=priority,
        is_outbound=is_outbound,
        version=source.version,
        source_length=source.prefixlen,
        destination_length=destination.prefixlen,
        # As with our routes: what is within our own side is not the peer's to protect.
        own_side=ours if _contains(theirs, ours) else None,
        has_protocol=selector.protocol != ANY_PROTOCOL,
        is_icmp=selector.protocol in ICMP_PROTOCOLS,
        source_port_mask=_mask(selector, selector.source_port),
        destination_port_mask=_mask(selector, selector.destination_port),
    )


def of_fragments(selector: Selector, shape: Shape) -> tuple[Shape, Selector] | None:
    """What the later fragments of a selector's packets have in common, if that is not its own."""
    if not (shape.source_port_mask or shape.destination_port_mask):
        return None
    bare = replace(shape, source_port_mask=0, destination_port_mask=0, fragments=True)
    nothing = MaskedPort()
    return bare, replace(selector, source_port=nothing, destination_port=nothing)


def element_of(selector: Selector) -> bytes:
    """A selector in the map of its shape."""
    return nftables.padded_key(_values(selector))


def _values(selector: Selector) -> Iterator[bytes]:
    yield selector.source.network_address.packed
    yield selector.destination.network_address.packed
    if selector.protocol != ANY_PROTOCOL:
        yield bytes([selector.protocol])
    for port in (selector.source_port, selector.destination_port):
        if _mask(selector, port):
            yield port.value.to_bytes(_port_size(selector.protocol in ICMP_PROTOCOLS), "big")


def _mask(selector: Selector, port: MaskedPort) -> int:
    """ICMP's type and code have an octet each, where a selector has 16 bits."""
    return port.mask & (0xFF if selector.protocol in ICMP_PROTOCOLS else 0xFFFF)


def _port_size(is_icmp: bool) -> int:
    """Octets of a port, or of the ICMP type and the code that stand in the place of ports."""
    return 1 if is_icmp else 2


def _netmask(version: int, length: int) -> bytes:
    return ip_network(("0.0.0.0" if version == 4 else "::", length)).netmask.packed


def _contains(outer: IpNetwork, inner: IpNetwork) -> bool:
    return outer != inner and outer.version == inner.version and inner.subnet_of(outer)  # type: ignore[arg-type]
