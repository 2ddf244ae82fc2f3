"""IKE and ESP in UDP on other ports than 500 and 4500, ours or the peer's: with other daemons."""

from __future__ import annotations

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.site import Pair, Peer, Site

pytestmark = pytest.mark.copied

OTHER = 4511


@pytest.mark.native
@pytest.mark.vm
def test_the_peer_may_have_another_port(site: Site) -> None:
    theirs = site.strongswan(
        site.network.sun,
        site.network.tunnel().mirrored(),
        settings=(f"port_nat_t={OTHER}",),
        connection=f"local_port = {OTHER}\nremote_port = 4500",
    )
    _assert_works(Pair(site, _calling_there(site), theirs), 4500, OTHER)


@pytest.mark.native
@pytest.mark.vm
def test_we_may_have_another_port(site: Site) -> None:
    """Who calls has to be told; whom we call sees it."""
    ports = f"local_port = 4500\nremote_port = {OTHER}"
    tunnel = site.network.tunnel().mirrored()
    theirs = site.strongswan(site.network.sun, tunnel, connection=ports)
    _assert_works(Pair(site, _listening_there(site), theirs), OTHER, 4500)


@pytest.mark.vm
def test_libreswan_may_have_another_port(site: Site) -> None:
    theirs = _libreswan(site, f"leftikeport={OTHER}", "rightikeport=4500")
    _assert_works(Pair(site, _calling_there(site), theirs), 4500, OTHER)


@pytest.mark.vm
def test_libreswan_finds_us_on_another_port(site: Site) -> None:
    theirs = _libreswan(site, f"rightikeport={OTHER}")
    _assert_works(Pair(site, _listening_there(site), theirs), OTHER, 4500)


def _libreswan(site: Site, *ports: str) -> Peer:
    tunnel = site.network.tunnel().mirrored()
    return site.libreswan(site.network.sun, tunnel, connection=[*ports, "pfs=no"])


def _calling_there(site: Site) -> XfrmpyGateway:
    tunnel = site.network.tunnel()
    return site.xfrmpy(site.network.moon, tunnel, peer_port=OTHER, encapsulation="force")


def _listening_there(site: Site) -> XfrmpyGateway:
    return site.xfrmpy(
        site.network.moon,
        site.network.tunnel(),
        options=("--natt-port", str(OTHER)),
        peer_port=4500,
        encapsulation="force",
    )


def _assert_works(pair: Pair, our_port: int, their_port: int) -> None:
    for _ in pair.each_role():
        wire = pair.site.assert_protected()
        assert wire.kinds["udp-esp"] == wire.protected
        told = pair.ours.tunnel()
        assert told.local_address.endswith(f":{our_port}")
        assert told.remote_address.endswith(f":{their_port}")
        pair.ours.rekey()
        pair.site.assert_protected()


@pytest.mark.native
@pytest.mark.vm
def test_a_restart_on_another_port_makes_the_tunnel_anew(site: Site) -> None:
    network = site.network
    theirs = site.strongswan(network.sun, network.tunnel().mirrored())
    ours = site.xfrmpy(
        network.moon, network.tunnel(), peer_port=4500, encapsulation="force", start="auto"
    )
    network.alice.await_answer(network.bob.inside_address())
    before = ours.spis()
    ours.crash()
    ours.start_again("--natt-port", str(OTHER))
    network.alice.await_answer(network.bob.inside_address())
    site.assert_protected()
    assert ours.spis() != before
    assert ours.tunnel().local_address.endswith(f":{OTHER}")
    assert theirs.list_sas().count("ESTABLISHED") == 1


@pytest.mark.native
def test_another_port_of_ours_passes_where_the_gateways_themselves_are_blocked(site: Site) -> None:
    network = site.network
    ends = {
        "local": [f"{network.moon.outside[4]}/32"],
        "remote": [f"{network.sun.outside[4]}/32"],
    }
    mirrored = {"local": ends["remote"], "remote": ends["local"]}
    tunnel = network.tunnel()
    theirs = site.xfrmpy(network.sun, tunnel.mirrored(), on_down="block", **mirrored)
    ours = site.xfrmpy(
        network.moon,
        tunnel,
        options=("--natt-port", str(OTHER)),
        peer_port=4500,
        on_down="block",
        **ends,
    )
    assert network.moon.ping(network.sun.outside[4]) == 3
    site.connect(ours, theirs)
    with site.capture() as wire:
        assert network.moon.ping(network.sun.outside[4]) == 0
    assert wire.kinds["clear"] == 0
    assert wire.kinds["udp-esp"] == wire.protected
