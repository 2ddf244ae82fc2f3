"""`xfrmpy status`: all tunnels as a table, or one tunnel with everything that is known of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from xfrmpy.cli.documents import failure_of, status_document
from xfrmpy.cli.failure import failure_lines
from xfrmpy.cli.terminal import (
    Cell,
    Painter,
    duration,
    octets,
    printable,
    say,
    table,
    wrapped,
)
from xfrmpy.control.client import Client
from xfrmpy.control.protocol import ChildSaStatus, InterfaceStatus, StatusReply, TunnelStatus
from xfrmpy.failures import ExitCode

_STATE_STYLES = {
    "up": "green",
    "connecting": "yellow",
    "disconnecting": "yellow",
    "waiting": "cyan",
    "down": "dim",
}
_NAT_WORDS = {
    "none": "none on the way",
    "local": "we are behind one",
    "remote": "the peer is behind one",
}
_LABEL_COLUMNS = 10


def show_status(client: Client, tunnel: str | None, *, as_json: bool) -> int:
    """Print it; 0, or 3 if one tunnel was asked for and it is not up."""
    status = client.status(tunnel)
    if as_json:
        say(status_document(status))
    else:
        for line in status_lines(status, Painter(sys.stdout), named=tunnel is not None):
            say(line)
    named_is_down = tunnel is not None and any(t.state != "up" for t in status.tunnels)
    return ExitCode.NOT_UP if named_is_down else ExitCode.DONE


def status_lines(status: StatusReply, paint: Painter, *, named: bool) -> list[str]:
    """All tunnels as a table, or the one that was asked for, in full."""
    return _each(status, paint) if named else overview_lines(status, paint)


def _each(status: StatusReply, paint: Painter) -> list[str]:
    return [line for tunnel in status.tunnels for line in tunnel_lines(tunnel, paint)]


def overview_lines(status: StatusReply, paint: Painter) -> list[str]:
    """The table, the last failure of each tunnel that is down, and a line about the daemon."""
    lines: list[str] = []
    if status.tunnels:
        header = ("TUNNEL", "STATE", "PEER", "UP FOR", "DATAPATH", "IN", "OUT")
        rows = [_row(tunnel) for tunnel in status.tunnels]
        lines += table(header, rows, paint, right=frozenset({3, 5, 6}))
    else:
        lines.append(
            "The daemon knows no tunnel: put a policy file where it looks, and restart it."
        )
    failed = [line for tunnel in status.tunnels for line in _failed(tunnel, paint)]
    return [*lines, *([""] if failed else []), *failed, "", *_daemon(status, paint)]


def _row(tunnel: TunnelStatus) -> list[Cell]:
    style = "red" if tunnel.failure is not None else _STATE_STYLES.get(tunnel.state, "")
    is_up = tunnel.state == "up"
    children = {child.child: child for child in tunnel.children}.values()  # Their totals are one.
    octets_in = octets(sum(child.total_octets_in for child in children))
    octets_out = octets(sum(child.total_octets_out for child in children))
    return [
        (printable(tunnel.name), "bold"),
        (printable(tunnel.state), style),
        (printable(tunnel.peer) or "any", ""),
        (duration(tunnel.seconds_up) if is_up else "-", ""),
        (printable(tunnel.datapath) if is_up else "-", ""),
        (octets_in if is_up else "-", ""),
        (octets_out if is_up else "-", ""),
    ]


def _failed(tunnel: TunnelStatus, paint: Painter) -> list[str]:
    if tunnel.failure is None:
        return []
    failure = failure_of(tunnel.failure)
    name = printable(tunnel.name)
    text = f"{failure.kind.title}: `xfrmpy status {name}`"
    lines = wrapped(text, paint.width, first=f"{name}: {failure.code} ")
    return [paint.command(line) for line in lines]


def _daemon(status: StatusReply, paint: Painter) -> list[str]:
    dropped = sum(status.drops.values())
    reasons = sorted(status.drops.items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(f"{printable(reason)} {count:,}" for reason, count in reasons if count)
    text = f"daemon {printable(status.version)}, pid {status.pid}, up {duration(status.seconds_up)}"
    if dropped:
        text += f"; dropped {dropped:,} {_plural('datagram', dropped)} ({told})"
    return [paint(line, "dim") for line in wrapped(text, paint.width)]


def tunnel_lines(tunnel: TunnelStatus, paint: Painter) -> Iterator[str]:
    """One tunnel: its IKE SA, its Child SAs with their counters, its last failure."""
    yield _headline(tunnel, paint)
    ike_spis = f"{tunnel.spi_i} (i) / {tunnel.spi_r} (r)" if tunnel.spi_i else ""
    for label, parts in (
        ("peer", (tunnel.remote_address or tunnel.peer or "any", tunnel.remote_id)),
        ("us", (tunnel.local_address, tunnel.local_id)),
        ("IKE SA", (tunnel.suite, _ppk(tunnel))),
        ("SPIs", (ike_spis,)),
        ("NAT", (_nat(tunnel),)),
        ("datapath", (tunnel.datapath, tunnel.datapath_reason)),
        ("interface", _interface(tunnel.interface)),
    ):
        yield from labelled(label, parts, paint)
    for first, *others in _groups(tunnel.children):
        yield ""
        yield from _child(first, paint, is_alone=not (others or _is_bound(first)))
        for child in (first, *others) if others or _is_bound(first) else ():
            yield from _of_lane(child, paint)
    if tunnel.failure is not None:
        yield ""
        yield from failure_lines(failure_of(tunnel.failure), paint, tunnel=tunnel.name)


def _headline(tunnel: TunnelStatus, paint: Painter) -> str:
    style = "red" if tunnel.failure is not None else _STATE_STYLES.get(tunnel.state, "")
    head = f"{paint(printable(tunnel.name), 'bold')}  {paint(printable(tunnel.state), style)}"
    if tunnel.state != "up":
        return head
    return f"{head} for {duration(tunnel.seconds_up)}, as {printable(tunnel.role)}"


def labelled(label: str, parts: tuple[str, ...], paint: Painter, indent: str = "  ") -> list[str]:
    """`  label     part   part`; nothing at all if there is nothing to tell."""
    first = indent + label.ljust(_LABEL_COLUMNS)
    told = [printable(part) for part in dict.fromkeys(parts) if part]
    together = "   ".join(told)
    if len(first) + len(together) <= paint.width:
        return [paint(first, "dim") + together] if told else []
    lines = [line for part in told for line in wrapped(part, paint.width, first=" " * len(first))]
    return [paint(first, "dim") + lines[0][len(first) :], *lines[1:]]


def _ppk(tunnel: TunnelStatus) -> str:
    """In IKE_INTERMEDIATE it protects the IKE SA as well."""
    named = f"PPK {tunnel.ppk}" if tunnel.ppk else ""
    return f"{named} in {tunnel.ppk_exchange}" if tunnel.ppk_exchange else named


def _nat(tunnel: TunnelStatus) -> str:
    """Asking for ESP in UDP means to claim a NAT, so then nobody can tell whether there is one."""
    words = tunnel.nat.split(", ")
    if "forced" in words:
        return "unknown, because ESP in UDP was asked for"
    return ", ".join(_NAT_WORDS.get(word, word) for word in words)


def _interface(interface: InterfaceStatus | None) -> tuple[str, ...]:
    if interface is None:
        return ()
    return (
        f"{interface.name} {interface.state}",
        *interface.addresses,
        f"mtu {interface.mtu}" if interface.mtu else "",
        f"vrf {interface.vrf}" if interface.vrf else "",
        f"namespace {interface.namespace}" if interface.namespace else "",
        f"if_id 0x{interface.if_id:x}",
        "somebody else's" if interface.adopted else "",
    )


def _child(child: ChildSaStatus, paint: Painter, *, is_alone: bool) -> Iterator[str]:
    name = paint(printable(child.child), "bold")
    yield f"  child {name}  {printable(child.mode)} mode, up for {duration(child.total_seconds_up)}"
    selectors = f"{', '.join(child.local)} <=> {', '.join(child.remote)}"
    into = (
        f"spi {child.spi_in}" if is_alone else "",
        _carried(child.total_octets_in, child.total_packets_in),
    )
    out = (
        f"spi {child.spi_out}" if is_alone else "",
        _carried(child.total_octets_out, child.total_packets_out),
    )
    for label, parts in (
        ("carries", (selectors,)),
        ("suite", (child.suite,)),
        ("in", into),
        ("out", out),
        ("refused", (_refused(child),)),
        ("rekeyed", (_since_rekeying(child) if is_alone else "",)),
    ):
        yield from labelled(label, parts, paint, indent="    ")


def _groups(children: list[ChildSaStatus]) -> list[list[ChildSaStatus]]:
    """Those with the same traffic together, if they are workers' or CPUs'; by these."""
    shared = {_traffic(child) for child in children if _is_bound(child)}
    groups: dict[object, list[ChildSaStatus]] = {}
    for child in children:
        traffic = _traffic(child)
        groups.setdefault(traffic if traffic in shared else child.spi_in, []).append(child)
    return [sorted(group, key=_lane) for group in groups.values()]


def _traffic(child: ChildSaStatus) -> tuple[str, ...]:
    return (child.child, *child.local, "to", *child.remote)


def _is_bound(child: ChildSaStatus) -> bool:
    return child.worker is not None or child.cpu is not None


def _lane(child: ChildSaStatus) -> int:
    """What is of no CPU comes first."""
    lanes = (lane for lane in (child.worker, child.cpu) if lane is not None)
    return next(lanes, -1)


def _of_lane(child: ChildSaStatus, paint: Painter) -> list[str]:
    what = "worker" if child.worker is not None else "cpu"
    parts = (
        f"spi {child.spi_in} in, {_carried(child.octets_in, child.packets_in)}",
        f"spi {child.spi_out} out, {_carried(child.octets_out, child.packets_out)}",
    )
    number = _lane(child) if _is_bound(child) else "any"
    return labelled(f"{what} {number}", parts, paint, indent="    ")


def _carried(count: int, packets: int) -> str:
    return f"{octets(count)} in {packets:,} {_plural('packet', packets)}"


def _refused(child: ChildSaStatus) -> str:
    """Only what is not zero: on a healthy tunnel this line is missing."""
    counts = (
        (child.total_replayed, "replayed"),
        (child.total_integrity_failed, "failed integrity"),
    )
    return ", ".join(f"{count:,} {what}" for count, what in counts if count)


def _since_rekeying(child: ChildSaStatus) -> str:
    """Only of one that has taken another's place: all else is of both."""
    if child.total_seconds_up - child.seconds_up < 1:
        return ""
    carried = f"since then {octets(child.octets_in)} in, {octets(child.octets_out)} out"
    return f"{duration(child.seconds_up)} ago, {carried}"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"
