"""Packets between two gateways, each with a datapath of the kind under test."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import replace
from ipaddress import ip_address

import pytest

from integration.contract.entries import (
    GCM,
    INNER,
    OUTER,
    REQID,
    SUITES,
    inner_address,
    skip_unless_able,
)
from integration.contract.sites import (
    CleanSites,
    SaPair,
    Site,
    add_policies,
    eavesdropper,
    first_from,
    inside,
    install_pair,
    make_pair,
)
from integration.lab.process import eventually
from xfrmpy.datapath.interface import Acquire, Capabilities, Event, Expired
from xfrmpy.ipsec.sad import Direction, DontFragment, Lifetime, OuterHeader, SadEntry
from xfrmpy.registry import ProtocolId

_PING = {4: 84, 6: 104}  # octets of an echo request of `ping`, or of its answer
_PAYLOAD = b"in clear"
_DATAGRAM = 28 + len(_PAYLOAD)  # octets, with the headers of IPv4 and UDP
_COUNTED_SECONDS = 1
"""A kernel notes the last use in whole seconds."""
_MOVED = ip_address("198.51.100.11")
"""Another address for the first gateway."""


class TrafficContract(CleanSites):
    """Two gateways, each with a datapath of the kind under test, and packets between them."""

    @pytest.fixture
    def capabilities(self, sites: tuple[Site, Site]) -> Capabilities:
        return sites[0].datapath.probe()

    @pytest.mark.parametrize("name", SUITES)
    def test_each_suite_carries_packets(
        self, sites: tuple[Site, Site], capabilities: Capabilities, spi_bits: int, name: str
    ) -> None:
        suite = SUITES[name]
        skip_unless_able(capabilities, suite)
        encapsulated = bool(spi_bits) and suite.protocol is ProtocolId.ESP
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
        assert capabilities.udp_encapsulation if encapsulated else capabilities.raw_esp
        install_pair(
            sites, GCM, spi_bits=spi_bits, outer=outer, inner=inner, encapsulated=encapsulated
        )
        assert sites[0].ping(inner)
        assert sites[1].ping(inner)
        _assert_carried(sites, packets=6, ping_octets=_PING[inner])

    @pytest.mark.parametrize("has_df", [False, True])
    @pytest.mark.parametrize(
        ("outer", "traffic_class"),
        [
            (OuterHeader(), 0xB9),
            (OuterHeader(copies_dscp=False), 0x01),
            (OuterHeader(copies_ecn=False), 0xB8),
            (OuterHeader(dont_fragment=DontFragment.CLEAR), 0xB9),
            (OuterHeader(dont_fragment=DontFragment.SET), 0xB9),
        ],
        ids=["all", "no-dscp", "no-ecn", "clear", "set"],
    )
    def test_the_outer_header_has_of_the_inner_one_what_it_should(
        self,
        sites: tuple[Site, Site],
        capabilities: Capabilities,
        spi_bits: int,
        outer: OuterHeader,
        traffic_class: int,
        has_df: bool,
    ) -> None:
        """RFC 4301 section 5.1.2.1."""
        if outer.dont_fragment not in capabilities.dont_fragment:
            pytest.skip("this datapath does not do that")
        pair = make_pair(GCM, spi_bits=spi_bits, encapsulated=bool(spi_bits))
        for site in sites:
            SaPair(replace(pair.forth, outer=outer), pair.back).add_to(site)
            add_policies(site, inner=4)
        with closing(eavesdropper(sites[1])) as wire:
            assert sites[0].ping(4, "-Q", "0xb9", "-M", "do" if has_df else "dont", count=1)
            header = first_from(wire, OUTER[4][0])
        is_copied = outer.dont_fragment is DontFragment.COPY
        expected = has_df if is_copied else outer.dont_fragment is DontFragment.SET
        assert (header[1], bool(header[6] & 0x40)) == (traffic_class, expected)

    @pytest.mark.parametrize(("restores", "expected"), [(False, 0xB8), (True, 0)])
    def test_the_inner_packet_gets_the_dscp_of_the_outer_one_if_it_should(
        self, sites: tuple[Site, Site], spi_bits: int, restores: bool, expected: int
    ) -> None:
        """RFC 4301 section 5.1.2.1, the column of the receiver."""
        pair = make_pair(GCM, spi_bits=spi_bits, encapsulated=bool(spi_bits))
        outer = OuterHeader(copies_dscp=False, restores_dscp=restores)
        for site in sites:
            SaPair(replace(pair.forth, outer=outer), pair.back).add_to(site)
            add_policies(site, inner=4)
        with closing(_inner_socket(sites[1])) as receiver:
            receiver.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
            receiver.settimeout(20)
            with closing(_inner_socket(sites[0])) as sender:
                sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xB8)
                sender.sendto(_PAYLOAD, (str(inner_address(4, 1)), _PORT))
            _, told, _, _ = receiver.recvmsg(100, 100)
        assert [octets for *_, octets in told] == [bytes([expected])]

    def test_small_packets_are_hidden_in_large_ones(
        self, sites: tuple[Site, Site], spi_bits: int
    ) -> None:
        """RFC 4303 section 2.7; what is larger goes as it is, and nothing is larger than fits."""
        if not sites[0].datapath.probe().padding:
            pytest.skip("the kernel pads nothing while esp4_offload is loaded")
        sizes = []
        for tfc in (0, 1200, 65535):
            pair = make_pair(GCM, spi_bits=spi_bits, encapsulated=bool(spi_bits))
            for site in sites:
                SaPair(replace(pair.forth, tfc=tfc), pair.back).add_to(site)
                add_policies(site, inner=4)
            for octets in (56, 1000, 1300):
                with closing(eavesdropper(sites[1])) as wire:
                    assert sites[0].ping(4, "-s", str(octets), count=1)
                    sizes.append(len(first_from(wire, OUTER[4][0])))
            for site in sites:
                site.datapath.remove_ours()
        plain, padded, largest = sizes[:3], sizes[3:6], sizes[6:]
        assert plain[0] < plain[1] < padded[0] == padded[1] < plain[2] == padded[2]
        assert plain[2] < largest[0] == largest[1] == largest[2] <= 1500

    def test_a_packet_without_an_sa_asks_for_one(self, sites: tuple[Site, Site]) -> None:
        add_policies(sites[0], inner=4, outer=4)
        assert not sites[0].ping(4, "-W", "0.2", count=1)
        acquire = sites[0].wait_for(Acquire)
        assert isinstance(acquire, Acquire)
        assert acquire.reqid == REQID
        assert acquire.source.start_address == inner_address(4, 0)
        assert acquire.destination.start_address == inner_address(4, 1)

    @pytest.mark.parametrize(
        "lifetime",
        [
            Lifetime(soft_packets=2, hard_packets=6),
            Lifetime(soft_bytes=2 * _DATAGRAM, hard_bytes=6 * _DATAGRAM),
            Lifetime(soft_seconds=1, hard_seconds=4),
            Lifetime(soft_packets=2, soft_seconds=2, hard_bytes=90 * _DATAGRAM, hard_seconds=8),
        ],
        ids=["packets", "octets", "seconds", "all"],
    )
    def test_each_limit_is_told_once(
        self,
        sites: tuple[Site, Site],
        spi_bits: int,
        lifetime: Lifetime,
    ) -> None:
        """The soft limit leaves the SA in force; at the hard one it is gone."""
        pair = install_pair(
            sites,
            GCM,
            spi_bits=spi_bits,
            encapsulated=bool(spi_bits),
            lifetime=lifetime,
        )
        soft = Expired(sa=pair.forth.id, reqid=REQID, hard=False)
        told = _send_until(sites, soft)
        assert pair.forth in sites[0].datapath.dump().sad
        assert _datagram_arrives(sites), "an SA past its soft limit still carries"
        told += _send_until(sites, replace(soft, hard=True))
        assert pair.forth not in sites[0].datapath.dump().sad
        for _ in range(5):
            _send_datagram(sites)
        told += sites[0].datapath.read_events()
        about_it = [e for e in told if isinstance(e, Expired) and e.sa == pair.forth.id]
        assert about_it == [soft, replace(soft, hard=True)]
        sites[0].datapath.remove_sa(pair.forth.id)

    def test_limits_of_time_hold_for_both_directions(
        self, sites: tuple[Site, Site], spi_bits: int
    ) -> None:
        pair = install_pair(
            sites,
            GCM,
            spi_bits=spi_bits,
            encapsulated=bool(spi_bits),
            lifetime=Lifetime(soft_seconds=1, hard_seconds=2),
        )
        told = [sites[1].wait_for(Expired) for _ in range(4)]
        assert {(e.sa, e.hard) for e in told if isinstance(e, Expired)} == {
            (entry.id, hard) for entry in (pair.forth, pair.back) for hard in (False, True)
        }
        assert sites[1].datapath.dump().sad == ()

    def test_idleness_is_of_one_direction(self, sites: tuple[Site, Site], spi_bits: int) -> None:
        pair = install_pair(sites, GCM, spi_bits=spi_bits, encapsulated=bool(spi_bits))
        for _ in range(2):
            begun_at = time.monotonic()
            assert _datagram_arrives(sites)
            for site in sites:
                idle = _idle(site, pair.forth)
                assert idle <= time.monotonic() - begun_at + _COUNTED_SECONDS, site
                assert site.datapath.usage(pair.back.id).seconds_idle is None
                assert site.datapath.seconds_idle([pair.back.id]) == (None,)
            _until(lambda: _idle(sites[0], pair.forth) > 3, "the SA to seem idle")
            assert _idle(sites[1], pair.forth) > 3 - _COUNTED_SECONDS

    def test_many_are_asked_about_at_once(self, sites: tuple[Site, Site], spi_bits: int) -> None:
        pair = install_pair(sites, GCM, spi_bits=spi_bits, encapsulated=bool(spi_bits))
        gone = replace(pair.back.id, spi=pair.back.spi + 1)
        assert _datagram_arrives(sites)
        for site in sites:
            asked = [gone, pair.back.id, pair.forth.id] * 400
            idle = site.datapath.seconds_idle(asked)
            assert idle[0::3] == idle[1::3] == (None,) * 400
            assert all(seconds is not None and seconds < 60 for seconds in idle[2::3])
            assert site.datapath.seconds_idle([]) == ()

    def test_an_update_keeps_the_counters(self, sites: tuple[Site, Site], spi_bits: int) -> None:
        pair = install_pair(sites, GCM, spi_bits=spi_bits, encapsulated=bool(spi_bits))
        assert sites[0].ping(4)
        before = sites[0].datapath.usage(pair.forth.id)
        moved = replace(pair.forth, lifetime=Lifetime(hard_seconds=4000))
        sites[0].datapath.update_sa(moved)
        assert sites[0].datapath.usage(pair.forth.id).packets == before.packets == 3
        assert sites[0].ping(4), "the peer's replay window would not take a counter from zero"
        assert moved in sites[0].datapath.dump().sad

    def test_a_rekey_touches_no_policy(self, sites: tuple[Site, Site], spi_bits: int) -> None:
        encapsulated = bool(spi_bits)
        old = install_pair(sites, GCM, spi_bits=spi_bits, encapsulated=encapsulated)
        assert sites[0].ping(4)
        new = make_pair(GCM, spi_bits=spi_bits, encapsulated=encapsulated, serial=1)
        for site in sites:
            new.add_to(site)
        for site in sites:
            old.remove_from(site)
        assert sites[0].ping(4)
        assert len(sites[0].datapath.dump().sad) == 2

    def test_a_tunnel_moves_to_another_address_with_its_counters(
        self, sites: tuple[Site, Site], spi_bits: int
    ) -> None:
        """As when the first site's address changes, and both ends have agreed about it."""
        pair = install_pair(sites, GCM, spi_bits=spi_bits, encapsulated=bool(spi_bits))
        assert sites[0].ping(4)
        forth = replace(pair.forth, source=_MOVED)
        back = replace(pair.back, destination=_MOVED)
        sites[0].run("ip", "address", "add", f"{_MOVED}/24", "dev", "wan")
        try:
            for site in sites:
                for old, new in zip(pair.at(site), SaPair(forth, back).at(site), strict=True):
                    site.datapath.move_sa(old.id, new)
                add_policies(site, inner=4, ends=(_MOVED, OUTER[4][1]))
            assert sites[0].ping(4)
        finally:
            sites[0].run("ip", "address", "del", f"{_MOVED}/24", "dev", "wan")
        for site in sites:
            assert set(site.datapath.dump().sad) == set(SaPair(forth, back).at(site))
            assert len(site.datapath.dump().spd) == 3
        _assert_carried(sites, packets=6, ping_octets=_PING[4])

    def test_moving_under_traffic_uses_no_number_twice(
        self, sites: tuple[Site, Site], spi_bits: int
    ) -> None:
        pair = install_pair(sites, GCM, spi_bits=spi_bits, encapsulated=bool(spi_bits))
        sites[0].run("ip", "address", "add", f"{_MOVED}/24", "dev", "wan")
        ends = (OUTER[4][0], _MOVED)
        try:
            with sites[0].pinging() as ping:
                for number in range(20):
                    old, new = (
                        replace(pair.forth, source=ends[(number + step) % 2]) for step in (0, 1)
                    )
                    before = _packets(sites, pair.forth)[0]
                    _until(lambda: _packets(sites, pair.forth)[0] > before, "a packet")  # noqa: B023
                    sites[0].datapath.move_sa(old.id, new)
                    add_policies(sites[0], inner=4, ends=(new.source, new.destination))
            assert sites[0].ping(4), "what meets the gap of a move is lost, and no more"
        finally:
            sites[0].run("ip", "address", "del", f"{_MOVED}/24", "dev", "wan")
        assert sites[1].datapath.usage(pair.forth.id).replayed == 0
        assert ping.counts[1] > 20

    def test_while_two_sas_overlap_the_newest_carries_and_both_are_taken(
        self, sites: tuple[Site, Site], spi_bits: int
    ) -> None:
        """Within one second, too: no clock of a datapath may be too coarse for it."""
        encapsulated = bool(spi_bits)
        old = install_pair(sites, GCM, spi_bits=spi_bits, encapsulated=encapsulated)
        assert _datagram_arrives(sites), "the old SA is in use, and known to whatever caches it"
        new = make_pair(GCM, spi_bits=spi_bits, encapsulated=encapsulated, serial=1)
        new.add_to(sites[1])
        assert _datagram_arrives(sites), "the receiver still takes the old one"
        new.add_to(sites[0])
        assert _datagram_arrives(sites)
        assert _packets(sites, old.forth) == (2, 2)
        assert _packets(sites, new.forth) == (1, 1)
        sites[0].datapath.remove_sa(new.forth.id)
        assert _datagram_arrives(sites), "the older one is used again"
        assert _packets(sites, old.forth) == (3, 3)

    def test_rekeying_under_traffic_loses_nothing(
        self, sites: tuple[Site, Site], spi_bits: int
    ) -> None:
        encapsulated = bool(spi_bits)
        pairs = [install_pair(sites, GCM, spi_bits=spi_bits, encapsulated=encapsulated)]
        with sites[0].pinging() as ping:
            for serial in range(1, 8):
                new = make_pair(GCM, spi_bits=spi_bits, encapsulated=encapsulated, serial=serial)
                for direction in (Direction.IN, Direction.OUT):
                    for site in sites:
                        new.add_to(site, direction)
                for site in sites:
                    pairs[-1].remove_from(site, Direction.OUT)
                before = _packets(sites, new.back)[0]
                _until(lambda: _packets(sites, new.back)[0] > before + 2, "the new SA in use")  # noqa: B023
                for site in sites:
                    pairs[-1].remove_from(site, Direction.IN)
                pairs.append(new)
        sent, received = ping.counts
        assert sent > 20
        assert received == sent

    def test_what_must_be_protected_is_not_taken_in_clear(self, sites: tuple[Site, Site]) -> None:
        theirs = str(INNER[4][1])
        sites[0].run("ip", "route", "add", theirs, "via", str(OUTER[4][1]))
        try:
            assert _datagram_arrives(sites), "the way is open"
            add_policies(sites[1], inner=4, outer=4)
            assert not _datagram_arrives(sites)
        finally:
            sites[0].run("ip", "route", "del", theirs)


