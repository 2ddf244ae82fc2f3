"""Frozen dataclasses as plain JSON values and back, by their type hints.

For what crosses a process border: the userspace workers' control socket and the store. Octets are
written as hex, addresses and enumerations by their value. Keys are octets like any other here:
what is written with this is secret unless the caller knows better.
"""

from __future__ import annotations

import dataclasses
import operator
import types
import typing
from collections.abc import Callable
from enum import Enum
from functools import cache, lru_cache, partial, reduce
from ipaddress import ip_address, ip_network
from typing import Any, TypeVar, Union, cast

from xfrmpy.ipsec import algorithms
from xfrmpy.ipsec.addresses import IpAddress, IpNetwork

T = TypeVar("T")
Plain = None | bool | int | float | str | list[Any] | dict[str, Any]

_NAMED: dict[type, dict[str, Any]] = {
    algorithms.Cipher: {c.name: c for c in algorithms.CIPHERS},
    algorithms.Integrity: {i.name: i for i in algorithms.INTEGRITY},
    algorithms.Prf: {p.name: p for p in algorithms.PRFS},
    algorithms.KeyExchangeGroup: {g.name: g for g in algorithms.GROUPS},
}
"""Rows of the algorithms table are written by their name."""

KNOWN_ADDRESSES = 1024
"""Of addresses and of networks that are kept: a Child SA has each in several of its entries."""

_FIRST_INEXACT = 2**53
"""From here on an integer may have no float of its own."""


def to_plain(value: object) -> Plain:
    """The JSON form of a value of dataclasses, tuples, octets, addresses and enumerations."""
    return _ENCODERS[type(value)](value)


def from_plain(kind: type[T], plain: Plain) -> T:
    """The inverse of `to_plain` for a value of the given type.

    Raises `ValueError`, `KeyError` or `TypeError` if `plain` does not have that form.
    """
    return cast("T", _decoder(cast("Any", kind))(plain))


class _Encoders(dict[type, Callable[[Any], Plain]]):
    """What writes a type is found out once, as is what reads it."""

    def __missing__(self, kind: type) -> Callable[[Any], Plain]:
        encode = self[kind] = _encoder(kind)
        return encode


_ENCODERS = _Encoders()


def _encoder(kind: type) -> Callable[[Any], Plain]:
    if kind in _NAMED:
        return operator.attrgetter("name")
    if issubclass(kind, Enum):
        return operator.attrgetter("_value_")  # `value` is ten times as slow.
    if dataclasses.is_dataclass(kind):
        return partial(_encode_dataclass, tuple(field.name for field in dataclasses.fields(kind)))
    if issubclass(kind, tuple | frozenset):
        return lambda value: [to_plain(item) for item in value]
    if issubclass(kind, dict):
        return lambda value: {str(key): to_plain(item) for key, item in value.items()}
    if issubclass(kind, bytes):
        return bytes.hex
    return _as_it_is if issubclass(kind, int | float | str | types.NoneType) else str


def _encode_dataclass(names: tuple[str, ...], value: object) -> Plain:
    return {
        name: item if type(item := getattr(value, name)) in _BARE else to_plain(item)
        for name in names
    }


_BARE = frozenset({bool, int, float, str, types.NoneType})
"""Most of what there is, and JSON has it."""


def _as_it_is(value: Plain) -> Plain:
    return value


@cache
def _decoder(kind: Any) -> Callable[[Any], Any]:
    """What reads a type is found out once: an SA is made of thirty values."""
    if kind in (IpAddress, IpNetwork):
        read = _address if kind == IpAddress else _network
        return lambda plain: read(_exactly(str, plain))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType) and types.NoneType in arguments:
        decode = _decoder(reduce(operator.or_, (a for a in arguments if a is not types.NoneType)))
        return lambda plain: None if plain is None else decode(plain)
    if origin in (Union, types.UnionType):
        return partial(_decode_one_of, {_field_names(a): _decoder(a) for a in arguments})
    if origin in (tuple, frozenset):
        decode = _decoder(arguments[0])
        return lambda plain: origin(decode(item) for item in _exactly(list, plain))
    if origin is dict:
        key, value = map(_decoder, arguments)
        return lambda plain: {key(k): value(v) for k, v in _exactly(dict, plain).items()}
    if kind in _NAMED:
        return partial(operator.getitem, _NAMED[kind])
    if dataclasses.is_dataclass(kind):
        return partial(_decode_dataclass, kind)
    if kind is bytes:
        return bytes.fromhex
    if issubclass(kind, Enum):
        return cast("Callable[[Any], Any]", kind)
    return _decode_float if kind is float else partial(_exactly, kind)


@lru_cache(maxsize=KNOWN_ADDRESSES)
def _address(plain: str) -> IpAddress:
    return ip_address(plain)


@lru_cache(maxsize=KNOWN_ADDRESSES)
def _network(plain: str) -> IpNetwork:
    return ip_network(plain)


def _decode_dataclass(kind: Any, plain: Any) -> Any:
    decoders = _field_decoders(kind)
    items = _exactly(dict, plain).items()
    return kind(**{name: decoders[name](item) for name, item in items})


def _decode_one_of(decoders: dict[frozenset[str], Callable[[Any], Any]], plain: Any) -> Any:
    """Of several dataclasses the one that has just these fields."""
    return decoders[frozenset(_exactly(dict, plain))](plain)


def _field_names(kind: Any) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(kind))


@cache
def _field_decoders(kind: type) -> dict[str, Callable[[Any], Any]]:
    hints = typing.get_type_hints(kind)
    return {name: _decoder(hints[name]) for name in _field_names(kind)}


def _decode_float(plain: Any) -> float:
    if type(plain) is int and abs(plain) < _FIRST_INEXACT:
        return float(plain)
    return _exactly(float, plain)


def _exactly(kind: type[T], plain: Any) -> T:
    """`plain`, if it is of that very type: `True` is no number."""
    if type(plain) is not kind:
        raise TypeError(f"{plain!r} is not of type {kind.__name__}")
    return plain
