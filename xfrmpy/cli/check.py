"""`xfrmpy check`: what is wrong with policy files, each finding at its place in the source.

The one command that shows a policy's text, so the one that must not show a secret that somebody
wrote into it: what follows a `psk`, `key` or `passphrase` is masked unless it is a reference, and
so is what follows a key that is unknown, which may be a misspelt `psk`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xfrmpy.cli.documents import document
from xfrmpy.cli.terminal import Painter, note, say
from xfrmpy.failures import CATALOGUE, ExitCode
from xfrmpy.policy.load import (
    LoadedPolicy,
    PolicyError,
    config_path,
    load_files,
    load_policy,
)

_INLINE_SECRET = re.compile(
    r"""(\b(?:psk|key|passphrase)["']?\s*:\s*)"""  # the key; below, what is not just a reference
    r"""(?!["']?(?:secret|file|credential):[^\s"',}\]]*["']?\s*(?:[,}\]\#]|$))[^\s\#].*""",
    re.IGNORECASE,
)
_UNKNOWN_KEY = "XF1002"
_SECRET_UNREADABLE = "XF1008"
_SECRET_IN_POLICY = "XF1010"
_LONGEST_SOURCE = 1 << 20


def check_policy(paths: Sequence[Path], *, as_json: bool) -> int:
    """Check the files and directories given, or what the daemon would read; 0 or 65."""
    layers = config_path(os.environ)
    loaded = load_checked(paths)
    files = _count_files(paths, layers)
    if as_json:
        say(_check_document(loaded, files))
    else:
        _tell(loaded, files, Painter(sys.stdout))
        if not files:
            note(f"no policy file in {', '.join(map(str, paths or layers))}")
    return ExitCode.BAD_POLICY if loaded.errors else ExitCode.DONE


def load_checked(paths: Sequence[Path], *, public_halves: bool = False) -> LoadedPolicy:
    """The policy of the files and directories given, or what the daemon would read.

    With `public_halves`, of a private key that is not beside them the public one will do.
    """
    layers = config_path(os.environ)
    if paths:
        secrets = [*_beside(layers), *_beside(p if p.is_dir() else p.parent for p in paths)]
        loaded = load_files(paths, secrets=secrets, public_halves=public_halves)
    else:
        loaded = load_policy(layers)
    return _excuse_secrets(loaded) if os.geteuid() != 0 else loaded


def _beside(directories: Any) -> Iterator[Path]:
    return (directory.absolute().parent / "secrets" for directory in directories)


def _count_files(paths: Sequence[Path], layers: Sequence[Path]) -> int:
    """As many as were read: of the layers, a file hides those of the same name below it."""
    if not paths:
        return len({path.name for layer in layers for path in _policy_files(layer)})
    return len(
        {file for path in paths for file in (_policy_files(path) if path.is_dir() else [path])}
    )


def _policy_files(directory: Path) -> list[Path]:
    if not os.access(directory, os.R_OK):
        return []
    return [path for path in directory.glob("*.yaml") if not path.name.startswith(".")]


def _excuse_secrets(loaded: LoadedPolicy) -> LoadedPolicy:
    """What only root may read is none of the policy's faults: a warning, for who is not root."""
    denied = os.strerror(13)
    excused = tuple(
        error
        for error in loaded.errors
        if error.code == _SECRET_UNREADABLE and error.message.endswith(denied)
    )
    warnings = tuple(
        replace(error, hint="run the check as root to have it read") for error in excused
    )
    errors = tuple(error for error in loaded.errors if error not in excused)
    return replace(loaded, errors=errors, warnings=(*loaded.warnings, *warnings))


def _check_document(loaded: LoadedPolicy, files: int) -> str:
    return document(
        "Check",
        files=files,
        tunnels=[tunnel.name for tunnel in loaded.tunnels],
        errors=[_finding_value(error) for error in loaded.errors],
        warnings=[_finding_value(warning) for warning in loaded.warnings],
    )


def _finding_value(finding: PolicyError) -> dict[str, Any]:
    return {
        "code": finding.code,
        "title": _title(finding),
        "file": finding.file,
        "line": finding.line,
        "column": finding.column,
        "message": finding.message,
        "hint": finding.hint,
    }


def _title(finding: PolicyError) -> str:
    return CATALOGUE[finding.code].title if finding.code in CATALOGUE else ""


def _tell(loaded: LoadedPolicy, files: int, paint: Painter) -> None:
    for finding, style in (
        *((error, "red") for error in loaded.errors),
        *((warning, "yellow") for warning in loaded.warnings),
    ):
        for line in finding_lines(finding, style, paint):
            say(line)
        say()
    where = f"in {_counted(files, 'file')}"
    warned = f", {_counted(len(loaded.warnings), 'warning')}" if loaded.warnings else ""
    if loaded.errors:
        say(paint(f"{_counted(len(loaded.errors), 'error')}{warned} {where}", "bold"))
    else:
        ok = paint("ok", "green")
        say(f"{_counted(len(loaded.tunnels), 'tunnel')} {where}: {ok}{warned}")


def finding_lines(finding: PolicyError, style: str, paint: Painter) -> list[str]:
    """`file:line:column`, the line with a caret below the column, and the hint."""
    place = paint(f"{finding.file}:{finding.line}:{finding.column}", "bold")
    kind = "warning: " if style == "yellow" else ""
    lines = [f"{place}: {paint(kind + finding.code, style)} {finding.message}"]
    source = _source_line(finding)
    if source.strip():
        number = str(finding.line)
        # A line that is too long is shown from where the column is in its last third.
        room = paint.width - len(number) - 6
        skipped = max(0, finding.column - 1 - room * 2 // 3) if len(source) > room else 0
        caret = " " * (finding.column - 1 - skipped) + paint("^", style)
        lines.append(f"  {paint(f'{number} |', 'dim')} {source[skipped : skipped + room].rstrip()}")
        lines.append(f"  {' ' * len(number)} {paint('|', 'dim')} {caret}")
    if finding.hint:
        lines.append(f"  {finding.hint}")
    return lines


def _source_line(finding: PolicyError) -> str:
    """The line, each character that cannot be printed a space, so that columns stay; or nothing."""
    if finding.code == _SECRET_IN_POLICY:
        return ""
    try:
        with open(finding.file, encoding="utf-8", errors="replace") as file:
            lines = file.read(_LONGEST_SOURCE).splitlines()
    except OSError:
        return ""
    if not 0 < finding.line <= len(lines):
        return ""
    text = "".join(c if c.isprintable() else " " for c in lines[finding.line - 1])
    if finding.code == _UNKNOWN_KEY:
        start = finding.column - 1
        return text[:start] + re.sub(r"(:\s*)[^\s#].*", r"\1...", text[start:], count=1)
    return _INLINE_SECRET.sub(r"\1(not shown)", text)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
