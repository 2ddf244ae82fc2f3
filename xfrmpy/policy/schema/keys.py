"""What a section of the policy language is: a map of known keys, each with its meaning."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema

from xfrmpy.policy import values

NotYet = Annotated[SkipJsonSchema[None], PlainValidator(values.refuse_not_yet)]
"""A key that is known, and refused with XF1011."""


def described(description: str, example: object) -> Any:
    return Field(default=None, description=description, examples=[example])


def _without_null(schema: dict[str, Any]) -> None:
    for key in schema["properties"].values():
        key.pop("default", None)
        key.pop("title", None)
        forms = [form for form in key.pop("anyOf", []) if form != {"type": "null"}]
        key.update(forms[0] if len(forms) == 1 else {"anyOf": forms} if forms else {})


class Keys(BaseModel):
    """A map of known keys; every one may be left out, none may be left empty."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        hide_input_in_errors=True,
        json_schema_extra=_without_null,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_given(cls, value: object, info: ValidationInfo) -> object:
        if value is None and not is_future(cls.model_fields[str(info.field_name)]):
            values.refuse("XF1004", "has no value")
        return value


def keys_of(model: type[Keys]) -> list[str]:
    """The keys that can be given now."""
    return [name for name, field in model.model_fields.items() if not is_future(field)]


def is_future(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is None and field.annotation is types.NoneType


def nested(field: FieldInfo) -> tuple[type[Keys] | None, bool]:
    """The model of a key that takes a map, and whether names of the operator's stand between."""
    parts = list(_parts(field.annotation))
    models = [part for part in parts if isinstance(part, type) and issubclass(part, Keys)]
    return (models[0] if models else None), dict in parts


def _parts(annotation: Any) -> Iterator[Any]:
    yield get_origin(annotation) or annotation
    for argument in get_args(annotation):
        yield from _parts(argument)
