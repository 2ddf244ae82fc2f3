"""Streams in both directions for as long as one likes, and whether memory stays what it was.

`python -m benchmarks.endurance`, as root, from the checkout. Alice and bob send each other
pseudo-random octets through a tunnel in user space, and compare their hashes at the end of each
round; the wire between the gateways loses, repeats and reorders a hundredth of what goes over it
each, or nothing with `--good-wire`. It ends with 1 if anything arrives otherwise than it was sent.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import linear_regression
from threading import Event, Thread

from benchmarks.measure import (
    RIVALS,
    conditions,
    prepare,
    processes,
    resident_kib,
    table,
    write_json,
)
from integration.lab.bad_wire import Wear, bad_wire
from integration.lab.gateway import XfrmpyGateway
from integration.lab.site import Site
from integration.lab.strongswan import StrongswanPeer
from integration.lab.transfer import transfer_both_ways

ROUND = 250_000_000
"""Octets each way between two comparisons."""

STALLED_SECONDS = 1800.0
"""A round that takes so long has failed."""

WARM_UP_SECONDS = 60.0
"""What is allocated once and for all is there by then; growth is counted from there on."""


def main() -> None:
    options = _parse()
    prepare()
    facts = conditions()
    with Site() as site:
        tunnel = site.network.tunnel()
        start_ours = partial(site.xfrmpy, options=("--workers", str(options.workers)))
        start = start_ours if options.peer == "xfrmpy" else site.strongswan
        theirs: XfrmpyGateway | StrongswanPeer = start(site.network.sun, tunnel.mirrored())
        ours = start_ours(site.network.moon, tunnel)
        site.connect(ours, theirs)
        memory = Memory({"moon": ours, "sun": theirs})
        wire = nullcontext(Wear()) if options.good_wire else bad_wire(site.network, site.log)
        with wire as wear, memory:
            rounds, seconds = _carry(site, options.gigabytes, options.minutes)
        drops = ours.status().drops
    figures = {
        "octets each way": rounds * ROUND,
        "seconds": round(seconds),
        "wire": asdict(wear),
        "drops at moon": drops,
        "memory": memory.figures(),
    }
    print(report(facts, figures))
    write_json(options.output, conditions=facts, samples=memory.samples, **figures)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.endurance",
        description="Streams through a tunnel in user space over a bad wire; memory meanwhile.",
    )
    parser.add_argument("--gigabytes", type=float, default=1, help="each way, at least (1)")
    parser.add_argument("--minutes", type=float, default=0, help="at least (0)")
    parser.add_argument("--peer", choices=RIVALS, default="xfrmpy", help="at sun (xfrmpy)")
    parser.add_argument("--workers", type=int, default=1, help="of each gateway of ours (1)")
    parser.add_argument("--good-wire", action="store_true", help="nothing is lost on it")
    parser.add_argument("-o", dest="output", type=Path, metavar="FILE", help="write JSON")
    return parser.parse_args()


def _carry(site: Site, gigabytes: float, minutes: float) -> tuple[int, float]:
    """Rounds, until there was as much and it took as long as was asked for; and the seconds."""
    began_at, rounds, seconds = time.monotonic(), 0, 0.0
    while rounds * ROUND < gigabytes * 1e9 or seconds < 60 * minutes:
        transfer_both_ways(site.network, ROUND, site.directory, STALLED_SECONDS)
        rounds, seconds = rounds + 1, time.monotonic() - began_at
        rate = 16e-6 * rounds * ROUND / seconds
        print(f"{rounds} rounds, {seconds:.0f} s, {rate:.0f} Mbit/s both ways", file=sys.stderr)
    return rounds, seconds


class Memory:
    """A context: what every process of the gateways has resident, all the while."""

    EVERY_SECONDS = 5.0

    def __init__(self, gateways: Mapping[str, XfrmpyGateway | StrongswanPeer]) -> None:
        self._pids = {
            f"{name}'s {trade}": pid
            for name, gateway in gateways.items()
            for trade, pid in processes(gateway).items()
        }
        self.samples: list[dict[str, float]] = []
        self._is_over = Event()
        self._thread = Thread(target=self._watch)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        began_at = time.monotonic()
        while not self._is_over.wait(self.EVERY_SECONDS):
            sizes = {name: float(resident_kib(pid)) for name, pid in self._pids.items()}
            self.samples.append({"seconds": time.monotonic() - began_at, **sizes})

    def figures(self) -> dict[str, dict[str, float]]:
        """Of each process: KiB after the warm-up, at the end, at most; and KiB an hour, by a line
        through all that was seen after the warm-up."""
        warm = [each for each in self.samples if each["seconds"] >= WARM_UP_SECONDS]
        if len(warm) < 2:
            return {}
        hours = [each["seconds"] / 3600 for each in warm]
        return {name: _figures(hours, [each[name] for each in warm]) for name in self._pids}


def _figures(hours: Sequence[float], sizes: Sequence[float]) -> dict[str, float]:
    return {
        "begin": sizes[0],
        "end": sizes[-1],
        "most": max(sizes),
        "an hour": linear_regression(hours, sizes).slope,
    }


def report(facts: Mapping[str, str], figures: Mapping[str, object]) -> str:
    parts = ["\n".join(f"{name}: {value}" for name, value in facts.items())]
    told = {name: value for name, value in figures.items() if name != "memory"}
    parts.append("\n".join(f"{name}: {value}" for name, value in told.items()))
    memory = figures["memory"]
    assert isinstance(memory, dict)
    rows = [
        (name, *(f"{value:,.0f}" for value in sizes.values())) for name, sizes in memory.items()
    ]
    if rows:
        parts.append(table(("resident, KiB", "begin", "end", "most", "growth an hour"), rows))
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
