"""Whatever a device gives, what leaves of it, beside a twin that goes packet by packet."""

from __future__ import annotations

import random
import secrets
import select
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.datapath.userspace.loop import Loop
from tests.datapath.userspace.super_packets import DF, Stream, slow_sum
from tests.datapath.userspace.test_forwarding import REQID, policies
from xfrmpy.datapath.userspace.forwarding import Forwarder, Refusal, Refused
from xfrmpy.datapath.userspace.outbound import TURN, Outbound
from xfrmpy.datapath.userspace.segments import BadOffload, complete
from xfrmpy.datapath.userspace.tun import Tun
from xfrmpy.datapath.userspace.turns import Readable, Turn
from xfrmpy.datapath.userspace.virtio import Offload, Segments, encode_offload
from xfrmpy.esp.ip import parse_inner_header
from xfrmpy.esp.packet import InboundSa
from xfrmpy.ipsec.sad import Direction, SadEntry, Usage

NOISE = random.Random(2).randbytes(5000)


class Device:
    """A worker's device: what it reads is what a socket of ours was given, one piece each."""

    def __init__(self) -> None:
        self._host, self._inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self._host, self._inside):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
        self._inside.setblocking(False)
        self.tun = Tun.__new__(Tun)
        self.tun._descriptor = self._inside.fileno()

    def give(self, written: Written) -> None:
        self._host.send(encode_offload(written.offload) + written.packet)

    def close(self) -> None:
        self._host.close()
        self._inside.close()


class Laboratory:
    """A worker's outbound half between a device and a peer."""

    def __init__(self) -> None:
        self.device, self.loop = Device(), Loop()
        self.entry = self.loop.entry(reqid=REQID)

    def close(self) -> None:
        self.device.close()
        self.loop.close()


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    opened = Laboratory()
    yield opened
    opened.close()


def protecting(entry: SadEntry) -> Forwarder:
    """Everything, by one SA."""
    made = Forwarder(secrets.token_bytes)
    made.add_sa(entry, 0.0)
    for prefix in ("0.0.0.0/0", "::/0"):
        for policy in policies(0, local=prefix, remote=prefix):
            made.add_policy(policy)
    return made


def counting(forwarder: Forwarder) -> Callable[[Callable[[], None]], None]:
    """As a worker has it, but for what it would count as a defect."""

    def guarded(handle: Callable[[], None]) -> None:
        try:
            handle()
        except Refused as refused:
            forwarder.refused[refused.reason] += 1

    return guarded


class Reader:
    """Of a device, as a worker has it: all that is there, a turn's worth at a time."""

    def __init__(self, laboratory: Laboratory, forwarder: Forwarder) -> None:
        self._guarded = counting(forwarder)
        self.outbound = Outbound(forwarder, self._guarded, no_loss)
        self.outbound.senders[IPv4Address] = laboratory.loop.sender
        self.turn = Turn(Readable(), TURN)
        self._tun = laboratory.device.tun

    def read(self) -> None:
        self._guarded(partial(self.outbound.carry, self._tun, 0, self.turn))


def no_loss(_: Tun) -> None:
    raise AssertionError("no device is lost")


@dataclass(frozen=True, slots=True)
class Written:
    """What a hostile writer gives a device."""

    packet: bytes
    offload: Offload

    def spoiled(self, octets: dict[int, int], size: int, **fields: Any) -> Written:
        """With octets of its headers, its length and fields of its virtio header changed."""
        packet = bytearray(self.packet)
        for at, octet in octets.items():
            if at < len(packet):
                packet[at] = octet
        return Written(bytes(packet[:size]), self.offload._replace(**fields))


STREAMS = st.builds(
    Stream,
    version=st.sampled_from([4, 6]),
    is_tcp=st.sampled_from([True, True, True, False]),
    payload=st.integers(1, 2500).map(lambda size: NOISE[:size]),
    mss=st.integers(500, 1400),
    options=st.integers(0, 3).map(lambda n: b"\1" * (4 * n)),
    ip_options=st.sampled_from([b"", b"", bytes(8)]),
    fragment_bits=st.sampled_from([DF, DF, 0, 0x2000, DF | 1]),
    flags=st.integers(0, 255),
)
SIZES = st.integers(0, 0xFFFF) | st.integers(0, 80)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "needs_checksum": st.booleans(),
        "segments": st.sampled_from([0, 1, 3, 4, 5, 127]),
        "header_size": SIZES,
        "segment_size": st.sampled_from([0, 100, 512, 1000, 2499, 0xFFFF]),
        "checksum_start": SIZES,
        "checksum_offset": SIZES | st.sampled_from([6, 16]),
        "has_ecn": st.booleans(),
    },
)
WRITTEN = STREAMS.map(lambda stream: Written(*stream.super_packet()))
SPOILED = st.builds(
    lambda written, octets, size, fields: written.spoiled(octets, size, **fields),
    WRITTEN,
    st.dictionaries(st.integers(0, 60), st.integers(0, 255), max_size=3),
    st.just(9000) | st.integers(0, 3000),
    FIELDS,
)


