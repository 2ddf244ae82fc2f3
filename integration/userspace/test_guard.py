"""The userspace datapath's guard: what comes in clear and should have been protected stays out.

The rules are read back with `nft`, and datagrams sent at them: to a gateway and through it.
"""

from __future__ import annotations

import re
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from ipaddress import ip_network

import pytest

from integration.contract.sites import gateway_namespace, inside
from integration.lab.network import Host, Network, subnet
from xfrmpy.datapath.userspace.guard import CHAIN, TABLE, Guard
from xfrmpy.ipsec.selectors import MaskedPort, Selector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry, Template

pytestmark = pytest.mark.native

ICMP, UDP = 1, 17
LAN = {family: subnet(1, family=family) for family in (4, 6)}
"""Moon's."""


def policy(
    source: str,
    destination: str,
    *,
    action: Action = Action.PROTECT,
    priority: int = 100,
    direction: PolicyDirection = PolicyDirection.IN,
    port: int = 0,
    port_mask: int = 0xFFFF,
) -> SpdEntry:
    ends = ip_network("192.0.2.0/32")[0], ip_network("192.0.2.1/32")[0]
    return SpdEntry(
        direction=direction,
        selector=Selector(
            source=ip_network(source),
            destination=ip_network(destination),
            protocol=UDP if port else 0,
            destination_port=MaskedPort(port, port_mask if port else 0),
        ),
        action=action,
        priority=priority,
        template=Template(source=ends[0], destination=ends[1], reqid=7)
        if action is Action.PROTECT
        else None,
    )


def listed() -> list[tuple[str, str]]:
    """What our rules look up, in their order, each with the map's elements, as `nft` reads them."""
    command = ["nft", "list", "table", "inet", TABLE.name]
    text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    maps = dict(re.findall(r"map (\S+) {\s+type .*?\s+elements = { (.*?) }", text, re.DOTALL))
    return [
        (fields, element)
        for fields, name in re.findall(r"\s*(.*) vmap @(\S+)", text)
        for element in re.split(r",\s+", maps[name])
    ]


def rules() -> str:
    """Our rules with their handles, by which it shows whether one has been made anew."""
    command = ["nft", "-a", "list", "chain", "inet", TABLE.name, CHAIN]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def guard() -> Iterator[Guard]:
    with gateway_namespace(), closing(Guard()) as made:
        yield made


def test_nft_reads_the_rules_that_we_mean(guard: Guard) -> None:
    guard.enforce(
        [
            policy("10.2.0.0/16", "10.1.0.0/16", priority=30),
            policy("10.2.0.0/16", "10.1.0.0/16", priority=30, direction=PolicyDirection.FORWARD),
            policy("fd00:2::/64", "fd00:1::/64", priority=20),
            policy("10.2.9.0/24", "10.1.0.0/16", priority=10, action=Action.BYPASS),
            policy("0.0.0.0/0", "10.1.7.0/24", priority=40, action=Action.DISCARD),
            policy("10.4.0.1/32", "10.1.0.0/16", priority=50, port=5001),
            policy("10.4.0.1/32", "10.1.0.0/16", priority=60, port=5008, port_mask=0xFFF0),
        ]
    )
    assert listed() == [
        ("ip saddr & 255.255.255.0 . ip daddr & 255.255.0.0", "10.2.9.0 . 10.1.0.0 : accept"),
        (
            "ip6 saddr & ffff:ffff:ffff:ffff:: . ip6 daddr & ffff:ffff:ffff:ffff::",
            "fd00:2:: . fd00:1:: : drop",
        ),
        ("ip saddr & 255.255.0.0 . ip daddr & 255.255.0.0", "10.2.0.0 . 10.1.0.0 : drop"),
        (
            "ip saddr != 10.1.7.0/24 ip saddr & 0.0.0.0 . ip daddr & 255.255.255.0",
            "0.0.0.0 . 10.1.7.0 : drop",
        ),
        (
            "ip saddr . ip daddr & 255.255.0.0 . meta l4proto . th dport",
            "10.4.0.1 . 10.1.0.0 . udp . 5001 : drop",
        ),
        (
            "ip saddr . ip daddr & 255.255.0.0 . meta l4proto . th dport & 65520",
            "10.4.0.1 . 10.1.0.0 . udp . 5008 : drop",
        ),
    ]


