"""A flood for one tunnel costs the others nothing that they would not have lost without it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from integration.contract.entries import GCM, REQID
from integration.lab.network import Host, subnet
from integration.lab.process import Background, eventually
from integration.lab.transfer import transfer
from integration.userspace.laboratory import Laboratory, laboratory_in, sa_between
from xfrmpy.ipsec.sad import Direction, SadEntry
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import Template, protect_entries

pytestmark = pytest.mark.native

FLOOD = """
import socket, sys
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sender.bind((sys.argv[1], 0))
sender.connect((sys.argv[2], 9))
octets = bytes(1200)
while True:
    try:
        sender.send(octets)
    except OSError:
        pass
"""


def two_tunnels(laboratory: Laboratory) -> list[SadEntry]:
    """In the place of what there is: number 0 and number 1, each with a reqid of its own; by which
    SA moon's packets leave."""
    outbound = []
    network = laboratory.network
    moon, sun = (ip_address(host.outside[4]) for host in (network.moon, network.sun))
    for datapath in (laboratory.moon, laboratory.sun):
        datapath.remove_ours()
    for number in range(2):
        reqid = REQID + number
        forth, back = (
            replace(sa_between(GCM, 2 * number + n, *ends), reqid=reqid)
            for n, ends in enumerate(((moon, sun), (sun, moon)))
        )
        for datapath, here, there, own, peers in (
            (laboratory.moon, network.moon, network.sun, forth, back),
            (laboratory.sun, network.sun, network.moon, back, forth),
        ):
            templates = [
                Template(source=sa.source, destination=sa.destination, reqid=reqid)
                for sa in (own, peers)
            ]
            local, remote = (
                [TrafficSelector.parse(subnet(host.site, number, 4))] for host in (here, there)
            )
            policies = protect_entries(
                local=local, remote=remote, outbound=templates[0], inbound=templates[1]
            )
            datapath.add([own, replace(peers, direction=Direction.IN), *policies])
        outbound.append(forth)
    return outbound


@contextmanager
def flood(laboratory: Laboratory, number: int) -> Iterator[None]:
    """Datagrams of moon's own, so many that most of them find no room in its device."""
    moon, log = laboratory.network.moon, laboratory.directory / "flood.log"
    own = moon.inside_address(number).rpartition(".")[0] + ".1"
    ends = own, laboratory.network.bob.inside_address(number)
    before = dropped(moon)
    flooding = Background(moon.command(sys.executable, "-c", FLOOD, *ends), log)
    try:
        eventually("a flood", lambda: dropped(moon) > before + 1000)
        yield
        during = dropped(moon)
        eventually("more of the flood", lambda: dropped(moon) > during + 1000)
    finally:
        flooding.stop()
        log.unlink()


def dropped(host: Host) -> int:
    """Packets for which its devices had no room."""
    links = json.loads(host.run("ip", "-s", "-j", "link"))
    ours = (link for link in links if link["ifname"].startswith("xfrmpy"))
    return sum(link["stats64"]["tx"]["dropped"] for link in ours)


@pytest.fixture(params=[1, 2], ids=["one worker", "two"])
def laboratory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Laboratory]:
    """Both tunnels are in the same worker if there are two."""
    with laboratory_in(tmp_path, request.param) as made:
        yield made


def test_a_flood_for_one_tunnel_takes_no_room_from_another(laboratory: Laboratory) -> None:
    """Each ping has found its way into the SA, and a stream arrives."""
    forth = two_tunnels(laboratory)[1]
    network, bob = laboratory.network, laboratory.network.bob.inside_address(1)
    pings = ("-n", "-q", "-i", "0.01", "-c", "100", "-I", network.alice.inside_address(1))
    with flood(laboratory, 0):
        said = network.alice.run("ping", *pings, bob)
        assert "100 packets transmitted" in said
        eventually("them all", lambda: laboratory.moon.usage(forth.id).packets == 100)
        transfer(network.alice, network.bob, bob, 500_000, laboratory.directory / "log")
