"""Two sites and the internet between them, in network namespaces that vanish afterwards.

    alice -- moon == internet == sun -- bob        either gateway may stand behind a NAT router:
                                                   alice -- moon -- nat == internet == sun -- bob

`internet` is a bridge: all that moon and sun say to each other passes it and can be captured there.
It is everybody's default route too, so that a packet which leaves a gateway in the clear is seen.
Where it is asked for there is a third gateway, venus, with nobody behind it: the Vagrantfile's.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

from integration.lab.process import PATIENCE, Background, enter, eventually, run
from integration.lab.tunnel import End, Tunnel

TUNNELS = 16
"""How many tunnels there can be side by side, each with its own address of sun and its own subnets:
daemons are slow to start in the emulated machine, so tests share them."""

_serial = itertools.count(1)

_INTERNET = {4: "192.0.2.254", 6: "2001:db8::fe"}

_OFF = (
    *("ipv4/conf/*/rp_filter", "ipv4/conf/*/send_redirects"),
    *("ipv6/conf/*/accept_dad", "ipv6/conf/*/accept_ra"),
)
_FORWARDING = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")

_NAT_RULES = """
table ip nat {
    chain out {
        type nat hook postrouting priority srcnat
        oifname "wan" masquerade random
    }
    chain in {
        type nat hook prerouting priority dstnat
        iifname "wan" udp dport { 500, 4500 } dnat to ADDRESS
    }
}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A namespace. `site` is 1 for moon and alice, 2 for sun and bob.

    A gateway's `outside` addresses, by IP version, are what it has; at `public` others reach it.
    """

    name: str
    namespace: str
    site: int = 0
    outside: dict[int, str] = field(default_factory=dict)
    public: dict[int, str] = field(default_factory=dict)

    def inside_address(self, number: int = 0, family: int = 4) -> str:
        """Where a host is among the addresses that tunnel `number` carries."""
        return _inside(self.site, number, family, 10)

    def await_links(self) -> None:
        """The kernel calls a device up a while after it was set up, and adds its routes then.

        Before that it calls one DOWN, LOWERLAYERDOWN when the other end of the wire came later, or
        UNKNOWN, which the loopback device stays.
        """
        show = ("ip", "-n", self.namespace, "-brief", "link")

        def are_up() -> bool:
            links = [line.split()[:2] for line in run(*show).stdout.splitlines()]
            return all(state == "UP" for name, state in links if name != "lo")

        eventually(f"every link of {self.name} to be up", are_up)

    def command(self, *argv: str) -> tuple[str, ...]:
        return ("nsenter", f"--net=/run/netns/{self.namespace}", *argv)

    def run(self, *argv: str, check: bool = True, seconds: float = 60.0) -> str:
        """What a command in here prints; `AssertionError` if it fails."""
        return run(*self.command(*argv), check=check, seconds=seconds).stdout

    def batch(self, *lines: str) -> None:
        """Lines of `ip`."""
        run("ip", "-n", self.namespace, "-batch", "-", stdin="\n".join(lines) + "\n")

    @contextmanager
    def sending_one_by_one(self) -> Iterator[None]:
        """As on a wire: what was handed to the device as one packet for many is cut before it."""
        self.batch("link set wan gso_max_segs 1")
        try:
            yield
        finally:
            self.batch("link set wan gso_max_segs 65535")

    def drop(self, rule: str) -> None:
        """Silently drop the arriving packets that match, in nft's words."""
        self.run("nft", "add table inet lab")
        self.run("nft", "add chain inet lab input { type filter hook input priority 0; }")
        self.run("nft", f"add rule inet lab input {rule} drop")

    def ping(self, destination: str, count: int = 3, octets: int = 56) -> int:
        """How many of `count` echo requests, sent at once, were lost.

        After its first answer ping(8) waits for the last no longer than the interval, or twice the
        longest round trip: an interval of 0.1 s would be too short on a busy machine.
        """
        patience = f"{2 * PATIENCE:g}"
        arguments = ("-n", "-c", str(count), "-l", str(count), "-i", patience, "-W", patience)
        done = run(*self.command("ping", *arguments, "-s", str(octets), destination), check=False)
        return count - _counts(done.stdout)[1]

    def await_answer(self, destination: str, seconds: float = 30.0) -> None:
        """Ping until something comes back; `AssertionError` if nothing does."""
        deadline = f"{seconds * PATIENCE:.0f}"
        command = self.command("ping", "-n", "-c", "1", "-i", "0.2", "-w", deadline, destination)
        run(*command, seconds=seconds + 10)

    @contextmanager
    def pinging(self, destination: str, log: Path) -> Iterator[list[int]]:
        """Ping all the while; afterwards the list holds how many were sent and how many lost.

        It goes on until what was on its way in the end has had its time: until a later one is
        answered, or for some seconds, after which whatever is without an answer is lost.
        """
        counts: list[int] = []
        ping = Background(self.command("ping", "-n", "-i", "0.02", destination), log)
        try:
            eventually("a first answer to ping", lambda: "time=" in ping.output, seconds=30)
            yield counts
            with suppress(AssertionError):
                _await_later_answer(ping)
        finally:
            ping.stop(signal.SIGINT)
        sent, received = _counts(ping.output)
        is_answered = max(_answered(log)) > max(_sent(log), default=sent)
        counts += [sent, len(unanswered(log)) if is_answered else sent - received]


