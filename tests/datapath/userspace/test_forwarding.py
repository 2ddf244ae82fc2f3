"""Two forwarders in memory: what crosses, what is dropped and why, and what the daemon is told."""

from __future__ import annotations

import errno
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.datapath.interface import Acquire, DatapathError, Event, Expired, MappingChanged
from xfrmpy.datapath.userspace.forwarding import (
    ACQUIRE_SECONDS,
    Elsewhere,
    Forwarder,
    InClear,
    Refusal,
    Refused,
    Waits,
)
from xfrmpy.datapath.userspace.holding import PACKETS, SECONDS
from xfrmpy.datapath.userspace.requests import MAX_EVENTS
from xfrmpy.datapath.userspace.sad import MAPPING_SECONDS
from xfrmpy.esp.compression import IPCOMP
from xfrmpy.esp.packet import IPV4_IN_ESP, IPV6_IN_ESP, NO_NEXT_HEADER, OutboundSa
from xfrmpy.esp.sa import EspDrop
from xfrmpy.esp.transport import Fields, fields_of, payload_of, with_header
from xfrmpy.ipsec.addresses import SocketAddress
from xfrmpy.ipsec.algorithms import CIPHERS, INTEGRITY
from xfrmpy.ipsec.proposals import AhSuite, EspSuite
from xfrmpy.ipsec.sad import Direction, Lifetime, Mode, SadEntry, UdpEncapsulation
from xfrmpy.ipsec.selectors import Selector, TrafficSelector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry, Template, protect_entries
from xfrmpy.registry import ProtocolId

OUTER = (ip_address("198.51.100.1"), ip_address("198.51.100.2"))
NETWORKS = (
    ("10.1.0.0/16", "fd00:1::/64"),
    ("10.2.0.0/16", "fd00:2::/64"),
)
REQID = 7
SUITE = EspSuite(cipher=CIPHERS[2], integrity=None, esn=True)


