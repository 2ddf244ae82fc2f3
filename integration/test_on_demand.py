"""`start: on-demand`: the first packet brings up what carries it, and is not lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.marks import PEERS
from integration.lab.network import subnet
from integration.lab.process import IN_VM, PATIENCE, eventually
from integration.lab.site import Peer, Site

pytestmark = pytest.mark.copied

IN_BOTH = [pytest.mark.native, pytest.mark.vm]
NATIVE = pytest.mark.native

ON_DEMAND: dict[str, Any] = {"start": "on-demand"}


def waits(gateway: XfrmpyGateway, number: int = 0) -> bool:
    return gateway.tunnel(number).state == "waiting"


def await_waiting(gateway: XfrmpyGateway) -> None:
    eventually("it to wait for traffic", lambda: waits(gateway))


def pings(site: Site, number: int = 0) -> None:
    """One packet alone, which must get through: nothing is sent again."""
    alice, bob = site.network.alice, site.network.bob
    seconds = str(int(20 * PATIENCE))
    alice.run("ping", "-n", "-c", "1", "-W", seconds, bob.inside_address(number), seconds=60)


def events(gateway: XfrmpyGateway, name: str) -> list[dict[str, Any]]:
    answer = gateway.command("log", "-o", "json")
    found = [json.loads(line) for line in answer.output.splitlines()]
    return [event for event in found if event["event"] == name]


@pytest.mark.parametrize("make_peer", PEERS.args[1])
def test_the_first_packet_brings_the_tunnel_up_and_arrives(
    site: Site, make_peer: Callable[..., Peer]
) -> None:
    tunnel = site.network.tunnel()
    theirs = make_peer(site, site.network.sun, tunnel.mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel, **ON_DEMAND)
    await_waiting(ours)
    with site.capture() as wire:
        pings(site)
    assert wire.kinds["clear"] == 0
    assert ours.is_up()
    assert theirs.is_up()
    site.assert_protected()
    ours.terminate()
    await_waiting(ours)
    pings(site)
    assert ours.is_up()


@pytest.mark.native
@pytest.mark.vm
def test_a_peers_trap_is_served(site: Site) -> None:
    """strongSwan's own traps, where it has them: in the kernel. Natively, ours at the other end."""
    tunnel = site.network.tunnel()
    ours = site.xfrmpy(site.network.moon, tunnel, start="listen")
    if IN_VM:
        theirs: Peer = site.strongswan(
            site.network.sun, tunnel.mirrored(), child="start_action = trap"
        )
    else:
        theirs = waiting = site.xfrmpy(site.network.sun, tunnel.mirrored(), **ON_DEMAND)
        await_waiting(waiting)
    site.network.bob.await_answer(site.network.alice.inside_address())
    assert ours.is_up()
    assert theirs.is_up()
    site.assert_protected()


@pytest.mark.vm
def test_a_trap_of_libreswan_is_served(site: Site) -> None:
    tunnel = site.network.tunnel()
    ours = site.xfrmpy(site.network.moon, tunnel, start="listen")
    theirs = site.libreswan(site.network.sun, tunnel.mirrored(), auto="ondemand")
    site.network.bob.await_answer(site.network.alice.inside_address())
    assert ours.is_up()
    assert theirs.is_up()
    site.assert_protected()


@pytest.mark.native
@pytest.mark.vm
def test_only_the_child_that_a_packet_asks_for_is_made(site: Site) -> None:
    tunnel = site.network.tunnel()
    children = {
        name: {"local": subnet(1, number), "remote": subnet(2, number)}
        for number, name in enumerate(("lan", "voice", "lab"))
    }
    theirs = {
        name: {"local": child["remote"], "remote": child["local"]}
        for name, child in children.items()
    }
    bare: dict[str, Any] = {"local": None, "remote": None}
    site.xfrmpy(site.network.sun, tunnel.mirrored(), children=theirs, **bare)
    ours = site.xfrmpy(site.network.moon, tunnel, children=children, **ON_DEMAND, **bare)
    await_waiting(ours)
    pings(site, 1)
    assert [child.child for child in ours.tunnel().children] == ["voice"]
    spi = ours.tunnel().spi_i
    pings(site, 2)
    assert [child.child for child in ours.tunnel().children] == ["voice", "lab"]
    assert ours.tunnel().spi_i == spi
    ours.rekey()
    assert sorted(child.child for child in ours.tunnel().children) == ["lab", "voice"]