def _await_later_answer(ping: Background) -> None:
    before = len(_sent(ping.log))
    ping.process.send_signal(signal.SIGQUIT)
    eventually("ping to say how many it has sent", lambda: len(_sent(ping.log)) > before)
    sent = _sent(ping.log)[-1]
    eventually("a later answer to ping", lambda: max(_answered(ping.log)) > sent)


def _sent(log: Path) -> list[int]:
    """From what ping says when it is asked: "3/2 packets, 33% loss, min/avg/ewma/max = ..."."""
    return [int(number) for number in re.findall(r"(\d+)/\d+ packets", log.read_text())]


def unanswered(log: Path) -> list[int]:
    """The numbers of the pings without an answer, those that were on their way in the end aside."""
    answered = _answered(log)
    return [number for number in range(1, max(answered)) if number not in answered]


def _answered(log: Path) -> set[int]:
    return {int(number) for number in re.findall(r"icmp_seq=(\d+) ", log.read_text())}


def _counts(output: str) -> tuple[int, int]:
    """From ping's summary: "3 packets transmitted, 3 received, 0% packet loss, time 404ms"."""
    summary = re.search(r"(\d+) packets transmitted, (\d+) received", output)
    assert summary, output
    return int(summary[1]), int(summary[2])


class Network:
    """The topology above, built. `close` removes it, and whatever still runs in it."""

    def __init__(self, *, nat: Collection[str] = (), with_venus: bool = False) -> None:
        prefix = f"xl{os.getpid()}-{next(_serial)}"
        self.internet = Host(name="internet", namespace=f"{prefix}-net", outside=_INTERNET)
        self.moon = _gateway(prefix, "moon", 1, behind_nat="moon" in nat)
        self.sun = _gateway(prefix, "sun", 2, behind_nat="sun" in nat)
        self.venus = _gateway(prefix, "venus", 3, behind_nat=False) if with_venus else None
        self.nats = {
            gateway.name: Host(name="nat", namespace=f"{gateway.namespace}-nat", site=gateway.site)
            for gateway in (self.moon, self.sun)
            if gateway.name in nat
        }
        self.alice = Host(name="alice", namespace=f"{prefix}-alice", site=1)
        self.bob = Host(name="bob", namespace=f"{prefix}-bob", site=2)
        self.hosts = [self.internet, self.moon, self.sun, self.alice, self.bob]
        self.hosts += [*self.nats.values(), *((self.venus,) if self.venus else ())]
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def tunnel(self, number: int = 0, outside: int = 4, inside: int = 4, **terms: Any) -> Tunnel:
        """What moon's end of a tunnel between the two sites looks like, by IP versions."""
        moon = End(
            address=self.moon.outside[outside],
            public=self.moon.public[outside],
            id=f"moon{number or ''}.example.net",
            subnets=(subnet(1, number, inside),),
        )
        address = _alias(number, outside) if number else self.sun.outside[outside]
        sun = End(
            address=address,
            public=address if number else self.sun.public[outside],
            id=f"sun{number or ''}.example.net",
            subnets=(subnet(2, number, inside),),
        )
        return Tunnel(ours=moon, theirs=sun, **terms)

    def forget_mappings(self) -> None:
        """The NAT routers lose what they knew, as if they had been switched off and on again.

        What leaves through them afterwards gets another port: a masquerading device that goes down
        takes its connections along.
        """
        for nat in self.nats.values():
            nat.batch("link set wan down", "link set wan up")
            nat.await_links()

    def narrow(self, octets: int) -> None:
        """Larger packets do not pass the internet from now on, and nobody is told."""
        self.internet.batch(f"link set moon mtu {octets}", f"link set sun mtu {octets}")

    @contextmanager
    def routed(self, octets: int) -> Iterator[Callable[[int], None]]:
        """What moon says to sun passes a router meanwhile, which takes no larger packets, and says
        so; the function changes how large."""
        _set(self.internet, on=_FORWARDING)
        lengths = ((4, 32), (6, 128))
        to_sun = {family: f"{self.sun.public[family]}/{length}" for family, length in lengths}

        def take(octets: int) -> None:
            self.internet.batch(
                *(f"route replace {s} dev br0 mtu {octets}" for s in to_sun.values())
            )

        take(octets)
        vias = [f"{sun} via {_INTERNET[family]} dev wan" for family, sun in to_sun.items()]
        self.moon.batch(*(f"route add {via}" for via in vias))
        try:
            yield take
        finally:
            self.moon.batch(*(f"route del {via}" for via in vias))

    @contextmanager
    def severed(self) -> Iterator[None]:
        """Nothing of sun's passes the internet meanwhile; no link goes down, and nobody is told."""
        self.internet.batch("link set sun nomaster")
        yield
        self.internet.batch("link set sun master br0")

    def close(self) -> None:
        present = run("ip", "netns", "list").stdout.split()
        names = [host.namespace for host in self.hosts if host.namespace in present]
        for pid in _processes_in(names):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run("ip", "-batch", "-", stdin="".join(f"netns del {name}\n" for name in names))

    def _build(self) -> None:
        """Few processes, each with much to do: they are what takes time in the emulated machine."""
        wires = [
            _wire(self.alice, "eth0", self.moon, "lan"),
            _wire(self.bob, "eth0", self.sun, "lan"),
        ]
        for gateway in (self.moon, self.sun):
            nat = self.nats.get(gateway.name)
            wires.append(_wire(nat or gateway, "wan", self.internet, gateway.name))
            if nat:
                wires.append(_wire(gateway, "wan", nat, "lan"))
        if self.venus:
            wires.append(_wire(self.venus, "wan", self.internet, "venus"))
            wires.append(_wire(self.venus, "lan", self.venus, "nobody"))
        lines = [f"netns add {host.namespace}" for host in self.hosts]
        run("ip", "-batch", "-", stdin="\n".join([*lines, *wires, ""]))
        self._build_internet()
        for nat in self.nats.values():
            _build_nat(nat)
        _build_gateway(self.moon)
        _build_gateway(self.sun, () if "sun" in self.nats else range(1, TUNNELS))
        if self.venus:
            self.venus.batch("link set nobody up")
            _build_gateway(self.venus)
        _build_host(self.alice)
        _build_host(self.bob)
        for host in self.hosts:
            host.await_links()

    def _build_internet(self) -> None:
        _set(self.internet)
        self.internet.batch(
            "link set lo up",
            "link add br0 type bridge mcast_snooping 0",
            "link set br0 up",
            f"addr add {_INTERNET[4]}/24 dev br0",
            f"addr add {_INTERNET[6]}/64 dev br0 nodad",
            "link set moon master br0 up",
            "link set sun master br0 up",
            *(("link set venus master br0 up",) if self.venus else ()),
        )


