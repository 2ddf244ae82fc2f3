"""How `xfrmpy doctor` tells what it has found: problems and notes in full, the rest in a line."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from xfrmpy.cli.doctor.checks import diagnose
from xfrmpy.cli.doctor.findings import Finding, Verdict
from xfrmpy.cli.doctor.host import read_host
from xfrmpy.cli.documents import document
from xfrmpy.cli.terminal import Painter, printable, say, wrapped
from xfrmpy.control.client import Client
from xfrmpy.failures import ExitCode

_STYLES = {
    Verdict.OK: "green",
    Verdict.NOTE: "yellow",
    Verdict.PROBLEM: "bold red",
    Verdict.UNSEEN: "cyan",
}


def examine_host(client: Client, *, as_json: bool) -> int:
    """Read the host, and tell; 1 if there is a problem."""
    return tell_findings(diagnose(read_host(client)), as_json=as_json)


def tell_findings(findings: Sequence[Finding], *, as_json: bool) -> int:
    """Print them; returns the exit code."""
    counts = Counter(finding.verdict for finding in findings)
    if as_json:
        say(
            document(
                "Doctor",
                counts={verdict.value: counts[verdict] for verdict in Verdict},
                findings=[_value(finding) for finding in findings],
            )
        )
    else:
        paint = Painter(sys.stdout)
        for finding in findings:
            for line in finding_lines(finding, paint):
                say(line)
        say()
        say(paint(_sum(counts), "bold"))
    return ExitCode.FAILED if counts[Verdict.PROBLEM] else ExitCode.DONE


def _value(finding: Finding) -> dict[str, Any]:
    return {
        "check": finding.check,
        "verdict": finding.verdict.value,
        "code": finding.code,
        "summary": finding.summary,
        "evidence": [{"label": label, "seen": seen} for label, seen in finding.evidence],
        "fixes": list(finding.fixes),
    }


def finding_lines(finding: Finding, paint: Painter) -> Iterator[str]:
    """`problem  ports  UDP port 500 is another program's`, and below it what was seen and to do."""
    verdict = finding.verdict
    head = f"{verdict.value:<8} {finding.check:<14} "
    code = f"{finding.code}: " if finding.code else ""
    first, *rest = wrapped(printable(code + finding.summary), paint.width, first=head)
    yield paint(first[:8], _STYLES[verdict]) + paint.command(first[8:])
    yield from rest
    if verdict is Verdict.OK:
        return
    indent = " " * len(head)
    for label, seen in finding.evidence:
        yield from wrapped(
            printable(f"{label}: {seen}"), paint.width, first=indent, rest=f"{indent}  "
        )
    for fix in finding.fixes:
        lines = wrapped(printable(f"to do: {fix}"), paint.width, first=indent, rest=f"{indent}  ")
        yield from map(paint.command, lines)


def _sum(counts: Counter[Verdict]) -> str:
    """`2 problems, 1 note, 11 ok, 1 not seen`."""
    words = (
        (Verdict.PROBLEM, "problem", "problems"),
        (Verdict.NOTE, "note", "notes"),
        (Verdict.OK, "ok", "ok"),
        (Verdict.UNSEEN, "not seen", "not seen"),
    )
    return ", ".join(
        f"{counts[verdict]} {one if counts[verdict] == 1 else many}" for verdict, one, many in words
    )
