"""The userspace datapath on this machine: the contract, hosts behind two gateways, and bad days.

Run as a program, this file is a daemon's part: it opens a datapath with entries and waits.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from struct import Struct

import pytest

from integration.datapath_contract import (
    GCM,
    OUTER,
    REQID,
    SUITES,
    DatapathContract,
    Site,
    TrafficContract,
    gateway_namespace,
    inside,
    install_pair,
    make_pair,
    run,
    sad_entry,
    spd_entry,
    two_sites,
)
from integration.lab.capture import Capture
from integration.lab.network import Host, Network, subnet
from integration.lab.process import Background, eventually
from integration.lab.transfer import transfer
from xfrmpy.datapath.interface import DatapathError, Dump, MappingChanged
from xfrmpy.datapath.routes import OUR_TABLE
from xfrmpy.datapath.userspace import client, requests
from xfrmpy.datapath.userspace.client import UserspaceDatapath
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.datapath.userspace.udp import open_shared_udp_socket
from xfrmpy.esp.packet import IPV4_IN_ESP, OutboundSa
from xfrmpy.ipsec.addresses import IKE_NATT_PORT, IpAddress, SocketAddress
from xfrmpy.ipsec.overhead import inner_mtu
from xfrmpy.ipsec.plain import Plain, from_plain, to_plain
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import USERSPACE_SPI_BIT, Direction, Mode, SadEntry, UdpEncapsulation
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import (
    PolicyDirection,
    SpdEntry,
    Template,
    protect_entries,
)

pytestmark = pytest.mark.native

WORKER_SOCKET = "worker-0.sock"
CBC = SUITES["aes256-sha512-esn"]
_UCRED = Struct("=iII")


# A datapath in a namespace.


def open_here(directory: Path) -> UserspaceDatapath:
    """A datapath in the namespace of this thread, with a runtime directory of its own."""
    own = directory / str(os.stat("/proc/thread-self/ns/net").st_ino)
    own.mkdir(exist_ok=True)
    return UserspaceDatapath.start(own)


def worker_of(path: Path) -> int:
    """The worker's process id."""
    with connected(path) as connection:
        octets = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    process: int = _UCRED.unpack(octets)[0]
    return process


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(10)
    connection.connect(str(path))
    return connection


def end_workers(directory: Path) -> None:
    for path in directory.glob(f"*/{WORKER_SOCKET}"):
        process = worker_of(path)
        os.kill(process, signal.SIGTERM)
        with suppress(ChildProcessError):  # It may be the child of one that is no more.
            os.waitpid(process, 0)