def _processes_in(names: Sequence[str]) -> Iterator[int]:
    """Those that nobody stopped. `ip netns pids` says the same, but looks once for each name."""
    namespaces = {Path("/run/netns", name).stat().st_ino for name in names}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "ns/net").stat().st_ino in namespaces:
                yield int(process.name)


def _gateway(prefix: str, name: str, site: int, *, behind_nat: bool) -> Host:
    public = {4: f"192.0.2.{site}", 6: f"2001:db8::{site}"}
    address = _behind_nat(site, 1) if behind_nat else public[4]
    return Host(
        name=name,
        namespace=f"{prefix}-{name}",
        site=site,
        outside={**public, 4: address},
        public=public,
    )


def subnet(site: int, number: int = 0, family: int = 4) -> str:
    """The subnet of a site that tunnel `number` carries."""
    prefix = {4: 24, 6: 64}[family]
    return str(ip_interface(f"{_inside(site, number, family, 0)}/{prefix}"))


def _inside(site: int, number: int, family: int, host: int) -> str:
    written = {4: f"10.{site}.{number}.{host}", 6: f"fd0{site}:0:0:{number}::{host}"}
    return str(ip_address(written[family]))


def _alias(number: int, family: int) -> str:
    """Sun's address for tunnel `number`."""
    return {4: f"192.0.2.{20 + number}", 6: f"2001:db8::2:{number}"}[family]


