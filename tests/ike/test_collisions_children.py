"""Several Child SAs of one IKE SA: each end has to do with another, or both with all, at once.

Read RFC 7296 sections 2.3 and 2.25.1, and `interleaving.py` for the sentences. What the ends do
with different Child SAs does not collide, whatever the order in which it arrives.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from typing import Any

import pytest

from tests.ike.interleaving import KEPT, LOWEST

DEEDS = {"create": "acquire", "rekey": "rekey", "delete": "delete"}
"""What can be done with a Child SA, and the command that does it; so are its messages called."""

PLACES = list(combinations(range(6), 3))
"""Which of six steps are of the first of two exchanges."""


def _shuffled(ours: tuple[str, ...], theirs: tuple[str, ...], places: tuple[int, ...]) -> list[str]:
    one, other = iter(ours), iter(theirs)
    return [next(one if place in places else other) for place in range(len(ours) + len(theirs))]


def _steps(end: str, deed: str, child: str) -> tuple[str, ...]:
    other = "b" if end == "a" else "a"
    return f"{end}: {DEEDS[deed]} {child}", f"{end} {deed}?", f"{other} {deed}!"


@pytest.mark.parametrize("first", ["moon", "sun"])
@pytest.mark.parametrize("number", range(len(PLACES)))
@pytest.mark.parametrize(("ours", "theirs"), list(product(DEEDS, repeat=2)))
def test_deeds_of_both_ends_with_different_child_sas_do_not_collide(
    interleave: Callable[..., Any], ours: str, theirs: str, number: int, first: str
) -> None:
    run = interleave(first, further=2, window=8 if number % 2 else 1)
    deeds = {"voice": ours, "video": theirs}
    run.play("a: create", "rest")
    run.play(*(f"a: delete {child}" for child in deeds if deeds[child] == "create"), "rest")
    steps = _shuffled(_steps("a", ours, "voice"), _steps("b", theirs, "video"), PLACES[number])
    run.play(*steps)
    run.settle()
    kept = {"net"} | {child for child in deeds if deeds[child] != "delete"}
    if "create" in deeds.values():  # Who has made one goes on with what policy wants besides.
        kept |= {child.policy.name for child in run.hosts["a"].ike_sa.children}
    run.assert_up(*kept)
    run.assert_not_closed()
    assert run.errors == []


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("lowest", LOWEST)
def test_both_ends_rekey_every_child_sa_and_all_arrives_in_any_order(
    interleave: Callable[..., Any], lowest: str, seed: int
) -> None:
    run = interleave(lowest=lowest, further=2)
    run.play("a: acquire voice", "rest", "a: acquire video", "rest")
    run.watched = ("a", "b")
    run.play("a: rekey", "b: rekey")
    run.shuffle(seed)
    run.settle()
    run.assert_up("net", "voice", "video")
    run.assert_undisturbed()
    if not run.errors:
        makers = {run.kept_by(child.nonces) for child in run.hosts["a"].ike_sa.children}
        assert makers == {KEPT[lowest]}


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("first", ["moon", "sun"])
def test_both_ends_create_every_child_sa_and_all_arrives_in_any_order(
    interleave: Callable[..., Any], first: str, seed: int
) -> None:
    run = interleave(first, lowest=LOWEST[seed % len(LOWEST)], further=2)
    run.play("a: acquire voice", "b: acquire video", "a: acquire video", "b: acquire voice")
    run.shuffle(seed)
    run.settle()
    run.assert_up("net", "voice", "video")
    run.assert_not_closed()
    assert run.errors == []


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("first", ["moon", "sun"])
def test_one_end_rekeys_what_the_other_deletes_among_others_in_any_order(
    interleave: Callable[..., Any], first: str, seed: int
) -> None:
    run = interleave(first, lowest=LOWEST[seed % len(LOWEST)], further=2)
    run.play("a: acquire voice", "rest", "a: acquire video", "rest")
    run.play("a: rekey", "b: delete voice", "b: rekey net")
    run.shuffle(seed)
    run.settle()
    run.assert_up("net", "video")
    run.assert_not_closed()
