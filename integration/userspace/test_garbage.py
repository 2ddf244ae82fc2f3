"""Garbage at full rate, from every side, beside a tunnel that goes on carrying."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby, islice

import pytest

from integration.contract.entries import GCM
from integration.contract.sites import inside
from integration.lab.garbage import segments, send_false_esp, write_garbage
from integration.lab.network import unanswered
from integration.lab.process import eventually
from integration.userspace.laboratory import Laboratory, laboratory_in
from integration.userspace.place import ANY_WORKER_SOCKET, worker_of
from integration.userspace.test_receiving import send_at_once
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.esp.packet import IPV4_IN_ESP, IPV6_IN_ESP, OutboundSa
from xfrmpy.ipsec.sad import Direction

pytestmark = pytest.mark.native

SECONDS = 5.0
TOGETHER = 40
_NEXT_HEADER = {4: IPV4_IN_ESP, 6: IPV6_IN_ESP}


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def laboratory(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Laboratory]:
    """Of two workers, one has the SA, and hears of the garbage that the other comes upon."""
    with laboratory_in(tmp_path_factory.mktemp("lab"), request.param) as made:
        yield made


def workers(laboratory: Laboratory) -> set[int]:
    return {worker_of(path) for path in laboratory.directory.glob(f"*/{ANY_WORKER_SOCKET}")}


@contextmanager
def unharmed(laboratory: Laboratory) -> Iterator[Counter[str]]:
    """A tunnel that carries all the while. Afterwards what moon has dropped meanwhile, by reason.

    A ping may be lost where more came than there was room for, which somebody has counted.
    """
    alice, bob = laboratory.network.alice, laboratory.bob(4)
    before, alive = Counter(laboratory.moon.drops()), workers(laboratory)
    overflowed = _overflowed(laboratory)
    log = laboratory.directory / "ping.log"
    log.unlink(missing_ok=True)
    drops: Counter[str] = Counter()
    with alice.pinging(bob, log) as counts:
        yield drops
    drops.update(Counter(laboratory.moon.drops()) - before)
    sent, lost = counts
    print(f"{sent} pings, {lost} lost, {dict(drops)}")
    assert lost <= _overflowed(laboratory) - overflowed, unanswered(log)
    assert workers(laboratory) == alive
    assert drops["defect"] == 0


def _overflowed(laboratory: Laboratory) -> int:
    """What there was no room for at moon and sun: at the devices, and in the workers' sockets,
    those between them, too."""
    total = 0
    for host in (laboratory.network.moon, laboratory.network.sun):
        (link,) = json.loads(host.run("ip", "-s", "-j", "link", "show", DEVICE))
        total += link["stats64"]["tx"]["dropped"]
    for datapath in (laboratory.moon, laboratory.sun):
        drops = Counter(datapath.drops())
        total += drops["udp-overflow"] + drops["handed-overflow"]
    return total


def test_whatever_is_written_to_the_device(laboratory: Laboratory) -> None:
    laboratory.connect(GCM)
    network = laboratory.network
    ends = network.alice.inside_address(), laboratory.bob(4)
    with unharmed(laboratory) as drops:
        said = write_garbage(network.moon, DEVICE, *ends, SECONDS)
    print(said)
    assert said["taken"] > 1000
    assert drops["bad-offload"] > 0


def test_esp_that_proves_false(laboratory: Laboratory) -> None:
    pair = laboratory.connect(GCM)
    network = laboratory.network
    with unharmed(laboratory) as drops:
        sent = send_false_esp(network.internet, network.moon.outside[4], pair.back.spi, SECONDS)
    print(sent)
    assert sent > 10_000
    assert drops["not-authentic"] > 1000
    assert drops["too-short"] > 1000


def test_authentic_packets_with_garbage_inside(laboratory: Laboratory) -> None:
    """Of a peer that has gone mad, by an SA of its own, as many at once as are equally long."""
    pair = laboratory.connect(GCM)
    network = laboratory.network
    mad = replace(pair.back, spi=pair.back.spi ^ 0x100)
    laboratory.moon.add_sa(replace(mad, direction=Direction.IN))
    peer = OutboundSa(mad, os.urandom)
    inner = sorted(segments(laboratory.bob(4), network.alice.inside_address()), key=len)
    with unharmed(laboratory) as drops:
        sealed = (peer.seal(each, _NEXT_HEADER.get(each[0] >> 4, 99)) for each in inner)
        for _, alike in groupby(sealed, len):
            while burst := tuple(islice(alike, TOGETHER)):
                send_at_once(network, *burst)
        taken = laboratory.moon.usage(mad.id).packets
    assert taken > 1000
    assert {"not-ip", "outside-selectors"} <= set(drops)


def test_a_send_that_would_block_is_a_drop_and_counted(laboratory: Laboratory) -> None:
    """While nobody knows where the peer is, what is for it fills the socket's buffer."""
    laboratory.connect(GCM)
    network, bob = laboratory.network, laboratory.bob(4)
    network.moon.run("sh", "-c", "echo 10000000 >/proc/sys/net/ipv4/neigh/wan/unres_qlen_bytes")
    assert network.alice.ping(bob) == 0
    before, alive = laboratory.moon.drops(), workers(laboratory)
    with network.severed():
        network.moon.batch("neigh flush dev wan")
        with inside(network.alice.namespace):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            for _ in range(1000):
                sender.sendto(bytes(1300), (bob, 9))

        def counted() -> int:
            now = laboratory.moon.drops().get("udp-send-eagain", 0)
            return now - before.get("udp-send-eagain", 0)

        eventually("the count", counted)
    network.alice.await_answer(bob)
    assert workers(laboratory) == alive


def test_a_write_to_a_device_that_is_down_is_a_drop_and_counted(laboratory: Laboratory) -> None:
    laboratory.connect(GCM)
    network, alive = laboratory.network, workers(laboratory)
    before = laboratory.moon.drops().get("tun-write-eio", 0)
    network.moon.batch(f"link set {DEVICE} down")
    alice = network.alice.inside_address()
    assert network.bob.ping(alice) == 3
    eventually("the count", lambda: laboratory.moon.drops().get("tun-write-eio", 0) == before + 3)
    network.moon.batch(f"link set {DEVICE} up")
    laboratory.connect(GCM)
    assert network.bob.ping(alice) == 0
    assert workers(laboratory) == alive
