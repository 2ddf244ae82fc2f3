"""The kernel datapath against real kernels: the contract, and what only this one does.

Natively any kernel will do for policies, routes and acquires; what needs ESP is marked `vm`.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from integration.contract.compression import CompressionContract
from integration.contract.default_policy import DefaultInForce
from integration.contract.entries import (
    ENDS,
    GCM,
    INNER,
    OUTER,
    REQID,
    SUITES,
    sad_entry,
    spd_entry,
)
from integration.contract.entries_in_force import DatapathContract
from integration.contract.hostile import HostileContract
from integration.contract.interfaces import InterfaceContract
from integration.contract.selecting import SelectorContract
from integration.contract.sites import (
    SaPair,
    Site,
    add_policies,
    inside,
    install_pair,
    make_pair,
    run,
    two_sites,
)
from integration.contract.succession import SuccessionContract
from integration.contract.traffic import TrafficContract
from integration.contract.transport import TransportContract
from integration.contract.watching import WatchContract, is_told
from xfrmpy.datapath.interface import (
    Acquire,
    DatapathError,
    Expired,
    MappingChanged,
    NotAdded,
    Realm,
)
from xfrmpy.datapath.kernel.datapath import KernelDatapath
from xfrmpy.datapath.kernel.sockets import enable_udp_encapsulation, exempt_from_policies
from xfrmpy.datapath.routes import OUR_TABLE
from xfrmpy.ipsec.addresses import IKE_NATT_PORT, SocketAddress
from xfrmpy.ipsec.algorithms import CIPHERS
from xfrmpy.ipsec.drift import Dump, Finding
from xfrmpy.ipsec.marks import Mark
from xfrmpy.ipsec.proposals import AhSuite, EspSuite
from xfrmpy.ipsec.sad import (
    OUR_REQIDS,
    Direction,
    InnerEnds,
    Lifetime,
    Mode,
    UdpEncapsulation,
)
from xfrmpy.ipsec.selectors import Selector, TrafficSelector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry, Template, shunt_entries


@pytest.fixture(scope="module")
def esp() -> None:
    """A kernel without ESP would make every test below meaningless; the `vm` mark promises it."""
    with closing(KernelDatapath.open()) as datapath:
        capabilities = datapath.probe()
    assert capabilities.protocols, capabilities.missing["esp"]


@pytest.fixture(scope="module")
def spi_bits() -> int:
    return 0


@pytest.fixture(scope="module")
def open_datapath() -> Callable[[], KernelDatapath]:
    return KernelDatapath.open


@pytest.fixture(scope="module")
def sites() -> Iterator[tuple[Site, Site]]:
    """With a socket on UDP 4500 of both families in each, as the daemon has."""
    with ExitStack() as stack:

        def open_with_sockets() -> KernelDatapath:
            for family in (socket.AF_INET, socket.AF_INET6):
                natt = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                if family == socket.AF_INET6:
                    natt.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                natt.bind(("", 4500))
                enable_udp_encapsulation(natt)
                exempt_from_policies(natt)
            return KernelDatapath.open()

        yield stack.enter_context(two_sites(open_with_sockets))


@pytest.mark.vm
@pytest.mark.usefixtures("esp")
class TestContract(DatapathContract):
    pass


@pytest.mark.vm
@pytest.mark.usefixtures("esp")
class TestInterfaces(InterfaceContract):
    pass


@pytest.mark.native
@pytest.mark.vm
class TestDefault(DefaultInForce):
    pass


@pytest.mark.native
@pytest.mark.vm
class TestWatching(WatchContract):
    @pytest.mark.parametrize(
        "command",
        [
            ("delete", "dir", "in", "src", str(INNER[4][1]), "dst", str(INNER[4][0])),
            ("flush",),
            ("add", "dir", "out", "src", "10.77.0.0/24", "dst", "10.78.0.0/24", "priority", "5"),
        ],
        ids=str,
    )
    def test_what_others_do_to_policies_is_told(
        self, gateway: str, watching: KernelDatapath, command: tuple[str, ...]
    ) -> None:
        ours = {*watching.dump().spd}
        run("ip", "-n", gateway, "xfrm", "policy", *command)
        assert is_told(watching)
        assert Realm.ENTRIES in watching.read_changes()
        dump = watching.dump()
        watching.add([entry for entry in ours if entry not in dump.spd])
        assert {*watching.dump().spd} == ours
        others = [str(other.selector.source) for other in dump.others]
        assert others == (["10.77.0.0/24"] if command[0] == "add" else [])
        run("ip", "-n", gateway, "xfrm", "policy", "flush")

    def test_the_way_to_a_peer_that_changes_changes_the_route(
        self, gateway: str, watching: KernelDatapath
    ) -> None:
        around = (f"{OUTER[4][1]}/32", "dev", "lan", "src", str(OUTER[4][0]))
        run("ip", "-n", gateway, "route", "add", *around)
        try:
            assert is_told(watching)
            (amiss,) = watching.find_amiss()
            assert (amiss.finding, amiss.subject) == (Finding.PATH_CHANGED, OUTER[4])
            watching.mend(amiss)
            assert f"{INNER[4][1]} dev lan" in _routes(gateway, 4)
        finally:
            run("ip", "-n", gateway, "route", "del", *around)
        for amiss in watching.find_amiss():
            watching.mend(amiss)
        assert f"{INNER[4][1]} dev wan" in _routes(gateway, 4)


@pytest.mark.vm
@pytest.mark.usefixtures("esp")
def test_an_sa_by_hand_that_bears_our_mark_is_told_as_strange(
    gateway: str, datapath: KernelDatapath
) -> None:
    for spi, reqid in ((0x1001, REQID), (0x1002, 7)):
        add = f"add src 192.0.2.1 dst 192.0.2.2 proto esp spi {spi} reqid {reqid}"
        keys = ("aead", "rfc4106(gcm(aes))", "0x" + "00" * 20, "128")
        run("ip", "-n", gateway, "xfrm", "state", *add.split(), "mode", "tunnel", *keys)
    dump = datapath.dump()
    assert dump.sad == ()
    (strange,) = dump.strange
    assert strange.destination == ip_address("192.0.2.2")
    datapath.remove_sa(strange)
    assert datapath.dump().strange == ()
    assert "reqid 7" in run("ip", "-n", gateway, "xfrm", "state")
    run("ip", "-n", gateway, "xfrm", "state", "flush")


@pytest.mark.vm
@pytest.mark.usefixtures("esp")
class TestTraffic(TrafficContract):
    def test_iproute_sees_what_we_mean(self, sites: tuple[Site, Site]) -> None:
        install_pair(sites, SUITES["aes256-sha256-esn"], spi_bits=0, encapsulated=True)
        assert sites[0].ping(4)
        state = sites[0].run("ip", "-s", "xfrm", "state", "get", *_FORTH)
        for words in (
            f"src {OUTER[4][0]} dst {OUTER[4][1]}",
            f"reqid {REQID}",
            "mode tunnel",
            "flag af-unspec esn",
            "output-mark 0x5846/0xffffffff",
            "auth-trunc hmac(sha256)",
            "enc cbc(aes)",
            "encap type espinudp sport 4500 dport 4500",
            "replay_window 256, bitmap-length 8",
            "252(bytes), 3(packets)",
        ):
            assert words in state
        policies = sites[0].run("ip", "xfrm", "policy")
        for direction in PolicyDirection:
            assert f"dir {direction} " in policies
        assert policies.count(f"proto esp reqid {REQID} mode tunnel") == 3

    def test_another_port_of_the_peer_is_told(self, sites: tuple[Site, Site]) -> None:
        """The receiver's SA knows another port than packets come from, as after a NAT's reboot."""
        pair = install_pair(sites, GCM, spi_bits=0, encapsulated=True)
        inbound = replace(pair.forth, direction=Direction.IN)
        sites[1].datapath.update_sa(
            replace(inbound, encapsulation=UdpEncapsulation(40_001, IKE_NATT_PORT))
        )
        assert sites[0].ping(4)
        change = sites[1].wait_for(MappingChanged)
        assert change == MappingChanged(
            sa=pair.forth.id,
            reqid=REQID,
            old=SocketAddress(OUTER[4][0], 40_001),
            new=SocketAddress(OUTER[4][0], IKE_NATT_PORT),
        )

    def test_an_sa_made_again_for_another_source_keeps_its_counters(
        self, sites: tuple[Site, Site]
    ) -> None:
        pair = install_pair(sites, GCM, spi_bits=0)
        assert sites[0].ping(4)
        moved = replace(pair.back, direction=Direction.IN, source=ip_address("198.51.100.9"))
        sites[0].datapath.update_sa(moved)
        usage = sites[0].datapath.usage(moved.id)
        assert (usage.packets, usage.octets) == (3, 252)
        assert "seq 0x3" in sites[0].run("ip", "xfrm", "state", "get", *_BACK), (
            "the replay window goes on"
        )

    def test_expiries_that_were_lost_are_made_good(self, sites: tuple[Site, Site]) -> None:
        pair = install_pair(sites, GCM, spi_bits=0, lifetime=Lifetime(soft_packets=1))
        with inside(sites[0].namespace), _deaf(_kernel(sites[0])) as datapath:
            assert sites[0].ping(4)
            sites[0].run("ip", "xfrm", "state", "delete", *_BACK)
            _ask_for_sas(datapath, 40)
            events = datapath.read_events()
        assert Expired(sa=pair.forth.id, reqid=REQID, hard=False) in events
        assert Expired(sa=pair.back.id, reqid=REQID, hard=True) in events

    def test_protected_packets_stay_off_our_routes(self, sites: tuple[Site, Site]) -> None:
        """A route of ours that covers the peer, and leads elsewhere, must not lead them astray."""
        install_pair(sites, GCM, spi_bits=0)
        route = f"default dev lan table {OUR_TABLE}".split()
        sites[0].run("ip", "route", "add", *route)
        try:
            assert sites[0].ping(4)
        finally:
            sites[0].run("ip", "route", "del", *route)


@pytest.mark.vm
@pytest.mark.usefixtures("esp")
class TestTransport(TransportContract):
    pass


@pytest.mark.vm
@pytest.mark.usefixtures("esp")
class TestSelectors(SelectorContract):
    pass


@pytest.mark.vm
@pytest.mark.usefixtures("esp")
class TestHostile(HostileContract):
    pass


@pytest.mark.vm
@pytest.mark.usefixtures("esp")
@pytest.mark.parametrize("encapsulated", [False, True], ids=["esp", "udp"])
@pytest.mark.parametrize("inner", [4, 6])
@pytest.mark.parametrize("outer", [4, 6])
def test_beet_mode_spares_the_inner_header(
    sites: tuple[Site, Site], outer: int, inner: int, encapsulated: bool
) -> None:
    """Each end makes it anew of what it knows."""
    pair = make_pair(GCM, spi_bits=0, outer=outer, encapsulated=encapsulated)
    one, other = ENDS[inner].destination, ENDS[inner].source
    forth = InnerEnds(source=one, destination=other)
    pair = SaPair(
        replace(pair.forth, mode=Mode.BEET, inner=forth),
        replace(pair.back, mode=Mode.BEET, inner=ENDS[inner]),
    )
    try:
        for site in sites:
            pair.add_to(site)
            add_policies(site, inner=inner, outer=outer, mode=Mode.BEET)
            assert set(site.datapath.dump().sad) == set(pair.at(site))
        assert sites[0].ping(inner)
        assert sites[1].ping(inner)
        for site in sites:
            for entry in pair.at(site):
                usage = site.datapath.usage(entry.id)
                assert (usage.packets, usage.octets) == (6, 6 * 64)
    finally:
        for site in sites:
            site.datapath.remove_ours()


@pytest.mark.vm
@pytest.mark.usefixtures("esp")
class TestCompression(CompressionContract):
    pass


@pytest.mark.vm
@pytest.mark.usefixtures("esp")
class TestSuccession(SuccessionContract):
    pass


@pytest.mark.vm
@pytest.mark.usefixtures("esp")
def test_the_kernel_of_the_laboratory_does_it_all(sites: tuple[Site, Site]) -> None:
    capabilities = sites[0].datapath.probe()
    in_linux = {str(suite) for suite in SUITES.values() if not _has_implicit_iv(suite)}
    assert {name for name in in_linux if not name.endswith("-esn")} <= capabilities.suites
    assert "aes128gcm16iiv" not in capabilities.suites
    assert capabilities.modes >= {*Mode} - {Mode.IPTFS}
    assert capabilities.esn
    assert capabilities.udp_encapsulation
    assert capabilities.raw_esp
    assert capabilities.compression
    newer = {"iptfs mode", "resources"}  # Linux 6.14 and 6.13
    assert capabilities.missing.keys() - newer == {c.name for c in CIPHERS if c.implicit_iv}


def _has_implicit_iv(suite: EspSuite | AhSuite) -> bool:
    return isinstance(suite, EspSuite) and suite.cipher.implicit_iv > 0


@pytest.mark.vm
@pytest.mark.usefixtures("esp")
def test_another_programs_sa_is_left_alone(gateway: str) -> None:
    entry = sad_entry(0)
    with closing(KernelDatapath.open()) as datapath:
        datapath.add_sa(replace(entry, reqid=7))
        for refused in (datapath.add_sa, datapath.update_sa):
            with pytest.raises(DatapathError):
                refused(entry)
        datapath.remove_sa(entry.id)
        assert datapath.remove_ours() == 0
        assert "reqid 7" in run("ip", "-n", gateway, "xfrm", "state")
        run(
            "ip",
            "-n",
            gateway,
            "xfrm",
            "state",
            "delete",
            "spi",
            hex(entry.spi),
            "proto",
            "esp",
            "dst",
            str(entry.destination),
        )


@pytest.mark.vm
@pytest.mark.usefixtures("esp")
class TestStatesOfCompression:
    """The SA that is one to us and two to the kernel."""

    @pytest.mark.parametrize("mode", [Mode.TUNNEL, Mode.TRANSPORT])
    def test_what_others_remove_of_it_comes_back(
        self, gateway: str, datapath: KernelDatapath, mode: Mode
    ) -> None:
        entry = sad_entry(0, cpi=_CPI, mode=mode)
        datapath.add_sa(entry)
        run("ip", "-n", gateway, "xfrm", "state", "delete", *_COMPRESSION)
        (found,) = datapath.dump().sad
        assert found == replace(entry, cpi=None, mode=Mode.TRANSPORT)
        for _ in range(2):
            datapath.move_sa(entry.id, entry)
            assert datapath.dump().sad == (entry,)

    def test_it_goes_with_the_sa_that_others_remove(
        self, gateway: str, datapath: KernelDatapath
    ) -> None:
        datapath.add_sa(sad_entry(0, cpi=_CPI))
        run("ip", "-n", gateway, "xfrm", "state", "delete", *_BESIDE)
        assert datapath.dump() == Dump(sad=(), spd=())
        assert run("ip", "-n", gateway, "xfrm", "state") == ""

    def test_a_later_process_knows_it_and_clears_what_is_left_of_it(
        self, gateway: str, datapath: KernelDatapath
    ) -> None:
        entry = sad_entry(0, cpi=_CPI)
        gone = sad_entry(0, cpi=_CPI + 1, spi=entry.spi + 1)
        datapath.add([entry, gone])
        beside = (*_BESIDE[:-1], hex(gone.spi))
        run("ip", "-n", gateway, "xfrm", "state", "delete", *beside)
        with closing(KernelDatapath.open()) as later:
            assert run("ip", "-n", gateway, "xfrm", "state").count("proto comp") == 1
            later.remove_sa(entry.id)
        assert run("ip", "-n", gateway, "xfrm", "state") == ""

    def test_an_index_that_another_has_is_refused_and_stays_his(
        self, gateway: str, datapath: KernelDatapath
    ) -> None:
        theirs = ("src", "198.51.100.7", *_COMPRESSION, "reqid", "7", "comp", "deflate")
        run("ip", "-n", gateway, "xfrm", "state", "add", *theirs)
        first, entry = sad_entry(0, spi=0x1234561), sad_entry(0, cpi=_CPI)
        with pytest.raises(NotAdded) as refused:
            datapath.add([first, entry])
        assert (refused.value.done, refused.value.errno) == (1, errno.EEXIST)
        assert datapath.dump().sad == (first,)
        datapath.remove_ours()
        assert "reqid 7" in run("ip", "-n", gateway, "xfrm", "state")
        run("ip", "-n", gateway, "xfrm", "state", "delete", *_COMPRESSION)

    def test_a_packet_that_asks_for_it_leaves_no_traces(
        self, gateway: str, datapath: KernelDatapath
    ) -> None:
        policy = spd_entry(compresses=True)
        datapath.add_policy(policy)
        _send(str(INNER[4][1][9]), 77)
        (acquire,) = datapath.read_events()
        assert isinstance(acquire, Acquire)
        assert acquire.reqid == REQID
        datapath.ask_again(policy)
        assert run("ip", "-n", gateway, "xfrm", "state") == ""
        _send(str(INNER[4][1][9]), 77)
        assert len(datapath.read_events()) == 1
        datapath.remove_ours()
        assert run("ip", "-n", gateway, "xfrm", "state") == ""


_CPI = 0x1234
_COMPRESSION = ("dst", str(OUTER[4][0]), "proto", "comp", "spi", hex(_CPI))
_BESIDE = ("dst", str(OUTER[4][0]), "proto", "esp", "spi", "0x1234560")


@pytest.mark.native
@pytest.mark.vm
class TestWithoutEsp:
    """What any kernel with XFRM does: policies, routes, acquires."""

    @pytest.mark.parametrize("version", [4, 6])
    def test_policies_survive_with_their_routes(
        self, gateway: str, datapath: KernelDatapath, version: int
    ) -> None:
        entries = {spd_entry(direction, version=version) for direction in PolicyDirection}
        for entry in entries:
            datapath.add_policy(entry)
        local, remote = INNER[version]
        routes = _routes(gateway, version)
        assert f"{remote} dev wan proto 88 src {local[1]}" in routes
        run("ip", "-n", gateway, f"-{version}", "route", "flush", "table", str(OUR_TABLE))
        assert _routes(gateway, version) == ""
        with closing(KernelDatapath.open()) as later:
            assert set(later.dump().spd) == entries
            assert _routes(gateway, version) == routes, "a later process mends them"
            assert later.remove_ours() == 3
        assert _routes(gateway, version) == ""
        assert str(OUR_TABLE) not in run("ip", "-n", gateway, f"-{version}", "rule")

    def test_a_route_is_known_while_the_way_to_the_peer_is_not(
        self, gateway: str, datapath: KernelDatapath
    ) -> None:
        datapath.add_policy(spd_entry())
        link = f"{ip_network((OUTER[4][0], 24), strict=False)} dev wan"
        run("ip", "-n", gateway, "route", "del", *link.split())
        try:
            with closing(KernelDatapath.open()) as later:
                assert str(INNER[4][1]) in _routes(gateway, 4)
                later.remove_policy(spd_entry())
                assert _routes(gateway, 4) == ""
        finally:
            source = ("proto", "kernel", "scope", "link", "src", str(OUTER[4][0]))
            run("ip", "-n", gateway, "route", "add", *link.split(), *source)

    def test_a_route_whose_policy_is_gone_goes_too(
        self, gateway: str, datapath: KernelDatapath
    ) -> None:
        """As when a daemon was killed between the one and the other."""
        datapath.add_policy(spd_entry())
        stray = f"10.77.0.0/16 dev wan table {OUR_TABLE} proto"
        for protocol in ("88", "77"):
            run("ip", "-n", gateway, "route", "add", *stray.split(), protocol, "metric", protocol)
        with closing(KernelDatapath.open()):
            assert "proto 77" in _routes(gateway, 4), "another's is not ours to remove"
            run("ip", "-n", gateway, "route", "del", *stray.split(), "77")
            assert "10.77" not in _routes(gateway, 4)
            assert str(INNER[4][1]) in _routes(gateway, 4)

    def test_a_shared_route_goes_with_its_last_policy(
        self, gateway: str, datapath: KernelDatapath
    ) -> None:
        web, mail = (
            replace(spd_entry(), selector=replace(spd_entry().selector, protocol=protocol))
            for protocol in (6, 17)
        )
        for entry in (web, mail, web):  # the second time it replaces itself
            datapath.add_policy(entry)
        datapath.remove_policy(web)
        assert str(INNER[4][1]) in _routes(gateway, 4)
        datapath.remove_policy(mail)
        assert _routes(gateway, 4) == ""

    def test_a_policy_without_a_way_to_the_peer_is_refused_and_not_left(
        self, gateway: str, datapath: KernelDatapath
    ) -> None:
        run("ip", "-n", gateway, "link", "set", "wan", "down")
        try:
            with pytest.raises(DatapathError, match="unreachable"):
                datapath.add_policy(spd_entry())
        finally:
            run("ip", "-n", gateway, "link", "set", "wan", "up")
        assert datapath.dump().spd == ()

    @pytest.mark.parametrize("action", Action)
    def test_another_programs_policy_is_left_alone(
        self, gateway: str, datapath: KernelDatapath, action: Action
    ) -> None:
        theirs = f"dir out src {INNER[4][0]} dst {INNER[4][1]} priority 5"
        run("ip", "-n", gateway, "xfrm", "policy", "add", *theirs.split())
        with pytest.raises(DatapathError, match="another program has a policy"):
            datapath.add_policy(spd_entry(action=action))
        datapath.remove_policy(spd_entry(action=action))
        assert datapath.remove_ours() == 0
        assert "priority 5" in run("ip", "-n", gateway, "xfrm", "policy")
        run("ip", "-n", gateway, "xfrm", "policy", "delete", *theirs.split()[:6])

    def test_shunts_are_ours_also_behind_one_that_took_a_tunnels_place(
        self, datapath: KernelDatapath
    ) -> None:
        entries = [
            replace(spd_entry(action=Action.DISCARD), priority=priority, selector=selector)
            for priority, selector in enumerate([spd_entry().selector, *_other_selectors(2)])
        ]
        datapath.add_policy(spd_entry())
        for entry in entries:
            datapath.add_policy(entry)
        assert set(datapath.dump().spd) == set(entries)

    def test_an_acquire_is_told_and_its_traces_are_removed(
        self, gateway: str, datapath: KernelDatapath
    ) -> None:
        datapath.add_policy(spd_entry())
        _send(str(INNER[4][1][9]), 77)
        (acquire,) = datapath.read_events()
        assert isinstance(acquire, Acquire)
        assert acquire.reqid == REQID
        assert str(acquire.destination) == "10.2.0.9/32[udp/77]"
        assert datapath.dump().sad == ()
        assert "spi 0x00000000" in run("ip", "-n", gateway, "xfrm", "state")
        datapath.remove_ours()
        assert run("ip", "-n", gateway, "xfrm", "state") == ""

    def test_policies_of_one_selector_are_told_apart_by_their_marks(
        self, gateway: str, datapath: KernelDatapath
    ) -> None:
        one, other, unmarked = (
            replace(spd_entry(), mark=mark, template=replace(_template(), reqid=OUR_REQIDS[n]))
            for n, mark in enumerate((Mark(0x10, 0xF0), Mark(0x20, 0xF0), None))
        )
        for entry in (one, other, unmarked, one):
            datapath.add_policy(entry)
        assert set(datapath.dump().spd) == {one, other, unmarked}
        datapath.remove_policy(unmarked)
        for mark, reqid in ((0x21, OUR_REQIDS[1]), (0x15, OUR_REQIDS[0])):
            _send(str(INNER[4][1][9]), 77, mark)
            (acquire,) = datapath.read_events()
            assert isinstance(acquire, Acquire)
            assert acquire.reqid == reqid
        datapath.remove_policy(one)
        assert datapath.dump().spd == (other,)
        assert str(INNER[4][1]) in _routes(gateway, 4)
        datapath.remove_policy(other)
        assert _routes(gateway, 4) == ""

    def test_shunts_stand_before_a_policy_and_behind_it(
        self, gateway: str, datapath: KernelDatapath
    ) -> None:
        tunnel = replace(spd_entry(), priority=70_000)
        datapath.add_policy(tunnel)
        bypass, drop, behind = (
            _shunt(action, remote, priority)
            for action, remote, priority in (
                (Action.BYPASS, "10.2.0.9/32[udp/77]", None),
                (Action.DISCARD, "10.2.0.9/32[udp]", None),
                (Action.DISCARD, "0.0.0.0/0", 200_000),
            )
        )
        for entry in (behind, drop, bypass):
            datapath.add_policy(entry)
        assert set(datapath.dump().spd) == {tunnel, bypass, drop, behind}
        assert datapath.find_amiss() == ()
        run("ip", "-n", gateway, "route", "add", "10.2.0.0/16", "dev", "wan")
        _send("10.2.0.9", 77)
        run("ip", "-n", gateway, "route", "del", "10.2.0.0/16", "dev", "wan")
        for address, port in (("10.2.0.9", 78), ("198.51.100.2", 77)):
            with pytest.raises(PermissionError):
                _send(address, port)
        assert datapath.read_events() == (), "none of them asks for an SA"
        with closing(KernelDatapath.open()) as later:
            assert later.find_amiss() == ()
            run("ip", "-n", gateway, "rule", "del", "priority", "218")
            (amiss,) = later.find_amiss()
            assert amiss.finding is Finding.SHUNT_RULES_CHANGED
            later.mend(amiss)
            assert later.find_amiss() == ()
        datapath.remove_ours()
        assert "218:" not in run("ip", "-n", gateway, "rule")
        assert run("ip", "-n", gateway, "xfrm", "policy") == ""

    def test_a_policy_asks_once_unless_it_is_to_ask_again(
        self, gateway: str, datapath: KernelDatapath
    ) -> None:
        datapath.add_policy(spd_entry())
        for number, expected in enumerate((1, 0, 0)):
            _send(str(INNER[4][1][9 + number]), 77)
            assert len(datapath.read_events()) == expected
        datapath.ask_again(spd_entry())
        assert run("ip", "-n", gateway, "xfrm", "state") == ""
        _send(str(INNER[4][1][20]), 77)
        (acquire,) = datapath.read_events()
        assert isinstance(acquire, Acquire)
        assert acquire.destination.start_address == INNER[4][1][20]

    def test_acquires_that_were_lost_are_made_good(self, datapath: KernelDatapath) -> None:
        # The kernel asks anew with each packet if nobody heard; here somebody else did.
        with closing(KernelDatapath.open()), _deaf(datapath):
            wanted = _ask_for_sas(datapath, 40)
            events = datapath.read_events()
        assert {event.reqid for event in events if isinstance(event, Acquire)} == wanted
        assert datapath.read_events() == ()

    def test_another_programs_acquire_is_not_told(
        self, gateway: str, datapath: KernelDatapath
    ) -> None:
        theirs = "dir out dst 10.3.0.0/24 tmpl src 198.51.100.1 dst 198.51.100.2 proto esp reqid 7"
        run("ip", "-n", gateway, "xfrm", "policy", "add", *theirs.split(), "mode", "tunnel")
        run("ip", "-n", gateway, "route", "add", "10.3.0.0/24", "dev", "wan")
        _send("10.3.0.9", 77)
        assert datapath.read_events() == ()
        run("ip", "-n", gateway, "xfrm", "policy", "delete", *theirs.split()[:4])

    def test_no_privilege_is_said(self) -> None:
        program = "from xfrmpy.datapath.kernel.datapath import KernelDatapath as K; K.open()"
        drop = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
        done = subprocess.run(
            [*drop, sys.executable, "-c", program], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "it needs root or CAP_NET_ADMIN" in done.stderr.splitlines()[-1]


@pytest.mark.native
def test_a_kernel_without_esp_is_recognised(datapath: KernelDatapath) -> None:
    capabilities = datapath.probe()
    if capabilities.protocols:
        pytest.skip("this kernel has ESP")
    assert not capabilities.modes
    assert not capabilities.suites
    assert "no ESP" in capabilities.missing["esp"]


@pytest.mark.native
def test_a_well_formed_sa_gets_as_far_as_the_missing_esp(datapath: KernelDatapath) -> None:
    """The kernel checks a message before it looks for ESP, and says so in a sentence."""
    if datapath.probe().protocols:
        pytest.skip("this kernel has ESP")
    for changes in (
        {},
        {"encapsulation": UdpEncapsulation(4500, 4500)},
        {"lifetime": Lifetime(soft_seconds=1, hard_bytes=1 << 30)},
        {"direction": Direction.OUT},
        {"source": OUTER[6][1], "destination": OUTER[6][0]},
    ):
        with pytest.raises(DatapathError, match="Requested type not found") as refused:
            datapath.add_sa(sad_entry(0, suite=SUITES["aes256-sha256-esn"], **changes))
        assert refused.value.errno == errno.EPROTONOSUPPORT


_FORTH = ("spi", "0x10000000", "proto", "esp", "dst", str(OUTER[4][1]))
_BACK = ("spi", "0x10000001", "proto", "esp", "dst", str(OUTER[4][0]))


def _routes(namespace: str, version: int) -> str:
    table = str(OUR_TABLE)
    done = subprocess.run(
        ["ip", "-n", namespace, f"-{version}", "route", "show", "table", table],
        capture_output=True,
        text=True,
        check=False,  # a table that never was is an error
    )
    return done.stdout


def _template() -> Template:
    template = spd_entry().template
    assert template is not None
    return template


def _other_selectors(count: int) -> list[Selector]:
    plain = spd_entry().selector
    return [replace(plain, destination=ip_network((77 << 24 | n, 32))) for n in range(count)]


def _shunt(action: Action, remote: str, priority: int | None) -> SpdEntry:
    """What leaves by it."""
    out, *_ = shunt_entries(
        local=[TrafficSelector.parse("0.0.0.0/0")],
        remote=[TrafficSelector.parse(remote)],
        action=action,
        priority=priority,
    )
    return out


def _send(address: str, port: int, mark: int = 0) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        sender.sendto(b"x", (address, port))


def _kernel(site: Site) -> KernelDatapath:
    assert isinstance(site.datapath, KernelDatapath)
    return site.datapath


@contextmanager
def _deaf(datapath: KernelDatapath) -> Iterator[KernelDatapath]:
    """With next to no room for events."""
    with socket.socket(fileno=os.dup(datapath.fileno())) as events:
        events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        yield datapath
        events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)


def _ask_for_sas(datapath: KernelDatapath, count: int) -> set[int]:
    """Packets to as many policies, each with a reqid of its own; returns the reqids."""
    plain = spd_entry()
    assert plain.template is not None
    reqids = OUR_REQIDS[100 : 100 + count]
    for number, reqid in enumerate(reqids):
        remote = f"10.9.{number}"
        selector = replace(plain.selector, destination=ip_network(f"{remote}.0/24"))
        template = replace(plain.template, reqid=reqid)
        datapath.add_policy(replace(plain, selector=selector, template=template))
        _send(f"{remote}.1", 77)
    return set(reqids)
