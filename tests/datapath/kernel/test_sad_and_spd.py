"""SAD and SPD entries as the kernel's values, and back."""

from __future__ import annotations

from dataclasses import fields, replace
from ipaddress import ip_address, ip_network
from socket import AF_INET, AF_INET6
from sys import byteorder

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.suites import AH_SUITES, ESP_SUITES
from xfrmpy.datapath.interface import Acquire, Expired, MappingChanged
from xfrmpy.datapath.kernel import events, sad, spd
from xfrmpy.datapath.kernel.messages import XFRM, Attribute, MessageType
from xfrmpy.datapath.netlink.layout import UnreadableMessage
from xfrmpy.datapath.netlink.messages import Message
from xfrmpy.ipsec.addresses import SocketAddress
from xfrmpy.ipsec.marks import Mark
from xfrmpy.ipsec.proposals import AhSuite
from xfrmpy.ipsec.sad import (
    OUR_REQIDS,
    Direction,
    DontFragment,
    InnerEnds,
    Lifetime,
    Mode,
    Offload,
    OuterHeader,
    SadEntry,
    UdpEncapsulation,
)
from xfrmpy.ipsec.selectors import MaskedPort, Selector, TrafficSelector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry, Template

SUITES = [s for s in ESP_SUITES if s.cipher.kernel_name] + AH_SUITES
Attributes = dict[int, object]
V4 = st.tuples(*[st.ip_addresses(v=4)] * 2)
V6 = st.tuples(*[st.ip_addresses(v=6)] * 2)
LIMIT = st.none() | st.integers(1, (1 << 63) - 1)
LIFETIMES = st.builds(
    Lifetime,
    **{f.name: LIMIT for f in fields(Lifetime)},
)


ESP = tuple(suite for suite in SUITES if not isinstance(suite, AhSuite))
INNER_ENDS = (V4 | V6).map(lambda ends: InnerEnds(source=ends[0], destination=ends[1]))
MARKS = st.sampled_from([None, Mark(1), Mark(0x20, 0xF0), Mark(0, 1), Mark(0xFFFFFFFF)])
OUTER_MARKS = st.sampled_from([None, *map(Mark.parse_outer, ("0x10000", "0x20000/0xf0000"))])
OUTER_HEADERS = st.builds(
    OuterHeader,
    copies_dscp=st.booleans(),
    restores_dscp=st.booleans(),
    copies_ecn=st.booleans(),
    dont_fragment=st.sampled_from([DontFragment.COPY, DontFragment.CLEAR]),
)


@st.composite
def sad_entries(draw: st.DrawFn) -> SadEntry:
    suite = draw(st.sampled_from(SUITES))
    direction = draw(st.sampled_from(Direction))
    source, destination = draw(V4 | V6)
    mode = draw(st.sampled_from([m for m in Mode if m is not Mode.BEET or suite in ESP]))
    octets = draw(st.binary(min_size=64, max_size=64))
    resource = draw(st.none() | st.integers(0, 62)) if direction is Direction.OUT else None
    ports = st.integers(0, 0xFFFF)
    return SadEntry(
        direction=direction,
        set_mark=draw(MARKS if direction is Direction.IN else OUTER_MARKS),
        spi=draw(st.integers(256, 0xFFFFFFFF)),
        source=source,
        destination=destination,
        reqid=draw(st.sampled_from(OUR_REQIDS)),
        suite=suite,
        encryption_key=octets[: suite.keymat],
        integrity_key=octets[: suite.integrity.key] if suite.integrity else b"",
        mode=mode,
        inner=draw(INNER_ENDS) if mode is Mode.BEET else None,
        replay_window=draw(st.integers(0, 4096)) if resource is None else 0,
        resource=resource,
        encapsulation=draw(
            st.none()
            if isinstance(suite, AhSuite)
            else st.none()
            | st.builds(
                UdpEncapsulation,
                ports,
                ports,
                st.sampled_from([None, destination if int(destination) else None]),
            )
        ),
        tfc=draw(st.integers(0, 65535)) if mode is Mode.TUNNEL else 0,
        outer=draw(OUTER_HEADERS),
        lifetime=draw(LIFETIMES),
        if_id=draw(st.integers(0, 0xFFFFFFFF)),
    )


