"""IKE SAs: every interleaving of rekeying, deletion and reauthentication, among themselves and with
what happens to Child SAs, step by step.

Read RFC 7296 sections 2.8.2, 2.8.3 and 2.25.2, and `interleaving.py` for the sentences. Each case
runs with either end as `a`, and with each of the four nonces the lowest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from tests.ike.interleaving import EXPIRY_SECONDS, KEPT, LOWEST, Case, named
from xfrmpy.ike.lifetimes import RETRY_LATEST_SECONDS
from xfrmpy.ike.outputs import ChildSaRekeyed, IkeSaRekeyed
from xfrmpy.ipsec.proposals import parse_proposal
from xfrmpy.registry import ProtocolId

CROSSING = ("a: rekey ike", "b: rekey ike")

ANNOUNCED = ("a check?", "b check!")
"""Who has made an IKE SA tells its window on it first."""

REKEYINGS = (
    Case(
        name="one rekeying by itself",
        steps=("a: rekey ike", "a rekey-ike?", "b rekey-ike!", "a end?", "b end!"),
        kept="a",
    ),
    Case(
        name="two rekeyings cross and so do their answers",
        steps=(*CROSSING, "a rekey-ike?", "b rekey-ike?", "a rekey-ike!", "b rekey-ike!"),
        kept="winner",
    ),
    Case(
        name="one end has its answer before it is asked itself",
        steps=(*CROSSING, "a rekey-ike?", "b rekey-ike!", "b rekey-ike?"),
        errors=("a TEMPORARY_FAILURE",),
        kept="a",
    ),
    Case(
        name="an answer is delayed until the other end has deleted what it does not want",
        steps=(*CROSSING, "a rekey-ike?", "b rekey-ike?", "a rekey-ike!", "b end?", "b rekey-ike!"),
        kept="winner",
    ),
    Case(
        name="an answer is delayed until the other end knows that its deletion was heard",
        steps=(
            *(*CROSSING, "a rekey-ike?", "b rekey-ike?", "a rekey-ike!", "b end?", "a end!"),
            *("wait 1", "b rekey-ike!"),
        ),
        kept="winner",
    ),
    Case(
        name="an answer is lost until the other end knows that its deletion was heard",
        steps=(
            *(*CROSSING, "a rekey-ike?", "b rekey-ike?", "a rekey-ike!", "lost b rekey-ike!"),
            *("b end?", "a end!", "wait 4", "rest"),
        ),
        kept="winner",
    ),
    Case(
        name="a request never arrives before the other end has deleted",
        steps=(*CROSSING, "lost a rekey-ike?", "b rekey-ike?", "a rekey-ike!", "b end?", "a end!"),
        kept="b",
    ),
    Case(
        name="a request arrives after the other end has deleted",
        steps=(*CROSSING, "b rekey-ike?", "a rekey-ike!", "b end?", "a end!", "a rekey-ike?"),
        kept="b",
    ),
    Case(
        name="a request is delayed until the other end deletes and the deletion comes first",
        steps=(*CROSSING, "b rekey-ike?", "a rekey-ike!", "a rekey-ike?", "b end?", "b rekey-ike!"),
        errors=("b TEMPORARY_FAILURE",),
        kept="b",
    ),
    Case(
        name="a request is delayed until the other end deletes and its refusal comes first",
        steps=(*CROSSING, "b rekey-ike?", "a rekey-ike!", "a rekey-ike?", "b rekey-ike!", "b end?"),
        errors=("b TEMPORARY_FAILURE",),
        kept="b",
    ),
    Case(
        name="an answer is lost and the request is answered again",
        steps=("a: rekey ike", "a rekey-ike?", "lost b rekey-ike!", "wait 4", "a rekey-ike?"),
        kept="a",
    ),
    Case(
        name="one answer of two crossing rekeyings is lost",
        steps=(*CROSSING, "a rekey-ike?", "b rekey-ike?", "lost b rekey-ike!", "rest", "wait 4"),
        kept="winner",
    ),
    Case(
        name="both answers of two crossing rekeyings are lost",
        steps=(
            *(*CROSSING, "a rekey-ike?", "b rekey-ike?", "lost a rekey-ike!", "lost b rekey-ike!"),
            "wait 4",
        ),
        kept="winner",
    ),
    Case(
        name="every request of two crossing rekeyings comes twice",
        steps=(
            *(*CROSSING, "again a rekey-ike?", "again b rekey-ike?", "a rekey-ike?"),
            *("b rekey-ike?", "a rekey-ike!", "b rekey-ike!"),
        ),
        kept="winner",
    ),
    Case(
        name="the deletion is lost and comes again",
        steps=("a: rekey ike", "a rekey-ike?", "b rekey-ike!", "lost a end?", "wait 4", "a end?"),
        kept="a",
    ),
    Case(
        name="the answer to the deletion is lost for ever",
        steps=(
            *("a: rekey ike", "a rekey-ike?", "b rekey-ike!", "a end?", "lost b end!"),
            *("wait 4", "lost a end?", "wait 40"),
        ),
        kept="a",
    ),
    Case(
        name="the deletions of what lost and of the old one cross",
        steps=(
            *(*CROSSING, "a rekey-ike?", "b rekey-ike?", "b rekey-ike!", "a rekey-ike!"),
            *("a end?", "b end?", "a end!", "b end!"),
        ),
        kept="winner",
    ),
    Case(
        name="the deletions of what lost and of the old one are lost",
        steps=(
            *(*CROSSING, "a rekey-ike?", "b rekey-ike?", "b rekey-ike!", "a rekey-ike!"),
            *("lost a end?", "lost b end?", "wait 4", "rest"),
        ),
        kept="winner",
    ),
    Case(
        name="a third generation is made before the first is deleted",
        steps=(
            *("a: rekey ike", "a rekey-ike?", "b rekey-ike!", *ANNOUNCED, "a: rekey ike"),
            "a rekey-ike?",
        ),
        kept="a",
    ),
    Case(
        name="the other end makes the third generation before the first is deleted",
        steps=("a: rekey ike", "a rekey-ike?", "b: rekey ike", "b rekey-ike!", "b rekey-ike?"),
        kept="b",
    ),
    Case(
        name="a request on the new IKE SA overtakes the answer that makes it",
        steps=("a: rekey ike", "a rekey-ike?", "b: rekey ike", "b rekey-ike?", "b rekey-ike!"),
    ),
    Case(
        name="two rekeyings of the second generation cross the deletion of the first",
        steps=(
            *("a: rekey ike", "a rekey-ike?", "b rekey-ike!", *ANNOUNCED, *CROSSING),
            *("a rekey-ike?", "b rekey-ike?", "a end?", "a rekey-ike!", "b rekey-ike!"),
        ),
        kept="winner",
    ),
)

VARIANTS = [
    pytest.param(first, lowest, id=f"{first}_{lowest.replace(' ', '_')}")
    for first, lowest in product(("moon", "sun"), LOWEST)
]


def _check_kept(run: Any, case: Case, lowest: str) -> None:
    wanted = KEPT[lowest] if case.kept == "winner" else case.kept
    if wanted:
        assert run.kept_by(run.hosts["a"].ike_sa.nonces) == wanted


@pytest.mark.parametrize(("first", "lowest"), VARIANTS)
@pytest.mark.parametrize("case", named(REKEYINGS))
def test_a_rekeying_leaves_one_ike_sa_with_the_same_child_sas(
    interleave: Callable[..., Any], case: Case, first: str, lowest: str
) -> None:
    run = interleave(first, lowest)
    before = [host.datapath.dump() for host in run.hosts.values()]
    run.watched = ("a", "b")
    run.play(*case.steps)
    run.settle()
    run.assert_up("net")
    run.assert_undisturbed()
    assert [host.datapath.dump() for host in run.hosts.values()] == before
    assert tuple(run.errors) == case.errors
    _check_kept(run, case, lowest)


GUESSES = {"a": "ecp384-ecp256", "b": "x25519-ecp256"}
"""What the ends have for the next IKE SA: each begins with what only it has."""

WRONG_GUESSES = (
    Case(
        name="one rekeying by itself",
        steps=("a: rekey ike", "a rekey-ike?", "b rekey-ike!", "a rekey-ike?", "b rekey-ike!"),
        errors=("b INVALID_KE_PAYLOAD",),
        kept="a",
    ),
    Case(
        name="two rekeyings cross and are repeated",
        steps=(
            *(*CROSSING, "a rekey-ike?", "b rekey-ike?", "a rekey-ike!", "b rekey-ike!"),
            *("a rekey-ike?", "b rekey-ike?", "a rekey-ike!", "b rekey-ike!"),
        ),
        errors=("b INVALID_KE_PAYLOAD", "a INVALID_KE_PAYLOAD"),
        kept="winner",
    ),
    Case(
        name="two rekeyings cross and one is repeated after the other has begun to delete",
        steps=(
            *(*CROSSING, "a rekey-ike?", "b rekey-ike?", "a rekey-ike!", "b rekey-ike!"),
            *("b rekey-ike?", "a rekey-ike!", "a rekey-ike?", "b end?"),
        ),
        errors=("b INVALID_KE_PAYLOAD", "a INVALID_KE_PAYLOAD", "b TEMPORARY_FAILURE"),
        kept="b",
    ),
    Case(
        name="two rekeyings cross and one is repeated after the other has deleted",
        steps=(
            *(*CROSSING, "a rekey-ike?", "b rekey-ike?", "a rekey-ike!", "b rekey-ike!"),
            *("b rekey-ike?", "a rekey-ike!", "b end?", "a end!", "a rekey-ike?"),
        ),
        errors=("b INVALID_KE_PAYLOAD", "a INVALID_KE_PAYLOAD"),
        kept="b",
    ),
    Case(
        name="a request comes after the one that crossed it was refused and repeated",
        steps=(
            *(*CROSSING, "b rekey-ike?", "a rekey-ike!", "b rekey-ike?", "a rekey-ike?"),
            *("b rekey-ike!", "a rekey-ike!"),
        ),
        errors=("a INVALID_KE_PAYLOAD", "b INVALID_KE_PAYLOAD"),
        kept="b",
    ),
)


@pytest.mark.parametrize(("first", "lowest"), VARIANTS)
@pytest.mark.parametrize("case", named(WRONG_GUESSES))
def test_wrong_guesses_of_the_method_may_cross_too(
    interleave: Callable[..., Any], case: Case, first: str, lowest: str
) -> None:
    run = interleave(first, lowest)
    for end, host in run.hosts.items():
        text = f"aes128gcm16-prfsha256-{GUESSES[end]}"
        theirs = (parse_proposal(text, ProtocolId.IKE),)
        host.ike_sa.tunnel = replace(host.policy, proposals=theirs)
    run.watched = ("a", "b")
    run.play(*case.steps)
    run.settle()
    run.assert_up("net")
    run.assert_undisturbed()
    assert tuple(run.errors) == case.errors
    assert str(run.hosts["a"].ike_sa.suite).endswith("ecp256")
    _check_kept(run, case, lowest)


WITH_CHILDREN = (
    Case(
        name="a rekeying of the Child SA and both are refused",
        steps=("a: rekey net", "b: rekey ike", "a rekey?", "b rekey-ike?"),
        errors=("b TEMPORARY_FAILURE", "a TEMPORARY_FAILURE"),
    ),
    Case(
        name="a rekeying of the Child SA whose request is delayed",
        steps=("a: rekey net", "b: rekey ike", "b rekey-ike?", "a rekey-ike!", "a rekey?"),
        errors=("a TEMPORARY_FAILURE",),
    ),
    Case(
        name="a rekeying of the Child SA that refuses and is lost",
        steps=("a: rekey net", "b: rekey ike", "lost a rekey?", "b rekey-ike?", "wait 4"),
        errors=("a TEMPORARY_FAILURE",),
    ),
    Case(
        name="a rekeying of the Child SA and the request for the IKE SA is delayed",
        steps=("a: rekey net", "b: rekey ike", "a rekey?", "b rekey!", "b rekey-ike?"),
        errors=("b TEMPORARY_FAILURE",),
    ),
    Case(
        name="the deletion of what was replaced",
        steps=("a: rekey net", "a rekey?", "b: rekey ike", "b rekey!", "b rekey-ike?", "a delete?"),
        errors=("a TEMPORARY_FAILURE",),
    ),
    Case(
        name="the deletion of what was replaced and the answer that brings it about",
        steps=("a: rekey net", "a rekey?", "b: rekey ike", "b rekey-ike?", "b rekey!", "a delete?"),
        errors=("a TEMPORARY_FAILURE",),
    ),
    Case(
        name="a rekeying of the Child SA by both",
        steps=(
            *("a: rekey net", "b: rekey net", "a rekey?", "a: rekey ike", "b rekey?", "a rekey!"),
            *("b: rekey ike", "b rekey!", "rest"),
        ),
    ),
    Case(
        name="a creation and both are refused",
        steps=("a: create", "b: rekey ike", "a create?", "b rekey-ike?"),
        errors=("b TEMPORARY_FAILURE", "a TEMPORARY_FAILURE"),
    ),
    Case(
        name="a creation whose request is delayed",
        steps=("a: create", "b: rekey ike", "b rekey-ike?", "a rekey-ike!", "a create?"),
        errors=("a TEMPORARY_FAILURE",),
    ),
    Case(
        name="a creation that was answered before",
        steps=("a: create", "a create?", "b: rekey ike", "b rekey-ike?", "b create!"),
        errors=("a TEMPORARY_FAILURE",),
    ),
    Case(
        name="a creation by the other end after it has answered",
        steps=("a: rekey ike", "a rekey-ike?", "b: acquire", "b create?", "b rekey-ike!"),
    ),
    Case(
        name="a creation by the other end that is told of the deletion first",
        steps=(
            *("a: rekey ike", "a rekey-ike?", "b: acquire", "b rekey-ike!", "a end?"),
            *("b create?", "b end!"),
        ),
    ),
    Case(
        name="a packet that wants a Child SA while we rekey",
        steps=("a: rekey ike", "a: acquire", "a rekey-ike?", "b rekey-ike!", "rest", "a: acquire"),
    ),
    Case(
        name="a packet that wants a Child SA while the peer rekeys",
        steps=("b: rekey ike", "b rekey-ike?", "a: acquire", "a rekey-ike!", "rest"),
    ),
    Case(
        name="a packet that wants a Child SA while both rekey",
        steps=(*CROSSING, "b rekey-ike?", "a: acquire", "a rekey-ike?", "b: acquire"),
    ),
)


@pytest.mark.parametrize(("first", "lowest"), VARIANTS)
@pytest.mark.parametrize("case", named(WITH_CHILDREN))
def test_the_rekeying_of_an_ike_sa_crosses(
    interleave: Callable[..., Any], case: Case, first: str, lowest: str
) -> None:
    further = any("create" in step or "acquire" in step for step in case.steps)
    run = interleave(first, lowest, further=further)
    run.watched = () if further else ("a", "b")
    run.play(*case.steps, "rest")
    assert tuple(run.errors)[: len(case.errors)] == case.errors
    run.settle()
    run.assert_up("net", *(["voice"] if further else []))
    run.assert_not_closed()
    for host in run.hosts.values():
        assert host.reports(IkeSaRekeyed)
        assert bool(host.reports(ChildSaRekeyed)) is not further


DELETIONS = (
    Case(name="one deletion by itself", steps=("a: down", "a end?", "b end!")),
    Case(
        name="two deletions cross",
        steps=("a: down", "b: down", "a end?", "b end?", "a end!", "b end!"),
    ),
    Case(name="two deletions cross and one is lost", steps=("a: down", "b: down", "lost a end?")),
    Case(
        name="two deletions cross and both answers are lost",
        steps=("a: down", "b: down", "a end?", "b end?", "lost a end!", "lost b end!"),
    ),
    Case(
        name="a rekeying of the IKE SA",
        steps=("a: rekey ike", "b: down", "a rekey-ike?", "b end?", "a end!", "b rekey-ike!"),
        errors=("b TEMPORARY_FAILURE",),
    ),
    Case(
        name="a rekeying of the IKE SA that is refused before the deletion comes",
        steps=("a: rekey ike", "b: down", "a rekey-ike?", "b rekey-ike!", "b end?"),
        errors=("b TEMPORARY_FAILURE",),
    ),
    Case(
        name="a rekeying of the IKE SA that is refused and the deletion is lost",
        steps=("a: rekey ike", "b: down", "lost b end?", "a rekey-ike?", "b rekey-ike!", "wait 4"),
        errors=("b TEMPORARY_FAILURE",),
    ),
    Case(
        name="a rekeying of the IKE SA that arrives after it is gone",
        steps=("a: rekey ike", "b: down", "b end?", "a end!", "a rekey-ike?"),
    ),
    Case(
        name="a rekeying of the IKE SA that was answered before",
        steps=("a: rekey ike", "a rekey-ike?", "b: down", "b rekey-ike!", "rest"),
    ),
    Case(
        name="a rekeying of the IKE SA that was answered before and the deletion comes first",
        steps=("a: rekey ike", "a rekey-ike?", "b: down", "b end?", "b rekey-ike!"),
    ),
    Case(
        name="the deletion of what was replaced",
        steps=("a: rekey ike", "a rekey-ike?", "b rekey-ike!", "b: down", "b end?", "a end?"),
    ),
    Case(
        name="two crossing rekeyings of the IKE SA",
        steps=(
            *(*CROSSING, "a rekey-ike?", "b rekey-ike?", "b: down", "a rekey-ike!"),
            *("b rekey-ike!", "rest"),
        ),
    ),
    Case(
        name="a rekeying of the Child SA",
        steps=("a: rekey", "b: down", "a rekey?", "b end?", "a end!", "b rekey!"),
        errors=("b TEMPORARY_FAILURE",),
    ),
    Case(
        name="a rekeying of the Child SA that is refused before the deletion comes",
        steps=("a: rekey", "b: down", "a rekey?", "b rekey!", "b end?"),
        errors=("b TEMPORARY_FAILURE",),
    ),
    Case(
        name="a rekeying of the Child SA that was answered before",
        steps=("a: rekey", "a rekey?", "b: down", "b end?", "b rekey!"),
    ),
    Case(
        name="a deletion of the Child SA and the IKE SA goes first",
        steps=("a: delete", "b: down", "a delete?", "b end?", "a end!", "b delete!"),
    ),
    Case(
        name="a deletion of the Child SA and the Child SA goes first",
        steps=("a: delete", "b: down", "b end?", "a delete?", "b delete!", "a end!"),
    ),
    Case(
        name="a deletion of the Child SA that is lost",
        steps=("a: delete", "b: down", "lost a delete?", "b end?", "wait 4"),
    ),
    Case(
        name="a liveness check",
        steps=("a: check", "b: down", "a check?", "b end?", "b check!"),
    ),
    Case(
        name="a reauthentication before its answer",
        steps=("a: reauthenticate", "b: down", "b end?", "a init?", "b init!", "rest", "b: down"),
    ),
)


@pytest.mark.parametrize(("first", "lowest"), VARIANTS)
@pytest.mark.parametrize("case", named(DELETIONS))
def test_a_deletion_of_the_ike_sa_leaves_nothing_when_it_crosses(
    interleave: Callable[..., Any], case: Case, first: str, lowest: str
) -> None:
    run = interleave(first, lowest)
    run.play(*case.steps)
    run.settle(EXPIRY_SECONDS)
    run.pair.assert_forgotten()
    assert tuple(run.errors) == case.errors


ENDS_WITH_CREATIONS = (
    Case(
        name="by the other end",
        steps=("a: create", "b: down", "a create?", "b end?", "a end!", "b create!"),
        errors=("b TEMPORARY_FAILURE",),
    ),
    Case(
        name="by the other end and the refusal comes first",
        steps=("a: create", "b: down", "a create?", "b create!", "b end?", "a end!"),
        errors=("b TEMPORARY_FAILURE",),
    ),
    Case(
        name="by the other end and the request comes last",
        steps=("a: create", "b: down", "b end?", "a end!", "a create?"),
    ),
    Case(
        name="by the other end that has answered",
        steps=("a: create", "a create?", "b: down", "b end?", "b create!", "a end!"),
    ),
    Case(
        name="by the other end whose answer comes first",
        steps=("a: create", "a create?", "b: down", "b create!", "b end?", "a end!"),
    ),
    Case(
        name="by the same end before the other has answered",
        steps=("a: create", "a: down", "a create?", "b create!", "a end?", "b end!"),
    ),
    Case(
        name="by the same end and the deletion comes first",
        steps=("a: create", "a: down", "a end?", "a create?", "b end!"),
    ),
    Case(
        name="by the same end and the request is lost",
        steps=("a: create", "a: down", "lost a create?", "a end?", "b end!"),
    ),
    Case(
        name="by both ends",
        steps=("a: create", "a: down", "b: down", "b end?", "a create?", "a end?"),
        errors=("b TEMPORARY_FAILURE",),
    ),
    Case(
        name="by the end that a packet meets just then",
        steps=("a: down", "a: acquire", "a end?", "b: acquire", "b end!"),
    ),
    Case(
        name="by the end that the other end has a packet for",
        steps=("a: down", "b: acquire", "b create?", "a end?", "a create!", "b end!"),
        errors=("a TEMPORARY_FAILURE",),
    ),
)


@pytest.mark.parametrize("first", ["moon", "sun"])
@pytest.mark.parametrize("case", named(ENDS_WITH_CREATIONS))
def test_a_child_sa_that_is_being_made_goes_with_its_ike_sa_that_is_deleted(
    interleave: Callable[..., Any], case: Case, first: str
) -> None:
    run = interleave(first, further=1)
    run.play(*case.steps)
    run.settle(EXPIRY_SECONDS)
    run.pair.assert_forgotten()
    assert tuple(run.errors) == case.errors


CREATIONS_AND_DELETIONS = (
    Case(
        name="the deletion of a Child SA crosses the rekeying of the IKE SA",
        steps=("a: delete", "b: rekey ike", "a delete?", "b rekey-ike?", "b delete!"),
        errors=("a TEMPORARY_FAILURE",),
    ),
    Case(
        name="the deletion of a Child SA is delayed until the IKE SA could not be rekeyed",
        steps=("a: delete", "b: rekey ike", "b rekey-ike?", "a rekey-ike!", "a delete?"),
        errors=("a TEMPORARY_FAILURE",),
    ),
    Case(
        name="the deletion of a Child SA is lost and comes again",
        steps=("a: delete", "b: rekey ike", "lost a delete?", "b rekey-ike?", "wait 4"),
        errors=("a TEMPORARY_FAILURE",),
    ),
    Case(
        name="two deletions of a Child SA cross before the IKE SA is rekeyed",
        steps=("a: delete", "b: delete", "a: rekey ike", "a delete?", "b delete?", "a delete!"),
    ),
)


@pytest.mark.parametrize(("first", "lowest"), VARIANTS)
@pytest.mark.parametrize("case", named(CREATIONS_AND_DELETIONS))
def test_what_is_deleted_does_not_move_to_the_new_ike_sa(
    interleave: Callable[..., Any], case: Case, first: str, lowest: str
) -> None:
    run = interleave(first, lowest, further=1)
    run.play("a: create", "rest", *case.steps, "rest", f"wait {RETRY_LATEST_SECONDS}")
    run.settle(30)
    run.assert_up("voice")
    run.assert_not_closed()
    assert tuple(run.errors) == case.errors
    assert all(host.reports(IkeSaRekeyed) for host in run.hosts.values())


REAUTHENTICATIONS = (
    Case(
        name="nothing",
        steps=("a: reauthenticate", "a init?", "b init!", "a auth?", "b auth!"),
    ),
    Case(
        name="one by the other end",
        steps=(
            *("a: reauthenticate", "b: reauthenticate", "a init?", "b init?", "a init!", "b init!"),
            *("a auth?", "b auth?", "a auth!", "b auth!"),
        ),
    ),
    Case(
        name="one by the other end that is behind",
        steps=(
            *("a: reauthenticate", "b: reauthenticate", "a init?", "b init!", "a auth?", "b auth!"),
            *("b init?", "rest"),
        ),
    ),
    Case(
        name="a rekeying of the IKE SA by the other end",
        steps=("a: reauthenticate", "b: rekey ike", "a init?", "b rekey-ike?", "b init!", "rest"),
    ),
    Case(
        name="a rekeying of the IKE SA by the other end that is behind",
        steps=(
            *("a: reauthenticate", "b: rekey ike", "a init?", "b init!", "a auth?", "b auth!"),
            *("b rekey-ike?", "rest"),
        ),
        errors=("a TEMPORARY_FAILURE",),
    ),
    Case(
        name="a rekeying of the IKE SA by the same end",
        steps=("a: reauthenticate", "a: rekey ike", "a init?", "a rekey-ike?", "b init!", "rest"),
    ),
    Case(
        name="a rekeying of the Child SA by the other end",
        steps=("a: reauthenticate", "b: rekey", "a init?", "b rekey?", "b init!", "rest"),
    ),
    Case(
        name="a rekeying of the Child SA by the same end that is behind",
        steps=("a: reauthenticate", "a: rekey", "a init?", "b init!", "a auth?", "b auth!", "rest"),
    ),
    Case(
        name="the loss of its last answer",
        steps=("a: reauthenticate", "a init?", "b init!", "a auth?", "lost b auth!", "wait 4"),
    ),
    Case(
        name="the loss of its first answer",
        steps=("a: reauthenticate", "a init?", "lost b init!", "wait 4", "rest"),
    ),
    Case(
        name="the loss of the deletion of the old one",
        steps=(
            *("a: reauthenticate", "a init?", "b init!", "a auth?", "b auth!", "lost a end?"),
            "wait 4",
        ),
    ),
)


@pytest.mark.parametrize(("first", "lowest"), VARIANTS)
@pytest.mark.parametrize("case", named(REAUTHENTICATIONS))
def test_a_reauthentication_leaves_one_new_ike_sa_when_it_crosses(
    interleave: Callable[..., Any], case: Case, first: str, lowest: str
) -> None:
    run = interleave(first, lowest)
    old = {host.ike_sa.our_spi for host in run.hosts.values()}
    run.play(*case.steps)
    run.settle()
    run.assert_up("net")
    run.assert_not_closed()
    assert tuple(run.errors) == case.errors
    assert not old & {host.ike_sa.our_spi for host in run.hosts.values()}
