"""`interface`: the network device of a route-based tunnel."""

from __future__ import annotations

from typing import Annotated

from pydantic import PlainValidator, WithJsonSchema

from xfrmpy.ipsec.addresses import IpNetwork
from xfrmpy.ipsec.interfaces import InterfaceAddress
from xfrmpy.policy import values
from xfrmpy.policy.schema.keys import Keys, described
from xfrmpy.policy.schema.types import ONE_OR_MORE, TEXT, TEXT_OR_LIST, Device, whole_number


class InterfaceSettings(Keys):
    """The network device of a route-based tunnel."""

    address: (
        Annotated[
            list[Annotated[InterfaceAddress, PlainValidator(values.parse_interface_address)]],
            ONE_OR_MORE,
            TEXT_OR_LIST,
        ]
        | None
    ) = described(
        "Addresses of the interface, with the length of the prefix on its link.",
        ["169.254.10.1/30", "fd00:10::1/64"],
    )
    name: Device | None = described(
        "What it is called. Default: as the tunnel, or what of its name fits.", "dc-east"
    )
    mtu: Annotated[int, whole_number(576, 65535)] | None = described(
        "Its MTU. Default: what fits through the tunnel in one packet.", 1400
    )
    vrf: Device | None = described("The VRF that it belongs to, which must be there.", "customers")
    namespace: Annotated[str, PlainValidator(values.parse_name), TEXT] | None = described(
        "The network namespace that it is moved to, as `ip netns` names it; the tunnel's own "
        "packets stay outside.",
        "inside",
    )
    routes: (
        Annotated[
            list[Annotated[IpNetwork, PlainValidator(values.parse_network)]],
            ONE_OR_MORE,
            TEXT_OR_LIST,
        ]
        | None
    ) = described(
        "Prefixes that are routed into it, in the main table, or that of its VRF.",
        ["10.2.0.0/16"],
    )
    if_id: (
        Annotated[
            int,
            PlainValidator(values.parse_if_id),
            WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 0xFFFFFFFF}),
        ]
        | None
    ) = described(
        "The number that ties SAs and policies to it, needed only where somebody else makes the "
        "interface. Default: one of our own.",
        42,
    )
