"""Sums against RFC 1071 word by word."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tests.datapath.userspace.super_packets import slow_sum
from xfrmpy.esp.checksum import ones_complement_sum, quarters_of


@given(st.integers(0, 2000) | st.integers(9000, 9300), st.integers(0, 2**32))
def test_a_sum_of_any_length_is_that_of_its_words(size: int, seed: int) -> None:
    octets = Random(seed).randbytes(size)
    assert ones_complement_sum(octets) == slow_sum(octets)
    assert ones_complement_sum(memoryview(octets)) == slow_sum(octets)


def test_of_the_two_zeros_only_zeros_give_the_first() -> None:
    for size in (0, 1, 2, 255, 1400, 1401):
        assert ones_complement_sum(bytes(size)) == 0
        assert ones_complement_sum(b"\xff" * (size // 2 * 2 + 2)) == 0xFFFF


def test_nothing_is_kept_of_what_is_longer_than_a_jumbo_frame() -> None:
    kept = quarters_of.cache_info().currsize
    for size in range(9217, 65536, 100):
        ones_complement_sum(bytes(size))
    assert quarters_of.cache_info().currsize == kept
