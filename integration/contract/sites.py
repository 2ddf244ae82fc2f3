"""The two gateways in network namespaces, and SAs and policies put in force on them."""

from __future__ import annotations

import ctypes
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace

import pytest

from integration.contract.entries import INNER, OUTER, REQID, inner_address
from integration.lab.process import PATIENCE, eventually
from xfrmpy.datapath.interface import Datapath, Event
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.proposals import AhSuite, EspSuite
from xfrmpy.ipsec.sad import Direction, Lifetime, Mode, SadEntry, UdpEncapsulation, Usage
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import Template, protect_entries
from xfrmpy.registry import ProtocolId

OpenDatapath = Callable[[], Datapath]


@dataclass(slots=True)
class Pinging:
    """How many echo requests were sent and answered, once it is over."""

    counts: tuple[int, int] = (0, 0)

    def count(self, output: str) -> None:
        summary = re.search(r"(\d+) packets transmitted, (\d+) received", output)
        assert summary, output
        # The last request may still be on its way when ping is told to stop.
        self.counts = (max(int(summary[1]) - 1, int(summary[2])), int(summary[2]))


@dataclass(slots=True)
class Site:
    """One gateway: its namespace, its datapath, and which of the two it is (0 or 1)."""

    namespace: str
    datapath: Datapath
    end: int
    waiting: list[Event] = field(default_factory=list)

    def empty(self) -> None:
        """Of the datapath that it has by now; a test may have opened another."""
        with closing(self.datapath):
            self.datapath.remove_ours()

    def run(self, *command: str) -> str:
        return run("ip", "netns", "exec", self.namespace, *command)

    def ping(self, version: int, *options: str, count: int = 3) -> bool:
        """Ping the other's inner address, from whatever address the routes choose."""
        return self._ping(inner_address(version, 1 - self.end), *options, count=count)

    def ping_host(self, version: int, *options: str, count: int = 3) -> bool:
        """Ping the other's outer address."""
        return self._ping(OUTER[version][1 - self.end], *options, count=count)

    def _ping(self, address: IpAddress, *options: str, count: int) -> bool:
        target = str(address)
        command = ("ping", "-n", "-q", "-c", str(count), "-i", "0.1", "-W", "3", *options, target)
        with inside(self.namespace):
            return subprocess.run(command, check=False, capture_output=True).returncode == 0

    @contextmanager
    def pinging(self) -> Iterator[Pinging]:
        """Ping the other's inner address all the while; afterwards it knows how many were lost."""
        target = str(inner_address(4, 1 - self.end))
        with inside(self.namespace):
            process = subprocess.Popen(
                ["ping", "-n", "-q", "-i", "0.01", target], stdout=subprocess.PIPE, text=True
            )
        ping = Pinging()
        try:
            yield ping
        finally:
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate(timeout=30 * PATIENCE)
        ping.count(output)

    def wait_for(self, kind: type[Event], seconds: float = 20) -> Event:
        """The next event of one kind."""
        deadline = time.monotonic() + seconds * PATIENCE
        while True:
            self.waiting += self.datapath.read_events()
            for event in self.waiting:
                if isinstance(event, kind):
                    self.waiting.remove(event)
                    return event
            left = deadline - time.monotonic()
            assert left > 0, f"no {kind.__name__} in {seconds} seconds"
            select.select([self.datapath.fileno()], [], [], left)


class CleanSites:
    """Tests that leave nothing in force at either site, nor anything to be read."""

    @pytest.fixture(autouse=True)
    def _clean(self, sites: tuple[Site, Site]) -> Iterator[None]:
        yield
        for site in sites:
            site.datapath.remove_ours()
            site.datapath.read_events()
            site.waiting.clear()


