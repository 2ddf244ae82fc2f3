"""By which device the kernel gives a worker a packet, beside an obvious twin."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from integration.contract.entries import sad_entry, spd_entry
from integration.contract.sites import gateway_namespace, run
from integration.lab.process import eventually
from integration.userspace.place import ANY_WORKER_SOCKET, daemon_sockets, open_here, worker_of
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.userspace.queues import MAX_QUEUES, TABLE
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.ipsec.drift import Finding
from xfrmpy.ipsec.sad import USERSPACE_SPI_BIT, Direction, SadEntry
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


COMMON = "the common device"
STREAMS = 64


class Site:
    """A datapath in a namespace that has all routes into its device."""

    def __init__(self, namespace: str, directory: Path, workers: int) -> None:
        self.namespace = namespace
        self.workers = workers
        self.directory = directory
        self._policies: list[SpdEntry] = []
        self._sas: dict[int, SadEntry] = {}
        self.datapath = open_here(directory, workers)
        self._lead_all_to_the_device()

    def _lead_all_to_the_device(self) -> None:
        for family in ("-4", "-6"):
            run("ip", "-n", self.namespace, family, "route", "replace", "default", "dev", DEVICE)

    def replace_device(self) -> None:
        before = self.link(DEVICE)
        run("ip", "-n", self.namespace, "link", "del", DEVICE)
        eventually("another device", lambda: self.link(DEVICE) not in (None, before))
        self._lead_all_to_the_device()

    def link(self, name: str) -> int | None:
        """The number of a device."""
        return next((i for i, each in self._links() if each["ifname"] == name), None)

    def _links(self) -> list[tuple[int, Any]]:
        links = json.loads(run("ip", "-n", self.namespace, "-s", "-j", "link"))
        return [(each["ifindex"], each) for each in links]

    def lead(self, *prefixes: str, reqid: int) -> None:
        """Each reqid has its SA in the worker after that of the one before."""
        if reqid not in self._sas:
            self._sas[reqid] = sa = outbound(reqid)
            inbound = replace(sa, direction=Direction.IN, spi=USERSPACE_SPI_BIT | reqid)
            self.datapath.add([inbound, sa])
        added = [policy(prefix, reqid) for prefix in prefixes]
        self._policies += added
        self.datapath.add(added)

    def forget(self, prefix: str, *, reqid: int) -> None:
        self._policies.remove(policy(prefix, reqid))
        self.datapath.remove_policy(policy(prefix, reqid))

    def clear(self) -> None:
        self._policies.clear()
        self._sas.clear()
        self.datapath.remove_ours()

    def succeed(self) -> None:
        """Another daemon goes on."""
        self.datapath.close()
        self.datapath = open_here(self.directory, self.workers)

    def begin_anew(self) -> None:
        """With other workers, as the daemon does it."""
        self.datapath.revive()
        self._lead_all_to_the_device()
        self.datapath.add([*self._sas.values()])
        self.datapath.add(self._policies)

    def close(self) -> None:
        self.datapath.stop()

    @property
    def queues(self) -> list[str]:
        """The devices behind the common one."""
        return [each["ifname"] for _, each in self._links() if each["ifname"].startswith("xfrmpy-")]

    def queue_of(self, address: str) -> str:
        """By which device a packet comes to a worker."""
        before = self._read()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", (address, 9))
        grown: list[str] = []

        def has_come() -> bool:
            now = self._read()
            grown[:] = [name for name, count in now.items() if count > before.get(name, 0)]
            return bool(grown)

        eventually("the packet to be read", has_come)
        (name,) = grown
        return COMMON if name == DEVICE else name

    def _read(self) -> dict[str, int]:
        """How many packets were read from each device."""
        return {
            each["ifname"]: each["stats64"]["tx"]["packets"]
            for _, each in self._links()
            if each["ifname"].startswith("xfrmpy")
        }

    def reqid_of(self, address: str) -> int | None:
        """To which the longest prefix leads, the one put there last of several."""
        found = [each for each in self._policies if ip_address(address) in destination(each)]
        longest = max((destination(each).prefixlen for each in found), default=0)
        reqids = [each.template.reqid for each in found if destination(each).prefixlen == longest]  # type: ignore[union-attr]
        return reqids[-1] if reqids else None


def outbound(reqid: int) -> SadEntry:
    inbound = sad_entry(USERSPACE_SPI_BIT)
    back = replace(inbound, source=inbound.destination, destination=inbound.source)
    return replace(back, direction=Direction.OUT, spi=5000 + reqid, reqid=reqid)


def policy(prefix: str, reqid: int) -> SpdEntry:
    """Of one place for each reqid."""
    made = spd_entry()
    assert made.template is not None
    source = ip_network(f"192.0.2.{reqid}/32" if "." in prefix else f"2001:db8::{reqid:x}/128")
    selector = replace(made.selector, source=source, destination=ip_network(prefix))
    return replace(made, selector=selector, template=replace(made.template, reqid=reqid))


def destination(entry: SpdEntry) -> IPv4Network | IPv6Network:
    return entry.selector.destination


@contextmanager
def routed_namespace() -> Iterator[str]:
    with gateway_namespace() as name, daemon_sockets():
        for address in ("10.77.0.1/32", "fd77::1/128", "192.0.2.1/32"):
            run("ip", "-n", name, "address", "add", address, "dev", "lo", "nodad")
        yield name


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two"])
def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("run")
    with routed_namespace() as name, closing(Site(name, directory, request.param)) as made:
        yield made


@pytest.fixture
def site(opened: Site) -> Iterator[Site]:
    yield opened
    opened.clear()


def assert_told_apart(site: Site) -> None:
    """Packets of one reqid come by one device, and of another by another."""
    queues: dict[int, str] = {}
    for address in ADDRESSES:
        queue, reqid = site.queue_of(address), site.reqid_of(address)
        if reqid is None:
            assert queue == COMMON
        else:
            assert queues.setdefault(reqid, queue) == queue, address
    assert len({*queues.values()}) == len(queues) > 2
    assert COMMON not in queues.values()
    assert "handed" not in "".join(site.datapath.drops())


def assert_together(site: Site) -> None:
    assert {site.queue_of(address) for address in ADDRESSES} == {COMMON}
    assert site.queues == []


def lead_all(site: Site) -> None:
    for reqid, prefix in enumerate(PREFIXES, 1):
        site.lead(prefix, reqid=reqid)


def test_the_longest_prefix_says_by_which_queue_a_packet_comes(site: Site) -> None:
    lead_all(site)
    assert_told_apart(site)


def test_what_is_forgotten_leads_nowhere_and_what_it_hid_is_found_again(site: Site) -> None:
    lead_all(site)
    site.forget("10.1.2.0/24", reqid=2)
    site.lead("10.1.2.0/24", reqid=9)
    assert_told_apart(site)
    site.forget("10.1.2.0/24", reqid=9)
    assert_told_apart(site)
    site.forget("10.1.2.3/32", reqid=3)
    site.forget("fd01:1::/32", reqid=7)
    assert_told_apart(site)
    site.clear()
    assert_together(site)


def test_what_comes_back_after_all_was_cleared_is_told_apart_again(site: Site) -> None:
    """As when a daemon takes everything out of force, and puts it in force again."""
    for _ in range(2):
        lead_all(site)
        assert_told_apart(site)
        site.clear()
        assert_together(site)


def test_one_tunnel_takes_one_queue_and_no_rules(site: Site) -> None:
    site.lead("10.1.0.0/16", "fd01::/16", reqid=1)
    assert site.queues == []
    assert site.queue_of("10.1.2.3") == COMMON
    assert TABLE.name not in run("ip", "netns", "exec", site.namespace, "nft", "list", "tables")


def test_more_tunnels_than_queues_have_one_together(site: Site) -> None:
    for reqid in range(1, MAX_QUEUES + 3):
        site.lead(f"10.9.{reqid}.0/24", reqid=reqid)
    assert len(site.queues) == MAX_QUEUES
    assert site.queue_of("10.9.1.1") not in (COMMON, site.queue_of(f"10.9.{MAX_QUEUES}.1"))
    left = [site.queue_of(f"10.9.{MAX_QUEUES + more}.1") for more in (1, 2)]
    assert left == [COMMON, COMMON]
    site.forget("10.9.1.0/24", reqid=1)
    site.lead("10.9.99.0/24", reqid=99)
    assert site.queue_of("10.9.99.1") != COMMON, "it has the place that was left"


@pytest.mark.parametrize("opened", [2], indirect=True, ids=["two"])
def test_a_tunnel_with_an_sa_in_each_worker_has_a_queue_in_each(site: Site) -> None:
    """Its streams are spread by the kernel, and each leaves by the SA of the worker that has it."""
    site.lead("10.2.0.0/16", reqid=2)
    sas = [replace(outbound(1), spi=6000 + lane, resource=lane) for lane in range(2)]
    site.datapath.add([*sas, policy("10.1.0.0/16", 1)])
    for _ in range(STREAMS):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("192.0.2.1", 0))  # As the policy has it.
            sender.sendto(b"", ("10.1.1.1", 9))
    eventually("them all", lambda: sum(packets(site, sas)) == STREAMS)
    assert min(packets(site, sas)) > 0


def packets(site: Site, sas: list[SadEntry]) -> list[int]:
    return [site.datapath.usage(sa.id).packets for sa in sas]


def test_the_next_daemon_goes_on_with_them(site: Site) -> None:
    lead_all(site)
    before = [(name, site.link(name)) for name in site.queues]
    site.succeed()
    assert [(name, site.link(name)) for name in site.queues] == before
    assert_told_apart(site)


@pytest.mark.parametrize(
    "command",
    [
        ("ip", "link", "del", f"xfrmpy-{1:x}"),
        ("ip", "link", "set", f"xfrmpy-{1:x}", "down"),
        ("ip", "link", "set", f"xfrmpy-{1:x}", "name", "other"),
        ("nft", "flush", "ruleset"),
        ("nft", "delete", "table", "netdev", TABLE.name),
    ],
    ids=" ".join,
)
def test_what_others_do_to_them_is_found_and_mended(site: Site, command: tuple[str, ...]) -> None:
    lead_all(site)
    assert Finding.QUEUES_CHANGED not in findings(site)
    if command[2:4] == ("set", "xfrmpy-1") and "name" in command:
        run("ip", "-n", site.namespace, "link", "set", "xfrmpy-1", "down")
    run("ip", "netns", "exec", site.namespace, *command)
    eventually("it to be found", lambda: Finding.QUEUES_CHANGED in mended(site))
    eventually("nothing to be amiss", lambda: not mended(site))
    assert_told_apart(site)


def test_another_common_device_is_given_the_same_queues(site: Site) -> None:
    lead_all(site)
    site.replace_device()
    eventually("nothing to be amiss", lambda: not mended(site))
    assert_told_apart(site)


def test_so_are_other_workers(site: Site) -> None:
    lead_all(site)
    for path in site.directory.glob(f"*/{ANY_WORKER_SOCKET}"):
        worker = worker_of(path)
        os.kill(worker, signal.SIGKILL)
        os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
    site.begin_anew()
    assert_told_apart(site)


def findings(site: Site) -> list[Finding]:
    return [each.finding for each in site.datapath.find_amiss()]


def mended(site: Site) -> list[Finding]:
    """What was found, after what the kernel told was heard."""
    site.datapath.read_changes()
    found = site.datapath.find_amiss()
    for amiss in found:
        with suppress(DatapathError):
            site.datapath.mend(amiss)
    return [each.finding for each in found]