@contextmanager
def daemon_sockets() -> Iterator[None]:
    """What the daemon has open on the shared port before it starts a worker."""
    with ExitStack() as stack:
        for family in (socket.AF_INET, socket.AF_INET6):
            stack.enter_context(open_shared_udp_socket(family, IKE_NATT_PORT))
        yield


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
    @pytest.fixture(autouse=True)
    def _skip_what_it_refuses(self, request: pytest.FixtureRequest) -> None:
        parameters = getattr(request.node, "callspec", None)
        given = {} if parameters is None else parameters.params
        changes = given.get("changes", {})
        if Mode.TRANSPORT in (given.get("mode"), changes.get("mode")):
            pytest.skip("the userspace datapath has tunnel mode only")
        if changes == {"encapsulation": None}:
            pytest.skip("the userspace datapath has ESP in UDP only")

    def test_another_mode_is_refused(self, datapath: UserspaceDatapath) -> None:
        mode = Mode.TRANSPORT
        with pytest.raises(DatapathError, match="no transport mode"):
            datapath.add_sa(sad_entry(USERSPACE_SPI_BIT, mode=mode))
        for direction in PolicyDirection:
            with pytest.raises(DatapathError, match="no transport mode"):
                datapath.add_policy(spd_entry(direction, mode=mode))
        assert datapath.dump() == Dump(sad=(), spd=())

    def test_an_sa_without_udp_is_refused(self, datapath: UserspaceDatapath) -> None:
        entry = sad_entry(USERSPACE_SPI_BIT)
        with pytest.raises(DatapathError, match="in UDP only"):
            datapath.add_sa(replace(entry, encapsulation=None))
        datapath.add_sa(entry)
        with pytest.raises(DatapathError, match="cannot become another"):
            datapath.update_sa(replace(entry, encapsulation=None))
        assert datapath.dump().sad == (entry,)

    def test_more_entries_than_go_into_a_packet_are_dumped(
        self, datapath: UserspaceDatapath
    ) -> None:
        plain = sad_entry(USERSPACE_SPI_BIT)
        entries = {replace(plain, spi=USERSPACE_SPI_BIT | n) for n in range(1000, 1700)}
        for entry in entries:
            datapath.add_sa(entry)
        assert set(datapath.dump().sad) == entries
        assert datapath.remove_ours() == len(entries)


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
        assert f"mtu {_largest(GCM, 4)}" in _routes(sites[0].namespace)
        make_pair(CBC, spi_bits=spi_bits, encapsulated=True, serial=1).add_to(sites[0])
        assert f"mtu {_largest(CBC, 4)}" in _routes(sites[0].namespace)

    def test_each_namespace_has_a_worker_and_a_device_and_no_room_for_another(
        self, sites: tuple[Site, Site], directory: Path, tmp_path: Path
    ) -> None:
        workers = {worker_of(path) for path in directory.glob(f"*/{WORKER_SOCKET}")}
        assert len(workers) == len(list(directory.iterdir())) >= 2
        for site in sites:
            assert DEVICE in run("ip", "-n", site.namespace, "link")
            with inside(site.namespace), pytest.raises(DatapathError, match="another process"):
                UserspaceDatapath.start(tmp_path)


def _largest(suite: EspSuite, outer: int, outer_mtu: int = 1500) -> int:
    return inner_mtu(outer_mtu, suite, outer_version=outer, encapsulated=True, mode=Mode.TUNNEL)


def _routes(namespace: str, version: int = 4) -> str:
    done = subprocess.run(
        ["ip", "-n", namespace, f"-{version}", "route", "show", "table", str(OUR_TABLE)],
        capture_output=True,
        text=True,
        check=False,  # a table that never was is an error
    )
    return done.stdout


# Hosts behind two gateways.


@dataclass(frozen=True, slots=True)
class Pair:
    """The SAs between moon and sun, as their senders have them, by sender."""

    forth: SadEntry
    back: SadEntry


@dataclass(frozen=True, slots=True)
class Laboratory:
    """A network, and the datapaths of its two gateways."""

    directory: Path
    network: Network
    moon: UserspaceDatapath
    sun: UserspaceDatapath

    def connect(self, suite: EspSuite, *, outer: int = 4, inner: int = 4) -> Pair:
        """Take what there is out of force, and put a tunnel into it."""
        pair = self.pair(suite, outer=outer)
        for datapath, host, (own, peers) in (
            (self.moon, self.network.moon, (pair.forth, pair.back)),
            (self.sun, self.network.sun, (pair.back, pair.forth)),
        ):
            datapath.remove_ours()
            for entry in entries(host, self._other(host), own, peers, inner):
                put(datapath, entry)
        return pair

    def pair(self, suite: EspSuite, *, outer: int = 4) -> Pair:
        moon, sun = (ip_address(h.outside[outer]) for h in (self.network.moon, self.network.sun))
        return Pair(_sa(suite, 1, moon, sun), _sa(suite, 2, sun, moon))

    def bob(self, inner: int) -> str:
        return self.network.bob.inside_address(family=inner)

    def capture(self) -> Capture:
        return Capture(self.network.internet, self.directory)

    def throw(self, *datagrams: bytes) -> None:
        """Datagrams to moon's port, one by one so that none is lost, from somewhere."""
        with inside(self.network.internet.namespace):
            sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            for datagram in datagrams:
                sender.sendto(datagram, (self.network.moon.outside[4], IKE_NATT_PORT))

    def _other(self, host: Host) -> Host:
        return self.network.sun if host is self.network.moon else self.network.moon