@st.composite
def spd_entries(draw: st.DrawFn) -> SpdEntry:
    source, destination = draw(V4 | V6)
    outer = draw(V4 | V6)
    masked = st.builds(MaskedPort, st.integers(0, 0xFFFF), st.integers(0, 0xFFFF))
    action = draw(st.sampled_from(Action))
    template = Template(
        source=outer[0],
        destination=outer[1],
        reqid=draw(st.sampled_from(OUR_REQIDS)),
        mode=draw(st.sampled_from(Mode)),
        compresses=draw(st.booleans()),
    )
    bits = 32 if source.version == 4 else 128
    return SpdEntry(
        direction=draw(st.sampled_from(PolicyDirection)),
        selector=Selector(
            source=ip_network(f"{source}/{draw(st.integers(0, bits))}", strict=False),
            destination=ip_network(f"{destination}/{draw(st.integers(0, bits))}", strict=False),
            protocol=draw(st.integers(0, 255)),
            source_port=draw(masked),
            destination_port=draw(masked),
        ),
        action=action,
        priority=draw(st.integers(0, 0xFFFFFFFF)),
        template=template if action is Action.PROTECT else None,
        mark=draw(MARKS),
        if_id=draw(st.integers(0, 0xFFFFFFFF)),
    )


def _through_octets(message: Message) -> Message:
    return XFRM.decode(message.type, XFRM.encode(message))


@given(entry=sad_entries())
def test_an_sa_comes_back(entry: SadEntry) -> None:
    message = _through_octets(sad.encode_sa(entry))
    assert sad.decode_sa(message) == entry
    assert sad.is_our_sa(message)
    assert sad.decode_sa_id(message.body) == entry.id


@given(entry=spd_entries())
def test_a_policy_comes_back(entry: SpdEntry) -> None:
    index = 0 if entry.template else spd.policy_index(3, entry.direction)
    message = _through_octets(spd.encode_policy(entry, index))
    assert spd.decode_policy(message) == entry
    assert spd.is_our_policy(message)


PLAIN = (Mode.TUNNEL, Mode.TRANSPORT)
GCM = SUITES[0]
SA = SadEntry(
    direction=Direction.IN,
    spi=0x11223344,
    source=ip_address("198.51.100.2"),
    destination=ip_address("198.51.100.1"),
    reqid=OUR_REQIDS[0],
    suite=GCM,
    encryption_key=bytes(range(20)),
    encapsulation=UdpEncapsulation(1025, 4500),
)


def test_only_an_outbound_sa_marks_its_packets() -> None:
    inbound = sad.encode_sa(SA)
    outbound = sad.encode_sa(replace(SA, direction=Direction.OUT))
    assert Attribute.SET_MARK not in inbound.attributes
    assert outbound.attributes[Attribute.SET_MARK] == {"value": 0x5846}
    led = replace(SA, direction=Direction.OUT, set_mark=Mark.parse_outer("0x20000/0xf0000"))
    attributes = sad.encode_sa(led).attributes
    assert attributes[Attribute.SET_MARK] == {"value": 0x25846}
    assert attributes[Attribute.SET_MARK_MASK] == {"value": 0xFFFFF}


def test_only_a_tunnel_is_open_for_both_families() -> None:
    """The kernel takes what it is not told of an SA of transport mode from its outer family."""
    flags = [sad.encode_sa(replace(SA, mode=mode)).body["flags"] & 32 for mode in PLAIN]
    assert flags == [32 if mode is Mode.TUNNEL else 0 for mode in PLAIN]


def test_beet_mode_has_its_inner_headers_of_whichever_family_in_the_selector() -> None:
    ends = InnerEnds(source=ip_address("2001:db8::2"), destination=ip_address("2001:db8::1"))
    body = sad.encode_sa(replace(SA, mode=Mode.BEET, inner=ends)).body
    assert (body["mode"], body["flags"] & 32, body["family"]) == (4, 0, AF_INET)
    assert (body["sel_family"], body["sel_prefixlen_s"]) == (AF_INET6, 128)
    assert body["sel_daddr"] == ends.destination.packed


