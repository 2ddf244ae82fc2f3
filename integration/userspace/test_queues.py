"""By which queue of a device the kernel gives a packet, beside an obvious twin."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest

from integration.contract.entries import spd_entry
from integration.contract.sites import gateway_namespace, run
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.userspace.queues import MAX_QUEUES, Queues
from xfrmpy.datapath.userspace.tun import DEVICE, Tun
from xfrmpy.ipsec.spd import SpdEntry

pytestmark = pytest.mark.native

PREFIXES = (
    *("10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32", "10.2.0.0/15", "0.0.0.0/1"),
    *("fd01::/16", "fd01:1::/32", "fd01:1::1/128"),
)
ADDRESSES = (
    *("10.1.1.1", "10.1.2.2", "10.1.2.3", "10.1.2.4", "10.3.255.255", "10.4.0.1", "100.1.2.3"),
    *("172.16.0.1", "fd01:2::1", "fd01:1::2", "fd01:1::1", "fd02::1"),
)


class Site:
    """A device in a namespace that has all routes, and its queues."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self.others: list[Tun] = []
        self.queues = Queues(self.others.append, self.others.remove)
        self._policies: list[SpdEntry] = []
        self.open()

    def open(self) -> None:
        self.first = Tun.of_all_tunnels()
        self.queues.open(self.first)
        run("ip", "-n", self._namespace, "address", "add", "10.77.0.1/32", "dev", DEVICE)
        run("ip", "-n", self._namespace, "address", "add", "fd77::1/128", "dev", DEVICE, "nodad")
        for family in ("-4", "-6"):
            run("ip", "-n", self._namespace, family, "route", "add", "default", "dev", DEVICE)

    def lead(self, *prefixes: str, reqid: int) -> None:
        for prefix in prefixes:
            self._policies.append(policy(prefix, reqid))
            self.queues.lead(self._policies[-1])

    def forget(self, prefix: str, *, reqid: int) -> None:
        self._policies.remove(policy(prefix, reqid))
        self.queues.forget(policy(prefix, reqid))

    def close(self) -> None:
        self.queues.close()
        self.first.close()

    def queue_of(self, address: str) -> int:
        """By which queue a packet comes."""
        every = [self.first, *self.others]
        packed = ip_address(address).packed
        family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", (address, 9))
        while True:
            ready = select.select(every, [], [], 5)[0]
            assert ready, "no packet came"
            for each in ready:
                if packed in each.read()[0][:40]:  # Or it is one of the host's own.
                    return every.index(each)

    def reqid_of(self, address: str) -> int | None:
        """To which the longest prefix leads, the one put there last of several."""
        found = [each for each in self._policies if ip_address(address) in destination(each)]
        longest = max((destination(each).prefixlen for each in found), default=0)
        reqids = [each.template.reqid for each in found if destination(each).prefixlen == longest]  # type: ignore[union-attr]
        return reqids[-1] if reqids else None


def policy(prefix: str, reqid: int) -> SpdEntry:
    """Of one place for each reqid."""
    made = spd_entry()
    assert made.template is not None
    source = ip_network(f"192.0.2.{reqid}/32" if "." in prefix else f"2001:db8::{reqid:x}/128")
    selector = replace(made.selector, source=source, destination=ip_network(prefix))
    return replace(made, selector=selector, template=replace(made.template, reqid=reqid))


def destination(entry: SpdEntry) -> IPv4Network | IPv6Network:
    return entry.selector.destination


@pytest.fixture
def namespace() -> Iterator[str]:
    with gateway_namespace() as name:
        yield name


@pytest.fixture
def site(namespace: str) -> Iterator[Site]:
    with closing(Site(namespace)) as made:
        yield made


def assert_told_apart(site: Site) -> None:
    """Packets of one reqid come by one queue, and of another by another."""
    queues: dict[int, int] = {}
    for address in ADDRESSES:
        queue, reqid = site.queue_of(address), site.reqid_of(address)
        if reqid is None:
            assert queue == 0
        else:
            assert queues.setdefault(reqid, queue) == queue, address
    assert len({*queues.values()}) == len(queues) > 2


def test_the_longest_prefix_says_by_which_queue_a_packet_comes(site: Site) -> None:
    for reqid, prefix in enumerate(PREFIXES, 1):
        site.lead(prefix, reqid=reqid)
    assert_told_apart(site)


def test_what_is_forgotten_leads_nowhere_and_what_it_hid_is_found_again(site: Site) -> None:
    for reqid, prefix in enumerate(PREFIXES, 1):
        site.lead(prefix, reqid=reqid)
    site.lead("10.1.2.0/24", reqid=9)
    assert_told_apart(site)
    site.forget("10.1.2.0/24", reqid=9)
    assert_told_apart(site)
    site.forget("10.1.2.3/32", reqid=3)
    site.forget("fd01:1::/32", reqid=7)
    assert_told_apart(site)
    site.queues.clear()
    assert {site.queue_of(address) for address in ADDRESSES} == {0}


def test_one_tunnel_takes_one_queue_and_no_program(site: Site) -> None:
    site.lead("10.1.0.0/16", "fd01::/16", reqid=1)
    assert not site.others
    assert site.queue_of("10.1.2.3") == 0


def test_more_tunnels_than_queues_share_them_evenly(site: Site) -> None:
    for reqid in range(1, 2 * MAX_QUEUES + 1):
        site.lead(f"10.9.{reqid}.0/24", reqid=reqid)
    assert len(site.others) == MAX_QUEUES - 1
    found = [site.queue_of(f"10.9.{reqid}.1") for reqid in range(1, 2 * MAX_QUEUES + 1)]
    assert sorted(found) == sorted([*range(MAX_QUEUES)] * 2)
    for reqid in range(1, 2 * MAX_QUEUES + 1):
        site.forget(f"10.9.{reqid}.0/24", reqid=reqid)
    site.lead("10.1.0.0/16", reqid=1)
    assert site.queue_of("10.1.2.3") == 0
    assert len(site.others) == MAX_QUEUES - 1, "they are there for the next"


def test_another_device_is_given_the_same_queues(site: Site) -> None:
    """As when somebody has removed the one before."""
    for reqid, prefix in enumerate(PREFIXES, 1):
        site.lead(prefix, reqid=reqid)
    site.close()
    assert not site.others
    site.open()
    assert_told_apart(site)


def test_a_device_that_was_made_with_one_queue_has_one(namespace: str) -> None:
    run("ip", "-n", namespace, "tuntap", "add", DEVICE, "mode", "tun")
    with closing(Site(namespace)) as site:
        for reqid, prefix in enumerate(PREFIXES, 1):
            site.lead(prefix, reqid=reqid)
        assert not site.others
        assert {site.queue_of(address) for address in ADDRESSES} == {0}


def test_whoever_has_the_device_has_it_alone(namespace: str) -> None:
    """Though it may have several queues, nobody gets one of them unawares."""
    del namespace
    with closing(Tun.of_all_tunnels()), pytest.raises(DatapathError, match="another process"):
        Tun.of_all_tunnels()
