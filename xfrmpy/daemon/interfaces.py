"""The interfaces of route-based tunnels, as the daemon has them: there while the tunnel is known.

One that cannot be had makes `up` and `apply` fail, with a reason. At a start it is told, and the
reconciliation tries again when something changes on this host.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress

from xfrmpy.control.protocol import InterfaceStatus
from xfrmpy.daemon.datapaths import Datapaths
from xfrmpy.daemon.events import Occurrence
from xfrmpy.daemon.tunnel import Tunnel
from xfrmpy.datapath.interface import Datapath, DatapathError
from xfrmpy.failures import OperatorError
from xfrmpy.ipsec.interfaces import TunnelInterface
from xfrmpy.policy.model import OnDown, TunnelPolicy


def set_interface(policy: TunnelPolicy, datapath: Datapath) -> None:
    """Have it there as the policy says, if it says so. Raises `OperatorError` XF3009."""
    if policy.interface is None:
        return
    try:
        datapath.interfaces.set(policy.interface)
        _check_name(policy, policy.interface, datapath)
    except DatapathError as error:
        summary = f"the interface of {policy.name} cannot be had: {error}"
        evidence = (("interface", str(policy.interface)), (f"{datapath.name} datapath", str(error)))
        raise OperatorError("XF3009", summary, evidence) from error


def _check_name(policy: TunnelPolicy, interface: TunnelInterface, datapath: Datapath) -> None:
    """What is blocked leaves by the interface that the policy names, and by no other."""
    state = datapath.interfaces.state(interface.if_id)
    if state is None or state.name == interface.name or policy.on_down is not OnDown.BLOCK:
        return
    datapath.interfaces.remove(interface.if_id)
    raise DatapathError(
        f"somebody else's {state.name} has the if_id {interface.if_id}: write `name: {state.name}`,"
        " or `on_down: clear`"
    )


def require_interface(policy: TunnelPolicy, datapath: Datapath) -> None:
    """Make one that could not be had. Raises `OperatorError` XF3009."""
    interface = policy.interface
    if interface is not None and datapath.interfaces.state(interface.if_id) is None:
        set_interface(policy, datapath)


def remove_interface(policy: TunnelPolicy, datapath: Datapath) -> None:
    """Take it away with its tunnel. Raises `OperatorError` XF3009."""
    if policy.interface is None:
        return
    try:
        datapath.interfaces.remove(policy.interface.if_id)
    except DatapathError as error:
        summary = f"the interface of {policy.name} stays behind: {error}"
        raise OperatorError("XF3009", summary) from error


def replace_interface(before: TunnelPolicy, after: TunnelPolicy, datapath: Datapath) -> None:
    """Go over to that of another policy. Raises `OperatorError` XF3009."""
    if after.interface == before.interface:
        return
    if _number(before) != _number(after):
        remove_interface(before, datapath)
    try:
        set_interface(after, datapath)
    except OperatorError:
        _put_back(before, after, datapath)
        raise


def _put_back(before: TunnelPolicy, after: TunnelPolicy, datapath: Datapath) -> None:
    """The tunnel goes on as it was: its interface, too."""
    with suppress(OperatorError):
        if _number(before) != _number(after):
            remove_interface(after, datapath)
        set_interface(before, datapath)


def _number(policy: TunnelPolicy) -> int | None:
    return None if policy.interface is None else policy.interface.if_id


def begin_interfaces(
    tunnels: Iterable[Tunnel], datapaths: Datapaths, hear: Callable[[Occurrence], None]
) -> None:
    """Have those of all tunnels there, and none that an earlier daemon has left besides."""
    wanted: defaultdict[Datapath, list[Tunnel]] = defaultdict(list)
    for tunnel in tunnels:
        if tunnel.placement.failure is None:
            wanted[datapaths.of(tunnel.policy)].append(tunnel)
    for datapath in datapaths.opened():
        interfaces = (tunnel.policy.interface for tunnel in wanted[datapath])
        datapath.interfaces.keep_only({i.if_id for i in interfaces if i is not None})
        for tunnel in wanted[datapath]:
            try:
                set_interface(tunnel.policy, datapath)
            except OperatorError as error:
                tunnel.last_failure = failure = error.failure
                name, text = tunnel.policy.name, failure.summary
                hear(Occurrence(event="interface-refused", tunnel=name, text=text, failure=failure))


def interface_status(policy: TunnelPolicy, datapath: Datapath | None) -> InterfaceStatus | None:
    """How the interface of a tunnel is at the moment; None if it has none."""
    wanted = policy.interface
    if wanted is None:
        return None
    state = None if datapath is None else datapath.interfaces.state(wanted.if_id)
    return InterfaceStatus(
        name=wanted.name if state is None else state.name,
        state="missing" if state is None else ("up" if state.is_up else "down"),
        if_id=wanted.if_id,
        mtu=0 if state is None else state.mtu,
        addresses=[str(address) for address in wanted.addresses],
        vrf=wanted.vrf,
        namespace=wanted.namespace,
        adopted=state is not None and state.is_adopted,
    )
