"""Shapes of selectors: each field of a map's key has the size of its element's part."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.datapath.shapes import element_of, shape_of
from xfrmpy.ipsec.selectors import Selector, TrafficSelector, selectors_between

SERVICES = ("any", "tcp", "tcp/443", "udp/7-4000", "icmp", "icmp/8", "icmp/3.1-5.2", "icmp/0.0")


def _between(service: str) -> tuple[Selector, ...]:
    ours, theirs = (TrafficSelector.parse(f"10.{n}.0.0/16[{service}]") for n in (1, 2))
    return selectors_between([ours], [theirs])


def _size(selector: Selector) -> int:
    return sum(-(-field.size // 4) * 4 for field in shape_of(selector).fields())


@pytest.mark.parametrize("service", SERVICES)
def test_what_a_policy_file_can_say_has_a_shape_and_an_element(service: str) -> None:
    for selector in _between(service):
        for each in (selector, selector.reversed()):
            assert len(element_of(each)) == _size(each)


_TYPE_AND_CODE = st.tuples(st.integers(0, 255), st.integers(0, 255))


@given(_TYPE_AND_CODE, _TYPE_AND_CODE)
def test_every_range_of_icmp_types_and_codes_has_one(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    first, last = sorted([one, other])
    for selector in _between(f"icmp/{first[0]}.{first[1]}-{last[0]}.{last[1]}"):
        assert len(element_of(selector)) == _size(selector)
