"""Keys are replaced while packets pass, by either end, and not one packet is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest

from integration.lab.libreswan import LibreswanPeer
from integration.lab.process import IN_VM, eventually
from integration.lab.site import Pair, Role, Site
from integration.lab.strongswan import StrongswanPeer

pytestmark = pytest.mark.copied

SECONDS = float(os.environ.get("XFRMPY_REKEYING_SECONDS", "20" if IN_VM else "30"))
"""How long the keys are replaced all the time, as operators do it; in each role. `make test` has no
time for the 120 that it takes to be sure; `-rP` shows the figures."""

FORWARD_SECRECY = "aes128gcm16-x25519-noesn"


def strongswan(site: Site, esp: str) -> Pair:
    tunnel = site.network.tunnel(esp=esp)
    theirs = site.strongswan(site.network.sun, tunnel.mirrored())
    return Pair(site, site.xfrmpy(site.network.moon, tunnel), theirs)


def libreswan(site: Site, esp: str) -> Pair:
    tunnel = site.network.tunnel(esp=esp)
    theirs = site.libreswan(site.network.sun, tunnel.mirrored())
    return Pair(site, site.xfrmpy(site.network.moon, tunnel), theirs)


@pytest.mark.parametrize(
    "make_pair",
    [
        pytest.param(strongswan, marks=[pytest.mark.native, pytest.mark.vm], id="strongswan"),
        pytest.param(libreswan, marks=pytest.mark.vm, id="libreswan"),
    ],
)
@pytest.mark.parametrize("role", list(Role))
def test_rekeying_by_either_end_for_minutes_loses_no_packet(
    site: Site, make_pair: Callable[[Site, str], Pair], role: Role
) -> None:
    pair = make_pair(site, FORWARD_SECRECY)
    pair.connect(role)
    theirs: Any = pair.theirs
    ways = cycle((theirs.rekey_child_sa, theirs.rekey_ike_sa, *_ours_without_loss(pair)))
    count, ends_at = 0, time.monotonic() + SECONDS
    bob = site.network.bob.inside_address()
    with site.network.alice.pinging(bob, site.log) as counts:
        while time.monotonic() < ends_at:
            _rekey(pair, next(ways))
            site.network.alice.ping(bob, 20)
            count += 1
    sent, lost = counts
    print(f"{count} times new keys in {SECONDS:.0f} s, {lost} of {sent} pings lost")
    assert (sent > 200, lost, count > 2) == (True, 0, True)
    _rekey(pair, pair.ours.rekey)
    _assert_one(pair)


def _ours_without_loss(pair: Pair) -> tuple[Callable[[], None], ...]:
    """libreswan sends on a new SA before we have its answer, and so the keys to receive: RFC 7296
    section 2.8 allows it, and says that packets are dropped by it."""
    return () if isinstance(pair.theirs, LibreswanPeer) else (pair.ours.rekey,)


def _rekey(pair: Pair, replace: Callable[[], None]) -> None:
    before = _keys(pair)
    replace()
    eventually("new keys", lambda: _keys(pair) != before)


def _keys(pair: Pair) -> tuple[str, ...]:
    tunnel = pair.ours.tunnel()
    return (tunnel.spi_i, tunnel.spi_r, *(child.spi_in for child in tunnel.children))


def _assert_one(pair: Pair) -> None:
    """After the overlap there is one Child SA and one IKE SA at either end."""
    eventually("the old SAs to be gone", lambda: len(pair.ours.tunnel().children) == 1)
    theirs = pair.theirs
    if isinstance(theirs, StrongswanPeer):
        eventually("one IKE SA", lambda: theirs.list_sas().count("site0: #") == 1)
        eventually("one Child SA", lambda: theirs.list_sas().count("INSTALLED") == 1)
    else:
        assert isinstance(theirs, LibreswanPeer)
        eventually("one Child SA", lambda: theirs.whack("--trafficstatus").count("type=ESP") == 1)


@pytest.mark.native
@pytest.mark.parametrize("role", list(Role))
def test_lifetimes_replace_the_keys_by_themselves(site: Site, role: Role) -> None:
    tunnel = site.network.tunnel(esp=FORWARD_SECRECY)
    theirs = site.strongswan(
        site.network.sun,
        tunnel.mirrored(),
        # We tell it by when to authenticate again; from that it takes off `over_time`.
        connection="over_time = 3s",
        settings=("make_before_break=yes",),
    )
    ike = {"proposals": tunnel.ike, "lifetime": "15s", "reauth": "25s"}
    ours = site.xfrmpy(site.network.moon, tunnel, lifetime="10s", ike=ike)
    Pair(site, ours, theirs).connect(role)
    with site.network.alice.pinging(site.network.bob.inside_address(), site.log) as counts:
        expected = ["Child SA net0 rekeyed", "IKE SA rekeyed"]
        if role is Role.INITIATOR:
            expected.append("IKE SA made anew")
        eventually("all kinds", lambda: all(words in ours.log for words in expected), seconds=60)
        if role is Role.RESPONDER:
            eventually("its authentication", lambda: ours.log.count("IKE SA with") > 1, seconds=60)
    assert counts[1] == 0
    assert ours.is_up()


@pytest.mark.native
def test_a_difference_in_forward_secrecy_is_told_at_up(site: Site) -> None:
    theirs = site.network.tunnel(esp="aes128gcm16-ecp384-noesn").mirrored()
    site.strongswan(site.network.sun, theirs)
    ours = site.xfrmpy(site.network.moon, site.network.tunnel(esp=FORWARD_SECRECY))
    answer = ours.command("up", "net0")
    assert answer.code == 0
    for words in ("XF2015", "aes128gcm16-x25519-noesn", "NO_PROPOSAL_CHOSEN"):
        assert words in answer.errors
    assert ours.is_up()


@pytest.mark.native
def test_a_peer_that_was_killed_and_starts_again_comes_back_by_itself(site: Site) -> None:
    tunnel = site.network.tunnel()
    theirs = site.strongswan(site.network.sun, tunnel.mirrored())
    quick: dict[str, Any] = {"dpd": "1s", "retransmission": {"tries": 2, "initial": "500ms"}}
    ours = site.xfrmpy(site.network.moon, tunnel, start="auto", **quick)
    eventually("the tunnel to be up", ours.is_up)
    theirs.kill()
    eventually("us to notice", lambda: not ours.is_up(), seconds=30)
    site.strongswan(site.network.sun, tunnel.mirrored())
    eventually("the tunnel to be up again", ours.is_up, seconds=60)
    site.assert_protected()


@pytest.mark.native
def test_two_ends_that_begin_at_once_keep_one_ike_sa(site: Site) -> None:
    tunnel = site.network.tunnel()
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored(), start="auto")
    ours = site.xfrmpy(site.network.moon, tunnel, start="auto")
    eventually("both ends to be up", lambda: ours.is_up() and theirs.is_up())

    def agree() -> bool:
        a, b = ours.tunnel(), theirs.tunnel()
        return (a.spi_i, a.spi_r) == (b.spi_i, b.spi_r) and {a.role, b.role} == set(Role)

    eventually("both ends to agree", agree, seconds=20)
    site.assert_protected()
