"""What is in force on this host, whosever it is, for `xfrmpy show kernel`.

The kernel is always read, for others' entries are there even where every tunnel is in user space;
in a thread, for ten thousand tunnels take a while, and datagrams must not wait. Run as a program it
reads the kernel without a daemon, and then knows no names.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from xfrmpy.control.kernel import (
    DefaultInForce,
    ErrorCounter,
    InterfaceInForce,
    KernelReply,
    PolicyInForce,
    SaInForce,
    TemplateInForce,
)
from xfrmpy.control.protocol import encode_reply
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.inventory import (
    HeldDefault,
    HeldInterface,
    HeldPolicy,
    HeldSa,
    Inventory,
)
from xfrmpy.datapath.kernel.inventory import read_inventory
from xfrmpy.datapath.kernel.statistics import COUNTERS
from xfrmpy.datapath.userspace.inventory import explain
from xfrmpy.ipsec.sad import Lifetime
from xfrmpy.policy.model import TunnelPolicy

UNEXPLAINED = "a reason that this version of xfrmpy does not know"


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """Whose an entry is in the words of the policy; empty if nobody's."""

    tunnel: str = ""
    child: str = ""


class Surveyor:
    """See the module. `read_userspace` gives None where that datapath is not in use."""

    def __init__(
        self,
        policies: Callable[[], Iterable[TunnelPolicy]],
        find: Callable[[object], object],
        read_userspace: Callable[[], Inventory | None],
    ) -> None:
        self._policies = policies
        self._find = find
        self._read_userspace = read_userspace

    async def show_kernel(self, parameters: dict[str, Any]) -> AsyncIterator[KernelReply]:
        tunnel = parameters.get("tunnel")
        if tunnel is not None:
            self._find(tunnel)
        held: dict[str, Inventory] = {}
        unread: dict[str, str] = {}
        try:
            held["kernel"] = await asyncio.to_thread(read_inventory)
        except DatapathError as error:
            unread["kernel"] = str(error)
        try:
            userspace = self._read_userspace()
            if userspace is not None:
                held["userspace"] = userspace
        except DatapathError as error:
            unread["userspace"] = str(error)
        yield kernel_reply(
            held,
            names_of(self._policies()),
            unread,
            tunnel,
            interfaces=interfaces_of(self._policies()),
        )


def names_of(policies: Iterable[TunnelPolicy]) -> dict[int, Name]:
    """Whose each reqid is."""
    return {
        child.reqid: Name(tunnel=policy.name, child=child.name)
        for policy in policies
        for child in policy.children
    }


def interfaces_of(policies: Iterable[TunnelPolicy]) -> dict[str, set[str]]:
    """Whose each interface of this namespace is, by its name."""
    return {
        policy.interface.name: {policy.name}
        for policy in policies
        if policy.interface is not None and not policy.interface.namespace
    }


def kernel_reply(
    held: Mapping[str, Inventory],
    names: Mapping[int, Name],
    unread: Mapping[str, str],
    tunnel: str | None = None,
    *,
    interfaces: Mapping[str, set[str]] | None = None,
) -> KernelReply:
    """All of it, or what is one tunnel's; counters are everybody's."""
    sas = [_sa(name, sa, names) for name, each in held.items() for sa in each.sas]
    policies = [_policy(name, p, names) for name, each in held.items() for p in each.policies]
    users = _users_of_interfaces(policies)
    owners = interfaces or {}
    found = [
        _interface(device, users.get(device.if_id, set()) | owners.get(device.name, set()))
        for each in held.values()
        for device in each.interfaces
    ]
    return KernelReply(
        sas=[sa for sa in sas if tunnel in (None, sa.tunnel)],
        policies=[policy for policy in policies if tunnel in (None, policy.tunnel)],
        defaults=[_default(d) for each in held.values() for d in each.defaults],
        interfaces=[i for i in found if tunnel is None or tunnel in i.tunnels],
        errors=[counter for name, each in held.items() for counter in _errors(name, each)],
        unread=dict(unread),
    )


