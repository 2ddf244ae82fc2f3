"""A tunnel for one type of ICMP with strongSwan (RFC 4301 section 4.4.1.1, RFC 7296 3.13.1)."""

from __future__ import annotations

import pytest

from integration.lab.network import subnet
from integration.lab.site import Pair, Site

pytestmark = pytest.mark.native

ECHO_REQUEST = "icmp/8.0"


def test_a_type_of_icmp_is_agreed_upon_in_both_roles_and_carried(site: Site) -> None:
    """strongSwan means code 0 where it is given none. The answers are of another type."""
    network = site.network
    named = network.tunnel().between(
        (f"{subnet(1)}[{ECHO_REQUEST}]",), (f"{subnet(2)}[{ECHO_REQUEST}]",)
    )
    theirs = network.tunnel().between((f"{subnet(1)}[icmp/8]",), (f"{subnet(2)}[icmp/8]",))
    peer = site.strongswan(network.sun, theirs.mirrored())
    pair = Pair(site, site.xfrmpy(network.moon, named), peer)
    for _ in pair.each_role():
        (child,) = pair.ours.tunnel().children
        assert child.local == [f"{subnet(1)}[{ECHO_REQUEST}]"]
        assert child.remote == [f"{subnet(2)}[{ECHO_REQUEST}]"]
        assert f"TS {subnet(2)}[icmp/8] === {subnet(1)}[icmp/8]" in peer.log
        with site.capture() as wire:
            network.alice.ping(network.bob.inside_address())
        assert wire.protected == 3
