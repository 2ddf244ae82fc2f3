"""One tunnel is flooded by its host; the other's packets pass all the same."""

from __future__ import annotations

import json
import sys

import pytest

from integration.lab.network import Host, subnet
from integration.lab.process import Background, eventually
from integration.lab.site import Site

pytestmark = pytest.mark.native

FLOOD = """
import contextlib, socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    with contextlib.suppress(OSError):
        sender.sendto(bytes(1200), (sys.argv[1], 9))
"""

PINGS = 40


def dropped(host: Host, device: str) -> int:
    """Packets for which there was no room in the queue of a device."""
    (link,) = json.loads(host.run("ip", "-s", "-j", "link", "show", device))
    count: int = link["stats64"]["tx"]["dropped"]
    return count


def test_a_tunnel_is_answered_while_another_has_more_than_the_worker_can_take(site: Site) -> None:
    network = site.network
    tunnels = [network.tunnel(number) for number in range(2)]
    sun = site.xfrmpy(network.sun, *(tunnel.mirrored() for tunnel in tunnels))
    moon = site.xfrmpy(network.moon, *tunnels)
    for gateway, there in ((moon, 2), (sun, 1)):
        gateway.change(1, local=None, remote=None, interface={"routes": subnet(there, 1)})
        answer = gateway.command("apply")
        assert answer.code == 0, answer
    for number in range(2):
        site.connect(moon, sun, number)
    # It is about who sends: sun's socket, which is one for all, is spared.
    network.sun.drop(f"ip daddr {tunnels[1].theirs.address} udp dport 4500")
    alice, bob = network.alice, network.bob
    flood = Background(alice.command(sys.executable, "-c", FLOOD, bob.inside_address(1)), site.log)
    try:
        eventually("the flood to overflow", lambda: dropped(network.moon, "net1") > 0)
        before = dropped(network.moon, "net1")
        assert alice.ping(bob.inside_address(0), PINGS) == 0
        assert dropped(network.moon, "net1") > before
    finally:
        flood.stop()
        network.sun.run("nft", "delete table inet lab")
