"""The checks of `xfrmpy doctor`: pure decisions about a `Host`, each a row of the table at the end.

A problem is what certainly keeps a tunnel of the policy, or any tunnel, from working or from being
safe; what may be meant, or is only so for some, is a note.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from xfrmpy.cli.doctor.findings import Check, Finding
from xfrmpy.cli.doctor.firewall import check_firewall
from xfrmpy.cli.doctor.host import PORTS, Host, Process, UdpSocket, Unseen
from xfrmpy.cli.doctor.settings import (
    check_forwarding,
    check_mtu,
    check_protection,
    check_redirects,
    check_reverse_path,
)
from xfrmpy.control.protocol import StatusReply
from xfrmpy.control.trial import TrialReply
from xfrmpy.failures import Failure
from xfrmpy.policy.errors import PolicyError
from xfrmpy.policy.model import DatapathChoice, StartMode

_DAY = 86400.0
_NOT_RUNNING = "XF4001"


def diagnose(host: Host) -> list[Finding]:
    """Every check has at least one finding, if only that all is well."""
    return [finding for name, check in CHECKS.items() for finding in check(Check(name), host)]


def _check_rights(check: Check, host: Host) -> Iterator[Finding]:
    if host.user:
        yield check.note(
            "without root, part of this host cannot be seen",
            ("not seen", "who has a UDP port, rules of nf_tables, secrets"),
            fix="run it with sudo",
        )
    else:
        yield check.ok("run as root: everything can be seen")


def _check_kernel(check: Check, host: Host) -> Iterator[Finding]:
    if isinstance(host.trial, Unseen):
        yield check.unseen("whether the kernel has ESP", host.trial)
        return
    if not host.trial.kernel:
        yield check.ok(
            "the kernel has ESP: tunnels use its datapath",
            ("modes", ", ".join(host.trial.modes)),
            ("suites", f"{len(host.trial.suites)} that work"),
            *(_sentence(name, why) for name, why in host.trial.missing.items()),
        )
        return
    wanting = _named(host, DatapathChoice.KERNEL)
    evidence = (("the kernel", host.trial.kernel),)
    if wanting:
        yield check.problem(
            "a policy wants the kernel datapath, which this kernel cannot be",
            *evidence,
            ("`datapath: kernel`", ", ".join(wanting)),
            code="XF3001",
            fix="load or install the modules (`modprobe esp4 esp6`), or say `datapath: auto`",
        )
    else:
        yield check.note(
            "the kernel has no ESP: tunnels use the userspace datapath, which is slower",
            *evidence,
            fix="`modprobe esp4 esp6`, where the kernel has these modules; in a container they "
            "are the host's",
        )


def _sentence(name: str, why: str) -> tuple[str, str]:
    return f"no {name}", why


def _named(host: Host, choice: DatapathChoice) -> list[str]:
    return [t.name for t in host.policy.tunnels if t.datapath is choice]


def _check_userspace(check: Check, host: Host) -> Iterator[Finding]:
    """TUN and nf_tables: needed where the kernel has no ESP or policy says so."""
    if isinstance(host.trial, Unseen):
        yield check.unseen("whether the userspace datapath can run", host.trial)
        return
    lacks = _lacks(host.trial)
    needed = host.trial.kernel or _named(host, DatapathChoice.USERSPACE)
    if not lacks:
        yield check.ok("the userspace datapath has what it needs: TUN and nf_tables")
    elif needed:
        yield check.problem(
            "the userspace datapath, which is needed here, cannot run",
            *lacks,
            code="XF3001",
            fix="`modprobe tun nf_tables`; a container needs /dev/net/tun and CAP_NET_ADMIN",
        )
    else:
        yield check.note("the userspace datapath could not run, and is not needed", *lacks)


def _lacks(trial: TrialReply) -> list[tuple[str, str]]:
    pairs = (("TUN", trial.tun), ("nf_tables", trial.nf_tables))
    return [(name, why) for name, why in pairs if why]


def _check_ports(check: Check, host: Host) -> Iterator[Finding]:
    for port in PORTS:
        sockets = [socket for socket in host.sockets if socket.port == port]
        yield _judge_port(check, port, sockets)


def _judge_port(check: Check, port: int, sockets: Sequence[UdpSocket]) -> Finding:
    owners = {owner for socket in sockets for owner in socket.owners}
    others = sorted((o for o in owners if not o.is_ours), key=lambda owner: owner.pid)
    places = ("at", ", ".join(sorted({socket.address for socket in sockets})))
    if not sockets:
        return check.ok(f"UDP port {port} is free")
    if others:
        first = others[0]
        return check.problem(
            f"UDP port {port} is another program's",
            ("held by", ", ".join(map(str, others))),
            places,
            code="XF4002",
            fix=f"stop it: `systemctl stop {first.name}`, or `kill {first.pid}`",
        )
    if owners:
        return check.ok(f"UDP port {port} is ours", ("held by", ", ".join(_words(owners))), places)
    return check.unseen(
        f"UDP port {port} is in use, and by whom",
        Unseen("only root sees whose a socket is, and of other namespaces nobody"),
    )


def _words(owners: set[Process]) -> list[str]:
    return [str(owner) for owner in sorted(owners, key=lambda owner: owner.pid)]


def _check_other_daemons(check: Check, host: Host) -> Iterator[Finding]:
    if not host.others:
        yield check.ok("no other IPsec daemon runs here")
        return
    unsure = [p.name for p in host.others if p.elsewhere is None]
    yield check.note(
        "another IPsec daemon runs here; the kernel can be shared, UDP port 500 cannot",
        ("running", ", ".join(map(str, host.others))),
        *(
            [("maybe elsewhere", f"{', '.join(unsure)}: only root sees the namespace")]
            * bool(unsure)
        ),
        fix="stop the one that is not wanted, and disable its unit",
    )


def _check_policy(check: Check, host: Host) -> Iterator[Finding]:
    for error in host.policy.errors:
        yield check.problem(
            error.message, _place(error), code=error.code, fix=error.hint or "see `xfrmpy check`"
        )
    for warning in host.policy.warnings:
        yield check.note(f"{warning.code}: {warning.message}", _place(warning), fix=warning.hint)
    if not host.policy.errors:
        names = ", ".join(tunnel.name for tunnel in host.policy.tunnels)
        yield check.ok(f"the policy has no errors; tunnels: {names or 'none'}")


def _place(error: PolicyError) -> tuple[str, str]:
    return "at", f"{error.file}:{error.line}:{error.column}"


def _check_files(check: Check, host: Host) -> Iterator[Finding]:
    """Who may change what the daemon obeys, and read what nobody should."""
    told = [error.message for error in host.policy.errors]
    faults = 0
    for place in host.places:
        if any(place.path in message for message in told):
            continue
        if place.owner not in host.trusted:
            fault = ("belongs to another user, who can change it", f"uid {place.owner}")
            fix = f"`chown root {place.path}`"
        elif place.is_secret and place.mode & 0o077:
            fault = ("is a secret that others can read", f"mode {place.mode:04o}")
            fix = f"`chmod 600 {place.path}`"
        elif place.mode & 0o022:
            fault = ("can be changed by others", f"mode {place.mode:04o}")
            fix = f"`chmod go-w {place.path}`"
        else:
            continue
        faults += 1
        yield check.problem(f"{place.path} {fault[0]}", ("it has", fault[1]), fix=fix)
    for reason in host.unread:
        yield check.unseen("the permissions of all files", Unseen(reason))
    if not faults and not host.unread:
        yield check.ok("nobody else can change the policy or read the secrets")


def _check_daemon(check: Check, host: Host) -> Iterator[Finding]:
    if isinstance(host.daemon, Failure):
        yield _judge_silence(check, host, host.daemon)
        return
    if host.daemon.version != host.version:
        yield check.problem(
            "the daemon that runs is of another version than this command",
            ("daemon", host.daemon.version),
            ("command", host.version),
            fix="`systemctl restart xfrmpyd`: no peer notices",
        )
    else:
        yield check.ok(f"the daemon answers (process {host.daemon.pid}, {host.version})")
    yield from _judge_tunnels(check, host.daemon)


def _judge_silence(check: Check, host: Host, failure: Failure) -> Finding:
    is_wanted = any(t.start is not StartMode.MANUAL for t in host.policy.tunnels)
    if failure.code == _NOT_RUNNING and not is_wanted:
        return check.note("no daemon runs, and no tunnel waits for one", *failure.evidence)
    return check.problem(failure.summary, *failure.evidence, code=failure.code)


def _judge_tunnels(check: Check, daemon: StatusReply) -> Iterator[Finding]:
    for tunnel in daemon.tunnels:
        if tunnel.failure is not None:
            yield check.note(
                f"tunnel {tunnel.name} has failed: {tunnel.failure.code} {tunnel.failure.summary}",
                fix=f"`xfrmpy describe {tunnel.name}` has both sides' values and likely causes",
            )


def _check_units(check: Check, host: Host) -> Iterator[Finding]:
    if isinstance(host.units, Unseen):
        yield check.unseen("whether the daemon is started at boot", host.units)
        return
    missing = [unit for unit, state in host.units.items() if state == "not-found"]
    off = [f"{unit} {state}" for unit, state in host.units.items() if state != "enabled"]
    if missing:
        yield check.note(
            "the units are not installed: nothing is started at boot",
            ("missing", ", ".join(missing)),
            fix="`xfrmpy units --install`, then `systemctl enable --now xfrmpy-block xfrmpyd`",
        )
    elif off:
        yield check.note(
            "not everything is started at boot",
            ("units", ", ".join(off)),
            fix="`systemctl enable --now xfrmpy-block xfrmpyd`",
        )
    else:
        yield check.ok("the daemon and the block are started at boot")


def _check_clock(check: Check, host: Host) -> Iterator[Finding]:
    behind = host.clock.installed_at - host.clock.now
    if behind > _DAY:
        yield check.problem(
            "the clock is behind the installation of xfrmpy",
            ("days behind", f"{behind / _DAY:.0f} or more"),
            fix="set it: `timedatectl set-ntp true`, or `date -s`",
        )
    elif not host.clock.is_synchronised:
        yield check.note(
            "the clock is not synchronised: times in the log may be wrong (shared keys need none)",
            fix="`timedatectl set-ntp true`; in a container it is the host's",
        )
    else:
        yield check.ok("the clock is synchronised")


def _check_default(check: Check, host: Host) -> Iterator[Finding]:
    """It is heeded by what goes through the device of user space, too, as by everything."""
    what = "the kernel's default policy"
    if isinstance(host.kernel, Unseen):
        yield check.unseen(what, host.kernel)
        return
    if "kernel" in host.kernel.unread:
        yield check.unseen(what, Unseen(host.kernel.unread["kernel"]))
        return
    blocking = [each for each in host.kernel.defaults if each.action == "discard"]
    foreign = [each for each in blocking if each.owner == "foreign"]
    drops = ("drops", ", ".join(f"{each.direction} ({each.owner})" for each in blocking))
    in_userspace = not isinstance(host.trial, Unseen) and host.trial.kernel
    if not blocking:
        yield check.ok("the kernel lets pass what no policy matches")
    elif in_userspace or _named(host, DatapathChoice.USERSPACE):
        yield check.problem(
            "the kernel drops what no policy matches, all of tunnels in user space included",
            drops,
            fix="`ip xfrm policy setdefault in accept out accept fwd accept`",
        )
    elif foreign:
        yield check.note(
            "another program has the kernel drop what no policy matches; IKE of ours passes",
            drops,
            fix="if it is not meant: `ip xfrm policy setdefault in accept out accept fwd accept`",
        )
    else:
        yield check.ok(
            "the kernel drops what no policy matches, as `default` of a shunt says", drops
        )


CHECKS: Mapping[str, Callable[[Check, Host], Iterator[Finding]]] = {
    "rights": _check_rights,
    "policy": _check_policy,
    "files": _check_files,
    "kernel": _check_kernel,
    "userspace": _check_userspace,
    "ports": _check_ports,
    "other-daemons": _check_other_daemons,
    "firewall": check_firewall,
    "default-policy": _check_default,
    "forwarding": check_forwarding,
    "reverse-path": check_reverse_path,
    "protection": check_protection,
    "redirects": check_redirects,
    "mtu": check_mtu,
    "clock": _check_clock,
    "units": _check_units,
    "daemon": _check_daemon,
}
"""In the order in which they are told: what others depend on first."""
