"""The outer header in tunnel mode: what it takes and what it brings, by the tables of the RFCs."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.esp.outer import Congested, dont_fragment, inner_after, outer_fields
from xfrmpy.esp.transport import Fields, fields_of, with_header
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.sad import DontFragment, OuterHeader

PAIRS: dict[int, tuple[IpAddress, IpAddress]] = {
    4: (IPv4Address("10.1.0.1"), IPv4Address("10.2.0.2")),
    6: (IPv6Address("fd00:1::1"), IPv6Address("fd00:2::2")),
}
VERSIONS = st.sampled_from([4, 6])
OCTET = st.integers(0, 255)
NOT_ECT, ECT_1, ECT_0, CE = range(4)


def packet(version: int, traffic_class: int) -> bytes:
    return with_header(*PAIRS[version], 17, bytes(30), Fields(traffic_class, 63))


@given(VERSIONS, OCTET, st.booleans(), st.booleans())
def test_outwards_it_is_copied_as_far_as_wanted(
    version: int, inner: int, dscp: bool, ecn: bool
) -> None:
    """RFC 6040 figure 3, normal mode: also CE is copied."""
    found = outer_fields(packet(version, inner), OuterHeader(copies_dscp=dscp, copies_ecn=ecn))
    assert found.traffic_class == (inner & 0xFC if dscp else 0) | (inner & 3 if ecn else 0)


FIGURE_4: dict[int, dict[int, int | None]] = {
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT_0: NOT_ECT, ECT_1: NOT_ECT, CE: None},
    ECT_0: {NOT_ECT: ECT_0, ECT_0: ECT_0, ECT_1: ECT_1, CE: CE},
    ECT_1: {NOT_ECT: ECT_1, ECT_0: ECT_1, ECT_1: ECT_1, CE: CE},
    CE: {NOT_ECT: CE, ECT_0: CE, ECT_1: CE, CE: CE},
}
"""RFC 6040 section 4.2, by inner and outer field; None: the packet is dropped."""


@given(VERSIONS, OCTET, OCTET, st.booleans(), st.booleans())
def test_inwards_the_two_are_combined_and_nothing_else_changes(
    version: int, inner: int, outer: int, restores: bool, ecn: bool
) -> None:
    header = OuterHeader(restores_dscp=restores, copies_ecn=ecn)
    before = packet(version, inner)
    combined = FIGURE_4[inner & 3][outer & 3] if ecn else inner & 3
    if combined is None:
        with pytest.raises(Congested):
            inner_after(before, Fields(outer), header)
        return
    dscp = (outer if restores else inner) & 0xFC
    assert inner_after(before, Fields(outer), header) == packet(version, dscp | combined)


@pytest.mark.parametrize(("how", "given"), [(how, has) for how in DontFragment for has in (0, 1)])
def test_df_is_copied_set_or_cleared(how: DontFragment, given: int) -> None:
    plain = packet(4, 0)
    inner = plain[:6] + bytes([given << 6]) + plain[7:]
    expected = {DontFragment.COPY: bool(given), DontFragment.SET: True, DontFragment.CLEAR: False}
    assert dont_fragment(inner, OuterHeader(dont_fragment=how)) is expected[how]


def test_ipv6_is_never_cut_on_its_way_unless_wanted() -> None:
    inner = packet(6, 0) + bytes(1280)
    assert dont_fragment(inner, OuterHeader())
    assert not dont_fragment(inner[:1280], OuterHeader()), "every link must take it"
    assert not dont_fragment(inner, OuterHeader(dont_fragment=DontFragment.CLEAR))


@given(st.integers(0, 3))
def test_only_the_traffic_class_is_another(ecn: int) -> None:
    after = inner_after(packet(6, ecn), Fields(0), OuterHeader())
    assert fields_of(after) == Fields(ecn, 63)
