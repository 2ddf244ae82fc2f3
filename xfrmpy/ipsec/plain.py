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
from functools import cache, partial, reduce
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

_FIRST_INEXACT = 2**53
"""From here on an integer may have no float of its own."""


def to_plain(value: object) -> Plain:
    """The JSON form of a value of dataclasses, tuples, octets, addresses and enumerations."""
    kind = type(value)
    if kind in _NAMED:
        return cast("str", value.name)  # type: ignore[attr-defined]
    if isinstance(value, Enum):
        return cast("Plain", value.value)
    if names := _field_names(cast("Any", kind)):
        return {name: to_plain(getattr(value, name)) for name in names}
    match value:
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return value.hex()
        case tuple() | frozenset():
            return [to_plain(item) for item in value]
        case dict():
            return {str(key): to_plain(item) for key, item in value.items()}
        case _:
            return str(value)


def from_plain(kind: type[T], plain: Plain) -> T:
    """The inverse of `to_plain` for a value of the given type.

    Raises `ValueError`, `KeyError` or `TypeError` if `plain` does not have that form.
    """
    return cast("T", _decoder(cast("Any", kind))(plain))


@cache
def _field_names(kind: type) -> tuple[str, ...]:
    """None for what is no dataclass."""
    if not dataclasses.is_dataclass(kind):
        return ()
    return tuple(field.name for field in dataclasses.fields(kind))


@cache
def _decoder(kind: Any) -> Callable[[Any], Any]:
    """What reads a type is found out once: an SA is made of thirty values."""
    if kind in (IpAddress, IpNetwork):
        read = ip_address if kind == IpAddress else ip_network
        return lambda plain: read(_exactly(str, plain))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        decode = _decoder(reduce(operator.or_, (a for a in arguments if a is not types.NoneType)))
        return lambda plain: None if plain is None else decode(plain)
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


def _decode_dataclass(kind: Any, plain: Any) -> Any:
    decoders = _field_decoders(kind)
    items = _exactly(dict, plain).items()
    return kind(**{name: decoders[name](item) for name, item in items})


@cache
def _field_decoders(kind: type) -> dict[str, Callable[[Any], Any]]:
    return {name: _decoder(hint) for name, hint in typing.get_type_hints(kind).items()}


def _decode_float(plain: Any) -> float:
    if type(plain) is int and abs(plain) < _FIRST_INEXACT:
        return float(plain)
    return _exactly(float, plain)


def _exactly(kind: type[T], plain: Any) -> T:
    """`plain`, if it is of that very type: `True` is no number."""
    if type(plain) is not kind:
        raise TypeError(f"{plain!r} is not of type {kind.__name__}")
    return plain
