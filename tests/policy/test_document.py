"""YAML: what a scalar is, and where everything stands."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from xfrmpy.policy.document import (
    _ORDINARY,
    Node,
    _Composer,
    _UnreadableError,
    compose_document,
    decode_text,
)
from xfrmpy.policy.errors import Findings


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("True", True),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("", None),
        ("~", None),
        ("Null", None),
        ("12", 12),
        ("-7", -7),
        ("+7", 7),
        ("0o17", 15),
        ("0x1F", 31),
        ("0777", "0777"),
        ("0b1", "0b1"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("1:2:3", "1:2:3"),
        ("2001-12-14", "2001-12-14"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("9" * 5000, "9" * 5000),
        ("1" * 18, int("1" * 18)),
        ("10.1.0.0/16", "10.1.0.0/16"),
        ("'12'", "12"),
        ('"true"', "true"),
        ("=", "="),
        ("<<", "<<"),
        ("\u0663", "\u0663"),
    ],
)
def test_plain_scalars_follow_the_core_schema(text: str, value: object) -> None:
    findings = Findings(file="f")
    node = compose_document(f"key: {text}\n", findings)
    assert node is not None
    found = node.plain()["key"]
    assert (found, type(found), findings.errors) == (value, type(value), [])


def test_every_node_knows_its_place_and_that_of_its_key() -> None:
    node = compose_document("# comment\na:\n  b: [x, 'y']\n", Findings(file="f"))
    assert node is not None
    found, depth = node.find(("a", "b", 1))
    assert (found.value, found.mark, depth) == ("y", (3, 10), 3)
    found, depth = node.find(("a", "b", 7, "z"))
    assert (found.mark, found.key_mark, depth) == ((3, 6), (3, 3), 2)


def test_a_byte_order_mark_does_not_move_the_columns() -> None:
    findings = Findings(file="f")
    text = decode_text("\ufeffa: &b\n".encode(), findings)
    assert text is not None
    compose_document(text, findings)
    assert [(error.line, error.column) for error in findings.errors] == [(1, 4)]


def test_utf_16_is_told_that_it_is_not_utf_8() -> None:
    findings = Findings(file="f")
    assert decode_text("a: b\n".encode("utf-16"), findings) is None
    assert [error.message for error in findings.errors] == ["the text is not UTF-8 here"]


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_any_octets_give_a_tree_or_an_error(data: bytes) -> None:
    findings = Findings(file="f")
    text = decode_text(data, findings)
    if text is None:
        assert findings.errors
    else:
        compose_document(text, findings)


@given(st.text(alphabet=" \t\n:-?[]{},'\"&*!|>%@`#ab0.~\\x\u2028\x85", max_size=80))
@settings(deadline=None)
def test_any_text_of_yaml_signs_gives_a_tree_or_an_error(text: str) -> None:
    findings = Findings(file="f")
    decoded = decode_text(text.encode(), findings)
    assert decoded == text
    compose_document(text, findings)
    assert {error.code for error in findings.errors} <= {"XF1001", "XF1003"}


_PIECES = st.sampled_from(
    (
        "a",
        "b: ",
        "- ",
        "\n",
        "  ",
        "'",
        '"',
        "[",
        "]",
        ", ",
        " #",
        "#",
        ":",
        "1",
        "@",
        "--- ",
        "...",
    )
)


@given(st.lists(_PIECES, max_size=25).map("".join))
@settings(max_examples=2000)
def test_what_libyaml_has_read_pyyaml_reads_in_the_same_way(text: str) -> None:
    assert _ORDINARY.fullmatch(text)
    quick, thorough = Findings(file="quick"), Findings(file="thorough")
    try:
        read = _Composer(text, quick, yaml.CSafeLoader).compose()
    except (yaml.YAMLError, ValueError, OverflowError, _UnreadableError):
        return
    if not quick.errors:
        again = _Composer(text, thorough, yaml.SafeLoader).compose()
        assert not thorough.errors
        assert _placed(again) == _placed(read)


def _placed(node: Node | None) -> object:
    """The values with their places; where nothing is, there is more than one way to say it."""
    if node is None or node.value is None:
        return None
    value = node.value
    if isinstance(value, dict):
        return node.mark, {key: _placed(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return node.mark, [_placed(item) for item in value]
    return node.mark, value
