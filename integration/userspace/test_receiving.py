"""What the kernel hands to a worker at once, as a sender has sent it at once."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from integration.contract.sites import inside, run
from integration.lab.network import Network
from integration.lab.process import eventually
from integration.userspace.laboratory import Pair, fill, udp_packet
from integration.userspace.place import (
    WORKER_SOCKET,
    WORKERS,
    daemon_sockets,
    open_here,
    worker_of,
)
from tests.datapath.userspace.super_packets import Stream
from xfrmpy.datapath.userspace.client import UserspaceDatapath
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.esp.packet import IPV4_IN_ESP, OutboundSa
from xfrmpy.ipsec.addresses import IKE_NATT_PORT
from xfrmpy.ipsec.sad import USERSPACE_SPI_BIT, Direction

pytestmark = pytest.mark.native

UDP_SEGMENT = 103
IKE = bytes(4) + b"a message of the daemon's"


@pytest.fixture
def daemon(network: Network) -> Iterator[dict[int, socket.socket]]:
    """This thread in moon's namespace, and the sockets of a daemon there."""
    with inside(network.moon.namespace), daemon_sockets() as sockets:
        for each in sockets.values():
            each.settimeout(5)
        yield sockets


@pytest.fixture
def datapath(daemon: dict[int, socket.socket], tmp_path: Path) -> Iterator[UserspaceDatapath]:
    del daemon
    opened = open_here(tmp_path)
    yield opened
    opened.stop()


def send_at_once(network: Network, *datagrams: bytes, version: int = 4) -> tuple[str, int]:
    """All in one buffer, of the first one's size each, but the last; returns where from."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    with inside(network.internet.namespace):
        sender = socket.socket(family, socket.SOCK_DGRAM)
    with sender:
        sender.setsockopt(socket.SOL_UDP, UDP_SEGMENT, len(datagrams[0]))
        sender.connect((network.moon.outside[version], IKE_NATT_PORT))
        sender.send(b"".join(datagrams))
        where: tuple[str, int] = sender.getsockname()[:2]
    return where


def peer_of(pair: Pair) -> OutboundSa:
    return OutboundSa(replace(pair.back, direction=Direction.OUT), os.urandom)


def received_by_device(namespace: str) -> tuple[int, int]:
    """Packets and octets that the host has taken from it."""
    (link,) = json.loads(run("ip", "-n", namespace, "-s", "-j", "link", "show", DEVICE))
    counts = link["stats64"]["rx"]
    return counts["packets"], counts["bytes"]


@pytest.mark.parametrize("version", [4, 6])
def test_a_message_to_the_daemon_amid_packets_reaches_it_from_its_peer(
    network: Network, daemon: dict[int, socket.socket], datapath: UserspaceDatapath, version: int
) -> None:
    pair = fill(network, datapath)
    inner = udp_packet(network.bob.inside_address(), network.alice.inside_address())
    sender = peer_of(pair)
    packets = [sender.seal(inner, IPV4_IN_ESP) for _ in range(3)]
    peer = send_at_once(network, *packets, IKE, version=version)
    message, address = daemon[version].recvfrom(1000)
    assert message == IKE
    assert address[:2] == peer
    assert datapath.usage(pair.back.id).packets == 3


def test_packets_of_several_sas_that_came_at_once_are_told_apart(
    network: Network, daemon: dict[int, socket.socket], datapath: UserspaceDatapath
) -> None:
    del daemon
    pair = fill(network, datapath)
    other = replace(pair.back, spi=USERSPACE_SPI_BIT | 0x77)
    datapath.add_sa(replace(other, direction=Direction.IN))
    strange = replace(other, spi=USERSPACE_SPI_BIT | 0x78)
    inner = udp_packet(network.bob.inside_address(), network.alice.inside_address())
    senders = [OutboundSa(each, os.urandom) for each in (pair.back, other, strange)]
    send_at_once(
        network, *(sender.seal(inner, IPV4_IN_ESP) for _ in range(5) for sender in senders)
    )
    for entry in (pair.back, other):
        eventually("the packets", lambda: datapath.usage(entry.id).packets == 5)  # noqa: B023
    assert datapath.drops()["unknown-spi"] == 5


def test_a_burst_of_a_stream_reaches_the_host_as_one_packet(
    network: Network, daemon: dict[int, socket.socket], datapath: UserspaceDatapath
) -> None:
    del daemon
    pair = fill(network, datapath)
    stream = Stream(
        payload=bytes(40_000),
        addresses=(network.bob.inside_address(), network.alice.inside_address()),
    )
    sender = peer_of(pair)
    send_at_once(network, *(sender.seal(each, IPV4_IN_ESP) for each in stream.packets()))
    eventually("the packets", lambda: datapath.usage(pair.back.id).packets == 40)
    namespace = network.moon.namespace
    eventually("them to be written", lambda: received_by_device(namespace) == (1, 40_040))


def test_what_comes_faster_than_it_is_opened_is_counted(
    network: Network, daemon: dict[int, socket.socket], datapath: UserspaceDatapath, tmp_path: Path
) -> None:
    """Nothing waits for longer than its worth: the socket takes a few milliseconds' worth."""
    del daemon
    pair = fill(network, datapath)
    sender = peer_of(pair)
    inner = Stream(is_tcp=False, payload=bytes(1372), mss=1372).packet()
    burst = [sender.seal(inner, IPV4_IN_ESP) for _ in range(40)]
    (path,) = tmp_path.glob(f"*/{WORKER_SOCKET}")
    worker = worker_of(path)
    os.kill(worker, signal.SIGSTOP)
    try:
        for _ in range(100):
            send_at_once(network, *burst)
    finally:
        os.kill(worker, signal.SIGCONT)

    def counted() -> int:
        send_at_once(network, *burst)  # The count comes with what finds room again.
        return datapath.drops().get("udp-overflow", 0)

    eventually("the count", counted)
    assert datapath.drops()["udp-overflow"] > 50


@pytest.mark.skipif(WORKERS > 1, reason="the first of several workers counts as the daemon then")
def test_a_message_to_a_daemon_that_is_not_there_goes_round_once(
    network: Network, tmp_path: Path
) -> None:
    """Nobody is before the worker on the port then, and what it passes on comes back to it."""
    with inside(network.moon.namespace):
        datapath = open_here(tmp_path)
        pair = fill(network, datapath)
        sender = peer_of(pair)
        inner = udp_packet(network.bob.inside_address(), network.alice.inside_address())
        send_at_once(network, sender.seal(inner, IPV4_IN_ESP), IKE)
        eventually("the packet", lambda: datapath.usage(pair.back.id).packets == 1)
        eventually("the message", lambda: datapath.drops().get("unknown-spi"))
        send_at_once(network, sender.seal(inner, IPV4_IN_ESP))
        eventually("the next packet", lambda: datapath.usage(pair.back.id).packets == 2)
        assert datapath.drops()["unknown-spi"] == 1
        datapath.stop()
