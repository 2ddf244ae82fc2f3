"""xfrmpy and xfrmpy: every way of moving packets against every other, and what peers never do."""

from __future__ import annotations

import time
from typing import Any

import pytest

from integration.lab.gateway import XfrmpyGateway, kernel_has_esp
from integration.lab.hostile import junk
from integration.lab.process import IN_VM, eventually
from integration.lab.site import Site

pytestmark = pytest.mark.copied

USERSPACE = pytest.param("userspace", "userspace", marks=pytest.mark.native)
KERNEL = pytest.param("kernel", "kernel", marks=pytest.mark.vm)
DATAPATHS = [
    USERSPACE,
    KERNEL,
    pytest.param("kernel", "userspace", marks=pytest.mark.vm),
    pytest.param("userspace", "kernel", marks=pytest.mark.vm),
]

ESN = "aes256gcm16-esn"


def pair(site: Site, moon: str, sun: str) -> tuple[XfrmpyGateway, XfrmpyGateway]:
    tunnel = site.network.tunnel(esp=ESN)
    ours = site.xfrmpy(site.network.moon, tunnel, datapath=moon)
    return ours, site.xfrmpy(site.network.sun, tunnel.mirrored(), datapath=sun)


@pytest.mark.parametrize(("moon", "sun"), DATAPATHS)
def test_every_datapath_speaks_with_every_other(site: Site, moon: str, sun: str) -> None:
    ours, theirs = pair(site, moon, sun)
    site.connect(ours, theirs)
    wire = site.assert_protected()
    assert wire.kinds["esp" if (moon, sun) == ("kernel", "kernel") else "udp-esp"]
    assert (ours.tunnel().datapath, theirs.tunnel().datapath) == (moon, sun)
    assert ours.tunnel().children[0].suite == ESN
    assert_told_what_fits(site)
    site.transfer(500_000 if IN_VM else 20_000_000)


def assert_told_what_fits(site: Site) -> None:
    """ICMP "fragmentation needed" comes back from the gateway; in pieces, all goes through."""
    alice, bob = site.network.alice, site.network.bob.inside_address()
    said = alice.run("ping", "-n", "-c", "1", "-W", "2", "-M", "do", "-s", "1472", bob, check=False)
    assert "mtu" in said
    assert alice.ping(bob, octets=1472) == 0


@pytest.mark.native
@pytest.mark.vm
def test_a_kernel_without_esp_is_recognised(site: Site) -> None:
    """`datapath: auto` takes the kernel in the VM, and user space with a reason here."""
    tunnel = site.network.tunnel()
    ours = site.xfrmpy(site.network.moon, tunnel, datapath=None)
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored(), datapath=None)
    site.connect(ours, theirs)
    site.assert_protected()
    told = ours.tunnel()
    assert told.datapath == ("kernel" if kernel_has_esp(site.network.alice) else "userspace")
    assert bool(told.datapath_reason) == (told.datapath == "userspace")


@pytest.mark.parametrize(("moon", "sun"), [USERSPACE, KERNEL])
def test_junk_at_both_ports_costs_an_established_tunnel_nothing(
    site: Site, moon: str, sun: str
) -> None:
    count, per_second = (10_000, 500) if IN_VM else (100_000, 5_000)
    ours, theirs = pair(site, moon, sun)
    site.connect(ours, theirs)
    before = ours.tunnel()
    bob = site.network.bob.inside_address()
    with site.network.alice.pinging(bob, site.log) as counts:
        junk(site.network.internet, "192.0.2.1", count // 2, per_second)
        junk(site.network.sun, "192.0.2.1", count // 2, per_second)
    sent, lost = counts
    assert (sent > 100, lost) == (True, 0)
    assert ours.tunnel().spi_i == before.spi_i
    assert sum(ours.status().drops.values()) > count // 2


@pytest.mark.native
def test_a_tunnel_that_starts_by_itself_is_brought_up_and_kept(site: Site) -> None:
    tunnel = site.network.tunnel()
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored(), start="listen")
    ours = site.xfrmpy(site.network.moon, tunnel, start="auto")
    eventually("both ends to be up", lambda: ours.is_up() and theirs.is_up())
    site.assert_protected()


@pytest.mark.native
@pytest.mark.parametrize("proves", [True, False], ids=["token", "silence"])
def test_a_daemon_that_has_lost_its_state_is_noticed(site: Site, proves: bool) -> None:
    """By its token at the first question; without one only when it has not answered any."""
    keys: dict[str, Any] = {"dpd": "2s", "retransmission": {"tries": 3}}
    keys["crash_detection"] = "yes" if proves else "no"
    tunnel = site.network.tunnel()
    ours = site.xfrmpy(site.network.moon, tunnel, start="auto", **keys)
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored(), start="listen", **keys)
    eventually("both ends to be up", lambda: ours.is_up() and theirs.is_up())
    before = ours.tunnel().spi_i
    theirs.crash()
    theirs.forget()
    theirs.start_again()
    back_at = time.monotonic()
    eventually("a new IKE SA", lambda: theirs.is_up() and ours.is_up(), seconds=120)
    seconds = time.monotonic() - back_at
    print(f"up again {seconds:.1f} s after the daemon's new start")
    site.assert_protected()
    assert ours.tunnel().spi_i != before
    assert ("XF2026" in ours.log) is proves
    assert (seconds < 12) is proves, f"up again after {seconds:.1f} s"


@pytest.mark.native
def test_a_puzzle_is_solved(site: Site) -> None:
    tunnel = site.network.tunnel()
    ours = site.xfrmpy(site.network.moon, tunnel)
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored(), options=("--puzzles-at", "0"))
    site.connect(ours, theirs)
    assert theirs.status().drops["puzzle-demanded"] >= 1  # One for each copy of the request.
    assert "a puzzle" in ours.log