def sa(
    sender: int, serial: int = 0, *, reqid: int = REQID, lifetime: Lifetime | None = None
) -> SadEntry:
    """The SA from one end to the other, as its sender has it."""
    return SadEntry(
        direction=Direction.OUT,
        spi=0x80000000 | serial << 4 | sender,
        source=OUTER[sender],
        destination=OUTER[1 - sender],
        reqid=reqid,
        suite=SUITE,
        encryption_key=bytes([sender, serial]) * (SUITE.cipher.keymat // 2),
        encapsulation=UdpEncapsulation(4500, 4500),
        lifetime=lifetime or Lifetime(),
    )


def received(entry: SadEntry) -> SadEntry:
    return replace(entry, direction=Direction.IN)


def policies(end: int, reqid: int = REQID, local: str = "", remote: str = "") -> list[SpdEntry]:
    def selectors(which: int, given: str) -> list[TrafficSelector]:
        return [TrafficSelector.parse(text) for text in ([given] if given else NETWORKS[which])]

    return list(
        protect_entries(
            local=selectors(end, local),
            remote=selectors(1 - end, remote),
            outbound=Template(source=OUTER[end], destination=OUTER[1 - end], reqid=reqid),
            inbound=Template(source=OUTER[1 - end], destination=OUTER[end], reqid=reqid),
        )
    )


def gateway(end: int, *, lifetime: Lifetime | None = None) -> Forwarder:
    """One of two gateways with a tunnel between them."""
    made = Forwarder(secrets.token_bytes)
    made.add_sa(sa(end, lifetime=lifetime), 0.0)
    made.add_sa(received(sa(1 - end, lifetime=lifetime)), 0.0)
    for entry in policies(end):
        made.add_policy(entry)
    return made


def of_interface(end: int, if_id: int) -> tuple[SadEntry, list[SpdEntry]]:
    """The SA by which one end sends into a tunnel with an interface, and its policies."""
    entry = replace(sa(end, serial=if_id), reqid=REQID + if_id, if_id=if_id)
    return entry, [replace(each, if_id=if_id) for each in policies(end, REQID + if_id)]


def gateway_of_interfaces(end: int) -> Forwarder:
    """One of two gateways with two tunnels between them, of the same selectors."""
    made = Forwarder(secrets.token_bytes)
    for if_id in (1, 2):
        entry, wanted = of_interface(end, if_id)
        made.add_sa(entry, 0.0)
        made.add_sa(received(of_interface(1 - end, if_id)[0]), 0.0)
        for policy in wanted:
            made.add_policy(policy)
    return made


def packet(source: str = "10.1.0.9", destination: str = "10.2.0.7", payload: int = 64) -> bytes:
    """A UDP packet of either family, as far as a forwarder looks at it."""
    ends = ip_address(source).packed + ip_address(destination).packed
    if ip_address(source).version == 4:
        length = (20 + payload).to_bytes(2, "big")
        return b"\x45\x00" + length + bytes(4) + b"\x40\x11\x00\x00" + ends + bytes(payload)
    return b"\x60\x00\x00\x00" + payload.to_bytes(2, "big") + b"\x11\x40" + ends + bytes(payload)


def source_of(end: int, port: int = 4500) -> SocketAddress:
    return SocketAddress(OUTER[end], port)


@contextmanager
def refused(reason: str) -> Iterator[None]:
    with pytest.raises(Refused) as caught:
        yield
    assert caught.value.reason == reason


FIRST = source_of(0)

# What crosses.


def test_packets_of_either_family_cross_both_ways() -> None:
    ends = gateway(0), gateway(1)
    addresses = (("10.1.0.9", "10.2.0.7"), ("fd00:1::9", "fd00:2::7"))
    for pair in addresses:
        for sender in (0, 1):
            inner = packet(*(pair if sender == 0 else pair[::-1]))
            sealed, entry = ends[sender].protect(inner, 1.0)
            assert entry == sa(sender)
            assert ends[1 - sender].unprotect(sealed, source_of(sender), 1.0)[0] == inner
    for end in ends:
        assert list(end.events) == []
        assert {end.sad.usage(e.id, 2.0).packets for e in end.dump().sad} == {2}


def test_what_comes_without_udp_is_taken_and_moves_nobody() -> None:
    """RFC 7296 section 2.23: in UDP and not, "at any time"; there is no port to follow."""
    ours, theirs = gateway(0), gateway(1)
    sealed, _ = ours.protect(packet(), 1.0)
    assert theirs.unprotect(sealed, None, 1.0)[0] == packet()
    assert list(theirs.events) == []


def test_who_sends_in_udp_what_is_agreed_without_is_not_followed() -> None:
    ours, theirs = gateway(0), gateway(1)
    theirs.sad.update(replace(received(sa(0)), encapsulation=None))
    sealed, _ = ours.protect(packet(), 1.0)
    assert theirs.unprotect(sealed, source_of(0, 40_000), 1.0)[0] == packet()
    assert list(theirs.events) == []


def test_the_protocol_is_a_part_of_an_sas_name() -> None:
    """RFC 4301 section 4.1."""
    ours, theirs = gateway(0), gateway(1)
    sealed, _ = ours.protect(packet(), 1.0)
    with refused(Refusal.UNKNOWN_SPI):
        theirs.unprotect(sealed, None, 1.0, protocol=ProtocolId.AH)


@pytest.mark.parametrize(
    ("tfc", "room", "expected"), [(0, 0, 64), (1200, 0, 1200), (1200, 900, 900)]
)
def test_small_packets_are_hidden_in_large_ones(tfc: int, room: int, expected: int) -> None:
    """RFC 4303 section 2.7."""
    ours, theirs = gateway(0), gateway(1)
    plain = len(ours.protect(packet(payload=expected - 20), 0.0)[0])
    ours.sad.remove(sa(0).id)
    ours.add_sa(replace(sa(0), spi=sa(0).spi, tfc=tfc), 0.0)
    if room:
        ours.set_room(REQID, room)
    theirs.sad.remove(sa(0).id)
    theirs.add_sa(received(sa(0)), 0.0)
    sealed, _ = ours.protect(packet(payload=44), 0.0)
    assert len(sealed) == plain
    assert theirs.unprotect(sealed, FIRST, 0.0)[0] == packet(payload=44)


# Compression.


def compressing(entry: SadEntry, cpi: int | None) -> tuple[Forwarder, Forwarder]:
    """Two gateways whose SA from the first to the second compresses; the second may not know."""
    ours, theirs = gateway(0), gateway(1)
    for end, direction, index in ((ours, Direction.OUT, 0x1234), (theirs, Direction.IN, cpi)):
        end.sad.remove(entry.id)
        end.add_sa(replace(entry, direction=direction, cpi=index), 0.0)
    return ours, theirs


@pytest.mark.parametrize("payload", [10, 1000])
def test_a_compressed_packet_comes_back_whole(payload: int) -> None:
    ours, theirs = compressing(sa(0), 0x1234)
    inner = packet(payload=payload)
    sealed, _ = ours.protect(inner, 0.0)
    assert (len(sealed) < len(inner)) == (payload == 1000)
    assert theirs.unprotect(sealed, FIRST, 0.0)[0] == inner


@pytest.mark.parametrize("cpi", [None, 0x1235])
def test_what_was_not_agreed_is_not_decompressed(cpi: int | None) -> None:
    ours, theirs = compressing(sa(0), cpi)
    sealed, _ = ours.protect(packet(payload=1000), 0.0)
    with refused(Refusal.BAD_COMPRESSION):
        theirs.unprotect(sealed, FIRST, 0.0)


def test_a_host_may_compress_what_it_says() -> None:
    ours, theirs = host(0), host(1)
    for end, direction in ((ours, Direction.OUT), (theirs, Direction.IN)):
        end.sad.remove(sa(0).id)
        entry = replace(sa(0), direction=direction, mode=Mode.TRANSPORT, cpi=0x1234)
        end.add_sa(entry, 0.0)
    sealed, _ = ours.protect(between_hosts(payload=bytes(1000)), 0.0)
    assert len(sealed) < 200
    arrived, _ = theirs.unprotect(sealed, source_of(0), 0.0)
    assert payload_of(arrived) == (17, bytes(1000))


# Transport mode.


def host(end: int, traffic: str = "") -> Forwarder:
    """One of two hosts that protect what they say to each other, or a part of it."""
    made = Forwarder(secrets.token_bytes)
    made.add_sa(replace(sa(end), mode=Mode.TRANSPORT), 0.0)
    made.add_sa(replace(received(sa(1 - end)), mode=Mode.TRANSPORT), 0.0)
    ours, theirs = (TrafficSelector.parse(f"{OUTER[e]}{traffic}") for e in (end, 1 - end))
    templates = (
        Template(source=a, destination=b, reqid=REQID, mode=Mode.TRANSPORT)
        for a, b in ((OUTER[end], OUTER[1 - end]), (OUTER[1 - end], OUTER[end]))
    )
    for entry in protect_entries(
        local=[ours], remote=[theirs], outbound=next(templates), inbound=next(templates)
    ):
        made.add_policy(entry)
    return made


def between_hosts(protocol: int = 17, payload: bytes = bytes(64)) -> bytes:
    return with_header(*OUTER, protocol, payload, Fields(traffic_class=0x2E << 2, hops=61))


def test_a_host_gets_what_the_other_said_with_the_fields_of_the_outer_header() -> None:
    ours, theirs = host(0), host(1)
    sealed, entry = ours.protect(between_hosts(), 0.0)
    assert entry.mode is Mode.TRANSPORT
    fields = Fields(traffic_class=0x2E << 2, hops=60)
    arrived, _ = theirs.unprotect(sealed, source_of(0), 0.0, fields=fields)
    assert fields_of(arrived) == fields
    assert payload_of(arrived) == (17, bytes(64))
    assert arrived[12:20] == OUTER[0].packed + OUTER[1].packed


def test_a_datagram_in_pieces_is_protected_as_one() -> None:
    ours, theirs = host(0), host(1)
    first, last = between_hosts(payload=bytes(16)), between_hosts(payload=bytes(9))
    with pytest.raises(Waits):
        ours.protect(first[:6] + b"\x20\x00" + first[8:], 0.0)
    sealed, _ = ours.protect(last[:6] + b"\x00\x02" + last[8:], 0.0)
    arrived, _ = theirs.unprotect(sealed, source_of(0), 0.0)
    assert payload_of(arrived) == (17, bytes(25))


def test_other_traffic_of_the_peers_goes_as_it_came() -> None:
    """Routes know addresses alone, so what a protocol or a port leaves out is led here, too."""
    ours = host(0, "[tcp/5432]")
    with pytest.raises(InClear) as exempt:
        ours.protect(between_hosts(), 0.0)
    assert exempt.value.packets == [between_hosts()]
    for entry in ours.dump().spd:
        ours.remove_policy(entry)
    with refused(Refusal.NO_POLICY):
        ours.protect(between_hosts(), 0.0)


def test_pieces_of_other_traffic_go_as_they_came() -> None:
    ours = host(0, "[tcp/5432]")
    packets = [between_hosts(payload=bytes(size)) for size in (16, 9)]
    pieces = [p[:6] + bits + p[8:] for p, bits in zip(packets, (b"\x20\0", b"\0\2"), strict=True)]
    with pytest.raises(Waits):
        ours.protect(pieces[0], 0.0)
    with pytest.raises(InClear) as exempt:
        ours.protect(pieces[1], 0.0)
    assert exempt.value.packets == pieces


def test_transport_mode_has_no_place_for_options() -> None:
    ours = host(0)
    plain = between_hosts(payload=bytes(68))
    with refused(Refusal.NOT_FOR_TRANSPORT):
        ours.protect(b"\x46" + plain[1:], 0.0)


def test_what_is_outside_the_selectors_is_not_taken_from_the_peer() -> None:
    ours, theirs = host(0), host(1, "[tcp/5432]")
    sealed, _ = ours.protect(between_hosts(), 0.0)
    with refused(Refusal.OUTSIDE_SELECTORS):
        theirs.unprotect(sealed, source_of(0), 0.0)


def test_traffic_flow_confidentiality_padding_is_trimmed_by_the_inner_length() -> None:
    """RFC 4303 section 2.7."""
    ours, theirs = OutboundSa(sa(0), secrets.token_bytes), gateway(1)
    for source, destination, next_header in (
        ("10.1.0.9", "10.2.0.7", IPV4_IN_ESP),
        ("fd00:1::9", "fd00:2::7", IPV6_IN_ESP),
    ):
        inner = packet(source, destination)
        padded = ours.seal(inner + secrets.token_bytes(300), next_header)
        assert theirs.unprotect(padded, FIRST, 0.0)[0] == inner


def test_a_next_header_that_is_not_the_inner_version_is_dropped() -> None:
    ours, theirs = OutboundSa(sa(0), secrets.token_bytes), gateway(1)
    for next_header in set(range(256)) - {IPV4_IN_ESP, NO_NEXT_HEADER, IPCOMP}:
        with refused(Refusal.NOT_IP):
            theirs.unprotect(ours.seal(packet(), next_header), FIRST, 0.0)


def test_a_dummy_packet_is_a_sign_of_life_and_nothing_else() -> None:
    ours, theirs = OutboundSa(sa(0), secrets.token_bytes), gateway(1)
    with refused(EspDrop.DUMMY):
        theirs.unprotect(ours.seal(b"", NO_NEXT_HEADER), FIRST, 4.0)
    usage = theirs.sad.usage(sa(0).id, 5.0)
    assert usage.seconds_idle == theirs.sad.seconds_idle(sa(0).id, 5.0) == 1.0
    assert theirs.sad.seconds_idle(sa(0, serial=9).id, 5.0) is None


def test_what_lies_behind_the_inner_packet_is_cut_off() -> None:
    ours, theirs = gateway(0), gateway(1)
    sealed, _ = ours.protect(packet() + b"padding", 0.0)
    assert theirs.unprotect(sealed, FIRST, 0.0)[0] == packet()


def test_the_newest_sa_of_a_reqid_sends_and_older_ones_still_receive() -> None:
    ours, theirs = gateway(0), gateway(1)
    old, _ = ours.protect(packet(), 0.0)
    for forwarder, entry in ((ours, sa(0, 1)), (theirs, received(sa(0, 1)))):
        forwarder.add_sa(entry, 1.0)
    new, entry = ours.protect(packet(), 1.0)
    assert entry == sa(0, 1)
    for sealed in (new, old):
        assert theirs.unprotect(sealed, FIRST, 1.0)[0] == packet()
    ours.sad.remove(sa(0, 1).id)
    assert ours.protect(packet(), 1.0)[1] == sa(0)


def test_the_policy_of_least_priority_decides() -> None:
    ours = gateway(0)
    for entry in policies(0, reqid=8, remote="10.2.9.0/24", local="10.1.0.0/16"):
        ours.add_policy(entry)
    ours.add_sa(sa(0, 3, reqid=8), 0.0)
    assert ours.protect(packet(), 0.0)[1].reqid == REQID
    assert ours.protect(packet(destination="10.2.9.1"), 0.0)[1].reqid == 8


# What does not.


def test_a_packet_that_no_policy_protects_is_dropped() -> None:
    ours = gateway(0)
    for outside in (
        packet(destination="10.3.0.1"),
        packet(source="10.9.0.1"),
        packet("fd00:1::9", "fd00:9::1"),
    ):
        with refused(Refusal.NO_POLICY):
            ours.protect(outside, 0.0)
    assert list(ours.events) == []


@pytest.mark.parametrize("action", [Action.DISCARD, Action.BYPASS])
def test_what_is_discarded_or_bypassed_does_not_go_into_an_sa(action: Action) -> None:
    ours = gateway(0)
    networks = {"source": ip_network("10.1.0.0/16"), "destination": ip_network("10.2.0.0/16")}
    ours.add_policy(
        SpdEntry(
            direction=PolicyDirection.OUT,
            selector=Selector(source=networks["source"], destination=networks["destination"]),
            action=action,
            priority=1,
        )
    )
    with refused(Refusal.NO_POLICY):
        ours.protect(packet(), 0.0)


def test_an_authentic_packet_outside_the_selectors_is_dropped() -> None:
    """RFC 4301 section 5.2 step 4: a peer may not send what was not agreed upon."""
    ours, theirs = gateway(0), gateway(1)
    for entry in policies(0, local="0.0.0.0/0", remote="0.0.0.0/0"):
        ours.add_policy(entry)
    for outside in (
        packet(source="10.9.0.1"),
        packet(destination="192.0.2.1"),
        packet("10.2.0.7", "10.1.0.9"),
    ):
        sealed, _ = ours.protect(outside, 0.0)
        with refused(Refusal.OUTSIDE_SELECTORS):
            theirs.unprotect(sealed, FIRST, 0.0)


def test_an_sa_of_another_tunnel_does_not_open_the_door() -> None:
    """The policy met must ask for this very SA's reqid."""
    theirs = gateway(1)
    stranger = Forwarder(secrets.token_bytes)
    stranger.add_sa(sa(0, 5, reqid=99), 0.0)
    for entry in policies(0, reqid=99):
        stranger.add_policy(entry)
    theirs.add_sa(received(sa(0, 5, reqid=99)), 0.0)
    sealed, _ = stranger.protect(packet(), 0.0)
    with refused(Refusal.OUTSIDE_SELECTORS):
        theirs.unprotect(sealed, FIRST, 0.0)


def test_policies_of_two_interfaces_are_apart_however_equal() -> None:
    ours, theirs = (gateway_of_interfaces(end) for end in (0, 1))
    for if_id in (1, 2):
        sealed, entry = ours.protect(packet(), 0.0, if_id)
        assert entry.if_id == if_id
        opened, received_by = theirs.unprotect(sealed, FIRST, 0.0)
        assert (opened, received_by.if_id) == (packet(), if_id)
    for elsewhere in (0, 3):
        with refused(Refusal.NO_POLICY):
            ours.protect(packet(), 0.0, elsewhere)
    for policy in of_interface(0, 1)[1]:
        ours.remove_policy(policy)
    with refused(Refusal.NO_POLICY):
        ours.protect(packet(), 0.0, 1)
    assert ours.protect(packet(), 0.0, 2)[1].if_id == 2


def test_what_comes_by_an_interface_is_not_judged_by_the_policies_of_another() -> None:
    ours, theirs = (gateway_of_interfaces(end) for end in (0, 1))
    sealed, _ = ours.protect(packet(), 0.0, 1)
    for policy in of_interface(1, 1)[1]:
        theirs.remove_policy(policy)
    with refused(Refusal.OUTSIDE_SELECTORS):
        theirs.unprotect(sealed, FIRST, 0.0)


def test_a_tunnel_whose_own_packets_are_routed_into_it_does_not_carry_them() -> None:
    ours = gateway_of_interfaces(0)
    for policy in policies(0, REQID + 1, local="0.0.0.0/0", remote="0.0.0.0/0"):
        ours.add_policy(replace(policy, if_id=1))
    source, destination = map(str, OUTER)
    made = bytearray(packet(source, destination))
    made[20:24] = (4500).to_bytes(2, "big") * 2
    with refused(Refusal.ROUTING_LOOP):
        ours.protect(bytes(made), 0.0, 1)
    assert ours.protect(packet(source, destination), 0.0, 1)[1].if_id == 1


def test_what_another_worker_protects_goes_there_until_the_sa_is_ours() -> None:
    forwarder = gateway(0)
    assert forwarder.worker_of(packet(), 0) is None
    forwarder.protect(packet(), 0.0)  # The way of the flow is known from now on.
    forwarder.lead(REQID, 3)
    with pytest.raises(Elsewhere) as caught:
        forwarder.protect(packet(), 0.0)
    assert (caught.value.worker, caught.value.packets) == (3, [packet()])
    assert forwarder.run_of(packet(), 2, 200, 0.0) is None
    assert forwarder.worker_of(packet(), 0) == 3
    assert forwarder.worker_of(b"", 0) is None
    assert forwarder.worker_of(packet(destination="192.0.2.9"), 0) is None
    forwarder.lead(REQID, None)
    assert forwarder.protect(packet(), 0.0)[1].reqid == REQID
    assert forwarder.worker_of(packet(), 0) is None


def test_what_waits_for_an_sa_that_another_worker_gets_waits_no_longer() -> None:
    forwarder = gateway(0)
    forwarder.sad.remove(sa(0).id)
    with pytest.raises(Waits):
        forwarder.protect(packet(), 0.0)
    assert forwarder.take_waiting(1.0) == []
    forwarder.lead(REQID, 1)
    assert forwarder.take_waiting(2.0) == [(packet(), 0)]


def test_an_sa_that_moved_still_serves_its_policy() -> None:
    """The template's addresses stay those of the first day (RFC 4555, NAT); the reqid binds."""
    ours, theirs = gateway(0), gateway(1)
    theirs.sad.update(replace(received(sa(0)), source=ip_address("203.0.113.5")))
    moved = SocketAddress(ip_address("203.0.113.5"), 4500)
    assert theirs.unprotect(ours.protect(packet(), 0.0)[0], moved, 0.0)[0] == packet()


@pytest.mark.parametrize("direction", [PolicyDirection.IN, PolicyDirection.FORWARD])
@pytest.mark.parametrize("action", [Action.DISCARD, Action.BYPASS])
def test_a_policy_before_the_protecting_one_keeps_packets_out(
    direction: PolicyDirection, action: Action
) -> None:
    """Whether a packet is for this host is not known here, so both directions must agree."""
    ours, theirs = gateway(0), gateway(1)
    selector = Selector(source=ip_network("10.1.0.9/32"), destination=ip_network("10.2.0.0/16"))
    theirs.add_policy(SpdEntry(direction=direction, selector=selector, action=action, priority=1))
    sealed, _ = ours.protect(packet(), 0.0)
    with refused(Refusal.OUTSIDE_SELECTORS):
        theirs.unprotect(sealed, FIRST, 0.0)
    sealed, _ = ours.protect(packet(source="10.1.0.10"), 0.0)
    theirs.unprotect(sealed, FIRST, 0.0)


def test_a_wrong_spi_a_replay_and_a_forgery_are_told_apart() -> None:
    ours, theirs = gateway(0), gateway(1)
    sealed, _ = ours.protect(packet(), 0.0)
    with refused(Refusal.UNKNOWN_SPI):
        theirs.unprotect(b"\x8f" + sealed[1:], FIRST, 0.0)
    with refused(EspDrop.NOT_AUTHENTIC):
        theirs.unprotect(sealed[:-1] + bytes([sealed[-1] ^ 1]), FIRST, 0.0)
    theirs.unprotect(sealed, FIRST, 0.0)
    with refused(EspDrop.REPLAYED):
        theirs.unprotect(sealed, FIRST, 0.0)
    usage = theirs.sad.usage(sa(0).id, 0.0)
    assert (usage.packets, usage.replayed, usage.integrity_failed) == (1, 1, 1)


def test_an_outbound_sa_receives_nothing() -> None:
    ours = gateway(0)
    sealed, _ = ours.protect(packet(), 0.0)
    with refused(Refusal.UNKNOWN_SPI):
        ours.unprotect(sealed, FIRST, 0.0)


def test_what_is_no_packet_is_dropped_on_either_side() -> None:
    ours, theirs = gateway(0), gateway(1)
    for junk in (b"", b"\x45", b"\x00" * 60, packet()[:-1]):
        with refused(Refusal.NOT_IP):
            ours.protect(junk, 0.0)
    for datagram in (b"", b"\x80", b"\xff"):
        with refused(Refusal.UNKNOWN_SPI):
            theirs.unprotect(datagram, FIRST, 0.0)


@given(datagram=st.binary(max_size=120), spi=st.booleans())
def test_junk_is_refused_and_nothing_else_happens(datagram: bytes, spi: bool) -> None:
    theirs = gateway(1)
    junk = (sa(0).spi.to_bytes(4, "big") if spi else b"") + datagram
    with pytest.raises(Refused):
        theirs.unprotect(junk, FIRST, 0.0)
    with pytest.raises(Refused):
        theirs.protect(junk, 0.0)
    assert list(theirs.events) == []


# What the daemon is told.


def test_a_policy_without_an_sa_asks_for_one_once_until_it_is_answered() -> None:
    ours = Forwarder(secrets.token_bytes)
    for entry in policies(0):
        ours.add_policy(entry)
    for now in (0.0, 0.1, ACQUIRE_SECONDS - 0.1, ACQUIRE_SECONDS, ACQUIRE_SECONDS + 0.1):
        with pytest.raises(Waits):
            ours.protect(packet(), now)
    exact = {"protocol": 17, "start_port": 0, "end_port": 0}
    source, destination = ip_address("10.1.0.9"), ip_address("10.2.0.7")
    acquire = Acquire(
        reqid=REQID,
        source=TrafficSelector(**exact, start_address=source, end_address=source),
        destination=TrafficSelector(**exact, start_address=destination, end_address=destination),
    )
    assert list(ours.events) == [acquire, acquire]
    ours.add_sa(sa(0), ACQUIRE_SECONDS + 1)
    ours.sad.remove(sa(0).id)
    with pytest.raises(Waits):
        ours.protect(packet(), ACQUIRE_SECONDS + 1.1)
    assert len(ours.events) == 3, "an SA was the answer, so its loss is a new question"


def test_packets_wait_for_their_sa_and_go_when_it_is_there() -> None:
    ours = Forwarder(secrets.token_bytes)
    for entry in policies(0):
        ours.add_policy(entry)
    for _ in range(PACKETS):
        with pytest.raises(Waits):
            ours.protect(packet(), 0.0)
    with refused(Refusal.NO_SA):
        ours.protect(packet(), 0.0)
    assert ours.take_waiting(1.0) == []
    ours.add_sa(sa(0), 1.0)
    assert ours.take_waiting(1.0) == [(packet(), 0)] * PACKETS
    assert ours.take_waiting(1.0) == []
    assert ours.protect(packet(), 1.0)[1] == sa(0)


def test_what_waits_is_told_again_to_another_daemon() -> None:
    ours = Forwarder(secrets.token_bytes)
    for entry in policies(0):
        ours.add_policy(entry)
    with pytest.raises(Waits):
        ours.protect(packet(), 0.0)
    told = list(ours.events)
    ours.remind()
    assert list(ours.events) == told * 2
    ours.expire(SECONDS)
    ours.remind()
    assert list(ours.events) == told * 2, "it waits no more"


def test_a_soft_limit_is_told_again_to_another_daemon_while_the_sa_is_there() -> None:
    ours = gateway(0, lifetime=Lifetime(soft_packets=2))
    ours.remind()
    assert list(ours.events) == []
    for _ in range(2):
        ours.protect(packet(), 0.0)
    ours.remind()
    assert list(ours.events) == [Expired(sa=sa(0).id, reqid=REQID, hard=False)] * 2
    ours.sad.remove(sa(0).id)
    ours.remind()
    assert len(ours.events) == 2


def test_limits_are_reported_once_each_and_the_hard_one_is_kept() -> None:
    ours = gateway(0, lifetime=Lifetime(soft_packets=2, hard_packets=4))
    for _ in range(4):
        ours.protect(packet(), 0.0)
    expected = [Expired(sa=sa(0).id, reqid=REQID, hard=hard) for hard in (False, True)]
    assert list(ours.events) == expected
    assert sa(0).id not in {e.id for e in ours.dump().sad}
    with pytest.raises(Waits):
        ours.protect(packet(), 0.0)


def test_limits_of_octets_hold_inwards_too() -> None:
    ours, theirs = gateway(0), gateway(1, lifetime=Lifetime(hard_bytes=150))
    for _ in range(2):
        theirs.unprotect(ours.protect(packet(), 0.0)[0], FIRST, 0.0)
    assert list(theirs.events) == [Expired(sa=sa(0).id, reqid=REQID, hard=True)]
    with refused(Refusal.UNKNOWN_SPI):
        theirs.unprotect(ours.protect(packet(), 0.0)[0], FIRST, 0.0)


def test_limits_of_time_count_from_the_installation() -> None:
    ours = Forwarder(secrets.token_bytes)
    ours.add_sa(sa(0, lifetime=Lifetime(soft_seconds=10, hard_seconds=20)), 100.0)
    seen = []
    for now in (109.9, 110.0, 119.9, 120.0, 130.0):
        ours.expire(now)
        seen.append(len(ours.events))
    assert seen == [0, 1, 1, 2, 2]
    assert [e.hard for e in ours.events if isinstance(e, Expired)] == [False, True]


def test_an_sa_expires_by_the_limits_that_it_has_now_and_where_it_is_now() -> None:
    ours = Forwarder(secrets.token_bytes)
    first = sa(0, lifetime=Lifetime(hard_seconds=20))
    ours.add_sa(first, 100.0)
    longer = replace(first, lifetime=Lifetime(hard_seconds=40))
    ours.sad.update(longer)
    ours.expire(120.0)
    assert not ours.events
    moved = replace(longer, destination=ip_address("203.0.113.77"))
    ours.sad.move(longer.id, moved)
    ours.expire(139.9)
    assert not ours.events
    ours.expire(140.0)
    assert list(ours.events) == [Expired(sa=moved.id, reqid=REQID, hard=True)]
    sooner = replace(first, lifetime=Lifetime(hard_seconds=10))
    ours.add_sa(first, 200.0)
    ours.sad.update(sooner)
    ours.expire(210.0)
    assert len(ours.events) == 2


def test_a_peer_seen_elsewhere_is_told_now_and_again_and_not_followed() -> None:
    ours, theirs = gateway(0), gateway(1)
    elsewhere = SocketAddress(ip_address("203.0.113.5"), 1025)
    moved = MappingChanged(sa=sa(0).id, reqid=REQID, old=FIRST, new=elsewhere)

    def told(source: SocketAddress, now: float) -> list[Event]:
        theirs.events.clear()
        theirs.unprotect(ours.protect(packet(), now)[0], source, now)
        return list(theirs.events)

    assert told(elsewhere, 0.0) == [moved]
    assert told(elsewhere, MAPPING_SECONDS - 0.1) == []
    assert told(elsewhere, MAPPING_SECONDS) == [moved], "the daemon may have missed it"
    assert told(source_of(0, 1026), MAPPING_SECONDS) == [replace(moved, new=source_of(0, 1026))]
    assert told(FIRST, MAPPING_SECONDS) == []
    assert told(elsewhere, MAPPING_SECONDS) == [moved]
    assert received(sa(0)) in theirs.dump().sad
    theirs.sad.update(
        replace(
            received(sa(0)),
            source=elsewhere.address,
            encapsulation=UdpEncapsulation(elsewhere.port, 4500),
        )
    )
    assert told(elsewhere, 100.0) == []


def test_events_that_nobody_fetches_do_not_grow_without_end() -> None:
    ours, theirs = gateway(0), gateway(1)
    for port in range(1, MAX_EVENTS + 50):
        theirs.unprotect(ours.protect(packet(), 0.0)[0], source_of(0, port), 0.0)
    assert len(theirs.events) == MAX_EVENTS
    newest = theirs.events[-1]
    assert isinstance(newest, MappingChanged)
    assert newest.new == source_of(0, MAX_EVENTS + 49)


def test_a_late_replayed_or_forged_packet_from_elsewhere_is_no_sign_of_a_move() -> None:
    ours, theirs = gateway(0), gateway(1)
    elsewhere = SocketAddress(ip_address("203.0.113.5"), 1025)
    late, newest = (ours.protect(packet(), 0.0)[0] for _ in range(2))
    theirs.unprotect(newest, FIRST, 0.0)
    theirs.unprotect(late, elsewhere, 0.0)
    for bad in (newest, ours.protect(packet(), 0.0)[0][:-1] + b"?"):
        with pytest.raises(Refused):
            theirs.unprotect(bad, elsewhere, 0.0)
    assert list(theirs.events) == []


# The databases.


def test_a_forged_packet_does_not_make_an_sa_look_alive() -> None:
    ours, theirs = gateway(0), gateway(1)
    sealed, _ = ours.protect(packet(), 5.0)
    with refused(EspDrop.NOT_AUTHENTIC):
        theirs.unprotect(sealed[:-1] + bytes([sealed[-1] ^ 1]), FIRST, 5.0)
    assert theirs.sad.usage(sa(0).id, 6.0).seconds_idle is None
    theirs.unprotect(sealed, FIRST, 7.0)
    assert theirs.sad.usage(sa(0).id, 9.5).seconds_idle == 2.5


def test_an_update_keeps_counters_and_sequence_numbers() -> None:
    ours, theirs = gateway(0), gateway(1)
    theirs.unprotect(ours.protect(packet(), 0.0)[0], FIRST, 0.0)
    moved = replace(sa(0), source=ip_address("203.0.113.5"), lifetime=Lifetime(hard_packets=3))
    ours.sad.update(moved)
    sealed, entry = ours.protect(packet(), 0.0)
    assert entry == moved
    theirs.unprotect(sealed, FIRST, 0.0)
    ours.protect(packet(), 0.0)
    assert list(ours.events) == [Expired(sa=sa(0).id, reqid=REQID, hard=True)]


def test_a_move_keeps_counters_sequence_numbers_and_the_window() -> None:
    ours, theirs = gateway(0), gateway(1)
    first = ours.protect(packet(), 0.0)[0]
    theirs.unprotect(first, FIRST, 1.0)
    elsewhere = ip_address("203.0.113.5")
    moved = replace(sa(0), destination=elsewhere)
    ours.sad.move(sa(0).id, moved)
    theirs.sad.move(sa(0).id, received(moved))
    sealed, entry = ours.protect(packet(), 2.0)
    assert entry == moved
    theirs.unprotect(sealed, FIRST, 2.0)
    assert theirs.sad.usage(moved.id, 3.0).packets == ours.sad.usage(moved.id, 3.0).packets == 2
    with refused(EspDrop.REPLAYED):
        theirs.unprotect(first, FIRST, 2.0)
    with pytest.raises(DatapathError):
        ours.sad.usage(sa(0).id, 3.0)
    ours.sad.remove(moved.id)
    theirs.sad.remove(moved.id)
    assert moved not in ours.dump().sad
    with refused(Refusal.UNKNOWN_SPI):
        theirs.unprotect(sealed, FIRST, 3.0)


def test_a_move_onto_another_sa_is_refused() -> None:
    ours = gateway(0)
    other = replace(sa(0), destination=ip_address("203.0.113.5"))
    ours.add_sa(other, 0.0)
    with pytest.raises(DatapathError) as caught:
        ours.sad.move(sa(0).id, other)
    assert caught.value.errno == errno.EEXIST
    assert {sa(0), other} <= set(ours.dump().sad)


def test_a_limit_lowered_below_what_was_carried_is_met_at_once() -> None:
    ours = gateway(0)
    for _ in range(3):
        ours.protect(packet(), 0.0)
    ours.sad.update(replace(sa(0), lifetime=Lifetime(hard_packets=2)))
    with refused(EspDrop.EXPIRED):
        ours.protect(packet(), 0.0)
    assert list(ours.events) == [Expired(sa=sa(0).id, reqid=REQID, hard=True)]


@pytest.mark.parametrize(
    "changes",
    [
        {"encryption_key": b"?" * SUITE.cipher.keymat},
        {"reqid": 8},
        {"direction": Direction.IN},
        {"replay_window": 1024},
        {"suite": replace(SUITE, esn=False)},
        {"mode": Mode.TRANSPORT},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_an_update_of_anything_else_is_refused(changes: dict[str, object]) -> None:
    ours = gateway(0)
    with pytest.raises(DatapathError):
        ours.sad.update(replace(sa(0), **changes))  # type: ignore[arg-type]
    assert sa(0) in ours.dump().sad


def test_what_cannot_be_kept_is_refused() -> None:
    ours = Forwarder(secrets.token_bytes)
    with pytest.raises(DatapathError):
        ours.add_sa(replace(received(sa(0)), spi=0x12345678), 0.0)
    assert ours.dump().sad == ()


def in_ah(entry: SadEntry) -> SadEntry:
    return replace(
        entry,
        suite=AhSuite(integrity=INTEGRITY[0], esn=True),
        encryption_key=b"",
        integrity_key=bytes(INTEGRITY[0].key),
        encapsulation=None,
    )


def test_a_packet_goes_through_sas_of_ah_and_one_with_a_forged_header_does_not() -> None:
    ours, theirs = Forwarder(secrets.token_bytes), Forwarder(secrets.token_bytes)
    ours.add_sa(in_ah(sa(0)), 0.0)
    theirs.add_sa(in_ah(received(sa(0))), 0.0)
    for end, forwarder in enumerate((ours, theirs)):
        for policy in policies(end):
            forwarder.add_policy(policy)
    sealed, entry = ours.protect(packet(), 1.0)
    assert entry == in_ah(sa(0))
    header, rest = sealed[:20], sealed[20:]
    forged = header[:12] + bytes([header[12] ^ 1]) + header[13:]
    with refused("not-authentic"):
        theirs.unprotect(rest, None, 2.0, protocol=ProtocolId.AH, header=forged)
    assert theirs.unprotect(rest, None, 2.0, protocol=ProtocolId.AH, header=header)[0] == packet()
    with refused("unknown-spi"):
        theirs.unprotect(rest[4:], None, 3.0)


def test_an_inbound_spi_is_one_sas_whatever_its_address() -> None:
    """The datagram's SPI alone finds the SA."""
    ours = Forwarder(secrets.token_bytes)
    ours.add_sa(received(sa(0)), 0.0)
    for again in (received(sa(0)), replace(received(sa(0)), destination=ip_address("192.0.2.9"))):
        with pytest.raises(DatapathError) as caught:
            ours.add_sa(again, 0.0)
        assert caught.value.errno == errno.EEXIST


def test_what_is_removed_is_gone_and_may_be_removed_again() -> None:
    ours, theirs = gateway(0), gateway(1)
    sealed, _ = ours.protect(packet(), 0.0)
    for _ in range(2):
        ours.sad.remove(sa(0).id)
        theirs.sad.remove(sa(0).id)
        for entry in policies(0):
            ours.remove_policy(entry)
    with refused(Refusal.UNKNOWN_SPI):
        theirs.unprotect(sealed, FIRST, 0.0)
    with refused(Refusal.NO_POLICY):
        ours.protect(packet(), 0.0)
    for missing in (ours.sad.update, lambda e: ours.sad.usage(e.id, 0.0)):
        with pytest.raises(DatapathError) as caught:
            missing(sa(0))
        assert caught.value.errno == errno.ESRCH


def test_removing_everything_leaves_nothing_and_counts() -> None:
    ours = gateway(0)
    assert ours.remove_all() == 2 + 6
    assert (ours.dump().sad, ours.dump().spd) == ((), ())
    with refused(Refusal.NO_POLICY):
        ours.protect(packet(), 0.0)
    for entry in policies(0):
        ours.add_policy(entry)
    with pytest.raises(Waits):
        ours.protect(packet(), 0.0)
    ours.remove_all()
    for entry in policies(0):
        ours.add_policy(entry)
    with pytest.raises(Waits):
        ours.protect(packet(), 0.1)
    assert len(ours.events) == 2, "who starts anew is told anew"