def test_an_sa_of_one_cpu_has_a_direction() -> None:
    """XFRMA_SA_DIR is an octet, XFRMA_SA_PCPU 32 bits in the host's order (linux/xfrm.h)."""
    bound = replace(SA, direction=Direction.OUT, resource=5, replay_window=0)
    octets = XFRM.encode(sad.encode_sa(bound))
    for attribute, value in ((33, b"\x02"), (35, (5).to_bytes(4, byteorder))):
        head = (4 + len(value)).to_bytes(2, byteorder) + attribute.to_bytes(2, byteorder)
        assert head + value in octets
    for other in (replace(bound, resource=None), replace(bound, direction=Direction.IN)):
        assert not {33, 35} & sad.encode_sa(other).attributes.keys()


def test_a_window_of_32_packets_is_one_word() -> None:
    for window, words in ((0, 0), (1, 1), (32, 1), (33, 2), (256, 8)):
        message = _through_octets(sad.encode_sa(replace(SA, replay_window=window)))
        assert message.attributes[Attribute.REPLAY_ESN_VAL]["bmp_len"] == words
        assert message.body["replay_window"] == 0


@pytest.mark.parametrize(
    "spoil",
    [
        {"family": 9},
        {"mode": 5},
        {"id_proto": 108},
        {"id_spi": 0},
    ],
    ids=str,
)
def test_an_sa_unlike_ours_is_unreadable(spoil: dict[str, int]) -> None:
    message = _through_octets(sad.encode_sa(SA))
    with pytest.raises(UnreadableMessage):
        sad.decode_sa(replace(message, body={**message.body, **spoil}))


@pytest.mark.parametrize("lost", [Attribute.ALG_AEAD, Attribute.REPLAY_ESN_VAL])
def test_an_sa_without_an_attribute_is_unreadable(lost: Attribute) -> None:
    message = _through_octets(sad.encode_sa(SA))
    rest = {n: v for n, v in message.attributes.items() if n != lost}
    with pytest.raises(UnreadableMessage):
        sad.decode_sa(replace(message, attributes=rest))


def test_tcp_encapsulation_is_unreadable() -> None:
    message = _through_octets(sad.encode_sa(SA))
    message.attributes[Attribute.ENCAP]["encap_type"] = 7
    with pytest.raises(UnreadableMessage, match="encapsulation 7"):
        sad.decode_sa(message)


def test_a_foreign_reqid_and_index_are_not_ours() -> None:
    assert not sad.is_our_sa(sad.encode_sa(replace(SA, reqid=1)))
    bypass = Message(type=MessageType.NEWPOLICY, body={"index": 8})
    assert not spd.is_our_policy(bypass)
    foreign: Attributes = {Attribute.TMPL: ({"reqid": OUR_REQIDS.stop},)}
    marked = Message(type=MessageType.NEWPOLICY, body={"index": OUR_REQIDS[0]}, attributes=foreign)
    assert not spd.is_our_policy(marked)


def test_policy_indices_carry_the_direction_and_do_not_meet() -> None:
    made = {
        spd.policy_index(number, direction): direction
        for number in range(1000)
        for direction in PolicyDirection
    }
    assert len(made) == 3000
    kernels = {PolicyDirection.IN: 0, PolicyDirection.OUT: 1, PolicyDirection.FORWARD: 2}
    assert all(index & 7 == kernels[direction] for index, direction in made.items())


def _acquire(reqid: int, protocol: int) -> Message:
    body = {
        "sel_saddr": ip_address("10.1.0.1").packed,
        "sel_daddr": ip_address("10.2.0.9").packed,
        "sel_family": AF_INET,
        "sel_proto": protocol,
        "sel_sport": 1000,
        "sel_dport": 77,
    }
    attributes: Attributes = {Attribute.TMPL: ({"reqid": reqid},)}
    return _through_octets(Message(type=MessageType.ACQUIRE, body=body, attributes=attributes))


def test_an_acquire_names_the_packet() -> None:
    assert events.decode_acquire(_acquire(OUR_REQIDS[5], 17)) == Acquire(
        reqid=OUR_REQIDS[5],
        source=TrafficSelector.parse("10.1.0.1/32[udp/1000]"),
        destination=TrafficSelector.parse("10.2.0.9/32[udp/77]"),
    )


def test_a_protocol_without_ports_has_all_of_them() -> None:
    acquire = events.decode_acquire(_acquire(OUR_REQIDS[5], 1))
    assert acquire is not None
    assert acquire.destination == TrafficSelector.parse("10.2.0.9/32[icmp]")


