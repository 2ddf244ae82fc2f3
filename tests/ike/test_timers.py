"""When each IKE SA is attended to: the heap against a table that is looked through."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.ike.timers import Timers

KEYS = st.sampled_from([b"a", b"b", b"c", b"d"])
MOMENTS = st.integers(0, 5).map(float)


@given(st.lists(st.tuples(KEYS, st.none() | MOMENTS)), MOMENTS, st.integers(0, 5))
def test_it_is_a_table_of_moments(
    changes: list[tuple[bytes, float | None]], now: float, count: int
) -> None:
    timers, table = Timers(), dict[bytes, float]()
    for key, at in changes:
        timers.set(key, at)
        if at is None:
            table.pop(key, None)
        else:
            table[key] = at
        assert len(timers) == len(table)
        assert timers.next_at == min(table.values(), default=None)
    due = sorted((at, key) for key, at in table.items() if at <= now)[:count]
    assert timers.take_due(now, count) == [key for _, key in due]
    for _, key in due:
        del table[key]
    assert timers.next_at == min(table.values(), default=None)


def test_moments_that_were_changed_do_not_pile_up() -> None:
    timers = Timers()
    timers.set(b"other", 0.0)
    for number in range(10_000):
        timers.set(b"busy", 1.0 + number)
    assert len(timers._heap) < 100
    assert timers.take_due(20_000.0, 3) == [b"other", b"busy"]
