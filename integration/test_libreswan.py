"""xfrmpy and libreswan in both roles: both in the kernel, for libreswan has no ESP of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.lab.cases import CASES, tunnels
from integration.lab.process import eventually
from integration.lab.site import Pair, Role, Site

pytestmark = pytest.mark.vm

BOTH_ROLES = pytest.mark.parametrize("role", list(Role))


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """One daemon of each kind, which know a tunnel for every case."""
    with Site() as site:
        known = tunnels(site.network)
        theirs = site.libreswan(site.network.sun, *(tunnel.mirrored() for tunnel in known))
        yield Pair(site, site.xfrmpy(site.network.moon, *known), theirs)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
@BOTH_ROLES
def test_a_tunnel_comes_up_carries_packets_and_goes_down(
    pair: Pair, role: Role, number: int
) -> None:
    pair.assert_case(role, number)


def test_a_transfer_is_intact(pair: Pair) -> None:
    pair.connect(Role.INITIATOR)
    pair.site.transfer(2_000_000)
    pair.ours.terminate()


def test_the_responder_may_end_the_tunnel(pair: Pair) -> None:
    pair.connect(Role.INITIATOR)
    pair.theirs.terminate()
    eventually("our end to be down", lambda: not pair.ours.is_up())


def test_libreswan_calls_again_when_we_end_what_it_began(pair: Pair) -> None:
    """Who was told to initiate there keeps a tunnel up until told otherwise."""
    pair.connect(Role.RESPONDER)
    first = pair.ours.tunnel().spi_i
    pair.ours.terminate()
    eventually(
        "another IKE SA", lambda: pair.ours.is_up() and pair.ours.tunnel().spi_i not in ("", first)
    )
    pair.site.assert_protected()
    pair.theirs.terminate()
    eventually("our end to be down", lambda: not pair.ours.is_up())


@pytest.mark.nat
@BOTH_ROLES
def test_our_end_may_be_behind_a_nat(site: Site, role: Role) -> None:
    tunnel = site.network.tunnel()
    theirs = site.libreswan(site.network.sun, tunnel.mirrored())
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel), theirs)
    pair.connect(role)
    wire = site.assert_protected()
    assert wire.kinds["udp-esp"] == wire.protected
