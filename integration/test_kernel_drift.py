"""Somebody's hands in the kernel's SAD and SPD: put right within a second, and told."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.network import subnet
from integration.lab.process import PATIENCE, eventually
from integration.lab.site import Site
from xfrmpy.control.calls import PlanCall
from xfrmpy.control.client import Client
from xfrmpy.control.plans import DriftReply
from xfrmpy.ipsec.sad import OUR_REQIDS

pytestmark = pytest.mark.vm

INTERVAL_SECONDS = 0.02
"""Between two pings of `Host.pinging`."""

OUT = ("dir", "out", "src", subnet(1), "dst", subnet(2))
STRAY = ("src", "192.0.2.99", "dst", "192.0.2.1", "proto", "esp", "spi", "0x4242")
AEAD = ("mode", "tunnel", "aead", "rfc4106(gcm(aes))", "0x" + "00" * 20, "128")


@pytest.fixture
def gateways(site: Site) -> tuple[XfrmpyGateway, XfrmpyGateway]:
    tunnel = site.network.tunnel()
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel)
    site.connect(ours, theirs)
    return ours, theirs


def drift(gateway: XfrmpyGateway) -> list[DriftReply]:
    return Client(gateway.runtime).plan(PlanCall(files=None, prune=False)).drift


def states(gateway: XfrmpyGateway) -> list[tuple[str, ...]]:
    """Destination and SPI of each SA that is ours, the newest last."""
    listed = gateway.host.run("ip", "xfrm", "state")
    found = re.findall(r"src \S+ dst (\S+)\n\s+proto esp spi (\S+) reqid (\d+)", listed)
    return [(dst, spi) for dst, spi, reqid in found if int(reqid) in OUR_REQIDS]


def policies(gateway: XfrmpyGateway) -> str:
    return gateway.host.run("ip", "xfrm", "policy")


def test_whatever_is_done_to_sad_and_spd_is_put_right(
    site: Site, gateways: tuple[XfrmpyGateway, XfrmpyGateway]
) -> None:
    """One test for all of it, for a start takes long in the emulated machine."""
    ours, _ = gateways
    moon = ours.host
    assert drift(ours) == []
    before = policies(ours)

    def healed(finding: str, verdict: str, do: Callable[[], object]) -> None:
        """Few pings are lost from the deed to its healing, and what is told is told once."""
        words = re.compile(f"{finding}.*: {verdict}")
        known = len(words.findall(ours.log))
        with site.network.alice.pinging(site.network.bob.inside_address(), site.log) as counts:
            do()
            eventually(f"{finding}: {verdict}", lambda: len(words.findall(ours.log)) > known)
            eventually("nothing to be left", lambda: drift(ours) == [])
            eventually("the tunnel to be up", ours.is_up)
        assert counts[1] * INTERVAL_SECONDS < PATIENCE, f"{counts[1]} of {counts[0]} pings"
        site.network.alice.await_answer(site.network.bob.inside_address())

    for destination in (moon.outside[4], site.network.sun.outside[4]):
        spi = next(s for d, s in reversed(states(ours)) if d == destination)
        gone = ("dst", destination, "proto", "esp", "spi", spi)
        healed(
            "SA ESP .* is missing",
            "its Child SA is rekeyed",
            lambda gone=gone: moon.run("ip", "xfrm", "state", "delete", *gone),  # type: ignore[misc]
        )
        assert spi not in [s for _, s in states(ours)]

    healed(
        "out policy .* is missing",
        "put back",
        lambda: moon.run("ip", "xfrm", "policy", "delete", *OUT),
    )
    healed("policy .* is missing", "put back", lambda: moon.run("ip", "xfrm", "policy", "flush"))
    healed(
        "SA ESP 0x00004242 .* is not of our making",
        "removed",
        lambda: moon.run("ip", "xfrm", "state", "add", *STRAY, "reqid", str(OUR_REQIDS[9]), *AEAD),
    )
    assert "0x00004242" not in moon.run("ip", "xfrm", "state")
    healed(
        "SA ESP .* is missing",
        "its Child SA is rekeyed",
        lambda: moon.run("ip", "xfrm", "state", "flush"),
    )
    assert sorted(policies(ours).splitlines()) == sorted(before.splitlines())
    site.assert_protected()


def test_what_is_not_ours_is_left_alone_and_what_overrules_us_is_told(
    site: Site, gateways: tuple[XfrmpyGateway, XfrmpyGateway]
) -> None:
    ours, _ = gateways
    moon = ours.host
    theirs = ("dir", "out", "src", subnet(1), "dst", "10.2.0.128/25")
    moon.run("ip", "xfrm", "state", "add", *STRAY, "reqid", "7", *AEAD)
    moon.run("ip", "xfrm", "policy", "add", *theirs, "priority", "5")
    eventually("it to be told", lambda: "is overruled by another program's" in ours.log)
    (shadow,) = drift(ours)
    assert (shadow.finding, shadow.remedy) == ("policy-shadowed", "")
    assert "0x00004242" in moon.run("ip", "xfrm", "state")
    assert "priority 5" in policies(ours)
    moon.run("ip", "xfrm", "policy", "delete", *theirs)
    moon.run("ip", "xfrm", "state", "delete", *STRAY)
    eventually("nothing to be amiss", lambda: drift(ours) == [])
    site.assert_protected()
