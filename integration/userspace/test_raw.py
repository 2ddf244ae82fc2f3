"""The raw sockets of a worker, between two gateways, and a worker that may have none."""

from __future__ import annotations

import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from integration.contract.entries import GCM, spd_entry
from integration.contract.sites import inside, run
from integration.lab.network import Network
from integration.userspace.laboratory import Laboratory
from integration.userspace.place import largest_inner, our_routes
from xfrmpy.datapath.userspace.raw import NUMBERS, Arrived, RawSocket
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.esp.ip import parse_inner_header
from xfrmpy.ipsec.sad import USERSPACE_SPI_BIT
from xfrmpy.registry import ProtocolId

pytestmark = pytest.mark.native

OURS, KERNELS = USERSPACE_SPI_BIT | 0x5678, 0x5678

PROTOCOLS = pytest.mark.parametrize("protocol", NUMBERS, ids=lambda p: p.name)
FAMILIES = pytest.mark.parametrize("version", [4, 6])

Open = Callable[[str], RawSocket]


@pytest.fixture
def opened(protocol: ProtocolId, version: int) -> Iterator[Open]:
    sockets: list[RawSocket] = []

    def open_at(namespace: str) -> RawSocket:
        with inside(namespace):
            sockets.append(RawSocket(protocol, version))
        return sockets[-1]

    yield open_at
    for each in sockets:
        each.close()


def _received(receiver: RawSocket) -> Arrived:
    assert select.select([receiver], [], [], 5)[0]
    return receiver.receive()


def _packet(protocol: ProtocolId, spi: int) -> bytes:
    return (b"" if protocol is ProtocolId.ESP else b"\x3b\x04\x00\x00") + spi.to_bytes(4, "big")


def _whole(network: Network, payload: bytes) -> bytes:
    ends = (ip_address(host.outside[4]).packed for host in (network.moon, network.sun))
    size = (20 + len(payload)).to_bytes(2, "big")
    return b"\x45\x00" + size + b"\xab\xcd\x00\x00\x40\x33\x00\x00" + b"".join(ends) + payload


@PROTOCOLS
@FAMILIES
def test_only_what_bears_an_spi_of_ours_comes_in(
    network: Network, opened: Open, protocol: ProtocolId, version: int
) -> None:
    sender, receiver = (opened(host.namespace) for host in (network.moon, network.sun))
    ends = [ip_address(host.outside[version]) for host in (network.moon, network.sun)]
    for spi in (KERNELS, OURS):
        packet = _packet(protocol, spi) + b"payload"
        sender.send(_whole(network, packet) if sender.takes_headers else packet, ends[0], ends[1])
    arrived = _received(receiver)
    assert arrived.payload == _packet(protocol, OURS) + b"payload"
    with pytest.raises(BlockingIOError):
        receiver.receive()
    header = parse_inner_header(arrived.header + arrived.payload)
    assert (header.version, header.protocol) == (version, NUMBERS[protocol])
    assert (header.source, header.destination) == tuple(map(int, ends))
    assert header.length == len(arrived.header + arrived.payload)


@pytest.mark.parametrize(("protocol", "version"), [(ProtocolId.AH, 4)])
def test_the_header_that_an_icv_covers_is_sent_as_it_is(
    network: Network, opened: Open, protocol: ProtocolId
) -> None:
    sender, receiver = (opened(host.namespace) for host in (network.moon, network.sun))
    packet = _whole(network, _packet(protocol, OURS))
    ends = [ip_address(host.outside[4]) for host in (network.moon, network.sun)]
    sender.send(packet, ends[0], ends[1])
    arrived = _received(receiver)
    # Hops change on the way, and with them the checksum; the rest may not (RFC 4302 3.3.3.1.1.1).
    assert arrived.header[:8] + arrived.header[9:10] + arrived.header[12:] == (
        packet[:8] + packet[9:10] + packet[12:20]
    )


def test_what_fits_into_raw_esp_is_told_by_the_route(laboratory: Laboratory) -> None:
    laboratory.connect(GCM, encapsulated=False)
    fits = largest_inner(GCM, 4, encapsulated=False)
    assert f"mtu {fits}" in our_routes(laboratory.network.moon.namespace)
    alice, bob = laboratory.network.alice, laboratory.bob(4)
    with laboratory.capture() as wire:
        assert alice.ping(bob, octets=fits - 28) == 0
    assert wire.kinds["esp"] == 6, "none in pieces"
    assert alice.ping(bob, octets=20_000) == 0


def test_packets_to_the_peer_itself_do_not_loop(laboratory: Laboratory) -> None:
    """A policy that covers everything leads ESP into its own tunnel, were it not marked."""
    laboratory.connect(GCM, encapsulated=False)
    plain = spd_entry()
    wide = replace(plain.selector, destination=ip_network("0.0.0.0/0"))
    laboratory.moon.add_policy(replace(plain, selector=wide, priority=2000))
    sun = laboratory.network.sun.outside[4]
    way = run("ip", "-n", laboratory.network.moon.namespace, "route", "get", sun)
    assert DEVICE in way, "what is not marked is led into the tunnel"
    assert laboratory.network.alice.ping(laboratory.bob(4)) == 0


def test_without_the_right_to_raw_sockets_esp_is_in_udp(
    moon: str, network: Network, tmp_path: Path
) -> None:
    """And what needs them is refused with the reason."""
    del moon, network
    program = f"""
from pathlib import Path
from dataclasses import replace
from integration.contract.entries import sad_entry
from integration.userspace.place import open_here
from xfrmpy.datapath.interface import DatapathError
datapath = open_here(Path({str(tmp_path)!r}))
told = datapath.probe()
assert not told.raw_esp and told.udp_encapsulation
print(told.missing["raw esp"])
entry = sad_entry({USERSPACE_SPI_BIT})
datapath.add_sa(entry)
for refused in (datapath.add_sa, datapath.update_sa):
    try:
        refused(replace(entry, encapsulation=None))
    except DatapathError as error:
        print(error)
assert datapath.dump().sad == (entry,)
datapath.stop()
"""
    drop = ("setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw")
    command = (*drop, sys.executable, "-c", program)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all("raw sockets cannot be opened" in line and "CAP_NET_RAW" in line for line in lines)


def test_esp_is_taken_in_udp_and_without_whatever_was_agreed(laboratory: Laboratory) -> None:
    """RFC 7296 section 2.23; kernels are stricter, but not this one."""
    pair = laboratory.connect(GCM)
    laboratory.moon.update_sa(replace(pair.forth, encapsulation=None))
    with laboratory.capture() as wire:
        assert laboratory.network.alice.ping(laboratory.bob(4)) == 0
    assert wire.kinds["esp"] == wire.kinds["udp-esp"] == 3
    assert laboratory.sun.usage(pair.forth.id).packets == 3
