"""The catalogue of failures against the code that fails, and against its own rules."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

import xfrmpy
from xfrmpy.failures import CATALOGUE, ExitCode, Failure, FailureKind, OperatorError

CODE = re.compile(r"XF\d+")
PACKAGE = Path(xfrmpy.__file__).parent

NEVER_RAISED: dict[str, str] = {}
"""Codes that nothing names, each with the reason why it is in the catalogue all the same."""

EXITS_OF_FAMILY = {
    "1": {ExitCode.BAD_POLICY, ExitCode.USAGE},
    "2": {ExitCode.PEER_REFUSED, ExitCode.TIMED_OUT, ExitCode.FAILED},
    "3": {ExitCode.HOST_CANNOT, ExitCode.FAILED},
    "4": {
        ExitCode.DAEMON_UNREACHABLE,
        ExitCode.FAILED,
        ExitCode.HOST_CANNOT,
        ExitCode.NO_PERMISSION,
        ExitCode.NOT_UP,
        ExitCode.TIMED_OUT,
    },
    "5": {ExitCode.USAGE},
}
"""What a command may exit with, by the family that the first digit of the code names."""


@cache
def codes_named() -> dict[str, set[str]]:
    """The codes in string literals of the package, docstrings left out, with who names them."""
    named: dict[str, set[str]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        if path.name == "failures.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = None
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                for code in CODE.findall(node.value):
                    named[code].add(str(path.relative_to(PACKAGE)))
    return named


def texts(kind: FailureKind) -> list[str]:
    return [kind.title, *kind.causes, *kind.fixes]


def test_every_code_named_is_in_the_catalogue() -> None:
    unknown = {code: where for code, where in codes_named().items() if code not in CATALOGUE}
    assert not unknown


def test_every_row_of_the_catalogue_is_named_somewhere() -> None:
    assert set(CATALOGUE) - set(codes_named()) == set(NEVER_RAISED)


def test_the_search_finds_codes_and_passes_over_docstrings() -> None:
    named = codes_named()
    assert "ike/init.py" in named["XF2002"]
    assert len(named) > 30


def test_the_exit_codes_are_those_of_the_manual() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "DONE": 0,
        "FAILED": 1,
        "CHANGES_PENDING": 2,
        "NOT_UP": 3,
        "TIMED_OUT": 4,
        "PEER_REFUSED": 5,
        "USAGE": 64,
        "BAD_POLICY": 65,
        "DAEMON_UNREACHABLE": 69,
        "NO_PERMISSION": 77,
        "HOST_CANNOT": 78,
    }


def test_codes_are_of_a_known_family_and_in_order() -> None:
    assert all(re.fullmatch(r"XF[1-5]\d{3}", code) for code in CATALOGUE)
    assert list(CATALOGUE) == sorted(CATALOGUE)


@pytest.mark.parametrize("code", CATALOGUE)
def test_a_failure_exits_as_its_family_does(code: str) -> None:
    assert CATALOGUE[code].exit_code in EXITS_OF_FAMILY[code[2]]


@pytest.mark.parametrize("code", CATALOGUE)
def test_texts_are_phrases(code: str) -> None:
    for text in texts(CATALOGUE[code]):
        assert text == text.strip()
        assert text.isascii()
        assert text.isprintable()
        assert not text.endswith((".", "!", ":", ";", ","))
        assert not re.match(r"[A-Z][a-z]", text), "sentences of the catalogue start small"
        assert text.count("`") % 2 == 0
        assert "  " not in text


def test_titles_differ() -> None:
    titles = [kind.title for kind in CATALOGUE.values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("code", sorted(set(CATALOGUE) - {"XF5001"}))
def test_there_is_always_something_to_do_next(code: str) -> None:
    assert CATALOGUE[code].fixes


def test_a_failure_knows_its_kind() -> None:
    assert Failure(code="XF2001", summary="silence").kind is CATALOGUE["XF2001"]


def test_an_operator_error_carries_its_failure() -> None:
    error = OperatorError("XF1008", "no such secret", (("file", "/etc/secret"),))
    assert str(error) == "XF1008: no such secret"
    assert error.failure == Failure(
        code="XF1008", summary="no such secret", evidence=(("file", "/etc/secret"),)
    )
