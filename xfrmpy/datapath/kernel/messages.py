"""NETLINK_XFRM messages: which structure a type carries, which attributes follow, octets and back.

Tables only; a message or attribute without a row survives as octets. The numbers are those of
<linux/xfrm.h>. What fails to decode raises `UnreadableMessage`; nothing here knows SAs or sockets.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, TypeAlias

from xfrmpy.datapath.kernel import structs
from xfrmpy.datapath.kernel.structs import Layout, UnreadableMessage

Values: TypeAlias = dict[str, Any]
"""One structure's fields by their C names; nested ones prefixed (`id_spi`)."""


class MessageType(IntEnum):
    """XFRM_MSG_*, those that we send or read."""

    NEWSA = 0x10
    DELSA = 0x11
    GETSA = 0x12
    NEWPOLICY = 0x13
    DELPOLICY = 0x14
    GETPOLICY = 0x15
    ALLOCSPI = 0x16
    ACQUIRE = 0x17
    EXPIRE = 0x18
    UPDPOLICY = 0x19
    UPDSA = 0x1A
    MAPPING = 0x26


class Attribute(IntEnum):
    """XFRMA_*, those that we send or read."""

    ALG_CRYPT = 2
    ENCAP = 4
    TMPL = 5
    SA = 6
    LTIME_VAL = 9
    LASTUSED = 15
    ALG_AEAD = 18
    ALG_AUTH_TRUNC = 20
    REPLAY_ESN_VAL = 23
    SET_MARK = 29


class Group(IntEnum):
    """XFRMNLGRP_*, those that we listen to."""

    ACQUIRE = 1
    EXPIRE = 2
    SA = 3
    MAPPING = 8


BODIES: dict[int, Layout] = {
    MessageType.NEWSA: structs.USERSA_INFO,
    MessageType.DELSA: structs.USERSA_ID,
    MessageType.GETSA: structs.USERSA_ID,
    MessageType.NEWPOLICY: structs.USERPOLICY_INFO,
    MessageType.DELPOLICY: structs.USERPOLICY_ID,
    MessageType.GETPOLICY: structs.USERPOLICY_ID,
    MessageType.ALLOCSPI: structs.USERSPI_INFO,
    MessageType.ACQUIRE: structs.USER_ACQUIRE,
    MessageType.EXPIRE: structs.USER_EXPIRE,
    MessageType.UPDPOLICY: structs.USERPOLICY_INFO,
    MessageType.UPDSA: structs.USERSA_INFO,
    MessageType.MAPPING: structs.USER_MAPPING,
}


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


_KEY = Tail("alg_key", lambda values: (values["alg_key_len"] + 7) // 8)
_BITMAP = Tail("bmp", lambda values: values["bmp_len"] * 4)

ATTRIBUTES: dict[int, Shape] = {
    Attribute.ALG_CRYPT: Shape(structs.ALGO, _KEY),
    Attribute.ENCAP: Shape(structs.ENCAP_TMPL),
    Attribute.TMPL: Shape(structs.USER_TMPL, repeated=True),
    Attribute.SA: Shape(structs.USERSA_INFO),
    Attribute.LTIME_VAL: Shape(structs.LIFETIME_CUR),
    Attribute.LASTUSED: Shape(structs.U64),
    Attribute.ALG_AEAD: Shape(structs.ALGO_AEAD, _KEY),
    Attribute.ALG_AUTH_TRUNC: Shape(structs.ALGO_AUTH, _KEY),
    Attribute.REPLAY_ESN_VAL: Shape(structs.REPLAY_STATE_ESN, _BITMAP),
    Attribute.SET_MARK: Shape(structs.U32),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message decoded.

    `attributes` has the values of a structure, a tuple of them for a repeated one, or octets for
    an attribute without a row. A message without a row has its octets in `unknown` and no more.
    Keys are among the values, so that none of it is shown.
    """

    type: int
    body: Values = field(default_factory=dict, repr=False)
    attributes: dict[int, Any] = field(default_factory=dict, repr=False)
    unknown: bytes = field(default=b"", repr=False)


def encode_message(message: Message) -> bytes:
    """The octets behind the netlink header."""
    layout = BODIES.get(message.type)
    parts = [message.unknown if layout is None else layout.pack(message.body)]
    for number, value in message.attributes.items():
        data = _encode_attribute(number, value)
        parts.append(_ATTRIBUTE_HEADER.pack(_ATTRIBUTE_HEADER.size + len(data), number))
        parts.append(data + bytes(-len(data) % _ALIGNMENT))
    return b"".join(parts)


def decode_message(kind: int, data: bytes) -> Message:
    """Read the octets behind the netlink header. Raises `UnreadableMessage`."""
    layout = BODIES.get(kind)
    if layout is None:
        return Message(type=kind, unknown=data)
    return Message(
        type=kind,
        body=layout.unpack(data),
        attributes={
            number: _decode_attribute(number, value)
            for number, value in split_attributes(data[layout.size :]).items()
        },
    )


def split_attributes(data: bytes) -> Mapping[int, bytes]:
    """Netlink attributes by number, the last of each. Raises `UnreadableMessage`."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset < len(data):
        if len(data) - offset < _ATTRIBUTE_HEADER.size:
            raise UnreadableMessage("the kernel sent an attribute that is cut in its header")
        size, number = _ATTRIBUTE_HEADER.unpack_from(data, offset)
        if not _ATTRIBUTE_HEADER.size <= size <= len(data) - offset:
            raise UnreadableMessage(f"the kernel sent attribute {number} with a length of {size}")
        found[number & _TYPE_MASK] = data[offset + _ATTRIBUTE_HEADER.size : offset + size]
        offset += size + -size % _ALIGNMENT
    return found


_ATTRIBUTE_HEADER = struct.Struct("=HH")  # struct nlattr: length with the header, type
_ALIGNMENT = 4
_TYPE_MASK = 0x3FFF  # NLA_TYPE_MASK: without "nested" and "network order"


def _encode_attribute(number: int, value: Any) -> bytes:
    shape = ATTRIBUTES.get(number)
    if shape is None:
        return bytes(value)
    if shape.repeated:
        return b"".join(shape.layout.pack(one) for one in value)
    if shape.tail is None:
        return shape.layout.pack(value)
    head = {name: item for name, item in value.items() if name != shape.tail.name}
    return shape.layout.pack(head) + bytes(value[shape.tail.name])


def _decode_attribute(number: int, data: bytes) -> Any:
    shape = ATTRIBUTES.get(number)
    if shape is None:
        return data
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
