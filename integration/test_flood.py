"""Whoever floods us with first requests from false addresses stops no honest peer."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.hostile import flooding
from integration.lab.process import eventually
from integration.lab.site import Peer, Site

pytestmark = pytest.mark.native

PER_SECOND = 2000
HONEST = 10
MOST_GROWTH = 16_000_000
"""Octets. A thousand half-open IKE SAs would be about as much; a flood makes thirty."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a process has used: CPU seconds, octets resident."""

    cpu: float
    memory: int

    @classmethod
    def of(cls, pid: int) -> Cost:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE"))


OPTIONS: dict[str, dict[str, Any]] = {
    "xfrmpy": {},
    # By itself it sends again after 4, 7 and 13 seconds, and ten initiations that are waited for
    # take all its threads.
    "strongswan": {"settings": ("retransmit_timeout=1.0", "retransmit_base=1.5", "threads=64")},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_ten_honest_peers_connect_through_a_flood(site: Site, kind: str) -> None:
    network = site.network
    tunnels = [network.tunnel(number) for number in range(HONEST)]
    ours = site.xfrmpy(network.moon, *tunnels, peer=None)
    make_peer = getattr(site, kind)
    honest: Peer = make_peer(network.sun, *(t.mirrored() for t in tunnels), **OPTIONS[kind])
    before = Cost.of(ours.pid)
    with flooding(network.internet, "192.0.2.1", PER_SECOND, site.log) as flood:
        eventually("cookies to be demanded", lambda: _demanded(ours) > PER_SECOND, seconds=30)
        began_at = time.monotonic()
        with ThreadPoolExecutor(HONEST) as pool:
            seconds = sorted(pool.map(lambda number: _connect(honest, number), range(HONEST)))
        passed = time.monotonic() - began_at
        _tell(f"{HONEST} peers in {passed:.1f} s, each in {seconds[0]:.1f} to {seconds[-1]:.1f} s")
        after = Cost.of(ours.pid)
        assert all(ours.is_up(number) for number in range(HONEST))
    growth = after.memory - before.memory
    share = (after.cpu - before.cpu) / flood.seconds
    _tell(f"{flood.per_second:.0f} requests a second, {flood.sent} in all")
    _tell(f"the daemon: {growth / 1e6:.1f} MB more, {share:.0%} of a core, {_drops(ours)}")
    assert flood.per_second > 0.9 * PER_SECOND
    assert growth < MOST_GROWTH
    assert _demanded(ours) > flood.sent / 4


def _connect(peer: Peer, number: int) -> float:
    start = time.monotonic()
    peer.initiate(number)
    return time.monotonic() - start


def _demanded(gateway: XfrmpyGateway) -> int:
    return gateway.status().drops.get("cookie-demanded", 0)


def _drops(gateway: XfrmpyGateway) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in gateway.status().drops.items())


def _tell(figures: str) -> None:
    """For who looks, with `-s`, and for the report of a failure."""
    print(figures)
