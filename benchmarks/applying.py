"""What it costs to look for a change of policy, and to make one, among many tunnels.

`python -m benchmarks.applying --tunnels 1000`, as root, from the checkout: xfrmpy's `plan` and
`apply`, with nothing changed and with one tunnel changed, beside strongSwan's `swanctl
--load-conns` of the same tunnels, which is all that it has for either. Seconds until the command is
back, and CPU seconds of the daemon. No tunnel is up, so what the IKE core has to do is left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import (
    RIVALS,
    conditions,
    cpu_seconds,
    medians,
    prepare,
    processes,
    table,
    write_json,
)
from integration.lab.site import Site
from integration.lab.tunnel import Tunnel

Figures = dict[str, float]

UNCHANGED, CHANGED = "nothing changed", "one changed"

MAX_TUNNELS = 16_000


def main() -> None:
    options = _parse()
    prepare()
    facts = conditions()
    rounds: dict[str, list[Figures]] = {rival: [] for rival in RIVALS}
    for number in range(options.rounds):
        for rival, figures in (("xfrmpy", _xfrmpy), ("strongswan", _strongswan)):
            rounds[rival].append(figures(options.tunnels))
            print(f"round {number + 1}, {rival}: {rounds[rival][-1]}", file=sys.stderr)
    results = {rival: medians(rounds[rival]) for rival in RIVALS}
    rows = [
        (f"{rival} {name}", f"{value:.3f}")
        for rival in RIVALS
        for name, value in results[rival].items()
    ]
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    print(table((f"{options.tunnels} tunnels, s", ""), rows))
    write_json(options.output, conditions=facts, tunnels=options.tunnels, medians=results)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.applying", description=__doc__)
    parser.add_argument(
        "--tunnels", type=int, default=1000, choices=range(1, MAX_TUNNELS), metavar="N"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    return parser.parse_args()


def _xfrmpy(count: int) -> Figures:
    with Site() as site:
        gateway = site.xfrmpy(site.network.sun, *_tunnels(site, count))
        pid = gateway.pid
        figures: Figures = {}
        for what in (UNCHANGED, CHANGED):
            if what == CHANGED:
                _change(gateway.policies / "net1.yaml", "dpd: 11s\n")
            figures |= _cost(f"plan, {what}", pid, lambda: gateway.command("plan"))
            figures |= _cost(f"apply, {what}", pid, lambda: gateway.command("apply"))
        assert "Nothing to change" in gateway.command("plan").output
        gateway.kill()
        return figures


def _strongswan(count: int) -> Figures:
    with Site() as site:
        peer = site.strongswan(site.network.sun, *_tunnels(site, count))
        pid = processes(peer)["charon"]
        file = peer.logs[0].parent / "swanctl.conf"
        load = ("--load-conns", "--file", str(file))
        figures = _cost(f"load, {UNCHANGED}", pid, lambda: peer.swanctl(*load))
        file.write_text(file.read_text().replace("version = 2", "version = 2\ndpd_delay = 11s", 1))
        figures |= _cost(f"load, {CHANGED}", pid, lambda: peer.swanctl(*load))
        peer.kill()
        return figures


def _cost(name: str, pid: int, command: Callable[[], object]) -> Figures:
    before, begun_at = cpu_seconds(pid), time.perf_counter()
    command()
    seconds = time.perf_counter() - begun_at
    return {name: seconds, f"{name}, CPU of the daemon": cpu_seconds(pid) - before}


def _change(file: Path, line: str) -> None:
    file.write_text(file.read_text() + line)


def _tunnels(site: Site, count: int) -> list[Tunnel]:
    """Sun's ends, each with a peer and subnets of its own."""
    tunnel = site.network.tunnel().mirrored()
    return [
        replace(
            tunnel,
            theirs=replace(
                tunnel.theirs,
                id=f"peer{number}.example.net",
                subnets=(f"10.{64 + (number >> 8)}.{number & 0xFF}.0/24",),
            ),
        )
        for number in range(count)
    ]


if __name__ == "__main__":
    main()
