"""Units, widths and wrapping."""

from __future__ import annotations

import io
import json

import pytest

from xfrmpy.cli.documents import API, document
from xfrmpy.cli.failure import failure_lines
from xfrmpy.cli.terminal import Painter, duration, octets, printable, table, wrapped
from xfrmpy.failures import CATALOGUE, Failure


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (9.94, "9.9s"),
        (10, "10s"),
        (59.9, "59s"),
        (60, "1m 00s"),
        (3599, "59m 59s"),
        (3600, "1h 00m"),
        (86_399, "23h 59m"),
        (86_400, "1d 0h"),
        (1_000_000, "11d 13h"),
    ],
)
def test_a_duration_has_its_two_leading_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10_234, "9.99 KiB"),
        (10_235, "10.0 KiB"),
        (102_348, "99.9 KiB"),
        (102_400, "100 KiB"),
        (1_022_976, "999 KiB"),
        (1_023_999, "0.98 MiB"),
        (1 << 30, "1.00 GiB"),
        (1 << 70, "1048576 PiB"),
    ],
)
def test_octets_are_told_with_three_digits(count: int, text: str) -> None:
    assert octets(count) == text


def test_what_cannot_be_printed_is_written_out() -> None:
    assert printable("gw\x1b[1m\n\u202ené") == r"gw\x1b[1m\n\u202ené"


def test_wrapping_keeps_words_and_commands_whole() -> None:
    text = "first `xfrmpy status office` then averylongwordthatdoesnotfit end"
    assert wrapped(text, 20, first="- ") == [
        "- first",
        "  `xfrmpy status office`",
        "  then",
        "  averylongwordthatdoesnotfit",
        "  end",
    ]


def test_a_table_too_wide_is_cut_where_it_is_widest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    paint = Painter(io.StringIO())
    rows = [[("office", ""), ("x" * 60, ""), ("7", "")], [("b", ""), ("y", ""), ("1234", "")]]
    lines = table(("NAME", "PEER", "N"), rows, paint, right=frozenset({2}))
    assert lines == [
        "NAME    PEER                           N",
        "office  " + "x" * 25 + "…     7",
        "b       y" + " " * 27 + "1234",
    ]


def test_a_document_names_its_version_and_kind_first() -> None:
    value = json.loads(document("Thing", a=1))
    assert list(value.items()) == [("api", API), ("kind", "Thing"), ("a", 1)]


@pytest.mark.parametrize("code", CATALOGUE)
@pytest.mark.parametrize("columns", [80, 120])
def test_every_failure_of_the_catalogue_fits_the_terminal(
    code: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    failure = Failure(code=code, summary="word " * 40, evidence=(("we offered", "suite " * 30),))
    lines = failure_lines(failure, Painter(io.StringIO()), tunnel="office")
    assert max(map(len, lines)) <= columns
    assert all(cause.split()[-1] in "\n".join(lines) for cause in CATALOGUE[code].causes)
    assert "TUNNEL" not in "\n".join(lines)
