"""The replay window against a slow obvious twin, and the corners of RFC 4303 appendix A."""

from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.esp.replay import Replayed, ReplayWindow

LOW = 1 << 32
SIZES = [32, 64, 256, 4096]


class Twin:
    """Remembers every sequence number that it ever accepted."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.accepted: set[int] = set()

    @property
    def highest(self) -> int:
        return max(self.accepted, default=0)

    def infer(self, low: int) -> int:
        """The least number with these low bits that is not left of the window."""
        bottom = max(0, self.highest - self.size + 1)
        number = bottom // LOW * LOW + low
        return number if number >= bottom else number + LOW

    def accept(self, sequence: int) -> bool:
        fresh = sequence > self.highest - self.size and sequence not in self.accepted
        if sequence == 0 or not fresh:
            return False
        self.accepted.add(sequence)
        return True


def accept(window: ReplayWindow, sequence: int) -> bool:
    try:
        window.check(sequence)
    except Replayed:
        return False
    window.advance(sequence)
    return True


steps = st.one_of(
    st.integers(-70, 70),
    st.integers(-5000, 5000),
    st.sampled_from([-LOW, -LOW + 1, LOW - 5000, LOW - 1]),
)


@given(
    size=st.sampled_from(SIZES),
    start=st.sampled_from([0, 1, 40, LOW - 50, LOW - 1, LOW, 3 * LOW - 4097, 3 * LOW + 4095]),
    moves=st.lists(steps, max_size=60),
)
def test_it_takes_what_its_twin_takes_with_esn(size: int, start: int, moves: list[int]) -> None:
    window, twin = ReplayWindow(size, esn=True), Twin(size)
    if start:
        window.advance(start)
        twin.accept(start)
    for move in moves:
        low = max(0, twin.highest + move) % LOW
        assert window.infer(low) == twin.infer(low)
        sequence = window.infer(low)
        assert accept(window, sequence) == twin.accept(sequence)
        assert window.highest == twin.highest


@given(
    size=st.sampled_from(SIZES),
    moves=st.lists(st.integers(-5000, 5000), max_size=60),
)
def test_it_takes_what_its_twin_takes_without_esn(size: int, moves: list[int]) -> None:
    window, twin = ReplayWindow(size, esn=False), Twin(size)
    for move in moves:
        sequence = max(0, twin.highest + move)
        assert window.infer(sequence) == sequence
        assert accept(window, sequence) == twin.accept(sequence)


def test_sequence_number_zero_is_never_accepted() -> None:
    for esn in (False, True):
        assert not accept(ReplayWindow(64, esn=esn), 0)


def test_checking_alone_does_not_move_the_window() -> None:
    window = ReplayWindow(64, esn=True)
    window.check(1000)
    window.check(1)
    assert window.highest == 0


def test_the_window_is_exactly_as_wide_as_asked() -> None:
    for size in SIZES:
        window = ReplayWindow(size, esn=False)
        window.advance(10_000)
        window.check(10_000 - size + 1)
        with pytest.raises(Replayed):
            window.check(10_000 - size)


def test_only_a_newer_packet_is_the_newest() -> None:
    window = ReplayWindow(64, esn=True)
    assert [window.advance(n) for n in (5, 4, 6, 1, 7)] == [True, False, True, False, True]


@pytest.mark.parametrize(
    ("highest", "low", "expected"),
    [
        # Case A: the window lies within one subspace.
        (5 * LOW + 1000, 1000 - 63, 5 * LOW + 1000 - 63),
        (5 * LOW + 1000, 1000 - 64, 6 * LOW + 1000 - 64),
        (5 * LOW + 1000, 0xFFFFFFFF, 5 * LOW + 0xFFFFFFFF),
        # Case B: it reaches back into the subspace before.
        (5 * LOW + 10, 10, 5 * LOW + 10),
        (5 * LOW + 10, (10 - 63) % LOW, 4 * LOW + (10 - 63) % LOW),
        (5 * LOW + 10, (10 - 64) % LOW, 5 * LOW + (10 - 64) % LOW),
    ],
)
def test_the_high_half_is_that_of_rfc_4303_a2_2(highest: int, low: int, expected: int) -> None:
    window = ReplayWindow(64, esn=True)
    window.advance(highest)
    assert window.infer(low) == expected


# Packets that came together.

gaps = st.lists(st.one_of(st.just(1), st.integers(1, 5000), st.integers(-70, 70)), max_size=50)


@given(
    size=st.sampled_from(SIZES),
    esn=st.booleans(),
    start=st.sampled_from([0, 1, 40, LOW - 50, LOW - 1, LOW + 9, 3 * LOW - 4097]),
    bursts=st.lists(gaps, max_size=5),
    data=st.data(),
)
def test_a_run_moves_the_window_as_its_packets_would_one_by_one(
    size: int, esn: bool, start: int, bursts: list[list[int]], data: st.DataObject
) -> None:
    start = start if esn else min(start, LOW // 2)
    window, twin = ReplayWindow(size, esn=esn), ReplayWindow(size, esn=esn)
    for each in (window, twin):
        each.advance(start)
    for burst in bursts:
        lows = [
            max(0, number) % LOW
            for number in accumulate(burst[1:], initial=twin.highest + sum(burst[:1]))
        ]
        sequences = window.infer_run(lows)
        for number, low in enumerate(lows):
            sequence = twin.infer(low)
            if sequences is None:
                accept(twin, sequence)
                accept(window, window.infer(low))
                continue
            assert sequence == sequences[number]
            twin.check(sequence)
            if data.draw(st.booleans(), label="authentic"):
                twin.advance(sequence)
            else:
                sequences[number] = -1
        authentic = [sequence for sequence in sequences or () if sequence != -1]
        if authentic:
            window.advance_run(authentic)
        assert (window.highest, window.seen) == (twin.highest, twin.seen)


def test_packets_in_the_order_in_which_they_were_sent_are_a_run() -> None:
    window = ReplayWindow(64, esn=True)
    window.advance(3 * LOW + 5)
    assert window.infer_run([6, 7, 10]) == [3 * LOW + 6, 3 * LOW + 7, 3 * LOW + 10]
    assert window.infer_run([LOW - 100]) == [4 * LOW - 100]


def test_a_run_may_leave_out_all_but_the_ends() -> None:
    """What comes from strangers is not counted up to."""
    assert ReplayWindow(64, esn=False).infer_run([1, LOW - 1]) == [1, LOW - 1]


@pytest.mark.parametrize("lows", [[5], [6, 6], [7, 6], [4, 6], [LOW - 1, 6], [6, LOW - 1]])
def test_packets_in_another_order_or_over_the_end_of_the_subspace_are_none(lows: list[int]) -> None:
    window = ReplayWindow(64, esn=True)
    window.advance(3 * LOW + 5)
    assert window.infer_run(lows) is None


def test_a_run_that_would_end_beyond_the_last_number_is_none() -> None:
    window = ReplayWindow(64, esn=True)
    window.advance((1 << 64) - 1)
    assert window.infer_run([0, 1]) is None