def test_without_policies_there_is_no_table(guard: Guard) -> None:
    guard.enforce([])
    guard.enforce([policy("10.2.0.0/16", "10.1.0.0/16")])
    assert len(listed()) == 1
    guard.enforce([])
    tables = ["nft", "list", "tables"]
    assert subprocess.run(tables, capture_output=True, check=True).stdout == b""


def test_a_thousand_policies_are_replaced_at_once(guard: Guard) -> None:
    many = [policy(f"10.{n >> 8}.{n & 255}.0/24", "192.168.0.0/24") for n in range(1000)]
    guard.enforce(many)
    guard.enforce(many[1:])
    assert len(listed()) == 999


def test_one_more_policy_of_a_shape_leaves_the_rules_alone(guard: Guard) -> None:
    """What a Child SA costs does not grow with the number of those that are there."""
    first, second = (policy(f"10.2.{n}.0/24", "10.1.0.0/16") for n in (1, 2))
    guard.add([first])
    before = rules()
    guard.add([second])
    assert len(listed()) == 2
    guard.remove(first)
    assert len(listed()) == 1
    assert rules() == before
    guard.add([policy("10.3.0.0/16", "10.1.0.0/16")])
    assert len(listed()) == 2
    guard.remove(second)
    assert [element for _, element in listed()] == ["10.3.0.0 . 10.1.0.0 : drop"]


def test_of_two_policies_of_one_selector_the_stricter_counts(guard: Guard) -> None:
    inward = policy("10.2.0.0/16", "10.1.0.0/16", action=Action.BYPASS)
    onward = replace(inward, direction=PolicyDirection.FORWARD, action=Action.DISCARD)
    for entry in (inward, onward):
        guard.add([entry])
    assert [element for _, element in listed()] == ["10.2.0.0 . 10.1.0.0 : drop"]
    guard.remove(onward)
    assert [element for _, element in listed()] == ["10.2.0.0 . 10.1.0.0 : accept"]


def test_a_table_that_somebody_removed_is_back_with_the_next_policy(guard: Guard) -> None:
    guard.add([policy("10.2.1.0/24", "10.1.0.0/16")])
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    guard.add([policy("10.2.2.0/24", "10.1.0.0/16")])
    assert len(listed()) == 2


def test_policies_come_and_go_one_by_one(guard: Guard) -> None:
    inward = policy("10.2.0.0/16", "10.1.0.0/16", priority=30)
    onward = replace(inward, direction=PolicyDirection.FORWARD)
    narrow = policy("10.2.9.0/24", "10.1.0.0/16", priority=10, action=Action.BYPASS)
    for entry in (inward, onward, narrow):
        guard.add([entry])
    both = [
        ("ip saddr & 255.255.255.0 . ip daddr & 255.255.0.0", "10.2.9.0 . 10.1.0.0 : accept"),
        ("ip saddr & 255.255.0.0 . ip daddr & 255.255.0.0", "10.2.0.0 . 10.1.0.0 : drop"),
    ]
    assert listed() == both
    guard.remove(inward)
    assert listed() == both, "those to be forwarded are still judged"
    guard.add([replace(narrow, action=Action.DISCARD)])
    fields, element = both[0]
    assert listed() == [(fields, element.replace("accept", "drop")), both[1]]
    for entry in (onward, narrow, narrow):
        guard.remove(entry)
    assert listed() == []


