"""Route-based tunnels on the datapath that is under test here: interfaces, and routes into them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.network import Host, subnet
from integration.lab.process import IN_VM, eventually, run
from integration.lab.site import Site

pytestmark = [pytest.mark.native, pytest.mark.vm, pytest.mark.copied]

LINK = {1: "169.254.10.1", 2: "169.254.10.2"}
"""The addresses of the two ends of the first tunnel's interfaces."""


def keys(site: int, **interface: Any) -> dict[str, Any]:
    """What makes a tunnel of the laboratory route-based, as moon (1) or sun (2) has it."""
    settings = {"address": f"{LINK[site]}/30", "routes": subnet(3 - site), **interface}
    given = {key: value for key, value in settings.items() if value is not None}
    return {"local": None, "remote": None, "interface": given}


def pair(site: Site, **interface: Any) -> tuple[XfrmpyGateway, XfrmpyGateway]:
    """Sun and moon with a route-based tunnel that is up; `interface` is moon's."""
    tunnel = site.network.tunnel()
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored(), **keys(2))
    ours = site.xfrmpy(site.network.moon, tunnel, **keys(1, **interface))
    site.connect(ours, theirs)
    return ours, theirs


def link(host: Host, name: str = "net0") -> dict[str, Any]:
    """What `ip` says of a device; nothing if there is none."""
    said = host.run("ip", "-json", "-details", "addr", "show", "dev", name, check=False)
    found: list[dict[str, Any]] = json.loads(said or "[]")
    return next((each for each in found if each), {})


def has_address(host: Host, address: str, name: str = "net0") -> bool:
    return any(each["local"] == address for each in link(host, name).get("addr_info", []))


def findings(gateway: XfrmpyGateway) -> list[str]:
    answer = gateway.command("log", "-o", "json")
    events = [json.loads(line) for line in answer.output.splitlines()]
    return [e["details"]["finding"] for e in events if e["event"] == "drift-healed"]


def test_routes_lead_into_the_interface_of_a_tunnel(site: Site) -> None:
    ours, _ = pair(site)
    moon = site.network.moon
    status = ours.tunnel().interface
    assert status is not None
    assert (status.name, status.state, status.adopted) == ("net0", "up", False)
    assert link(moon)["linkinfo"]["info_kind"] == ("xfrm" if IN_VM else "tun")
    assert has_address(moon, LINK[1])
    # The path's 1500 octets, less what ESP adds.
    assert link(moon)["mtu"] == status.mtu
    assert 1400 < status.mtu < 1460
    assert f"{subnet(2)} dev net0" in moon.run("ip", "route")
    assert "table 22598" not in moon.run("ip", "route", "show", "table", "all")
    site.assert_protected()
    assert moon.ping(LINK[2]) == 0
    shown = ours.command("status", "net0").output
    assert "net0 up" in shown
    assert LINK[1] in shown


def test_an_interface_is_there_before_and_after_the_tunnel_is_up(site: Site) -> None:
    ours, _ = pair(site)
    ours.terminate()
    assert has_address(site.network.moon, LINK[1])
    # What is led into it is lost there, and not sent in clear.
    site.assert_blocked()
    ours.initiate()
    site.assert_protected()


def test_what_others_do_to_an_interface_is_put_right(site: Site) -> None:
    ours, _ = pair(site)
    moon = site.network.moon
    for command, is_right in (
        (
            ("ip", "address", "del", f"{LINK[1]}/30", "dev", "net0"),
            lambda: has_address(moon, LINK[1]),
        ),
        (("ip", "link", "set", "net0", "down"), lambda: "UP" in link(moon)["flags"]),
        (("ip", "link", "set", "net0", "mtu", "1300"), lambda: link(moon)["mtu"] > 1400),
        (("ip", "route", "del", subnet(2)), lambda: subnet(2) in moon.run("ip", "route")),
        (("ip", "link", "del", "net0"), lambda: has_address(moon, LINK[1])),
    ):
        told = len(findings(ours))
        moon.run(*command)
        eventually(f"{' '.join(command)} to be healed", is_right)
        _await_another(ours, told)
        eventually("nothing to be amiss", lambda: not drift(ours))
        site.assert_protected()
    assert {*findings(ours)} <= {"interface-missing", "interface-changed"}


def _await_another(gateway: XfrmpyGateway, told: int) -> None:
    eventually("it to be told", lambda: len(findings(gateway)) > told)


def drift(gateway: XfrmpyGateway) -> list[dict[str, str]]:
    answer = gateway.command("plan", "-o", "json")
    assert answer.code == 0, answer
    found: list[dict[str, str]] = json.loads(answer.output)["drift"]
    return found


