"""Somebody's hands in what is in force: it is put right within a second, and an event tells it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.network import Host, subnet
from integration.lab.process import PATIENCE, eventually
from integration.lab.site import Site
from xfrmpy.daemon.restraint import FREELY
from xfrmpy.datapath.routes import OUR_TABLE
from xfrmpy.datapath.userspace.guard import TABLE
from xfrmpy.datapath.userspace.tun import DEVICE

pytestmark = [pytest.mark.native, pytest.mark.copied]

HEALED_SECONDS = 1.0

INTERVAL_SECONDS = 0.02
"""Between two pings of `Host.pinging`."""

BY_HAND = {
    "rule deleted": (("ip", "rule", "del", "table", str(OUR_TABLE)), "rule-missing"),
    "route deleted": (
        ("ip", "route", "del", subnet(2), "table", str(OUR_TABLE)),
        "route-missing",
    ),
    "route led elsewhere": (
        ("ip", "route", "change", subnet(2), "dev", "lo", "proto", "89", "table", str(OUR_TABLE)),
        "route-changed",
    ),
    "device down": (("ip", "link", "set", DEVICE, "down"), "device-changed"),
    "device removed": (("ip", "link", "del", DEVICE), "route-missing"),
    "table of nf_tables deleted": (
        ("nft", "delete", "table", "inet", TABLE.name),
        "guard-changed",
    ),
}


@pytest.fixture
def ours(site: Site) -> XfrmpyGateway:
    tunnel = site.network.tunnel()
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored())
    gateway = site.xfrmpy(site.network.moon, tunnel)
    site.connect(gateway, theirs)
    return gateway


def events(gateway: XfrmpyGateway, *names: str) -> list[dict[str, Any]]:
    answer = gateway.command("log", "-o", "json")
    assert answer.code == 0, answer
    found = [json.loads(line) for line in answer.output.splitlines()]
    return [event for event in found if event["event"] in names]


def findings(gateway: XfrmpyGateway) -> list[str]:
    return [event["details"]["finding"] for event in events(gateway, "drift-healed")]


def await_findings(gateway: XfrmpyGateway, count: int) -> None:
    what = f"{count} things to be put right"
    eventually(what, lambda: len(findings(gateway)) == count, seconds=20)


def drift(gateway: XfrmpyGateway) -> list[dict[str, str]]:
    answer = gateway.command("plan", "-o", "json")
    assert answer.code == 0, answer
    found: list[dict[str, str]] = json.loads(answer.output)["drift"]
    return found


@pytest.mark.parametrize("name", BY_HAND)
def test_what_somebody_does_by_hand_is_put_right_at_once_and_told(
    site: Site, ours: XfrmpyGateway, name: str
) -> None:
    command, finding = BY_HAND[name]
    spis = ours.tunnel().children[0].spi_in
    bob = site.network.bob.inside_address()
    with site.network.alice.pinging(bob, site.log) as counts:
        site.network.moon.run(*command)
        eventually("it to be put right", lambda: finding in findings(ours))
        time.sleep(0.5)
    sent, lost = counts
    assert lost * INTERVAL_SECONDS < HEALED_SECONDS * PATIENCE, f"{lost} of {sent}"
    assert drift(ours) == []
    assert ours.tunnel().children[0].spi_in == spis, "nothing was renegotiated"
    site.assert_protected()


def test_a_link_that_comes_back_needs_no_other_sa(site: Site, ours: XfrmpyGateway) -> None:
    moon, bob = site.network.moon, site.network.bob.inside_address()
    spis = ours.tunnel().children[0].spi_in
    moon.batch("link set wan down")
    eventually("it to be told", lambda: "path-changed" in left_findings(ours))
    moon.batch(
        "link set wan up",
        f"addr replace {moon.outside[6]}/64 dev wan nodad",
        "route replace default via 192.0.2.254",
        "route replace default via 2001:db8::fe",
    )
    eventually("it to be told", lambda: "path-changed" in findings(ours))
    site.network.alice.await_answer(bob)
    assert ours.tunnel().children[0].spi_in == spis
    assert events(ours, "tunnel-lost", "path-left") == []
    assert drift(ours) == []


def test_who_fights_us_is_put_off_and_an_apply_is_not(site: Site, ours: XfrmpyGateway) -> None:
    def delete_rule() -> None:
        site.network.moon.run("ip", "rule", "del", "table", str(OUR_TABLE))

    assert drift(ours) == []
    for count in range(FREELY):
        delete_rule()
        await_findings(ours, count + 1)
    delete_rule()
    (left,) = eventually("the next to be left", lambda: events(ours, "drift-left"))
    assert "it has to wait" in left["text"]
    assert [each["finding"] for each in drift(ours)] == ["rule-missing"]
    assert ours.command("plan", "--detailed-exitcode").code == 2
    assert "1 thing to put right" in ours.command("plan").output
    answer = ours.command("apply")
    assert answer.code == 0, answer
    assert "1 thing put right" in answer.output
    assert drift(ours) == []
    assert ours.command("plan", "--detailed-exitcode").code == 0
    site.assert_protected()


def test_what_was_put_off_is_done_by_itself_in_the_end(site: Site, ours: XfrmpyGateway) -> None:
    for count in range(FREELY + 1):
        await_findings(ours, count)
        site.network.moon.run("ip", "rule", "del", "table", str(OUR_TABLE))
    await_findings(ours, FREELY + 1)
    assert len(events(ours, "drift-left")) == 1
    site.assert_protected()


def test_an_apply_that_cannot_keep_its_promise_fails_and_takes_the_change_back(
    site: Site, ours: XfrmpyGateway
) -> None:
    """A device that bears another name is nothing that the daemon or its worker can mend."""
    moon = site.network.moon
    moon.batch(f"link set {DEVICE} down", f"link set {DEVICE} name other", "link set other up")
    eventually("it to be left", lambda: "device-missing" in left_findings(ours))
    file = ours.policies / "net0.yaml"
    before = file.read_text()
    file.write_text(before + "dpd: 17s\n")
    answer = ours.command("apply")
    assert answer.code == 1
    assert "XF3005" in answer.errors
    assert f"the device {DEVICE} is missing" in answer.errors
    assert "taken back" in answer.errors
    file.write_text(before)
    plan = json.loads(ours.command("plan", "-o", "json").output)
    assert plan["changes"] == []
    assert "device-missing" in [each["finding"] for each in plan["drift"]]
    moon.batch("link set other down", f"link set other name {DEVICE}")
    eventually("all to be well again", lambda: drift(ours) == [])
    site.assert_protected()


def left_findings(gateway: XfrmpyGateway) -> list[str]:
    return [event["details"]["finding"] for event in events(gateway, "drift-left")]


@dataclass(frozen=True, slots=True, kw_only=True)
class HostWithNames(Host):
    """One whose commands find names in a file of their own."""

    names: Path

    def command(self, *argv: str) -> tuple[str, ...]:
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return Host.command(self, "unshare", "-m", "sh", "-ec", script, str(self.names), *argv)

    def resolve_to(self, address: str) -> None:
        self.names.write_text(f"{address} {PEER}\n")


PEER = "gateway.sun.test"

OTHER = "192.0.2.21"
"""Sun has it, too."""


@pytest.fixture
def moon(site: Site) -> HostWithNames:
    names = site.directory / "names"
    host = site.network.moon
    kept = {field.name: getattr(host, field.name) for field in fields(host)}
    moon = HostWithNames(**kept, names=names)
    moon.resolve_to(site.network.sun.public[4])
    return moon


def connect(site: Site, moon: Host, **keys: Any) -> XfrmpyGateway:
    tunnel = site.network.tunnel()
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored(), local_address=None, peer=None)
    ours = site.xfrmpy(moon, tunnel, **{"peer": PEER, **keys})
    site.connect(ours, theirs)
    return ours


@pytest.mark.copied(False)  # Names of its own are in a mount namespace.
def test_a_peer_whose_name_moves_is_followed_before_the_old_ike_sa_goes(
    site: Site, moon: HostWithNames
) -> None:
    ours = connect(site, moon, options=("--resolve-every", "1"))
    bob = site.network.bob.inside_address()
    with site.network.alice.pinging(bob, site.log) as counts:
        moon.resolve_to(OTHER)
        eventually("the tunnel to follow", lambda: ours.tunnel().remote_address.startswith(OTHER))
        time.sleep(1)
    # The peer may send on the new SA before we have got the answer that makes it.
    assert counts[1] <= 1
    assert len(events(ours, "path-left")) == 1
    assert events(ours, "tunnel-lost") == []
    (changed,) = events(ours, "peer-addresses-changed")
    assert changed["details"] == {"before": site.network.sun.public[4], "after": OTHER}
    site.assert_protected()


@pytest.mark.copied(False)  # Names of its own are in a mount namespace.
def test_a_peer_that_is_dead_where_it_was_is_looked_up_before_it_is_given_up(
    site: Site, moon: HostWithNames
) -> None:
    ours = connect(site, moon, options=("--resolve-every", "3600"), dpd="2s")
    moon.resolve_to(OTHER)
    site.network.sun.drop(f"ip daddr {site.network.sun.public[4]}")
    eventually("the tunnel to follow", lambda: ours.tunnel().remote_address.startswith(OTHER))
    assert len(events(ours, "path-left")) == 1
    assert events(ours, "tunnel-lost") == []
    site.network.alice.await_answer(site.network.bob.inside_address())
    site.network.sun.run("nft", "delete", "table", "inet", "lab")


def test_a_tunnel_goes_over_to_another_address_of_ours_when_its_own_is_gone(site: Site) -> None:
    moon = site.network.moon
    ours = connect(site, moon, peer=site.network.sun.public[4], local_address=None)
    replace_address(moon, moon.outside[4], "192.0.2.77")
    eventually("the tunnel to move", lambda: ours.tunnel().local_address.startswith("192.0.2.77"))
    (left,) = events(ours, "path-left")
    assert "not our address any more" in left["text"]
    assert events(ours, "tunnel-lost") == []
    site.network.alice.await_answer(site.network.bob.inside_address())
    replace_address(moon, "192.0.2.77", moon.outside[4])
    eventually("it to come back", lambda: ours.tunnel().local_address.startswith(moon.outside[4]))


def replace_address(host: Host, old: str, new: str) -> None:
    host.batch(
        f"addr del {old}/24 dev wan",
        f"addr add {new}/24 dev wan",
        "route add default via 192.0.2.254",
    )
