from __future__ import annotations

from struct import Struct

import pytest

from xfrmpy.registry import NotifyType
from xfrmpy.wire.cursor import Cursor, Malformed, Members, pack

PAIR = Struct(">BH")


def test_a_cursor_reads_from_front_to_back() -> None:
    cursor = Cursor(b"\x01\x00\x02abcdef", "test")
    assert cursor.unpack(PAIR) == (1, 2)
    assert cursor.take(2) == b"ab"
    assert cursor.remaining == 4
    assert cursor.rest() == b"cdef"
    assert cursor.rest() == b""
    cursor.expect_end()


@pytest.mark.parametrize("size", [4, -1])
def test_taking_what_is_not_there_is_malformed(size: int) -> None:
    with pytest.raises(Malformed):
        Cursor(b"abc", "test").take(size)


def test_unpacking_what_is_not_there_is_malformed() -> None:
    with pytest.raises(Malformed, match="test, octet 0: 3 octets expected, 2 left"):
        Cursor(b"ab", "test").unpack(PAIR)


@pytest.mark.parametrize("size", [4, -1])
def test_nesting_beyond_the_end_is_malformed(size: int) -> None:
    with pytest.raises(Malformed):
        Cursor(b"abc", "test").nested(size, "inner")


def test_a_nested_stretch_ends_by_itself() -> None:
    cursor = Cursor(b"abcdef", "test")
    with cursor.nested(4, "outer"):
        with cursor.nested(2, "inner"):
            assert cursor.rest() == b"ab"
            with pytest.raises(Malformed, match="test, outer, inner, octet 2"):
                cursor.take(1)
        assert cursor.rest() == b"cd"
    assert cursor.rest() == b"ef"


def test_octets_left_over_in_a_nested_stretch_are_malformed() -> None:
    cursor = Cursor(b"abcdef", "test")
    with pytest.raises(Malformed, match="test, inner, octet 1: 3 octets too many"):  # noqa: SIM117
        with cursor.nested(4, "inner"):
            cursor.take(1)


def test_a_value_that_cannot_be_made_of_the_octets_is_malformed() -> None:
    cursor = Cursor(b"abc", "test")
    with pytest.raises(Malformed, match="test, inner, octet 0: no such thing"):  # noqa: SIM117
        with cursor.nested(3, "inner"):
            raise ValueError("no such thing")


def test_a_number_too_large_for_its_field_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        pack(PAIR, 256, 0)


def test_members_are_those_of_the_registry_and_unknown_ones_are_not_kept() -> None:
    members = Members(NotifyType)
    assert members[16390] is NotifyType.COOKIE
    size = len(members)
    assert members[40000] == NotifyType(40000)
    assert not members[40000].is_known
    assert len(members) == size
