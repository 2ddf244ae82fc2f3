"""What `interface` means: a network device for each route-based tunnel, told apart by its number.

Names and numbers that a policy does not give are made of the tunnel's name, so that they stay the
same whatever else changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from ipaddress import ip_address
from typing import TYPE_CHECKING

from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.interfaces import TunnelInterface
from xfrmpy.ipsec.sad import Mode
from xfrmpy.policy.model import DatapathChoice, OnDown, TunnelPolicy
from xfrmpy.policy.schema.interface import InterfaceSettings
from xfrmpy.policy.schema.tunnel import Tunnel
from xfrmpy.policy.values import DEVICE_NAME

if TYPE_CHECKING:
    from xfrmpy.policy.resolve import Place

MAX_NAME = 15
"""IFNAMSIZ, less the NUL."""


def resolve_interface(
    name: str, tunnel: Tunnel, place: Place, if_id: int
) -> TunnelInterface | None:
    """The interface of a tunnel, None if it has none; with an error for each thing amiss."""
    keys = tunnel.interface
    if keys is None:
        return None
    if tunnel.mode not in (None, Mode.TUNNEL):
        message = f"'interface' needs tunnel mode: in {tunnel.mode} mode nothing is routed"
        place.error("XF1004", ("mode",), message)
    _check_block(tunnel, place)
    _check_loop(tunnel, keys, place)
    return TunnelInterface(
        name=keys.name or default_name(name),
        if_id=keys.if_id or if_id,
        addresses=tuple(keys.address or ()),
        mtu=keys.mtu,
        vrf=keys.vrf or "",
        namespace=keys.namespace or "",
        routes=tuple(keys.routes or ()),
    )


def default_name(tunnel: str) -> str:
    """The tunnel's, if that is a device's; else what fits of it, and four digits of a digest."""
    if DEVICE_NAME.fullmatch(tunnel):
        return tunnel
    digits = sha256(tunnel.encode()).hexdigest()[:4]
    return f"{tunnel[: MAX_NAME - 1 - len(digits)]}-{digits}"


def block_obstacle(tunnel: Tunnel) -> tuple[str, str] | None:
    """Why `on_down: block` could not be kept of a tunnel with an interface, and what to do.

    What goes into an interface never leaves in clear; what is to go there, only routes know.
    """
    keys = tunnel.interface
    assert keys is not None
    if keys.namespace:
        where = "where the interface is in another namespace"
        return where, "what enters it there never leaves in clear"
    if not (keys.routes or tunnel.remote or _all_name_remotes(tunnel)):
        where = "where nothing says what the interface carries"
        return where, "name 'remote', or 'routes' in 'interface'"
    return None


def _check_block(tunnel: Tunnel, place: Place) -> None:
    obstacle = block_obstacle(tunnel)
    if tunnel.on_down is OnDown.BLOCK and obstacle is not None:
        place.error("XF1004", ("on_down",), f"'on_down' cannot be block {obstacle[0]}", obstacle[1])


def _all_name_remotes(tunnel: Tunnel) -> bool:
    children = tunnel.children or {}
    return bool(children) and all(child.remote for child in children.values())


def _check_loop(tunnel: Tunnel, keys: InterfaceSettings, place: Place) -> None:
    """The tunnel's own packets must not be routed into it."""
    if keys.vrf or keys.namespace:
        return
    for peer in map(_address, tunnel.peer or ()):
        for route in keys.routes or ():
            if peer is not None and peer.version == route.version and peer in route:
                message = f"'routes' lead to the peer {peer} through the tunnel itself: {route}"
                hint = "put the interface into a 'vrf' or a 'namespace', or name smaller prefixes"
                place.error("XF1004", ("interface", "routes"), message, hint)


def _address(peer: str) -> IpAddress | None:
    try:
        return ip_address(peer)
    except ValueError:
        return None


def report_clashes(resolved: Sequence[tuple[Place, TunnelPolicy]]) -> None:
    """Two tunnels cannot have the same interface, nor each other's packets."""
    _report_same_interface(resolved)
    _report_mixed_packets(resolved)


def _report_mixed_packets(resolved: Sequence[tuple[Place, TunnelPolicy]]) -> None:
    """The kernel has one SA of its own, with one interface, for all that two addresses have sent to
    each other without compressing it."""
    known: dict[tuple[tuple[str, ...], IpAddress | None], TunnelPolicy] = {}
    for place, policy in resolved:
        compresses = any(child.compresses for child in policy.children)
        is_of_kernel = policy.datapath is not DatapathChoice.USERSPACE
        if policy.interface is None or not policy.peers or not compresses or not is_of_kernel:
            continue
        other = known.setdefault((policy.peers, policy.local_address), policy)
        if other.name != policy.name:
            message = (
                f"'{policy.name}' has the peer, 'interface' and 'ipcomp' of '{other.name}' "
                f"({other.origin}): the kernel would mix what they do not compress"
            )
            place.error("XF1004", ("interface",), message, "'ipcomp' in one of them", at_key=True)


def _report_same_interface(resolved: Sequence[tuple[Place, TunnelPolicy]]) -> None:
    names: dict[tuple[str, str], TunnelPolicy] = {}
    numbers: dict[int, TunnelPolicy] = {}
    for place, policy in resolved:
        interface = policy.interface
        if interface is None:
            continue
        by_name = names.setdefault((interface.namespace, interface.name), policy)
        by_number = numbers.setdefault(interface.if_id, policy)
        for other, what in (
            (by_name, f"is called '{interface.name}'"),
            (by_number, f"has the if_id {interface.if_id}"),
        ):
            if other.name != policy.name:
                message = (
                    f"the interface of '{policy.name}' {what}, as that of '{other.name}' "
                    f"({other.origin})"
                )
                place.error("XF1018", ("interface",), message, at_key=True)
