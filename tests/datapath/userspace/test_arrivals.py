"""Packets that came together, beside a forwarder that takes them one by one."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.datapath.userspace.super_packets import ACK, DF, Stream
from tests.datapath.userspace.test_forwarding import (
    FIRST,
    gateway,
    gateway_of_interfaces,
    of_interface,
    packet,
    received,
    sa,
    source_of,
)
from xfrmpy.datapath.interface import Expired, MappingChanged
from xfrmpy.datapath.userspace.arrivals import Arrivals
from xfrmpy.datapath.userspace.forwarding import Forwarder, Refusal, Refused
from xfrmpy.datapath.userspace.segments import complete
from xfrmpy.datapath.userspace.shares import Share
from xfrmpy.esp.packet import IPV4_IN_ESP, NO_NEXT_HEADER, OutboundSa
from xfrmpy.esp.sa import EspDrop
from xfrmpy.esp.transport import Fields
from xfrmpy.ipsec.addresses import SocketAddress
from xfrmpy.ipsec.algorithms import CIPHERS, INTEGRITY
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import Lifetime, Mode, SadEntry
from xfrmpy.ipsec.spd import Action

NO_FIELDS = Fields()
HEADERS = {4: 4, 6: 41}


def in_one_buffer(datagrams: list[bytes]) -> list[memoryview]:
    buffer, views, start = memoryview(bytearray(b"".join(datagrams))), [], 0
    for datagram in datagrams:
        views.append(buffer[start : start + len(datagram)])
        start += len(datagram)
    return views


def written(arrivals: Arrivals) -> list[tuple[int, bytes]]:
    """The packets that a host has in the end, by interface."""
    return [
        (if_id, piece)
        for if_id, joined in arrivals.take()
        for piece in complete(b"".join(joined.pieces), joined.offload)
    ]


def together(
    end: Forwarder,
    datagrams: list[bytes],
    source: SocketAddress = FIRST,
    fields: Fields = NO_FIELDS,
    now: float = 1.0,
) -> list[bytes]:
    arrivals = Arrivals(end)
    assert arrivals.add(in_one_buffer(datagrams), source, fields, now) == []
    return [piece for _, piece in written(arrivals)]


def one_by_one(
    end: Forwarder,
    datagrams: list[bytes],
    source: SocketAddress = FIRST,
    fields: Fields = NO_FIELDS,
    now: float = 1.0,
) -> list[bytes]:
    taken = []
    for datagram in datagrams:
        try:
            taken.append(end.unprotect(datagram, source, now, fields=fields)[0])
        except Refused as refusal:
            end.refused[refusal.reason] += 1
    return taken


def state(end: Forwarder) -> object:
    return end.refused, list(end.events), [end.sad.usage(e.id, 5.0) for e in end.dump().sad]


def sealed(sender: OutboundSa, *inner: bytes) -> list[bytes]:
    return [sender.seal(each, HEADERS[each[0] >> 4]) for each in inner]


def peer(entry: SadEntry | None = None) -> OutboundSa:
    return OutboundSa(entry or sa(0), secrets.token_bytes)


STREAM = Stream(payload=bytes(range(250)) * 12)
"""From 10.1.0.2 to 10.2.0.2."""


def test_a_burst_of_a_stream_is_one_super_packet() -> None:
    theirs = gateway(1)
    arrivals = Arrivals(theirs)
    assert arrivals.add(in_one_buffer(sealed(peer(), *STREAM.packets())), FIRST, NO_FIELDS, 1) == []
    ((if_id, joined),) = arrivals.take()
    assert if_id == 0
    assert b"".join(joined.pieces) == STREAM.super_packet()[0]
    assert list(arrivals.take()) == [], "what is written is not written again"


def test_what_came_with_it_and_is_another_workers_is_given_back() -> None:
    """The kernel goes by the first of several."""
    ours, theirs = sealed(peer(), *STREAM.packets())[:2]
    spi = int.from_bytes(ours[:4], "big")
    other = (spi ^ 1).to_bytes(4, "big") + theirs[4:]
    arrivals = Arrivals(gateway(1), Share(spi % 2, 2))
    assert arrivals.add(in_one_buffer([ours, other]), FIRST, NO_FIELDS, 1) == [other]
    assert len(list(arrivals.take())) == 1
    alone = Arrivals(gateway(1))
    assert alone.add(in_one_buffer([ours, other]), FIRST, NO_FIELDS, 1) == []


def test_what_comes_later_joins_what_is_not_written_yet() -> None:
    arrivals, (first, *others) = Arrivals(gateway(1)), sealed(peer(), *STREAM.packets())
    for datagrams in ([first], others):
        arrivals.add(in_one_buffer(datagrams), FIRST, NO_FIELDS, 1.0)
    assert len(list(arrivals.take())) == 1


INNER = st.one_of(
    st.builds(
        Stream,
        version=st.sampled_from([4, 4, 6]),
        payload=st.binary(min_size=1, max_size=60),
        mss=st.integers(1, 20),
        traffic_class=st.sampled_from([0, 0, 2, 3, 0xB8]),
        fragment_bits=st.sampled_from([DF, DF, 0, 0x2000]),
        flags=st.sampled_from([ACK, ACK, ACK | 1]),
        is_tcp=st.sampled_from([True, True, False]),
    ).map(Stream.packets),
    st.sampled_from(
        [
            [packet("10.1.0.9", "10.2.0.7")],
            [packet("10.9.0.9", "10.2.0.7")],
            [packet("fd00:1::9", "fd00:2::7")],
            [b"\x45junk"],
            [b"\x45\0" + bytes(40)],
            [b"\x75" + bytes(40)],
        ]
    ),
)
HARM = st.sampled_from(["", "", "", "", "damaged", "lost", "twice", "swapped", "header", "dummy"])


def sent(sender: OutboundSa, runs: list[tuple[list[bytes], str]]) -> list[bytes]:
    """A sender's packets, and what the way has done to them."""
    out: list[bytes] = []
    for inner, harm in runs:
        packets = [sender.seal(each, HEADERS.get(each[0] >> 4, 4)) for each in inner]
        match harm:
            case "damaged":
                packets[-1] = packets[-1][:-1] + bytes([packets[-1][-1] ^ 1])
            case "lost":
                del packets[0]
            case "twice":
                packets.append(packets[0])
            case "swapped":
                packets.reverse()
            case "header":
                packets.append(sender.seal(inner[0], 41 if inner[0][0] >> 4 == 4 else 4))
            case "dummy":
                packets.append(sender.seal(b"nothing", NO_NEXT_HEADER))
        out += packets
    return out


