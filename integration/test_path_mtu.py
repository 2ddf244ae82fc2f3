"""A router on the way takes less than the links at the ends: RFC 4301 section 8.2, RFC 1191."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from ipaddress import ip_address
from struct import Struct

import pytest

from integration.contract.entries import ESP
from integration.contract.sites import inside
from integration.lab.gateway import XfrmpyGateway
from integration.lab.network import Network
from integration.lab.process import eventually
from integration.lab.site import Site
from integration.lab.transfer import transfer
from integration.userspace.place import largest_inner, our_routes
from xfrmpy.esp.checksum import checksum_of
from xfrmpy.ipsec.addresses import IKE_NATT_PORT

pytestmark = [pytest.mark.native, pytest.mark.copied]

SUITE = "aes128gcm16"
NARROW = 1360
WITH_DF = {"proposals": f"{SUITE}-noesn", "dont_fragment": "copy"}
_HEADER = Struct(">BBHHHBBH4s4s")


def connected(site: Site, outer: int = 4) -> XfrmpyGateway:
    """A tunnel whose outer packets are not to be cut on their way."""
    network = site.network
    tunnel = replace(network.tunnel(outside=outer), esp=f"{SUITE}-noesn")
    moon = site.xfrmpy(network.moon, tunnel, esp=WITH_DF)
    sun = site.xfrmpy(network.sun, tunnel.mirrored(), esp=WITH_DF)
    site.connect(moon, sun)
    return moon


def carried(network: Network) -> int:
    """The MTU of moon's route into the tunnel."""
    found = re.search(r"mtu (\d+)", our_routes(network.moon.namespace))
    assert found, "there is a route, with an MTU"
    return int(found[1])


def fitting(outer_mtu: int, outer: int = 4) -> int:
    return largest_inner(ESP[SUITE], outer, outer_mtu)


def forget_soon(network: Network, seconds: int) -> None:
    """How long moon's kernel believes what it was told of a path."""
    for file in ("ipv4/route/mtu_expires", "ipv6/route/mtu_expires"):
        network.moon.run("sh", "-c", f"echo {seconds} >/proc/sys/net/{file}")


@pytest.mark.parametrize("outer", [4, 6])
def test_a_stream_goes_on_where_a_router_takes_less_and_hosts_are_told(
    site: Site, outer: int
) -> None:
    connected(site, outer)
    network = site.network
    assert carried(network) == fitting(1500, outer)
    with network.routed(NARROW):
        # In IPv6 the kernel cuts what was on its way to us before the host was told.
        transfer(network.alice, network.bob, network.bob.inside_address(), 3_000_000, site.log)
        assert carried(network) == fitting(NARROW, outer)
        size = str(fitting(NARROW, outer) + 1 - 28)
        bob = network.bob.inside_address()
        network.alice.run("ip", "route", "flush", "cache")
        ping = ("ping", "-n", "-c", "2", "-i", "0.2", "-W", "5", "-M", "do", "-s", size, bob)
        said = network.alice.run(*ping, check=False)
    assert re.search(rf"mtu ?= ?{fitting(NARROW, outer)}", said)


def test_after_a_while_the_path_is_tried_again(site: Site) -> None:
    connected(site)
    network = site.network
    forget_soon(network, 3)
    with network.routed(NARROW) as take:
        site.transfer(1_000_000)
        assert carried(network) == fitting(NARROW)
        take(1500)
        eventually("the whole path to be used again", lambda: carried(network) == fitting(1500))
        site.transfer(1_000_000)


def test_what_is_forged_makes_no_path_narrower_than_the_least(site: Site) -> None:
    """RFC 791 section 3.2: "Every internet destination must be able to receive a datagram of 576
    octets"."""
    spi = out_spi(connected(site))
    network = site.network
    before = carried(network)
    complain(network, spi ^ 1, 68)
    complain(network, spi, 68)
    eventually("the path to be narrower", lambda: carried(network) < before)
    assert carried(network) == fitting(576)
    # Hosts do not believe in so little either, and let their packets be cut.
    transfer(network.alice, network.bob, network.bob.inside_address(), 100_000, site.log)


def test_a_path_of_jumbo_frames_is_used_in_full(site: Site) -> None:
    network = site.network
    wires = ((network.internet, "moon"), (network.internet, "sun"), (network.internet, "br0"))
    for host, device in (*wires, (network.moon, "wan"), (network.sun, "wan")):
        host.batch(f"link set {device} mtu 9000")
    for host, device in (
        *((network.alice, "eth0"), (network.bob, "eth0")),
        *((network.moon, "lan"), (network.sun, "lan")),
    ):
        host.batch(f"link set {device} mtu 9000")
    connected(site)
    assert carried(network) == fitting(9000)
    bob, largest = network.bob.inside_address(), fitting(9000) - 28
    ping = ("ping", "-n", "-c", "1", "-W", "5", "-M", "do", "-s", str(largest), bob)
    with site.capture() as wire:
        assert " 0% packet loss" in network.alice.run(*ping)
    assert wire.protected == 2
    site.transfer(20_000_000)


def out_spi(moon: XfrmpyGateway) -> int:
    found = re.search(r"out 0x([0-9a-f]{8})", moon.log)
    assert found, "the log names it"
    return int(found[1], 16)


def complain(network: Network, spi: int, mtu: int) -> None:
    """That a packet of moon's was too large; anybody can."""
    ends = (ip_address(h.outside[4]).packed for h in (network.moon, network.sun))
    header = _HEADER.pack(0x45, 0, 1400, 0, 0x4000, 60, 17, 0, *ends)
    udp = IKE_NATT_PORT.to_bytes(2, "big") * 2 + (1380).to_bytes(2, "big") + bytes(2)
    quote = header + udp + spi.to_bytes(4, "big") + bytes(4)
    message = b"\3\4\0\0" + bytes(2) + mtu.to_bytes(2, "big") + quote
    checksum = checksum_of(message).to_bytes(2, "big")
    with inside(network.internet.namespace):
        sender = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with sender:
        sender.sendto(message[:2] + checksum + message[4:], (network.moon.outside[4], 0))
