"""`radius`: servers that know users."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator

from xfrmpy.policy import values
from xfrmpy.policy.schema.keys import Keys, described
from xfrmpy.policy.schema.types import (
    Address,
    Secret,
    ShortText,
    Switch,
    duration,
    duration_or_off,
    whole_number,
)

UdpPort = Annotated[int, whole_number(1, 65535)]


class RadiusServerKeys(Keys):
    """A server of RADIUS."""

    address: Address | None = described("Its address.", "192.0.2.10")
    port: UdpPort | None = described("Where it takes Access-Requests. Default: 1812.", 1645)
    accounting_port: UdpPort | None = described(
        "Where it takes Accounting-Requests. Default: 1813.", 1646
    )
    secret: Secret | None = described("As `secret` of all, for this server.", "secret:radius-2")


class RadiusKeys(Keys):
    """Servers of RADIUS that know the same users."""

    servers: (
        Annotated[
            list[Annotated[RadiusServerKeys, BeforeValidator(values.as_radius_server)]],
            BeforeValidator(
                values.as_list_of_maps,
                json_schema_input_type=str | RadiusServerKeys | list[str | RadiusServerKeys],
            ),
        ]
        | None
    ) = described(
        "Their addresses, or a map for each, in the order in which they are asked.",
        ["192.0.2.10", "192.0.2.11"],
    )
    secret: Secret | None = described("What we share with them, by reference.", "secret:radius")
    timeout: Annotated[float, duration(0.1, 60)] | None = described(
        "Wait before a request is sent again; each wait doubles. Default: 2s.", "1s"
    )
    tries: Annotated[int, whole_number(1, 10)] | None = described(
        "How often a server is asked before the next one is. Default: 3.", 2
    )
    accounting: Switch | None = described(
        "Whether they are told of each session: its begin, its end, and what it has carried. "
        "Default: no.",
        "yes",
    )
    interim: Annotated[float, duration_or_off(60, 86400)] | None = described(
        "How often they are told how a session goes, or `off`. Default: as they say when they let "
        "a user in.",
        "10m",
    )
    nas_id: ShortText | None = described(
        "What we call ourselves to them (NAS-Identifier). Default: as the user knows us.",
        "gw1.example.net",
    )
