"""The userspace datapath keeps the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from integration.contract.compression import CompressionContract
from integration.contract.default_policy import DefaultContract
from integration.contract.entries import GCM, OUTER, REQID, sad_entry
from integration.contract.entries_in_force import DatapathContract
from integration.contract.hostile import HostileContract
from integration.contract.interfaces import InterfaceContract
from integration.contract.selecting import SelectorContract
from integration.contract.sites import (
    Site,
    gateway_namespace,
    inside,
    install_pair,
    make_pair,
    run,
    two_sites,
)
from integration.contract.succession import SuccessionContract
from integration.contract.traffic import TrafficContract
from integration.contract.transport import TransportContract
from integration.contract.watching import WatchContract, await_calm, findings, is_told
from integration.lab.process import eventually
from integration.userspace.laboratory import CBC
from integration.userspace.place import (
    WORKER_SOCKET,
    daemon_sockets,
    end_workers,
    largest_inner,
    open_here,
    our_routes,
    worker_of,
)
from xfrmpy.datapath.interface import DatapathError, MappingChanged, Realm
from xfrmpy.datapath.userspace.client import UserspaceDatapath
from xfrmpy.datapath.userspace.guard import TABLE
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.ipsec.addresses import IKE_NATT_PORT, SocketAddress
from xfrmpy.ipsec.drift import Finding
from xfrmpy.ipsec.sad import USERSPACE_SPI_BIT, Direction, UdpEncapsulation

pytestmark = pytest.mark.native


@pytest.fixture(scope="module")
def spi_bits() -> int:
    return USERSPACE_SPI_BIT


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("run")
    yield path
    end_workers(path)


@pytest.fixture(scope="module")
def open_datapath(directory: Path) -> Callable[[], UserspaceDatapath]:
    return lambda: open_here(directory)


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    with gateway_namespace() as name, daemon_sockets():
        yield name


@pytest.fixture(scope="module")
def sites(open_datapath: Callable[[], UserspaceDatapath]) -> Iterator[tuple[Site, Site]]:
    with ExitStack() as stack:

        def open_with_sockets() -> UserspaceDatapath:
            stack.enter_context(daemon_sockets())
            return open_datapath()

        yield stack.enter_context(two_sites(open_with_sockets))


class TestContract(DatapathContract):
    def test_more_entries_than_go_into_a_packet_are_dumped(
        self, datapath: UserspaceDatapath
    ) -> None:
        plain = sad_entry(USERSPACE_SPI_BIT)
        entries = {replace(plain, spi=USERSPACE_SPI_BIT | n) for n in range(1000, 1700)}
        for entry in entries:
            datapath.add_sa(entry)
        assert set(datapath.dump().sad) == entries
        assert datapath.remove_ours() == len(entries)


class TestTransport(TransportContract):
    pass


class TestCompression(CompressionContract):
    pass


class TestSuccession(SuccessionContract):
    pass


class TestInterfaces(InterfaceContract):
    pass


class TestDefault(DefaultContract):
    pass


class TestWatching(WatchContract):
    @pytest.mark.parametrize(
        ("command", "finding"),
        [
            (("ip", "link", "set", DEVICE, "down"), Finding.DEVICE_CHANGED),
            (("ip", "link", "set", DEVICE, "mtu", "1400"), Finding.DEVICE_CHANGED),
            (("nft", "delete", "table", "inet", TABLE.name), Finding.GUARD_CHANGED),
            (("nft", "flush", "chain", "inet", TABLE.name, "in"), Finding.GUARD_CHANGED),
            (("nft", "flush", "ruleset"), Finding.GUARD_CHANGED),
        ],
        ids=str,
    )
    def test_its_device_and_its_guard_are_watched_too(
        self,
        gateway: str,
        watching: UserspaceDatapath,
        command: tuple[str, ...],
        finding: Finding,
    ) -> None:
        there = ("nft", "list", "table", "inet", TABLE.name), ("ip", "-br", "link", "show", DEVICE)
        before = [run("ip", "netns", "exec", gateway, *each) for each in there]
        run("ip", "netns", "exec", gateway, *command)
        assert is_told(watching)
        assert watching.read_changes() is Realm.WAYS
        assert finding in findings(watching)
        for amiss in watching.find_amiss():
            watching.mend(amiss)
        assert findings(watching) == []
        assert [run("ip", "netns", "exec", gateway, *each) for each in there] == before

    def test_another_table_of_nf_tables_is_none_of_its_business(
        self, gateway: str, watching: UserspaceDatapath
    ) -> None:
        await_calm(watching)
        for verb in ("add", "delete"):
            run("ip", "netns", "exec", gateway, "nft", verb, "table", "inet", "theirs")
        assert watching.read_changes() is Realm.NOTHING

    def test_a_device_that_was_removed_is_made_again_by_the_worker(
        self, gateway: str, watching: UserspaceDatapath
    ) -> None:
        run("ip", "-n", gateway, "link", "del", DEVICE)
        eventually("another device", lambda: Finding.DEVICE_MISSING not in findings(watching))
        assert Realm.WAYS in watching.read_changes()
        assert findings(watching) == [Finding.ROUTE_MISSING]
        for amiss in watching.find_amiss():
            watching.mend(amiss)
        assert findings(watching) == []

    def test_a_narrower_path_to_the_peer_narrows_the_route(
        self, gateway: str, watching: UserspaceDatapath
    ) -> None:
        ends = dict(zip(("source", "destination"), OUTER[4], strict=True))
        outbound = sad_entry(USERSPACE_SPI_BIT, direction=Direction.OUT, spi=0x7654321, **ends)
        watching.add_sa(outbound)
        for mtu in (1400, 1500):
            run("ip", "-n", gateway, "link", "set", "wan", "mtu", str(mtu))
            assert is_told(watching)
            (amiss,) = watching.find_amiss()
            assert amiss.finding is Finding.PATH_CHANGED
            watching.mend(amiss)
            assert findings(watching) == []
            assert f"mtu {largest_inner(GCM, 4, mtu)}" in our_routes(gateway)
            watching.read_changes()

    def test_a_path_that_is_gone_is_found_once_and_again_when_it_is_back(
        self, gateway: str, watching: UserspaceDatapath
    ) -> None:
        ends = dict(zip(("source", "destination"), OUTER[4], strict=True))
        watching.add_sa(
            sad_entry(USERSPACE_SPI_BIT, direction=Direction.OUT, spi=0x7654321, **ends)
        )
        address = (f"{OUTER[4][0]}/24", "dev", "wan")
        run("ip", "-n", gateway, "address", "del", *address)
        try:
            (amiss,) = watching.find_amiss()
            assert amiss.subject == OUTER[4]
            with pytest.raises(DatapathError, match="no address of this host"):
                watching.mend(amiss)
            assert findings(watching) == []
        finally:
            run("ip", "-n", gateway, "address", "add", *address)
        assert findings(watching) == [Finding.PATH_CHANGED]
        watching.mend(amiss)
        assert findings(watching) == []


class TestSelectors(SelectorContract):
    pass


class TestHostile(HostileContract):
    pass


class TestTraffic(TrafficContract):
    def test_a_peer_that_moved_is_told(self, sites: tuple[Site, Site], spi_bits: int) -> None:
        pair = install_pair(sites, GCM, spi_bits=spi_bits, encapsulated=True)
        inbound = replace(pair.forth, direction=Direction.IN)
        before = replace(inbound, encapsulation=UdpEncapsulation(40_001, IKE_NATT_PORT))
        sites[1].datapath.update_sa(before)
        assert sites[0].ping(4)
        change = sites[1].wait_for(MappingChanged)
        assert change == MappingChanged(
            sa=pair.forth.id,
            reqid=REQID,
            old=SocketAddress(OUTER[4][0], 40_001),
            new=SocketAddress(OUTER[4][0], IKE_NATT_PORT),
        )
        sites[1].datapath.update_sa(inbound)
        assert sites[1].waiting == [], "once for three packets"

    def test_a_rekey_to_another_suite_changes_the_inner_mtu(
        self, sites: tuple[Site, Site], spi_bits: int
    ) -> None:
        install_pair(sites, GCM, spi_bits=spi_bits, encapsulated=True)
        assert f"mtu {largest_inner(GCM, 4)}" in our_routes(sites[0].namespace)
        make_pair(CBC, spi_bits=spi_bits, encapsulated=True, serial=1).add_to(sites[0])
        assert f"mtu {largest_inner(CBC, 4)}" in our_routes(sites[0].namespace)

    def test_each_namespace_has_a_worker_and_a_device_and_no_room_for_another(
        self, sites: tuple[Site, Site], directory: Path, tmp_path: Path
    ) -> None:
        workers = {worker_of(path) for path in directory.glob(f"*/{WORKER_SOCKET}")}
        assert len(workers) == len(list(directory.iterdir())) >= 2
        for site in sites:
            assert DEVICE in run("ip", "-n", site.namespace, "link")
            with inside(site.namespace), pytest.raises(DatapathError, match="another process"):
                UserspaceDatapath.start(tmp_path)
