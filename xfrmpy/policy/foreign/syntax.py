"""swanctl.conf, ipsec.conf and ipsec.secrets as sections of settings, each with its place.

What a setting means is `importing.py`'s. Files that are included come from `Include`, so nothing
here touches the file system. See swanctl.conf(5), strongswan.conf(5), ipsec.conf(5) and
ipsec.secrets(5) of strongSwan and of libreswan.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

MAX_DEPTH = 16
"""Of sections in one another, and of files that include one another."""


class ForeignSyntaxError(ValueError):
    """The text is no such file; `place` is `file:line`."""

    def __init__(self, place: str, message: str) -> None:
        super().__init__(message)
        self.place = place


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A file by its name, and what it holds."""

    name: str
    content: str = field(repr=False)


Include: TypeAlias = Callable[[str, str], Iterable[Text]]
"""The files that a pattern means, in the file that is named second. May raise `OSError`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A key's value as it is written, less quotes; `place` is `file:line`."""

    value: str = field(repr=False)
    place: str


@dataclass(slots=True, kw_only=True)
class Section:
    """Settings and sections by name. `bases` are sections that give what this one lacks."""

    place: str
    settings: dict[str, Setting] = field(default_factory=dict)
    sections: dict[str, Section] = field(default_factory=dict)
    bases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSecret:
    """A pre-shared key and the identities that it is for; none is any."""

    octets: bytes = field(repr=False)
    identities: tuple[str, ...]


def parse_swanctl(text: Text, include: Include) -> Section:
    """The whole file as one section. Raises `ForeignSyntaxError`."""
    root = Section(place=f"{text.name}:1")
    _Swanctl(text, include, 0).read_into(root)
    _inherit(root, root, 0)
    return root


class _Swanctl:
    """One file's reader, by a place in its text."""

    _SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
    _NAME = re.compile(r'[^#{}:,="\s]+')
    _BLANKS = re.compile(r"[ \t\r]*")
    _WORD = re.compile(r'[^#}"\s]+')
    _STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
    _LINE = re.compile(r"[^\n#]*")

    def __init__(self, text: Text, include: Include, depth: int) -> None:
        self._text = text
        self._include = include
        self._depth = depth
        self._at = 0

    def read_into(self, root: Section) -> None:
        self._section(root, 0)
        if self._at < len(self._text.content):
            raise self._fault("a } that closes nothing")

    def _section(self, section: Section, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise self._fault("too many sections in one another")
        while self._peek() not in ("", "}"):
            place = self._place
            name = self._match(self._NAME)
            if not name:
                raise self._fault(f"a name is expected, and not {self._peek()!r}")
            self._match(self._BLANKS)
            if name == "include" and self._peek(blanks=False) not in ("{", "=", ":"):
                self._read_included(section, self._match(self._LINE).strip().strip('"'))
                continue
            match self._peek():
                case "=":
                    self._at += 1
                    section.settings[name] = Setting(value=self._value(), place=place)
                case "{" | ":":
                    self._subsection(section, name, place, depth)
                case other:
                    raise self._fault(f"= or {{ is expected after {name}, and not {other!r}")

    def _subsection(self, section: Section, name: str, place: str, depth: int) -> None:
        inner = section.sections.setdefault(name, Section(place=place))
        bases: list[str] = []
        while self._peek() in (":", ","):
            self._at += 1
            self._match(self._SPACE)
            bases.append(self._match(self._NAME))
        inner.bases += tuple(bases)
        if self._peek() != "{":
            raise self._fault(f"{{ is expected after {name}")
        self._at += 1
        self._section(inner, depth + 1)
        if self._peek() != "}":
            raise self._fault(f"the section {name} is not closed")
        self._at += 1

    def _value(self) -> str:
        parts: list[str] = []
        while True:
            blanks = self._match(self._BLANKS)
            if string := self._STRING.match(self._text.content, self._at):
                self._at = string.end()
                part = _unescaped(string[1])
            elif not (part := self._match(self._WORD)):
                return "".join(parts)
            parts += [" " if blanks and parts else "", part]

    def _read_included(self, section: Section, pattern: str) -> None:
        if self._depth >= MAX_DEPTH:
            raise self._fault("too many files include one another")
        for text in _included(self._include, pattern, self._text.name, self._place):
            _Swanctl(text, self._include, self._depth + 1).read_into(section)

    def _peek(self, *, blanks: bool = True) -> str:
        if blanks:
            self._match(self._SPACE)
        return self._text.content[self._at : self._at + 1]

    def _match(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text.content, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[0]

    @property
    def _place(self) -> str:
        return f"{self._text.name}:{self._text.content.count(chr(10), 0, self._at) + 1}"

    def _fault(self, message: str) -> ForeignSyntaxError:
        return ForeignSyntaxError(self._place, message)


_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\n": ""}


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), text, flags=re.DOTALL)


def _inherit(section: Section, root: Section, depth: int) -> None:
    for base in section.bases:
        found: Section | None = root
        for part in base.split("."):
            found = found.sections.get(part) if found is not None else None
        if found is None or depth > MAX_DEPTH:
            raise ForeignSyntaxError(section.place, f"there is no section {base} to refer to")
        _inherit(found, root, depth + 1)
        _fill(section, found, depth)
    section.bases = ()
    for inner in section.sections.values():
        _inherit(inner, root, depth + 1)


