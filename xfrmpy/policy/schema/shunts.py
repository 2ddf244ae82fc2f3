"""`shunts`: traffic that no tunnel carries."""

from __future__ import annotations

from typing import Annotated

from pydantic import PlainValidator, WithJsonSchema

from xfrmpy.ipsec.spd import PolicyDirection
from xfrmpy.policy import values
from xfrmpy.policy.schema.keys import Keys, described
from xfrmpy.policy.schema.types import Priority, Selectors


class ShuntKeys(Keys):
    """Traffic that passes in clear or not at all, whatever tunnels say."""

    action: (
        Annotated[
            str,
            PlainValidator(values.parse_shunt_action),
            WithJsonSchema({"enum": ["bypass", "drop"]}),
        ]
        | None
    ) = described(
        "`bypass`: it passes in clear; `drop`: it does not pass, in either direction.", "drop"
    )
    local: Selectors | None = described(
        "Traffic of our side, as `local` of a tunnel. Default: any.", "10.1.0.0/16"
    )
    remote: Selectors | None = described(
        "Traffic of the other side, as `remote` of a tunnel.", ["10.0.0.0/8", "0.0.0.0/0[tcp/25]"]
    )
    priority: Priority | None = described(
        "Which comes first, 1 to 1000000, the lower. Default: before every tunnel, and of shunts "
        "the more specific first (17136 to 50000; tunnels are 67136 to 100000).",
        200000,
    )
    default: (
        Annotated[
            tuple[PolicyDirection, ...],
            PlainValidator(values.parse_default_directions),
            WithJsonSchema(
                {"type": "array", "items": {"enum": [*values.DEFAULT_DIRECTIONS]}, "minItems": 1}
            ),
        ]
        | None
    ) = described(
        "With `action: drop`, in the place of `local`, `remote` and `priority`: it is about all "
        "that no tunnel and no other shunt is about, in these directions. It is the kernel's "
        "default policy.",
        ["in", "out", "forward"],
    )
