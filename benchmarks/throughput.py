"""What a tunnel in user space carries: xfrmpy at both ends, beside strongSwan at both ends.

`python -m benchmarks.throughput`, as root, from the checkout. Two gateways in namespaces, 1500
octets between them; iperf3 and ping run on the gateways themselves, between addresses that the
tunnel carries, so that nothing else has work to do. strongSwan's ESP is kernel-libipsec's. With its
suite wireguard-go is measured, too. Behind that is told where the time of a packet goes (`steps`).
With `--workers N` there are N tunnels, for one more test: a stream through each at the same time;
and xfrmpy is measured once more with one tunnel that every worker has a part of (`per_resource`).
With `--pings TURNS` nothing is measured but round trips of idle tunnels: those of both rivals are
up at once, and so their turns are seconds apart, where whole rounds are a minute.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles

from benchmarks import steps, wireguard
from benchmarks.measure import (
    RIVALS,
    conditions,
    cpu_seconds,
    cpu_times,
    medians,
    prepare,
    processes,
    table,
    write_json,
)
from benchmarks.wireguard import WireguardGateway
from integration.lab.gateway import XfrmpyGateway
from integration.lab.network import Host
from integration.lab.process import Background, eventually, run
from integration.lab.site import Site
from integration.lab.strongswan import StrongswanPeer
from integration.lab.tunnel import Tunnel

Gateway = XfrmpyGateway | StrongswanPeer | WireguardGateway
Figures = dict[str, float]

SUITES = {
    "aes128gcm16": "aes128gcm16-prfsha256-x25519",
    "chacha20poly1305": "chacha20poly1305-prfsha256-x25519",
    "aes128-sha256": "aes128-sha256-x25519",
}
"""ESP, and an IKE proposal with it."""

UDP_PAYLOAD = 1372
"""Octets; with ESP, UDP and IP around it a packet of this size fits 1500 with every suite."""

SMALL_PAYLOAD = 64

PINGS = 200

TESTS: Mapping[str, Sequence[str]] = {
    "tcp": ("-C", "cubic"),
    "tcp back": ("-C", "cubic", "-R"),
    "tcp 4": ("-C", "cubic", "-P", "4"),
    "tcp 4 back": ("-C", "cubic", "-P", "4", "-R"),
    "tcp both": ("-C", "cubic", "--bidir"),
    "udp": ("-u", "-l", str(UDP_PAYLOAD), "-b", "1G"),
    "udp 64": ("-u", "-l", str(SMALL_PAYLOAD), "-b", "60M"),
}
"""iperf3's arguments. UDP is offered at more than either rival carries and what arrives is counted;
sent as fast as it can be, it would take a core from those who are measured."""

TUNNELS = "tcp, a stream in each tunnel"
PING_LOADED = "ping beside a stream"

UNITS = {"ping": "us", PING_LOADED: "us"} | {
    test: unit for name in TESTS for test, unit in ((name, "Mbit/s"), (f"{name} cpu", "ms/GB"))
}
UNITS |= {TUNNELS: "Mbit/s", f"{TUNNELS} cpu": "ms/GB"}
UNITS |= {"udp 64": "packets/s", "udp 64 cpu": "ms/million"}

WORKER = "worker, us"
"""What begins the names of figures of our own: a worker's time for a packet of the `tcp` test."""


PER_RESOURCE = "xfrmpy, per_resource"


