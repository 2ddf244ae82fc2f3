"""The contract of `xfrmpy.datapath.interface`, as tests that every datapath is put through.

A test module makes classes of its own from these and gives the fixtures that they name:

- `open_datapath`: a function of no arguments that opens a datapath of the kind under test, of the
  network namespace of the calling thread. It may be called again, as a daemon does that starts
  anew; who opens one also closes it.
- `spi_bits`: what is set in the SPI of every inbound SA of this kind (`USERSPACE_SPI_BIT` or 0).
- for `DatapathContract`, `gateway`: the test runs in a namespace made by `gateway_namespace`.
- for `TrafficContract`, `sites`: two `Site`s, made by `two_sites`.

All of them may last for a module: in an emulated machine a namespace takes seconds to make.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network

import pytest

from xfrmpy.datapath.interface import (
    Acquire,
    Capabilities,
    Datapath,
    DatapathError,
    Event,
    Expired,
)
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.algorithms import CIPHERS, INTEGRITY
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import OUR_REQIDS, Direction, Lifetime, Mode, SadEntry, UdpEncapsulation
from xfrmpy.ipsec.selectors import MaskedPort, Selector, TrafficSelector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry, Template, protect_entries

OpenDatapath = Callable[[], Datapath]

SUITES = {
    str(suite): suite
    for cipher in CIPHERS
    for integrity in ((None,) if cipher.is_aead else INTEGRITY)
    for esn in (False, True)
    for suite in (EspSuite(cipher=cipher, integrity=integrity, esn=esn),)
}
GCM = SUITES["aes256gcm16-esn"]
REQID = OUR_REQIDS[7]
OUTER = {
    4: (ip_address("198.51.100.1"), ip_address("198.51.100.2")),
    6: (ip_address("2001:db8:0:1::1"), ip_address("2001:db8:0:1::2")),
}
"""The addresses of the two gateways on the link between them."""
INNER = {
    4: (ip_network("10.1.0.0/24"), ip_network("10.2.0.0/24")),
    6: (ip_network("fd00:1::/64"), ip_network("fd00:2::/64")),
}
"""The networks behind them; each gateway has the first address of its own."""


_PING = {4: 84, 6: 104}  # octets of an echo request of `ping`, or of its answer


def spd_entry(
    direction: PolicyDirection = PolicyDirection.OUT,
    *,
    version: int = 4,
    action: Action = Action.PROTECT,
    mode: Mode = Mode.TUNNEL,
) -> SpdEntry:
    """A policy of the first gateway's."""
    ours, theirs = INNER[version]
    from_us, to_us = OUTER[4], OUTER[4][::-1]
    outbound = direction is PolicyDirection.OUT
    source, destination = from_us if outbound else to_us
    selector = Selector(source=ours, destination=theirs)
    return SpdEntry(
        direction=direction,
        selector=selector if outbound else selector.reversed(),
        action=action,
        priority=1000,
        template=Template(source=source, destination=destination, reqid=REQID, mode=mode)
        if action is Action.PROTECT
        else None,
    )


def sad_entry(spi_bits: int, **changes: object) -> SadEntry:
    """An inbound SA of the first gateway's."""
    suite = changes.get("suite", GCM)
    assert isinstance(suite, EspSuite)
    entry = SadEntry(
        direction=Direction.IN,
        spi=0x1234560 | spi_bits,
        source=OUTER[4][1],
        destination=OUTER[4][0],
        reqid=REQID,
        suite=suite,
        encryption_key=bytes(range(suite.cipher.keymat)),
        integrity_key=bytes(range(suite.integrity.key)) if suite.integrity else b"",
        # The userspace datapath knows ESP in UDP only.
        encapsulation=UdpEncapsulation(4500, 4500) if spi_bits else None,
    )
    return replace(entry, **changes)  # type: ignore[arg-type]