def _sa(datapath: str, sa: HeldSa, names: Mapping[int, Name]) -> SaInForce:
    name = names.get(sa.reqid, Name()) if sa.is_ours else Name()
    return SaInForce(
        datapath=datapath,
        owner="ours" if sa.is_ours else "foreign",
        tunnel=name.tunnel,
        child=name.child,
        direction="" if sa.direction is None else sa.direction.value,
        spi=f"0x{sa.spi:08x}",
        protocol=sa.protocol,
        mode=sa.mode,
        source=str(sa.source),
        destination=str(sa.destination),
        reqid=sa.reqid,
        suite=sa.suite,
        octets=sa.usage.octets,
        packets=sa.usage.packets,
        replayed=sa.usage.replayed,
        integrity_failed=sa.usage.integrity_failed,
        seconds_old=sa.seconds_old,
        seconds_idle=sa.usage.seconds_idle,
        limits=dict(_limits(sa.lifetime)),
        options=sa.options,
    )


def _limits(lifetime: Lifetime) -> Iterator[tuple[str, int]]:
    for field in fields(lifetime):
        limit = getattr(lifetime, field.name)
        if limit is not None:
            yield field.name, limit


def _default(default: HeldDefault) -> DefaultInForce:
    owner = "ours" if default.is_ours else "foreign"
    return DefaultInForce(
        owner=owner if default.blocks else "",
        direction=default.direction,
        action="discard" if default.blocks else "bypass",
    )


def _policy(datapath: str, policy: HeldPolicy, names: Mapping[int, Name]) -> PolicyInForce:
    reqids = [template.reqid for template in policy.templates if policy.is_ours]
    name = next((names[reqid] for reqid in reqids if reqid in names), Name())
    is_of_socket = policy.direction.startswith("socket")
    return PolicyInForce(
        datapath=datapath,
        owner="ours" if policy.is_ours else "socket" if is_of_socket else "foreign",
        tunnel=name.tunnel,
        child=name.child,
        direction=policy.direction,
        selector=policy.selector,
        action=policy.action,
        priority=policy.priority,
        index=policy.index,
        templates=[
            TemplateInForce(
                protocol=template.protocol,
                mode=template.mode,
                reqid=template.reqid,
                source=template.source,
                destination=template.destination,
                optional=template.is_optional,
            )
            for template in policy.templates
        ],
        options=policy.options,
    )


def _users_of_interfaces(policies: Iterable[PolicyInForce]) -> dict[int | None, set[str]]:
    users: dict[int | None, set[str]] = {}
    for policy in policies:
        if policy.tunnel and "if_id" in policy.options:
            users.setdefault(int(policy.options["if_id"]), set()).add(policy.tunnel)
    return users


def _interface(device: HeldInterface, tunnels: set[str]) -> InterfaceInForce:
    return InterfaceInForce(
        name=device.name,
        kind=device.kind,
        up=device.is_up,
        mtu=device.mtu,
        if_id=device.if_id,
        underlying=device.underlying,
        addresses=list(device.addresses),
        tunnels=sorted(tunnels),
    )


def _errors(datapath: str, held: Inventory) -> Iterator[ErrorCounter]:
    for name, count in held.errors.items():
        known = COUNTERS.get(name) if datapath == "kernel" else explain(name)
        yield ErrorCounter(
            datapath=datapath,
            name=name,
            count=count,
            meaning=UNEXPLAINED if known is None else known.meaning,
            look_at="" if known is None else known.look_at,
        )


def main() -> int:
    """The kernel alone, as one reply of the control socket's on standard output."""
    held: dict[str, Inventory] = {}
    unread: dict[str, str] = {}
    try:
        held["kernel"] = read_inventory()
    except DatapathError as error:
        unread["kernel"] = str(error)
    sys.stdout.buffer.write(encode_reply(kernel_reply(held, {}, unread)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
