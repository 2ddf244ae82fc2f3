"""IP compression between gateways: two of ours, and ours with the kernels of others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from integration.lab.site import Pair, Peer, Site
from integration.lab.tunnel import Tunnel

PROPOSAL = "aes256gcm16-noesn"
COMPRESSING: dict[str, Any] = {
    "datapath": "userspace",
    "encapsulation": "nat",
    "esp": {"ipcomp": "yes", "proposals": PROPOSAL},
}
_PAYLOAD = 1000


def _strongswan(site: Site, tunnel: Tunnel) -> Peer:
    return site.strongswan(site.network.sun, tunnel, child="ipcomp = yes")


def _libreswan(site: Site, tunnel: Tunnel) -> Peer:
    return site.libreswan(site.network.sun, tunnel, connection=["compress=yes"])


def _assert_compresses(pair: Pair, far_end: str) -> None:
    """Both ways, what is large and dull gets much smaller, and what is small passes as it is."""
    sender = pair.site.network.alice
    for octets in (56, _PAYLOAD):
        assert sender.ping(far_end, octets=octets) == 0
    (child,) = pair.ours.tunnel().children
    assert child.packets_in == child.packets_out == 6
    plain = 3 * (84 + 28 + _PAYLOAD)
    assert max(child.octets_in, child.octets_out) < plain / 2


@pytest.mark.native
def test_two_userspace_datapaths_compress(site: Site) -> None:
    tunnel = site.network.tunnel(esp=PROPOSAL)
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored(), **COMPRESSING)
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel, **COMPRESSING), theirs)
    for _ in pair.each_role():
        _assert_compresses(pair, site.network.bob.inside_address())
        pair.ours.rekey()
        _assert_passes(site)


def _assert_passes(site: Site) -> None:
    assert site.network.alice.ping(site.network.bob.inside_address(), octets=_PAYLOAD) == 0


@pytest.mark.vm
@pytest.mark.parametrize("make_peer", [_strongswan, _libreswan], ids=["strongswan", "libreswan"])
def test_the_kernel_of_another_compresses_with_us(
    site: Site, make_peer: Callable[[Site, Tunnel], Peer]
) -> None:
    tunnel = replace(site.network.tunnel(), esp=PROPOSAL)
    theirs = make_peer(site, tunnel.mirrored())
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel, **COMPRESSING), theirs)
    for _ in pair.each_role():
        _assert_compresses(pair, site.network.bob.inside_address())


@pytest.mark.vm
def test_the_kernel_datapath_says_that_it_does_not(site: Site) -> None:
    keys: dict[str, Any] = {"datapath": "kernel", "esp": {"ipcomp": "yes"}}
    answer = site.xfrmpy(site.network.moon, site.network.tunnel(), **keys).command("up", "net0")
    assert answer.code == 78
    assert "the kernel datapath does not compress packets" in answer.errors