def _fill(section: Section, base: Section, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ForeignSyntaxError(section.place, "sections refer to one another")
    section.settings = {**base.settings, **section.settings}
    for name, inner in base.sections.items():
        _fill(section.sections.setdefault(name, Section(place=inner.place)), inner, depth + 1)


def parse_ipsec_conf(text: Text, include: Include) -> Section:
    """Its sections as `conn NAME`, `ca NAME` and `config setup`, what they share filled in.

    Raises `ForeignSyntaxError`.
    """
    root = Section(place=f"{text.name}:1")
    _read_ipsec(text, include, root, 0)
    default = root.sections.pop("conn %default", None)
    for name, section in root.sections.items():
        _add_also(root, section, {name})
        if default is not None and name.startswith("conn "):
            section.settings = {**default.settings, **section.settings}
    return root


def _read_ipsec(text: Text, include: Include, root: Section, depth: int) -> None:
    current: Section | None = None
    for number, line in enumerate(text.content.splitlines(), 1):
        place = f"{text.name}:{number}"
        stripped = _uncommented(line)
        if not stripped:
            continue
        if line[0] not in " \t":
            word, _, rest = stripped.partition(" ")
            rest = rest.strip()
            if word == "include" and rest:
                if depth >= MAX_DEPTH:
                    raise ForeignSyntaxError(place, "too many files include one another")
                for included in _included(include, rest, text.name, place):
                    _read_ipsec(included, include, root, depth + 1)
                current = None
            elif word in ("conn", "ca", "config") and rest:
                current = root.sections.setdefault(f"{word} {rest}", Section(place=place))
            elif word != "version":
                message = f"conn, config, ca or include is expected, and not {word[:40]!r}"
                raise ForeignSyntaxError(place, message)
            continue
        key, equals, value = stripped.partition("=")
        if not equals or current is None:
            raise ForeignSyntaxError(place, "an indented line is KEY=VALUE of a section above it")
        key, value = key.strip().lower(), value.strip()
        if len(value) > 1 and value[0] == value[-1] == '"':
            value = value[1:-1]
        if key == "also":
            current.bases += (value,)
        else:
            current.settings[key] = Setting(value=value, place=place)


def _uncommented(line: str) -> str:
    """A # begins a comment at the start of a word, for `leftid=@#6162` is a key id."""
    return re.sub(r"(^|\s)#.*", "", line).strip()


def _add_also(root: Section, section: Section, seen: set[str]) -> None:
    for base in section.bases:
        name = f"conn {base}"
        found = root.sections.get(name)
        if found is None:
            raise ForeignSyntaxError(section.place, f"also={base}: there is no such conn")
        if name in seen:
            raise ForeignSyntaxError(section.place, f"also={base}: conns refer to one another")
        _add_also(root, found, {*seen, name})
        section.settings = {**found.settings, **section.settings}
    section.bases = ()


def _included(include: Include, pattern: str, within: str, place: str) -> list[Text]:
    try:
        return list(include(pattern, within))
    except (OSError, UnicodeDecodeError) as error:
        raise ForeignSyntaxError(place, f"include {pattern}: {error}") from error


_SECRET = re.compile(r'(?P<ids>.*?)\s:\s*(?P<kind>\w+)\s+(?P<value>".*?"|\'.*?\'|\S+)?')


def parse_ipsec_secrets(text: Text, include: Include) -> list[SharedSecret]:
    """Its pre-shared keys; keys of other kinds are passed over. Raises `ForeignSyntaxError`."""
    return list(_read_secrets(text, include, 0))


def _read_secrets(text: Text, include: Include, depth: int) -> Iterator[SharedSecret]:
    for number, line in enumerate(text.content.splitlines(), 1):
        place = f"{text.name}:{number}"
        stripped = line.strip()
        if stripped.startswith("include ") and depth < MAX_DEPTH:
            pattern = stripped.removeprefix("include ").strip()
            for included in _included(include, pattern, text.name, place):
                yield from _read_secrets(included, include, depth + 1)
            continue
        found = _SECRET.match(f" {stripped}") if not stripped.startswith("#") else None
        if found is None or found["kind"].upper() != "PSK":
            continue
        value = found["value"] or ""
        is_quoted = value[:1] in ('"', "'")
        octets = value[1:-1].encode() if is_quoted else secret_octets(value, place)
        yield SharedSecret(octets=octets, identities=tuple(found["ids"].split()))


def secret_octets(value: str, place: str) -> bytes:
    """`0x` is hex, `0s` base64, else text. Raises `ForeignSyntaxError`, without the value."""
    try:
        match value[:2]:
            case "0x" | "0X":
                return bytes.fromhex(value[2:])
            case "0s" | "0S":
                return base64.b64decode(value[2:], validate=True)
    except (ValueError, binascii.Error):
        raise ForeignSyntaxError(place, "the secret is neither hex nor base64") from None
    return value.encode()
