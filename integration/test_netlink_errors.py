"""What the kernel refuses, at each step of an installation, and what is left of it then."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from integration.contract.entries import OUTER, REQID, SUITES, sad_entry, spd_entry
from integration.contract.sites import run
from xfrmpy.datapath.interface import DatapathError, NotAdded, Realm
from xfrmpy.datapath.kernel.datapath import KernelDatapath
from xfrmpy.datapath.routes import OUR_TABLE
from xfrmpy.ipsec.drift import Finding
from xfrmpy.ipsec.spd import SpdEntry

pytestmark = [pytest.mark.native, pytest.mark.vm]

MANY = 1200
"""More than the kernel is asked at a time, and more than is put in force together."""


@pytest.fixture
def datapath(gateway: str, datapath: KernelDatapath) -> Iterator[KernelDatapath]:
    """The same, and the policies that were made as those of others go, too."""
    yield datapath
    run("ip", "-n", gateway, "xfrm", "policy", "flush")


def policies(count: int) -> list[SpdEntry]:
    """Outbound ones, each to a network of its own."""
    plain = spd_entry()
    networks = (ip_network((0x0A090000 + (number << 8), 24)) for number in range(count))
    selectors = (replace(plain.selector, destination=network) for network in networks)
    return [replace(plain, selector=selector) for selector in selectors]


def lost(entry: SpdEntry) -> SpdEntry:
    """The same with a peer to whom there is no way."""
    assert entry.template is not None
    nowhere = ip_address("2001:db8:dead::1")
    return replace(entry, template=replace(entry.template, source=OUTER[6][0], destination=nowhere))


@contextmanager
def cramped() -> Iterator[None]:
    """Every netlink socket of this process with next to no room for what comes."""
    sockets = [*_netlink_sockets()]
    try:
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        yield
    finally:
        for each in sockets:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            each.close()


def _netlink_sockets() -> Iterator[socket.socket]:
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            copy = socket.socket(fileno=os.dup(descriptor))
        except OSError:  # no socket, or the descriptor of the listing itself
            continue
        if copy.family == socket.AF_NETLINK:
            yield copy
        else:
            copy.close()


def put_in_theirs(gateway: str, entry: SpdEntry) -> None:
    selector = entry.selector
    which = ("src", str(selector.source), "dst", str(selector.destination), "dir", "out")
    run("ip", "-n", gateway, "xfrm", "policy", "add", *which, "priority", "5")


def assert_in_force(gateway: str, datapath: KernelDatapath, expected: list[SpdEntry]) -> None:
    """These and no others, with their routes."""
    assert set(datapath.dump().spd) == set(expected)
    show = ("ip", "-n", gateway, "route", "show", "table", "all")
    routes = [line for line in run(*show).splitlines() if f"table {OUR_TABLE} " in line]
    assert {line.split()[0] for line in routes} == {
        str(entry.selector.destination) for entry in expected
    }


@pytest.mark.parametrize("place", range(5))
def test_a_policy_of_others_in_our_place_ends_it_there(
    gateway: str, datapath: KernelDatapath, place: int
) -> None:
    wanted = policies(5)
    put_in_theirs(gateway, wanted[place])
    with pytest.raises(NotAdded, match="another program has a policy") as refused:
        datapath.add(wanted)
    assert (refused.value.done, refused.value.errno) == (place, errno.ENOENT)
    assert_in_force(gateway, datapath, wanted[:place])
    assert "priority 5" in run("ip", "-n", gateway, "xfrm", "policy")


@pytest.mark.parametrize("place", range(5))
def test_a_policy_that_no_way_leads_to_ends_it_there(
    gateway: str, datapath: KernelDatapath, place: int
) -> None:
    wanted = policies(5)
    wanted[place] = lost(wanted[place])
    with pytest.raises(NotAdded) as refused:
        datapath.add(wanted)
    assert (refused.value.done, refused.value.errno) == (place, errno.ENETUNREACH)
    assert_in_force(gateway, datapath, wanted[:place])


def test_the_first_of_two_refusals_counts(gateway: str, datapath: KernelDatapath) -> None:
    """Though the kernel tells of the other before."""
    wanted = policies(5)
    wanted[1] = lost(wanted[1])
    put_in_theirs(gateway, wanted[3])
    with pytest.raises(NotAdded, match="unreachable") as refused:
        datapath.add(wanted)
    assert refused.value.done == 1
    assert_in_force(gateway, datapath, wanted[:1])


def test_an_sa_that_the_kernel_has_no_algorithm_for_ends_it_there(
    gateway: str, datapath: KernelDatapath
) -> None:
    first, second = policies(2)
    sa = sad_entry(0, suite=SUITES["aes128gcm16"])
    with pytest.raises(NotAdded) as refused:
        datapath.add([first, sa, sa, second])  # The second is there already, if the first can be.
    if refused.value.errno == errno.EEXIST:
        datapath.remove_sa(sa.id)
        assert refused.value.done == 2
    else:
        assert refused.value.done == 1
        assert refused.value.errno in (errno.ENOSYS, errno.EPROTONOSUPPORT)
    assert_in_force(gateway, datapath, [first])


@pytest.mark.parametrize("place", [99, 100, 499, 500, MANY - 1])
def test_of_very_many_all_before_the_refused_one_are_in_force(
    gateway: str, datapath: KernelDatapath, place: int
) -> None:
    wanted = policies(MANY)
    put_in_theirs(gateway, wanted[place])
    with pytest.raises(NotAdded) as refused:
        datapath.add(wanted)
    assert refused.value.done == place
    assert_in_force(gateway, datapath, wanted[:place])
    assert datapath.remove_ours() == place
    assert "priority 5" in run("ip", "-n", gateway, "xfrm", "policy")


def test_our_own_policies_of_before_are_replaced_in_their_places(
    gateway: str, datapath: KernelDatapath
) -> None:
    wanted = policies(3)
    assert wanted[1].template is not None
    old = replace(wanted[1], template=replace(wanted[1].template, reqid=REQID + 1))
    datapath.add([old])
    datapath.add(wanted)
    assert_in_force(gateway, datapath, wanted)


def test_when_answers_are_lost_nothing_is_left_of_it(
    gateway: str, datapath: KernelDatapath
) -> None:
    """ENOBUFS on the socket of the requests: nobody knows what the kernel has done."""
    wanted = policies(60)
    for entry in wanted[20:]:
        put_in_theirs(gateway, entry)
    with cramped(), pytest.raises(NotAdded) as refused:
        datapath.add(wanted)
    assert (refused.value.done, refused.value.errno) == (0, errno.ENOBUFS)
    assert_in_force(gateway, datapath, [])
    assert run("ip", "-n", gateway, "xfrm", "policy").count("priority 5") == 40


def test_when_news_of_others_doings_are_lost_everything_is_looked_at(
    gateway: str, datapath: KernelDatapath
) -> None:
    """ENOBUFS on the sockets of the watch."""
    wanted = policies(40)
    datapath.add(wanted)
    datapath.read_changes()
    with cramped():
        run("ip", "-n", gateway, "xfrm", "policy", "flush")
        run("ip", "-n", gateway, "route", "flush", "table", str(OUR_TABLE))
        assert datapath.read_changes() == Realm.EVERYTHING
        assert datapath.read_changes() == Realm.NOTHING
    assert datapath.dump().spd == ()
    amiss = datapath.find_amiss()
    assert {each.finding for each in amiss} == {Finding.ROUTE_MISSING}
    assert len(amiss) == 40


def test_what_others_have_removed_meanwhile_is_no_error_to_remove(
    gateway: str, datapath: KernelDatapath
) -> None:
    wanted = policies(2)
    datapath.add(wanted)
    run("ip", "-n", gateway, "xfrm", "policy", "flush")
    run("ip", "-n", gateway, "route", "flush", "table", str(OUR_TABLE))
    datapath.remove_policy(wanted[0])
    assert datapath.remove_ours() == 0


def test_a_device_that_is_gone_is_an_error_with_its_name(
    gateway: str, datapath: KernelDatapath
) -> None:
    run("ip", "-n", gateway, "link", "set", "wan", "down")
    try:
        with pytest.raises(DatapathError, match="find a route"):
            datapath.add(policies(3))
    finally:
        run("ip", "-n", gateway, "link", "set", "wan", "up")
    assert_in_force(gateway, datapath, [])
