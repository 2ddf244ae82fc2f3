"""How a failure is told: what happened, what was seen, why it may be, and what to do next."""

from __future__ import annotations

import sys

from xfrmpy.cli.documents import document, failure_value
from xfrmpy.cli.terminal import Painter, note, printable, say, wrapped
from xfrmpy.failures import Failure


def tell_failure(failure: Failure, *, tunnel: str = "", as_json: bool = False) -> int:
    """Print it, to standard error or as a document to standard output; returns its exit code."""
    if as_json:
        say(document("Failure", failure=failure_value(failure)))
    else:
        for line in failure_lines(failure, Painter(sys.stderr), tunnel=tunnel):
            note(line)
    return failure.kind.exit_code


def failure_lines(failure: Failure, paint: Painter, *, tunnel: str = "") -> list[str]:
    """The failure for a human. `tunnel` is put where the catalogue says TUNNEL."""
    kind = failure.kind
    lines = [paint(failure.code, "bold red") + "  " + paint(kind.title, "bold")]
    named = not tunnel or tunnel in failure.summary
    about = failure.summary if named else f"{tunnel}: {failure.summary}"
    lines += wrapped(printable(about), paint.width, first="  ", rest="  ")
    lines += _evidence(failure, paint)
    if kind.causes:
        lines += ["", paint("  likely because", "dim")]
        for number, cause in enumerate(kind.causes, 1):
            first = f"  {number}. " if len(kind.causes) > 1 else "  "
            lines += [paint.command(x) for x in wrapped(cause, paint.width, first=first)]
    if kind.fixes:
        lines += ["", paint("  what to do", "dim")]
        for fix in kind.fixes:
            text = fix.replace("TUNNEL", tunnel or "TUNNEL")
            lines += [paint.command(x) for x in wrapped(text, paint.width, first="  ")]
    return lines


def _evidence(failure: Failure, paint: Painter) -> list[str]:
    """`we offered    aes256gcm16-...`, the labels aligned."""
    if not failure.evidence:
        return []
    columns = max(len(label) for label, _ in failure.evidence)
    lines = [""]
    for label, seen in failure.evidence:
        first = "  " + printable(label).ljust(columns) + "  "
        told = wrapped(printable(seen), paint.width, first=first)
        lines += [paint(told[0][: len(first)], "dim") + told[0][len(first) :], *told[1:]]
    return lines
