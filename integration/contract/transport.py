"""Transport mode between two hosts, each with a datapath of the kind under test."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from integration.contract.entries import GCM, OUTER
from integration.contract.sites import CleanSites, SaPair, Site, inside, install_transport
from integration.lab.process import eventually
from xfrmpy.ipsec.addresses import IpAddress

_PING_PAYLOAD = 64  # octets of an echo request of `ping`, or of its answer, without the IP header
_PORT = 7777
_LARGE = 5000


class TransportContract(CleanSites):
    """See the module."""

    @pytest.mark.parametrize("encapsulated", [False, True], ids=["esp", "udp"])
    @pytest.mark.parametrize("version", [4, 6])
    def test_two_hosts_speak_of_whatever_size(
        self, sites: tuple[Site, Site], spi_bits: int, version: int, encapsulated: bool
    ) -> None:
        """A datagram that the host cuts is protected as a whole (RFC 4303 section 3.1.1)."""
        pair = install_transport(
            sites, GCM, spi_bits=spi_bits, outer=version, encapsulated=encapsulated
        )
        assert sites[0].ping_host(version)
        assert sites[1].ping_host(version)
        octets = 6 * _PING_PAYLOAD
        _assert_carried(sites, pair, packets=6, octets=octets)
        assert sites[0].ping_host(version, "-s", str(_LARGE))
        _assert_carried(sites, pair, packets=9, octets=octets + 3 * (_LARGE + 8))

    @pytest.mark.parametrize("version", [4, 6])
    def test_what_the_selectors_leave_out_goes_in_clear(
        self, sites: tuple[Site, Site], spi_bits: int, version: int
    ) -> None:
        pair = install_transport(
            sites,
            GCM,
            spi_bits=spi_bits,
            outer=version,
            encapsulated=bool(spi_bits),
            traffic=f"udp/{_PORT}",
        )
        assert sites[0].ping_host(version)
        assert sites[0].ping_host(version, "-s", str(_LARGE))
        assert _carried(sites, pair) == [(0, 0)] * 4
        for size in (10, _LARGE):
            assert _echo(sites, version, bytes(size)) == bytes(size)
        assert _carried(sites, pair) == [(2, 10 + _LARGE + 16)] * 4

    @pytest.mark.parametrize("version", [4, 6])
    def test_what_comes_in_clear_is_not_taken(
        self, sites: tuple[Site, Site], spi_bits: int, version: int
    ) -> None:
        install_transport(sites, GCM, spi_bits=spi_bits, outer=version, encapsulated=bool(spi_bits))
        assert sites[0].ping_host(version)
        sites[0].datapath.remove_ours()
        assert not sites[0].ping_host(version, "-W", "0.3", count=1)


def _assert_carried(sites: tuple[Site, Site], pair: SaPair, *, packets: int, octets: int) -> None:
    """Of IPv6 perhaps more, for a kernel protects what its neighbour discovery says to the peer."""
    # `ping` ends two round trips after its last question.
    eventually("the rest", lambda: min(_carried(sites, pair))[0] >= packets)
    for found in _carried(sites, pair):
        if pair.forth.source.version == 4:
            assert found == (packets, octets)
        else:
            assert packets <= found[0] <= packets + 6
            assert octets <= found[1] <= octets + 6 * _PING_PAYLOAD


def _carried(sites: tuple[Site, Site], pair: SaPair) -> list[tuple[int, int]]:
    """Packets and octets of both SAs at either end."""
    return [(usage.packets, usage.octets) for usage in pair.usages(*sites)]


def _echo(sites: tuple[Site, Site], version: int, payload: bytes) -> bytes:
    """What comes back of a datagram that the second host returns."""
    one, other = (OUTER[version][end] for end in (0, 1))
    with closing(_socket(sites[0], one)) as asking, closing(_socket(sites[1], other)) as answering:
        asking.sendto(payload, (str(other), _PORT))
        received, where = answering.recvfrom(65535)
        answering.sendto(received, where)
        return asking.recv(65535)


def _socket(site: Site, address: IpAddress) -> socket.socket:
    with inside(site.namespace):
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        opened = socket.socket(family, socket.SOCK_DGRAM)
    opened.settimeout(20)
    opened.bind((str(address), _PORT))
    return opened
