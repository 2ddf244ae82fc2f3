"""Shunts beside a tunnel: what passes in clear, what does not pass, and what becomes of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from integration.lab.gateway import DATAPATH, XfrmpyGateway
from integration.lab.network import Host, subnet
from integration.lab.process import eventually
from integration.lab.site import Pair, Site
from xfrmpy.failures import CATALOGUE

pytestmark = [pytest.mark.native, pytest.mark.vm, pytest.mark.copied]

OCTETS = 20_000


@pytest.fixture
def pair(site: Site) -> Pair:
    """A tunnel that is up, and a way between the sites without it."""
    network = site.network
    tunnel = network.tunnel()
    network.moon.batch(f"route add {subnet(2)} via 192.0.2.2")
    network.sun.batch(f"route add {subnet(1)} via 192.0.2.1")
    theirs = site.xfrmpy(network.sun, tunnel.mirrored())
    ours = site.xfrmpy(network.moon, tunnel)
    site.connect(ours, theirs)
    return Pair(site, ours, theirs)


def shunt(gateway: XfrmpyGateway, **shunts: dict[str, Any]) -> None:
    """These and no others are in force."""
    (gateway.policies / "shunts.yaml").write_text(yaml.safe_dump({"shunts": shunts}))
    answer = gateway.command("apply")
    assert answer.code == 0, answer


def both(pair: Pair, action: str, traffic: str, **keys: Any) -> None:
    assert isinstance(pair.theirs, XfrmpyGateway)
    for gateway, remote in ((pair.ours, subnet(2)), (pair.theirs, subnet(1))):
        shunt(gateway, some={"action": action, "remote": f"{remote}{traffic}", **keys})


def test_what_is_bypassed_goes_in_clear_and_the_rest_is_protected(pair: Pair) -> None:
    spis = pair.ours.spis()
    both(pair, "bypass", "[icmp]")
    alice, bob = pair.site.network.alice, pair.site.network.bob
    with pair.site.capture() as wire:
        assert alice.ping(bob.inside_address()) == 0
    assert wire.kinds["clear"] == 6
    assert wire.protected == 0
    pair.site.transfer(OCTETS)
    assert pair.ours.spis() == spis
    for gateway in (pair.ours, pair.theirs):
        assert isinstance(gateway, XfrmpyGateway)
        shunt(gateway)
    pair.site.assert_protected()


def test_what_is_dropped_passes_in_neither_direction_and_the_rest_is_protected(
    pair: Pair,
) -> None:
    shunt(pair.ours, pings={"action": "drop", "remote": f"{subnet(2)}[icmp]"})
    pair.site.assert_blocked()
    alice, bob = pair.site.network.alice, pair.site.network.bob
    assert bob.ping(alice.inside_address(), 1) == 1
    pair.site.transfer(OCTETS)


def test_a_drop_behind_the_tunnels_leaves_them_alone(pair: Pair) -> None:
    moon = pair.site.network.moon
    ping = ("ping", "-n", "-c", "1", "-W", "1", "192.0.2.254")
    assert "1 received" in moon.run(*ping)
    ours = [subnet(1), f"{moon.outside[4]}/32"]
    rest = {"action": "drop", "local": ours, "remote": "0.0.0.0/0", "priority": 200_000}
    shunt(pair.ours, rest=rest)
    assert "1 received" not in moon.run(*ping, check=False)
    pair.site.assert_protected()
    pair.ours.rekey()
    pair.ours.terminate()
    pair.ours.initiate()
    pair.site.assert_protected()


def test_shunts_outlive_the_daemon_and_go_with_it(pair: Pair) -> None:
    shunt(pair.ours, pings={"action": "drop", "remote": f"{subnet(2)}[icmp]"})
    pair.ours.crash()
    pair.site.assert_blocked()
    pair.ours.start_again()
    pair.site.assert_blocked()
    pair.ours.stop()


def test_a_shunt_that_somebody_removes_is_put_back(pair: Pair) -> None:
    shunt(pair.ours, pings={"action": "bypass", "remote": f"{subnet(2)}[icmp]"})
    pair.site.network.moon.run("ip", "rule", "del", "priority", "218")

    def is_back() -> bool:
        return "218:" in pair.site.network.moon.run("ip", "rule")

    eventually("the rule to be back", is_back)
    plan = json.loads(pair.ours.command("plan", "-o", "json").output)
    assert (plan["drift"], plan["changes"]) == ([], [])


def test_a_plan_shows_what_becomes_of_shunts_and_rollback_takes_it_back(pair: Pair) -> None:
    shunt(pair.ours, pings={"action": "drop", "remote": f"{subnet(2)}[icmp]"})
    (pair.ours.policies / "shunts.yaml").unlink()
    answer = pair.ours.command("plan")
    assert "shunt pings" in answer.output
    assert pair.ours.command("apply").code == 0
    assert pair.site.network.alice.ping(pair.site.network.bob.inside_address(), 1) == 0
    assert pair.ours.command("rollback").code == 0
    pair.site.assert_blocked()


ALL = ["in", "out", "forward"]
DEFAULT = {"action": "drop", "default": ALL}


def test_a_default_of_the_kernel_drops_what_nothing_names_and_no_tunnel(pair: Pair) -> None:
    network = pair.site.network
    moon, alice = network.moon, network.alice
    if DATAPATH == "userspace":
        _assert_default_refused(pair.ours)
        return
    network.internet.batch(f"route add {subnet(1)} via {moon.outside[4]}")
    internet = network.internet.outside[4]

    def who_gets_through() -> list[Host]:
        ping = ("ping", "-n", "-c", "1", "-W", "1", internet)
        return [host for host in (moon, alice) if "1 received" in host.run(*ping, check=False)]

    assert who_gets_through() == [moon, alice]
    shunt(pair.ours, d={"action": "drop", "default": ["forward"]})
    assert who_gets_through() == [moon]
    pair.site.assert_protected()

    ssh = {"action": "bypass", "remote": f"{internet}/32[tcp]"}
    ping = {"action": "bypass", "local": subnet(1), "remote": f"{internet}/32[icmp]"}
    shunt(pair.ours, d=DEFAULT, ssh=ssh, ping=ping)
    assert who_gets_through() == [alice]
    shunt(pair.ours, d=DEFAULT, ssh=ssh)
    assert who_gets_through() == []
    pair.site.assert_protected()
    pair.ours.rekey()
    pair.ours.terminate()
    pair.ours.initiate()
    pair.site.assert_protected()
    kernel = json.loads(pair.ours.command("show", "kernel", "-o", "json").output)
    assert {(d["owner"], d["action"]) for d in kernel["defaults"]} == {("ours", "discard")}

    moon.run("ip", "xfrm", "policy", "setdefault", "out", "accept")
    eventually("it to be told", lambda: "the default policy was changed" in pair.ours.log)
    moon.run("ip", "xfrm", "policy", "flush")
    eventually("the exceptions to be back", lambda: "::1/128" in moon.run("ip", "xfrm", "policy"))
    plan = json.loads(pair.ours.command("plan", "-o", "json").output)
    assert (plan["drift"], plan["changes"]) == ([], [])
    assert moon.run("ip", "xfrm", "policy", "getdefault").count("block") == len(ALL)

    pair.ours.crash()
    assert who_gets_through() == []
    pair.ours.start_again()
    assert who_gets_through() == []
    pair.site.assert_protected()
    pair.ours.crash()
    (pair.ours.policies / "shunts.yaml").unlink()
    pair.ours.start_again()
    assert who_gets_through() == [moon, alice]
    pair.site.assert_protected()
    shunt(pair.ours, d=DEFAULT, ssh=ssh)
    pair.ours.stop()
    assert who_gets_through() == [moon, alice]
    assert moon.run("ip", "xfrm", "policy") == ""


def _assert_default_refused(gateway: XfrmpyGateway) -> None:
    (gateway.policies / "shunts.yaml").write_text(yaml.safe_dump({"shunts": {"d": DEFAULT}}))
    for command in ("plan", "apply"):
        answer = gateway.command(command)
        assert "XF1004" in answer.errors
        assert "default policy" in answer.errors


def test_what_the_datapath_that_is_found_cannot_do_is_refused_before_anything_is_done(
    site: Site,
) -> None:
    ours = site.xfrmpy(site.network.moon, site.network.tunnel(), datapath="auto")
    shunts = {
        name: {"action": "drop", "remote": f"{subnet(2)}[{traffic}]"}
        for name, traffic in (("games", "udp"), ("pings", "icmp/8"))
    }
    (ours.policies / "shunts.yaml").write_text(yaml.safe_dump({"shunts": shunts}))
    plan = ours.command("plan")
    if DATAPATH == "kernel":
        assert plan.code == 0
        return
    assert "XF3010" in plan.errors
    assert "no ICMP types" in plan.errors
    (ours.policies / "closed.yaml").write_text(yaml.safe_dump({"shunts": {"d": DEFAULT}}))
    assert "the workers' device" in " ".join(ours.command("plan").errors.split())
    (ours.policies / "closed.yaml").unlink()
    rules = site.network.moon.run("ip", "rule")
    assert ours.command("apply").code == CATALOGUE["XF3010"].exit_code
    assert site.network.moon.run("ip", "rule") == rules
    ours.crash()
    with pytest.raises(AssertionError, match="XF3010"):
        ours.start_again()
    (ours.policies / "shunts.yaml").unlink()
    ours.start_again()
