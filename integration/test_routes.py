"""Our routing table and rules, in a namespace of their own."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from ipaddress import ip_address, ip_network

import pytest

from integration.contract.entries import INNER, OUTER
from integration.contract.sites import gateway_namespace, run
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.netlink.route import MessageType
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Reply, Request
from xfrmpy.datapath.routes import OUR_MARK, OUR_TABLE, OuterPath, RouteOwner, Routes

pytestmark = pytest.mark.native

LOCAL, REMOTE = INNER[4]
FAR = ip_address("203.0.113.9")


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    with gateway_namespace() as name:
        run("ip", "-n", name, "route", "add", "default", "via", "198.51.100.254")
        run("ip", "-n", name, "link", "set", "wan", "mtu", "1480")
        yield name


@pytest.fixture
def routes(gateway: str) -> Iterator[Routes]:
    del gateway
    with closing(Routes(RouteOwner.KERNEL)) as opened:
        yield opened
        opened.remove_all()


def _lookup(namespace: str, destination: str, *options: str) -> str:
    return run("ip", "-n", namespace, "route", "get", destination, *options).splitlines()[0]


def _rules(namespace: str, version: int = 4) -> list[str]:
    return [
        " ".join(line.split())
        for line in run("ip", "-n", namespace, f"-{version}", "rule").splitlines()
        if str(OUR_TABLE) in line
    ]


def test_the_way_to_a_peer_is_found(routes: Routes) -> None:
    source = OUTER[4][0]
    gateway = ip_address("198.51.100.254")
    assert routes.outer_path(source, FAR) == OuterPath(device="wan", gateway=gateway, mtu=1480)
    assert routes.outer_path(source, OUTER[4][1]).gateway is None
    assert routes.outer_path(*OUTER[6]) == OuterPath(device="wan", gateway=None, mtu=1480)


def test_a_change_of_a_link_or_an_address_is_noticed(gateway: str, routes: Routes) -> None:
    source, target = OUTER[4][0], ip_network("10.77.0.0/16")
    try:
        for mtu, ours in ((1400, "10.66.0.1"), (1480, "10.66.0.9")):
            run("ip", "-n", gateway, "link", "set", "wan", "mtu", str(mtu))
            run("ip", "-n", gateway, "address", "add", f"{ours}/32", "dev", "lo")
            way = routes.outer_path(source, FAR)
            assert way.mtu == mtu
            routes.add(target, local=ip_network("10.66.0.0/16"), via=way)
            assert f"src {ours}" in _lookup(gateway, "10.77.0.7")
            run("ip", "-n", gateway, "address", "del", f"{ours}/32", "dev", "lo")
            routes.remove(target)
            routes.add(target, local=ip_network("10.66.0.0/16"), via=way)
            assert f"src {ours}" not in _lookup(gateway, "10.77.0.7")
    finally:
        run("ip", "-n", gateway, "link", "set", "wan", "mtu", "1480")


def test_a_device_that_is_made_anew_has_another_number(gateway: str, routes: Routes) -> None:
    target = ip_network("10.77.0.0/16")
    for _ in range(2):
        run("ip", "-n", gateway, "link", "add", "fleeting", "type", "veth", "peer", "other")
        run("ip", "-n", gateway, "link", "set", "fleeting", "up")
        routes.add(target, local=LOCAL, via="fleeting")
        assert "dev fleeting" in _lookup(gateway, "10.77.0.7")
        run("ip", "-n", gateway, "link", "del", "fleeting")
        with pytest.raises(DatapathError, match="no network device 'fleeting'"):
            routes.add(target, local=LOCAL, via="fleeting")


def test_links_and_addresses_are_asked_for_once(
    gateway: str, routes: Routes, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    send = NetlinkSocket.exchange

    def count(self: NetlinkSocket, requests: Sequence[Request]) -> list[Reply]:
        asked.extend(request.message.type for request in requests)
        return send(self, requests)

    monkeypatch.setattr(NetlinkSocket, "exchange", count)
    run("ip", "-n", gateway, "link", "set", "wan", "mtu", "1480")
    for number in range(10):
        way = routes.outer_path(OUTER[4][0], FAR)
        routes.add(ip_network(f"10.77.{number}.0/24"), local=LOCAL, via=way)
    once = Counter([MessageType.GETLINK, MessageType.GETADDR, MessageType.NEWRULE])
    each = Counter([MessageType.GETROUTE, MessageType.NEWROUTE] * 10)
    assert Counter(asked) == once + each


def test_no_way_to_a_peer_is_said(routes: Routes) -> None:
    with pytest.raises(DatapathError, match="cannot find a route from 2001:db8:0:1::1 to 3fff::1"):
        routes.outer_path(OUTER[6][0], ip_address("3fff::1"))


def test_a_route_has_our_source_and_yields_to_our_mark(gateway: str, routes: Routes) -> None:
    routes.add(REMOTE, local=LOCAL, via=routes.outer_path(OUTER[4][0], FAR), mtu=1400)
    assert f"via 198.51.100.254 dev wan table {OUR_TABLE} src 10.1.0.1" in _lookup(
        gateway, "10.2.0.7"
    )
    assert str(OUR_TABLE) not in _lookup(gateway, "10.2.0.7", "mark", str(OUR_MARK))
    assert "mtu 1400" in run("ip", "-n", gateway, "route", "show", "table", str(OUR_TABLE))
    assert _rules(gateway) == ["220: not from all fwmark 0x5846/0xffff lookup 22598"]
    assert _rules(gateway, 6) == []
    routes.remove(REMOTE)
    assert _rules(gateway) == []


@pytest.mark.parametrize("everything", ["0.0.0.0/0", "10.0.0.0/8"])
def test_our_own_side_is_excepted_from_a_wider_remote(
    gateway: str, routes: Routes, everything: str
) -> None:
    routes.add(ip_network(everything), local=LOCAL, via="wan")
    assert "dev lan" in _lookup(gateway, "10.1.0.7")
    assert f"dev wan table {OUR_TABLE}" in _lookup(gateway, "10.3.0.7")


def test_an_exception_goes_with_its_last_route(gateway: str, routes: Routes) -> None:
    wide, wider = ip_network("10.0.0.0/8"), ip_network("0.0.0.0/0")
    for destination in (wide, wider):
        routes.add(destination, local=LOCAL, via="wan")
    routes.remove(wide)
    assert "dev lan" in _lookup(gateway, "10.1.0.7")
    routes.remove(wider)
    assert _rules(gateway) == [], "the table is empty"


def test_a_route_added_twice_is_removed_twice(gateway: str, routes: Routes) -> None:
    for _ in range(2):
        routes.add(REMOTE, local=LOCAL, via="wan")
    routes.remove(REMOTE)
    assert str(OUR_TABLE) in _lookup(gateway, "10.2.0.7")
    for _ in range(2):  # the second time it is gone already
        routes.remove(REMOTE)
        assert str(OUR_TABLE) not in _lookup(gateway, "10.2.0.7")


def test_one_owner_leaves_the_others_routes_and_the_rule(gateway: str, routes: Routes) -> None:
    with closing(Routes(RouteOwner.USERSPACE)) as other:
        other.add(ip_network("10.9.0.0/24"), local=LOCAL, via="lan")
        routes.add(REMOTE, local=LOCAL, via="wan")
        assert routes.remove_all() == 1
        assert f"dev lan table {OUR_TABLE}" in _lookup(gateway, "10.9.0.7")
        assert other.remove_all() == 1
    assert _rules(gateway) == []


def test_routes_of_an_earlier_process_are_removed(gateway: str, routes: Routes) -> None:
    with closing(Routes(RouteOwner.KERNEL)) as earlier:
        earlier.add(ip_network("0.0.0.0/0"), local=LOCAL, via="wan")
        earlier.add(ip_network("::/0"), local=INNER[6][0], via="wan")
    assert routes.remove_all() == 4  # and an exception each
    assert _rules(gateway) == _rules(gateway, 6) == []


def test_there_is_no_way_from_an_address_that_this_host_does_not_have(
    gateway: str, routes: Routes
) -> None:
    for version in (4, 6):
        ours, theirs = OUTER[version]
        with pytest.raises(DatapathError, match=f"{theirs} is no address of this host"):
            routes.outer_path(theirs, ours)
    own = ("198.51.100.77/32", "dev", "lo", "scope", "host")
    run("ip", "-n", gateway, "address", "add", *own)
    assert routes.outer_path(ip_address("198.51.100.77"), OUTER[4][1]).device == "wan"
    run("ip", "-n", gateway, "address", "del", *own)


def test_an_unknown_device_leaves_nothing_behind(gateway: str, routes: Routes) -> None:
    with pytest.raises(DatapathError, match="no network device 'nowhere'"):
        routes.add(REMOTE, local=LOCAL, via="nowhere")
    assert _rules(gateway) == []


def test_a_refusal_has_the_kernels_sentence(routes: Routes) -> None:
    nonsense = OuterPath(device="wan", gateway=ip_address("0.0.0.0"), mtu=1500)
    with pytest.raises(DatapathError, match=f"cannot add a route to {REMOTE}: Invalid flags for"):
        routes.add(REMOTE, local=LOCAL, via=nonsense)


def test_it_works_within_an_event_loop(gateway: str, routes: Routes) -> None:
    async def add() -> None:
        routes.add(REMOTE, local=LOCAL, via="wan")

    asyncio.run(add())
    assert str(OUR_TABLE) in _lookup(gateway, "10.2.0.7")