def _expire(reqid: int, spi: int, hard: int) -> Message:
    sa = sad.encode_sa(replace(SA, reqid=reqid))
    body = {f"state_{name}": value for name, value in sa.body.items()}
    message = Message(type=MessageType.EXPIRE, body={**body, "state_id_spi": spi, "hard": hard})
    return _through_octets(message)


@pytest.mark.parametrize("hard", [0, 1])
def test_an_expiry_names_the_sa(hard: int) -> None:
    event = events.decode_expire(_expire(SA.reqid, SA.spi, hard))
    assert event == Expired(sa=SA.id, reqid=SA.reqid, hard=bool(hard))


def _mapping(reqid: int) -> Message:
    body = {
        "id_daddr": ip_address("2001:db8::1").packed,
        "id_spi": SA.spi,
        "id_family": AF_INET6,
        "id_proto": 50,
        "reqid": reqid,
        "old_saddr": ip_address("2001:db8::2").packed,
        "new_saddr": ip_address("2001:db8::3").packed,
        "old_sport": 4500,
        "new_sport": 1025,
    }
    return _through_octets(Message(type=MessageType.MAPPING, body=body))


def test_a_mapping_names_both_addresses() -> None:
    assert events.decode_mapping(_mapping(SA.reqid)) == MappingChanged(
        sa=replace(SA.id, destination=ip_address("2001:db8::1")),
        reqid=SA.reqid,
        old=SocketAddress(ip_address("2001:db8::2"), 4500),
        new=SocketAddress(ip_address("2001:db8::3"), 1025),
    )


def test_other_programs_events_and_larval_sas_are_passed_over() -> None:
    assert events.decode_acquire(_acquire(7, 17)) is None
    assert events.decode_expire(_expire(7, SA.spi, 1)) is None
    assert events.decode_expire(_expire(SA.reqid, 0, 1)) is None
    assert events.decode_mapping(_mapping(7)) is None
    of_compression = _expire(SA.reqid, 0x1234, 1)
    of_compression.body["state_id_proto"] = 108
    assert events.decode_expire(of_compression) is None


def _used(**changes: int) -> Message:
    message = _through_octets(sad.encode_sa(SA))
    return replace(message, body={**message.body, **changes})


def test_usage_counts_both_kinds_of_replay() -> None:
    message = _used(
        curlft_bytes=1000,
        curlft_packets=10,
        stats_replay=2,
        stats_replay_window=3,
        stats_integrity_failed=4,
    )
    message.attributes[Attribute.LASTUSED] = {"value": 5000}
    usage = sad.decode_usage(message, now=5007.5)
    assert (usage.octets, usage.packets, usage.replayed) == (1000, 10, 5)
    assert (usage.integrity_failed, usage.seconds_idle) == (4, 7.5)
    assert sad.decode_usage(message, now=1.0).seconds_idle == 0.0


def test_an_unused_sa_is_not_idle_since_ever() -> None:
    assert sad.decode_usage(_used(), now=5000.0).seconds_idle is None


@pytest.mark.parametrize(
    ("changes", "past"),
    [
        ({}, False),
        ({"lft_soft_byte_limit": 10, "curlft_bytes": 9}, False),
        ({"lft_soft_byte_limit": 10, "curlft_bytes": 10}, True),
        ({"lft_soft_packet_limit": 10, "curlft_packets": 10}, True),
        ({"lft_soft_add_expires_seconds": 10, "curlft_add_time": 991}, False),
        ({"lft_soft_add_expires_seconds": 10, "curlft_add_time": 990}, True),
    ],
    ids=str,
)
def test_a_soft_limit_is_met_at_its_number(changes: dict[str, int], past: bool) -> None:
    assert sad.is_past_soft_limit(_used(**changes), 1000.0) is past


def test_offload_is_asked_of_a_device_and_told_by_it() -> None:
    asked = sad.offload_by(replace(SA, direction=Direction.IN), 3)
    assert asked == {"ifindex": 3, "flags": 2}
    assert sad.offload_by(replace(SA, direction=Direction.OUT), 3)["flags"] == 0
    message = sad.encode_sa(SA)
    message.attributes[Attribute.OFFLOAD_DEV] = asked
    told = sad.decode_sa(XFRM.decode(message.type, XFRM.encode(message)))
    assert told.offload is Offload.CRYPTO
    assert told == SA, "to be offloaded or not makes no other SA of it"
