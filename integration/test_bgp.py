"""Two routing daemons speak BGP across a route-based tunnel, and traffic follows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from integration.lab.bird import Bird
from integration.lab.gateway import XfrmpyGateway
from integration.lab.network import Host
from integration.lab.process import eventually
from integration.lab.site import Site
from integration.test_interfaces import LINK

pytestmark = [pytest.mark.native, pytest.mark.vm]

BGP_PACKETS = 20
"""What the routing daemons say to each other while hosts ping, at most."""

NEW_NETWORK, NEW_HOST = "10.66.0.0/24", "10.66.0.1"


@contextmanager
def routed_site(site: Site) -> Iterator[tuple[XfrmpyGateway, Bird]]:
    """The tunnel has nothing but its address; moon's daemon and its BIRD."""
    network, tunnel = site.network, site.network.tunnel()
    keys: list[dict[str, Any]] = [
        {"local": None, "remote": None, "interface": f"{address}/30"} for address in LINK.values()
    ]
    theirs = site.xfrmpy(network.sun, tunnel.mirrored(), **keys[1])
    ours = site.xfrmpy(network.moon, tunnel, **keys[0])
    site.connect(ours, theirs)
    with ExitStack() as stack:
        birds = [
            Bird(host, site.directory / f"bird{host.site}", LINK[host.site], LINK[3 - host.site])
            for host in (network.moon, network.sun)
        ]
        for bird in birds:
            stack.callback(bird.stop)
        eventually("BGP to be established", birds[0].is_established, seconds=60)
        yield ours, birds[0]


def learned(host: Host) -> str:
    return host.run("ip", "route", "show", "proto", "bird")


def test_what_bgp_learns_across_a_tunnel_is_carried_by_it(site: Site) -> None:
    moon, sun = site.network.moon, site.network.sun
    with routed_site(site):
        eventually("a route", lambda: f"10.2.0.0/16 via {LINK[2]} dev net0" in learned(moon))
        eventually("the way back", lambda: f"10.1.0.0/16 via {LINK[1]} dev net0" in learned(sun))
        site.assert_protected(others=BGP_PACKETS)
        # What comes later needs no word to IPsec.
        assert site.network.alice.ping(NEW_HOST, 1) == 1
        sun.run("ip", "address", "add", f"{NEW_HOST}/24", "dev", "lan")
        eventually("another route", lambda: NEW_NETWORK in learned(moon))
        assert site.network.alice.ping(NEW_HOST) == 0
        sun.run("ip", "address", "del", f"{NEW_HOST}/24", "dev", "lan")
        eventually("it to be withdrawn", lambda: NEW_NETWORK not in learned(moon))


def test_routes_go_with_the_tunnel_and_come_back_with_it(site: Site) -> None:
    moon = site.network.moon
    with routed_site(site) as (ours, bird):
        eventually("a route", lambda: "10.2.0.0/16" in learned(moon))
        ours.rekey()
        ours.crash()
        ours.start_again()
        assert bird.is_established()
        site.assert_protected(others=BGP_PACKETS)
        ours.terminate()
        eventually("BGP to notice", lambda: "10.2.0.0/16" not in learned(moon), seconds=60)
        ours.initiate()
        eventually("the route again", lambda: "10.2.0.0/16" in learned(moon), seconds=60)
        site.assert_protected(others=BGP_PACKETS)