@dataclass(frozen=True, slots=True)
class SaPair:
    """The two SAs between the sites, each as its receiver has it."""

    forth: SadEntry
    back: SadEntry

    def compressing(self, cpis: tuple[int, int]) -> SaPair:
        """The same with indices of compression."""
        return SaPair(replace(self.forth, cpi=cpis[0]), replace(self.back, cpi=cpis[1]))

    def add_to(self, site: Site, *directions: Direction) -> None:
        """Both SAs, or that of one direction as the site sees it."""
        for entry in self.at(site, *directions):
            site.datapath.add_sa(entry)

    def remove_from(self, site: Site, *directions: Direction) -> None:
        for entry in self.at(site, *directions):
            site.datapath.remove_sa(entry.id)

    def at(self, site: Site, *directions: Direction) -> Iterator[SadEntry]:
        """As the site has them."""
        for entry, receiver in ((self.forth, 1), (self.back, 0)):
            direction = Direction.IN if site.end == receiver else Direction.OUT
            if not directions or direction in directions:
                yield replace(entry, direction=direction)

    def usages(self, *sites: Site) -> list[Usage]:
        """Of both SAs at each of the sites."""
        return [site.datapath.usage(entry.id) for site in sites for entry in self.at(site)]


def make_pair(
    suite: EspSuite | AhSuite,
    *,
    spi_bits: int,
    outer: int = 4,
    encapsulated: bool = False,
    lifetime: Lifetime | None = None,
    mode: Mode = Mode.TUNNEL,
    serial: int = 0,
) -> SaPair:
    """Outbound entries, of both directions; `serial` makes other SPIs and keys."""

    def one(number: int) -> SadEntry:
        fill = bytes([0x10 * serial + number])
        return SadEntry(
            direction=Direction.OUT,
            spi=0x1000_0000 + 16 * serial + number | spi_bits,
            source=OUTER[outer][number],
            destination=OUTER[outer][1 - number],
            reqid=REQID,
            suite=suite,
            mode=mode,
            encryption_key=fill * suite.keymat,
            integrity_key=fill * (suite.integrity.key if suite.integrity else 0),
            encapsulation=UdpEncapsulation(4500, 4500) if encapsulated else None,
            lifetime=lifetime or Lifetime(),
        )

    return SaPair(one(0), one(1))


def install_pair(
    sites: tuple[Site, Site],
    suite: EspSuite | AhSuite,
    *,
    spi_bits: int,
    outer: int = 4,
    inner: int = 4,
    encapsulated: bool = False,
    lifetime: Lifetime | None = None,
) -> SaPair:
    """SAs and policies for the inner networks, on both sites."""
    pair = make_pair(
        suite, spi_bits=spi_bits, outer=outer, encapsulated=encapsulated, lifetime=lifetime
    )
    for site in sites:
        pair.add_to(site)
        add_policies(site, inner=inner, outer=outer, protocol=suite.protocol)
    return pair


def install_transport(
    sites: tuple[Site, Site],
    suite: EspSuite,
    *,
    spi_bits: int,
    outer: int = 4,
    encapsulated: bool = False,
    traffic: str = "",
    cpis: tuple[int, int] | None = None,
) -> SaPair:
    """SAs and policies for what the two gateways say to each other, e.g. `udp/7777` of it."""
    mode = Mode.TRANSPORT
    pair = make_pair(suite, spi_bits=spi_bits, outer=outer, encapsulated=encapsulated, mode=mode)
    if cpis is not None:
        pair = pair.compressing(cpis)
    limit = f"[{traffic}]" if traffic else ""
    for site in sites:
        pair.add_to(site)
        us, them = (OUTER[outer][end] for end in (site.end, 1 - site.end))
        outbound, inbound = (
            Template(
                source=source,
                destination=destination,
                reqid=REQID,
                mode=mode,
                compresses=cpis is not None,
            )
            for source, destination in ((us, them), (them, us))
        )
        for entry in protect_entries(
            local=[TrafficSelector.parse(f"{us}{limit}")],
            remote=[TrafficSelector.parse(f"{them}{limit}")],
            outbound=outbound,
            inbound=inbound,
        ):
            site.datapath.add_policy(entry)
    return pair


