"""The laboratory itself: foreign daemons with each other, so that a failure elsewhere is ours."""

from __future__ import annotations

import pytest

from integration.lab.process import IN_VM
from integration.lab.site import Site

FAMILIES = [(4, 4), (6, 6), (4, 6), (6, 4)]

ENCAPSULATED = not IN_VM
"""Without ESP in the kernel strongSwan moves packets in user space, always inside UDP."""


@pytest.mark.native
@pytest.mark.vm
def test_strongswan_reaches_strongswan(site: Site) -> None:
    tunnels = [site.network.tunnel(number, *family) for number, family in enumerate(FAMILIES)]
    moon = site.strongswan(site.network.moon, *tunnels)
    sun = site.strongswan(site.network.sun, *(tunnel.mirrored() for tunnel in tunnels))
    for number, (_, inside) in enumerate(FAMILIES):
        site.connect(moon, sun, number)
        wire = site.assert_protected(number, inside)
        assert wire.kinds["udp-esp" if ENCAPSULATED else "esp"] == wire.protected
    site.transfer(1_000_000)


@pytest.mark.native
@pytest.mark.nat
@pytest.mark.parametrize("initiator", ["moon", "sun"])
def test_strongswan_reaches_strongswan_through_a_nat(site: Site, initiator: str) -> None:
    tunnel = site.network.tunnel()
    moon = site.strongswan(site.network.moon, tunnel)
    sun = site.strongswan(site.network.sun, tunnel.mirrored())
    site.connect(*((moon, sun) if initiator == "moon" else (sun, moon)))
    wire = site.assert_protected()
    assert wire.kinds["udp-esp"] == wire.protected


@pytest.mark.vm
def test_libreswan_reaches_strongswan_in_both_roles(site: Site) -> None:
    terms = {"ike": "aes256-sha384-prfsha384-ecp256", "esp": "aes128-sha256-esn"}
    tunnels = [
        site.network.tunnel(number, outside, inside, **terms)
        for number, (outside, inside) in enumerate(FAMILIES)
    ]
    moon = site.strongswan(site.network.moon, *tunnels)
    sun = site.libreswan(site.network.sun, *(tunnel.mirrored() for tunnel in tunnels))
    for number, (_, inside) in enumerate(FAMILIES):
        for initiator, responder in ((moon, sun), (sun, moon)):
            site.connect(initiator, responder, number)
            wire = site.assert_protected(number, inside)
            assert wire.kinds["esp"] == wire.protected
            initiator.terminate(number)


@pytest.mark.native
@pytest.mark.vm
def test_the_wire_without_a_tunnel_is_seen_to_be_clear(site: Site) -> None:
    """Else `clear == 0` would prove nothing."""
    alice, bob = site.network.alice, site.network.bob
    with site.capture() as wire:
        assert alice.ping(bob.inside_address(), 1) == 1
        assert alice.ping(bob.inside_address(family=6), 1) == 1
    assert wire.kinds["clear"] >= 2
    assert wire.protected == 0
