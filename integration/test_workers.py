"""Several workers of the userspace datapath: tunnels are spread over them, and none harms another.

strongSwan at the other end knows nothing of it.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import closing
from pathlib import Path
from threading import Timer

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.network import unanswered
from integration.lab.process import Background, eventually
from integration.lab.site import Peer, Site
from integration.lab.strongswan import StrongswanPeer
from integration.test_interfaces import drift
from integration.userspace.place import worker_of
from xfrmpy.datapath.userspace.process import WorkerProcess
from xfrmpy.datapath.userspace.requests import socket_name
from xfrmpy.datapath.userspace.shares import Share
from xfrmpy.datapath.userspace.workers import dump_of
from xfrmpy.ipsec.sad import lane_of

pytestmark = pytest.mark.native

COUNT = 2
MANY = ("--workers", str(COUNT))

STREAMS = 64
"""Of one datagram: as many as every buffer on the way has room for at once."""

SEND = """
import socket, sys
senders = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(int(sys.argv[2]))]
for sender in senders:
    sender.sendto(bytes(200), (sys.argv[1], 9999))
"""

RECEIVE = """
import socket, sys
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
receiver.bind((sys.argv[1], 9999))
print("listening", flush=True)
for number in range(int(sys.argv[2])):
    receiver.recv(2000)
print("all", flush=True)
"""


@pytest.fixture
def gateways(site: Site) -> tuple[XfrmpyGateway, StrongswanPeer]:
    """Two workers at moon, strongSwan at sun, and as many tunnels between them, up."""
    tunnels = [site.network.tunnel(number) for number in range(COUNT)]
    theirs = site.strongswan(site.network.sun, *(tunnel.mirrored() for tunnel in tunnels))
    ours = site.xfrmpy(site.network.moon, *tunnels, options=MANY)
    # One of them in either role.
    pairs: list[tuple[Peer, Peer]] = [(ours, theirs), (theirs, ours)]
    for number, pair in enumerate(pairs):
        site.connect(*pair, number)
    return ours, theirs


def lanes(gateway: XfrmpyGateway) -> list[int]:
    """Which worker each tunnel has, as the SPIs of its Child SAs say."""
    found = []
    for number in range(COUNT):
        spis = {int(child.spi_in, 16) for child in gateway.tunnel(number).children}
        (lane,) = {lane_of(spi, COUNT) for spi in spis}
        found.append(lane)
    return found


def loads(gateway: XfrmpyGateway) -> list[int]:
    """How many SAs each worker has."""
    found = []
    for index in range(COUNT):
        process = WorkerProcess.find(gateway.runtime, Share(index, COUNT))
        assert process is not None
        with closing(process):
            found.append(len(dump_of(process).sad))
    return found


def send_streams(site: Site) -> None:
    """Of so many streams that only go one way, each queue of the device gets some; all arrive."""
    bob = site.network.bob.inside_address()
    command = site.network.bob.command(sys.executable, "-c", RECEIVE, bob, str(STREAMS))
    receiver = Background(command, site.log)
    try:
        eventually("the receiver to listen", lambda: "listening" in receiver.output)
        with site.capture() as wire:
            site.network.alice.run(sys.executable, "-c", SEND, bob, str(STREAMS))
            eventually("every datagram", lambda: "all" in receiver.output)
    finally:
        receiver.stop()
        site.log.unlink()
    assert wire.kinds["clear"] == 0


def kill_worker(gateway: XfrmpyGateway, index: int, times: int) -> None:
    os.kill(worker_of(gateway.runtime / socket_name(index)), signal.SIGKILL)
    eventually("another worker", lambda: gateway.log.count("another goes on") == times)
    eventually("nothing to be amiss", lambda: not drift(gateway))


def test_tunnels_are_spread_and_stay_where_they_are(
    site: Site, gateways: tuple[XfrmpyGateway, StrongswanPeer]
) -> None:
    ours, theirs = gateways
    before = lanes(ours)
    assert sorted(before) == [0, 1]
    assert loads(ours) == [2, 2]
    for number in range(COUNT):
        site.assert_protected(number)
        ours.rekey(number)
        theirs.rekey_child_sa(number)
    eventually("the old SAs to go", lambda: loads(ours) == [2, 2])
    assert lanes(ours) == before
    for number in range(COUNT):
        site.assert_protected(number)
    site.transfer(20_000_000)


def test_what_the_kernel_gives_the_wrong_worker_is_handed_over(site: Site) -> None:
    """A single tunnel has no device of its own: its streams come by that of all workers."""
    tunnel = site.network.tunnel()
    theirs = site.strongswan(site.network.sun, tunnel.mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel, options=MANY)
    site.connect(ours, theirs)
    send_streams(site)
    assert ours.tunnel().children[0].packets_out >= STREAMS


def test_the_death_of_one_is_nothing_to_the_tunnel_of_the_other(
    site: Site, gateways: tuple[XfrmpyGateway, StrongswanPeer]
) -> None:
    ours, _ = gateways
    before, tunnel_of = ours.spis(), dict(zip(lanes(ours), range(COUNT), strict=True))
    for times, killed in enumerate((1, 0), start=1):
        other = site.network.bob.inside_address(tunnel_of[1 - killed])
        with site.network.alice.pinging(other, site.log):
            kill_worker(ours, killed, times)
        assert unanswered(site.log) == []
        site.log.unlink()
        for number in range(COUNT):
            site.assert_protected(number)
        assert loads(ours) == [2, 2]
    assert ours.spis() == before


def test_a_ping_that_is_late_is_not_lost(
    site: Site, gateways: tuple[XfrmpyGateway, StrongswanPeer]
) -> None:
    """What `pinging` counts, where a worker rests when the pings are to end."""
    ours, _ = gateways
    bob = site.network.bob.inside_address(lanes(ours).index(0))
    worker = worker_of(ours.runtime / socket_name(0))
    goes_on = Timer(0.5, os.kill, (worker, signal.SIGCONT))
    with site.network.alice.pinging(bob, site.log) as counts:
        os.kill(worker, signal.SIGSTOP)
        goes_on.start()
    goes_on.join()
    assert counts[1] == 0


def test_all_of_them_outlive_their_daemon(
    site: Site, gateways: tuple[XfrmpyGateway, StrongswanPeer]
) -> None:
    ours, _ = gateways
    before = ours.spis()
    bob = site.network.bob
    with (
        site.network.alice.pinging(bob.inside_address(0), site.log),
        site.network.alice.pinging(bob.inside_address(1), other := _other_log(site)),
    ):
        ours.crash()
        ours.start_again()
    assert [unanswered(log) for log in (site.log, other)] == [[], []]
    assert ours.spis() == before
    kill_worker(ours, 1, 1)
    for number in range(COUNT):
        site.assert_protected(number)
    assert ours.spis() == before


def test_another_number_of_workers_begins_with_new_child_sas(
    site: Site, gateways: tuple[XfrmpyGateway, StrongswanPeer]
) -> None:
    ours, _ = gateways
    ours.be_relieved()
    ours.start_again("--workers", "1")
    assert [path.name for path in ours.runtime.glob("worker-*.sock")] == [socket_name(0)]
    alice, bob = site.network.alice, site.network.bob
    for number in range(COUNT):
        alice.await_answer(bob.inside_address(number))


def _other_log(site: Site) -> Path:
    return site.directory / "other.log"
