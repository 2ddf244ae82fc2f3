"""Deletions made of octets alone are those that decoded entries would have."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.datapath.kernel.test_sad_and_spd import SA, sad_entries, spd_entries
from xfrmpy.datapath.kernel import sad, spd
from xfrmpy.datapath.kernel.compression import encode_states
from xfrmpy.datapath.kernel.messages import XFRM, MessageType
from xfrmpy.datapath.kernel.removal import deletion_of_policy, deletion_of_state
from xfrmpy.datapath.netlink.layout import UnreadableMessage
from xfrmpy.datapath.netlink.messages import Message
from xfrmpy.ipsec.sad import Mode, SadEntry
from xfrmpy.ipsec.spd import SpdEntry


@given(entry=sad_entries(), cpi=st.none() | st.integers(256, 61439))
def test_an_sa_is_deleted_by_its_name(entry: SadEntry, cpi: int | None) -> None:
    if entry.mode not in (Mode.BEET, Mode.IPTFS):
        entry = replace(entry, cpi=cpi, tfc=0)
    for state in encode_states(entry):
        octets = XFRM.encode(state)
        shown = XFRM.decode(MessageType.NEWSA, octets)
        deletion = XFRM.encode(sad.encode_state_id(shown, MessageType.DELSA))
        assert deletion_of_state(octets) == deletion


@given(entry=spd_entries(), index=st.integers(0, 2**32 - 1))
def test_a_policy_is_deleted_by_its_index(entry: SpdEntry, index: int) -> None:
    octets = XFRM.encode(spd.encode_policy(entry, index))
    shown = XFRM.decode(MessageType.NEWPOLICY, octets)
    deletion = XFRM.encode(spd.encode_policy_index(shown))
    is_ours = spd.is_our_policy(shown)
    assert deletion_of_policy(octets) == (deletion if is_ours else None)


def test_what_is_anothers_is_left_as_is_what_has_no_spi_yet() -> None:
    for other in (replace(SA, reqid=1), replace(SA, reqid=2**32 - 1)):
        assert deletion_of_state(XFRM.encode(sad.encode_sa(other))) is None
    larval = Message(type=MessageType.NEWSA, body={"reqid": SA.reqid})
    assert deletion_of_state(XFRM.encode(larval)) is None


def test_what_is_cut_is_unreadable() -> None:
    octets = XFRM.encode(sad.encode_sa(SA))
    for size in (0, 223, 226):
        with pytest.raises(UnreadableMessage):
            deletion_of_state(octets[:size])
