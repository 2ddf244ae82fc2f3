"""Child SAs: every interleaving of rekeying, creation and deletion, step by step.

Read RFC 7296 sections 1.4.1, 2.8.1 and 2.25.1, and `interleaving.py` for the sentences. The cases
run with either end as `a`, with each of the four nonces the lowest, with and without a key
exchange of their own, and with a window of one and of eight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from tests.ike.interleaving import EXPIRY_SECONDS, KEPT, LOWEST, Case, named
from xfrmpy.ike.outputs import ChildSaClosed, TunnelClosed
from xfrmpy.ike.succession import OVERLAP_SECONDS
from xfrmpy.ipsec.drift import Dump
from xfrmpy.ipsec.proposals import parse_proposal
from xfrmpy.registry import ProtocolId

ESP = {"plain": ("aes128gcm16", 1), "pfs": ("aes128gcm16-x25519", 8)}
"""What is proposed, and the window."""


CROSSING = ("a: rekey", "b: rekey")

REKEYINGS = (
    Case(
        name="one rekeying by itself",
        steps=("a: rekey", "a rekey?", "b rekey!", "a delete?", "b delete!"),
        kept="a",
    ),
    Case(
        name="two rekeyings cross and so do their answers",
        steps=(*CROSSING, "a rekey?", "b rekey?", "a rekey!", "b rekey!"),
        kept="winner",
    ),
    Case(
        name="one end has its answer before it is asked itself",
        steps=(*CROSSING, "a rekey?", "b rekey!", "b rekey?"),
        errors=("a TEMPORARY_FAILURE",),
        kept="a",
    ),
    Case(
        name="an answer is delayed until the other end has deleted what lost",
        steps=(*CROSSING, "a rekey?", "b rekey?", "a rekey!", "b delete?", "a delete!", "b rekey!"),
        kept="winner",
    ),
    Case(
        name="an answer is delayed until the deletion has arrived but not its answer",
        steps=(*CROSSING, "b rekey?", "a rekey?", "a rekey!", "b delete?", "b rekey!"),
        kept="winner",
    ),
    Case(
        name="a request is delayed until the other end deletes and the deletion comes first",
        steps=(*CROSSING, "b rekey?", "a rekey!", "a rekey?", "b delete?", "b rekey!"),
        errors=("b TEMPORARY_FAILURE",),
        kept="b",
    ),
    Case(
        name="a request is delayed until the other end deletes and its refusal comes first",
        steps=(*CROSSING, "b rekey?", "a rekey!", "a rekey?", "b rekey!", "b delete?"),
        errors=("b TEMPORARY_FAILURE",),
        kept="b",
    ),
    Case(
        name="a request is delayed until the other end has deleted",
        steps=(*CROSSING, "b rekey?", "a rekey!", "b delete?", "a delete!", "a rekey?"),
        errors=("b CHILD_SA_NOT_FOUND",),
        kept="b",
    ),
    Case(
        name="a request is lost and comes again after everything is over",
        steps=(*CROSSING, "lost a rekey?", "b rekey?", "rest", "wait 4", "rest"),
        errors=("b CHILD_SA_NOT_FOUND",),
        kept="b",
    ),
    Case(
        name="an answer is lost and the request is answered again",
        steps=("a: rekey", "a rekey?", "lost b rekey!", "wait 4", "a rekey?", "b rekey!"),
        kept="a",
    ),
    Case(
        name="one answer of two crossing rekeyings is lost",
        steps=(*CROSSING, "a rekey?", "b rekey?", "lost b rekey!", "rest", "wait 4"),
        kept="winner",
    ),
    Case(
        name="both answers of two crossing rekeyings are lost",
        steps=(*CROSSING, "a rekey?", "b rekey?", "lost a rekey!", "lost b rekey!", "wait 4"),
        kept="winner",
    ),
    Case(
        name="every request of two crossing rekeyings comes twice",
        steps=(*CROSSING, "again a rekey?", "again b rekey?", "a rekey?", "b rekey?"),
        kept="winner",
    ),
    Case(
        name="a late copy of a request comes after the deletion",
        steps=("a: rekey", "again a rekey?", "b rekey!", "a delete?", "b delete!", "a rekey?"),
        kept="a",
    ),
    Case(
        name="the deletion is lost and comes again",
        steps=("a: rekey", "a rekey?", "b rekey!", "lost a delete?", "wait 4", "a delete?"),
        kept="a",
    ),
    Case(
        name="the answer to the deletion is lost",
        steps=("a: rekey", "a rekey?", "b rekey!", "a delete?", "lost b delete!", "wait 4"),
        kept="a",
    ),
    Case(
        name="the deletion is so late that the other end sends on the new one and deletes too",
        steps=("a: rekey", "a rekey?", "b rekey!", "lost a delete?", "wait 25"),
        kept="a",
    ),
    Case(
        name="a wish to rekey what was just made waits until the first is deleted",
        steps=("a: rekey", "a rekey?", "b rekey!", "b: rekey", "a delete?", "b rekey?"),
        kept="b",
    ),
    Case(
        name="a soft limit of what was just replaced begins nothing",
        steps=("a: rekey", "a rekey?", "b: soft limit", "b rekey!", "b: soft limit"),
        kept="a",
    ),
    Case(
        name="a soft limit of what is being replaced begins nothing",
        steps=("a: rekey", "a: soft limit", "a rekey?", "b rekey!", "a: soft limit"),
        kept="a",
    ),
    Case(
        name="the responder deletes what the initiator should and its answer comes first",
        steps=("a: rekey", "a rekey?", "b: delete", "b rekey!", "b delete?", "a delete?"),
        kept="a",
    ),
    Case(
        name="the responder deletes what the initiator should before its answer comes",
        steps=("a: rekey", "a rekey?", "b: delete", "b delete?", "b rekey!", "a delete!"),
        kept="a",
    ),
    Case(
        name="the deletions of both cross and the answer to one is lost for a while",
        steps=(
            *("a: rekey", "a rekey?", "b rekey!", "lost a delete?", "wait 21", "a delete?"),
            *("b delete!", "lost b delete?", "wait 6"),
        ),
        kept="a",
    ),
    Case(
        name="who lost deletes the old one all the same",
        steps=(*CROSSING, "a rekey?", "b rekey?", "a rekey!", "b rekey!", "rest"),
        kept="winner",
    ),
    Case(
        name="a liveness check crosses a rekeying",
        steps=("b: check", "a: rekey", "a rekey?", "b check?", "b rekey!", "a delete?", "a check!"),
        kept="a",
    ),
    Case(
        name="a third generation is begun while the deletion of the first is on its way",
        steps=("a: rekey", "a rekey?", "b rekey!", "a: rekey", "rest", "a: rekey", "rest"),
        kept="a",
    ),
    Case(
        name="the peer rekeys the second generation before the first is deleted",
        steps=("a: rekey", "a rekey?", "b rekey!", "lost a delete?", "wait 11", "b: rekey", "rest"),
        kept="b",
    ),
    Case(
        name="two rekeyings of the second generation cross the deletion of the first",
        steps=("a: rekey", "a rekey?", "b rekey!", "lost a delete?", "wait 11", *CROSSING, "rest"),
    ),
)

DELETIONS = (
    Case(
        name="one deletion by itself",
        steps=("a: delete", "a delete?", "b delete!"),
    ),
    Case(
        name="two deletions cross",
        steps=("a: delete", "b: delete", "a delete?", "b delete?", "a delete!", "b delete!"),
    ),
    Case(
        name="two deletions cross and one is lost",
        steps=("a: delete", "b: delete", "lost b delete?", "a delete?", "b delete!", "wait 4"),
    ),
    Case(
        name="two deletions cross and one comes after the answer to the other",
        steps=("a: delete", "b: delete", "a delete?", "b delete!", "b delete?", "a delete!"),
    ),
    Case(
        name="the answer to a deletion is lost",
        steps=("a: delete", "a delete?", "lost b delete!", "wait 4", "a delete?", "b delete!"),
    ),
    Case(
        name="a deletion crosses a rekeying and both are seen",
        steps=("a: rekey net", "b: delete", "a rekey?", "b delete?", "a delete!", "b rekey!"),
        errors=("b TEMPORARY_FAILURE",),
    ),
    Case(
        name="a deletion crosses a rekeying and its refusal comes last",
        steps=("a: rekey net", "b: delete", "b delete?", "a rekey?", "b rekey!", "a delete!"),
        errors=("b TEMPORARY_FAILURE",),
    ),
    Case(
        name="a deletion that crosses a rekeying is delayed",
        steps=("a: rekey net", "b: delete", "a rekey?", "b rekey!", "wait 1", "b delete?"),
        errors=("b TEMPORARY_FAILURE",),
    ),
    Case(
        name="a deletion that crosses a rekeying is lost until it is asked for again",
        steps=("a: rekey net", "b: delete", "lost b delete?", "a rekey?", "b rekey!", "wait 4"),
        errors=("b TEMPORARY_FAILURE",),
    ),
    Case(
        name="a rekeying that crosses a deletion is delayed",
        steps=("a: rekey net", "b: delete", "b delete?", "a delete!", "a rekey?", "b rekey!"),
        errors=("b CHILD_SA_NOT_FOUND",),
    ),
    Case(
        name="what was just made is deleted by its responder before its initiator knows of it",
        steps=("a: rekey net", "a rekey?", "b: delete newest", "b delete?", "b rekey!", "rest"),
    ),
    Case(
        name="what was just made is deleted by its responder after its initiator knows of it",
        steps=(
            "a: rekey net",
            "a rekey?",
            "b: delete newest",
            "b rekey!",
            "b delete?",
            "a delete?",
        ),
    ),
    Case(
        name="what was just made is deleted by its initiator together with what it replaced",
        steps=("a: rekey net", "a rekey?", "b rekey!", "a: delete newest", "rest"),
    ),
    Case(
        name="after a crossing the old and the new are deleted before an answer comes",
        steps=(
            *("a: rekey net", "b: rekey net", "a rekey?", "b rekey?", "a rekey!"),
            *("b: delete all", "b delete?", "b rekey!", "rest"),
        ),
    ),
    Case(
        name="the old and the new are deleted before a request to rekey comes",
        steps=(
            *("a: rekey net", "b: rekey net", "b rekey?", "a rekey!", "b delete?", "a delete!"),
            *("b: delete newest", "b delete?", "a delete!", "a rekey?", "b rekey!"),
        ),
        errors=("b CHILD_SA_NOT_FOUND",),
    ),
)


VARIANTS = [
    pytest.param(first, lowest, kind, id=f"{first}_{lowest.replace(' ', '_')}_{kind}")
    for first, lowest, kind in product(("moon", "sun"), LOWEST, ESP)
]

FEWER = [
    pytest.param(first, lowest, kind, id=f"{first}_{lowest.replace(' ', '_')}_{kind}")
    for first, (lowest, kind) in product(("moon", "sun"), zip(LOWEST, [*ESP] * 2, strict=True))
]
"""Where it is not nonces that decide."""


@pytest.mark.parametrize(("first", "lowest", "kind"), VARIANTS)
@pytest.mark.parametrize("case", named(REKEYINGS))
def test_a_rekeying_leaves_one_child_sa_and_no_gap(
    interleave: Callable[..., Any], case: Case, first: str, lowest: str, kind: str
) -> None:
    esp, window = ESP[kind]
    run = interleave(first, lowest, esp=esp, window=window)
    run.watched = ("a", "b")
    run.play(*case.steps)
    run.settle()
    run.assert_up("net")
    run.assert_undisturbed()
    assert tuple(run.errors) == case.errors
    wanted = KEPT[lowest] if case.kept == "winner" else case.kept
    (child,) = run.hosts["a"].ike_sa.children
    if wanted:
        assert run.kept_by(child.nonces) == wanted


@pytest.mark.parametrize(("first", "lowest", "kind"), FEWER)
@pytest.mark.parametrize("case", named(DELETIONS))
def test_what_is_deleted_is_gone_at_both_ends_and_nothing_else(
    interleave: Callable[..., Any], case: Case, first: str, lowest: str, kind: str
) -> None:
    esp, window = ESP[kind]
    run = interleave(first, lowest, esp=esp, window=window, further=1)
    run.play("a: create", "rest", *case.steps)
    run.settle()
    run.assert_up("voice")
    run.assert_not_closed()
    assert tuple(run.errors) == case.errors


TOO_EARLY = (
    Case(
        name="and knows that it was heard before its answer comes",
        steps=("a: rekey", "a rekey?", "b: delete", "b delete?", "a delete!", "b rekey!"),
    ),
    Case(
        name="and its answer is lost",
        steps=(
            *("a: rekey", "a rekey?", "b: delete", "b delete?", "a delete!", "lost b rekey!"),
            "wait 4",
        ),
    ),
    Case(
        name="and its deletion is lost until its answer has come",
        steps=("a: rekey", "a rekey?", "b: delete", "lost b delete?", "b rekey!", "wait 4"),
    ),
    Case(
        name="though it lost a collision",
        steps=(
            *(*CROSSING, "a rekey?", "b rekey?", "a rekey!", "b delete?", "a delete!"),
            *("b: delete", "b delete?", "a delete!", "b rekey!"),
        ),
    ),
)


@pytest.mark.parametrize("lowest", ["a answers", "b asks"])
@pytest.mark.parametrize("first", ["moon", "sun"])
@pytest.mark.parametrize("case", named(TOO_EARLY))
def test_the_responder_deletes_what_the_initiator_should(
    interleave: Callable[..., Any], case: Case, first: str, lowest: str
) -> None:
    """Some do. The initiator has a Child SA to send on at every moment all the same."""
    run = interleave(first, lowest)
    run.watched = ("a",)
    run.play(*case.steps)
    run.settle()
    run.assert_up("net")
    run.assert_undisturbed()
    assert run.errors == []
    (child,) = run.hosts["a"].ike_sa.children
    assert run.kept_by(child.nonces) == "a"


@pytest.mark.parametrize("first", ["moon", "sun"])
def test_a_deletion_that_nobody_answers_reports_the_end_of_what_was_made_and_only_that(
    interleave: Callable[..., Any], first: str
) -> None:
    run = interleave(first)
    run.play("a: rekey", "a rekey?", "b rekey!")
    a = run.hosts["a"]
    (new,) = (c for c in a.ike_sa.children if c.is_in_use)
    while a.views:
        run.mail.clear()
        run.play("wait 10")
    assert [report.spi_in for report in a.reports(ChildSaClosed)] == [new.spi_in]
    assert [report.failure.code for report in a.reports(TunnelClosed)] == ["XF2001"]
    assert a.datapath.dump() == Dump(sad=(), spd=())


HARD_LIMITS = (
    Case(
        name="of what was just replaced, at the responder, before the answer arrives",
        steps=("a: rekey", "a rekey?", "b: hard limit", "b rekey!", "a delete?", "b delete?"),
        kept="a",
    ),
    Case(
        name="of what was just replaced, at the responder, whose deletion comes first",
        steps=("a: rekey", "a rekey?", "b: hard limit", "b delete?", "b rekey!", "rest"),
        kept="a",
    ),
    Case(
        name="of what the responder has deleted, at the initiator, before the answer arrives",
        steps=("a: rekey", "a rekey?", "b: delete", "b delete?", "a: hard limit", "b rekey!"),
        kept="a",
    ),
    Case(
        name="of what is being deleted, at the initiator",
        steps=("a: rekey", "a rekey?", "b rekey!", "a: hard limit", "a delete?", "b delete!"),
        kept="a",
    ),
    Case(
        name="of what lost a collision",
        steps=(
            *("a: rekey", "b: rekey", "a rekey?", "b rekey?", "a rekey!", "b rekey!"),
            *("a: hard limit", "b: hard limit"),
        ),
        kept="winner",
    ),
)


@pytest.mark.parametrize("lowest", LOWEST)
@pytest.mark.parametrize("first", ["moon", "sun"])
@pytest.mark.parametrize("case", named(HARD_LIMITS))
def test_a_hard_limit_ends_no_tunnel_that_has_a_newer_child_sa(
    interleave: Callable[..., Any], case: Case, first: str, lowest: str
) -> None:
    run = interleave(first, lowest)
    run.play(*case.steps)
    run.settle()
    run.assert_up("net")
    run.assert_not_closed()
    wanted = KEPT[lowest] if case.kept == "winner" else case.kept
    (child,) = run.hosts["a"].ike_sa.children
    assert run.kept_by(child.nonces) == wanted


def test_who_cannot_send_on_what_was_replaced_sends_on_what_replaces_it_at_once(
    interleave: Callable[..., Any],
) -> None:
    run = interleave()
    run.play("a: rekey", "a rekey?", "b rekey!", "b: hard limit")
    assert run.hosts["b"].ike_sa.children[-1].sends


GUESSES = {"a": "aes128gcm16-x25519-ecp256", "b": "aes128gcm16-ecp384-ecp256"}
"""What the ends propose for a Child SA: each begins with what only it has."""

WRONG_GUESSES = (
    Case(
        name="one rekeying by itself",
        steps=("a: rekey", "a rekey?", "b rekey!", "a rekey?", "b rekey!"),
        errors=("b INVALID_KE_PAYLOAD",),
        kept="a",
    ),
    Case(
        name="two rekeyings cross and are repeated",
        steps=(
            *("a: rekey", "b: rekey", "a rekey?", "b rekey?", "a rekey!", "b rekey!"),
            *("a rekey?", "b rekey?", "a rekey!", "b rekey!"),
        ),
        errors=("b INVALID_KE_PAYLOAD", "a INVALID_KE_PAYLOAD"),
        kept="winner",
    ),
    Case(
        name="two rekeyings cross and one is repeated after the other has begun to delete",
        steps=(
            *("a: rekey", "b: rekey", "a rekey?", "b rekey?", "a rekey!", "b rekey!"),
            *("b rekey?", "a rekey!", "a rekey?", "b delete?", "b rekey!"),
        ),
        errors=("b INVALID_KE_PAYLOAD", "a INVALID_KE_PAYLOAD", "b TEMPORARY_FAILURE"),
        kept="b",
    ),
    Case(
        name="two rekeyings cross and one is repeated after the other has deleted",
        steps=(
            *("a: rekey", "b: rekey", "a rekey?", "b rekey?", "a rekey!", "b rekey!"),
            *("b rekey?", "a rekey!", "b delete?", "a delete!", "a rekey?"),
        ),
        errors=("b INVALID_KE_PAYLOAD", "a INVALID_KE_PAYLOAD", "b CHILD_SA_NOT_FOUND"),
        kept="b",
    ),
    Case(
        name="a request comes after the one that crossed it was refused and repeated",
        steps=("a: rekey", "b: rekey", "b rekey?", "a rekey!", "b rekey?", "a rekey?", "b rekey!"),
        errors=("a INVALID_KE_PAYLOAD", "b INVALID_KE_PAYLOAD"),
        kept="b",
    ),
    Case(
        name="a refusal is lost and comes again",
        steps=(
            *("a: rekey", "b: rekey", "a rekey?", "b rekey?", "lost b rekey!"),
            *("a rekey!", "b rekey?", "wait 4", "rest"),
        ),
        errors=("b INVALID_KE_PAYLOAD", "a INVALID_KE_PAYLOAD"),
    ),
)


@pytest.mark.parametrize("lowest", LOWEST)
@pytest.mark.parametrize("first", ["moon", "sun"])
@pytest.mark.parametrize("case", named(WRONG_GUESSES))
def test_wrong_guesses_of_the_method_may_cross_too(
    interleave: Callable[..., Any], case: Case, first: str, lowest: str
) -> None:
    run = interleave(first, lowest, esp=GUESSES["a"])
    (net,) = run.hosts["b"].policy.children
    theirs = tuple(parse_proposal(GUESSES["b"], ProtocolId.ESP) for _ in net.proposals)
    run.hosts["b"].ike_sa.children[0].policy = replace(net, proposals=theirs)
    run.watched = ("a", "b")
    run.play(*case.steps)
    run.settle()
    run.assert_up("net")
    run.assert_undisturbed()
    assert tuple(run.errors) == case.errors
    wanted = KEPT[lowest] if case.kept == "winner" else case.kept
    (child,) = run.hosts["a"].ike_sa.children
    assert child.suite.endswith("ecp256")
    if wanted:
        assert run.kept_by(child.nonces) == wanted


@pytest.mark.parametrize(("first", "lowest", "kind"), FEWER)
@pytest.mark.parametrize("case", named(DELETIONS))
def test_with_its_last_child_sa_a_tunnel_is_gone_at_both_ends(
    interleave: Callable[..., Any], case: Case, first: str, lowest: str, kind: str
) -> None:
    esp, window = ESP[kind]
    run = interleave(first, lowest, esp=esp, window=window)
    run.play(*case.steps)
    run.settle(EXPIRY_SECONDS)
    run.pair.assert_forgotten()


CREATIONS = (
    Case(
        name="one creation by itself",
        steps=("a: create", "a create?", "b create!"),
        kept="a",
    ),
    Case(
        name="an answer is lost",
        steps=("a: create", "a create?", "lost b create!", "wait 4", "a create?", "b create!"),
        kept="a",
    ),
    Case(
        name="a packet meets what is just being made",
        steps=("a: create", "a: acquire", "a create?", "a: acquire", "b create!", "a: acquire"),
        kept="a",
    ),
    Case(
        name="a packet at the other end meets what was just made",
        steps=("a: create", "a create?", "b: acquire", "b create!", "b: acquire"),
        kept="a",
    ),
    Case(
        name="two creations of one child cross and so do their answers",
        steps=("a: acquire", "b: acquire", "a create?", "b create?", "a create!", "b create!"),
        kept="winner",
    ),
    Case(
        name="two creations of one child cross and one answer comes before the other request",
        steps=("a: acquire", "b: acquire", "a create?", "b create!", "b create?", "a create!"),
    ),
    Case(
        name="two creations of one child cross and one request is lost",
        steps=("a: acquire", "b: acquire", "lost a create?", "b create?", "a create!", "wait 4"),
    ),
    Case(
        name="two creations of one child cross and one answer is lost",
        steps=("a: acquire", "b: acquire", "a create?", "b create?", "lost a create!", "wait 4"),
        kept="winner",
    ),
    Case(
        name="a creation crosses the rekeying of another child",
        steps=("a: create", "b: rekey net", "a create?", "b rekey?", "a rekey!", "b create!"),
        kept="a",
    ),
    Case(
        name="a creation and the rekeying of what it makes",
        steps=("a: create", "a create?", "b: rekey", "b rekey?", "b create!", "rest"),
    ),
    Case(
        name="what was just made is rekeyed by its responder before its initiator knows of it",
        steps=("a: create", "a create?", "b: rekey newest", "b rekey?", "b create!", "a rekey!"),
        errors=("a TEMPORARY_FAILURE",),
    ),
)


@pytest.mark.parametrize(("first", "lowest", "kind"), FEWER)
@pytest.mark.parametrize("case", named(CREATIONS))
def test_a_child_is_made_once(
    interleave: Callable[..., Any], case: Case, first: str, lowest: str, kind: str
) -> None:
    esp, window = ESP[kind]
    run = interleave(first, lowest, esp=esp, window=window, further=1)
    run.play(*case.steps)
    run.settle()
    run.assert_up("net", "voice")
    run.assert_not_closed()
    wanted = KEPT[lowest] if case.kept == "winner" else case.kept
    (voice,) = (c for c in run.hosts["a"].ike_sa.children if c.policy.name == "voice")
    if wanted:
        assert run.kept_by(voice.nonces) == wanted


@pytest.mark.parametrize("first", ["moon", "sun"])
def test_what_is_deleted_before_its_initiator_knows_of_it_is_not_there(
    interleave: Callable[..., Any], first: str
) -> None:
    run = interleave(first, further=1)
    run.play("a: create", "a create?", "b: delete newest", "b delete?", "b create!")
    run.settle(OVERLAP_SECONDS + 1)
    run.assert_up("net")
    run.assert_not_closed()