def _sa(suite: EspSuite, number: int, source: IpAddress, destination: IpAddress) -> SadEntry:
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
    policies = protect_entries(
        local=[TrafficSelector.parse(subnet(here.site, 0, inner))],
        remote=[TrafficSelector.parse(subnet(there.site, 0, inner))],
        outbound=Template(source=own.source, destination=own.destination, reqid=REQID),
        inbound=Template(source=peers.source, destination=peers.destination, reqid=REQID),
    )
    return [own, replace(peers, direction=Direction.IN), *policies]


def put(datapath: UserspaceDatapath, entry: SadEntry | SpdEntry) -> None:
    if isinstance(entry, SadEntry):
        datapath.add_sa(entry)
    else:
        datapath.add_policy(entry)


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    directory = tmp_path_factory.mktemp("lab")
    with ExitStack() as stack:
        stack.callback(end_workers, directory)
        network = Network()
        stack.callback(network.close)
        opened = []
        for host in (network.moon, network.sun):
            with inside(host.namespace):
                stack.enter_context(daemon_sockets())
                opened.append(stack.enter_context(closing(open_here(directory))))
        stack.callback(end_workers, directory)
        yield Laboratory(directory, network, *opened)


@pytest.mark.parametrize("name", SUITES)
def test_each_suite_carries_hosts_streams_intact(laboratory: Laboratory, name: str) -> None:
    laboratory.connect(SUITES[name])
    network = laboratory.network
    assert network.bob.ping(network.alice.inside_address()) == 0
    transfer(network.alice, network.bob, laboratory.bob(4), 5_000_000, laboratory.directory / "log")
    for datapath in (laboratory.moon, laboratory.sun):
        for entry in datapath.dump().sad:
            usage = datapath.usage(entry.id)
            assert usage.packets > 100
            assert (usage.replayed, usage.integrity_failed) == (0, 0)


@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("outer", [4, 6])
def test_streams_of_either_family_pass_in_either_and_nothing_in_clear(
    laboratory: Laboratory, outer: int, inner: int
) -> None:
    laboratory.connect(GCM, outer=outer, inner=inner)
    network = laboratory.network
    with laboratory.capture() as wire:
        assert network.alice.ping(laboratory.bob(inner)) == 0
        log = laboratory.directory / "log"
        transfer(network.alice, network.bob, laboratory.bob(inner), 5_000_000, log)
    assert wire.kinds["clear"] == 0
    assert wire.protected > 3000


@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("outer", [4, 6])
@pytest.mark.parametrize("suite", [GCM, CBC], ids=str)
def test_a_host_is_told_what_fits_and_that_fits(
    laboratory: Laboratory, suite: EspSuite, outer: int, inner: int
) -> None:
    laboratory.connect(suite, outer=outer, inner=inner)
    alice, largest = laboratory.network.alice, _largest(suite, outer)
    headers = {4: 28, 6: 48}[inner]

    def ping(octets: int) -> str:
        alice.run("ip", f"-{inner}", "route", "flush", "cache")
        size = str(octets - headers)
        command = ("ping", "-n", "-c", "2", "-i", "0.2", "-W", "5", "-M", "do", "-s", size)
        return alice.run(*command, laboratory.bob(inner), check=False)

    told = re.search(r"(?:Frag needed.*mtu = |Packet too big: mtu=)(\d+)", ping(largest + 1))
    assert told
    assert int(told[1]) == largest
    with laboratory.capture() as wire:
        assert " 0% packet loss" in ping(largest)
    assert wire.protected == 4
    assert wire.kinds["clear"] == 0, "no fragments"


