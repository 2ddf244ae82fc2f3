"""The options of the daemon, as far as they need no daemon."""

from __future__ import annotations

import pytest

from xfrmpy.daemon.__main__ import _limits, option_parser
from xfrmpy.ike.admission import AdmissionLimits


def limits(*arguments: str) -> AdmissionLimits:
    return AdmissionLimits(**_limits(option_parser().parse_args([*arguments])))


def test_without_options_the_limits_are_the_defaults() -> None:
    assert limits() == AdmissionLimits()


def test_every_option_sets_its_limit() -> None:
    given = limits(
        *("--cookies-at", "0"),
        *("--puzzles-at", "1"),
        *("--half-open-limit", "2"),
        *("--half-open-per-address", "3"),
    )
    assert given == AdmissionLimits(
        cookies_at=0, puzzles_at=1, strangers=2, strangers_per_address=3
    )


@pytest.mark.parametrize("count", ["-1", "many", "1.5"])
def test_what_is_no_count_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        limits("--cookies-at", count)
    assert "--cookies-at" in capsys.readouterr().err
