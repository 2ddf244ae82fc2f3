"""What a hostile network sends: none of it is taken, all of it is counted, and the SA goes on."""

from __future__ import annotations

import os
from contextlib import closing
from ipaddress import ip_address
from socket import AF_INET, IPPROTO_ESP, IPPROTO_RAW, SOCK_DGRAM, SOCK_RAW, socket

import pytest

from integration.contract.entries import GCM, OUTER, SUITES, inner_address, inner_datagram
from integration.contract.sites import (
    CleanSites,
    SaPair,
    Site,
    eavesdropper,
    first_from,
    inside,
    install_pair,
)
from integration.lab.process import eventually
from xfrmpy.esp.packet import IPV4_IN_ESP, OutboundSa
from xfrmpy.registry import ProtocolId

_IP = 20
_FLOOD = 5000
_PORT = 7777
_NOBODY = ip_address("203.0.113.1")
_SPI = {ProtocolId.ESP: 0, ProtocolId.AH: 4}
"""Where it stands in either protocol; the sequence number follows."""

NAMES = ("aes256gcm16-esn", "aes256-sha256", "ah-sha256")


class HostileContract(CleanSites):
    """Two gateways, and somebody on the link between them, who has no key."""

    @pytest.mark.parametrize("name", NAMES)
    def test_what_is_repeated_forged_cut_or_of_no_sa_is_not_taken(
        self, sites: tuple[Site, Site], spi_bits: int, name: str
    ) -> None:
        suite = SUITES[name]
        pair = install_pair(sites, suite, spi_bits=spi_bits)
        packet = _overheard(sites)
        sequence = _IP + _SPI[suite.protocol] + 4
        forged = [_with_number(packet, sequence, 50 + n)[:-1] + b"?" for n in range(6)]
        strangers = [_with_number(packet, sequence - 4, 0x0BAD_0000 + n) for n in range(3)]
        # Shorter than what either protocol has before and behind what it protects.
        cut = [_with_number(packet, sequence, 90)[: _IP + size] for size in (0, 6, 14, 24)]
        _send(sites[0], *[packet] * 7, *forged, *strangers, *cut)
        eventually("all to be refused", lambda: _refused(sites, pair) == (7, 6))
        assert sites[0].ping(4)
        eventually("the rest", lambda: _taken(sites, pair) == 6)
        assert _refused(sites, pair) == (7, 6)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_flood_of_junk_leaves_the_sa_at_work(
        self, sites: tuple[Site, Site], spi_bits: int, name: str
    ) -> None:
        suite = SUITES[name]
        pair = install_pair(sites, suite, spi_bits=spi_bits)
        packet = _overheard(sites)
        start = packet[: _IP + _SPI[suite.protocol] + 4]
        _send(sites[0], *(start + os.urandom(n % 90) for n in range(_FLOOD)))
        eventually("an answer", lambda: sites[0].ping(4, count=1))
        assert sites[0].ping(4)
        # What is long enough for an ICV is forged, if its number is not an old one.
        replayed, forged = _refused(sites, pair)
        assert 0 < forged <= replayed + forged <= _FLOOD

    def test_a_peer_gets_nothing_in_that_the_selectors_leave_out(
        self, sites: tuple[Site, Site], spi_bits: int
    ) -> None:
        """RFC 4301 section 5.2: what is authentic is still to be what the SA is for."""
        pair = install_pair(sites, GCM, spi_bits=spi_bits)
        peer = OutboundSa(pair.forth, os.urandom)
        with inside(sites[1].namespace), socket(AF_INET, SOCK_DGRAM) as receiver:
            receiver.bind((str(inner_address(4, 1)), _PORT))
            receiver.settimeout(20)
            with inside(sites[0].namespace), socket(AF_INET, SOCK_RAW, IPPROTO_ESP) as raw:
                for source in (_NOBODY, OUTER[4][0], None):
                    inner = inner_datagram(_PORT, str(source).encode(), source)
                    raw.sendto(peer.seal(inner, IPV4_IN_ESP), (str(OUTER[4][1]), 0))
            assert receiver.recv(100) == b"None"


def _overheard(sites: tuple[Site, Site]) -> bytes:
    with closing(eavesdropper(sites[1])) as wire:
        assert sites[0].ping(4)
        return first_from(wire, OUTER[4][0])


def _with_number(packet: bytes, at: int, number: int) -> bytes:
    return packet[:at] + number.to_bytes(4, "big") + packet[at + 4 :]


def _send(site: Site, *packets: bytes) -> None:
    """From there to the other gateway, as they are."""
    with inside(site.namespace), socket(AF_INET, SOCK_RAW, IPPROTO_RAW) as raw:
        for packet in packets:
            raw.sendto(packet, (str(OUTER[4][1]), 0))


def _refused(sites: tuple[Site, Site], pair: SaPair) -> tuple[int, int]:
    usage = sites[1].datapath.usage(pair.forth.id)
    return usage.replayed, usage.integrity_failed


def _taken(sites: tuple[Site, Site], pair: SaPair) -> int:
    return sites[1].datapath.usage(pair.forth.id).packets