def test_ipv6_has_its_least_mtu_whatever_the_path(laboratory: Laboratory) -> None:
    """RFC 8200 section 5: the outer packets are fragmented instead."""
    network = laboratory.network
    devices = [(network.moon, "wan"), (network.sun, "wan"), (network.internet, "moon")]
    devices.append((network.internet, "sun"))
    for host, device in devices:
        host.batch(f"link set {device} mtu 1300")
    try:
        laboratory.connect(GCM, inner=6)
        assert "mtu 1280" in _routes(network.moon.namespace, 6)
        assert network.alice.ping(laboratory.bob(6), octets=1280 - 48) == 0
    finally:
        for host, device in devices:
            host.batch(f"link set {device} mtu 1500")


def _udp_packet(source: str, destination: str) -> bytes:
    ends = ip_address(source).packed + ip_address(destination).packed
    return b"\x45\x00\x00\x24" + bytes(4) + b"\x40\x11\x00\x00" + ends + bytes(16)


def test_bad_packets_are_counted_and_the_tunnel_is_unharmed(laboratory: Laboratory) -> None:
    pair = laboratory.connect(SUITES["aes256gcm16"])
    bob, alice = laboratory.bob(4), laboratory.network.alice.inside_address()
    attacker = OutboundSa(replace(pair.back, direction=Direction.OUT), os.urandom)
    before = laboratory.moon.drops()
    sealed = attacker.seal(_udp_packet(bob, alice), IPV4_IN_ESP)
    unknown = (pair.back.spi ^ 0x40000000).to_bytes(4, "big")
    laboratory.throw(
        sealed,
        *[sealed] * 7,
        *[sealed[:7] + bytes([9]) + sealed[8:]] * 6,
        *[attacker.seal(_udp_packet("203.0.113.1", alice), IPV4_IN_ESP) for _ in range(5)],
        *[attacker.seal(_udp_packet(bob, "192.0.2.254"), IPV4_IN_ESP) for _ in range(4)],
        *[unknown + os.urandom(60)] * 3,
        *[sealed[:10]] * 2,
        attacker.seal(b"no packet at all", IPV4_IN_ESP),
    )
    expected = {
        "replayed": 7,
        "not-authentic": 6,
        "outside-selectors": 9,
        "unknown-spi": 3,
        "too-short": 2,
        "not-ip": 1,
    }

    def counted() -> dict[str, int]:
        drops = laboratory.moon.drops()
        return {reason: drops.get(reason, 0) - before.get(reason, 0) for reason in expected}

    eventually(f"{expected}", lambda: counted() == expected)
    usage = laboratory.moon.usage(pair.back.id)
    assert (usage.replayed, usage.integrity_failed) == (7, 6)
    # The attacker of this test had the key, and used up eleven sequence numbers.
    assert laboratory.network.alice.ping(bob, count=15) <= 11
    assert laboratory.network.alice.ping(bob) == 0


def test_a_flood_of_junk_does_not_end_the_worker(laboratory: Laboratory) -> None:
    pair = laboratory.connect(GCM)
    spi = pair.back.spi.to_bytes(4, "big")
    laboratory.throw(*(spi[: n % 5] + os.urandom(n % 90) for n in range(20_000)))
    assert laboratory.network.alice.ping(laboratory.bob(4)) == 0
    assert laboratory.moon.drops().get("defect", 0) == 0


_TSHARK = {
    "aes256gcm16": ("AES-GCM with 16 octet ICV [RFC4106]", "NULL"),
    "aes256-sha256": ("AES-CBC [RFC3602]", "HMAC-SHA-256-128 [RFC4868]"),
}