class DatapathContract:
    """SAs and policies go in and come out; nothing moves."""

    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls, gateway: object, open_datapath: OpenDatapath) -> Iterator[Datapath]:
        del gateway
        with closing(open_datapath()) as datapath:
            yield datapath

    @pytest.fixture
    def datapath(self, opened: Datapath) -> Iterator[Datapath]:
        opened.remove_ours()
        yield opened
        opened.remove_ours()

    @pytest.mark.parametrize("name", SUITES)
    def test_an_sa_is_dumped_as_it_went_in(
        self, datapath: Datapath, spi_bits: int, name: str
    ) -> None:
        entry = sad_entry(spi_bits, suite=SUITES[name])
        datapath.add_sa(entry)
        assert datapath.dump().sad == (entry,)

    @pytest.mark.parametrize(
        "changes",
        [
            {"replay_window": 32},
            {"replay_window": 1024},
            {"mode": Mode.TRANSPORT},
            {"encapsulation": UdpEncapsulation(40_000, 4500)},
            {"source": OUTER[6][1], "destination": OUTER[6][0]},
            {"lifetime": Lifetime(soft_seconds=3000, hard_seconds=3600)},
            {"lifetime": Lifetime(soft_bytes=1 << 40, hard_bytes=1 << 41)},
            {"lifetime": Lifetime(soft_packets=1 << 33, hard_packets=1 << 34)},
        ],
        ids=str,
    )
    def test_an_sa_keeps_every_field(
        self, datapath: Datapath, spi_bits: int, changes: dict[str, object]
    ) -> None:
        inbound = sad_entry(spi_bits, **changes)
        outbound = replace(
            inbound,
            direction=Direction.OUT,
            spi=0x7654321,
            source=inbound.destination,
            destination=inbound.source,
        )
        for entry in (inbound, outbound):
            datapath.add_sa(entry)
        assert set(datapath.dump().sad) == {inbound, outbound}

    def test_the_same_sa_twice_is_refused(self, datapath: Datapath, spi_bits: int) -> None:
        datapath.add_sa(sad_entry(spi_bits))
        with pytest.raises(DatapathError) as refused:
            datapath.add_sa(sad_entry(spi_bits))
        assert refused.value.errno == errno.EEXIST

    def test_a_removed_sa_is_gone_and_may_be_removed_again(
        self, datapath: Datapath, spi_bits: int
    ) -> None:
        entry = sad_entry(spi_bits)
        datapath.add_sa(entry)
        for _ in range(2):
            datapath.remove_sa(entry.id)
        assert datapath.dump().sad == ()

    @pytest.mark.parametrize(
        "changes",
        [
            {"lifetime": Lifetime(soft_seconds=100, hard_seconds=200)},
            {"encapsulation": UdpEncapsulation(1025, 4500)},
            {"source": ip_address("198.51.100.77")},
            {"encapsulation": None},
        ],
        ids=str,
    )
    def test_an_update_changes_what_it_may(
        self, datapath: Datapath, spi_bits: int, changes: dict[str, object]
    ) -> None:
        old = sad_entry(spi_bits, encapsulation=UdpEncapsulation(4500, 4500))
        datapath.add_sa(old)
        new = replace(old, **changes)  # type: ignore[arg-type]
        datapath.update_sa(new)
        assert datapath.dump().sad == (new,)

    def test_an_update_of_no_sa_is_refused(self, datapath: Datapath, spi_bits: int) -> None:
        with pytest.raises(DatapathError) as refused:
            datapath.update_sa(sad_entry(spi_bits))
        assert refused.value.errno == errno.ESRCH
        assert datapath.dump().sad == ()

    def test_an_unused_sa_has_carried_nothing(self, datapath: Datapath, spi_bits: int) -> None:
        entry = sad_entry(spi_bits)
        datapath.add_sa(entry)
        usage = datapath.usage(entry.id)
        assert (usage.octets, usage.packets, usage.seconds_idle) == (0, 0, None)

    def test_the_usage_of_no_sa_is_refused(self, datapath: Datapath, spi_bits: int) -> None:
        with pytest.raises(DatapathError):
            datapath.usage(sad_entry(spi_bits).id)

    @pytest.mark.parametrize("mode", Mode)
    @pytest.mark.parametrize("version", [4, 6])
    @pytest.mark.parametrize("direction", PolicyDirection)
    def test_a_policy_is_dumped_as_it_went_in(
        self, datapath: Datapath, direction: PolicyDirection, version: int, mode: Mode
    ) -> None:
        if mode is Mode.TRANSPORT and (version == 6 or direction is PolicyDirection.FORWARD):
            pytest.skip("transport mode ends on this host and changes no family")
        entry = spd_entry(direction, version=version, mode=mode)
        datapath.add_policy(entry)
        assert datapath.dump().spd == (entry,)

    @pytest.mark.parametrize("action", [Action.BYPASS, Action.DISCARD])
    @pytest.mark.parametrize("direction", PolicyDirection)
    def test_a_policy_without_an_sa_is_known_as_ours(
        self,
        datapath: Datapath,
        open_datapath: OpenDatapath,
        direction: PolicyDirection,
        action: Action,
    ) -> None:
        entry = spd_entry(direction, action=action)
        datapath.add_policy(entry)
        later = open_datapath()
        try:
            assert later.dump().spd == (entry,)
        finally:
            later.close()

    def test_masked_ports_and_a_protocol_survive(self, datapath: Datapath) -> None:
        plain = spd_entry()
        selector = replace(
            plain.selector,
            protocol=6,
            source_port=MaskedPort(0x1F00, 0xFF00),
            destination_port=MaskedPort(443, 0xFFFF),
        )
        entry = replace(plain, selector=selector)
        datapath.add_policy(entry)
        assert datapath.dump().spd == (entry,)

    @pytest.mark.parametrize("action", Action)
    def test_a_policy_replaces_ours_of_the_same_selector(
        self, datapath: Datapath, action: Action
    ) -> None:
        datapath.add_policy(spd_entry())
        entry = replace(spd_entry(action=action), priority=77)
        datapath.add_policy(entry)
        assert datapath.dump().spd == (entry,)
        datapath.add_policy(spd_entry())
        assert datapath.dump().spd == (spd_entry(),)

    def test_a_removed_policy_is_gone_and_may_be_removed_again(self, datapath: Datapath) -> None:
        datapath.add_policy(spd_entry())
        for _ in range(2):
            datapath.remove_policy(spd_entry())
        assert datapath.dump().spd == ()

    def test_removing_ours_leaves_nothing_and_counts(
        self, datapath: Datapath, spi_bits: int
    ) -> None:
        datapath.add_sa(sad_entry(spi_bits))
        for direction in PolicyDirection:
            datapath.add_policy(spd_entry(direction))
        assert datapath.remove_ours() == 4
        dump = datapath.dump()
        assert (dump.sad, dump.spd) == ((), ())
        assert datapath.remove_ours() == 0

    def test_a_later_process_finds_all_of_it(
        self, datapath: Datapath, open_datapath: OpenDatapath, spi_bits: int
    ) -> None:
        datapath.add_sa(sad_entry(spi_bits))
        datapath.add_policy(spd_entry())
        later = open_datapath()
        try:
            assert later.dump() == datapath.dump()
            assert later.remove_ours() == 2
        finally:
            later.close()

    def test_probing_leaves_nothing_behind(self, datapath: Datapath) -> None:
        capabilities = datapath.probe()
        assert capabilities.suites
        assert Mode.TUNNEL in capabilities.modes
        dump = datapath.dump()
        assert (dump.sad, dump.spd) == ((), ())

    def test_reading_events_does_not_wait_for_any(self, datapath: Datapath) -> None:
        assert datapath.read_events() == ()
        assert not select.select([datapath.fileno()], [], [], 0)[0]


