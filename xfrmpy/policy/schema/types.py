"""What keys of several sections take: each value is parsed where it stands."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.marks import Mark
from xfrmpy.ipsec.sad import MAX_RESOURCES
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import MAX_PRIORITY
from xfrmpy.policy import values

TEXT = WithJsonSchema({"type": "string"})
TEXT_OR_LIST = WithJsonSchema(
    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
)
TIME = WithJsonSchema({"type": ["string", "number"]})
YES_NO = WithJsonSchema({"enum": ["yes", "no", True, False]})
ONE_OR_MORE = BeforeValidator(values.as_list)


def choice(kind: type[StrEnum]) -> PlainValidator:
    return PlainValidator(partial(values.parse_choice, kind), json_schema_input_type=kind)


def whole_number(least: int, most: int) -> PlainValidator:
    form = Annotated[int, Field(ge=least, le=most)]
    return PlainValidator(
        partial(values.parse_whole_number, least, most), json_schema_input_type=form
    )


def number(least: float, most: float) -> PlainValidator:
    return PlainValidator(partial(values.parse_number, least, most), json_schema_input_type=float)


def duration(shortest: float, longest: float) -> PlainValidator:
    """In seconds."""
    return _time(partial(values.parse_duration, shortest, longest))


def duration_or_off(shortest: float, longest: float) -> PlainValidator:
    """In seconds, 0 for `off`."""
    return _time(partial(values.parse_duration_or_off, shortest, longest))


def _time(parse: Callable[[object], float]) -> PlainValidator:
    return PlainValidator(parse, json_schema_input_type=Annotated[Any, TIME])


Name = Annotated[str, PlainValidator(values.parse_name), TEXT]
ShortText = Annotated[str, PlainValidator(values.parse_short_text), TEXT]
ShortTexts = Annotated[list[ShortText], ONE_OR_MORE, TEXT_OR_LIST]
Selectors = Annotated[
    list[Annotated[TrafficSelector, PlainValidator(values.parse_selector)]],
    ONE_OR_MORE,
    TEXT_OR_LIST,
]
PeerIdentity = Annotated[Identity, PlainValidator(values.parse_peer_identity), TEXT]
SomeIdentity = Annotated[Identity, PlainValidator(values.parse_identity), TEXT]
Address = Annotated[IpAddress, PlainValidator(values.parse_address), TEXT]
Device = Annotated[str, PlainValidator(values.parse_device_name), TEXT]
Switch = Annotated[bool, PlainValidator(values.parse_yes_no), YES_NO]
Secret = Annotated[values.SecretReference, PlainValidator(values.parse_secret_reference), TEXT]
CertificateName = Annotated[str, PlainValidator(values.parse_certificate_reference), TEXT]
Lifetime = Annotated[float, _time(values.parse_lifetime)]
SomeMark = Annotated[
    Mark,
    PlainValidator(partial(values.parse_mark, Mark.parse)),
    WithJsonSchema({"type": ["string", "integer"]}),
]
OuterMark = Annotated[
    Mark,
    PlainValidator(partial(values.parse_mark, Mark.parse_outer)),
    WithJsonSchema({"type": ["string", "integer"]}),
]
Priority = Annotated[int, whole_number(1, MAX_PRIORITY)]
Resources = Annotated[
    int,
    PlainValidator(values.parse_resources),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": ["auto", "off"]},
                {"type": "integer", "minimum": 2, "maximum": MAX_RESOURCES},
            ]
        }
    ),
]
