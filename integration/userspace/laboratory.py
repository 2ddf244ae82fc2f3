"""Hosts behind two gateways that have a userspace datapath each."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from integration.contract.entries import ESP, GCM, REQID, spd_entry
from integration.contract.sites import inside
from integration.lab.capture import Capture
from integration.lab.network import Host, Network, subnet
from integration.userspace.place import WORKERS, daemon_sockets, end_workers, open_here
from xfrmpy.datapath.userspace.client import UserspaceDatapath
from xfrmpy.ipsec.addresses import IKE_NATT_PORT, IpAddress
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import (
    USERSPACE_SPI_BIT,
    Direction,
    Mode,
    OuterHeader,
    SadEntry,
    UdpEncapsulation,
)
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import SpdEntry, Template, protect_entries

CBC = ESP["aes256-sha512-esn"]


@dataclass(frozen=True, slots=True)
class Pair:
    """The SAs between moon and sun, as their senders have them, by sender."""

    forth: SadEntry
    back: SadEntry


@contextmanager
def laboratory_in(directory: Path, workers: int = WORKERS) -> Iterator[Laboratory]:
    """With so many workers at either gateway, and what they leave in this directory."""
    with ExitStack() as stack:
        stack.callback(end_workers, directory)
        network = Network()
        stack.callback(network.close)
        opened = []
        for host in (network.moon, network.sun):
            with inside(host.namespace):
                stack.enter_context(daemon_sockets())
                opened.append(stack.enter_context(closing(open_here(directory, workers))))
        stack.callback(end_workers, directory)
        yield Laboratory(directory, network, *opened)


@dataclass(frozen=True, slots=True)
class Laboratory:
    """A network, and the datapaths of its two gateways."""

    directory: Path
    network: Network
    moon: UserspaceDatapath
    sun: UserspaceDatapath

    def connect(
        self,
        suite: EspSuite,
        *,
        outer: int = 4,
        inner: int = 4,
        encapsulated: bool = True,
        mode: Mode = Mode.TUNNEL,
        header: OuterHeader | None = None,
    ) -> Pair:
        """Take what there is out of force, and put a tunnel into it, or transport mode."""
        pair = self.pair(suite, outer=outer, encapsulated=encapsulated)
        changes: dict[str, Any] = {"mode": mode, "outer": header or OuterHeader()}
        pair = Pair(*(_with_new_keys(replace(sa, **changes)) for sa in (pair.forth, pair.back)))
        for datapath, host, (own, peers) in (
            (self.moon, self.network.moon, (pair.forth, pair.back)),
            (self.sun, self.network.sun, (pair.back, pair.forth)),
        ):
            datapath.remove_ours()
            for entry in entries(host, self._other(host), own, peers, inner):
                put(datapath, entry)
        return pair

    def pair(self, suite: EspSuite, *, outer: int = 4, encapsulated: bool = True) -> Pair:
        moon, sun = (ip_address(h.outside[outer]) for h in (self.network.moon, self.network.sun))
        pair = Pair(sa_between(suite, 1, moon, sun), sa_between(suite, 2, sun, moon))
        if encapsulated:
            return pair
        return Pair(replace(pair.forth, encapsulation=None), replace(pair.back, encapsulation=None))

    def bob(self, inner: int) -> str:
        return self.network.bob.inside_address(family=inner)

    def capture(self) -> Capture:
        return Capture(self.network, self.directory)

    def throw(self, *datagrams: bytes) -> None:
        """Datagrams to moon's port, one by one so that none is lost, from somewhere."""
        with inside(self.network.internet.namespace):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            for datagram in datagrams:
                sender.sendto(datagram, (self.network.moon.outside[4], IKE_NATT_PORT))

    def _other(self, host: Host) -> Host:
        return self.network.sun if host is self.network.moon else self.network.moon


def _with_new_keys(sa: SadEntry) -> SadEntry:
    """What is late of an SA of the same SPI must not pass for the new one's."""
    encryption, integrity = (os.urandom(len(k)) for k in (sa.encryption_key, sa.integrity_key))
    return replace(sa, encryption_key=encryption, integrity_key=integrity)


def sa_between(suite: EspSuite, number: int, source: IpAddress, destination: IpAddress) -> SadEntry:
    return SadEntry(
        direction=Direction.OUT,
        spi=USERSPACE_SPI_BIT | 0x1000 + number,
        source=source,
        destination=destination,
        reqid=REQID,
        suite=suite,
        encryption_key=bytes([number]) * suite.cipher.keymat,
        integrity_key=bytes([number]) * (suite.integrity.key if suite.integrity else 0),
        encapsulation=UdpEncapsulation(IKE_NATT_PORT, IKE_NATT_PORT),
    )


def entries(
    here: Host, there: Host, own: SadEntry, peers: SadEntry, inner: int
) -> list[SadEntry | SpdEntry]:
    """What one gateway puts in force for a tunnel."""
    local, remote = (subnet(host.site, 0, inner) for host in (here, there))
    if own.mode is Mode.TRANSPORT:
        local, remote = str(own.source), str(peers.source)
    templates = (
        Template(source=sa.source, destination=sa.destination, reqid=REQID, mode=sa.mode)
        for sa in (own, peers)
    )
    policies = protect_entries(
        local=[TrafficSelector.parse(local)],
        remote=[TrafficSelector.parse(remote)],
        outbound=next(templates),
        inbound=next(templates),
    )
    return [own, replace(peers, direction=Direction.IN), *policies]


def put(datapath: UserspaceDatapath, entry: SadEntry | SpdEntry) -> None:
    if isinstance(entry, SadEntry):
        datapath.add_sa(entry)
    else:
        datapath.add_policy(entry)


def fill(network: Network, datapath: UserspaceDatapath, *, default: bool = False) -> Pair:
    """A tunnel of moon's in force, of both families."""
    moon, sun = (ip_address(host.outside[4]) for host in (network.moon, network.sun))
    pair = Pair(sa_between(GCM, 1, moon, sun), sa_between(GCM, 2, sun, moon))
    for entry in entries(network.moon, network.sun, pair.forth, pair.back, 4):
        put(datapath, entry)
    for entry in entries(network.moon, network.sun, pair.forth, pair.back, 6)[2:]:
        put(datapath, entry)
    if default:
        wide = spd_entry()
        everything = replace(wide.selector, destination=ip_network("0.0.0.0/0"))
        put(datapath, replace(wide, selector=everything))
    return pair


def udp_packet(source: str, destination: str) -> bytes:
    ends = ip_address(source).packed + ip_address(destination).packed
    return b"\x45\x00\x00\x24" + bytes(4) + b"\x40\x11\x00\x00" + ends + bytes(16)
