"""From the names of a tunnel's peer to the paths on which it may be reached."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import ip_address

from xfrmpy.daemon.sockets import local_address_for
from xfrmpy.failures import OperatorError
from xfrmpy.ipsec.addresses import IKE_PORT, IpAddress, Path, SocketAddress
from xfrmpy.policy.model import TunnelPolicy


async def resolve_peer(policy: TunnelPolicy) -> tuple[IpAddress, ...]:
    """Every address of the peer, in order. Raises `OperatorError` XF2012 if there is none."""
    return await resolve_names(policy.peers)


async def resolve_names(names: Sequence[str]) -> tuple[IpAddress, ...]:
    """Every address of every name, in order. Raises `OperatorError` XF2012 if there is none."""
    found: dict[IpAddress, None] = {}
    errors: list[tuple[str, str]] = []
    for name in names:
        try:
            found.update(dict.fromkeys(await _resolve(name)))
        except OSError as error:
            errors.append((name, error.strerror or str(error)))
    if not found:
        raise OperatorError("XF2012", f"{', '.join(names)} cannot be resolved", tuple(errors))
    return tuple(found)


def has_names(policy: TunnelPolicy) -> bool:
    """Whether what the peer's names stand for may change."""
    return not all(_is_address(name) for name in policy.peers)


def paths_to(policy: TunnelPolicy, addresses: tuple[IpAddress, ...]) -> tuple[Path, ...]:
    """A path to each address that has a route. Raises `OperatorError` XF2013 if none has."""
    paths: list[Path] = []
    failure: OperatorError | None = None
    for address in addresses:
        try:
            local = policy.local_address or local_address_for(address)
        except OperatorError as error:
            failure = error
            continue
        if local.version == address.version:
            paths.append(
                Path(local=SocketAddress(local, IKE_PORT), remote=SocketAddress(address, IKE_PORT))
            )
    if paths:
        return tuple(paths)
    raise failure or OperatorError(
        "XF2013", f"the peer has no address of the family of {policy.local_address}"
    )


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


async def _resolve(name: str) -> tuple[IpAddress, ...]:
    if _is_address(name):
        return (ip_address(name),)
    loop = asyncio.get_running_loop()
    rows = await loop.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    return tuple(ip_address(str(row[4][0]).partition("%")[0]) for row in rows)