@given(
    bursts=st.lists(st.lists(st.tuples(INNER, HARM), max_size=4), max_size=4),
    lifetime=st.sampled_from(
        [
            Lifetime(),
            Lifetime(soft_packets=3, hard_packets=9),
            Lifetime(soft_bytes=300, hard_bytes=900),
        ]
    ),
    traffic_class=st.sampled_from([0, 0, 1, 3]),
    port=st.sampled_from([4500, 4501]),
    serials=st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=4, max_size=4),
)
def test_packets_that_came_together_become_what_they_become_one_by_one(
    bursts: list[list[tuple[list[bytes], str]]],
    lifetime: Lifetime,
    traffic_class: int,
    port: int,
    serials: list[int],
) -> None:
    """With two SAs of a tunnel, one that nobody knows, damage, loss, doublets and disorder."""
    entries = [sa(0, serial, lifetime=lifetime) for serial in range(3)]
    senders = [peer(sa(0, serial)) for serial in range(3)]
    ends = [gateway(1, lifetime=lifetime) for _ in range(2)]
    for end in ends:
        end.add_sa(received(entries[1]), 0.0)
    fast, slow = ends
    source, fields = source_of(0, port), Fields(traffic_class)
    for burst in bursts:
        datagrams = [
            datagram
            for serial, run in zip(serials, burst, strict=False)
            for datagram in sent(senders[serial], [run])
        ]
        if not datagrams:
            continue
        one = one_by_one(slow, datagrams, source, fields)
        assert sorted(together(fast, datagrams, source, fields)) == sorted(one)
        assert state(fast) == state(slow)


def test_every_packet_of_an_unknown_spi_is_counted() -> None:
    theirs = gateway(1)
    assert together(theirs, sealed(peer(sa(0, 5)), *STREAM.packets())) == []
    assert theirs.refused == {Refusal.UNKNOWN_SPI: 3}


