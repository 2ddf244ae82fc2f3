"""BEET mode between two hosts: ours with the kernel of strongSwan, and two of ours."""

from __future__ import annotations

from typing import Any

import pytest

from integration.lab.process import eventually
from integration.lab.site import Pair, Site
from integration.lab.tunnel import Tunnel

BEET: dict[str, Any] = {"datapath": "kernel", "mode": "beet"}
VENDOR = "send_vendor_id=yes"


def _tunnel(site: Site) -> Tunnel:
    one, other = (host.inside_address() for host in (site.network.alice, site.network.bob))
    return site.network.tunnel().between((f"{one}/32",), (f"{other}/32",))


def _assert_carries(site: Site, pair: Pair) -> None:
    (child,) = pair.ours.tunnel().children
    assert child.mode == "beet"
    site.assert_protected()
    listed = pair.ours.host.run("ip", "xfrm", "state")
    assert listed.count("mode beet") == 2


@pytest.mark.vm
def test_two_of_ours_spare_the_inner_headers(site: Site) -> None:
    tunnel = _tunnel(site)
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored(), **BEET)
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel, **BEET), theirs)
    for _ in pair.each_role():
        _assert_carries(site, pair)
    site.connect(pair.ours, theirs)
    before = pair.ours.spis()
    pair.ours.crash()
    pair.ours.start_again()
    assert pair.ours.spis() == before
    assert pair.ours.command("plan", "--detailed-exitcode").code == 0
    _assert_carries(site, pair)


def _beside_strongswan(site: Site) -> Pair:
    tunnel = _tunnel(site)
    theirs = site.strongswan(
        site.network.sun, tunnel.mirrored(), child="mode = beet", settings=[VENDOR]
    )
    return Pair(site, site.xfrmpy(site.network.moon, tunnel, **BEET), theirs)


@pytest.mark.vm
def test_strongswan_has_the_same_mode(site: Site) -> None:
    pair = _beside_strongswan(site)
    for _ in pair.each_role():
        _assert_carries(site, pair)
        before = pair.ours.spis()
        pair.ours.rekey()
        assert pair.ours.spis() != before
        _assert_carries_when_settled(site, pair)


@pytest.mark.vm
@pytest.mark.parametrize(
    "behind",
    [
        pytest.param("local", marks=pytest.mark.nat("moon")),
        pytest.param("remote", marks=pytest.mark.nat("sun")),
    ],
)
def test_strongswan_has_it_through_a_nat(site: Site, behind: str) -> None:
    """In UDP; the addresses within are those of the two ends' policies, whatever a NAT does."""
    pair = _beside_strongswan(site)
    for _ in pair.each_role():
        assert pair.ours.tunnel().nat == behind
        _assert_carries(site, pair)
        pair.ours.rekey()
        _assert_carries_when_settled(site, pair)
        site.network.forget_mappings()
        site.network.alice.await_answer(site.network.bob.inside_address())
        wire = site.assert_protected()
        assert wire.kinds["udp-esp"] == wire.protected


def _assert_carries_when_settled(site: Site, pair: Pair) -> None:
    """An old SA goes on receiving for some seconds."""
    state = ("ip", "xfrm", "state")
    eventually("the old SAs to go", lambda: pair.ours.host.run(*state).count("mode beet") == 2)
    _assert_carries(site, pair)


@pytest.mark.vm
def test_a_peer_that_makes_a_tunnel_of_it_is_refused(site: Site) -> None:
    tunnel = _tunnel(site)
    theirs = site.strongswan(site.network.sun, tunnel.mirrored(), settings=[VENDOR])
    ours = site.xfrmpy(site.network.moon, tunnel, **BEET)
    answer = ours.command("up", "net0")
    assert answer.code == 5
    assert "XF2020" in answer.errors
    assert "BEET" in answer.errors
    eventually("it to be gone", lambda: not theirs.is_up())