@dataclass(slots=True)
class Site:
    """One gateway: its namespace, its datapath, and which of the two it is (0 or 1)."""

    namespace: str
    datapath: Datapath
    end: int
    waiting: list[Event] = field(default_factory=list)

    def run(self, *command: str) -> str:
        return run("ip", "netns", "exec", self.namespace, *command)

    def ping(self, version: int, *options: str, count: int = 3) -> bool:
        """Ping the other's inner address, from whatever address the routes choose."""
        target = str(inner_address(version, 1 - self.end))
        command = ("ping", "-n", "-q", "-c", str(count), "-i", "0.1", "-W", "3", *options, target)
        with inside(self.namespace):
            return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def wait_for(self, kind: type[Event], seconds: float = 20) -> Event:
        """The next event of one kind."""
        deadline = time.monotonic() + seconds
        while True:
            self.waiting += self.datapath.read_events()
            for event in self.waiting:
                if isinstance(event, kind):
                    self.waiting.remove(event)
                    return event
            left = deadline - time.monotonic()
            assert left > 0, f"no {kind.__name__} in {seconds} seconds"
            select.select([self.datapath.fileno()], [], [], left)


class TrafficContract:
    """Two gateways, each with a datapath of the kind under test, and packets between them."""

    @pytest.fixture(autouse=True)
    def _clean(self, sites: tuple[Site, Site]) -> Iterator[None]:
        yield
        for site in sites:
            site.datapath.remove_ours()
            site.datapath.read_events()
            site.waiting.clear()

    @pytest.fixture
    def capabilities(self, sites: tuple[Site, Site]) -> Capabilities:
        return sites[0].datapath.probe()

    @pytest.mark.parametrize("name", SUITES)
    def test_each_suite_carries_packets(
        self, sites: tuple[Site, Site], capabilities: Capabilities, spi_bits: int, name: str
    ) -> None:
        suite = SUITES[name]
        if str(replace(suite, esn=False)) not in capabilities.suites:
            pytest.skip(capabilities.missing.get(str(replace(suite, esn=False)), "unknown suite"))
        encapsulated = not capabilities.raw_esp
        install_pair(sites, suite, spi_bits=spi_bits, encapsulated=encapsulated)
        assert sites[0].ping(4)
        _assert_carried(sites, packets=3, ping_octets=_PING[4])

    @pytest.mark.parametrize("encapsulated", [False, True], ids=["esp", "udp"])
    @pytest.mark.parametrize("inner", [4, 6])
    @pytest.mark.parametrize("outer", [4, 6])
    def test_either_family_goes_inside_either(
        self,
        sites: tuple[Site, Site],
        capabilities: Capabilities,
        spi_bits: int,
        outer: int,
        inner: int,
        encapsulated: bool,
    ) -> None:
        if not (capabilities.udp_encapsulation if encapsulated else capabilities.raw_esp):
            pytest.skip("this datapath does not do that")
        install_pair(
            sites, GCM, spi_bits=spi_bits, outer=outer, inner=inner, encapsulated=encapsulated
        )
        assert sites[0].ping(inner)
        assert sites[1].ping(inner)
        _assert_carried(sites, packets=6, ping_octets=_PING[inner])

    def test_a_packet_without_an_sa_asks_for_one(self, sites: tuple[Site, Site]) -> None:
        add_policies(sites[0], inner=4, outer=4)
        assert not sites[0].ping(4, "-W", "0.2", count=1)
        acquire = sites[0].wait_for(Acquire)
        assert isinstance(acquire, Acquire)
        assert acquire.reqid == REQID
        assert acquire.source.start_address == inner_address(4, 0)
        assert acquire.destination.start_address == inner_address(4, 1)

    def test_limits_of_packets_are_told_and_kept(
        self, sites: tuple[Site, Site], capabilities: Capabilities, spi_bits: int
    ) -> None:
        pair = install_pair(
            sites,
            GCM,
            spi_bits=spi_bits,
            encapsulated=not capabilities.raw_esp,
            lifetime=Lifetime(soft_packets=2, hard_packets=4),
        )
        hard = Expired(sa=pair.forth.id, reqid=REQID, hard=True)
        sites[0].ping(4, "-W", "0.2", count=8)
        told: list[Event] = []
        while hard not in told:
            told.append(sites[0].wait_for(Expired))
        assert replace(hard, hard=False) in told
        assert pair.forth not in sites[0].datapath.dump().sad
        sites[0].datapath.remove_sa(pair.forth.id)

    def test_limits_of_time_are_told(
        self, sites: tuple[Site, Site], capabilities: Capabilities, spi_bits: int
    ) -> None:
        pair = install_pair(
            sites,
            GCM,
            spi_bits=spi_bits,
            encapsulated=not capabilities.raw_esp,
            lifetime=Lifetime(soft_seconds=1, hard_seconds=2),
        )
        told = [sites[1].wait_for(Expired) for _ in range(4)]
        assert {(e.sa, e.hard) for e in told if isinstance(e, Expired)} == {
            (entry.id, hard) for entry in (pair.forth, pair.back) for hard in (False, True)
        }
        assert sites[1].datapath.dump().sad == ()

    def test_an_update_keeps_the_counters(
        self, sites: tuple[Site, Site], capabilities: Capabilities, spi_bits: int
    ) -> None:
        pair = install_pair(sites, GCM, spi_bits=spi_bits, encapsulated=not capabilities.raw_esp)
        assert sites[0].ping(4)
        before = sites[0].datapath.usage(pair.forth.id)
        moved = replace(pair.forth, lifetime=Lifetime(hard_seconds=4000))
        sites[0].datapath.update_sa(moved)
        assert sites[0].datapath.usage(pair.forth.id).packets == before.packets == 3
        assert sites[0].ping(4), "the peer's replay window would not take a counter from zero"
        assert moved in sites[0].datapath.dump().sad

    def test_a_rekey_touches_no_policy(
        self, sites: tuple[Site, Site], capabilities: Capabilities, spi_bits: int
    ) -> None:
        encapsulated = not capabilities.raw_esp
        old = install_pair(sites, GCM, spi_bits=spi_bits, encapsulated=encapsulated)
        assert sites[0].ping(4)
        new = make_pair(GCM, spi_bits=spi_bits, encapsulated=encapsulated, serial=1)
        for site in sites:
            new.add_to(site)
        for site in sites:
            old.remove_from(site)
        assert sites[0].ping(4)
        assert len(sites[0].datapath.dump().sad) == 2

    def test_what_must_be_protected_is_not_taken_in_clear(self, sites: tuple[Site, Site]) -> None:
        theirs = str(INNER[4][1])
        sites[0].run("ip", "route", "add", theirs, "via", str(OUTER[4][1]))
        try:
            assert _datagram_arrives(sites), "the way is open"
            add_policies(sites[1], inner=4, outer=4)
            assert not _datagram_arrives(sites)
        finally:
            sites[0].run("ip", "route", "del", theirs)


