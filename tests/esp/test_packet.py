"""ESP packets: every suite against a second opinion, published packets, what must be dropped."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.esp.packet import IPV4_IN_ESP, IPV6_IN_ESP, NO_NEXT_HEADER, InboundSa, OutboundSa
from xfrmpy.esp.sa import Dropped, EspDrop
from xfrmpy.ipsec import algorithms
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import Direction, Lifetime, SadEntry

MakeEntry = Callable[..., SadEntry]
SealByHand = Callable[[SadEntry, int, bytes, bytes], bytes]

CHACHA = EspSuite(
    cipher=next(c for c in algorithms.CIPHERS if c.name == "chacha20poly1305"),
    integrity=None,
    esn=False,
)


def why(sa: InboundSa, packet: bytes) -> EspDrop:
    """The reason for which a packet is dropped."""
    with pytest.raises(Dropped) as dropped:
        sa.open(packet)
    return dropped.value.reason


def damaged(packet: bytes, position: int) -> bytes:
    octets = bytearray(packet)
    octets[position] ^= 1
    return bytes(octets)


def sealed_by(entry: SadEntry) -> OutboundSa:
    return OutboundSa(entry, secrets.token_bytes)


def test_every_length_comes_back(suite: EspSuite, make_entry: MakeEntry) -> None:
    ours, theirs = sealed_by(make_entry(suite)), InboundSa(make_entry(suite))
    for length in (*range(201), 1400, 9000, 65_000):
        payload = bytes(i & 0xFF for i in range(length))
        packet = ours.seal(payload, IPV4_IN_ESP)
        assert theirs.open(packet) == (IPV4_IN_ESP, payload, True)


def test_a_packet_is_what_the_rfcs_say(
    suite: EspSuite, make_entry: MakeEntry, seal_by_hand: SealByHand
) -> None:
    entry = make_entry(suite)
    sa = sealed_by(entry)
    block = max(suite.cipher.block, 4)
    for sequence, length in enumerate((0, 1, 17, 84, 1333), 1):
        packet = sa.seal(bytes(length), IPV6_IN_ESP)
        iv = packet[8 : 8 + suite.cipher.iv]
        padding = -(length + 2) % block
        plaintext = bytes(length) + bytes(range(1, padding + 1)) + bytes((padding, 41))
        assert packet == seal_by_hand(entry, sequence, iv, plaintext)


def test_what_is_sealed_by_hand_opens(
    suite: EspSuite, make_entry: MakeEntry, seal_by_hand: SealByHand
) -> None:
    entry = make_entry(suite)
    plaintext = b"x" * 84 + bytes(range(1, 11)) + bytes((10, 4))
    packet = seal_by_hand(entry, 9, bytes(range(suite.cipher.iv)), plaintext)
    assert InboundSa(entry).open(packet) == (4, b"x" * 84, True)


def test_the_esp_packet_of_rfc_7634_appendix_a_opens(
    make_entry: MakeEntry, vectors: Callable[[str], Any]
) -> None:
    (case,) = (c for c in vectors("rfc7634")["cases"] if c["case"] == "A, ESP")
    entry = make_entry(
        CHACHA, direction=Direction.IN, spi=0x01020304, encryption_key=bytes.fromhex(case["keymat"])
    )
    packet = bytes.fromhex(case["packet"])[20:]
    assert InboundSa(entry).open(packet) == (4, bytes.fromhex(case["source"]), True)


@pytest.mark.parametrize("number", sorted(set(range(14)) - {3}))  # SPI 0 is reserved
def test_the_gcm_packets_of_draft_mcgrew_open(
    make_entry: MakeEntry, vectors: Callable[[str], Any], number: int
) -> None:
    """Whatever is in them: next header 1, and not always an IP packet."""
    case = vectors("draft-mcgrew-gcm-test-01")["cases"][number]
    key, salt, iv, associated, plaintext, sealed = (
        bytes.fromhex(case[name])
        for name in ("key", "salt", "iv", "associated", "plaintext", "sealed")
    )
    cipher = next(c for c in algorithms.CIPHERS if c.keymat == len(key + salt) and c.is_aead)
    suite = EspSuite(cipher=cipher, integrity=None, esn=len(associated) == 12)
    spi, sequence = associated[:4], int.from_bytes(associated[4:], "big")
    entry = make_entry(suite, spi=int.from_bytes(spi, "big"), encryption_key=key + salt)
    theirs = InboundSa(entry)
    theirs._window.highest = sequence - 1
    next_header, payload, _ = theirs.open(spi + associated[-4:] + iv + sealed)
    padding, expected = plaintext[-2:]
    assert (next_header, payload) == (expected, plaintext[: -2 - padding])


def test_the_packet_of_rfc_7634_has_our_padding_and_header(
    make_entry: MakeEntry, vectors: Callable[[str], Any], seal_by_hand: SealByHand
) -> None:
    """Its IV is no counter of ours; all the rest is what we would send."""
    (case,) = (c for c in vectors("rfc7634")["cases"] if c["case"] == "A, ESP")
    entry = make_entry(CHACHA, spi=0x01020304, encryption_key=bytes.fromhex(case["keymat"]))
    sa = sealed_by(entry)
    for _ in range(4):
        sa.seal(b"", IPV4_IN_ESP)
    packet = sa.seal(bytes.fromhex(case["source"]), IPV4_IN_ESP)
    assert packet == seal_by_hand(entry, 5, packet[8:16], bytes.fromhex(case["plaintext"]))
    assert packet[:8] == bytes.fromhex(case["associated"])
    assert len(packet) == len(case["packet"]) // 2 - 20


def test_the_iv_of_a_counter_mode_never_repeats_and_that_of_cbc_is_random(
    suite: EspSuite, make_entry: MakeEntry
) -> None:
    asked: list[int] = []

    def random(size: int) -> bytes:
        asked.append(size)
        return secrets.token_bytes(size)

    sa = OutboundSa(make_entry(suite), random)
    size = suite.cipher.iv
    ivs = [sa.seal(b"same", 4)[8 : 8 + size] for _ in range(50)]
    assert len(set(ivs)) == (50 if size else 1)
    assert asked == ([] if suite.cipher.counts_iv else [size] * 50)


@pytest.mark.parametrize("esn", [False, True])
def test_sequence_numbers_end_and_never_cycle(make_entry: MakeEntry, esn: bool) -> None:
    sa = sealed_by(make_entry(replace(CHACHA, esn=esn)))
    sa._sequence = (1 << (64 if esn else 32)) - 2
    assert not sa.is_past_hard_limit
    assert sa.seal(b"the last one", 4)[4:8] == b"\xff\xff\xff\xff"
    assert sa.is_past_hard_limit
    with pytest.raises(Dropped) as dropped:
        sa.seal(b"one too many", 4)
    assert dropped.value.reason is EspDrop.EXPIRED


def test_the_last_sequence_numbers_are_received_and_none_beyond(
    suite: EspSuite, make_entry: MakeEntry
) -> None:
    end = 1 << (64 if suite.esn else 32)
    ours, theirs = sealed_by(make_entry(suite)), InboundSa(make_entry(suite))
    theirs._window.highest = ours._sequence = end - 3
    last = [ours.seal(bytes([n]), 4) for n in range(2)]
    assert [theirs.open(packet)[1] for packet in last] == [b"\0", b"\1"]
    beyond = last[0][:4] + b"\0\0\0\x05" + last[0][8:]
    assert why(theirs, beyond) is EspDrop.REPLAYED


def test_extended_sequence_numbers_carry_over(suite: EspSuite, make_entry: MakeEntry) -> None:
    suite = replace(suite, esn=True)
    ours, theirs = sealed_by(make_entry(suite)), InboundSa(make_entry(suite))
    for high in (1, 2):
        ours._sequence = (high << 32) - (1 << 31)  # Half a subspace is as far as one may jump.
        theirs.open(ours.seal(b"", 4))
        ours._sequence = (high << 32) - 21
        packets = [ours.seal(bytes([n]), 4) for n in range(40)]
        for n in (5, 25, 6, 39, 0, 20, 19):
            assert theirs.open(packets[n])[1] == bytes([n])
        assert why(theirs, packets[25]) is EspDrop.REPLAYED
    assert theirs.integrity_failed == 0


def test_a_replayed_packet_is_dropped_and_counted(suite: EspSuite, make_entry: MakeEntry) -> None:
    ours, theirs = sealed_by(make_entry(suite)), InboundSa(make_entry(suite))
    packets = [ours.seal(bytes([n]), 4) for n in range(3)]
    for packet in packets:
        theirs.open(packet)
    assert [why(theirs, packet) for packet in packets] == [EspDrop.REPLAYED] * 3
    assert (theirs.packets, theirs.octets, theirs.replayed) == (3, 3, 3)


def test_a_flipped_bit_anywhere_is_noticed(suite: EspSuite, make_entry: MakeEntry) -> None:
    ours, theirs = sealed_by(make_entry(suite)), InboundSa(make_entry(suite))
    ours.seal(b"number 1, which a flipped bit turns into 0", 4)
    packet = ours.seal(b"secret", 4)
    for position in range(4, len(packet)):
        assert why(theirs, damaged(packet, position)) is EspDrop.NOT_AUTHENTIC
    assert theirs.integrity_failed == len(packet) - 4
    assert theirs.packets == 0
    theirs.open(packet)


def test_a_forged_packet_far_ahead_does_not_move_the_window(make_entry: MakeEntry) -> None:
    ours, theirs = sealed_by(make_entry()), InboundSa(make_entry())
    packet = ours.seal(b"genuine", 4)
    forged = packet[:4] + b"\x7f\xff\xff\xff" + packet[8:]
    assert why(theirs, forged) is EspDrop.NOT_AUTHENTIC
    theirs.open(packet)


def test_packets_in_another_order_are_taken_and_only_newer_ones_are_newest(
    make_entry: MakeEntry,
) -> None:
    ours, theirs = sealed_by(make_entry()), InboundSa(make_entry())
    packets = [ours.seal(bytes([n]), 4) for n in range(5)]
    assert [theirs.open(packets[n])[2] for n in (1, 0, 4, 3)] == [True, False, True, False]


def test_a_truncated_packet_is_dropped_at_every_length(
    suite: EspSuite, make_entry: MakeEntry
) -> None:
    packet = sealed_by(make_entry(suite)).seal(b"some octets", 4)
    theirs = InboundSa(make_entry(suite))
    shortest = 8 + suite.cipher.iv + suite.icv + 2
    for length in range(len(packet)):
        expected = EspDrop.TOO_SHORT if length < shortest else EspDrop.NOT_AUTHENTIC
        assert why(theirs, packet[:length]) is expected


@pytest.mark.parametrize(
    "tail",
    [
        b"\x02\x01\x02\x04",  # not 1, 2
        b"\x01\x02\x03\x04\xff\x04",  # longer than the packet
        b"\x00\x00\x02\x04",
    ],
)
def test_padding_that_is_not_1_2_3_is_dropped(
    make_entry: MakeEntry, seal_by_hand: SealByHand, tail: bytes
) -> None:
    entry = make_entry(CHACHA)
    packet = seal_by_hand(entry, 1, bytes(8), b"inner!" + tail)
    theirs = InboundSa(entry)
    assert why(theirs, packet) is EspDrop.BAD_PADDING
    assert why(theirs, packet) is EspDrop.REPLAYED, "it was authentic, so the window moved"


def test_255_octets_of_padding_are_taken(make_entry: MakeEntry, seal_by_hand: SealByHand) -> None:
    entry = make_entry(CHACHA)
    packet = seal_by_hand(entry, 1, bytes(8), b"abc" + bytes(range(1, 256)) + b"\xff\x04")
    assert InboundSa(entry).open(packet)[1] == b"abc"


def test_a_dummy_packet_is_dropped_without_a_word(
    make_entry: MakeEntry, seal_by_hand: SealByHand
) -> None:
    entry = make_entry(CHACHA)
    packet = seal_by_hand(entry, 1, bytes(8), b"noise" + b"\x01\x01" + bytes([NO_NEXT_HEADER]))
    theirs = InboundSa(entry)
    assert why(theirs, packet) is EspDrop.DUMMY
    assert theirs.integrity_failed == 0


def test_limits_are_reached_by_octets_or_packets(make_entry: MakeEntry) -> None:
    for lifetime in (
        Lifetime(soft_bytes=20, hard_bytes=30),
        Lifetime(soft_packets=2, hard_packets=3),
    ):
        entry = make_entry(lifetime=lifetime)
        ours, theirs = sealed_by(entry), InboundSa(entry)
        seen = []
        for _ in range(3):
            theirs.open(ours.seal(bytes(10), 4))
            seen.append((ours.is_past_soft_limit, ours.is_past_hard_limit))
        assert seen == [(False, False), (True, False), (True, True)]
        with pytest.raises(Dropped) as dropped:
            ours.seal(b"", 4)
        assert dropped.value.reason is EspDrop.EXPIRED
        more = sealed_by(replace(entry, lifetime=Lifetime()))
        more._sequence = 3
        assert why(theirs, more.seal(b"", 4)) is EspDrop.EXPIRED


def test_usage_counts_inner_octets(make_entry: MakeEntry) -> None:
    sa = sealed_by(make_entry())
    sa.seal(bytes(100), 4)
    sa.seal(bytes(50), 4)
    usage = sa.usage(seconds_idle=1.5)
    assert (usage.octets, usage.packets, usage.seconds_idle) == (150, 2, 1.5)


def test_the_addresses_of_an_sa_do_not_enter_its_packets(make_entry: MakeEntry) -> None:
    """So that an SA may move (RFC 4555, NAT) without a new key."""
    here, there = make_entry(), make_entry(source=ip_address("203.0.113.9"))
    assert InboundSa(there).open(sealed_by(here).seal(b"still", 4))[1] == b"still"


@given(packet=st.binary(max_size=200), esn=st.booleans(), cbc=st.booleans())
def test_junk_is_dropped_and_nothing_else(
    make_entry: MakeEntry, packet: bytes, esn: bool, cbc: bool
) -> None:
    suite = replace(CHACHA, esn=esn)
    if cbc:
        suite = EspSuite(cipher=algorithms.CIPHERS[-1], integrity=algorithms.INTEGRITY[0], esn=esn)
    theirs = InboundSa(make_entry(suite))
    with suppress(Dropped):
        theirs.open(packet)
        raise AssertionError("junk was opened")
    assert theirs.packets == 0


# Packets that came together.


def arrived(*packets: bytes) -> list[memoryview]:
    """In one buffer, as the kernel gives them."""
    buffer, views, start = memoryview(bytearray(b"".join(packets))), [], 0
    for packet in packets:
        views.append(buffer[start : start + len(packet)])
        start += len(packet)
    return views


def contents(sa: InboundSa, packets: list[bytes]) -> list[tuple[int, bytes]] | None:
    """What a run opens to; None if it is none."""
    run = sa.open_run(arrived(*packets))
    return None if run is None else [(header, bytes(payload)) for header, payload in run.payloads]


def test_a_run_opens_in_place_as_its_packets_do_one_by_one(
    suite: EspSuite, make_entry: MakeEntry
) -> None:
    ours, theirs = sealed_by(make_entry(suite)), InboundSa(make_entry(suite))
    twin = InboundSa(make_entry(suite))
    for sizes in ((5,), (1400,) * 44, range(200), (0, 7)):
        packets = [ours.seal(bytes(size), IPV6_IN_ESP) for size in sizes]
        if theirs._cipher.in_place is None:
            assert contents(theirs, packets) is None
            return
        assert contents(theirs, packets) == [(twin.open(packet)[:2]) for packet in packets]
    assert theirs.usage(0.0) == twin.usage(0.0)
    assert (theirs._window.highest, theirs._window.seen) == (
        twin._window.highest,
        twin._window.seen,
    )


def test_of_a_run_the_window_moves_for_what_is_authentic_only(make_entry: MakeEntry) -> None:
    ours, theirs = sealed_by(make_entry()), InboundSa(make_entry())
    genuine = [ours.seal(bytes([number]), 4) for number in range(6)]
    forged = {1: damaged(genuine[1], -1), 5: damaged(genuine[5], 20)}
    run = theirs.open_run(arrived(*(forged.get(n, packet) for n, packet in enumerate(genuine))))
    assert run is not None
    assert [bytes(payload) for _, payload in run.payloads] == [b"\0", b"\2", b"\3", b"\4"]
    assert run.drops == [EspDrop.NOT_AUTHENTIC] * 2
    assert theirs.integrity_failed == 2
    assert theirs._window.highest == 5
    for number, packet in enumerate(genuine):
        if number in (1, 5):
            assert theirs.open(packet)[1] == bytes([number])
        else:
            assert why(theirs, packet) is EspDrop.REPLAYED


def test_a_run_without_an_authentic_packet_moves_no_window(make_entry: MakeEntry) -> None:
    ours, theirs = sealed_by(make_entry()), InboundSa(make_entry())
    packets = [ours.seal(b"genuine", 4) for _ in range(3)]
    run = theirs.open_run(arrived(*(damaged(packet, 20) for packet in packets)))
    assert run is not None
    assert (run.payloads, len(run.drops)) == ([], 3)
    assert theirs._window.highest == 0
    assert contents(theirs, packets) == [(4, b"genuine")] * 3


def test_what_is_no_run_is_left_as_it_is(make_entry: MakeEntry) -> None:
    ours, theirs = sealed_by(make_entry()), InboundSa(make_entry())
    first, second, third = (ours.seal(bytes([number]), 4) for number in range(3))
    strange = bytes(4) + second[4:]
    for packets in ((second, first), (first, first), (first, second[:20]), (first, strange)):
        views = arrived(*packets)
        assert theirs.open_run(views) is None
        assert b"".join(views) == b"".join(packets)
    assert contents(theirs, [second]) == [(4, b"\1")]
    assert contents(theirs, [first, third]) is None, "the window is for what comes late"


def test_packets_without_content_or_with_wrong_padding_are_dropped_from_a_run(
    make_entry: MakeEntry, seal_by_hand: SealByHand
) -> None:
    entry = make_entry(CHACHA)
    plaintexts = (b"\1\1\4", b"\2\1\4", b"\1\1\x3b", b"packet\0\4")
    packets = [
        seal_by_hand(entry, number, bytes(8), plaintext)
        for number, plaintext in enumerate(plaintexts, 1)
    ]
    theirs = InboundSa(entry)
    run = theirs.open_run(arrived(*packets))
    assert run is not None
    assert [(header, bytes(payload)) for header, payload in run.payloads] == [
        (4, b""),
        (4, b"packet"),
    ]
    assert run.drops == [EspDrop.BAD_PADDING, EspDrop.DUMMY]
    assert theirs.packets == 3


@pytest.mark.parametrize(
    "lifetime",
    [
        Lifetime(hard_packets=4),
        Lifetime(hard_bytes=109),
        Lifetime(hard_packets=1),
        Lifetime(soft_packets=4, hard_packets=9),
    ],
)
def test_packets_that_may_reach_a_limit_are_no_run(
    make_entry: MakeEntry, lifetime: Lifetime
) -> None:
    ours, theirs = sealed_by(make_entry()), InboundSa(make_entry(lifetime=lifetime))
    theirs.open(ours.seal(bytes(1), 4))
    packets = [ours.seal(bytes(1), 4) for _ in range(3)]
    assert theirs.open_run(arrived(*packets)) is None
