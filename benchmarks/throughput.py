"""What a tunnel in user space carries: xfrmpy at both ends, beside strongSwan at both ends.

`python -m benchmarks.throughput`, as root, from the checkout. Two gateways in namespaces, 1500
octets between them; iperf3 and ping run on the gateways themselves, between addresses that the
tunnel carries, so that nothing else has work to do. strongSwan's ESP is kernel-libipsec's.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

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
from integration.lab.gateway import XfrmpyGateway
from integration.lab.network import Host
from integration.lab.process import Background, eventually, run
from integration.lab.site import Site
from integration.lab.strongswan import StrongswanPeer
from integration.lab.tunnel import Tunnel

Gateway = XfrmpyGateway | StrongswanPeer
Figures = dict[str, float]

SUITES = {
    "aes128gcm16": "aes128gcm16-prfsha256-x25519",
    "chacha20poly1305": "chacha20poly1305-prfsha256-x25519",
    "aes128-sha256": "aes128-sha256-x25519",
}
"""ESP, and an IKE proposal with it."""

UDP_PAYLOAD = 1372
"""Octets; with ESP, UDP and IP around it a packet of this size fits 1500 with every suite."""

PINGS = 200

TESTS: Mapping[str, Sequence[str]] = {
    "tcp": ("-C", "cubic"),
    "tcp back": ("-C", "cubic", "-R"),
    "udp": ("-u", "-l", str(UDP_PAYLOAD), "-b", "1G"),
}
"""iperf3's arguments. UDP is offered at more than either rival carries and what arrives is counted;
sent as fast as it can be, it would take a core from those who are measured."""

UNITS = {"ping": "us"} | {
    test: unit for name in TESTS for test, unit in ((name, "Mbit/s"), (f"{name} cpu", "ms/GB"))
}


def main() -> None:
    options = _parse()
    prepare()
    facts = conditions()
    rounds: dict[str, dict[str, list[Figures]]] = {
        suite: {rival: [] for rival in RIVALS} for suite in options.suites
    }
    for number in range(options.rounds):
        for suite in options.suites:
            for rival in RIVALS:
                figures = measure(rival, suite, options.seconds)
                rounds[suite][rival].append(figures)
                brief = ", ".join(f"{name} {value:.0f}" for name, value in figures.items())
                print(f"round {number + 1}, {suite}, {rival}: {brief}", file=sys.stderr)
    results = {s: {rival: medians(rounds[s][rival]) for rival in RIVALS} for s in rounds}
    print(report(facts, results))
    ratios = {suite: _ratios(result) for suite, result in results.items()}
    write_json(
        options.output,
        conditions=facts,
        seconds=options.seconds,
        units=UNITS,
        rounds=rounds,
        medians=results,
        ratios=ratios,
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description="Throughput of tunnels in user space, xfrmpy beside strongSwan.",
    )
    parser.add_argument("--seconds", type=int, default=3, help="of each iperf3 run (3)")
    parser.add_argument("--rounds", type=int, default=3, help="of each rival, alternating (3)")
    parser.add_argument(
        "suites",
        nargs="*",
        metavar="SUITE",
        help=f"ESP suites: {', '.join(SUITES)} (all)",
    )
    parser.add_argument("-o", dest="output", type=Path, metavar="FILE", help="write JSON")
    options = parser.parse_args()
    options.suites = options.suites or list(SUITES)
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"unknown suites: {', '.join(sorted(unknown))}")
    if options.rounds < 1 or options.seconds < 1:
        parser.error("--seconds and --rounds are at least 1")
    return options


def measure(rival: str, suite: str, seconds: int) -> Figures:
    """One round with one suite: a fresh tunnel, every test once."""
    with Site() as site:
        tunnel = site.network.tunnel(ike=SUITES[suite], esp=f"{suite}-noesn")
        start: Callable[[Host, Tunnel], Gateway]
        start = site.xfrmpy if rival == "xfrmpy" else site.strongswan
        moon = start(site.network.moon, tunnel)
        sun = start(site.network.sun, tunnel.mirrored())
        site.connect(moon, sun)
        bench = _Bench(site, (moon, sun), seconds)
        figures = {"ping": bench.ping()}
        for test, arguments in TESTS.items():
            figures |= bench.iperf(test, arguments)
        return figures


class _Bench:
    """A tunnel that is up, and an iperf3 server at sun's end of it."""

    def __init__(self, site: Site, gateways: Sequence[Gateway], seconds: int) -> None:
        self._moon, self._sun = site.network.moon, site.network.sun
        self._ours, self._theirs = (_address(host) for host in (self._moon, self._sun))
        self._pids = [pid for gateway in gateways for pid in processes(gateway).values()]
        self._log = site.log
        self._seconds = seconds

    def ping(self) -> float:
        """The median round trip, in microseconds, of single packets on an idle tunnel."""
        pings = ("-n", "-c", str(PINGS), "-i", "0.01", "-I", self._ours, self._theirs)
        said = self._moon.run("ping", *pings)
        return 1000 * median(float(ms) for ms in re.findall(r"time=([0-9.]+)", said))

    def iperf(self, test: str, arguments: Sequence[str]) -> Figures:
        """Mbit/s that arrived, and the CPU time that both gateways took for a gigabyte of it."""
        # A server of its own for each run: one that lost its client to an overload stays busy.
        serve = ("iperf3", "-s", "-1", "-B", self._theirs, "--forceflush")
        self._log.unlink(missing_ok=True)
        server = Background(self._sun.command(*serve), self._log)
        try:
            eventually("iperf3 to listen", lambda: "listening" in server.output)
            before = sum(map(cpu_seconds, self._pids))
            octets, seconds = self._client(arguments)
            cpu = sum(map(cpu_seconds, self._pids)) - before
        finally:
            server.stop()
        return {test: 8e-6 * octets / seconds, f"{test} cpu": 1000 * cpu / (1e-9 * octets)}

    def _client(self, arguments: Sequence[str]) -> tuple[float, float]:
        """Octets that arrived, and the seconds that they took."""
        where = ("-c", self._theirs, "-B", self._ours, "-t", str(self._seconds), "-J")
        command = self._moon.command("iperf3", *where, *arguments)
        done = run(*command, check=False, seconds=self._seconds + 30)
        result = json.loads(done.stdout)
        if "error" in result:
            raise SystemExit(f"{' '.join(command)}: {result['error']}")
        if "sum_received" in result["end"] and "-u" not in arguments:
            total = result["end"]["sum_received"]
            return total["bytes"], total["seconds"]
        total = result["end"]["sum"]
        return (total["packets"] - total["lost_packets"]) * UDP_PAYLOAD, total["seconds"]


def _address(gateway: Host) -> str:
    """A gateway's own address among those that the tunnel carries."""
    return gateway.inside_address().rpartition(".")[0] + ".1"


def _ratios(result: Mapping[str, Figures]) -> Figures:
    ours, theirs = (result[rival] for rival in RIVALS)
    return {test: ours[test] / theirs[test] for test in ours if theirs.get(test)}


def report(facts: Mapping[str, str], results: Mapping[str, Mapping[str, Figures]]) -> str:
    parts = ["\n".join(f"{name}: {value}" for name, value in facts.items())]
    for suite, result in results.items():
        ours, theirs = (result[rival] for rival in RIVALS)
        ratios = _ratios(result)
        rows = [
            (
                f"{test}, {UNITS[test]}",
                f"{ours[test]:.0f}",
                f"{theirs[test]:.0f}",
                f"{ratios[test]:.2f}",
            )
            for test in ours
        ]
        parts.append(table((suite, *RIVALS, "ratio"), rows))
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
