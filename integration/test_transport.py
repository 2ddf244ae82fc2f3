"""Transport mode between the two gateways themselves, with and without NATs between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from integration.lab.process import eventually
from integration.lab.site import Pair, Peer, Site
from integration.lab.transfer import transfer
from integration.lab.tunnel import Tunnel


def _tunnel(site: Site, moon: bool = True) -> Tunnel:
    tunnel = replace(site.network.tunnel(), is_transport=True)
    return tunnel if moon else tunnel.mirrored()


def _assert_carries(site: Site, kind: str) -> None:
    """Pings and a TCP stream in both directions, and nothing in the clear."""
    moon, sun = site.network.moon, site.network.sun
    with site.capture() as wire:
        assert moon.ping(sun.public[4]) == 0
        assert sun.ping(moon.public[4]) == 0
        transfer(moon, sun, sun.outside[4], 200_000, site.log)
    assert wire.kinds["clear"] == 0
    assert wire.kinds[kind] == wire.protected > 100


@pytest.mark.vm
@pytest.mark.parametrize("peer", [Site.strongswan, Site.libreswan], ids=lambda f: f.__name__)
def test_two_hosts_protect_what_they_say(site: Site, peer: Callable[..., Peer]) -> None:
    theirs = peer(site, site.network.sun, _tunnel(site, moon=False))
    pair = Pair(site, site.xfrmpy(site.network.moon, _tunnel(site)), theirs)
    for _ in pair.each_role():
        (child,) = pair.ours.tunnel().children
        assert (child.mode, child.local, child.remote) == (
            "transport",
            ["192.0.2.1/32"],
            ["192.0.2.2/32"],
        )
        _assert_carries(site, "esp")


@pytest.mark.vm
@pytest.mark.nat
def test_our_host_may_be_behind_a_nat(site: Site) -> None:
    theirs = site.strongswan(site.network.sun, _tunnel(site, moon=False))
    pair = Pair(site, site.xfrmpy(site.network.moon, _tunnel(site)), theirs)
    for _ in pair.each_role():
        _assert_carries(site, "udp-esp")


@pytest.mark.vm
@pytest.mark.nat
def test_the_other_host_may_be_behind_a_nat(site: Site) -> None:
    ours = site.xfrmpy(site.network.sun, _tunnel(site, moon=False))
    pair = Pair(site, ours, site.strongswan(site.network.moon, _tunnel(site)))
    for _ in pair.each_role():
        (child,) = pair.ours.tunnel().children
        assert child.remote == ["192.0.2.1/32"], "the NAT's, not the host's own"
        _assert_carries(site, "udp-esp")


@pytest.mark.vm
def test_a_peer_that_makes_a_tunnel_of_it_is_refused(site: Site) -> None:
    tunnel = site.network.tunnel().between(("192.0.2.1/32",), ("192.0.2.2/32",))
    theirs = site.strongswan(site.network.sun, tunnel.mirrored())
    ours = site.xfrmpy(site.network.moon, _tunnel(site))
    answer = ours.command("up", "net0")
    assert answer.code == 5
    assert "XF20" in answer.errors
    eventually("the peer to be told", lambda: not theirs.is_up())


@pytest.mark.native
def test_two_hosts_protect_what_they_say_in_user_space(site: Site) -> None:
    pair = Pair(site, site.xfrmpy(site.network.moon, _tunnel(site)), _xfrmpy_at_sun(site))
    for _ in pair.each_role():
        _assert_carries(site, "udp-esp")


@pytest.mark.native
@pytest.mark.nat
def test_a_nat_between_changes_no_checksum_in_user_space(site: Site) -> None:
    pair = Pair(site, site.xfrmpy(site.network.moon, _tunnel(site)), _xfrmpy_at_sun(site))
    for _ in pair.each_role():
        _assert_carries(site, "udp-esp")


@pytest.mark.vm
@pytest.mark.parametrize("encapsulation", ["nat", "force"])
def test_user_space_and_the_kernel_of_another_take_each_other(
    site: Site, encapsulation: str
) -> None:
    theirs = site.strongswan(site.network.sun, _tunnel(site, moon=False))
    keys = {"datapath": "userspace", "encapsulation": encapsulation}
    pair = Pair(site, site.xfrmpy(site.network.moon, _tunnel(site), **keys), theirs)
    for _ in pair.each_role():
        _assert_carries(site, "esp" if encapsulation == "nat" else "udp-esp")


def _xfrmpy_at_sun(site: Site) -> Peer:
    return site.xfrmpy(site.network.sun, _tunnel(site, moon=False))
