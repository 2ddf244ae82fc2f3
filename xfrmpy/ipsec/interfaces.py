"""The interface of a route-based tunnel: a network device into which routes lead its packets.

What it is called and what it has, the same for the kernel's xfrm interfaces and for the TUN devices
of the userspace datapath. SAs and policies of the same `if_id` carry what goes through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface

from xfrmpy.ipsec.addresses import IpAddress, IpNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceAddress:
    """An address of an interface, and how long the prefix is that is on its link."""

    address: IpAddress
    prefixlen: int

    @classmethod
    def of(cls, value: IPv4Interface | IPv6Interface) -> InterfaceAddress:
        return cls(address=value.ip, prefixlen=value.network.prefixlen)

    def __str__(self) -> str:
        return f"{self.address}/{self.prefixlen}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelInterface:
    """How an interface is to be. `mtu` None: what fits through the tunnel's SAs.

    Empty `vrf` and `namespace` are none, and the one that the datapath is in. `routes` lead into
    the interface.
    """

    name: str
    if_id: int
    addresses: tuple[InterfaceAddress, ...] = ()
    mtu: int | None = None
    vrf: str = ""
    namespace: str = ""
    routes: tuple[IpNetwork, ...] = ()

    def __str__(self) -> str:
        parts = [self.name, *map(str, self.addresses)]
        named = (("mtu", self.mtu), ("vrf", self.vrf), ("namespace", self.namespace))
        parts += [f"{key} {value}" for key, value in named if value]
        parts += [f"route {route}" for route in self.routes]
        return f"{', '.join(parts)}, if_id 0x{self.if_id:x}"

    @property
    def needs_ipv6(self) -> bool:
        return any(a.address.version == 6 for a in self.addresses) or any(
            route.version == 6 for route in self.routes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceState:
    """An interface as it is. `is_adopted`: somebody else made it, and it stays when we go."""

    name: str
    if_id: int
    is_up: bool
    mtu: int
    is_adopted: bool
