"""A policy file in either form, and its JSON Schema."""

from __future__ import annotations

from typing import Any, Union

from pydantic import TypeAdapter

from xfrmpy.policy.schema.keys import Keys, NotYet, described
from xfrmpy.policy.schema.radius import RadiusKeys
from xfrmpy.policy.schema.shunts import ShuntKeys
from xfrmpy.policy.schema.tunnel import Tunnel
from xfrmpy.policy.schema.types import Name


class PolicyFile(Keys):
    """The long form of a file."""

    tunnels: dict[Name, Tunnel] | None = described(
        "The tunnels by name.", {"office": {"peer": "vpn.example.org"}}
    )
    defaults: Tunnel | None = described(
        "Keys that every tunnel of this file has unless it gives its own.", {"dpd": "10s"}
    )
    shunts: dict[Name, ShuntKeys] | None = described(
        "Traffic that passes in clear, or not at all, by name.",
        {"printers": {"action": "bypass", "remote": "10.1.7.0/24"}},
    )
    radius: dict[Name, RadiusKeys] | None = described(
        "Servers of RADIUS that know users, by the name of their group, for tunnels of any file.",
        {"corp": {"servers": "192.0.2.10", "secret": "secret:radius"}},
    )
    gateways: NotYet = None


def json_schema() -> dict[str, Any]:
    """A JSON Schema (2020-12) of a policy file in either form."""
    schema = TypeAdapter(Union[PolicyFile, Tunnel]).json_schema()  # noqa: UP007
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
