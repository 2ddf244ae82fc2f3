"""xfrmpy and libreswan in both roles: both in the kernel, for libreswan has no ESP of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from integration.lab.cases import CASES, tunnels
from integration.lab.marks import BOTH_ROLES
from integration.lab.process import eventually
from integration.lab.site import Pair, Role, Site
from integration.lab.tunnel import Tunnel

pytestmark = pytest.mark.vm


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


def test_both_ends_return_cookies_and_cut_large_messages_to_a_path_of_1280(site: Site) -> None:
    """In both roles; so many ESP proposals make a request that long."""
    site.network.narrow(1280)
    ciphers = [f"aes{bits}-sha{size}" for bits in (256, 192, 128) for size in (512, 384, 256)]
    ciphers += ["aes256gcm16", "aes192gcm16", "aes128gcm16", "chacha20poly1305"]
    many = ",".join(f"{cipher}-noesn" for cipher in ciphers * 2)
    tunnel = replace(with_long_names(site), esp=many)
    theirs = site.libreswan(site.network.sun, tunnel.mirrored())
    theirs.whack("--ddos-busy")
    ours = site.xfrmpy(site.network.moon, tunnel, options=("--cookies-at", "0"))
    pair = Pair(site, ours, theirs)
    for role in Role:
        with site.capture() as wire:
            pair.connect(role)
        assert wire.kinds["ike-fragment"] >= 2
        site.assert_protected(count=1)
        pair.disconnect(role)
    assert "the peer is busy and asks for a cookie" in ours.log
    assert ours.status().drops["cookie-demanded"] >= 1
    assert "received anti-DDOS COOKIE response" in theirs.log


def test_libreswan_passes_over_key_exchanges_that_it_does_not_know(site: Site) -> None:
    """In both roles: the default offers ML-KEM first, and a classical IKE SA comes of it."""
    classical = "aes256gcm16-prfsha384-x25519"
    tunnel = site.network.tunnel(ike=classical)
    theirs = site.libreswan(site.network.sun, tunnel.mirrored())
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel, ike="modern"), theirs)
    for role in Role:
        pair.connect(role)
        assert pair.ours.tunnel().suite == classical
        site.assert_protected(count=1)
        pair.disconnect(role)
