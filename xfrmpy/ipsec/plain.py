"""Frozen dataclasses as plain JSON values and back, by their type hints.

For what crosses a process border: the userspace workers' control socket and the store. Octets are
written as hex, addresses and enumerations by their value. Keys are octets like any other here:
what is written with this is secret unless the caller knows better.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from enum import Enum
from functools import cache
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
    if type(value) in _NAMED:
        return cast("str", value.name)  # type: ignore[attr-defined]
    if isinstance(value, Enum):
        return cast("Plain", value.value)
    if dataclasses.is_dataclass(value):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
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
    return cast("T", _decode(kind, plain))


def _decode(kind: Any, plain: Any) -> Any:
    if kind in (IpAddress, IpNetwork):
        return (ip_address if kind == IpAddress else ip_network)(_exactly(str, plain))
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if plain is None:
            return None
        (kind,) = (a for a in arguments if a is not types.NoneType)
        return _decode(kind, plain)
    if origin in (tuple, frozenset):
        return origin(_decode(arguments[0], item) for item in _exactly(list, plain))
    if origin is dict:
        items = _exactly(dict, plain).items()
        return {_decode(arguments[0], k): _decode(arguments[1], v) for k, v in items}
    if kind in _NAMED:
        return _NAMED[kind][plain]
    if dataclasses.is_dataclass(kind):
        hints = _hints(cast("type", kind))
        items = _exactly(dict, plain).items()
        return kind(**{name: _decode(hints[name], item) for name, item in items})  # type: ignore[operator]
    if kind is bytes:
        return bytes.fromhex(plain)
    if issubclass(kind, Enum):
        return kind(plain)
    if kind is float and type(plain) is int and abs(plain) < _FIRST_INEXACT:
        return float(plain)
    return _exactly(kind, plain)


def _exactly(kind: type[T], plain: Any) -> T:
    """`plain`, if it is of that very type: `True` is no number."""
    if type(plain) is not kind:
        raise TypeError(f"{plain!r} is not of type {kind.__name__}")
    return plain


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
