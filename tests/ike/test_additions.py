"""What a Child SA wants in force goes in at once: one message causes one question to a datapath."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from xfrmpy.ike.outputs import AddPolicy, AddSa, SendDatagram
from xfrmpy.ipsec.sad import Direction, SadEntry
from xfrmpy.ipsec.spd import SpdEntry


@pytest.fixture
def asked(pair: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """How many entries each end's datapath was given at a time."""
    counts: dict[str, list[int]] = {"moon": [], "sun": []}
    for host in (pair.moon, pair.sun):

        def add(
            entries: Sequence[SadEntry | SpdEntry],
            counts: list[int] = counts[host.name],
            put: Any = host.datapath.add,
        ) -> None:
            counts.append(len(entries))
            put(entries)

        monkeypatch.setattr(host.datapath, "add", add)
    return counts


def test_a_handshake_is_one_question_to_each_datapath(
    pair: Any, asked: dict[str, list[int]]
) -> None:
    pair.up()
    pair.assert_up()
    assert asked == {"moon": [5], "sun": [5]}


def test_the_answer_leaves_behind_what_it_lets_the_peer_use(pair: Any) -> None:
    pair.up()
    kinds = [type(output) for output in pair.sun.outputs]
    inbound = next(
        place
        for place, output in enumerate(pair.sun.outputs)
        if isinstance(output, AddSa) and output.entry.direction is Direction.IN
    )
    last_answer = len(kinds) - 1 - kinds[::-1].index(SendDatagram)
    assert inbound < kinds.index(AddPolicy) < last_answer


def test_a_rekeying_is_one_question_too(pair: Any, asked: dict[str, list[int]]) -> None:
    pair.up()
    for counts in asked.values():
        counts.clear()
    pair.moon.endpoint.rekey_child_sas("tunnel-a", pair.now)
    pair.run(1)
    assert asked["moon"] == [2]
    assert asked["sun"] == [1, 1], "the outbound SA when the initiator can receive on it"


def test_outputs_of_two_child_sas_are_not_mixed(pair: Any) -> None:
    pair.up()
    first = next(output for output in pair.moon.outputs if isinstance(output, AddSa))
    other = AddSa(owner=first.owner + 1, tunnel="tunnel-a", child="net", entry=first.entry)
    for output in (first, first, other, first):
        pair.moon.endpoint._core.emit(output)
    taken = pair.moon.endpoint.next_output()
    assert pair.moon.endpoint.next_additions(taken) == [first]
    assert pair.moon.endpoint.next_additions(taken) == []
    assert pair.moon.endpoint.next_output() is other