def test_only_the_first_of_a_run_meets_the_policies_and_all_are_refused_where_it_is() -> None:
    theirs = gateway(1)
    strangers = sealed(peer(), *(bytes(each) for each in outside()))
    assert together(theirs, strangers) == []
    assert theirs.refused == {Refusal.OUTSIDE_SELECTORS: 3}
    assert together(theirs, sealed(peer_behind(theirs), *STREAM.packets())) == STREAM.packets()


def outside() -> list[bytes]:
    """A stream from 10.9.0.2, which the policies do not name."""
    return [each[:13] + b"\x09" + each[14:] for each in STREAM.packets()]


def peer_behind(end: Forwarder) -> OutboundSa:
    """One whose packets are newer than all that have come."""
    del end
    sender = peer()
    for _ in range(100):
        sender.seal(b"", NO_NEXT_HEADER)
    return sender


def test_the_window_moves_by_what_is_authentic_only() -> None:
    theirs, datagrams = gateway(1), sealed(peer(), *STREAM.packets())
    forged = [datagrams[0], datagrams[1], datagrams[2][:-1] + b"\0"]
    assert together(theirs, forged) == STREAM.packets()[:2]
    assert theirs.refused == {EspDrop.NOT_AUTHENTIC: 1}
    assert together(theirs, [datagrams[2]]) == STREAM.packets()[2:]
    assert together(theirs, datagrams) == []
    assert theirs.refused == {EspDrop.NOT_AUTHENTIC: 1, EspDrop.REPLAYED: 3}


def test_forgers_make_no_peer_look_alive_and_move_nobody() -> None:
    theirs = gateway(1)
    forged = [each[:-1] + bytes([each[-1] ^ 1]) for each in sealed(peer(), *STREAM.packets())]
    assert together(theirs, forged, source_of(0, 40_000)) == []
    assert theirs.sad.seconds_idle(sa(0).id, 9.0) is None
    assert list(theirs.events) == []


def test_a_peer_that_has_moved_is_told_once_for_a_burst() -> None:
    theirs = gateway(1)
    moved = source_of(0, 40_000)
    together(theirs, sealed(peer(), *STREAM.packets()), moved)
    (event,) = theirs.events
    assert isinstance(event, MappingChanged)
    assert event.new == moved


def test_a_soft_limit_is_told_when_a_burst_reaches_it() -> None:
    theirs = gateway(1, lifetime=Lifetime(soft_packets=2))
    together(theirs, sealed(peer(), *STREAM.packets()))
    assert [type(event) for event in theirs.events] == [Expired]


def test_what_is_not_for_us_is_given_back_and_the_rest_is_taken() -> None:
    """RFC 3948: what begins with zeros is IKE, and one octet keeps a mapping; an SPI without the
    top bit is of the kernel's IPsec."""
    strangers = [bytes(4) + b"IKE", b"\xff", b"\x12\x34\x56\x78 of the kernel"]
    first, *others = sealed(peer(), *STREAM.packets())
    arrivals = Arrivals(gateway(1))
    given_back = arrivals.add(
        in_one_buffer([first, strangers[0], *others, *strangers[1:]]), FIRST, NO_FIELDS, 1.0
    )
    assert [bytes(each) for each in given_back] == strangers
    assert [piece for _, piece in written(arrivals)] == STREAM.packets()


def test_two_sas_in_one_buffer_go_each_to_its_own_interface() -> None:
    theirs = gateway_of_interfaces(1)
    datagrams = [
        datagram
        for if_id in (1, 2)
        for datagram in sealed(peer(of_interface(0, if_id)[0]), *STREAM.packets())
    ]
    arrivals = Arrivals(theirs)
    arrivals.add(in_one_buffer(datagrams), FIRST, NO_FIELDS, 1.0)
    assert written(arrivals) == [(if_id, each) for if_id in (1, 2) for each in STREAM.packets()]


