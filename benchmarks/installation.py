"""How fast SAs and policies come into force and go, beside `ip -batch` with the same of them.

`python -m benchmarks.installation --tunnels 10000`, as root, from the checkout. A tunnel is two SAs
(where the kernel has ESP), three policies, and the route that leads packets to them; both rivals
install all of that in a network namespace of their own, in which somebody else has entries, too. We
are measured twice: all tunnels at once, as when a flushed SPD is put back, and a tunnel at a time,
as they come up. `ip` reads a file that was written beforehand. Time is CPU time, the kernel's
included, which bears that others use the machine; neither rival ever waits for anything.
Removal takes only what was installed, on both sides: whatever was there before must be there after.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path
from tempfile import NamedTemporaryFile

from benchmarks.measure import conditions, medians, table, write_json
from integration.contract.sites import inside, run
from xfrmpy.datapath.kernel.datapath import KernelDatapath
from xfrmpy.datapath.routes import OUR_TABLE
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.algorithms import CIPHERS
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import OUR_REQIDS, Direction, SadEntry
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import PolicyDirection, SpdEntry, Template, protect_entries

Entry = SadEntry | SpdEntry
Figures = dict[str, float]

MAX_TUNNELS = 32_000
FOREIGN = 100
CIPHER = next(cipher for cipher in CIPHERS if cipher.name == "aes128gcm16")
SUITE = EspSuite(cipher=CIPHER, integrity=None, esn=True)
OURS = ip_address("198.18.0.1")
PEERS = IPv4Network("198.19.0.0/16")
LOCAL = IPv4Network("172.16.0.0/16")
REMOTE = IPv4Network("10.0.0.0/8")


def main() -> None:
    options = _parse()
    facts = conditions()
    rounds: list[Figures] = []
    for number in range(options.rounds):
        rounds.append(_round(options.tunnels))
        print(f"round {number + 1}: {rounds[-1]}", file=sys.stderr)
    result = medians(rounds)
    rows = [
        (f"{what}, {kind} a second", *(f"{result[f'{who} {what}']:,.0f}" for who in _RIVALS))
        for what in ("installed", "removed")
        for kind in ["entries"]
    ]
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    print(f"{options.tunnels} tunnels, {result['entries']:,.0f} SAs, policies and routes")
    print(table(("", *_RIVALS), rows))
    write_json(options.output, conditions=facts, tunnels=options.tunnels, rounds=rounds)


_RIVALS = ("at once", "one by one", "ip -batch")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.installation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--tunnels", type=int, default=10_000, choices=range(1, MAX_TUNNELS), metavar="N"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


def _round(count: int) -> Figures:
    figures: Figures = {}
    for who in _RIVALS:
        with _namespace(f"install-{os.getpid()}") as name:
            with inside(name), closing(KernelDatapath.open()) as datapath:
                tunnels = [_tunnel(number) for number in range(count)]
                if not datapath.probe().protocols:
                    tunnels = [[e for e in t if isinstance(e, SpdEntry)] for t in tunnels]
                before = _foreign(name)
                figures |= _rival(who, name, datapath, tunnels)
            assert _foreign(name) == before, f"{who} has touched others' entries"
    return figures


def _rival(
    who: str, namespace: str, datapath: KernelDatapath, tunnels: Sequence[Sequence[Entry]]
) -> Figures:
    entries = [entry for tunnel in tunnels for entry in tunnel]
    count = len(entries) + len(tunnels)  # with the routes
    if who == "ip -batch":
        install, remove = _batch(namespace, entries, "add"), _batch(namespace, entries, "delete")
    else:
        install = _at_once(datapath, entries) if who == "at once" else _each(datapath, tunnels)
        remove = _remove_ours(datapath, len(entries))
    installed = _seconds(install)
    _check(namespace, len(entries), len(tunnels))
    removed = _seconds(remove)
    _check(namespace, 0, 0)
    return {
        "entries": count,
        f"{who} installed": count / installed,
        f"{who} removed": count / removed,
    }


def _seconds(do: Callable[[], None]) -> float:
    """CPU seconds, of the kernel too, of this process and of those that it waits for.

    What is to be installed is not the collector's business, as the policy is not in the daemon.
    """
    gc.freeze()
    begun_at = _cpu_seconds()
    do()
    return _cpu_seconds() - begun_at


def _cpu_seconds() -> float:
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _at_once(datapath: KernelDatapath, entries: Sequence[Entry]) -> Callable[[], None]:
    return lambda: datapath.add(entries)


def _each(datapath: KernelDatapath, tunnels: Sequence[Sequence[Entry]]) -> Callable[[], None]:
    def install() -> None:
        for tunnel in tunnels:
            datapath.add(tunnel)

    return install


def _remove_ours(datapath: KernelDatapath, count: int) -> Callable[[], None]:
    def remove() -> None:
        assert datapath.remove_ours() == count

    return remove


def _batch(namespace: str, entries: Sequence[Entry], verb: str) -> Callable[[], None]:
    lines = [line for entry in entries for line in _commands(entry, verb)]
    with NamedTemporaryFile("w", prefix="install-", delete=False) as file:
        file.write("\n".join(lines) + "\n")

    def execute() -> None:
        subprocess.run(["ip", "-n", namespace, "-batch", file.name], check=True)
        Path(file.name).unlink()

    return execute


def _commands(entry: Entry, verb: str) -> Iterator[str]:
    if isinstance(entry, SadEntry):
        ends = f"src {entry.source} dst {entry.destination} proto esp spi {entry.spi:#x}"
        details = (
            f"reqid {entry.reqid} mode tunnel replay-window {entry.replay_window} flag af-unspec"
            f" esn aead {CIPHER.kernel_name} 0x{entry.encryption_key.hex()} {CIPHER.icv * 8}"
        )
        mark = f" output-mark {0x5846}" if entry.direction is Direction.OUT else ""
        yield f"xfrm state {verb} {ends}" + (f" {details}{mark}" if verb == "add" else "")
        return
    selector, template = entry.selector, entry.template
    assert template is not None
    which = f"src {selector.source} dst {selector.destination} dir {entry.direction}"
    asks = (
        f"priority {entry.priority} tmpl src {template.source} dst {template.destination}"
        f" proto esp reqid {template.reqid} mode tunnel"
    )
    yield f"xfrm policy {verb} {which}" + (f" {asks}" if verb == "add" else "")
    if entry.direction is PolicyDirection.OUT:
        yield f"route {verb} {selector.destination} dev wan table {OUR_TABLE} proto 88"


def _tunnel(number: int) -> list[Entry]:
    """In the order in which a Child SA comes into force."""
    peer = PEERS[number + 1]
    remote = ip_network((int(REMOTE.network_address) + (number << 8), 24))
    reqid = OUR_REQIDS[number]
    sas = [
        _sa(number, Direction.IN, peer, OURS, reqid),
        _sa(number, Direction.OUT, OURS, peer, reqid),
    ]
    policies = protect_entries(
        local=[TrafficSelector.parse(str(LOCAL))],
        remote=[TrafficSelector.parse(str(remote))],
        outbound=Template(source=OURS, destination=peer, reqid=reqid),
        inbound=Template(source=peer, destination=OURS, reqid=reqid),
    )
    return [*sas, *policies]


def _sa(
    number: int, direction: Direction, source: IpAddress, destination: IpAddress, reqid: int
) -> SadEntry:
    return SadEntry(
        direction=direction,
        spi=0x1000_0000 + 2 * number + (direction is Direction.OUT),
        source=source,
        destination=destination,
        reqid=reqid,
        suite=SUITE,
        encryption_key=os.urandom(CIPHER.keymat),
    )


@contextmanager
def _namespace(name: str) -> Iterator[str]:
    """With a device to the peers, and policies of somebody else's."""
    run("ip", "netns", "add", name)
    try:
        others = (
            f"xfrm policy add src 192.168.{number}.0/24 dst 192.0.2.0/24 dir {direction} priority 9"
            for number, direction in itertools.product(range(FOREIGN), ("in", "out", "fwd"))
        )
        lines = [
            "link add wan type veth peer wan-end",
            f"address add {OURS}/15 dev wan",
            *("link set wan up", "link set wan-end up"),
            *others,
            f"route add blackhole 192.0.2.0/24 table {OUR_TABLE} proto 77",
        ]
        batch = ["ip", "-n", name, "-batch", "-"]
        subprocess.run(batch, input="\n".join(lines), text=True, check=True)
        yield name
    finally:
        run("ip", "netns", "del", name)


def _foreign(namespace: str) -> list[str]:
    """The policies and the route of others, in full."""
    policies = run("ip", "-n", namespace, "xfrm", "policy")
    paragraphs = policies.replace("\n\t", " ").splitlines()
    routes = run("ip", "-n", namespace, "route", "show", "table", str(OUR_TABLE)).splitlines()
    return sorted(
        line for line in (*paragraphs, *routes) if "192.168." in line or "proto 77" in line
    )


def _check(namespace: str, entries: int, routes: int) -> None:
    """Each rival does all of it."""
    listed = run("ip", "-n", namespace, "route", "show", "table", str(OUR_TABLE)).splitlines()
    assert sum("proto 88" in line for line in listed) == routes
    states = run("ip", "-n", namespace, "xfrm", "state", "count").split()[-1]
    policies = run("ip", "-n", namespace, "xfrm", "policy", "list", "nosock").count("tmpl ")
    assert int(states) + policies == entries, (states, policies)


if __name__ == "__main__":
    main()
