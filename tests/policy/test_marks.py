"""Marks in policy files: what they say, and that they tell equal subnets apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xfrmpy.ipsec.marks import Mark
from xfrmpy.policy.load import LoadedPolicy

Load = Callable[..., LoadedPolicy]

TWINS = """\
defaults: {{psk: secret:key, local: 10.1.0.0/16, remote: 10.2.0.0/16}}
tunnels:
  a: {{peer: 192.0.2.1, {first}}}
  b: {{peer: 192.0.2.2, {second}}}
"""


def twins(load: Load, first: str, second: str) -> LoadedPolicy:
    return load(**{"t.yaml": TWINS.format(first=first, second=second)})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("mark: 1", "mark: 2"),
        ("mark: 0x10/0xf0", "mark: 0x20/0xf0"),
        ("mark_out: 1, mark_in: 3", "mark: 2"),
    ],
)
def test_equal_subnets_are_told_apart_by_marks(load: Load, first: str, second: str) -> None:
    loaded = twins(load, first, second)
    assert loaded.errors == ()
    assert len(loaded.tunnels) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("mark: 1", "mark: 1"),
        ("mark: 1", "dpd: 5s"),
        ("mark_out: 1", "mark_out: 2"),
        ("mark_in: 1", "mark_in: 2"),
        ("mark: 1", "mark_out: 2, mark_in: 1"),
        ("mark: 0x10/0xf0", "mark: 0x01/0x0f"),
    ],
)
def test_marks_that_some_packet_could_bear_both_of_are_no_difference(
    load: Load, first: str, second: str
) -> None:
    assert [error.code for error in twins(load, first, second).errors] == ["XF1007"]


def test_a_childs_mark_comes_before_the_tunnels(load: Load) -> None:
    text = """\
peer: 192.0.2.1
psk: secret:key
mark: 1
children:
  a: {local: 10.1.0.0/16, remote: 10.2.0.0/16}
  b: {local: 10.1.0.0/16, remote: 10.2.0.0/16, mark: 2}
  c: {local: 10.1.0.0/16, remote: 10.2.0.0/16, mark: 3, mark_in: 0x4/0xf}
"""
    loaded = load(**{"t.yaml": text})
    assert loaded.errors == ()
    marks = [(c.mark_out, c.mark_in) for c in loaded.tunnels[0].children]
    assert marks == [(Mark(1), Mark(1)), (Mark(2), Mark(2)), (Mark(3), Mark(4, 0xF))]


def test_a_childs_own_packets_have_its_mark_or_the_tunnels(load: Load) -> None:
    text = """\
peer: 192.0.2.1
psk: secret:key
mark_set: 0x10000
children:
  a: {local: 10.1.0.0/16, remote: 10.2.0.0/16}
  b: {local: 10.1.0.0/16, remote: 10.3.0.0/16, mark_set: 0x20000/0xf0000}
"""
    loaded = load(**{"t.yaml": text})
    marks = [(c.mark_set, c.mark_out) for c in loaded.tunnels[0].children]
    assert marks == [(Mark(0x10000, 0xFFFF0000), None), (Mark(0x20000, 0xF0000), None)]


@pytest.mark.parametrize("mark", ["x", "0x21/0xf0", "-1", "[1]", "yes", "0x5846", "22598", "1.5"])
def test_what_is_no_mark_is_refused_where_it_stands(load: Load, mark: str) -> None:
    text = f"peer: 192.0.2.1\npsk: secret:key\nlocal: 10.1.0.0/16\nremote: '::/0'\nmark: {mark}\n"
    errors = load(**{"t.yaml": text.replace("'::/0'", "10.2.0.0/16")}).errors
    assert [(error.code, error.line) for error in errors] == [("XF1004", 5)]


@pytest.mark.parametrize("key", ["mark: 1", "mark_set: 0x10000"])
def test_the_userspace_datapath_is_refused_with_a_mark(load: Load, key: str) -> None:
    text = f"""\
peer: 192.0.2.1
psk: secret:key
local: 10.1.0.0/16
remote: 10.2.0.0/16
datapath: userspace
{key}
"""
    (error,) = load(**{"t.yaml": text}).errors
    assert (error.code, error.line) == ("XF1004", 6)
    assert "does not see marks" in error.message
