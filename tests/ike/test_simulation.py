"""Thousands of simulated lives of a tunnel, each another: see `simulation.py`."""

from __future__ import annotations

import itertools

from tests.ike.simulation import run_seeds

SEEDS = range(5000)
ENOUGH = 3
"""Failures to show: one defect makes many."""


def test_whatever_happens_both_ends_agree_in_the_end() -> None:
    failed = list(itertools.islice(filter(None, run_seeds(SEEDS)), ENOUGH))
    assert not failed, "\n\n".join(failed)
