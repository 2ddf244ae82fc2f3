"""Netlink messages, octets and back, by the tables of a family.

A family says which structure a type carries and which attributes follow; a message or attribute
without a row survives as octets. What fails to decode raises `UnreadableMessage`; nothing here
knows what a message means. <linux/netlink.h> has the layout of an attribute.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from xfrmpy.datapath.netlink.layout import Layout, UnreadableMessage

Values: TypeAlias = dict[str, Any]
"""One structure's fields by their C names; nested ones prefixed (`id_spi`)."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Octets behind a structure: their name, and how many there are by the structure's values."""

    name: str
    size: Callable[[Values], int]


@dataclass(frozen=True, slots=True)
class Shape:
    """What an attribute holds: a structure, perhaps with a tail, or as many of it as fit."""

    layout: Layout
    tail: Tail | None = None
    repeated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message decoded.

    `attributes` has the values of a structure, a tuple of them for a repeated one, or octets for
    an attribute without a row. A message without a row has its octets in `octets` and no more. What
    is sent may have octets in the place of any values, too. Keys are among the values, so that none
    of it is shown.
    """

    type: int
    body: Values = field(default_factory=dict, repr=False)
    attributes: dict[int, Any] = field(default_factory=dict, repr=False)
    octets: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A netlink family: its number, what the kernel does by it, and what its types carry."""

    number: int
    name: str
    bodies: Mapping[int, Layout]
    attributes: Mapping[int, Shape] = field(default_factory=dict)

    def encode(self, message: Message) -> bytes:
        """The octets behind the netlink header."""
        body = message.octets or self._encode_body(message)
        parts = [body, bytes(-len(body) % _ALIGNMENT)]
        for number, value in message.attributes.items():
            data = value if isinstance(value, bytes) else self._encode(number, value)
            _append_attribute(parts, number, data)
        return b"".join(parts)

    def decode(self, kind: int, data: bytes) -> Message:
        """Read the octets behind the netlink header. Raises `UnreadableMessage`."""
        layout = self.bodies.get(kind)
        if layout is None:
            return Message(type=kind, octets=data)
        behind = layout.size + -layout.size % _ALIGNMENT
        attributes: dict[int, Any] = {**split_attributes(data, behind)}
        for number in attributes.keys() & self.attributes.keys():
            attributes[number] = self._decode(number, attributes[number])
        return Message(type=kind, body=layout.unpack(data), attributes=attributes)

    def _encode_body(self, message: Message) -> bytes:
        layout = self.bodies.get(message.type)
        return b"" if layout is None else layout.pack(message.body)

    def _encode(self, number: int, value: Any) -> bytes:
        shape = self.attributes[number]
        if shape.repeated:
            return b"".join(map(shape.layout.pack, value))
        if shape.tail is None:
            return shape.layout.pack(value)
        head = {name: item for name, item in value.items() if name != shape.tail.name}
        return shape.layout.pack(head) + bytes(value[shape.tail.name])

    def _decode(self, number: int, data: bytes) -> Any:
        shape = self.attributes[number]
        size = shape.layout.size
        if shape.repeated:
            if len(data) % size:
                raise UnreadableMessage(f"the kernel sent attribute {number} cut short")
            return tuple(shape.layout.unpack(data, start) for start in range(0, len(data), size))
        values = shape.layout.unpack(data)
        if shape.tail is not None:
            end = size + shape.tail.size(values)
            if len(data) < end:
                raise UnreadableMessage(f"the kernel sent attribute {number} cut short")
            values[shape.tail.name] = data[size:end]
        return values


def encode_attributes(attributes: Mapping[int, bytes]) -> bytes:
    """Attributes one after another, each begun at a multiple of four octets."""
    parts: list[bytes] = []
    for number, data in attributes.items():
        _append_attribute(parts, number, data)
    return b"".join(parts)


def _append_attribute(parts: list[bytes], number: int, data: bytes) -> None:
    parts.append(_ATTRIBUTE_HEADER.pack(_HEADER_SIZE + len(data), number))
    parts.append(data)
    if len(data) % _ALIGNMENT:
        parts.append(bytes(-len(data) % _ALIGNMENT))


def split_attributes(data: bytes, offset: int = 0) -> Mapping[int, bytes]:
    """Netlink attributes by number, the last of each. Raises `UnreadableMessage`."""
    found: dict[int, bytes] = {}
    end = len(data)
    while offset < end:
        left = end - offset
        if left < _HEADER_SIZE:
            raise UnreadableMessage("the kernel sent an attribute that is cut in its header")
        size, number = _ATTRIBUTE_HEADER.unpack_from(data, offset)
        if not _HEADER_SIZE <= size <= left:
            raise UnreadableMessage(f"the kernel sent attribute {number} with a length of {size}")
        found[number & _TYPE_MASK] = data[offset + _HEADER_SIZE : offset + size]
        offset += size + -size % _ALIGNMENT
    return found


def decode_number(octets: bytes) -> int:
    """An attribute that is one 32-bit number."""
    number: int = NUMBER.unpack(octets)[0]
    return number


NUMBER = struct.Struct("=I")
_ATTRIBUTE_HEADER = struct.Struct("=HH")  # struct nlattr: length with the header, type
_HEADER_SIZE = _ATTRIBUTE_HEADER.size
_ALIGNMENT = 4
_TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK: without "nested" and "network order"
