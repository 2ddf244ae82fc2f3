"""Traffic selectors on the wire (RFC 7296 section 3.13)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from struct import Struct

from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.registry import TrafficSelectorType
from xfrmpy.wire.cursor import Cursor, pack

_COUNT = Struct(">B3x")
_SELECTOR = Struct(">BBH")  # type, IP protocol, length
_PORTS = Struct(">HH")
_ADDRESSES: dict[int, tuple[type[IPv4Address | IPv6Address], int]] = {
    TrafficSelectorType.TS_IPV4_ADDR_RANGE: (IPv4Address, 4),
    TrafficSelectorType.TS_IPV6_ADDR_RANGE: (IPv6Address, 16),
}
_TYPES_BY_VERSION = {
    4: TrafficSelectorType.TS_IPV4_ADDR_RANGE,
    6: TrafficSelectorType.TS_IPV6_ADDR_RANGE,
}


def encode_selectors(selectors: tuple[TrafficSelector, ...]) -> bytes:
    """The body of a TS payload. Raises `ValueError` for more than 255 selectors."""
    return pack(_COUNT, len(selectors)) + b"".join(map(_encode_selector, selectors))


def _encode_selector(selector: TrafficSelector) -> bytes:
    body = (
        pack(_PORTS, selector.start_port, selector.end_port)
        + selector.start_address.packed
        + selector.end_address.packed
    )
    kind = _TYPES_BY_VERSION[selector.start_address.version]
    return pack(_SELECTOR, kind, selector.protocol, _SELECTOR.size + len(body)) + body


def decode_selectors_untrusted(cursor: Cursor) -> tuple[tuple[TrafficSelector, ...], int]:
    """The selectors of a TS payload's body, and how many more are of types that we do not know."""
    (count,) = cursor.unpack(_COUNT)
    selectors: list[TrafficSelector] = []
    for _ in range(count):
        kind, protocol, length = cursor.unpack(_SELECTOR)
        with cursor.nested(length - _SELECTOR.size, "traffic selector"):
            if kind in _ADDRESSES:
                selectors.append(_decode_range(cursor, protocol, *_ADDRESSES[kind]))
            else:
                cursor.rest()
    return tuple(selectors), count - len(selectors)


def _decode_range(
    cursor: Cursor, protocol: int, address: type[IPv4Address | IPv6Address], size: int
) -> TrafficSelector:
    start_port, end_port = cursor.unpack(_PORTS)
    return TrafficSelector(
        protocol=protocol,
        start_port=start_port,
        end_port=end_port,
        start_address=address(cursor.take(size)),
        end_address=address(cursor.take(size)),
    )
