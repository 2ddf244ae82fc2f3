"""IP compression between gateways: two of ours, and ours with the kernels of others."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from integration.lab.network import Host
from integration.lab.process import eventually
from integration.lab.site import Pair, Peer, Site
from integration.lab.tunnel import Tunnel
from integration.test_interfaces import keys as interface_keys

PROPOSAL = "aes256gcm16-noesn"
ESP = {"ipcomp": "yes", "proposals": PROPOSAL}
KEYS: dict[str, dict[str, Any]] = {
    "userspace": {"datapath": "userspace", "encapsulation": "nat", "esp": ESP},
    "kernel": {"datapath": "kernel", "esp": ESP},
}
COMPRESSING = KEYS["userspace"]
_PAYLOAD = 1000


def _strongswan(site: Site, tunnel: Tunnel) -> Peer:
    return site.strongswan(site.network.sun, tunnel, child="ipcomp = yes")


def _libreswan(site: Site, tunnel: Tunnel) -> Peer:
    return site.libreswan(site.network.sun, tunnel, connection=["compress=yes", "pfs=no"])


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


KERNELS = pytest.mark.parametrize(
    "make_peer", [_strongswan, _libreswan], ids=["strongswan", "libreswan"]
)


@pytest.mark.vm
@pytest.mark.parametrize("datapath", KEYS)
@KERNELS
def test_the_kernel_of_another_compresses_with_us(
    site: Site, make_peer: Callable[[Site, Tunnel], Peer], datapath: str
) -> None:
    tunnel = replace(site.network.tunnel(), esp=PROPOSAL)
    theirs = make_peer(site, tunnel.mirrored())
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel, **KEYS[datapath]), theirs)
    for _ in pair.each_role():
        _assert_compresses(pair, site.network.bob.inside_address())
        pair.ours.rekey()
        _assert_passes(site)
        assert site.network.alice.ping(site.network.bob.inside_address(), octets=8) == 0


@pytest.mark.vm
@pytest.mark.nat("moon")
@KERNELS
def test_the_kernel_of_another_compresses_with_us_in_udp(
    site: Site, make_peer: Callable[[Site, Tunnel], Peer]
) -> None:
    tunnel = replace(site.network.tunnel(), esp=PROPOSAL)
    theirs = make_peer(site, tunnel.mirrored())
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel, **KEYS["kernel"]), theirs)
    for _ in pair.each_role():
        assert pair.ours.tunnel().nat == "local"
        _assert_compresses(pair, site.network.bob.inside_address())
        pair.ours.rekey()
        with site.capture() as wire:
            _assert_passes(site)
        assert wire.kinds["udp-esp"] == wire.protected


@pytest.mark.vm
def test_the_two_datapaths_compress_with_one_another(site: Site) -> None:
    tunnel = site.network.tunnel(esp=PROPOSAL)
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored(), **COMPRESSING)
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel, **KEYS["kernel"]), theirs)
    for _ in pair.each_role():
        _assert_compresses(pair, site.network.bob.inside_address())
        for gateway in (pair.ours, theirs):
            gateway.rekey()
            _assert_passes(site)


@pytest.mark.vm
def test_a_route_based_tunnel_compresses(site: Site) -> None:
    """What is small, and goes as it is, comes out of the interface as well."""
    tunnel = site.network.tunnel(esp=PROPOSAL)
    theirs, ours = (
        site.xfrmpy(host, end, **KEYS["kernel"], **interface_keys(number))
        for host, end, number in (
            (site.network.sun, tunnel.mirrored(), 2),
            (site.network.moon, tunnel, 1),
        )
    )
    pair = Pair(site, ours, theirs)
    for _ in pair.each_role():
        for octets in (8, _PAYLOAD):
            assert site.network.alice.ping(site.network.bob.inside_address(), octets=octets) == 0
        (child,) = pair.ours.tunnel().children
        # The interface may have said a word of its own.
        assert 6 <= child.packets_in < 9
        assert max(child.octets_in, child.octets_out) < 3 * _PAYLOAD / 2


@pytest.mark.vm
def test_what_the_kernel_has_beside_an_sa_goes_the_way_of_it(site: Site) -> None:
    """Through kills, restarts, rekeying and hands of others; at the end nothing is left."""
    tunnel = site.network.tunnel(esp=PROPOSAL)
    ours, theirs = (
        site.xfrmpy(host, end, **KEYS["kernel"])
        for host, end in ((site.network.moon, tunnel), (site.network.sun, tunnel.mirrored()))
    )
    site.connect(ours, theirs)
    _assert_passes(site)
    before = ours.spis()
    for leave in (ours.crash, ours.be_relieved):
        leave()
        ours.start_again()
        assert ours.spis() == before
        assert ours.command("plan", "--detailed-exitcode").code == 0
        _assert_passes(site)
    for destination in (site.network.moon.outside[4], site.network.sun.outside[4]):
        cpi = _indices(ours.host)[destination]
        gone = ("dst", destination, "proto", "comp", "spi", cpi)
        ours.host.run("ip", "xfrm", "state", "delete", *gone)
        eventually("it to be put back", lambda d=destination: d in _indices(ours.host))  # type: ignore[misc]
        assert _indices(ours.host)[destination] == cpi
        _assert_passes(site)
    assert ours.spis() == before
    shown = ours.command("show", "kernel").output
    assert "ipcomp" in shown
    assert "beside 0x" in shown
    ours.rekey()
    eventually("the old one to go", lambda: len(_indices_in_all(ours.host)) == 2)
    _assert_passes(site)
    ours.host.run("ip", "xfrm", "state", "flush")
    eventually("other SAs", lambda: len(_indices_in_all(ours.host)) == 2)
    eventually("the tunnel to be up", ours.is_up)
    site.network.alice.await_answer(site.network.bob.inside_address())


def _indices_in_all(host: Host) -> list[tuple[str, str]]:
    """Destination and index of each state that compresses."""
    listed = host.run("ip", "xfrm", "state")
    return re.findall(r"src \S+ dst (\S+)\n\s+proto comp spi (\S+?)[( ]", listed)


def _indices(host: Host) -> dict[str, str]:
    return dict(_indices_in_all(host))


@pytest.mark.vm
def test_the_kernel_datapath_says_that_it_does_not_pad_as_well(site: Site) -> None:
    keys: dict[str, Any] = {"datapath": "kernel", "esp": {"ipcomp": "yes", "tfc": 1000}}
    answer = site.xfrmpy(site.network.moon, site.network.tunnel(), **keys).command("up", "net0")
    assert answer.code == 78
    assert "does not pad what it compresses" in " ".join(answer.errors.split())
