"""Two tunnels between the same subnets, told apart by the marks of packets."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.marks import BOTH_ROLES
from integration.lab.network import Host, subnet
from integration.lab.process import eventually
from integration.lab.site import Pair, Peer, Role, Site
from integration.lab.tunnel import Tunnel

pytestmark = pytest.mark.vm

OCTETS = 60_000

MARKS = ("0x10/0xf0", "0x20/0xf0")
"""Of the first tunnel, and of the second."""

ESP_MARK = "0x20000/0xf0000"
"""Of what carries them; the lower half is of xfrmpy's own."""

_MARKING = """
table inet marking {
    chain prerouting {
        type filter hook prerouting priority mangle
        meta l4proto icmp iifname "lan" meta mark set 0x10
        meta l4proto tcp iifname "lan" meta mark set 0x20
    }
}
"""
"""What pings from a site's host bears one mark, what TCP says another."""

_COUNTING = """
table inet counting {
    counter wrong { }
    counter every { }
    counter esp_wrong { }
    counter esp_every { }
    chain decrypted {
        type filter hook forward priority filter
        meta ipsec exists meta l4proto icmp meta mark != 0x10 counter name "wrong"
        meta ipsec exists meta l4proto tcp meta mark != 0x30 counter name "wrong"
        meta ipsec exists counter name "every"
    }
    chain leaving {
        type filter hook output priority filter
        meta l4proto esp meta mark != 0x25846 counter name "esp_wrong"
        meta l4proto esp counter name "esp_every"
    }
}
"""
"""Packets by their marks: those that come out of tunnels, and ESP on its way out."""

_ARRIVING = """
table inet arriving {
    chain prerouting {
        type filter hook prerouting priority mangle
        ip protocol esp ip daddr FIRST meta mark set 0x10
        ip protocol esp ip daddr SECOND meta mark set 0x20
    }
}
"""


def add_rules(site: Site, host: Host, rules: str) -> None:
    file = site.directory / f"{host.name}.nft"
    file.write_text(rules)
    host.run("nft", "-f", str(file))


def carried(gateway: XfrmpyGateway, number: int) -> int:
    (child,) = gateway.tunnel(number).children
    return child.packets_out


def counted(host: Host, name: str) -> int:
    listed = host.run("nft", "list", "counter", "inet", "counting", name)
    found = re.search(r"packets (\d+)", listed)
    assert found is not None
    return int(found[1])


def _xfrmpy(site: Site, tunnels: Sequence[Tunnel]) -> Peer:
    gateway = site.xfrmpy(site.network.sun, *tunnels)
    for number, value in enumerate(MARKS):
        gateway.change(number, mark=value)
    assert gateway.command("apply").code == 0
    return gateway


def _strongswan(site: Site, tunnels: Sequence[Tunnel]) -> Peer:
    lines = [f"mark_in = {m}\n mark_out = {m}\n set_mark_in = {m}" for m in MARKS]
    return site.strongswan(site.network.sun, *tunnels, child=lines)


def _libreswan(site: Site, tunnels: Sequence[Tunnel]) -> Peer:
    """It has no mark that an SA sets: what comes out keeps that of the ESP packet."""
    first, second = (tunnel.ours.address for tunnel in tunnels)
    rules = _ARRIVING.replace("FIRST", first).replace("SECOND", second)
    add_rules(site, site.network.sun, rules)
    return site.libreswan(site.network.sun, *tunnels, marks=MARKS, connection=["pfs=no"])


@pytest.mark.parametrize(
    "make_peer",
    [_xfrmpy, _strongswan, _libreswan],
    ids=["xfrmpy", "strongswan", "libreswan"],
)
@BOTH_ROLES
def test_equal_subnets_are_told_apart_by_marks(
    site: Site, role: Role, make_peer: Callable[[Site, Sequence[Tunnel]], Peer]
) -> None:
    network = site.network
    same = ((subnet(1),), (subnet(2),))
    tunnels = [network.tunnel(), network.tunnel(1).between(*same)]
    add_rules(site, network.moon, _MARKING + _COUNTING)
    add_rules(site, network.sun, _MARKING)
    theirs = [tunnel.mirrored() for tunnel in tunnels]
    sun = make_peer(site, theirs)
    pair = Pair(site, site.xfrmpy(network.moon, *tunnels), sun)
    moon = pair.ours
    refused = moon.command("check")
    assert "XF1007" in refused.output + refused.errors, "without marks nothing tells them apart"
    moon.change(0, mark=MARKS[0], mark_set=ESP_MARK)
    moon.change(1, mark_out=MARKS[1], mark_in="0x30/0xf0", mark_set=ESP_MARK)
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
    assert counted(network.moon, "esp_every") > 10
    moon.rekey(1)
    site.transfer(OCTETS)
    pair.disconnect(role, 1)
    eventually("the first to be up still", lambda: moon.is_up(0))
    site.assert_protected()
    assert counted(network.moon, "wrong") == 0
    assert counted(network.moon, "esp_wrong") == 0


def test_rules_of_routing_lead_a_tunnels_own_packets_by_their_mark(site: Site) -> None:
    network = site.network
    tunnel = network.tunnel()
    add_rules(site, network.moon, _COUNTING)
    network.moon.run("ip", "route", "add", "blackhole", "default", "table", "7")
    ours = site.xfrmpy(network.moon, tunnel, mark_set=ESP_MARK)
    pair = Pair(site, ours, site.xfrmpy(network.sun, tunnel.mirrored()))
    pair.connect(Role.INITIATOR)
    site.assert_protected()
    assert counted(network.moon, "esp_every") > 5
    assert counted(network.moon, "esp_wrong") == 0
    network.moon.run("ip", "rule", "add", "fwmark", ESP_MARK, "table", "7")
    site.assert_blocked()
    ours.rekey()
    site.assert_blocked()
    network.moon.run("ip", "rule", "del", "table", "7")
    site.assert_protected()
    assert counted(network.moon, "esp_wrong") == 0
