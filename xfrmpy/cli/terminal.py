"""How text meets a terminal: colour, widths, units, and nothing that a peer could smuggle in.

No rich here: this is on the way of every hot command, and rich alone costs half of their budget.
Whatever comes from outside (a peer's identity, a file's line) passes `printable` before it is
shown, so that it cannot send control sequences to the operator's terminal.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import TextIO

_CODES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}

Cell = tuple[str, str]
"""A text and the name of its style, empty for none."""


def wants_colour(stream: TextIO) -> bool:
    """On a terminal only; NO_COLOR forbids it (no-color.org), FORCE_COLOR asks for it anyway."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def width(stream: TextIO) -> int:
    """Columns to wrap at: the terminal's, not above 120, for long lines are hard to read."""
    if not stream.isatty() and "COLUMNS" not in os.environ:
        return 100
    return max(40, min(shutil.get_terminal_size().columns, 120))


class Painter:
    """Paints for one stream."""

    def __init__(self, stream: TextIO) -> None:
        self._colour = wants_colour(stream)
        self.width = width(stream)

    def __call__(self, text: str, style: str = "") -> str:
        """`style` is one or more names, such as `bold red`."""
        if not self._colour or not style:
            return text
        codes = ";".join(_CODES[name] for name in style.split())
        return f"\x1b[{codes}m{text}\x1b[0m"

    def command(self, sentence: str) -> str:
        """A sentence with `commands` in it: in colour instead of in quotes, where there is any."""
        if not self._colour:
            return sentence
        return re.sub(r"`([^`]+)`", "\x1b[36m\\1\x1b[0m", sentence)


def printable(text: str) -> str:
    """The text with every control and unassigned character written as an escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def say(text: str = "") -> None:
    """A line to standard output: what the command was asked for."""
    print(text, flush=True)


def note(text: str = "") -> None:
    """A line to standard error: progress, warnings, failures."""
    print(text, file=sys.stderr, flush=True)


def wrapped(text: str, columns: int, *, first: str = "", rest: str | None = None) -> list[str]:
    """`text` in lines of at most `columns`, after `first` and then `rest` (as many spaces).

    Unlike `textwrap`, it leaves commands in backquotes whole and never splits a word.
    """
    indent = " " * len(first) if rest is None else rest
    words = re.findall(r"`[^`]+`\S*|\S+", text)
    lines, line = [], first
    for word in words:
        empty = line in (first, indent)
        if not empty and len(line) + 1 + len(word) > columns:
            lines.append(line)
            line, empty = indent, True
        line += word if empty else f" {word}"
    return [*lines, line]


def table(
    header: Sequence[str], rows: Sequence[Sequence[Cell]], paint: Painter, right: frozenset[int]
) -> list[str]:
    """Lines of aligned columns, those in `right` aligned to the right.

    Too wide for the stream, the widest column is cut, and cut again, until it fits.
    """
    widths = _widths(header, rows)
    while _total(widths) > paint.width and max(widths) > 12:
        widths[widths.index(max(widths))] -= 1
    cells = [[(name, "dim") for name in header], *rows]
    return [_row(row, widths, paint, right) for row in cells]


def natural_width(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> int:
    """The columns of a table of which nothing is cut."""
    return _total(_widths(header, rows))


def _widths(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[int]:
    return [max(len(name), *(len(r[i][0]) for r in rows)) for i, name in enumerate(header)]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _row(row: Sequence[Cell], widths: list[int], paint: Painter, right: frozenset[int]) -> str:
    parts = []
    for column, ((text, style), columns) in enumerate(zip(row, widths, strict=True)):
        cut = text if len(text) <= columns else text[: columns - 1] + "…"
        padding = " " * (columns - len(cut))
        painted = paint(cut, style)
        parts.append(padding + painted if column in right else painted + padding)
    return "  ".join(parts).rstrip()


def duration(seconds: float) -> str:
    """A span in its two leading units: `3.2s`, `41s`, `5m 02s`, `3h 12m`, `12d 4h`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def octets(count: int) -> str:
    """A count of octets in binary units, three digits: `812 B`, `1.20 KiB`, `34.0 MiB`."""
    if count < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        size /= 1024
        if size < 999.5 or unit == "PiB":
            break
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{size:.{digits}f} {unit}"
