"""Packets that are compressed before they are protected."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from socket import AF_INET, SOCK_DGRAM, SOCK_RAW, socket

import pytest

from integration.contract.entries import GCM, OUTER, SUITES, inner_address, inner_datagram
from integration.contract.sites import (
    CleanSites,
    SaPair,
    Site,
    add_policies,
    inside,
    install_transport,
    make_pair,
)
from integration.lab.process import eventually
from xfrmpy.datapath.interface import Expired
from xfrmpy.esp.compression import compress
from xfrmpy.ipsec.proposals import AhSuite, EspSuite
from xfrmpy.ipsec.sad import Direction, Lifetime
from xfrmpy.registry import ProtocolId

_CPIS = (0x1234, 0x4321)
_PORT = 7777
_IP_IN_IP = 4
_LARGE = 1000
"""Octets that compress well, of an echo request."""
_MOVED = ip_address("198.51.100.11")
"""Another address for the first gateway."""


class CompressionContract(CleanSites):
    """Two gateways, each with a datapath of the kind under test."""

    @pytest.mark.parametrize("encapsulated", [False, True], ids=["esp", "udp"])
    @pytest.mark.parametrize("inner", [4, 6])
    @pytest.mark.parametrize("outer", [4, 6])
    def test_what_gets_smaller_is_compressed_and_the_rest_goes_as_it_is(
        self, sites: tuple[Site, Site], spi_bits: int, outer: int, inner: int, encapsulated: bool
    ) -> None:
        pair = _install(
            sites, spi_bits=spi_bits, outer=outer, inner=inner, encapsulated=encapsulated
        )
        for site in sites:
            assert site.ping(inner, "-s", "8")
        small = _octets(sites, pair)
        assert small >= 12 * 28
        for site in sites:
            assert site.ping(inner, "-s", str(_LARGE))
        assert _octets(sites, pair) - small < 12 * _LARGE / 2
        eventually("each packet to be counted", lambda: _packets(sites, pair) == [12] * 4)

    def test_ah_authenticates_what_is_compressed(
        self, sites: tuple[Site, Site], spi_bits: int
    ) -> None:
        pair = _install(sites, SUITES["ah-sha256"], spi_bits=spi_bits)
        for octets in (8, _LARGE):
            assert sites[0].ping(4, "-s", str(octets))
        assert _octets(sites, pair) < 6 * _LARGE / 2

    def test_what_anybody_compresses_is_not_taken(
        self, sites: tuple[Site, Site], spi_bits: int
    ) -> None:
        """The index is no secret: without ESP around it neither that nor IP in IP gets in."""
        _install(sites, spi_bits=spi_bits)
        protocol, compressed = compress(_IP_IN_IP, inner_datagram(_PORT, bytes(500)), _CPIS[0])
        with inside(sites[1].namespace), socket(AF_INET, SOCK_DGRAM) as receiver:
            receiver.bind((str(inner_address(4, 1)), _PORT))
            receiver.settimeout(5)
            with inside(sites[0].namespace), socket(AF_INET, SOCK_DGRAM) as sender:
                for number, octets in (
                    (protocol, compressed),
                    (_IP_IN_IP, inner_datagram(_PORT, b"plain")),
                ):
                    with socket(AF_INET, SOCK_RAW, number) as raw:
                        raw.sendto(octets, (str(OUTER[4][1]), 0))
                sender.bind((str(inner_address(4, 0)), 0))
                sender.sendto(b"protected", (str(inner_address(4, 1)), _PORT))
            assert receiver.recv(1500) == b"protected"

    @pytest.mark.parametrize("version", [4, 6])
    def test_two_hosts_compress_what_they_say(
        self, sites: tuple[Site, Site], spi_bits: int, version: int
    ) -> None:
        pair = install_transport(
            sites,
            GCM,
            spi_bits=spi_bits,
            outer=version,
            encapsulated=bool(spi_bits),
            cpis=_CPIS,
        )
        for octets in (8, _LARGE):
            assert sites[0].ping_host(version, "-s", str(octets))
        assert _octets(sites, pair) < 6 * _LARGE / 2

    def test_rekeying_loses_nothing(self, sites: tuple[Site, Site], spi_bits: int) -> None:
        pairs = [_install(sites, spi_bits=spi_bits)]
        for serial in range(1, 4):
            new = _pair(spi_bits=spi_bits, serial=serial)
            for direction in (Direction.IN, Direction.OUT):
                for site in sites:
                    new.add_to(site, direction)
            for site in sites:
                pairs[-1].remove_from(site, Direction.OUT)
            for octets in (8, _LARGE):
                assert sites[0].ping(4, "-s", str(octets))
            for site in sites:
                pairs[-1].remove_from(site, Direction.IN)
                assert set(site.datapath.dump().sad) == set(new.at(site))
            pairs.append(new)

    def test_a_tunnel_that_compresses_moves_with_its_counters(
        self, sites: tuple[Site, Site], spi_bits: int
    ) -> None:
        pair = _install(sites, spi_bits=spi_bits)
        assert sites[0].ping(4, "-s", str(_LARGE))
        moved = SaPair(replace(pair.forth, source=_MOVED), replace(pair.back, destination=_MOVED))
        sites[0].run("ip", "address", "add", f"{_MOVED}/24", "dev", "wan")
        try:
            for site in sites:
                for old, new in zip(pair.at(site), moved.at(site), strict=True):
                    site.datapath.move_sa(old.id, new)
                ends = (_MOVED, OUTER[4][1])
                add_policies(site, inner=4, ends=ends, compresses=True)
            for octets in (8, _LARGE):
                assert sites[0].ping(4, "-s", str(octets))
        finally:
            sites[0].run("ip", "address", "del", f"{_MOVED}/24", "dev", "wan")
        for site in sites:
            assert set(site.datapath.dump().sad) == set(moved.at(site))
        eventually("each packet to be counted", lambda: _packets(sites, moved) == [9] * 4)

    def test_a_limit_ends_all_of_it(self, sites: tuple[Site, Site], spi_bits: int) -> None:
        pair = _install(sites, spi_bits=spi_bits, lifetime=Lifetime(hard_seconds=2))
        assert sites[0].ping(4, "-s", str(_LARGE), count=1)
        told = [sites[0].wait_for(Expired) for _ in range(2)]
        assert {e.sa for e in told if isinstance(e, Expired)} == {
            entry.id for entry in pair.at(sites[0])
        }
        assert sites[0].datapath.dump().sad == ()
        assert not sites[0].ping(4, "-W", "0.3", count=1)


def _pair(
    suite: EspSuite | AhSuite = GCM,
    *,
    spi_bits: int,
    outer: int = 4,
    encapsulated: bool | None = None,
    lifetime: Lifetime | None = None,
    serial: int = 0,
) -> SaPair:
    usual = bool(spi_bits) and suite.protocol is ProtocolId.ESP
    pair = make_pair(
        suite,
        spi_bits=spi_bits,
        outer=outer,
        encapsulated=usual if encapsulated is None else encapsulated,
        lifetime=lifetime,
        serial=serial,
    )
    return pair.compressing((_CPIS[0] + serial, _CPIS[1] + serial))


def _install(
    sites: tuple[Site, Site],
    suite: EspSuite | AhSuite = GCM,
    *,
    spi_bits: int,
    outer: int = 4,
    inner: int = 4,
    encapsulated: bool | None = None,
    lifetime: Lifetime | None = None,
) -> SaPair:
    pair = _pair(
        suite, spi_bits=spi_bits, outer=outer, encapsulated=encapsulated, lifetime=lifetime
    )
    for site in sites:
        pair.add_to(site)
        add_policies(site, inner=inner, outer=outer, protocol=suite.protocol, compresses=True)
    return pair


def _octets(sites: tuple[Site, Site], pair: SaPair) -> int:
    """What either site has sent to the other."""
    one, other = sites
    return one.datapath.usage(pair.forth.id).octets + other.datapath.usage(pair.back.id).octets


def _packets(sites: tuple[Site, Site], pair: SaPair) -> list[int]:
    """What each SA has carried, at either end."""
    return [usage.packets for usage in pair.usages(*sites)]
