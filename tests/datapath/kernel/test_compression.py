"""An SA that compresses as the kernel has it: two states, and two templates in its policies."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.datapath.kernel.test_sad_and_spd import SA, sad_entries
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.kernel import events, sad, spd, values
from xfrmpy.datapath.kernel.compression import decode_states, encode_states
from xfrmpy.datapath.kernel.messages import XFRM, Attribute, MessageType
from xfrmpy.datapath.netlink.messages import Message
from xfrmpy.ipsec.sad import Direction, Lifetime, Mode, SadEntry
from xfrmpy.ipsec.selectors import Selector
from xfrmpy.ipsec.spd import PolicyDirection, SpdEntry, Template

CPI = 0x1234
COMPRESSING = replace(SA, cpi=CPI)


def as_dumped(message: Message) -> Message:
    return XFRM.decode(message.type, XFRM.encode(message))


@given(entry=sad_entries(), cpi=st.none() | st.integers(256, 61439))
def test_an_sa_comes_back_from_its_states(entry: SadEntry, cpi: int | None) -> None:
    if entry.mode not in (Mode.BEET, Mode.IPTFS):
        entry = replace(entry, cpi=cpi, tfc=0)
    *beside, protecting = map(as_dumped, encode_states(entry))
    assert decode_states(protecting, *beside) == entry
    assert len(beside) == (entry.cpi is not None)
    assert all(map(sad.is_our_sa, (*beside, protecting)))
    assert [sad.is_compression(state) for state in beside] == [True] * len(beside)
    assert not sad.is_compression(protecting)


@pytest.mark.parametrize("mode", [Mode.TUNNEL, Mode.TRANSPORT])
def test_the_mode_is_that_of_what_compresses(mode: Mode) -> None:
    beside, protecting = encode_states(replace(COMPRESSING, mode=mode))
    assert (beside.body["mode"], protecting.body["mode"]) == (values.MODES[mode], 0)
    either_family = 32 if mode is Mode.TUNNEL else 0
    assert beside.body["flags"] & 32 == protecting.body["flags"] & 32 == either_family


def test_what_compresses_ends_with_the_sa_and_not_by_itself() -> None:
    lifetime = Lifetime(soft_seconds=1, hard_seconds=2, hard_bytes=3)
    beside, protecting = encode_states(replace(COMPRESSING, lifetime=lifetime))
    assert sad.decode_lifetime(beside.body) == Lifetime()
    assert sad.decode_lifetime(protecting.body) == lifetime


def test_both_states_tell_what_finds_an_sa() -> None:
    """The interface, and that its packets keep off our own routes."""
    for state in encode_states(replace(COMPRESSING, direction=Direction.OUT, if_id=9)):
        assert state.attributes[Attribute.IF_ID] == {"value": 9}
        assert sad.is_outbound(state)
        assert state.body["reqid"] == SA.reqid


def test_the_kernel_does_not_pad_what_it_compresses() -> None:
    with pytest.raises(DatapathError, match="does not pad"):
        encode_states(replace(COMPRESSING, tfc=1000))


@pytest.mark.parametrize("direction", PolicyDirection)
def test_a_packet_that_was_not_compressed_is_taken_and_none_is_sent_unasked(
    direction: PolicyDirection,
) -> None:
    """On the way out what compresses comes first; what comes in may lack it."""
    compressing, protecting = _policy(direction).attributes[Attribute.TMPL]
    assert (compressing["id_proto"], protecting["id_proto"]) == (108, 50)
    assert (compressing["mode"], protecting["mode"]) == (1, 0)
    is_optional = direction is not PolicyDirection.OUT
    assert (compressing["optional"], protecting["optional"]) == (is_optional, 0)


def test_an_acquire_of_compression_is_given_an_index() -> None:
    """An SPI would be too large: the kernel has 16 bits for it."""
    larval = Message(type=MessageType.NEWSA, body={"id_proto": 108, "reqid": SA.reqid})
    asked = [
        events.encode_larval_spi(larval, SA.spi),
        events.encode_acquired_spi(_entry(PolicyDirection.OUT), SA.spi),
    ]
    for message in asked:
        assert message.body["info_id_proto"] == 108
        assert (message.body["min"], message.body["max"]) == (256, 61439)


def _policy(direction: PolicyDirection) -> Message:
    return as_dumped(spd.encode_policy(_entry(direction)))


def _entry(direction: PolicyDirection) -> SpdEntry:
    return SpdEntry(
        direction=direction,
        selector=Selector(source=ip_network("10.1.0.0/16"), destination=ip_network("10.2.0.0/16")),
        priority=1,
        template=Template(
            source=SA.source, destination=SA.destination, reqid=SA.reqid, compresses=True
        ),
    )
