"""Marks: how they are written, and when two mean no packet in common."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.ipsec.marks import OUR_MARK, Mark, are_apart


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42", Mark(42)),
        ("0x2a", Mark(42)),
        ("0x20/0xF0", Mark(0x20, 0xF0)),
        ("0/1", Mark(0, 1)),
        ("4294967295", Mark(0xFFFFFFFF)),
    ],
)
def test_a_mark_is_read_and_written(text: str, expected: Mark) -> None:
    assert Mark.parse(text) == expected
    assert Mark.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text",
    ["", "x", "-1", "+1", "1_0", "4294967296", "1/", "1/0", "0x21/0xf0", "1/2/3", "0x", "\u0663"],
)
def test_what_is_no_mark_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Mark.parse(text)


@pytest.mark.parametrize("value", [OUR_MARK, 0x10000 | OUR_MARK])
def test_the_mark_of_what_is_protected_already_is_nobody_elses(value: int) -> None:
    with pytest.raises(ValueError, match="own"):
        Mark(value)


def test_protected_packets_take_marks_in_the_upper_half() -> None:
    assert Mark.parse_outer("0x10000") == Mark(0x10000, 0xFFFF0000)
    assert Mark.parse_outer("0x10000/0xf0000") == Mark(0x10000, 0xF0000)
    for text in ("1", "0x10001", "0x10000/0xfffff", "0", "0/0xf0000"):
        with pytest.raises(ValueError, match=r"upper 16 bits|not within the mask"):
            Mark.parse_outer(text)


@st.composite
def small(draw: st.DrawFn) -> Mark:
    mask = draw(st.integers(1, 7))
    return Mark(draw(st.integers(0, 7)) & mask, mask)


@given(small(), small())
def test_two_are_apart_if_there_is_no_packet_of_both(one: Mark, other: Mark) -> None:
    both = [m for m in range(8) if m & one.mask == one.value and m & other.mask == other.value]
    assert are_apart(one, other) == (not both)


def test_no_mark_means_every_packet() -> None:
    assert not are_apart(None, Mark(1))
    assert not are_apart(None, None)
