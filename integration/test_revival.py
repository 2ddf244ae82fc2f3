"""`kill -9` of the userspace worker: another goes on with its SAs, and no peer hears of it."""

from __future__ import annotations

import os
import signal

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.process import eventually
from integration.lab.site import Site
from integration.test_interfaces import drift, keys
from integration.userspace.place import WORKER_SOCKET, worker_of
from xfrmpy.daemon.restraint import FREELY

pytestmark = pytest.mark.native


def kill_worker(ours: XfrmpyGateway, times: int = 1) -> None:
    os.kill(worker_of(ours.runtime / WORKER_SOCKET), signal.SIGKILL)
    eventually("another worker", lambda: ours.log.count("another goes on") == times)
    eventually("nothing to be amiss", lambda: not drift(ours))


def test_a_killed_worker_is_followed_by_one_with_the_same_sas(site: Site) -> None:
    """strongSwan refuses a sequence number that it has seen."""
    ours, _ = site.beside_strongswan()
    site.assert_protected()
    before = ours.spis()
    bob = site.network.bob.inside_address()
    with site.capture() as wire, site.network.alice.pinging(bob, site.log) as counts:
        for times in (1, 2):
            kill_worker(ours, times)
            eventually("packets", lambda: site.network.alice.ping(bob, 1) == 0)
    sent, lost = counts
    assert lost < sent
    assert wire.kinds["clear"] == 0
    assert ours.spis() == before
    site.assert_protected()
    assert ours.tunnel().children[0].packets_out > sent - lost
    assert "its Child SA is rekeyed" not in ours.log


def test_the_interface_of_a_tunnel_comes_back_with_the_worker(site: Site) -> None:
    tunnel = site.network.tunnel()
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored(), **keys(2))
    ours = site.xfrmpy(site.network.moon, tunnel, **keys(1))
    site.connect(ours, theirs)
    before = ours.spis()
    kill_worker(ours)
    site.assert_protected()
    assert ours.spis() == before


def test_so_it_does_beside_a_daemon_that_took_over_from_another(site: Site) -> None:
    ours, _ = site.beside_strongswan()
    before = ours.spis()
    ours.crash()
    ours.start_again()
    kill_worker(ours)
    site.assert_protected()
    assert ours.spis() == before


def test_a_daemon_whose_worker_ends_again_and_again_ends_and_says_why(site: Site) -> None:
    ours = site.xfrmpy(site.network.moon, site.network.tunnel())
    for times in range(1, FREELY + 1):
        kill_worker(ours, times)
    os.kill(worker_of(ours.runtime / WORKER_SOCKET), signal.SIGKILL)
    assert ours.ended() == 1
    assert "XF3003" in ours.log
