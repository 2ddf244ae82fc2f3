"""`encapsulation: nat` on the userspace datapath: ESP by itself where there is no NAT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from integration.lab.site import Pair, Peer, Site

USERSPACE: dict[str, Any] = {"datapath": "userspace", "encapsulation": "nat"}


def _against(site: Site, **theirs: Any) -> Pair:
    tunnel = site.network.tunnel(esp="aes256gcm16-esn")
    sun = site.xfrmpy(site.network.sun, tunnel.mirrored(), **theirs)
    return Pair(site, site.xfrmpy(site.network.moon, tunnel, **USERSPACE), sun)


def _assert_carries(site: Site, kind: str) -> None:
    wire = site.assert_protected()
    assert wire.kinds[kind] == wire.protected


@pytest.mark.native
def test_two_userspace_datapaths_need_no_udp(site: Site) -> None:
    pair = _against(site, **USERSPACE)
    for _ in pair.each_role():
        _assert_carries(site, "esp")
        site.transfer(5_000_000)


@pytest.mark.native
@pytest.mark.nat
def test_behind_a_nat_it_is_udp_after_all(site: Site) -> None:
    pair = _against(site, **USERSPACE)
    for _ in pair.each_role():
        _assert_carries(site, "udp-esp")


@pytest.mark.native
def test_left_alone_it_stays_udp_that_every_router_lets_through(site: Site) -> None:
    pair = _against(site, datapath="userspace")
    for _ in pair.each_role():
        _assert_carries(site, "udp-esp")


@pytest.mark.vm
def test_our_own_kernel_datapath_takes_it(site: Site) -> None:
    pair = _against(site, datapath="kernel")
    for _ in pair.each_role():
        _assert_carries(site, "esp")


@pytest.mark.vm
@pytest.mark.parametrize("make_peer", [Site.strongswan, Site.libreswan], ids=lambda f: f.__name__)
def test_the_kernel_of_another_takes_it(site: Site, make_peer: Callable[..., Peer]) -> None:
    tunnel = site.network.tunnel()
    theirs = make_peer(site, site.network.sun, tunnel.mirrored())
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel, **USERSPACE), theirs)
    for _ in pair.each_role():
        _assert_carries(site, "esp")