def _behind_nat(site: int, host: int) -> str:
    """In the network between a gateway and its NAT router."""
    return f"172.16.{site}.{host}"


def _set(host: Host, on: Sequence[str] = ()) -> None:
    """The settings of its kernel, written by a thread that goes there: no process need start."""

    def write() -> None:
        enter(host.namespace)
        for value, patterns in (("0", _OFF), ("1", on)):
            for file in itertools.chain(*(Path("/proc/sys/net").glob(p) for p in patterns)):
                file.write_text(value)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(write).result()


def _build_nat(nat: Host) -> None:
    _set(nat, on=_FORWARDING)
    nat.batch(
        "link set lo up",
        "link set wan up",
        "link set lan up",
        f"addr add 192.0.2.{nat.site}/24 dev wan",
        f"addr add {_behind_nat(nat.site, 254)}/24 dev lan",
    )
    rules = _NAT_RULES.replace("ADDRESS", _behind_nat(nat.site, 1))
    run(*nat.command("nft", "-f", "-"), stdin=rules)


def _build_gateway(gateway: Host, more: Sequence[int] = ()) -> None:
    is_public = gateway.outside == gateway.public
    router = _INTERNET[4] if is_public else _behind_nat(gateway.site, 254)
    _set(gateway, on=_FORWARDING)
    gateway.batch(
        "link set lo up",
        "link set wan up",
        "link set lan up",
        f"addr add {gateway.outside[4]}/24 dev wan",
        f"addr add {gateway.outside[6]}/64 dev wan nodad",
        *(f"addr add {_alias(number, 4)}/24 dev wan" for number in more),
        *(f"addr add {_alias(number, 6)}/64 dev wan nodad" for number in more),
        *_link_addresses(gateway.site, 1, "lan"),
        f"route add default via {router}",
        f"route add default via {_INTERNET[6]}",
    )


def _build_host(host: Host) -> None:
    """A host speaks to the other site's subnet of a tunnel from its own address in that tunnel."""
    _set(host)
    router = {family: _inside(host.site, 0, family, 1) for family in (4, 6)}
    lines = ["link set lo up", "link set eth0 up", *_link_addresses(host.site, 10, "eth0")]
    for number, family in itertools.product(range(TUNNELS), (4, 6)):
        own, other = host.inside_address(number, family), subnet(3 - host.site, number, family)
        lines.append(f"route add {other} via {router[family]} src {own}")
    host.batch(*lines, *(f"route add default via {address}" for address in router.values()))


def _link_addresses(site: int, host: int, device: str) -> Iterator[str]:
    """One in each subnet of the site."""
    for number in range(TUNNELS):
        yield f"addr add {_inside(site, number, 4, host)}/16 dev {device}"
        yield f"addr add {_inside(site, number, 6, host)}/48 dev {device} nodad"


def _wire(one: Host, one_device: str, other: Host, other_device: str) -> str:
    return (
        f"link add {one_device} netns {one.namespace} type veth "
        f"peer name {other_device} netns {other.namespace}"
    )
