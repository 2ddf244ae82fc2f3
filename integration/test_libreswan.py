"""xfrmpy and libreswan in both roles: both in the kernel, for libreswan has no ESP of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from integration.lab.cases import CASES, tunnels
from integration.lab.process import eventually
from integration.lab.site import Pair, Role, Site
from integration.lab.tunnel import Tunnel

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


def with_long_names(site: Site) -> Tunnel:
    """A tunnel whose IKE_AUTH request has more than 700 octets."""
    tunnel = site.network.tunnel()
    ours, theirs = (
        replace(end, id=".".join([letter * 60] * 4))
        for end, letter in ((tunnel.ours, "m"), (tunnel.theirs, "s"))
    )
    return replace(tunnel, ours=ours, theirs=theirs)


def test_a_large_message_of_ours_is_cut_smaller_until_it_passes(site: Site) -> None:
    site.network.narrow(600)
    tunnel = with_long_names(site)
    theirs = site.libreswan(site.network.sun, tunnel.mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel)
    with site.capture() as wire:
        site.connect(ours, theirs)
    assert wire.kinds["ike-fragment"] >= 2
    assert "in datagrams of at most 576 octets" in ours.log
    site.assert_protected(count=1)


def test_a_large_message_of_the_peer_comes_in_fragments(site: Site) -> None:
    """libreswan cuts at 1,280 octets; so many ESP proposals make its request longer."""
    site.network.narrow(1280)
    ciphers = [f"aes{bits}-sha{size}" for bits in (256, 192, 128) for size in (512, 384, 256)]
    ciphers += ["aes256gcm16", "aes192gcm16", "aes128gcm16", "chacha20poly1305"]
    tunnel = with_long_names(site)
    many = replace(tunnel, esp=",".join(f"{cipher}-noesn" for cipher in ciphers * 2))
    theirs = site.libreswan(site.network.sun, many.mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel)
    with site.capture() as wire:
        site.connect(theirs, ours)
    assert wire.kinds["ike-fragment"] >= 2
    site.assert_protected(count=1)


@pytest.mark.nat
@BOTH_ROLES
def test_our_end_may_be_behind_a_nat(site: Site, role: Role) -> None:
    tunnel = site.network.tunnel()
    theirs = site.libreswan(site.network.sun, tunnel.mirrored())
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel), theirs)
    pair.connect(role)
    wire = site.assert_protected()
    assert wire.kinds["udp-esp"] == wire.protected