@pytest.mark.parametrize("name", _TSHARK)
def test_tshark_reads_our_packets_with_the_keys(laboratory: Laboratory, name: str) -> None:
    pair = laboratory.connect(SUITES[name])
    network, file = laboratory.network, laboratory.directory / f"{name}.pcap"
    log = laboratory.directory / "tcpdump.log"
    log.unlink(missing_ok=True)
    options = ("-Z", "root", "-U", "-n", "-i", "br0", "-w", str(file), "udp port 4500")
    tcpdump = Background(network.internet.command("tcpdump", *options), log)
    try:
        eventually("tcpdump to listen", lambda: "listening on" in tcpdump.output)
        assert network.alice.ping(laboratory.bob(4)) == 0
        eventually("six packets", lambda: file.stat().st_size >= 6 * 150)
    finally:
        tcpdump.stop(signal.SIGINT)
    command = ["tshark", "-r", str(file), "-o", "esp.enable_encryption_decode:TRUE"]
    command += ["-o", "esp.enable_authentication_check:TRUE"]
    for sa in (pair.forth, pair.back):
        encryption, integrity = _TSHARK[name]
        fields = ["IPv4", "*", "*", f"0x{sa.spi:08x}", encryption]
        fields += [f"0x{sa.encryption_key.hex()}", integrity]
        fields += [f"0x{sa.integrity_key.hex()}" if sa.integrity_key else "", "32-bit", "0x0"]
        command += ["-o", "uat:esp_sa:" + ",".join(f'"{field}"' for field in fields)]
    command += ["-T", "fields", "-e", "ip.src", "-e", "icmp.type", "-e", "icmp.checksum.status"]
    command += ["-e", "esp.icv_good"]
    lines = [line.split("\t") for line in run(*command).splitlines()]
    assert [line[1] for line in lines] == ["8", "0"] * 3
    assert {line[2] for line in lines} == {"1"}, "the echo's checksum is right"
    assert lines[0][0].split(",")[-1] == network.alice.inside_address()
    assert {line[3] for line in lines} <= {"1", "True", ""}


# The daemon dies, the worker does not.


def _daemon(directory: Path, entries_file: Path) -> None:
    """A daemon's part, for a process of its own: everything in force, then nothing more."""
    with daemon_sockets(), closing(open_here(directory)) as datapath:
        plain = json.loads(entries_file.read_text())
        for sa in plain["sad"]:
            datapath.add_sa(from_plain(SadEntry, sa))
        for policy in plain["spd"]:
            datapath.add_policy(from_plain(SpdEntry, policy))
        print("in force", flush=True)
        signal.pause()


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    """A network without datapaths; whatever the test starts in it ends with it."""
    with ExitStack() as stack:
        built = Network()
        stack.callback(built.close)
        stack.callback(end_workers, tmp_path)
        yield built


def test_a_killed_daemon_costs_nothing_and_its_successor_finds_everything(
    network: Network, tmp_path: Path
) -> None:
    moon, sun = (ip_address(host.outside[4]) for host in (network.moon, network.sun))
    forth, back = _sa(GCM, 1, moon, sun), _sa(GCM, 2, sun, moon)
    bob, log = network.bob.inside_address(), tmp_path / "ping.log"
    daemons, force = [], {}
    for here, there, own, peers in (
        (network.moon, network.sun, forth, back),
        (network.sun, network.moon, back, forth),
    ):
        force[here.name] = entries(here, there, own, peers, 4)
        file = tmp_path / f"{here.name}.json"
        file.write_text(json.dumps(_plain(force[here.name])))
        command = (sys.executable, "-m", __name__, str(tmp_path), str(file))
        daemons.append(Background(here.command(*command), tmp_path / f"{here.name}.log"))
    for daemon in daemons:
        eventually("entries in force", lambda daemon=daemon: "in force" in daemon.output)  # type: ignore[misc]

    with network.alice.pinging(bob, log) as counts:
        daemons[0].process.kill()
        daemons[0].process.wait()
        time.sleep(0.5)
    assert counts[0] > 10
    assert counts[1] == 0, "the worker forwards while nobody is its daemon"

    routes = _routes(network.moon.namespace)
    network.moon.run("ip", "route", "flush", "table", str(OUR_TABLE))
    with inside(network.moon.namespace), daemon_sockets():
        later = open_here(tmp_path)
        dump = later.dump()
        assert [*dump.sad, *dump.spd] == force["moon"]
        assert _routes(network.moon.namespace) == routes, "with its MTU"
        with network.alice.pinging(bob, log) as counts:
            time.sleep(0.3)
        assert counts[1] == 0
        assert not {"unknown-spi", "defect"} & later.drops().keys(), "all ESP came to the worker"
        assert later.remove_ours() == len(force["moon"])
        later.stop()
    assert _routes(network.moon.namespace) == ""
    daemons[1].stop(signal.SIGKILL)