@pytest.mark.parametrize(
    "change",
    [
        {"mode": Mode.TRANSPORT},
        {"cpi": 0x1234},
        {"suite": EspSuite(cipher=CIPHERS[2], integrity=None, esn=False)},
    ],
)
def test_what_has_no_fast_way_goes_the_slow_one(change: dict[str, object]) -> None:
    ends = gateway(1), gateway(1)
    entry = replace(sa(0, 3), **change)  # type: ignore[arg-type]
    for end in ends:
        end.add_sa(received(entry), 0.0)
    sender = peer(entry)
    inner = [each[20:] for each in STREAM.packets()] if entry.mode is Mode.TRANSPORT else None
    datagrams = (
        [sender.seal(each, 6) for each in inner] if inner else sealed(sender, *STREAM.packets())
    )
    assert together(ends[0], datagrams) == one_by_one(ends[1], datagrams)
    assert state(ends[0]) == state(ends[1])


def test_a_suite_that_does_not_work_in_place_is_joined_all_the_same() -> None:
    ctr = next(cipher for cipher in CIPHERS if cipher.name == "aes128ctr")
    suite = EspSuite(cipher=ctr, integrity=INTEGRITY[0], esn=True)
    keys = {
        "encryption_key": bytes(suite.cipher.keymat),
        "integrity_key": bytes(INTEGRITY[0].key),
    }
    entry = replace(sa(0, 3), suite=suite, **keys)  # type: ignore[arg-type]
    theirs = gateway(1)
    theirs.add_sa(received(entry), 0.0)
    arrivals = Arrivals(theirs)
    arrivals.add(in_one_buffer(sealed(peer(entry), *STREAM.packets())), FIRST, NO_FIELDS, 1.0)
    ((_, joined),) = arrivals.take()
    assert b"".join(joined.pieces) == STREAM.super_packet()[0]


def test_padding_for_confidentiality_is_left_away() -> None:
    """RFC 4303 section 2.7."""
    sender = peer()
    padded = [sender.seal(each, IPV4_IN_ESP, hidden_in=1400) for each in STREAM.packets()]
    assert together(gateway(1), padded) == STREAM.packets()


def test_a_mark_of_the_path_is_put_into_every_packet_of_a_run() -> None:
    """RFC 6040 section 4.2."""
    capable = replace(STREAM, traffic_class=2)
    marked = replace(STREAM, traffic_class=3)
    datagrams = sealed(peer(), *capable.packets())
    assert together(gateway(1), datagrams, fields=Fields(3)) == marked.packets()
    theirs = gateway(1)
    assert together(theirs, sealed(peer(), *STREAM.packets()), fields=Fields(3)) == []
    assert theirs.refused == {Refusal.CONGESTED: 3}


def test_a_flow_that_was_let_in_is_so_no_longer_than_the_policies_let_it() -> None:
    theirs, sender = gateway(1), peer()
    for _ in range(2):
        assert together(theirs, sealed(sender, *STREAM.packets())) == STREAM.packets()
    gone = [each for each in theirs.dump().spd if each.selector.source.version == 4]
    for entry in gone:
        theirs.remove_policy(entry)
    assert together(theirs, sealed(sender, *STREAM.packets())) == []
    assert theirs.refused == {Refusal.OUTSIDE_SELECTORS: 3}
    for entry in gone:
        theirs.add_policy(entry)
    assert together(theirs, sealed(sender, *STREAM.packets())) == STREAM.packets()
    for entry in gone:
        theirs.add_policy(replace(entry, template=None, action=Action.DISCARD))
    assert together(theirs, sealed(sender, *STREAM.packets())) == []


def test_a_flow_is_let_in_by_its_own_sa_and_no_other() -> None:
    """RFC 4301 section 5.2 step 4."""
    theirs, other = gateway(1), sa(0, 3, reqid=8)
    theirs.add_sa(received(other), 0.0)
    assert together(theirs, sealed(peer(), *STREAM.packets())) == STREAM.packets()
    assert together(theirs, sealed(peer(other), *STREAM.packets())) == []
    assert theirs.refused == {Refusal.OUTSIDE_SELECTORS: 3}


def test_padding_behind_a_packet_of_a_known_flow_is_left_away() -> None:
    theirs, sender = gateway(1), peer()
    (datagram,) = Stream(is_tcp=False, payload=bytes(30), mss=30).packets()
    assert together(theirs, sealed(sender, datagram)) == [datagram]
    padded = sender.seal(datagram, IPV4_IN_ESP, hidden_in=900)
    assert together(theirs, [padded]) == [datagram]
