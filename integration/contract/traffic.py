"""Packets between two gateways, each with a datapath of the kind under test."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from integration.contract.entries import GCM, INNER, OUTER, REQID, SUITES, inner_address
from integration.contract.sites import Site, add_policies, inside, install_pair, make_pair
from xfrmpy.datapath.interface import Acquire, Capabilities, Event, Expired
from xfrmpy.ipsec.sad import Lifetime

_PING = {4: 84, 6: 104}  # octets of an echo request of `ping`, or of its answer


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
