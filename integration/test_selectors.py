"""Selectors by protocol and port, agreed upon with the kernels of others."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from integration.lab.network import subnet
from integration.lab.site import Pair, Peer, Site
from integration.lab.tunnel import Tunnel

pytestmark = pytest.mark.vm

TCP_PORT = 5001
"""Where `transfer` listens."""

OCTETS = 20_000


def _strongswan(site: Site, tunnel: Tunnel, theirs: str, ours: str) -> Peer:
    named = tunnel.between((f"{subnet(2)}[{theirs}]",), (f"{subnet(1)}[{ours}]",))
    return site.strongswan(site.network.sun, named)


def _libreswan(site: Site, tunnel: Tunnel, theirs: str, ours: str) -> Peer:
    lines = (f"leftprotoport={theirs}", f"rightprotoport={ours}")
    return site.libreswan(site.network.sun, tunnel, connection=lines)


MAKE_PEER = pytest.mark.parametrize(
    "make_peer", [_strongswan, _libreswan], ids=["strongswan", "libreswan"]
)


def _pair(
    site: Site,
    make_peer: Callable[[Site, Tunnel, str, str], Peer],
    ours: str,
    theirs: str,
    as_they_write: str = "",
) -> Pair:
    tunnel = site.network.tunnel()
    named = tunnel.between((f"{subnet(1)}[{ours}]",), (f"{subnet(2)}[{theirs}]",))
    written = (as_they_write, as_they_write) if as_they_write else (theirs, ours)
    peer = make_peer(site, tunnel.mirrored(), *written)
    return Pair(site, site.xfrmpy(site.network.moon, named), peer)


@MAKE_PEER
def test_one_service_is_carried_and_nothing_else(
    site: Site, make_peer: Callable[[Site, Tunnel, str, str], Peer]
) -> None:
    pair = _pair(site, make_peer, "tcp", f"tcp/{TCP_PORT}")
    for _ in pair.each_role():
        (child,) = pair.ours.tunnel().children
        assert child.remote == [f"{subnet(2)}[tcp/{TCP_PORT}]"]
        site.transfer(OCTETS)
        with site.capture() as wire:
            assert site.network.alice.ping(site.network.bob.inside_address(), 1) == 1
        assert wire.protected == 0


@MAKE_PEER
def test_icmp_alone_is_carried(
    site: Site, make_peer: Callable[[Site, Tunnel, str, str], Peer]
) -> None:
    pair = _pair(site, make_peer, "icmp", "icmp")
    for _ in pair.each_role():
        (child,) = pair.ours.tunnel().children
        assert (child.local, child.remote) == ([f"{subnet(1)}[icmp]"], [f"{subnet(2)}[icmp]"])
        site.assert_protected()


@MAKE_PEER
def test_of_icmp_one_type_is_carried_and_the_others_are_not(
    site: Site, make_peer: Callable[[Site, Tunnel, str, str], Peer]
) -> None:
    """Echo requests of either side, and so no answers: bob's go in clear (RFC 4301, 4.4.1.1).

    Those of alice go where the tunnel's route leads all that is for bob's subnet.
    libreswan writes type and code in one number, as RFC 7296 section 3.13.1 has them, and
    strongSwan means code 0 where it is given none.
    """
    network = site.network
    network.sun.batch(f"route add {subnet(1)} via {network.moon.outside[4]}")
    ours, theirs = "icmp/8.0", "icmp/2048" if make_peer is _libreswan else "icmp/8"
    pair = _pair(site, make_peer, ours, ours, theirs)
    for _ in pair.each_role():
        (child,) = pair.ours.tunnel().children
        assert (child.local, child.remote) == ([f"{subnet(1)}[{ours}]"], [f"{subnet(2)}[{ours}]"])
        with site.capture() as wire:
            assert network.alice.ping(network.bob.inside_address()) == 0
        assert (wire.protected, wire.kinds["clear"]) == (3, 3)
        before = child.packets_in
        network.bob.ping(network.alice.inside_address(), 1)
        assert pair.ours.tunnel().children[0].packets_in == before + 1
