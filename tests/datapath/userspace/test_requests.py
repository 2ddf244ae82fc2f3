"""Requests, replies and events: what goes in comes out, and junk is told from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import is_dataclass
from ipaddress import ip_address, ip_network
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.datapath.interface import Acquire, Event, Expired, MappingChanged
from xfrmpy.datapath.userspace import requests
from xfrmpy.ipsec.addresses import IpAddress, SocketAddress
from xfrmpy.ipsec.algorithms import CIPHERS, INTEGRITY
from xfrmpy.ipsec.plain import to_plain
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import Direction, Lifetime, SadEntry, SaId, UdpEncapsulation
from xfrmpy.ipsec.selectors import MaskedPort, Selector, TrafficSelector
from xfrmpy.ipsec.spd import PolicyDirection, SpdEntry, Template
from xfrmpy.registry import ProtocolId

FAR = ip_address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
HUGE = (1 << 63) - 1
SA = SaId(spi=0xFFFFFFFF, protocol=ProtocolId.ESP, destination=FAR)
EVENTS: list[Event] = [
    Acquire(
        reqid=1,
        source=TrafficSelector.parse("10.1.0.9/32[udp/53]"),
        destination=TrafficSelector.parse("2001:db8::/32"),
    ),
    Expired(sa=SA, reqid=2, hard=True),
    MappingChanged(
        sa=SA,
        reqid=3,
        old=SocketAddress(ip_address("192.0.2.1"), 4500),
        new=SocketAddress(FAR, 65535),
    ),
]
AES_256_CTR = max((c for c in CIPHERS if not c.is_aead), key=lambda c: c.keymat)
HMAC_SHA2_512 = max(INTEGRITY, key=lambda i: i.key)
LARGEST_SA = SadEntry(
    direction=Direction.OUT,
    spi=0xFFFFFFFF,
    source=FAR,
    destination=FAR,
    reqid=0x5846FFFF,
    suite=EspSuite(cipher=AES_256_CTR, integrity=HMAC_SHA2_512, esn=False),
    encryption_key=bytes(36),
    integrity_key=bytes(64),
    replay_window=4096,
    encapsulation=UdpEncapsulation(65535, 65535),
    lifetime=Lifetime(
        soft_seconds=HUGE,
        hard_seconds=HUGE,
        soft_bytes=HUGE,
        hard_bytes=HUGE,
        soft_packets=HUGE,
        hard_packets=HUGE,
    ),
)
LARGEST_POLICY = SpdEntry(
    direction=PolicyDirection.FORWARD,
    selector=Selector(
        source=ip_network(FAR),
        destination=ip_network(FAR),
        protocol=255,
        source_port=MaskedPort(65535, 65535),
        destination_port=MaskedPort(65535, 65535),
    ),
    priority=100_000,
    template=Template(source=FAR, destination=FAR, reqid=0x5846FFFF),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_comes_out_as_it_went_in(event: Event) -> None:
    assert requests.decode_event(requests.encode_event(event)) == event


@pytest.mark.parametrize("entry", [LARGEST_SA, LARGEST_POLICY], ids=["sa", "policy"])
def test_the_largest_entries_fit_their_packets(entry: object) -> None:
    pieces = list(requests.in_pieces([entry] * (2 * requests.ENTRIES_PER_PACKET + 1)))
    assert [len(piece) for piece in pieces] == [requests.ENTRIES_PER_PACKET] * 2 + [1]
    reply = {"result": {"table": "sad", "entries": pieces[0]}, "more": True}
    assert len(requests.encode(reply)) <= requests.MAX_PACKET


def test_the_longest_question_and_answer_fit_their_packets() -> None:
    asked = to_plain((SA,) * requests.IDS_PER_PACKET)
    assert len(requests.encode({"do": "survey", "with": asked})) <= requests.MAX_PACKET
    names = [requests.name_of(SA)] * requests.IDS_PER_PACKET
    assert len(requests.encode({"do": "seconds_idle", "with": names})) <= requests.MAX_PACKET
    told = {"result": [123456789.12345679] * requests.IDS_PER_PACKET}
    assert len(requests.encode(told)) <= requests.MAX_PACKET


@given(
    spi=st.integers(256, 0xFFFFFFFF),
    protocol=st.sampled_from([ProtocolId.AH, ProtocolId.ESP]),
    destination=st.ip_addresses(),
)
def test_an_sa_is_found_by_its_name(spi: int, protocol: ProtocolId, destination: IpAddress) -> None:
    sa = SaId(spi=spi, protocol=protocol, destination=destination)
    assert requests.named(requests.name_of(sa)) == sa


NO_NAMES = ["", "0000010003", "0000010001c0000201", "00000100032", "x000010003c0000201", 256, None]


@pytest.mark.parametrize("name", [*NO_NAMES, "0000010003c00002", ["0000010003c0000201"]])
def test_what_names_no_sa_is_refused(name: object) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        requests.named(name)


def test_no_entries_are_one_piece() -> None:
    assert list(requests.in_pieces([])) == [[]]


@given(packet=st.binary(max_size=60) | JSON.map(lambda plain: json.dumps(plain).encode()))
def test_junk_is_no_message_or_an_object(packet: bytes) -> None:
    with suppress(ValueError):
        assert isinstance(requests.decode(packet), dict)


@pytest.mark.parametrize("packet", [b"", b"[]", b"1", b"\xff", b"[" * 60_000, b'{"a":' * 10_000])
def test_what_is_no_message_is_refused(packet: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the library's words)
        requests.decode(packet)


@given(kind=st.sampled_from(sorted(requests.EVENT_KINDS)), value=JSON)
def test_junk_is_no_event(kind: str, value: object) -> None:
    packet = json.dumps({"event": kind, "of": value}).encode()
    with pytest.raises((ValueError, KeyError, TypeError)):
        requests.decode_event(packet)


def test_keys_are_in_the_packet_and_not_in_the_words() -> None:
    """The socket is of mode 0600; what is printed of an entry has no key."""
    (piece,) = requests.in_pieces([LARGEST_SA])
    assert LARGEST_SA.integrity_key.hex() in json.dumps(piece)
    assert "integrity_key" not in repr(LARGEST_SA)
    assert "encryption_key" not in repr(LARGEST_SA)


def test_the_format_is_that_of_everything_that_passes() -> None:
    """A dataclass that it does not know could change, and an old worker would not be found out."""
    known = set(requests.VALUES)
    within = {
        part for kind in known for hint in get_type_hints(kind).values() for part in _of(hint)
    }
    assert {kind for kind in within if is_dataclass(kind)} <= known
    assert known >= {SadEntry, SpdEntry, *requests.EVENT_KINDS.values()}


def _of(hint: Any) -> Iterator[Any]:
    yield hint
    for argument in get_args(hint):
        yield from _of(argument)
