"""The same thing is put right at once a few times, and then only now and then."""

from __future__ import annotations

from xfrmpy.daemon.restraint import FREELY, RESPITE_SECONDS, WITHIN_SECONDS, Restraint


def tired() -> Restraint:
    restraint = Restraint()
    for _ in range(FREELY):
        assert restraint.wait_seconds("rule", 100.0) == 0
        restraint.note("rule", 100.0)
    return restraint


def test_what_comes_back_too_often_has_to_wait_and_nothing_else() -> None:
    restraint = tired()
    assert restraint.wait_seconds("rule", 100.0) == RESPITE_SECONDS
    assert restraint.wait_seconds("rule", 100.0 + RESPITE_SECONDS - 1) == 1
    assert restraint.wait_seconds("route", 100.0) == 0


def test_it_is_put_right_all_the_same_at_the_slower_pace() -> None:
    restraint = tired()
    now = 100.0 + RESPITE_SECONDS
    assert restraint.wait_seconds("rule", now) == 0
    restraint.note("rule", now)
    assert restraint.wait_seconds("rule", now) == RESPITE_SECONDS


def test_after_a_calm_minute_it_is_put_right_at_once_again() -> None:
    restraint = tired()
    now = 100.0 + WITHIN_SECONDS
    assert restraint.wait_seconds("rule", now) == 0
    restraint.note("rule", now)
    assert restraint.wait_seconds("rule", now) == 0
