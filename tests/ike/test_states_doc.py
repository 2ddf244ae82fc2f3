"""`docs/states.md` is drawn from the tables; `python tests/ike/test_states_doc.py` renews it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from xfrmpy.ike.states import (
    CHILD_SA_TRANSITIONS,
    IKE_SA_TRANSITIONS,
    ChildSaState,
    IkeSaState,
)

PAGE = Path(__file__).parent.parent.parent / "docs" / "states.md"

HEAD = """# States

An IKE SA is three small machines. Message IDs and retransmission are the first one, which has no
states worth drawing: there is a request on its way, or there is none. The other two are drawn here
from the tables in `xfrmpy/ike/states.py`; any other transition is a defect.
"""


def page() -> str:
    return "\n".join(
        [
            HEAD,
            _section("IKE SA", IKE_SA_TRANSITIONS, (IkeSaState.__doc__ or "").strip()),
            _section("Child SA", CHILD_SA_TRANSITIONS, (ChildSaState.__doc__ or "").strip()),
        ]
    )


def _section(title: str, table: Mapping[Any, frozenset[Any]], about: str) -> str:
    first = next(iter(table))
    lines = [f"## {title}", "", about, "", "```mermaid", "stateDiagram-v2"]
    lines.append(f"    [*] --> {first}")
    for state, following in table.items():
        lines += [f"    {state} --> {other}" for other in table if other in following]
        if not following:
            lines.append(f"    {state} --> [*]")
    return "\n".join([*lines, "```", ""])


def test_the_page_of_states_is_drawn_from_the_tables() -> None:
    assert PAGE.read_text() == page()


@pytest.mark.parametrize("table", [IKE_SA_TRANSITIONS, CHILD_SA_TRANSITIONS], ids=["ike", "child"])
def test_every_state_can_be_reached_and_left_for_deletion(
    table: dict[Any, frozenset[Any]],
) -> None:
    states = list(table)
    reached = {states[0]}.union(*table.values())
    assert reached == set(states)
    assert table[states[-1]] == frozenset()
    assert all(states[-1] in table[state] for state in states[:-1])


if __name__ == "__main__":
    PAGE.write_text(page())
