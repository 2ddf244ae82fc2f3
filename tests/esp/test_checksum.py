"""Sums against RFC 1071 word by word."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.datapath.userspace.super_packets import slow_sum
from xfrmpy.datapath.userspace.vectors import sum_of
from xfrmpy.esp.checksum import ones_complement_sum


@given(st.integers(0, 2000) | st.integers(9000, 9300), st.integers(0, 2**32))
def test_a_sum_of_any_length_is_that_of_its_words(size: int, seed: int) -> None:
    octets = Random(seed).randbytes(size)
    assert ones_complement_sum(octets) == slow_sum(octets)
    assert ones_complement_sum(memoryview(octets)) == slow_sum(octets)
    assert sum_of(octets) == slow_sum(octets)
    behind = memoryview(b"." + octets)[1:]
    assert sum_of(behind) == slow_sum(octets), "wherever it lies"


def test_of_the_two_zeros_only_zeros_give_the_first() -> None:
    for size in (0, 1, 2, 255, 1400, 1401):
        for each in (ones_complement_sum, sum_of):
            assert each(bytes(size)) == 0
            assert each(b"\xff" * (size // 2 * 2 + 2)) == 0xFFFF
