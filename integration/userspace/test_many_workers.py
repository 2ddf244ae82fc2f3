"""Several workers keep the contract as one does, and none of them has what is another's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from integration.contract.entries import sad_entry
from integration.contract.entries_in_force import DatapathContract
from integration.contract.sites import gateway_namespace
from integration.userspace.place import daemon_sockets, end_workers, open_here
from xfrmpy.datapath.userspace.client import UserspaceDatapath
from xfrmpy.datapath.userspace.process import WorkerProcess
from xfrmpy.datapath.userspace.shares import Share
from xfrmpy.datapath.userspace.workers import dump_of
from xfrmpy.ipsec.sad import USERSPACE_SPI_BIT, Direction, lane_of

pytestmark = pytest.mark.native

COUNT = 3


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
    return lambda: open_here(directory, COUNT)


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    with gateway_namespace() as name, daemon_sockets():
        yield name


def by_worker(directory: Path) -> list[list[int]]:
    """The SPIs of the SAs that each has."""
    (runtime,) = directory.iterdir()
    found = []
    for index in range(COUNT):
        worker = WorkerProcess.find(runtime, Share(index, COUNT))
        assert worker is not None
        found.append([entry.spi for entry in dump_of(worker).sad])
        worker.close()
    return found


class TestContract(DatapathContract):
    def test_each_worker_has_its_own(self, datapath: UserspaceDatapath, directory: Path) -> None:
        plain = sad_entry(USERSPACE_SPI_BIT)
        inbound = [
            replace(plain, direction=Direction.IN, spi=USERSPACE_SPI_BIT | 1000 + n, reqid=n + 1)
            for n in range(2 * COUNT)
        ]
        back = replace(
            plain, direction=Direction.OUT, source=plain.destination, destination=plain.source
        )
        outbound = [replace(back, spi=5000 + each.reqid, reqid=each.reqid) for each in inbound]
        datapath.add([*inbound, *outbound])
        found = by_worker(directory)
        assert Counter(map(len, found)) == {4: COUNT}
        for entry, peers in zip(inbound, outbound, strict=True):
            assert {entry.spi, peers.spi} <= {*found[lane_of(entry.spi, COUNT)]}
        told = datapath.seconds_idle([entry.id for entry in (*inbound, *outbound)])
        assert told == (None,) * len(told)
        assert {entry.spi for entry in datapath.dump().sad} == {s for each in found for s in each}
        datapath.remove_sa(outbound[0].id)
        assert sum(map(len, by_worker(directory))) == 4 * COUNT - 1

    def test_each_lets_packets_leave_by_its_own_resource(
        self, datapath: UserspaceDatapath, directory: Path
    ) -> None:
        """Whatever inbound SA of the reqid came last; a worker without one hands them over."""
        plain = sad_entry(USERSPACE_SPI_BIT)
        back = replace(
            plain, direction=Direction.OUT, source=plain.destination, destination=plain.source
        )
        resources = range(COUNT - 1)
        inbound = {
            lane: replace(plain, direction=Direction.IN, spi=spi, resource=lane)
            for spi in range(USERSPACE_SPI_BIT + 1000, USERSPACE_SPI_BIT + 1000 + COUNT)
            if (lane := lane_of(spi, COUNT)) in resources
        }
        outbound = [replace(back, spi=5000 + lane, resource=lane) for lane in resources]
        datapath.add([*inbound.values()])
        datapath.add(outbound)
        found = by_worker(directory)
        for lane, entry in enumerate(outbound):
            assert {entry.spi, inbound[lane].spi} <= {*found[lane]}
        newest = resources[-1]
        assert leads(datapath, back.reqid) == [*resources, newest]
        datapath.remove_sa(outbound[newest].id)
        left = newest - 1
        assert leads(datapath, back.reqid) == [*resources[:-1], left, left]


def leads(datapath: UserspaceDatapath, reqid: int) -> list[int]:
    """By which worker the packets of a reqid leave, of each that may read them."""
    return datapath._workers._leads[reqid]  # noqa: SLF001