def _assert_carried(sites: tuple[Site, Site], *, packets: int, ping_octets: int) -> None:
    """Each SA carried so many pings, on either end, and refused none."""
    sas = [(site.datapath, entry.id) for site in sites for entry in site.datapath.dump().sad]
    # `ping` ends two round trips after its last question.
    eventually("the rest", lambda: all(d.usage(sa).packets >= packets for d, sa in sas))
    for datapath, sa in sas:
        usage = datapath.usage(sa)
        assert (usage.packets, usage.replayed, usage.integrity_failed) == (packets, 0, 0)
        assert usage.octets == packets * ping_octets
        assert usage.seconds_idle is None or usage.seconds_idle < 60


def _datagram_arrives(sites: tuple[Site, Site]) -> bool:
    """From the first's inner address to the second's, and nothing comes back."""
    with closing(_inner_socket(sites[1])) as receiver:
        _send_datagram(sites)
        return bool(select.select([receiver], [], [], 0.5)[0])


def _send_datagram(sites: tuple[Site, Site]) -> None:
    # A kernel may say at once that an SA can carry no more.
    with closing(_inner_socket(sites[0])) as sender, suppress(OSError):
        sender.sendto(_PAYLOAD, (str(inner_address(4, 1)), _PORT))


_PORT = 7777


def _inner_socket(site: Site) -> socket.socket:
    with inside(site.namespace):
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.bind((str(inner_address(4, site.end)), _PORT))
    return opened


def _send_until(sites: tuple[Site, Site], wanted: Expired, seconds: float = 20) -> list[Event]:
    """Datagrams until the first site tells of an expiry; everything that it has told."""
    told: list[Event] = []
    deadline = time.monotonic() + seconds
    with closing(_inner_socket(sites[1])):  # so that no port is unreachable
        while wanted not in told:
            assert time.monotonic() < deadline, f"{wanted} was not told: {told}"
            _send_datagram(sites)
            select.select([sites[0].datapath.fileno()], [], [], 0.1)
            told += sites[0].datapath.read_events()
    return told


def _idle(site: Site, entry: SadEntry) -> float:
    seconds = site.datapath.usage(entry.id).seconds_idle
    assert seconds is not None
    return seconds


def _packets(sites: tuple[Site, Site], entry: SadEntry) -> tuple[int, int]:
    """What an SA has carried by its count at either end."""
    one, other = (site.datapath.usage(entry.id).packets for site in sites)
    return one, other


def _until(holds: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        select.select([], [], [], 0.05)
