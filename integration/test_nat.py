"""NAT between us and other daemons: on either side and both; mappings that are forgotten."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from integration.lab.marks import PEERS
from integration.lab.process import IN_VM, eventually
from integration.lab.site import Pair, Peer, Role, Site

pytestmark = [pytest.mark.nat, pytest.mark.copied]

NATIVE = pytest.mark.native

IN_VM_TOO = pytest.mark.vm

PLACES = pytest.mark.parametrize(
    "behind",
    [
        pytest.param("local", marks=pytest.mark.nat("moon")),
        pytest.param("remote", marks=pytest.mark.nat("sun")),
        pytest.param("local, remote", marks=pytest.mark.nat("moon", "sun")),
    ],
)
"""Which end stands behind a NAT, in the words of `status`."""


@PLACES
@PEERS
def test_a_nat_may_be_on_either_side_and_both(
    site: Site, make_peer: Callable[..., Peer], behind: str
) -> None:
    """In both roles; the ports 500 and 4500 of a router lead to the gateway behind it."""
    tunnel = site.network.tunnel()
    theirs = make_peer(site, site.network.sun, tunnel.mirrored())
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel), theirs)
    for role in pair.each_role():
        _assert_encapsulated(site)
        told = pair.ours.tunnel()
        assert told.role == role
        if IN_VM:  # In user space either end says that it stands behind one, for the sake of UDP.
            assert told.nat == behind


@IN_VM_TOO
@pytest.mark.nat("nobody")
@pytest.mark.parametrize("forced_by", ["us", "them"])
def test_encapsulation_may_be_forced_without_a_nat(site: Site, forced_by: str) -> None:
    network = site.network
    keys = {"encapsulation": "force"} if forced_by == "us" else {}
    connection = "" if forced_by == "us" else "encap = yes"
    theirs = site.strongswan(network.sun, network.tunnel().mirrored(), connection=connection)
    pair = Pair(site, site.xfrmpy(network.moon, network.tunnel(), **keys), theirs)
    for _ in pair.each_role():
        _assert_encapsulated(site)


def _assert_encapsulated(site: Site) -> None:
    wire = site.assert_protected()
    assert wire.kinds["udp-esp"] == wire.protected


def _ours_behind(site: Site, **keys: Any) -> Pair:
    network = site.network
    theirs = site.strongswan(network.sun, network.tunnel().mirrored())
    return Pair(site, site.xfrmpy(network.moon, network.tunnel(), **keys), theirs)


def _theirs_behind(site: Site, connection: str = "", **keys: Any) -> Pair:
    network = site.network
    ours = site.xfrmpy(network.sun, network.tunnel().mirrored(), **keys)
    return Pair(site, ours, site.strongswan(network.moon, network.tunnel(), connection=connection))


def _assert_goes_on(pair: Pair, spis: tuple[str, ...]) -> None:
    """Packets pass again, of the same SAs."""
    _assert_passes(pair)
    assert _spis(pair) == spis


def _assert_passes(pair: Pair) -> None:
    network = pair.site.network
    network.alice.await_answer(network.bob.inside_address())
    pair.site.assert_protected()


def _spis(pair: Pair) -> tuple[str, ...]:
    tunnel = pair.ours.tunnel()
    (child,) = tunnel.children
    return tunnel.spi_i, tunnel.spi_r, child.spi_in, child.spi_out


@NATIVE
@IN_VM_TOO
def test_a_peer_whose_nat_forgets_is_followed_by_its_packets(site: Site) -> None:
    pair = _theirs_behind(site, dpd="off")
    pair.connect(Role.RESPONDER)
    before = _spis(pair)
    site.network.forget_mappings()
    _assert_goes_on(pair, before)
    assert "the peer is now at 192.0.2.1:" in pair.ours.log


@NATIVE
def test_a_peer_whose_nat_forgets_is_followed_by_its_questions(site: Site) -> None:
    pair = _theirs_behind(site, "dpd_delay = 1s", dpd="off")
    pair.connect(Role.RESPONDER)
    before = _spis(pair)
    site.network.forget_mappings()
    eventually("us to follow", lambda: "the peer is now at 192.0.2.1:" in pair.ours.log, seconds=20)
    bob, alice = site.network.bob, site.network.alice
    assert bob.ping(alice.inside_address(), count=3) == 0, "from our side first"
    _assert_goes_on(pair, before)


@NATIVE
@IN_VM_TOO
def test_the_peer_follows_us_when_our_nat_forgets(site: Site) -> None:
    pair = _ours_behind(site, dpd="1s")
    pair.connect(Role.INITIATOR)
    before = _spis(pair)
    site.network.forget_mappings()
    _assert_passes(pair)
    if IN_VM:  # charon's ESP in user space cannot move an SA: there it negotiates another.
        assert _spis(pair) == before
    assert "the peer is now at" not in pair.ours.log


@NATIVE
def test_keepalives_are_sent_by_the_end_behind_a_nat(site: Site) -> None:
    """And not while packets of the tunnel do their work; charon's own come every 20 seconds."""
    pair = _ours_behind(site, nat_keepalive="1s", dpd="off")
    pair.connect(Role.INITIATOR)
    with site.capture() as idle:
        _pass_seconds(5)
    assert 3 <= idle.kinds["keepalive"] <= 6
    alice, bob = site.network.alice, site.network.bob
    with site.capture() as busy, alice.pinging(bob.inside_address(), site.log):
        _pass_seconds(5)
    assert busy.kinds["keepalive"] <= 1
    assert pair.ours.status().drops.get("no-marker", 0) == 0


@NATIVE
def test_keepalives_of_the_peer_are_ignored(site: Site) -> None:
    network = site.network
    ours = site.xfrmpy(network.sun, network.tunnel().mirrored())
    theirs = site.strongswan(network.moon, network.tunnel(), settings=("keep_alive=1s",))
    site.connect(theirs, ours)
    with site.capture() as wire:
        _pass_seconds(4)
    assert wire.kinds["keepalive"] >= 2
    assert ours.status().drops.get("no-marker", 0) == 0
    site.assert_protected()


def _pass_seconds(seconds: float) -> None:
    """What is awaited here is that nothing else happens."""
    over_at = time.monotonic() + seconds
    eventually("time to pass", lambda: time.monotonic() >= over_at, seconds=seconds + 5)