def _plain(values: list[SadEntry | SpdEntry]) -> dict[str, list[Plain]]:
    return {
        "sad": [to_plain(value) for value in values if isinstance(value, SadEntry)],
        "spd": [to_plain(value) for value in values if isinstance(value, SpdEntry)],
    }


def test_ike_still_reaches_the_new_daemon_and_esp_the_worker(
    network: Network, tmp_path: Path
) -> None:
    """The order of the sockets: the daemon's first, whoever died and came back."""
    with inside(network.moon.namespace), ExitStack() as stack:
        with daemon_sockets():
            open_here(tmp_path).close()
        natt = stack.enter_context(open_shared_udp_socket(socket.AF_INET, IKE_NATT_PORT))
        natt.settimeout(5)
        datapath = open_here(tmp_path)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            here = ("127.0.0.1", IKE_NATT_PORT)
            peer.sendto(b"\x80\0\0\1" + bytes(40), here)
            peer.sendto(bytes(4) + b"an IKE message", here)
            assert natt.recv(100) == bytes(4) + b"an IKE message"
            eventually("the ESP", lambda: datapath.drops().get("unknown-spi") == 1)
        datapath.stop()


# Bad days of a worker.


@pytest.fixture
def moon(network: Network) -> Iterator[str]:
    """This thread in the namespace of a gateway, with the daemon's sockets open."""
    with inside(network.moon.namespace), daemon_sockets():
        yield network.moon.namespace


def _is_clean(namespace: str) -> bool:
    rules = run("ip", "-n", namespace, "rule") + run("ip", "-n", namespace, "-6", "rule")
    routes = _routes(namespace) + _routes(namespace, 6)
    links = run("ip", "-n", namespace, "link")
    return str(OUR_TABLE) not in rules and not routes and DEVICE not in links


def _fill(network: Network, datapath: UserspaceDatapath, *, default: bool = False) -> Pair:
    """A tunnel of moon's in force, of both families."""
    moon, sun = (ip_address(host.outside[4]) for host in (network.moon, network.sun))
    pair = Pair(_sa(GCM, 1, moon, sun), _sa(GCM, 2, sun, moon))
    for entry in entries(network.moon, network.sun, pair.forth, pair.back, 4):
        put(datapath, entry)
    for entry in entries(network.moon, network.sun, pair.forth, pair.back, 6)[2:]:
        put(datapath, entry)
    if default:
        wide = spd_entry()
        everything = replace(wide.selector, destination=ip_network("0.0.0.0/0"))
        put(datapath, replace(wide, selector=everything))
    return pair


def test_a_stopped_worker_leaves_nothing_behind(
    network: Network, moon: str, tmp_path: Path
) -> None:
    datapath = open_here(tmp_path)
    _fill(network, datapath, default=True)
    (path,) = tmp_path.glob(f"*/{WORKER_SOCKET}")
    worker = worker_of(path)
    assert not _is_clean(moon)
    datapath.stop()
    assert _is_clean(moon)
    assert not path.exists()
    assert not Path(f"/proc/{worker}").exists()