def add_policies(
    site: Site,
    *,
    inner: int,
    outer: int = 4,
    ends: tuple[IpAddress, IpAddress] | None = None,
    protocol: ProtocolId = ProtocolId.ESP,
    compresses: bool = False,
    mode: Mode = Mode.TUNNEL,
) -> None:
    """The three policies of one site; `ends` are the gateways' addresses."""
    us, them = site.end, 1 - site.end
    networks = [TrafficSelector.parse(str(network)) for network in INNER[inner]]
    addresses = ends or OUTER[outer]

    def template(source: IpAddress, destination: IpAddress) -> Template:
        return Template(
            source=source,
            destination=destination,
            reqid=REQID,
            protocol=protocol,
            compresses=compresses,
            mode=mode,
        )

    for entry in protect_entries(
        local=[networks[us]],
        remote=[networks[them]],
        outbound=template(addresses[us], addresses[them]),
        inbound=template(addresses[them], addresses[us]),
    ):
        site.datapath.add_policy(entry)


def eavesdropper(site: Site) -> socket.socket:
    """Hears what comes to the site's gateway from outside, from the IP header on."""
    with inside(site.namespace):
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_IPV4_FRAMES))
    opened.bind(("wan", _IPV4_FRAMES))
    opened.settimeout(20)
    return opened


def first_from(wire: socket.socket, source: IpAddress) -> bytes:
    """The next packet of its."""
    while True:
        packet = wire.recv(65535)
        if packet[12:16] == source.packed:
            return packet


_IPV4_FRAMES = 0x0800


@contextmanager
def gateway_namespace() -> Iterator[str]:
    """A namespace with the first gateway's addresses, entered by this thread."""
    with _namespace("contract") as name:
        _ip(name, "link add wan type veth peer wan-end", "link set wan-end up")
        _ip(name, *_addresses(0))
        _await_links(name)
        with inside(name):
            yield name


@contextmanager
def two_sites(open_datapath: OpenDatapath) -> Iterator[tuple[Site, Site]]:
    """Two namespaces with a link between them, and a datapath in each."""
    with _namespace("site0") as one, _namespace("site1") as two, ExitStack() as stack:
        _ip(one, f"link add wan type veth peer name wan netns {two}")
        for end, name in enumerate((one, two)):
            _ip(name, *_addresses(end))
        sites = []
        for end, name in enumerate((one, two)):
            _await_links(name)
            with inside(name):
                site = Site(name, open_datapath(), end)
            stack.callback(site.empty)
            sites.append(site)
        yield sites[0], sites[1]


@contextmanager
def _namespace(label: str) -> Iterator[str]:
    name = f"{label}-{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        yield name
    finally:
        run("ip", "netns", "del", name)


def _addresses(end: int) -> Iterator[str]:
    """Lines of `ip` for one gateway."""
    yield from ("link add lan type veth peer lan-end", "link set lan-end up", "link set lo up")
    for version, options, length in ((4, "", 24), (6, "nodad", 64)):
        for device, address in (("wan", OUTER[version][end]), ("lan", inner_address(version, end))):
            yield f"address add {address}/{length} dev {device} {options}"
    yield from ("link set wan up", "link set lan up")


def _ip(namespace: str, *lines: str) -> None:
    subprocess.run(
        ["ip", "-n", namespace, "-batch", "-"], input="\n".join(lines), text=True, check=True
    )


def _await_links(namespace: str) -> None:
    """The kernel calls a device up a while after it was set up, and adds IPv6 routes then."""
    show = ("ip", "-n", namespace, "-brief", "link")
    eventually(f"the links of {namespace} to be up", lambda: " DOWN " not in run(*show))


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """This thread in a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (
        open("/proc/thread-self/ns/net", "rb") as before,
        open(f"/run/netns/{namespace}", "rb") as there,
    ):
        assert libc.setns(there.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        try:
            yield
        finally:
            assert libc.setns(before.fileno(), _CLONE_NEWNET) == 0


_CLONE_NEWNET = 0x40000000


def run(*command: str) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=60 * PATIENCE
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
