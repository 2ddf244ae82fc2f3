"""Two tunnels between the same subnets, told apart by the marks of packets."""

from __future__ import annotations

import re

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.marks import BOTH_ROLES
from integration.lab.network import Host, subnet
from integration.lab.process import eventually
from integration.lab.site import Pair, Role, Site

pytestmark = pytest.mark.vm

OCTETS = 20_000

_MARKING = """
table inet marking {
    counter wrong { }
    counter every { }
    chain prerouting {
        type filter hook prerouting priority mangle
        meta l4proto icmp iifname "lan" meta mark set 0x10
        meta l4proto tcp iifname "lan" meta mark set 0x20
    }
    chain decrypted {
        type filter hook forward priority filter
        meta ipsec exists meta l4proto icmp meta mark != 0x10 counter name "wrong"
        meta ipsec exists meta l4proto tcp meta mark != 0x20 counter name "wrong"
        meta ipsec exists counter name "every"
    }
}
"""


def mark(site: Site, *hosts: Host) -> None:
    """What pings from the site's hosts bears one mark, what TCP says another."""
    rules = site.directory / "marking.nft"
    rules.write_text(_MARKING)
    for host in hosts:
        host.run("nft", "-f", str(rules))


def mark_tunnels(gateway: XfrmpyGateway) -> None:
    """The first is of mark 0x10, the second of 0x20; and both of the same subnets."""
    for number, value in enumerate(("0x10/0xf0", "0x20/0xf0")):
        gateway.change(number, mark=value)


def carried(gateway: XfrmpyGateway, number: int) -> int:
    (child,) = gateway.tunnel(number).children
    return child.packets_out


def counted(host: Host, name: str) -> int:
    """Packets that came out of tunnels, by their marks."""
    found = re.search(r"packets (\d+)", host.run("nft", "list", "counter", "inet", "marking", name))
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("peer", ["xfrmpy", "strongswan"])
@BOTH_ROLES
def test_equal_subnets_are_told_apart_by_marks(site: Site, role: Role, peer: str) -> None:
    network = site.network
    same = ((subnet(1),), (subnet(2),))
    tunnels = [network.tunnel(), network.tunnel(1).between(*same)]
    mark(site, network.moon, network.sun)
    theirs = [tunnel.mirrored() for tunnel in tunnels]
    if peer == "xfrmpy":
        sun = site.xfrmpy(network.sun, *theirs)
        mark_tunnels(sun)
        assert sun.command("apply").code == 0
        pair = Pair(site, site.xfrmpy(network.moon, *tunnels), sun)
    else:
        lines = [
            f"mark_in = {value}\n mark_out = {value}\n set_mark_in = {value}"
            for value in ("0x10/0xf0", "0x20/0xf0")
        ]
        pair = Pair(
            site,
            site.xfrmpy(network.moon, *tunnels),
            site.strongswan(network.sun, *theirs, child=lines),
        )
    moon = pair.ours
    refused = moon.command("check")
    assert "XF1007" in refused.output + refused.errors, "without marks nothing tells them apart"
    mark_tunnels(moon)
    answer = moon.command("apply")
    assert answer.code == 0, answer
    for number in (0, 1):
        pair.connect(role, number)
    site.assert_protected()
    assert carried(moon, 0) == 6
    assert carried(moon, 1) == 0
    site.transfer(OCTETS)
    assert carried(moon, 0) == 6
    assert carried(moon, 1) > 10
    assert counted(network.moon, "every") > 10
    assert counted(network.moon, "wrong") == 0
    moon.rekey(1)
    site.transfer(OCTETS)
    pair.disconnect(role, 1)
    eventually("the first to be up still", lambda: moon.is_up(0))
    site.assert_protected()


_ESP_LEAVES = """
table inet marking {
    counter wrong { }
    counter every { }
    chain leaving {
        type filter hook output priority filter
        meta l4proto esp meta mark != 0x25846 counter name "wrong"
        meta l4proto esp counter name "every"
    }
}
"""


def test_rules_of_routing_lead_a_tunnels_own_packets_by_their_mark(site: Site) -> None:
    network = site.network
    tunnel = network.tunnel()
    counting = site.directory / "leaving.nft"
    counting.write_text(_ESP_LEAVES)
    network.moon.run("nft", "-f", str(counting))
    network.moon.run("ip", "route", "add", "blackhole", "default", "table", "7")
    ours = site.xfrmpy(network.moon, tunnel, mark_set="0x20000/0xf0000")
    pair = Pair(site, ours, site.xfrmpy(network.sun, tunnel.mirrored()))
    pair.connect(Role.INITIATOR)
    site.assert_protected()
    assert counted(network.moon, "every") > 5
    assert counted(network.moon, "wrong") == 0
    network.moon.run("ip", "rule", "add", "fwmark", "0x20000/0xf0000", "table", "7")
    site.assert_blocked()
    ours.rekey()
    site.assert_blocked()
    network.moon.run("ip", "rule", "del", "table", "7")
    site.assert_protected()
    assert counted(network.moon, "wrong") == 0