def test_a_joined_worker_is_stopped_as_well(network: Network, moon: str, tmp_path: Path) -> None:
    first = open_here(tmp_path)
    _fill(network, first)
    first.close()
    open_here(tmp_path).stop()
    assert _is_clean(moon)
    with suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_sigterm_ends_an_idle_worker_and_its_daemon_is_told_once(
    network: Network, moon: str, tmp_path: Path
) -> None:
    datapath = open_here(tmp_path)
    _fill(network, datapath)
    (path,) = tmp_path.glob(f"*/{WORKER_SOCKET}")
    os.kill(worker_of(path), signal.SIGTERM)
    assert select.select([datapath.fileno()], [], [], 5)[0]
    with pytest.raises(DatapathError, match="has ended"):
        datapath.read_events()
    assert not select.select([datapath.fileno()], [], [], 0)[0], "an event loop may rest"
    eventually("the device to go", lambda: DEVICE not in run("ip", "-n", moon, "link"))
    assert not path.exists()
    with pytest.raises(DatapathError, match="userspace worker"):
        datapath.dump()
    datapath.stop()
    assert _is_clean(moon)


def test_a_worker_whose_device_is_taken_away_ends(
    network: Network, moon: str, tmp_path: Path
) -> None:
    datapath = open_here(tmp_path)
    _fill(network, datapath)
    run("ip", "-n", moon, "link", "del", DEVICE)
    assert select.select([datapath.fileno()], [], [], 5)[0]
    with pytest.raises(DatapathError, match="has ended"):
        datapath.read_events()
    datapath.stop()


def test_a_device_that_was_down_works_again(laboratory: Laboratory) -> None:
    laboratory.connect(GCM)
    moon = laboratory.network.moon
    moon.batch(f"link set {DEVICE} down")
    moon.batch(f"link set {DEVICE} up")
    laboratory.connect(GCM)
    assert laboratory.network.alice.ping(laboratory.bob(4)) == 0


def test_a_stuck_worker_costs_its_daemon_seconds_and_no_more(
    network: Network, moon: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del moon
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.3)
    datapath = open_here(tmp_path)
    pair = _fill(network, datapath)
    (path,) = tmp_path.glob(f"*/{WORKER_SOCKET}")
    worker = worker_of(path)
    os.kill(worker, signal.SIGSTOP)
    try:
        with pytest.raises(DatapathError, match="timed out"):
            datapath.usage(pair.forth.id)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert len(datapath.dump().sad) == 2, "not the late answer to the question before"
    os.kill(worker, signal.SIGSTOP)
    datapath.stop()
    assert not Path(f"/proc/{worker}").exists()
    path.unlink()


def test_a_daemon_that_does_not_read_holds_up_nothing(
    network: Network, moon: str, tmp_path: Path
) -> None:
    del moon
    datapath = open_here(tmp_path)
    pair = _fill(network, datapath)
    (path,) = tmp_path.glob(f"*/{WORKER_SOCKET}")
    attacker = OutboundSa(replace(pair.back, direction=Direction.OUT), os.urandom)
    inner = _udp_packet(network.bob.inside_address(), network.alice.inside_address())
    with connected(path) as deaf, connected(path) as mute:
        deaf.send(requests.encode({"do": "events"}))
        mute.settimeout(3)
        with suppress(OSError):
            for _ in range(3000):
                mute.send(requests.encode({"do": "dump"}))
        for port in range(20_000, 21_500):  # Each packet has another source port: an event.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.bind(("127.0.0.1", port))
                peer.sendto(attacker.seal(inner, IPV4_IN_ESP), ("127.0.0.1", IKE_NATT_PORT))
        eventually("the packets", lambda: datapath.usage(pair.back.id).packets == 1500)
    events = list(datapath.read_events())
    while events[-1].new.port != 21_499:  # type: ignore[union-attr]
        assert select.select([datapath.fileno()], [], [], 5)[0], "the rest comes when we read"
        events += datapath.read_events()
    assert len(events) <= 1500
    datapath.stop()