@pytest.mark.native
@pytest.mark.vm
def test_what_the_peer_leaves_out_goes_on_asking(site: Site) -> None:
    """As strongSwan's scenario net2net-route-narrow: a Child SA for each of the peer's parts."""
    tunnel = site.network.tunnel()
    children = {
        name: {"local": subnet(2, number), "remote": subnet(1, number)}
        for number, name in enumerate(("lan", "voice"))
    }
    bare: dict[str, Any] = {"local": None, "remote": None}
    site.xfrmpy(site.network.sun, tunnel.mirrored(), children=children, **bare)
    wide = tunnel.between(("10.1.0.0/16",), ("10.2.0.0/16",))
    ours = site.xfrmpy(site.network.moon, wide, **ON_DEMAND)
    await_waiting(ours)
    for number in (0, 1):
        pings(site, number)
        assert len(ours.tunnel().children) == number + 1
    site.assert_protected(0)
    site.assert_protected(1)


@pytest.mark.native
def test_without_traffic_it_goes_and_waits_again(site: Site) -> None:
    tunnel = site.network.tunnel()
    site.xfrmpy(site.network.sun, tunnel.mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel, inactivity="10s", **ON_DEMAND)
    for _ in range(2):
        await_waiting(ours)
        pings(site)
        assert ours.is_up()
        eventually("it to go", lambda: not ours.is_up(), seconds=30)


@pytest.mark.native
@pytest.mark.vm
def test_traps_outlive_the_daemon_and_a_packet_meanwhile_is_served_by_the_next(
    site: Site,
) -> None:
    tunnel = site.network.tunnel()
    site.xfrmpy(site.network.sun, tunnel.mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel, **ON_DEMAND)
    await_waiting(ours)
    ours.crash()
    with site.capture() as wire:
        site.assert_blocked()
        ours.start_again()
        eventually("it to be up", ours.is_up)
    assert wire.kinds["clear"] == 0
    ours.crash()
    ours.start_again()
    site.assert_protected()
    ours.terminate()
    await_waiting(ours)
    site.network.moon.run("true")


@pytest.mark.native
def test_apply_makes_a_tunnel_wait_and_takes_its_traps_away(site: Site) -> None:
    tunnel = site.network.tunnel()
    site.xfrmpy(site.network.sun, tunnel.mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel)
    ours.initiate()
    spis = ours.spis()
    ours.change(start="on-demand")
    assert ours.command("apply").code == 0
    assert ours.spis() == spis
    ours.terminate()
    await_waiting(ours)
    pings(site)
    ours.terminate()
    await_waiting(ours)
    ours.change(start="manual")
    assert ours.command("apply").code == 0
    assert ours.tunnel().state == "down"


@pytest.mark.native
def test_a_peer_that_refuses_is_not_asked_for_every_packet(site: Site) -> None:
    tunnel = site.network.tunnel()
    site.xfrmpy(site.network.sun, site.network.tunnel(psk="another key, of no use").mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel, on_down="block", **ON_DEMAND)
    await_waiting(ours)
    bob = site.network.bob.inside_address()
    site.network.alice.run("ping", "-n", "-c", "40", "-i", "0.25", bob, check=False)
    eventually("a failure", lambda: bool(events(ours, "tunnel-retrying")))
    assert 1 <= len(events(ours, "tunnel-failed")) <= 5
    failure = ours.tunnel().failure
    assert failure is not None
    assert failure.code == "XF2005"


@pytest.mark.native
def test_a_trap_that_somebody_removes_is_put_back(site: Site) -> None:
    tunnel = site.network.tunnel()
    site.xfrmpy(site.network.sun, tunnel.mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel, **ON_DEMAND)
    await_waiting(ours)
    site.network.moon.run("ip", "route", "del", subnet(2), "table", "22598")
    eventually("the route to be back", lambda: bool(events(ours, "drift-healed")))
    plan = json.loads(ours.command("plan", "-o", "json").output)
    assert (plan["drift"], plan["changes"]) == ([], [])
    pings(site)
