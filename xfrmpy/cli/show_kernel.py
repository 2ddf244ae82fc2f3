"""`xfrmpy show kernel`: what is in force on both datapaths, whosever it is, and what was dropped.

The daemon knows whose each entry is. Where there is none, a program of its own reads the kernel,
for whoever may; this command itself could not, it knows no datapath.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from xfrmpy.cli.documents import document
from xfrmpy.cli.terminal import (
    Cell,
    Painter,
    duration,
    natural_width,
    note,
    octets,
    printable,
    say,
    table,
    wrapped,
)
from xfrmpy.control.client import Client, read_reply
from xfrmpy.control.kernel import (
    ErrorCounter,
    InterfaceInForce,
    KernelReply,
    PolicyInForce,
    SaInForce,
)
from xfrmpy.failures import ExitCode, OperatorError

_STYLES = {"ours": "", "foreign": "yellow", "socket": "dim"}


def show_kernel(client: Client, tunnel: str | None, *, as_json: bool) -> int:
    """Print it, as the daemon tells it or, where there is none, the kernel itself."""
    try:
        reply = client.show_kernel(tunnel)
    except OperatorError as error:
        if error.failure.code != "XF4001":
            raise
        reply = _read_without_daemon(error, tunnel)
        note("no daemon runs: this is the kernel's own view, and nobody knows names")
    if as_json:
        say(document("Kernel", **asdict(reply)))
    else:
        for line in kernel_lines(reply, Painter(sys.stdout), in_full=tunnel is not None):
            say(line)
    return ExitCode.DONE


def _read_without_daemon(absent: OperatorError, tunnel: str | None) -> KernelReply:
    """Raises `absent` with the reason why it cannot be read."""
    if tunnel is not None:
        raise _unread(absent, "nobody knows which entries are a tunnel's") from absent
    # -P: the current directory, which may be anybody's, does not belong on a root's import path.
    command = [sys.executable, "-P", "-m", "xfrmpy.daemon.inventory"]
    try:
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    except (OSError, subprocess.CalledProcessError) as error:
        raise _unread(absent, f"what reads the kernel does not run: {error}") from error
    reply = read_reply(KernelReply, done.stdout)
    if "kernel" in reply.unread:
        raise _unread(absent, reply.unread["kernel"]) from absent
    return reply


def _unread(absent: OperatorError, reason: str) -> OperatorError:
    failure = absent.failure
    evidence = (*failure.evidence, ("without a daemon", reason))
    return OperatorError(failure.code, failure.summary, evidence)


def kernel_lines(reply: KernelReply, paint: Painter, *, in_full: bool) -> Iterator[str]:
    """Tables where they fit, and a paragraph for each entry where not, or if all is wanted."""
    yield from _section("SAs", reply.sas, paint)
    yield from _entries(
        ("OWNER", "DIR", "SPI", "FROM", "TO", "REQID", "SUITE", "CARRIED"),
        [_sa_row(sa) for sa in reply.sas],
        [_sa_paragraph(sa, paint) for sa in reply.sas],
        paint,
        in_full=in_full,
    )
    yield from _section("policies", reply.policies, paint)
    yield from _entries(
        ("OWNER", "DIR", "SELECTOR", "ACTION", "PRIORITY", "SA"),
        [_policy_row(policy) for policy in reply.policies],
        [_policy_paragraph(policy, paint) for policy in reply.policies],
        paint,
        in_full=in_full,
    )
    yield from _defaults(reply, paint)
    if reply.interfaces:
        yield from ("", paint("interfaces", "bold"))
        for device in reply.interfaces:
            yield from wrapped(_interface_words(device), paint.width, first="  ", rest="    ")
    yield from _errors(reply.errors, paint)
    for datapath, reason in reply.unread.items():
        yield ""
        words = f"{datapath} was not read: {printable(reason)}"
        yield from wrapped(words, paint.width, rest="  ")


def _section(
    title: str, entries: list[SaInForce] | list[PolicyInForce], paint: Painter
) -> Iterator[str]:
    owners = [entry.owner for entry in entries]
    foreign = owners.count("foreign")
    sockets = owners.count("socket")
    counts = [f"{len(owners)}"]
    counts += [f"{foreign} foreign"] if foreign else []
    counts += [f"{sockets} of sockets"] if sockets else []
    if title != "SAs":
        yield ""
    yield f"{paint(title, 'bold')}: {', '.join(counts)}"


def _defaults(reply: KernelReply, paint: Painter) -> Iterator[str]:
    """Only where it is another than the usual one."""
    if any(each.action == "discard" for each in reply.defaults):
        yield from ("", paint("what no policy matches", "bold"))
        for each in reply.defaults:
            words = ", ".join(filter(None, (f"{each.direction} {each.action}", each.owner)))
            yield f"  {paint(words, _STYLES.get(each.owner, ''))}"


def _entries(
    header: tuple[str, ...],
    rows: list[list[Cell]],
    paragraphs: list[list[str]],
    paint: Painter,
    *,
    in_full: bool,
) -> Iterator[str]:
    if rows and not in_full and natural_width(header, rows) <= paint.width:
        yield from table(header, rows, paint, right=frozenset())
        return
    for paragraph in paragraphs:
        yield from paragraph


def _owner(entry: SaInForce | PolicyInForce) -> Cell:
    """`office/lan`, just `office` where the child has that name, or what is known of it."""
    if entry.tunnel:
        same = entry.child in ("", entry.tunnel)
        return printable(entry.tunnel if same else f"{entry.tunnel}/{entry.child}"), "bold"
    words = {"ours": "ours, of no tunnel", "socket": "a socket"}
    return words.get(entry.owner, entry.owner), _STYLES.get(entry.owner, "")


def _sa_row(sa: SaInForce) -> list[Cell]:
    return [
        _owner(sa),
        (sa.direction or "-", ""),
        (sa.spi, ""),
        (sa.source, ""),
        (sa.destination, ""),
        (_reqid(sa.reqid), ""),
        (f"{sa.protocol} {sa.mode} {printable(sa.suite)}", ""),
        (octets(sa.octets), ""),
    ]


def _policy_row(policy: PolicyInForce) -> list[Cell]:
    return [
        _owner(policy),
        (policy.direction, ""),
        (printable(policy.selector), ""),
        (policy.action, ""),
        (str(policy.priority), ""),
        (", ".join(_reqid(template.reqid) for template in policy.templates) or "-", ""),
    ]


def _sa_paragraph(sa: SaInForce, paint: Painter) -> list[str]:
    name, style = _owner(sa)
    head = f"{sa.direction or '-'}  {sa.protocol} {sa.spi}"
    carried = f"{octets(sa.octets)} in {sa.packets:,} packets"
    refused = [(sa.replayed, "replayed"), (sa.integrity_failed, "failed integrity")]
    ages = [(sa.seconds_old, "old"), (sa.seconds_idle, "idle")]
    limits = (f"{name.replace('_', ' ')} {limit:,}" for name, limit in sa.limits.items())
    details = [
        f"{sa.source} -> {sa.destination}",
        f"{sa.mode} mode, {printable(sa.suite)}, reqid {_reqid(sa.reqid)}, {sa.datapath}",
        ", ".join(_options(sa.options)),
        ", ".join([carried, *(f"{count:,} {what}" for count, what in refused if count)]),
        ", ".join([*(f"{duration(s)} {what}" for s, what in ages if s is not None), *limits]),
    ]
    return _paragraph(paint(name, style), head, details, paint)


def _policy_paragraph(policy: PolicyInForce, paint: Painter) -> list[str]:
    name, style = _owner(policy)
    head = f"{policy.direction}  {policy.action}"
    index = "" if policy.index is None else f", index {policy.index}"
    details = [
        printable(policy.selector),
        f"priority {policy.priority}{index}, {policy.datapath}",
        ", ".join(_options(policy.options)),
    ]
    for template in policy.templates:
        ends = f" {template.source} -> {template.destination}" if template.source else ""
        optional = ", optional" if template.optional else ""
        words = f"by {template.protocol} {template.mode} reqid {_reqid(template.reqid)}"
        details.append(f"{words}{ends}{optional}")
    return _paragraph(paint(name, style), head, details, paint)


def _paragraph(name: str, head: str, details: Iterable[str], paint: Painter) -> list[str]:
    lines = [f"  {name}  {head}"]
    for detail in filter(None, details):
        lines += wrapped(detail, paint.width, first="      ", rest="        ")
    return lines


def _options(options: dict[str, str]) -> Iterator[str]:
    return (f"{name.replace('_', ' ')} {printable(value)}" for name, value in options.items())


def _interface_words(device: InterfaceInForce) -> str:
    words = [f"{printable(device.name)}, {device.kind}, {'up' if device.up else 'down'}"]
    words += [] if device.if_id is None else [f"id {device.if_id}"]
    words += [f"on {printable(device.underlying)}"] if device.underlying else []
    words += [f"MTU {device.mtu}", *device.addresses]
    words += [f"of {printable(', '.join(device.tunnels))}"] if device.tunnels else []
    return ", ".join(words)


def _errors(counters: list[ErrorCounter], paint: Painter) -> Iterator[str]:
    """Those that are not zero, each with what it means."""
    yield ""
    counted = [counter for counter in counters if counter.count]
    if not counted:
        yield "no packet was dropped by the kernel's IPsec or by the userspace worker"
        return
    yield paint("packets dropped", "bold")
    for counter in sorted(counted, key=lambda each: -each.count):
        name = paint(printable(counter.name), "yellow")
        yield f"  {counter.count:,}  {name} ({counter.datapath})"
        for words in (counter.meaning, counter.look_at and f"look at {counter.look_at}"):
            if words:
                lines = wrapped(printable(words), paint.width, first="      ")
                yield from (paint.command(line) for line in lines)


def _reqid(reqid: int) -> str:
    """Ours are easier to know in hex; others' were written in decimal."""
    return f"{reqid:#x}" if reqid > 0xFFFF else str(reqid)