def test_an_interface_outlives_a_killed_daemon(site: Site) -> None:
    ours, _ = pair(site)
    moon = site.network.moon
    moon.run("ip", "route", "add", "203.0.113.0/24", "dev", "net0")
    before = link(moon)["ifindex"]
    ours.crash()
    site.assert_protected()
    ours.start_again()
    assert link(moon)["ifindex"] == before
    assert "203.0.113.0/24 dev net0" in moon.run("ip", "route")
    site.assert_protected()
    assert not drift(ours)
    ours.be_relieved()
    ours.start_again()
    assert link(moon)["ifindex"] == before
    site.assert_protected()


def test_apply_changes_an_interface_without_touching_an_sa(site: Site) -> None:
    ours, _ = pair(site)
    moon, spis = site.network.moon, ours.spis()
    changed = {"address": ["169.254.10.1/29", "fd00:10::1/64"], "mtu": 1350, "name": "east"}
    ours.change(0, interface={**changed, "routes": [subnet(2), "203.0.113.0/24"]})
    answer = ours.command("plan")
    assert "interface" in answer.output
    assert "hot" in answer.output
    assert ours.command("apply").code == 0
    assert ours.spis() == spis
    assert link(moon) == {}
    assert link(moon, "east")["mtu"] == 1350
    assert has_address(moon, "fd00:10::1", "east")
    assert "203.0.113.0/24 dev east" in moon.run("ip", "route")
    # The address of IPv6 has joined a multicast group, and says so.
    assert site.network.alice.ping(site.network.bob.inside_address()) == 0
    ours.change(0, interface={"address": "169.254.10.1/30", "routes": subnet(2), "name": "east"})
    assert ours.command("apply").code == 0
    assert not has_address(moon, "fd00:10::1", "east")
    assert "203.0.113.0/24" not in moon.run("ip", "route")
    assert ours.spis() == spis
    site.assert_protected()


def test_an_interface_that_cannot_be_had_is_taken_back(site: Site) -> None:
    ours, _ = pair(site)
    moon, spis = site.network.moon, ours.spis()
    for changed in ({"name": "lan"}, {"name": "lan", "if_id": 42}, {"vrf": "nowhere"}):
        ours.change(0, **keys(1, **changed))
        answer = ours.command("apply")
        assert answer.code == 78
        assert "XF3009" in answer.errors
        assert has_address(moon, LINK[1])
        ours.change(0, **keys(1))
        assert not drift(ours)
        site.assert_protected()
    assert ours.spis()["net0"][0] == spis["net0"][0]


def test_it_is_shown_with_what_is_in_force(site: Site) -> None:
    ours, _ = pair(site)
    shown = ours.command("show", "kernel").output
    (line,) = (line for line in shown.splitlines() if "net0" in line and "mtu" in line.lower())
    assert ("xfrm" if IN_VM else "tun") in line


def test_a_tunnel_becomes_route_based_and_policy_based_again(site: Site) -> None:
    tunnel = site.network.tunnel()
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored(), **keys(2, routes=None))
    # The peer has routes of its own making.
    site.network.sun.run("ip", "route", "add", subnet(1), "dev", "net0")
    ours = site.xfrmpy(site.network.moon, tunnel)
    site.connect(ours, theirs)
    site.assert_protected()
    ours.change(0, **keys(1))
    assert ours.command("apply").code == 0
    assert has_address(site.network.moon, LINK[1])
    site.assert_protected()
    ours.change(0, interface=None, local=subnet(1), remote=subnet(2))
    assert ours.command("apply").code == 0
    assert link(site.network.moon) == {}
    site.assert_protected()


def test_a_name_that_a_foreign_device_has_is_refused(site: Site) -> None:
    tunnel, moon = site.network.tunnel(), site.network.moon
    moon.run("ip", "link", "add", "net0", "type", "bridge")
    ours = site.xfrmpy(moon, tunnel, **keys(1))
    answer = ours.command("up", "net0")
    assert answer.code == 78
    assert "XF3009" in answer.errors
    assert "bridge" in answer.errors
    assert link(moon)["linkinfo"]["info_kind"] == "bridge"
    status = ours.tunnel().interface
    assert status is not None
    assert status.state == "missing"
    # When the name is free the interface comes by itself.
    moon.run("ip", "link", "del", "net0")
    eventually("the interface to come", lambda: has_address(moon, LINK[1]))
    ours.kill()  # At an orderly end it would miss the bridge that was there at its start.


def test_an_interface_of_somebody_else_is_used_and_left(site: Site) -> None:
    tunnel, moon = site.network.tunnel(), site.network.moon
    with foreign_interface(moon, "theirs", 42):
        theirs = site.xfrmpy(site.network.sun, tunnel.mirrored(), **keys(2))
        # The kernel's is found by its number, whatever it is called; a TUN device has none.
        name = "net0" if IN_VM else "theirs"
        ours = site.xfrmpy(moon, tunnel, **keys(1, if_id=42, name=name))
        if IN_VM:
            refused = ours.command("up", "net0")
            assert "XF3009" in refused.errors, "what is blocked would not leave by it"
            ours.change(0, **keys(1, if_id=42, name="theirs"))
            assert ours.command("apply").code == 0
        site.connect(ours, theirs)
        status = ours.tunnel().interface
        assert status is not None
        assert (status.name, status.adopted, status.mtu) == ("theirs", True, 1333)
        site.assert_protected()
        ours.stop()
        assert link(moon, "theirs")["mtu"] == 1333
        assert not has_address(moon, LINK[1], "theirs")