def test_without_the_right_to_it_there_is_a_sentence(guard: Guard) -> None:
    del guard
    program = (
        "from xfrmpy.datapath.interface import DatapathError\n"
        "from xfrmpy.datapath.userspace.guard import Guard\n"
        "try: Guard().enforce(())\n"
        "except DatapathError as error: print(error)\n"
    )
    command = ["setpriv", "--bounding-set=-net_admin", sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    reason = "nf_tables, which keeps unprotected packets out: Operation not permitted\n"
    assert done.stdout == reason


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with closing(Network()) as made:
        made.internet.batch(
            f"route add {LAN[4]} via {made.moon.outside[4]}",
            f"route add {LAN[6]} via {made.moon.outside[6]}",
        )
        yield made


@contextmanager
def enforced(network: Network, *entries: SpdEntry) -> Iterator[None]:
    with inside(network.moon.namespace), closing(Guard()) as guard:
        guard.enforce(entries)
        try:
            yield
        finally:
            guard.enforce(())


def arrives(source: Host, host: Host, address: str, port: int = 7777) -> bool:
    """Whether a datagram from a host's outside reaches one at moon's, or moon itself."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with ExitStack() as stack:
        with inside(host.namespace):
            receiver = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            receiver.bind((address, port))
        with inside(source.namespace):
            sender = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sender.sendto(b"in clear", (address, port))
        return bool(select.select([receiver], [], [], 0.3)[0])


SENDER = {4: "192.0.2.254/32", 6: "2001:db8::fe/128"}


@pytest.mark.parametrize("family", [4, 6])
def test_clear_packets_reach_neither_the_gateway_nor_a_host_behind_it(
    network: Network, family: int
) -> None:
    gateway = ip_network(LAN[family])[1]
    ways = [
        (network.alice, network.alice.inside_address(family=family)),
        (network.moon, str(gateway)),
    ]
    for way in ways:
        assert arrives(network.internet, *way)
    with enforced(network, policy(SENDER[family], LAN[family])):
        for way in ways:
            assert not arrives(network.internet, *way)
    for way in ways:
        assert arrives(network.internet, *way)


def test_only_what_a_policy_is_for_is_kept_out(network: Network) -> None:
    alice, lan = network.alice.inside_address(), LAN[4]
    with enforced(network, policy(SENDER[4], lan, port=5001)):
        assert not arrives(network.internet, network.alice, alice, 5001)
        assert arrives(network.internet, network.alice, alice, 5002)
    with enforced(network, policy("192.0.2.2/32", lan)):
        assert arrives(network.internet, network.alice, alice)


def test_of_icmp_only_the_types_of_a_policy_are_kept_out(network: Network) -> None:
    alice, request = network.alice.inside_address(), 8
    policy_for = policy(SENDER[4], LAN[4])
    ping = ("ping", "-c", "1", "-W", "1", alice)
    for kind, arrives_too in ((request, False), (request + 5, True)):
        selector = replace(
            policy_for.selector,
            protocol=ICMP,
            source_port=MaskedPort(kind, 0xFFFF),
            destination_port=MaskedPort(0, 0xFFFF),
        )
        with enforced(network, replace(policy_for, selector=selector)):
            done = subprocess.run(network.internet.command(*ping), check=False, capture_output=True)
            assert (done.returncode == 0) == arrives_too
            assert arrives(network.internet, network.alice, alice)


def test_a_bypass_before_it_lets_in(network: Network) -> None:
    alice, lan = network.alice.inside_address(), LAN[4]
    protect = policy("192.0.2.0/24", lan, priority=20)
    bypass = policy(SENDER[4], lan, priority=10, action=Action.BYPASS)
    with enforced(network, protect, bypass):
        assert arrives(network.internet, network.alice, alice)
    with enforced(network, protect, replace(bypass, priority=30)):
        assert not arrives(network.internet, network.alice, alice)


def test_ike_and_esp_get_through_to_a_gateway_that_a_policy_covers(network: Network) -> None:
    moon = network.moon.outside[4]
    with enforced(network, policy("192.0.2.0/24", f"{moon}/32")):
        assert not arrives(network.internet, network.moon, moon)
        for port in (500, 4500):
            assert arrives(network.internet, network.moon, moon, port)


def test_neighbours_are_found_whatever_the_policies_cover(network: Network) -> None:
    gateway = str(ip_network(LAN[6])[1])
    with enforced(network, policy("::/0", "ff02::/16")):
        network.alice.run("ip", "-6", "neigh", "flush", "all")
        assert arrives(network.alice, network.moon, gateway)


def test_our_own_side_may_speak_in_clear_where_the_peer_is_everybody(network: Network) -> None:
    """As the hosts of one site do who are each other's neighbours by way of the gateway."""
    gateway = str(ip_network(LAN[4])[1])
    with enforced(network, policy("0.0.0.0/0", LAN[4])):
        assert arrives(network.alice, network.moon, gateway)
        assert not arrives(network.internet, network.moon, gateway)
