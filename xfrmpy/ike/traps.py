"""Trap policies: what a tunnel of `start: on-demand` has in force before there is a Child SA.

A packet that meets one asks for an SA (RFC 4301 section 4.4.1), and nothing goes in clear. A trap
stands beneath the entries of Child SAs (`policies`): theirs come into its place, and when they go,
it holds again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from xfrmpy.failures import Failure
from xfrmpy.ike.core import Core
from xfrmpy.ike.modes import policy_between
from xfrmpy.ike.outputs import AddPolicy, AddSa, RemovePolicy, TrapsRefused
from xfrmpy.ipsec.addresses import IKE_PORT, Path, SocketAddress
from xfrmpy.ipsec.spd import PolicyDirection, SpdEntry, Template, protect_entries
from xfrmpy.policy.model import ChildPolicy, StartMode, TunnelPolicy


def set_traps(core: Core, tunnel: str, path: Path | None) -> None:
    """Have the traps of a tunnel lead to these ends, in place of others; None: have none."""
    for change in trap_changes(core, tunnel, path):
        core.emit(change)


def follow_policy(core: Core, tunnel: str) -> None:
    """The policy of a tunnel is another: so are its traps, between the same ends."""
    set_traps(core, tunnel, core.trapped.get(tunnel))


def trap_changes(core: Core, tunnel: str, path: Path | None) -> Iterator[AddPolicy | RemovePolicy]:
    """The same, but what comes of it is the caller's to emit. What is new comes first."""
    policy = core.tunnels[tunnel].policy
    old = {reqid for reqid, (name, _) in core.trapped_children.items() if name == tunnel}
    wanted = {} if path is None else _additions(policy, path)
    core.trapped.pop(tunnel, None)
    if path is not None and wanted:
        core.trapped[tunnel] = path
    for reqid, additions in wanted.items():
        core.trapped_children[reqid] = (tunnel, additions[0].child)
        for addition in additions:
            change = core.policies.stand(addition)
            if change is not None:
                yield change
    for reqid in old | wanted.keys():
        places = [a.entry.place for a in wanted.get(reqid, ())]
        yield from core.policies.release(_owner(reqid), but=places)
    for reqid in old - wanted.keys():
        del core.trapped_children[reqid]


def adopt_traps(core: Core, spd: Iterable[SpdEntry]) -> None:
    """Know of the traps that an earlier daemon has left in force, by where they lead."""
    leads = {
        entry.template.reqid: entry.template
        for entry in spd
        if entry.template is not None and entry.direction is PolicyDirection.OUT
    }
    for name, tunnel in core.tunnels.items():
        if tunnel.policy.start is StartMode.ON_DEMAND:
            there = (leads[c.reqid] for c in tunnel.policy.children if c.reqid in leads)
            template = next(there, None)
            if template is not None:
                # What of it is not in force is put in force by whoever compares the two.
                list(trap_changes(core, name, _path(template)))


def trap_apart(core: Core, spi_in: int) -> SpdEntry | None:
    """The trap by which the rest of a child's traffic goes on asking, where a Child SA has a part
    of it and so another reqid."""
    child = core.children.get(spi_in)
    if child is None or child.reqid == child.policy.reqid:
        return None
    entries = core.policies.of_owner(_owner(child.policy.reqid))
    return next((e for e in entries if e.direction is PolicyDirection.OUT), None)


def traps_refused(
    core: Core, output: AddSa | AddPolicy, reason: str, not_done: Iterable[AddSa | AddPolicy]
) -> None:
    """The datapath has not taken one: of that tunnel there are to be none, until they are set."""
    core.withdraw_additions(output.owner)
    refused = {addition.entry for addition in (output, *not_done)}
    for change in trap_changes(core, output.tunnel, None):
        if change.entry not in refused:
            core.emit(change)
    failure = Failure(code="XF3002", summary=reason)
    core.emit(TrapsRefused(tunnel=output.tunnel, child=output.child, failure=failure))


def _additions(policy: TunnelPolicy, path: Path) -> dict[int, list[AddPolicy]]:
    """By the children's reqids; a child that cannot be had on the path has none."""
    if policy.start is not StartMode.ON_DEMAND:
        return {}
    found = {}
    for child in policy.children:
        additions = [
            AddPolicy(owner=_owner(child.reqid), tunnel=policy.name, child=child.name, entry=entry)
            for entry in _entries(policy_between(child, path), path)
        ]
        if additions:
            found[child.reqid] = additions
    return found


def _entries(child: ChildPolicy, path: Path) -> tuple[SpdEntry, ...]:
    ours, theirs = path.local.address, path.remote.address
    outbound, inbound = (
        Template(
            source=source,
            destination=destination,
            reqid=child.reqid,
            protocol=child.protocol,
            mode=child.mode,
        )
        for source, destination in ((ours, theirs), (theirs, ours))
    )
    return protect_entries(
        local=child.local,
        remote=child.remote,
        outbound=outbound,
        inbound=inbound,
        priority=child.priority,
        mark_out=child.mark_out,
        mark_in=child.mark_in,
        if_id=child.if_id,
    )


def _owner(reqid: int) -> int:
    """Of a claim: no Child SA has such an SPI."""
    return -reqid


def _path(template: Template) -> Path:
    return Path(
        local=SocketAddress(template.source, IKE_PORT),
        remote=SocketAddress(template.destination, IKE_PORT),
    )
