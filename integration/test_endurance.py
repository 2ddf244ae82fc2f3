"""Streams both ways over a wire that loses, repeats and reorders: every octet arrives, intact."""

from __future__ import annotations

import json
from typing import Any

import pytest

from integration.lab.bad_wire import LOST, Wear, bad_wire
from integration.lab.gateway import XfrmpyGateway
from integration.lab.network import Host
from integration.lab.site import Peer, Site
from integration.lab.transfer import transfer_both_ways
from xfrmpy.datapath.userspace.tun import DEVICE

pytestmark = pytest.mark.native

OCTETS = 100_000_000
"""Each way. `python -m benchmarks.endurance` does the same for as long as one likes."""

TO_BE_EXPECTED = {"esp-replayed", "esp-udp-overflow", "esp-no-policy"}
"""What the wire repeated; what was too much for a busy machine; IPv6's own words at the start."""


CBC = {"ike": "aes256-sha256-x25519", "esp": "aes256-sha256-noesn"}


@pytest.mark.parametrize(
    ("peer", "suites", "octets"),
    [("xfrmpy", {}, OCTETS), ("strongswan", {}, OCTETS), ("strongswan", CBC, OCTETS // 5)],
    ids=["xfrmpy", "strongswan", "strongswan-cbc"],
)
def test_streams_arrive_intact_over_a_wire_that_hurts(
    site: Site, peer: str, suites: dict[str, Any], octets: int
) -> None:
    tunnel = site.network.tunnel(**suites)
    start = site.xfrmpy if peer == "xfrmpy" else site.strongswan
    theirs: Peer = start(site.network.sun, tunnel.mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel)
    site.connect(ours, theirs)
    before = ours.spis()
    with bad_wire(site.network, site.log) as wear:
        transfer_both_ways(site.network, octets, site.directory)
    assert_hurt(wear)
    assert ours.spis() == before
    assert_unharmed(ours)
    assert_joined(site.network.moon, ours)


def assert_hurt(wear: Wear) -> None:
    print(wear)
    for count in (wear.lost, wear.repeated, wear.reordered):
        assert count > 0.8 * LOST * wear.frames


def assert_unharmed(gateway: XfrmpyGateway) -> None:
    drops = gateway.status().drops
    (child,) = gateway.tunnel().children
    print(drops)
    assert child.integrity_failed == 0
    assert child.replayed == drops["esp-replayed"] > 0
    assert {reason for reason in drops if reason.startswith("esp-")} <= TO_BE_EXPECTED


def assert_joined(host: Host, gateway: XfrmpyGateway) -> None:
    """Both fast ways were gone: fewer packets passed the device than the wire, by far where the
    machine is idle, for what is lost is sent again in small pieces on a busy one."""
    (link,) = json.loads(host.run("ip", "-s", "-j", "link", "show", DEVICE))
    (child,) = gateway.tunnel().children
    assert link["stats64"]["rx"]["packets"] < 0.8 * child.packets_in
    assert link["stats64"]["tx"]["packets"] < 0.8 * child.packets_out
