"""`kill -9` of the daemon at any instant: the next one goes on with every SA."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.lab.gateway import XFRMPY, XfrmpyGateway
from integration.lab.network import unanswered
from integration.lab.process import IN_VM, PATIENCE, eventually
from integration.lab.site import Site
from integration.lab.strongswan import StrongswanPeer

pytestmark = [pytest.mark.native, pytest.mark.vm]

KILLS = int(os.environ.get("XFRMPY_KILLS", "5" if IN_VM else "20"))
"""200 is what a release is tried with. A daemon takes its time to start in the emulated machine."""

LONGEST_SECONDS = 0.8
"""Until a kill: longer than any exchange here takes, commands included."""


def names(gateway: XfrmpyGateway) -> tuple[Any, ...]:
    """What an SA is known by."""
    tunnel = gateway.tunnel()
    return (tunnel.spi_i, tunnel.spi_r, [(c.spi_in, c.spi_out) for c in tunnel.children])


def negotiations(theirs: StrongswanPeer) -> int:
    return theirs.log.count("parsed IKE_AUTH")


def test_a_daemon_that_was_killed_is_followed_by_one_with_the_same_sas(site: Site) -> None:
    ours, theirs = site.beside_strongswan()
    before, negotiated = names(ours), negotiations(theirs)
    with site.network.alice.pinging(site.network.bob.inside_address(), site.log) as counts:
        for _ in range(3):
            ours.crash()
            ours.start_again()
            assert names(ours) == before
    assert counts[1] == 0
    assert "1 IKE SAs and 1 Child SAs taken over" in ours.log
    ours.rekey()
    assert names(ours) != before
    assert negotiations(theirs) == negotiated
    site.assert_protected()
    ours.terminate()
    eventually("the peer to be told", lambda: not theirs.is_up())


def test_a_tunnel_that_is_wanted_is_not_begun_anew(site: Site) -> None:
    ours, theirs = site.beside_strongswan(start="auto")
    before, negotiated = names(ours), negotiations(theirs)
    ours.crash()
    ours.start_again()
    time.sleep(2)
    assert names(ours) == before
    assert negotiations(theirs) == negotiated


def test_a_daemon_that_was_told_to_stop_leaves_nothing_to_take_over(site: Site) -> None:
    ours, _ = site.beside_strongswan()
    directory = ours.runtime
    assert (directory / "store.db").exists()
    ours.stop()
    assert not list(directory.glob("store*"))


def test_a_store_that_was_tampered_with_costs_every_sa_and_nothing_else(site: Site) -> None:
    ours, theirs = site.beside_strongswan()
    ours.crash()
    for file in ours.runtime.glob("store.db*"):
        file.write_bytes(b"not a store" * 1000)
    ours.start_again()
    assert "is refused" in ours.log
    assert not ours.is_up()
    ours.initiate()
    site.assert_protected()
    assert theirs.is_up()


def test_a_daemon_killed_at_any_instant_goes_on(site: Site) -> None:
    """During rekeyings, traffic, set-up and deletion, by turns and at random moments."""
    chance = random.Random(os.environ.get("XFRMPY_SEED", "1"))
    ours, theirs = site.beside_strongswan()
    for number in range(KILLS):
        what = chance.choice(("rekey", "rekey", "wait", "up", "down"))
        delay = chance.uniform(0, LONGEST_SECONDS) * PATIENCE
        _kill_during(site, ours, theirs, what, delay, site.log.with_name(f"ping-{number}.log"))
        print(f"kill {number}: {what} after {delay:.3f} s: ok")
    ours.terminate()
    eventually("the peer to be told", lambda: not theirs.is_up())
    ours.stop()


def _kill_during(
    site: Site, ours: XfrmpyGateway, theirs: StrongswanPeer, what: str, delay: float, log: Path
) -> None:
    if what == "up":
        ours.terminate()
    negotiated = negotiations(theirs)
    bob = site.network.bob.inside_address()
    with _command(ours, what), site.network.alice.pinging(bob, log):
        time.sleep(delay)
        ours.crash()
        ours.start_again()
        if what in ("rekey", "wait"):
            eventually("all to be up", ours.is_up)
    if what in ("rekey", "wait"):
        assert unanswered(log) == [], "packets were lost"
        assert negotiations(theirs) == negotiated, "it was begun anew"
    else:
        eventually("an end of it", lambda: ours.tunnel().state != "connecting", seconds=90)
        ours.initiate()
    site.assert_protected()
    eventually("one IKE SA", theirs.is_up)
    eventually("no SA too many", lambda: len(ours.tunnel().children) == 1, seconds=60)


@contextmanager
def _command(ours: XfrmpyGateway, what: str) -> Iterator[None]:
    """A command whose daemon dies under it; how it ends is not what matters."""
    if what == "wait":
        yield
        return
    environment = {**os.environ, **ours.environment}
    command = ours.host.command(XFRMPY, what, "net0")
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as running:
        yield
        running.wait()
