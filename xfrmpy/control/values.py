"""JSON values as the dataclasses of `protocol`: what is constructed here has the types it says.

Both ends decode with it, the daemon what its callers send and the client what the daemon answers.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from typing import Any, NoReturn, TypeVar

_Kind = TypeVar("_Kind")


class Unfit(Exception):
    """A value that is not what was wanted; `where` names it, such as `tunnels.children.suite`."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"`{where}` {what}" if where else what)
        self.where = where


def parse_object(octets: bytes) -> dict[str, Any]:
    """A message without its NUL as a JSON object; raises `Unfit`."""
    try:
        message = json.loads(octets, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Unfit("", "is not JSON") from error
    if not isinstance(message, dict):
        raise Unfit("", "is not an object")
    return message


def _refuse_constant(name: str) -> NoReturn:
    """Python's JSON knows NaN and Infinity, which JSON does not."""
    raise ValueError(name)


def decode(kind: type[_Kind], value: object, where: str = "") -> _Kind:
    """`value` as an instance of the dataclass `kind`, no field too few or too many.

    Raises `Unfit`.
    """
    if not isinstance(value, dict):
        raise Unfit(where, "is not an object")
    shape: type = kind
    hints = field_types(shape)
    for name in value.keys() - hints.keys():
        raise Unfit(_within(where, name), "is not known")
    for name in _required(shape) - value.keys():
        raise Unfit(_within(where, name), "is missing")
    fitted = {name: _fit(hints[name], value[name], _within(where, name)) for name in value}
    try:
        return kind(**fitted)
    except ValueError as error:
        raise Unfit(where, str(error)) from error


@functools.cache
def field_types(kind: type) -> dict[str, Any]:
    """The fields of a dataclass and their types, in order."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


@functools.cache
def _required(kind: type) -> frozenset[str]:
    fields = dataclasses.fields(kind)
    return frozenset(f.name for f in fields if f.default is dataclasses.MISSING)


def _within(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)


def _fit(hint: Any, value: object, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast("type[Any]", hint), value, where)
    match typing.get_origin(hint):
        case types.UnionType:
            optional = next(a for a in typing.get_args(hint) if a is not types.NoneType)
            return None if value is None else _fit(optional, value, where)
        case origin if origin is list and isinstance(value, list):
            return [_fit(typing.get_args(hint)[0], item, where) for item in value]
        case origin if origin is dict and isinstance(value, dict):
            inner = typing.get_args(hint)[1]
            return {key: _fit(inner, item, _within(where, key)) for key, item in value.items()}
    if hint in _PLAIN and _PLAIN[hint](value):
        return value
    raise Unfit(where, f"is no {getattr(hint, '__name__', hint)}")


def _is_int(value: object) -> bool:
    """Of 64 bits, as Varlink has them; in Python True is an int, too."""
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63


_PLAIN: dict[type, typing.Callable[[Any], bool]] = {
    str: lambda value: isinstance(value, str),
    bool: lambda value: isinstance(value, bool),
    int: _is_int,
    float: lambda value: _is_int(value) or (isinstance(value, float) and math.isfinite(value)),
}