@contextmanager
def foreign_interface(host: Host, name: str, if_id: int) -> Iterator[None]:
    if IN_VM:
        host.run("ip", "link", "add", name, "type", "xfrm", "if_id", str(if_id))
    else:
        host.run("ip", "tuntap", "add", "dev", name, "mode", "tun")
    try:
        host.run("ip", "link", "set", name, "mtu", "1333", "up")
        yield
    finally:
        host.run("ip", "link", "del", name)


def test_an_interface_lives_in_another_namespace(site: Site) -> None:
    name = f"{site.network.moon.namespace}-x"
    inside = Host(name="inside", namespace=name)
    run("ip", "netns", "add", name)
    try:
        inside.run("ip", "link", "set", "lo", "up")
        ours, _ = pair(site, namespace=name)
        status = ours.tunnel().interface
        assert status is not None
        assert (status.state, status.namespace) == ("up", name)
        assert link(site.network.moon) == {}
        assert has_address(inside, LINK[1])
        assert inside.ping(LINK[2]) == 0
        inside.run("ip", "link", "set", "net0", "down")
        eventually("it to be up again", lambda: "UP" in link(inside)["flags"])
        eventually("its route to be back", lambda: subnet(2) in inside.run("ip", "route"))
        ours.crash()
        ours.start_again()
        assert inside.ping(LINK[2]) == 0
        ours.stop()
        assert link(inside) == {}
    finally:
        run("ip", "netns", "del", name)


@pytest.mark.skipif(not IN_VM, reason="this machine's kernel has no VRF")
def test_an_interface_belongs_to_a_vrf_when_that_is_there(site: Site) -> None:
    moon = site.network.moon
    ours, _ = pair(site, vrf="red")
    assert ours.tunnel().interface is not None
    with vrf(moon, "red", "77"):
        eventually("the interface to follow", lambda: link(moon).get("master") == "red")
        eventually("its route", lambda: subnet(2) in moon.run("ip", "route", "show", "table", "77"))
        assert moon.run("ip", "vrf", "exec", "red", "ping", "-c", "1", LINK[2])


@contextmanager
def vrf(host: Host, name: str, table: str) -> Iterator[None]:
    """With the first, the kernel adds a rule for all of them, and leaves it."""
    host.run("ip", "link", "add", name, "type", "vrf", "table", table)
    try:
        host.run("ip", "link", "set", name, "up")
        yield
    finally:
        host.run("ip", "link", "del", name)
        for family in ("-4", "-6"):
            host.run("ip", family, "rule", "del", "pref", "1000")


def test_equal_tunnels_are_told_apart_by_their_interfaces(site: Site) -> None:
    network = site.network
    tunnels = [network.tunnel(number) for number in (0, 1)]
    theirs = site.xfrmpy(network.sun, *(t.mirrored() for t in tunnels), **ANYTHING)
    ours = site.xfrmpy(network.moon, *tunnels, **ANYTHING)
    for number in (0, 1):
        site.connect(ours, theirs, number)
        for host, end in ((network.moon, 1), (network.sun, 2)):
            host.run("ip", "address", "add", f"169.254.{number}.{end}/30", "dev", f"net{number}")
    for number in (0, 1):
        before = _packets(ours)
        assert network.moon.ping(f"169.254.{number}.2") == 0
        carried = [b - a for a, b in zip(before, _packets(ours), strict=True)]
        # IPv6 says a word of its own on any device.
        assert carried[number] >= 3 > carried[1 - number]


ANYTHING: dict[str, Any] = {"local": None, "remote": None, "interface": {"mtu": 1400}}


def _packets(gateway: XfrmpyGateway) -> list[int]:
    return [
        sum(c.packets_out for c in t.children if c.local == ["0.0.0.0/0", "::/0"])
        for t in gateway.status().tunnels
    ]


def test_block_lets_through_what_the_interface_carries_and_nothing_else(site: Site) -> None:
    tunnel, network = site.network.tunnel(), site.network
    theirs = site.xfrmpy(network.sun, tunnel.mirrored(), **keys(2))
    ours = site.xfrmpy(network.moon, tunnel, on_down="block", **keys(1))
    site.connect(ours, theirs)
    site.assert_protected()
    ours.stop()
    assert link(network.moon) == {}
    site.assert_blocked()