OF_TWO_STREAMS = st.builds(
    Stream,
    payload=st.sampled_from([1200, 1200, 2400, 4200, 1300, 600]).map(lambda size: NOISE[:size]),
    mss=st.just(600),
    flags=st.integers(0, 255),
    ports=st.sampled_from([(40000, 443), (40001, 443)]),
    sequence=st.integers(0, 2**32 - 1),
    traffic_class=st.sampled_from([0, 0, 0, 2]),
    identification=st.integers(0, 0xFFFF),
).map(lambda stream: Written(*stream.super_packet()))
"""Of which many may leave together: there are shorter ones at an end, too, and such as are one
packet, and with another outer header."""


@given(written=st.lists(OF_TWO_STREAMS | OF_TWO_STREAMS | SPOILED, min_size=2, max_size=12))
def test_super_packets_that_wait_leave_together_as_if_packet_by_packet(
    laboratory: Laboratory, written: list[Written]
) -> None:
    forwarder, twin = protecting(laboratory.entry), protecting(laboratory.entry)
    reader = Reader(laboratory, forwarder)
    for each in written:
        laboratory.device.give(each)
    for _ in written:
        reader.read()
    expected = [sealed for each in written for sealed in one_by_one(twin, each)]
    assert laboratory.loop.received(len(expected)) == expected
    assert forwarder.refused == twin.refused
    assert usage(forwarder) == usage(twin)
    assert not select.select([laboratory.loop.receiver], [], [], 0)[0], "nothing else has left"


def usage(forwarder: Forwarder) -> Usage:
    (entry,) = forwarder.sad.entries
    return replace(forwarder.sad.usage(entry.id, 1.0), seconds_idle=None)


def test_short_super_packets_of_several_streams_are_sent_by_one_call(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a send costs does not go by what is in it; and they are one piece for who receives."""
    forwarder = protecting(laboratory.entry)
    reader, sender = Reader(laboratory, forwarder), laboratory.loop.sender
    sends: list[int] = []
    send_run = sender.send_run

    def counted(sealed: memoryview, *arguments: Any, **named: Any) -> None:
        sends.append(len(sealed))
        send_run(sealed, *arguments, **named)

    monkeypatch.setattr(sender, "send_run", counted)
    streams = [
        Stream(payload=NOISE[:4000], mss=1000, ports=(port, 443)) for port in (1, 2, 3, 4, 1, 2)
    ]
    for stream in streams[:4]:  # Of a flow, the first finds its way.
        laboratory.device.give(Written(*stream.super_packet()))
        reader.read()
    laboratory.loop.received(16)
    sends.clear()
    for stream in streams:
        laboratory.device.give(Written(*stream.super_packet()))
    reader.read()
    receiver = InboundSa(replace(laboratory.entry, direction=Direction.IN))
    arrived = [receiver.open(each)[1] for each in laboratory.loop.received(24)]
    assert arrived == [packet for stream in streams for packet in stream.packets()]
    first, *others = sends
    assert not others
    assert first > 24 * 1000


@given(written=st.lists(WRITTEN | SPOILED, min_size=1, max_size=6))
def test_whatever_a_device_gives_leaves_as_if_packet_by_packet_or_is_counted(
    laboratory: Laboratory, written: list[Written]
) -> None:
    forwarder, twin = protecting(laboratory.entry), protecting(laboratory.entry)
    reader = Reader(laboratory, forwarder)
    receiver = InboundSa(replace(laboratory.entry, direction=Direction.IN))
    for each in written:
        laboratory.device.give(each)
        reader.read()
        expected = one_by_one(twin, each)
        arrived = laboratory.loop.received(len(expected))
        assert arrived == expected
        for sealed in arrived:
            inner = receiver.open(sealed)[1]
            assert parse_inner_header(inner).length == len(inner)
            if each.offload.segments:
                assert_well_cut(inner, each.offload)
    assert forwarder.refused == twin.refused
    assert not select.select([laboratory.loop.receiver], [], [], 0)[0], "nothing else has left"


def assert_well_cut(packet: bytes, offload: Offload) -> None:
    """A segment whose IP header is right, and has behind it what was to be cut."""
    header = parse_inner_header(packet)
    assert header.protocol == (17 if offload.segments == Segments.UDP else 6)
    assert header.source_port is not None, "it is no fragment"
    if header.version == 4:
        size = packet[0] % 16 * 4
        assert slow_sum(packet[:size]) == 0xFFFF
        assert packet[6] & 0x3F == packet[7] == 0, "it is no fragment"
        assert size == offload.checksum_start


def one_by_one(twin: Forwarder, written: Written) -> list[bytes]:
    try:
        packets = complete(written.packet, written.offload)
    except BadOffload:
        twin.refused[Refusal.BAD_OFFLOAD] += 1
        return []
    sealed = []
    for packet in packets:
        try:
            sealed.append(twin.protect(packet, 1.0)[0])
        except Refused as refused:
            twin.refused[refused.reason] += 1
    return sealed