@dataclass(frozen=True, slots=True)
class SaPair:
    """The two SAs between the sites, each as its receiver has it."""

    forth: SadEntry
    back: SadEntry

    def add_to(self, site: Site) -> None:
        for entry, receiver in ((self.forth, 1), (self.back, 0)):
            direction = Direction.IN if site.end == receiver else Direction.OUT
            site.datapath.add_sa(replace(entry, direction=direction))

    def remove_from(self, site: Site) -> None:
        for entry in (self.forth, self.back):
            site.datapath.remove_sa(entry.id)


def make_pair(
    suite: EspSuite,
    *,
    spi_bits: int,
    outer: int = 4,
    encapsulated: bool = False,
    lifetime: Lifetime | None = None,
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
            encryption_key=fill * suite.cipher.keymat,
            integrity_key=fill * (suite.integrity.key if suite.integrity else 0),
            encapsulation=UdpEncapsulation(4500, 4500) if encapsulated else None,
            lifetime=lifetime or Lifetime(),
        )

    return SaPair(one(0), one(1))


def install_pair(
    sites: tuple[Site, Site],
    suite: EspSuite,
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
        add_policies(site, inner=inner, outer=outer)
    return pair


def add_policies(site: Site, *, inner: int, outer: int) -> None:
    """The three policies of one site."""
    us, them = site.end, 1 - site.end
    networks = [TrafficSelector.parse(str(network)) for network in INNER[inner]]
    addresses = OUTER[outer]
    for entry in protect_entries(
        local=[networks[us]],
        remote=[networks[them]],
        outbound=Template(source=addresses[us], destination=addresses[them], reqid=REQID),
        inbound=Template(source=addresses[them], destination=addresses[us], reqid=REQID),
    ):
        site.datapath.add_policy(entry)


def inner_address(version: int, end: int) -> IpAddress:
    return INNER[version][end][1]


def _assert_carried(sites: tuple[Site, Site], *, packets: int, ping_octets: int) -> None:
    """Each SA carried so many pings, on either end, and refused none."""
    for site in sites:
        for entry in site.datapath.dump().sad:
            usage = site.datapath.usage(entry.id)
            assert (usage.packets, usage.replayed, usage.integrity_failed) == (packets, 0, 0)
            assert usage.octets == packets * ping_octets
            assert usage.seconds_idle is None or usage.seconds_idle < 60


def _datagram_arrives(sites: tuple[Site, Site]) -> bool:
    """From the first's inner address to the second's."""
    with ExitStack() as stack:
        sockets = []
        for site in sites:
            with inside(site.namespace):
                sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sock.bind((str(inner_address(4, site.end)), 7777))
                sockets.append(sock)
        sockets[0].sendto(b"in clear", sockets[1].getsockname())
        return bool(select.select([sockets[1]], [], [], 0.5)[0])


@contextmanager
def gateway_namespace() -> Iterator[str]:
    """A namespace with the first gateway's addresses, entered by this thread."""
    with _namespace("contract") as name:
        _ip(name, "link add wan type veth peer wan-end", "link set wan-end up")
        _ip(name, *_addresses(0))
        with inside(name):
            yield name


@contextmanager
def two_sites(open_datapath: OpenDatapath) -> Iterator[tuple[Site, Site]]:
    """Two namespaces with a link between them, and a datapath in each."""
    with _namespace("site0") as one, _namespace("site1") as two, ExitStack() as stack:
        _ip(one, f"link add wan type veth peer name wan netns {two}")
        sites = []
        for end, name in enumerate((one, two)):
            _ip(name, *_addresses(end))
            with inside(name):
                datapath = stack.enter_context(closing(open_datapath()))
            stack.callback(datapath.remove_ours)
            sites.append(Site(name, datapath, end))
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
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
