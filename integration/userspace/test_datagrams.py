"""Datagrams of UDP as one packet: what a host is given, and what its programs read."""

from __future__ import annotations

import json
import secrets
import socket
from contextlib import closing

import pytest

from integration.contract.entries import GCM
from integration.contract.sites import inside
from integration.lab.network import Host
from integration.lab.process import eventually
from integration.userspace.laboratory import Laboratory
from xfrmpy.datapath.userspace.tun import DEVICE, Tun

pytestmark = pytest.mark.native

UDP_SEGMENT = 103
COUNT, SIZE = 40, 1000


@pytest.mark.parametrize("inner", [4, 6])
def test_datagrams_that_came_together_are_given_together_and_read_one_by_one(
    laboratory: Laboratory, inner: int
) -> None:
    """Through a gateway, which has one packet of them to pass on, to a host that reads each."""
    pair = laboratory.connect(GCM, inner=inner)
    network, bob = laboratory.network, laboratory.bob(inner)
    if not takes_datagrams(network.sun):
        pytest.skip("this kernel takes no several datagrams as one (Linux 6.2)")
    assert network.alice.ping(bob) == 0
    family = socket.AF_INET if inner == 4 else socket.AF_INET6
    sent = [secrets.token_bytes(SIZE) for _ in range(COUNT - 1)] + [b"the last, a short one"]
    with inside(network.bob.namespace):
        receiver = socket.socket(family, socket.SOCK_DGRAM)
    with inside(network.alice.namespace):
        sender = socket.socket(family, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.bind((bob, 0))
        receiver.settimeout(10)
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SIZE)
        before, carried = given(network.sun), laboratory.sun.usage(pair.forth.id).packets
        sender.sendto(b"".join(sent), receiver.getsockname()[:2])
        assert [receiver.recv(65535) for _ in sent] == sent
        eventually(
            "each to be counted",
            lambda: laboratory.sun.usage(pair.forth.id).packets == carried + COUNT,
        )
        assert given(network.sun) - before < COUNT / 2


def given(host: Host) -> int:
    """Packets that a gateway's device was given."""
    (link,) = json.loads(host.run("ip", "-s", "-j", "link", "show", DEVICE))
    return int(link["stats64"]["rx"]["packets"])


def takes_datagrams(host: Host) -> bool:
    with inside(host.namespace), closing(Tun("probe")) as probe:
        return probe.takes_datagrams
