"""The pages of the documentation: their blocks, commands, links and anchors, for the tests.

A block of `console` has commands behind a prompt (`$`, `#`, or `moon#`), and what they print; an
HTML comment `until: COMMAND` says what a script waits for where a reader would look.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = tuple(
    sorted(
        path.relative_to(ROOT).as_posix()
        for pattern in ("README.md", "docs/**/*.md", "ansible/README.md", "benchmarks/README.md")
        for path in ROOT.glob(pattern)
    )
)

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_UNTIL = re.compile(r"^<!-- until: (.*) -->$", re.MULTILINE)
_PROMPT = re.compile(r"^(?:\w*[#$]) (.*)$")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """What stands between fences, the language that it is in, and its line on the page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def name(self) -> str:
        """The file that the first line, a comment, says that it is; else nothing."""
        found = re.match(r"# (?:\w+:)?(/?[\w./-]+\.\w+)\b", self.text)
        return found[1] if found else ""

    def commands(self) -> Iterator[Command]:
        """Of a block of `console`; a line that goes on is one with the next."""
        command, output = "", []
        for line in self.text.splitlines():
            found = _PROMPT.match(line)
            if found is None:
                output.append(line)
                continue
            if command:
                yield Command(text=command, output=tuple(output))
            command, output = found[1], []
        if command:
            yield Command(text=command, output=tuple(output))


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What is typed, and what the page says that it prints."""

    text: str
    output: tuple[str, ...] = ()


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str) -> Iterator[Block]:
    """In their order."""
    text = text_of(page)
    for found in _BLOCK.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page=page, line=line, language=found[1], text=found[2])


def steps(page: str) -> Iterator[Block | str]:
    """Blocks, and between them the commands that are to be waited for."""
    text = text_of(page)
    waits = [(found.start(), found[1]) for found in _UNTIL.finditer(text)]
    placed: list[tuple[int, Block | str]] = [*waits]
    lines = text.splitlines(keepends=True)
    placed += [(sum(map(len, lines[: block.line - 1])), block) for block in blocks(page)]
    yield from (step for _, step in sorted(placed, key=lambda each: each[0]))


def prose(page: str) -> str:
    """The page less its blocks."""
    return _BLOCK.sub("", text_of(page))


def links(page: str) -> Iterator[str]:
    """Where the page's links lead, web pages left out."""
    for found in _LINK.finditer(prose(page)):
        if "://" not in found[1] and not found[1].startswith("mailto:"):
            yield found[1]


@cache
def anchors(page: str) -> frozenset[str]:
    """Those of its headings, as forges make them; of equal ones the first."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return frozenset(_anchor(heading) for heading in headings)


def _anchor(heading: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