def main() -> None:
    options = _parse()
    prepare(*wireguard.PACKAGES)
    facts = conditions()
    if options.pings:
        found = {suite: pings(suite, options.pings) for suite in options.suites}
        for suite, turns in found.items():
            print(report_of_pings(suite, turns))
        write_json(options.output, conditions=facts, turns=found)
        return
    rounds: dict[str, dict[str, list[Figures]]] = {
        suite: {rival: [] for rival in _rivals(suite, options.workers)} for suite in options.suites
    }
    for number in range(options.rounds):
        for suite in options.suites:
            for rival in rounds[suite]:
                figures = measure(rival, suite, options.seconds, options.workers)
                rounds[suite][rival].append(figures)
                brief = ", ".join(f"{name} {value:.0f}" for name, value in figures.items())
                print(f"round {number + 1}, {suite}, {rival}: {brief}", file=sys.stderr)
    results = {s: {rival: medians(each) for rival, each in rounds[s].items()} for s in rounds}
    costs = {suite: steps.steps_of(suite) for suite in options.suites}
    print(report(facts, results))
    print(report_of_steps(costs, results))
    ratios = {suite: _ratios(result) for suite, result in results.items()}
    write_json(
        options.output,
        conditions=facts,
        seconds=options.seconds,
        workers=options.workers,
        units=UNITS,
        rounds=rounds,
        medians=results,
        ratios=ratios,
        steps=costs,
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
    parser.add_argument("--workers", type=int, default=1, help="of each gateway of ours (1)")
    parser.add_argument("--pings", type=int, metavar="TURNS", default=0, help="measure only these")
    parser.add_argument("-o", dest="output", type=Path, metavar="FILE", help="write JSON")
    options = parser.parse_args()
    options.suites = options.suites or list(SUITES)
    if unknown := set(options.suites) - set(SUITES):
        parser.error(f"unknown suites: {', '.join(sorted(unknown))}")
    if min(options.rounds, options.seconds, options.workers) < 1 or options.pings < 0:
        parser.error("--seconds, --rounds and --workers are at least 1, --pings none or more")
    return options


def _rivals(suite: str, workers: int) -> Sequence[str]:
    found = [*RIVALS]
    if workers > 1:
        found.append(PER_RESOURCE)
    if suite == wireguard.SUITE:
        found.append("wireguard-go")
    return found


def measure(rival: str, suite: str, seconds: int, workers: int) -> Figures:
    """One round with one suite: fresh tunnels, every test once."""
    count = workers if rival in RIVALS else 1
    with Site() as site:
        gateways = _tunnels(site, rival, suite, count, workers)
        bench = _Bench(site, gateways, seconds)
        figures = {"ping": bench.ping(), PING_LOADED: bench.ping_beside_stream()}
        for test, arguments in TESTS.items():
            figures |= bench.iperf(test, arguments)
        if count > 1:
            figures |= bench.iperf_of_tunnels(count)
        if rival == "wireguard-go":
            for gateway in gateways:
                gateway.stop()
        return figures


def pings(suite: str, turns: int) -> dict[str, list[Figures]]:
    """Round trips of either rival in each turn, with a tunnel of each up at once."""
    with ExitStack() as stack:
        benches = {}
        for rival in RIVALS:
            site = stack.enter_context(Site())
            benches[rival] = _Bench(site, _tunnels(site, rival, suite, 1, 1), 1)
        found: dict[str, list[Figures]] = {rival: [] for rival in benches}
        for _ in range(turns):
            for rival, bench in benches.items():
                found[rival].append(bench.pings())
        return found


def _tunnels(
    site: Site, rival: str, suite: str, count: int, workers: int
) -> tuple[Gateway, Gateway]:
    tunnels = [
        site.network.tunnel(number, ike=SUITES[suite], esp=f"{suite}-noesn")
        for number in range(count)
    ]
    ends = (
        (site.network.moon, tunnels),
        (site.network.sun, [tunnel.mirrored() for tunnel in tunnels]),
    )
    if rival == "wireguard-go":
        moon, sun = (
            WireguardGateway(host, ours[0], site.directory / host.name) for host, ours in ends
        )
        moon.meet(sun)
        sun.meet(moon)
        return moon, sun
    initiator, responder = (_started(site, rival, host, ours, workers) for host, ours in ends)
    for number in range(count):
        site.connect(initiator, responder, number)
    if isinstance(initiator, XfrmpyGateway) and rival == PER_RESOURCE:
        eventually("every Child SA", lambda: len(initiator.tunnel().children) == workers)
    return initiator, responder


def _started(
    site: Site, rival: str, host: Host, tunnels: Sequence[Tunnel], workers: int
) -> XfrmpyGateway | StrongswanPeer:
    if rival == "strongswan":
        return site.strongswan(host, *tunnels)
    keys = {"per_resource": "auto"} if rival == PER_RESOURCE else {}
    return site.xfrmpy(host, *tunnels, options=("--workers", str(workers)), **keys)


class _Bench:
    """A tunnel that is up, and an iperf3 server at sun's end of it."""

    def __init__(self, site: Site, gateways: Sequence[Gateway], seconds: int) -> None:
        self._moon, self._sun = site.network.moon, site.network.sun
        self._ours, self._theirs = (_address(host) for host in (self._moon, self._sun))
        self._pids = [pid for gateway in gateways for pid in _processes(gateway).values()]
        self._workers = {
            f"{WORKER}, {end}": [
                pid for trade, pid in _processes(gateway).items() if trade != "daemon"
            ]
            for end, gateway in zip(("sending", "receiving"), gateways, strict=True)
            if isinstance(gateway, XfrmpyGateway)
        }
        self._log = site.log
        self._seconds = seconds

    def ping(self) -> float:
        """The median round trip, in microseconds, of single packets on an idle tunnel."""
        return self.pings()["median"]

    def pings(self) -> Figures:
        """The same, that of the fastest tenth, and the CPU time of both gateways for each."""
        before = sum(map(cpu_seconds, self._pids))
        trips = self._ping("-c", str(PINGS), "-i", "0.01")
        cpu = sum(map(cpu_seconds, self._pids)) - before
        return {
            "median": median(trips),
            "fastest tenth": quantiles(trips, n=10)[0],
            "CPU": 1e6 * cpu / PINGS,
        }

    def _ping(self, *arguments: str) -> list[float]:
        said = self._moon.run("ping", "-n", *arguments, "-I", self._ours, self._theirs)
        return [1000 * float(ms) for ms in re.findall(r"time=([0-9.]+)", said)]

    def iperf(self, test: str, arguments: Sequence[str]) -> Figures:
        """Mbit/s that arrived, and the CPU time that both gateways took for a gigabyte of it."""
        with self._serving():
            before, workers = sum(map(cpu_seconds, self._pids)), self._worker_times()
            carried = self._client(arguments, self._ours, self._theirs)
            cpu = sum(map(cpu_seconds, self._pids)) - before
        if test == "udp 64":
            packets = carried.octets / SMALL_PAYLOAD
            return {test: packets / carried.seconds, f"{test} cpu": 1e9 * cpu / packets}
        figures = {
            test: 8e-6 * carried.octets / carried.seconds,
            f"{test} cpu": 1000 * cpu / (1e-9 * carried.octets),
        }
        if test == "tcp":
            segments = carried.octets / carried.segment
            for name, seconds in self._worker_times().items():
                figures[name] = 1e6 * (seconds - workers[name]) / segments
        return figures

    def ping_beside_stream(self) -> float:
        """As `ping`, while a stream takes all that the tunnel carries."""
        count = str(int(self._seconds / 0.025))
        with self._serving(), ThreadPoolExecutor(1) as pool:
            stream = pool.submit(self._client, TESTS["tcp"], self._ours, self._theirs)
            trips = self._ping("-c", count, "-i", "0.02")
            stream.result()
        return median(trips)

    @contextmanager
    def _serving(self) -> Iterator[None]:
        """A server of its own for each run: one that lost its client to an overload stays busy."""
        self._log.unlink(missing_ok=True)
        server = Background(self._sun.command(*_serve(self._theirs)), self._log)
        try:
            eventually("iperf3 to listen", partial(_is_listening, server))
            yield
        finally:
            server.stop()

    def iperf_of_tunnels(self, count: int) -> Figures:
        """What all of them carry together, a stream in each."""
        ends = [tuple(_address(h, n) for h in (self._moon, self._sun)) for n in range(count)]
        servers = []
        try:
            for number, (_, theirs) in enumerate(ends):
                log = self._log.with_suffix(f".{number}")
                log.unlink(missing_ok=True)
                servers.append(Background(self._sun.command(*_serve(theirs)), log))
            for server in servers:
                eventually("iperf3 to listen", partial(_is_listening, server))
            before = sum(map(cpu_seconds, self._pids))
            with ThreadPoolExecutor(count) as pool:
                carried = [*pool.map(partial(self._client, TESTS["tcp"]), *zip(*ends, strict=True))]
            cpu = sum(map(cpu_seconds, self._pids)) - before
        finally:
            for server in servers:
                server.stop()
        octets = sum(each.octets for each in carried)
        rate = sum(8e-6 * each.octets / each.seconds for each in carried)
        return {TUNNELS: rate, f"{TUNNELS} cpu": 1000 * cpu / (1e-9 * octets)}

    def _worker_times(self) -> Figures:
        """Of our workers, in user space and in the kernel."""
        return {
            f"{name}, {where}": sum(cpu_times(pid)[which] for pid in pids)
            for name, pids in self._workers.items()
            for which, where in enumerate(("user", "system"))
        }

    def _client(self, arguments: Sequence[str], ours: str, theirs: str) -> Carried:
        where = ("-c", theirs, "-B", ours, "-t", str(self._seconds), "-J")
        command = self._moon.command("iperf3", *where, *arguments)
        done = run(*command, check=False, seconds=self._seconds + 30)
        result = json.loads(done.stdout)
        if "error" in result:
            raise SystemExit(f"{' '.join(command)}: {result['error']}")
        end = result["end"]
        if "-u" in arguments:
            total = end["sum"]
            size = result["start"]["test_start"]["blksize"]
            arrived = (total["packets"] - total["lost_packets"]) * size
            return Carried(arrived, total["seconds"], size)
        octets = end["sum_received"]["bytes"]
        octets += end.get("sum_received_bidir_reverse", {}).get("bytes", 0)
        segment = result["start"]["tcp_mss_default"]
        return Carried(octets, end["sum_received"]["seconds"], segment)


@dataclass(frozen=True, slots=True)
class Carried:
    """What arrived, of packets with so many octets of payload."""

    octets: int
    seconds: float
    segment: int


def _processes(gateway: Gateway) -> Mapping[str, int]:
    if isinstance(gateway, WireguardGateway):
        return {"wireguard-go": gateway.pid}
    return processes(gateway)


def _is_listening(server: Background) -> bool:
    return "listening" in server.output


def _serve(address: str) -> tuple[str, ...]:
    """A server for one test."""
    return ("iperf3", "-s", "-1", "-B", address, "--forceflush")


def _address(gateway: Host, number: int = 0) -> str:
    """A gateway's own address among those that a tunnel carries."""
    return gateway.inside_address(number).rpartition(".")[0] + ".1"


def _ratios(result: Mapping[str, Figures]) -> dict[str, Figures]:
    """Ours to each rival's."""
    ours = result["xfrmpy"]
    return {
        rival: {test: ours[test] / theirs[test] for test in ours if theirs.get(test)}
        for rival, theirs in result.items()
        if rival != "xfrmpy"
    }


def report(facts: Mapping[str, str], results: Mapping[str, Mapping[str, Figures]]) -> str:
    parts = ["\n".join(f"{name}: {value}" for name, value in facts.items())]
    for suite, result in results.items():
        ratios = _ratios(result)
        header = [suite, "xfrmpy", *(word for rival in ratios for word in (rival, "ratio"))]
        rows = [
            [
                f"{test}, {unit}",
                f"{result['xfrmpy'][test]:.0f}",
                *(
                    word
                    for rival, each in ratios.items()
                    for word in _beside(result[rival], each, test)
                ),
            ]
            for test, unit in UNITS.items()
            if test in result["xfrmpy"]
        ]
        parts.append(table(header, rows))
    return "\n\n".join(parts)


def _beside(theirs: Figures, ratios: Figures, test: str) -> tuple[str, str]:
    """A rival's figure, and ours to it; nothing of a test that it was not given."""
    return (f"{theirs[test]:.0f}", f"{ratios[test]:.2f}") if test in ratios else ("", "")


def report_of_pings(suite: str, found: Mapping[str, Sequence[Figures]]) -> str:
    """Medians of the turns, in microseconds."""
    ours, theirs = (medians(found[rival]) for rival in RIVALS)
    rows = [
        (name, f"{value:.0f}", f"{theirs[name]:.0f}", f"{value / theirs[name]:.2f}")
        for name, value in ours.items()
    ]
    return table((f"{suite}, a packet alone, us", *RIVALS, "ratio"), rows)


def report_of_steps(
    costs: Mapping[str, Mapping[str, steps.Steps]], results: Mapping[str, Mapping[str, Figures]]
) -> str:
    """Where the time of a segment goes, and how far that is from the cipher alone."""
    parts = []
    for suite, cost in costs.items():
        ours = results[suite]["xfrmpy"]
        names = dict.fromkeys(name for each in cost.values() for name in each)
        rows = [(name, *(_us(each.get(name)) for each in cost.values())) for name in names]
        for where in ("user", "system"):
            worker = [ours[f"{WORKER}, {end}, {where}"] for end in cost]
            rows.append((f"a worker under load, {where}", *map(_us, worker)))
        whole = [sum(ours[f"{WORKER}, {end}, {w}"] for w in ("user", "system")) for end in cost]
        alone = [each["the cipher alone"] for each in cost.values()]
        distance = [f"{w / a:.1f}" for w, a in zip(whole, alone, strict=True)]
        rows.append(("times the cipher alone", *distance))
        parts.append(table((f"{suite}, us for a segment of TCP", *cost), rows))
    return "\n" + "\n\n".join(parts)


def _us(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
