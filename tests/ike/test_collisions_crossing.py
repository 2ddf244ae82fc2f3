"""Both ends begin at once: every order in which the messages of two initiations can arrive.

Read RFC 7296 sections 1.2, 2.4 and 2.8, and `interleaving.py` for the sentences. Two IKE SAs may
come of it; a while later there is one, the same at both ends, and nobody was told that the tunnel
ended.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest

from tests.ike.interleaving import EXPIRY_SECONDS, KEPT, LOWEST, Case, named
from xfrmpy.registry import NotifyType

OURS = ("a: up", "a init?", "b init!", "a auth?", "b auth!")
THEIRS = ("b: up", "b init?", "a init!", "b auth?", "a auth!")
TOGETHER = tuple(step for pair in zip(OURS, THEIRS, strict=True) for step in pair)


def _orders() -> list[str]:
    """Every way to shuffle five steps of `a`'s initiation with five of `b`'s."""
    count = len(OURS) + len(THEIRS)
    return [
        "".join("a" if place in places else "b" for place in range(count))
        for places in combinations(range(count), len(OURS))
    ]


def _steps(order: str) -> list[str]:
    streams = {"a": iter(OURS), "b": iter(THEIRS)}
    return [next(streams[letter]) for letter in order]


ORDERS = list(enumerate(_orders()))


def _initiations(run: Any) -> int:
    return max(len(host.views) for host in run.hosts.values())


@pytest.mark.parametrize(("number", "order"), ORDERS, ids=[order for _, order in ORDERS])
def test_two_initiations_in_any_order_leave_the_ike_sa_that_the_nonces_favour(
    interleave: Callable[..., Any], number: int, order: str
) -> None:
    lowest = LOWEST[number % len(LOWEST)]
    run = interleave(lowest=lowest, is_up=False)
    run.play(*_steps(order))
    assert _initiations(run) == 2
    run.settle()
    run.assert_up("net")
    run.assert_not_closed()
    assert run.kept_by(run.hosts["a"].ike_sa.nonces) == KEPT[lowest]


THEIR_WORDS = (
    *("eewww", "eweww", "ewwew", "ewwwe", "weeww", "wewew", "wewwe", "wweew", "wwewe", "wwwee"),
)
"""The order in which one end, west, does its own three steps and answers the two requests of east.
libreswan calls its tests so."""


@pytest.mark.parametrize("lowest", LOWEST)
@pytest.mark.parametrize("first", ["moon", "sun"])
@pytest.mark.parametrize("word", THEIR_WORDS)
def test_one_end_does_its_own_steps_and_answers_in_any_order(
    interleave: Callable[..., Any], word: str, first: str, lowest: str
) -> None:
    run = interleave(first, lowest, is_up=False)
    own = iter((("a: up",), ("a init?", "b init!"), ("a auth?", "b auth!")))
    theirs = iter((("b: up", "b init?"), ("a init!", "b auth?")))
    for letter in word:
        run.play(*next(own if letter == "w" else theirs))
    run.play("a auth!")
    run.settle()
    run.assert_up("net")
    run.assert_not_closed()
    assert run.kept_by(run.hosts["a"].ike_sa.nonces) == KEPT[lowest]


@pytest.mark.parametrize("lowest", LOWEST)
@pytest.mark.parametrize("first", ["moon", "sun"])
@pytest.mark.parametrize(
    "lost", [step for step in TOGETHER if ":" not in step], ids=lambda step: step.replace(" ", "_")
)
def test_any_message_of_two_crossing_initiations_may_be_lost(
    interleave: Callable[..., Any], lost: str, first: str, lowest: str
) -> None:
    run = interleave(first, lowest, is_up=False)
    of_lost = OURS if lost in OURS else THEIRS
    after = of_lost[of_lost.index(lost) :]
    run.play(
        *(
            f"lost {step}" if step == lost else step
            for step in TOGETHER
            if _is_sent(step, after, lost)
        )
    )
    run.play("wait 4")
    run.settle()
    run.assert_up("net")
    run.assert_not_closed()


def _is_sent(step: str, after: tuple[str, ...], lost: str) -> bool:
    return step == lost or step not in after


@pytest.mark.parametrize("lowest", LOWEST)
@pytest.mark.parametrize(
    ("one", "other"),
    [(OURS[n], THEIRS[n]) for n in range(1, len(OURS))],
    ids=("both_init_requests", "both_init_answers", "both_auth_requests", "both_auth_answers"),
)
def test_both_messages_of_one_kind_may_be_lost(
    interleave: Callable[..., Any], one: str, other: str, lowest: str
) -> None:
    run = interleave(lowest=lowest, is_up=False)
    before = [step for step in TOGETHER if _rank(step) < _rank(one)]
    run.play(*before, f"lost {one}", f"lost {other}", "wait 4", "rest")
    run.settle()
    run.assert_up("net")
    run.assert_not_closed()
    assert run.kept_by(run.hosts["a"].ike_sa.nonces) == KEPT[lowest]


def _rank(step: str) -> int:
    return OURS.index(step) if step in OURS else THEIRS.index(step)


@pytest.mark.parametrize("lowest", LOWEST)
def test_initial_contact_ends_nothing_that_was_made_since_its_sender_began(
    interleave: Callable[..., Any], sealing: Any, lowest: str
) -> None:
    """Section 2.4: it is said of a moment at which the sender had nothing else."""
    run = interleave(lowest=lowest, is_up=False)
    run.play("b: up", "b init?", "a init!")
    assert _says_initial_contact(sealing)
    run.play("a: up", "a init?", "b init!", "a auth?", "b auth!", "b auth?")
    run.settle()
    run.assert_up("net")
    run.assert_not_closed()


def _says_initial_contact(sealing: Any) -> bool:
    (_, payloads) = sealing.sent[-1]
    return NotifyType.INITIAL_CONTACT in [getattr(p, "type", None) for p in payloads]


BEGINNINGS = (
    Case(
        name="a peer that is not there yet begins itself",
        steps=(
            *("a: up", "lost a init?", "wait 4", "lost a init?", "wait 8", "b: up", "b init?"),
            *("a init!", "b auth?", "a auth!", "wait 20", "rest"),
        ),
    ),
    Case(
        name="the first request of one is so late that the other has finished",
        steps=(
            *("a: up", "lost a init?", "b: up", "b init?", "a init!", "b auth?", "a auth!"),
            *("wait 4", "a init?", "rest"),
        ),
    ),
    Case(
        name="IKE_AUTH of one is so late that the other has finished",
        steps=(
            *("a: up", "a init?", "b init!", "lost a auth?", "b: up", "b init?", "a init!"),
            *("b auth?", "a auth!", "wait 4", "a auth?", "rest"),
        ),
    ),
    Case(
        name="a peer begins anew after a restart during IKE_SA_INIT",
        steps=(
            "a: up",
            "a init?",
            "b: restart",
            "b: up",
            "rest",
        ),
    ),
    Case(
        name="a peer begins anew after a restart before it was heard",
        steps=(
            "a: up",
            "b: restart",
            "b: up",
            "rest",
        ),
    ),
    Case(
        name="a peer begins anew after a restart during IKE_AUTH",
        steps=(
            "a: up",
            "a init?",
            "b init!",
            "b: restart",
            "b: up",
            "rest",
        ),
    ),
    Case(
        name="a peer begins anew after a restart and has answered IKE_AUTH",
        steps=(
            *("a: up", "a init?", "b init!", "a auth?", "lost b auth!", "b: restart", "b: up"),
            "rest",
        ),
    ),
    Case(
        name="a peer begins anew after a restart and its last answer from before comes then",
        steps=(
            *("a: up", "a init?", "b init!", "a auth?", "b: restart", "b: up", "b init?"),
            *("b auth!", "a init!", "b auth?", "a auth!", "rest"),
        ),
        is_news=True,
    ),
    Case(
        name="a peer begins anew after a restart amid its first attempt which then succeeds",
        steps=(
            *("b: up", "b init?", "a init!", "b: restart", "b: up", "b init?"),
            *("b auth?", "a init!", "b auth?", "a auth!", "rest"),
        ),
        is_news=True,
    ),
    Case(
        name="a peer that restarted begins while we rekey",
        steps=(
            "a: up",
            "rest",
            "a: rekey",
            "b: restart",
            "b: up",
            "rest",
        ),
        is_news=True,
    ),
    Case(
        name="a peer that restarted begins while we rekey the IKE SA",
        steps=(
            "a: up",
            "rest",
            "a: rekey ike",
            "b: restart",
            "b: up",
            "rest",
        ),
        is_news=True,
    ),
    Case(name="one begins twice", steps=("a: up", "a: up", "rest")),
    Case(
        name="one begins again while its last answer is on its way",
        steps=(
            "a: up",
            "a init?",
            "b init!",
            "a auth?",
            "a: up",
            "a init?",
            "b auth!",
            "rest",
        ),
    ),
    Case(
        name="one end deletes the older of the two that crossed",
        steps=(
            *TOGETHER,
            "b: end oldest",
            "b end?",
            "a end!",
        ),
        is_news=True,
    ),
    Case(
        name="the one that is to stay is rekeyed before the other goes",
        steps=(
            *TOGETHER,
            "a: rekey ike",
            "rest",
        ),
    ),
    Case(
        name="the Child SAs of both are rekeyed before one goes",
        steps=(
            *TOGETHER,
            "a: rekey",
            "b: rekey",
            "rest",
        ),
    ),
    Case(
        name="both are rekeyed by both before one goes",
        steps=(
            *TOGETHER,
            "a: rekey ike",
            "b: rekey ike",
            "rest",
        ),
    ),
    Case(
        name="one reauthenticates what crossed before one goes",
        steps=(
            *TOGETHER,
            "a: reauthenticate",
            "rest",
        ),
    ),
    Case(
        name="a packet finds two IKE SAs",
        steps=(
            *TOGETHER,
            "a: acquire net",
            "b: acquire net",
            "rest",
        ),
    ),
)


@pytest.mark.parametrize("lowest", LOWEST)
@pytest.mark.parametrize("first", ["moon", "sun"])
@pytest.mark.parametrize("case", named(BEGINNINGS))
def test_there_is_one_ike_sa_in_the_end_when(
    interleave: Callable[..., Any], case: Case, first: str, lowest: str
) -> None:
    run = interleave(first, lowest, is_up=False)
    run.play(*case.steps)
    run.settle()
    run.assert_up("net")
    if not case.is_news:
        run.assert_not_closed()


ENDS = (
    Case(name="by one end", steps=("a: down", "rest")),
    Case(name="by both ends", steps=("a: down", "b: down", "rest")),
    Case(
        name="by one end with the answers lost",
        steps=(
            "a: down",
            "a end?",
            "a end?",
            "lost b end!",
            "lost b end!",
        ),
    ),
)


@pytest.mark.parametrize("lowest", LOWEST)
@pytest.mark.parametrize("count", range(2, len(TOGETHER) + 1))
@pytest.mark.parametrize("end", ["a", "b"])
def test_down_amid_two_initiations_leaves_nothing_once_both_ends_want_it(
    interleave: Callable[..., Any], end: str, count: int, lowest: str
) -> None:
    run = interleave(lowest=lowest, is_up=False)
    other = "b" if end == "a" else "a"
    run.play(*TOGETHER[:count], f"{end}: down", "rest", f"{other}: down", "rest")
    run.settle(EXPIRY_SECONDS)
    run.pair.assert_forgotten()


@pytest.mark.parametrize("lowest", LOWEST)
@pytest.mark.parametrize("case", named(ENDS))
def test_a_tunnel_that_crossed_goes_down_whole(
    interleave: Callable[..., Any], case: Case, lowest: str
) -> None:
    run = interleave(lowest=lowest, is_up=False)
    run.play(*TOGETHER, *case.steps)
    run.settle(EXPIRY_SECONDS)
    run.pair.assert_forgotten()
