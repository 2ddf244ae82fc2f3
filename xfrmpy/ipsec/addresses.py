"""IP addresses, and the way between two IKE sockets."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

IpAddress: TypeAlias = IPv4Address | IPv6Address

ADDRESS_KINDS: dict[int, type[IPv4Address] | type[IPv6Address]] = {4: IPv4Address, 6: IPv6Address}
IpNetwork: TypeAlias = IPv4Network | IPv6Network

IKE_PORT = 500
IKE_NATT_PORT = 4500
"""RFC 7296 section 2.23: IKE with a non-ESP marker and UDP-encapsulated ESP share this port."""


@dataclass(frozen=True, slots=True)
class SocketAddress:
    """An IP address and a UDP port."""

    address: IpAddress
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """Where a datagram came from or goes to: our socket and theirs.

    `natt` says that our socket is the one shared with UDP-encapsulated ESP, on which every IKE
    message is preceded by the four zero octets of the non-ESP marker (RFC 7296 section 2.23).
    """

    local: SocketAddress
    remote: SocketAddress
    natt: bool = False

    def __str__(self) -> str:
        return f"{self.local} -> {self.remote}"
