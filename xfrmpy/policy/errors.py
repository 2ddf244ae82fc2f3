"""What is wrong with a policy, and where: file, line and column, both counted from 1."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Mark(NamedTuple):
    """A place in a file."""

    line: int
    column: int


START = Mark(1, 1)

MAX_FINDINGS = 100
"""Of one file: whoever has more has given us the wrong file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyError:
    """One finding; `code` is a row of `xfrmpy.failures.CATALOGUE`. Never holds a secret."""

    code: str
    file: str
    line: int
    column: int
    message: str
    hint: str = ""

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"{self.file}:{self.line}:{self.column}: {self.code}: {self.message}{hint}"


@dataclass(slots=True, kw_only=True)
class Findings:
    """The errors and warnings of one file, each kept once."""

    file: str
    errors: list[PolicyError] = field(default_factory=list)
    warnings: list[PolicyError] = field(default_factory=list)

    def error(self, code: str, mark: Mark, message: str, hint: str = "") -> None:
        self._add(self.errors, code, mark, message, hint)

    def warn(self, code: str, mark: Mark, message: str, hint: str = "") -> None:
        self._add(self.warnings, code, mark, message, hint)

    def has(self, code: str, mark: Mark) -> bool:
        """Whether there is an error of this code at this place."""
        return any((e.code, e.line, e.column) == (code, *mark) for e in self.errors)

    def _add(self, kept: list[PolicyError], code: str, mark: Mark, message: str, hint: str) -> None:
        finding = PolicyError(
            code=code,
            file=self.file,
            line=mark.line,
            column=mark.column,
            message=message,
            hint=hint,
        )
        if finding not in kept and len(kept) < MAX_FINDINGS:
            kept.append(finding)


def shown(value: object, limit: int = 60) -> str:
    """A value of a policy file as a message quotes it: on one line, printable, not too long."""
    match value:
        case str():
            text = _quoted(value)
        case bool():
            text = str(value).lower()
        case _:
            text = ascii(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _quoted(text: str) -> str:
    return f"'{text}'" if text.isprintable() and "'" not in text else ascii(text)
