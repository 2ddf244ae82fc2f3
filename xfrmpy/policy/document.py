"""Strict YAML: the text of a policy file as a tree of values that know where they stand.

A subset of YAML 1.2 with its core types (YAML 1.2.2 section 10.3): `yes`, `off`, `12:30` and
`0777` are text, dates are text. What makes YAML surprising or dangerous is refused: duplicate keys,
anchors and aliases, tags, more than one document, deep nesting. PyYAML's parser does the syntax;
its constructors are never reached. What a key means is not decided here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from xfrmpy.policy.errors import START, Findings, Mark, shown

Scalar: TypeAlias = str | int | float | bool | None

MAX_DEPTH = 16
"""Maps and lists within each other; the language itself needs 6."""


@dataclass(frozen=True, slots=True)
class Node:
    """A value, where it begins, and where its key does (the value's own place if it has none)."""

    value: Scalar | tuple[Node, ...] | dict[str, Node]
    mark: Mark
    key_mark: Mark

    def plain(self) -> Any:
        """The value as the Python types of JSON."""
        match self.value:
            case tuple():
                return [item.plain() for item in self.value]
            case dict():
                return {key: item.plain() for key, item in self.value.items()}
            case _:
                return self.value

    def find(self, path: tuple[str | int, ...]) -> tuple[Node, int]:
        """The deepest node that there is along `path`, and how many parts of it led there.

        What stands alone in the place of a list is its first item.
        """
        node: Node = self
        for depth, part in enumerate(path):
            match node.value, part:
                case dict() as items, str() if part in items:
                    node = items[part]
                case tuple() as values, int() if part < len(values):
                    node = values[part]
                case dict() | str(), 0:
                    pass
                case _:
                    return node, depth
        return node, len(path)


def decode_text(data: bytes, findings: Findings) -> str | None:
    """The text of a file, or None and an error: UTF-8 without control characters."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        findings.error("XF1001", _mark_after(before), "the text is not UTF-8 here")
        return None
    text = text.removeprefix("\ufeff")
    found = _UNPRINTABLE.search(text)
    if found is not None:
        mark = _mark_after(text[: found.start()])
        findings.error("XF1001", mark, f"a control character ({ascii(found[0])[1:-1]})")
        return None
    return text


def compose_document(text: str, findings: Findings) -> Node | None:
    """The tree of a text from `decode_text`; None if it is empty, or cannot be read (an error).

    libyaml reads it, where PyYAML has it, in a fraction of the time. What is not quite right is
    read again by PyYAML's own parser, which says better where and why; and what the two might read
    in two ways, a tab for one, only that reads.
    """
    quick = Findings(file=findings.file)
    with contextlib.suppress(_UnreadableError, yaml.YAMLError, ValueError, OverflowError):
        if _ORDINARY.fullmatch(text):
            node = _Composer(text, quick, _QUICK).compose()
            if not quick.errors:
                return node
    composer = _Composer(text, findings, yaml.SafeLoader)
    try:
        return composer.compose()
    except _UnreadableError as error:
        findings.error("XF1001", error.mark, str(error))
    except yaml.MarkedYAMLError as error:
        mark, message = _problem(error, composer.mark, len(text))
        findings.error("XF1001", mark, message)
    except (yaml.YAMLError, ValueError, OverflowError):  # such as the escape "\UFFFFFFFF"
        findings.error("XF1001", composer.mark, "what follows here is not YAML")
    return None


_QUICK = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_ORDINARY = re.compile(r"[ \n#\"',./0-9:@A-Z\[\]_a-z-]*")


class _UnreadableError(Exception):
    def __init__(self, mark: Mark, message: str) -> None:
        super().__init__(message)
        self.mark = mark


class _Composer:
    """Events of the YAML parser to nodes; `mark` is how far it got."""

    def __init__(self, text: str, findings: Findings, loader: Any) -> None:
        self.mark = START
        self._findings = findings
        self._events: Iterator[Any] = yaml.parse(text, Loader=loader)

    def compose(self) -> Node | None:
        self._next()  # the start of the stream
        if isinstance(self._next(), yaml.StreamEndEvent):
            return None
        node = self._node(self._next(), None, 1)
        self._next()  # the end of the document
        if not isinstance(self._next(), yaml.StreamEndEvent):
            raise _UnreadableError(self.mark, "a second document; a file holds one")
        return node

    def _next(self) -> Any:
        event = next(self._events)
        self.mark = _mark(event.start_mark)
        return event

    def _node(self, event: Any, key_mark: Mark | None, depth: int) -> Node:
        mark = _mark(event.start_mark)
        key_mark = key_mark or mark
        if depth > MAX_DEPTH:
            raise _UnreadableError(mark, f"more than {MAX_DEPTH} levels of nesting")
        self._refuse_extras(event)
        match event:
            case yaml.MappingStartEvent():
                return Node(self._mapping(depth + 1), mark, key_mark)
            case yaml.SequenceStartEvent():
                return Node(self._sequence(depth + 1), mark, key_mark)
            case yaml.ScalarEvent():
                return Node(self._scalar(event), mark, key_mark)
            case _:  # an alias, refused above
                return Node(None, mark, key_mark)

    def _refuse_extras(self, event: Any) -> None:
        mark = _mark(event.start_mark)
        if event.anchor is not None:  # an alias has one too
            self._findings.error("XF1001", mark, "anchors and aliases (`&`, `*`) are not read")
        elif getattr(event, "tag", None) is not None:
            self._findings.error("XF1001", mark, "tags (`!`) are not read")

    def _sequence(self, depth: int) -> tuple[Node, ...]:
        items: list[Node] = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            items.append(self._node(event, None, depth))
        return tuple(items)

    def _mapping(self, depth: int) -> dict[str, Node]:
        items: dict[str, Node] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._node(event, None, depth)
            value = self._node(self._next(), key.mark, depth)
            if isinstance(event, yaml.CollectionStartEvent):
                self._findings.error("XF1001", key.mark, "a key must be text")
            elif isinstance(event, yaml.AliasEvent):
                continue  # refused already
            elif event.value in items:
                first = items[event.value].key_mark.line
                message = f"{shown(event.value)} is given twice, first in line {first}"
                self._findings.error("XF1003", key.mark, message)
            else:
                items[event.value] = value
        return items

    def _scalar(self, event: Any) -> Scalar:
        text: str = event.value
        if _UNPRINTABLE.search(text):  # through an escape such as "\0"
            mark = _mark(event.start_mark)
            self._findings.error("XF1001", mark, "a control character in a value")
            return None
        return _core_value(text) if event.implicit[0] else text


def _core_value(text: str) -> Scalar:
    """A plain scalar by the core schema; longer numbers than any key takes stay text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text, 0)
    if len(text) < 30 and _FLOAT.fullmatch(text):
        return float(text)
    return text


def _problem(error: yaml.MarkedYAMLError, reached: Mark, end: int) -> tuple[Mark, str]:
    """Where and what; of something that is never closed, where it begins and not the file's end."""
    place, problem = error.problem_mark, error.problem or "this is not YAML"
    mark = reached if place is None else _mark(place)
    if "tag handle" in problem:  # it would be quoted, and may be half a secret
        return mark, "tags (`!`) are not read"
    if error.context is None or error.context_mark is None:
        return mark, problem
    begin = _mark(error.context_mark)
    if place is not None and place.index >= end:
        return begin, f"{problem}, {error.context}"
    return mark, f"{problem}, {error.context} that begins at {begin.line}:{begin.column}"


def _mark(mark: Any) -> Mark:
    return Mark(mark.line + 1, mark.column + 1)


def _mark_after(text: str) -> Mark:
    return Mark(text.count("\n") + 1, len(text) - text.rfind("\n"))


# YAML 1.2.2 section 5.1, c-printable; the surrogates are left out by the ranges.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})|0o[0-7]{1,18}|0x[0-9a-fA-F]{1,16}", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?", re.ASCII
)