def test_events_wait_for_a_daemon_that_is_away(network: Network, moon: str, tmp_path: Path) -> None:
    del moon
    datapath = open_here(tmp_path)
    pair = _fill(network, datapath)
    datapath.remove_sa(pair.forth.id)
    datapath.close()
    assert network.alice.ping(network.bob.inside_address(), count=1) == 1
    later = open_here(tmp_path)
    assert select.select([later.fileno()], [], [], 5)[0]
    assert [event.reqid for event in later.read_events()] == [REQID]
    later.stop()
    with suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_junk_requests_are_answered_and_end_nothing(moon: str, tmp_path: Path) -> None:
    del moon
    datapath = open_here(tmp_path)
    (path,) = tmp_path.glob(f"*/{WORKER_SOCKET}")
    junk = (
        b"\xff",
        b"[]",
        b"[" * 60_000,
        b"{}",
        b'{"do": []}',
        b'{"do": "close"}',
        b'{"do": "add_sa"}',
        b'{"do": "add_sa", "with": 5}',
        b'{"do": "remove_sa", "with": {"spi": -1, "protocol": 3, "destination": "10.0.0.1"}}',
        requests.encode(
            {
                "do": "add_sa",
                "with": to_plain(replace(sad_entry(USERSPACE_SPI_BIT), replay_window=-1)),
            }
        ),
    )
    with connected(path) as connection:
        for request in junk:
            connection.send(request)
            reply = requests.decode(connection.recv(requests.MAX_PACKET))
            assert "error" in reply or request == junk[-2]
    assert datapath.dump() == Dump(sad=(), spd=())
    datapath.stop()


_KNOCK = """
import socket, sys
door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
door.connect(sys.argv[1])
try:
    door.send(b'{"do": "dump"}')
    print(door.recv(100))
except (BrokenPipeError, ConnectionResetError):
    print(b"")
"""


def test_another_user_is_refused(moon: str, tmp_path: Path) -> None:
    del moon
    datapath = open_here(tmp_path)
    (path,) = tmp_path.glob(f"*/{WORKER_SOCKET}")
    assert path.stat().st_mode & 0o777 == 0o600

    def knock() -> subprocess.CompletedProcess[str]:
        nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
        # The system's own interpreter, for ours may be where nobody can go.
        command = (*nobody, "/usr/bin/python3", "-c", _KNOCK, str(path))
        return subprocess.run(command, capture_output=True, text=True, check=False)

    for folder in (path.parent, *path.parents[1:]):
        if folder.is_relative_to("/tmp/pytest-of-root"):
            folder.chmod(0o711)
    assert "PermissionError" in knock().stderr
    path.chmod(0o666)
    assert knock().stdout == "b''\n", "the worker itself looks who it is"
    assert datapath.dump() == Dump(sad=(), spd=())
    datapath.stop()


def test_a_port_that_somebody_holds_is_said_and_no_worker_is_left(
    network: Network, tmp_path: Path
) -> None:
    with inside(network.moon.namespace):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as selfish:
            selfish.bind(("", IKE_NATT_PORT))
            with pytest.raises(DatapathError, match="UDP port 4500 cannot be shared"):
                open_here(tmp_path)
        assert DEVICE not in run("ip", "-n", network.moon.namespace, "link")
        open_here(tmp_path).stop()


_START = """
import sys
from pathlib import Path
from xfrmpy.datapath.userspace.client import UserspaceDatapath
datapath = UserspaceDatapath.start(Path(sys.argv[1]))
datapath.stop()
print("started")
"""


@pytest.mark.parametrize(
    ("obstacle", "words"),
    [
        (
            ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"],
            "the TUN device xfrmpy0 cannot be made: Operation not permitted",
        ),
        (
            ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev/net; exec "$@"', "-"],
            "/dev/net/tun cannot be opened: No such file or directory",
        ),
    ],
    ids=["privilege", "device"],
)
def test_what_is_missing_is_said(
    moon: str, tmp_path: Path, obstacle: list[str], words: str
) -> None:
    del moon
    command = [*obstacle, sys.executable, "-c", _START, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]


def test_root_of_a_user_namespace_is_root_enough(tmp_path: Path) -> None:
    command = ["unshare", "-Urn", sys.executable, "-c", _START, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare: " in done.stderr:
        pytest.skip(done.stderr)
    assert done.stdout == "started\n", done.stderr


if __name__ == "__main__":
    _daemon(Path(sys.argv[1]), Path(sys.argv[2]))
