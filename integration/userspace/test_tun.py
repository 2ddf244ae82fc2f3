"""A TUN device alone: what a host leaves to it, and what it takes back."""

from __future__ import annotations

import fcntl
import os
import select
import socket
from collections.abc import Iterator
from contextlib import closing
from struct import pack

import pytest

from integration.contract.sites import gateway_namespace, run
from tests.datapath.userspace.super_packets import Stream
from xfrmpy.datapath.userspace.segments import complete
from xfrmpy.datapath.userspace.tun import DEVICE, SUPER_PACKET, Tun
from xfrmpy.datapath.userspace.virtio import Segments

pytestmark = pytest.mark.native

HERE, THERE = "10.77.0.1", "10.77.0.2"
UDP_SEGMENT = 103
TUNSETIFF, IFF_TUN_NO_PI = 0x400454CA, 0x1001


@pytest.fixture
def namespace() -> Iterator[str]:
    with gateway_namespace() as name:
        yield name


def given_address(namespace: str) -> None:
    run("ip", "-n", namespace, "address", "add", f"{HERE}/24", "dev", DEVICE)
    run("ip", "-n", namespace, "link", "set", DEVICE, "up")


def send_segments(port: int, size: int, payload: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
        sender.sendto(payload, (THERE, port))


def test_a_host_leaves_the_cutting_and_the_checksums_to_it(namespace: str) -> None:
    with closing(Tun.of_all_tunnels()) as tun:
        given_address(namespace)
        payload = bytes(range(250)) * 10
        send_segments(9, 1000, payload)
        assert select.select([tun], [], [], 5)[0]
        packet, offload = tun.read()
        assert offload.needs_checksum
        assert (offload.segments, offload.segment_size) == (Segments.UDP, 1000)
        packets = complete(packet, offload)
        assert [len(each) for each in packets] == [1028, 1028, 528]
        assert b"".join(each[28:] for each in packets) == payload


def test_a_host_gives_it_no_more_than_can_be_sent_at_once(namespace: str) -> None:
    with closing(Tun.of_all_tunnels()):
        shown = run("ip", "-n", namespace, "-d", "link", "show", DEVICE)
    assert f"gso_max_size {SUPER_PACKET} " in shown


def test_a_host_takes_the_packets_that_it_would_have_sent(namespace: str) -> None:
    """Its own IP checks the checksums that we have completed."""
    with closing(Tun.of_all_tunnels()) as tun, receiver() as bound:
        given_address(namespace)
        send_segments(bound.getsockname()[1], 10, b"0123456789abcde")
        assert select.select([tun], [], [], 5)[0]
        for each in complete(*tun.read()):
            tun.write(each[:12] + each[16:20] + each[12:16] + each[20:])  # there and back
        assert [bound.recv(100), bound.recv(100)] == [b"0123456789", b"abcde"]


def receiver() -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.settimeout(5)
    bound.bind(("", 0))
    return bound


def test_a_device_that_was_there_works_for_its_next_user_as_before(namespace: str) -> None:
    """Who asks for no headers would not know what is to be cut."""
    run("ip", "-n", namespace, "tuntap", "add", DEVICE, "mode", "tun")
    with closing(Tun.of_all_tunnels()) as tun:
        assert tun.is_adopted
    given_address(namespace)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, pack("=16sH22x", DEVICE.encode(), IFF_TUN_NO_PI))
        sizes: list[int] = []
        while len(sizes) < 3:
            if not select.select([descriptor], [], [], 0.2)[0]:  # It may not be quite up yet.
                send_segments(9, 1000, bytes(2500))
                continue
            packet = os.read(descriptor, 65535)
            sizes += [len(packet)] if packet[0] >> 4 == 4 else []
        assert sizes == [1028, 1028, 528]
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "wrong",
    [
        {"segments": 9},
        {"segment_size": 0},
        {"checksum_start": 60_000},
        {"header_size": 60_000},
        {"segments": Segments.UDP},
    ],
    ids=str,
)
def test_a_super_packet_that_a_host_does_not_take_is_refused(
    namespace: str, wrong: dict[str, int]
) -> None:
    """And the next one is taken."""
    packet, good = Stream(addresses=(THERE, HERE)).super_packet()
    with closing(Tun.of_all_tunnels()) as tun:
        given_address(namespace)
        with pytest.raises(OSError, match=r"Invalid|Input"):
            tun.write(packet, offload=good._replace(**wrong))  # type: ignore[arg-type]
        tun.write(packet, offload=good)
