"""Rules of shunts around the one of our routes, in a namespace of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_network

import pytest

from integration.contract.sites import gateway_namespace, run
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.routes import RouteOwner, Routes
from xfrmpy.datapath.shunt_rules import ShuntRules
from xfrmpy.ipsec.drift import Finding
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry, shunt_entries

pytestmark = pytest.mark.native

TUNNEL = "203.0.113.0/24"


@pytest.fixture
def namespace() -> Iterator[str]:
    with gateway_namespace() as name:
        run("ip", "-n", name, "route", "add", "default", "via", "198.51.100.254")
        yield name


@pytest.fixture
def rules(namespace: str) -> Iterator[ShuntRules]:
    """Beside a route that leads everything of a tunnel to the loopback device."""
    del namespace
    with (
        closing(Routes(RouteOwner.USERSPACE)) as routes,
        closing(ShuntRules(RouteOwner.USERSPACE, [Action.BYPASS, Action.DISCARD])) as opened,
    ):
        routes.add(ip_network(TUNNEL), local=ip_network("0.0.0.0/0"), via="lo")
        yield opened


def entry(action: Action, remote: str, priority: int | None = None) -> SpdEntry:
    local = TrafficSelector.parse("::/0" if ":" in remote.partition("[")[0] else "0.0.0.0/0")
    entries = shunt_entries(
        local=[local], remote=[TrafficSelector.parse(remote)], action=action, priority=priority
    )
    return next(e for e in entries if e.direction is PolicyDirection.OUT)


def leads(namespace: str, *packet: str) -> str:
    """The device that a packet leaves by, or that it goes nowhere."""
    try:
        words = run("ip", "-n", namespace, "route", "get", *packet).split()
    except AssertionError:
        return "nowhere"
    return words[words.index("dev") + 1]


HOST = "203.0.113.5"
TCP = (HOST, "ipproto", "tcp", "dport")


def test_a_bypass_passes_our_routes_and_nothing_else_does(
    namespace: str, rules: ShuntRules
) -> None:
    assert leads(namespace, HOST) == "lo"
    rules.add(entry(Action.BYPASS, f"{HOST}/32[tcp/22]"))
    assert leads(namespace, *TCP, "22") == "wan"
    assert leads(namespace, *TCP, "23") == "lo"
    assert leads(namespace, HOST) == "lo"
    rules.remove(entry(Action.BYPASS, f"{HOST}/32[tcp/22]"))
    assert leads(namespace, *TCP, "22") == "lo"


def test_of_two_the_more_specific_comes_first_whichever_was_added_first(
    namespace: str, rules: ShuntRules
) -> None:
    rules.add(entry(Action.DISCARD, TUNNEL))
    rules.add(entry(Action.BYPASS, f"{HOST}/32"))
    assert leads(namespace, HOST) == "wan"
    assert leads(namespace, "203.0.113.6") == "nowhere"
    assert leads(namespace, "203.0.113.6", "mark", "0x5846") == "wan", "what is protected passes"


def test_what_is_behind_the_tunnels_drops_what_they_do_not_carry(
    namespace: str, rules: ShuntRules
) -> None:
    rules.add(entry(Action.DISCARD, "0.0.0.0/0", 200_000))
    assert leads(namespace, HOST) == "lo"
    assert leads(namespace, "192.0.2.77") == "nowhere"
    assert leads(namespace, "192.0.2.77", "mark", "0x5846") == "wan", "what is protected passes"
    rules.add(entry(Action.BYPASS, "192.0.2.77/32"))
    assert leads(namespace, "192.0.2.77") == "wan", "it is before the other"


@pytest.mark.parametrize(("ports", "inside"), [("0-1023", "1023"), ("32768-65535", "40000")])
def test_ranges_of_ports_are_rules_of_ranges(
    namespace: str, rules: ShuntRules, ports: str, inside: str
) -> None:
    rules.add(entry(Action.BYPASS, f"{TUNNEL}[tcp/{ports}]"))
    assert leads(namespace, *TCP, inside) == "wan"
    assert leads(namespace, *TCP, "2000") == "lo"


def test_what_somebody_changes_is_found_and_mended(namespace: str, rules: ShuntRules) -> None:
    for number in range(3):
        rules.add(entry(Action.BYPASS, f"203.0.113.{number}/32"))
    rules.add(entry(Action.DISCARD, "2001:db8:9::/48[udp]"))
    assert [*rules.find_amiss()] == []
    run("ip", "-n", namespace, "rule", "del", "priority", "222")
    run("ip", "-n", namespace, "-6", "rule", "del", "priority", "218")
    found = [*rules.find_amiss()]
    assert [(d.finding, d.subject) for d in found] == [
        (Finding.SHUNT_RULES_CHANGED, 4),
        (Finding.SHUNT_RULES_CHANGED, 6),
    ]
    rules.mend()
    assert [*rules.find_amiss()] == []


def test_others_rules_are_left_alone_and_ours_go(namespace: str, rules: ShuntRules) -> None:
    run("ip", "-n", namespace, "rule", "add", "priority", "218", "to", "10.0.0.0/8", "table", "7")
    before = run("ip", "-n", namespace, "rule")
    rules.add(entry(Action.DISCARD, TUNNEL))
    rules.clear()
    assert run("ip", "-n", namespace, "rule") == before


@pytest.mark.parametrize(
    ("remote", "priority"), [(f"{TUNNEL}[icmp/8]", None), (TUNNEL, 70_000)], ids=["icmp", "between"]
)
def test_what_rules_cannot_say_is_refused(
    namespace: str, rules: ShuntRules, remote: str, priority: int | None
) -> None:
    before = run("ip", "-n", namespace, "rule")
    with pytest.raises(DatapathError, match="the shunt"):
        rules.add(entry(Action.BYPASS, remote, priority))
    assert run("ip", "-n", namespace, "rule") == before
