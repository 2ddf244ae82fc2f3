"""What a failure shows when there is a lot to show."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest

from xfrmpy.ike.evidence import MOST_SHOWN, listed
from xfrmpy.ike.outputs import RequestRefused
from xfrmpy.ipsec.identity import Identity


def test_all_of_a_few_values_are_shown() -> None:
    assert listed([]) == ""
    assert listed(["one", 2]) == "one, 2"
    assert listed(range(MOST_SHOWN)).endswith(f", {MOST_SHOWN - 1}")


def test_of_many_values_only_the_first_are_looked_at() -> None:
    values = count()
    assert listed(values).endswith(f", {MOST_SHOWN - 1}, and more")
    assert next(values) == MOST_SHOWN + 1


@pytest.mark.parametrize("code", ["XF2007", "XF2009"])
def test_who_is_refused_by_a_gateway_of_many_tunnels_makes_no_long_report(
    make_pair: Any, make_policy: Any, make_mirror: Any, add_tunnels: Any, code: str
) -> None:
    pair = make_pair(make_policy(here="mars"), make_mirror(make_policy()))
    if code == "XF2009":
        pair.sun.endpoint.set_peer_addresses("tunnel-a", ())
    add_tunnels(pair.sun, 500)
    pair.up()
    (refused,) = pair.sun.reports(RequestRefused)
    assert refused.failure.code == code
    assert all(len(text) < 30 * MOST_SHOWN for _, text in refused.failure.evidence)
    assert any(text.endswith("and more") for _, text in refused.failure.evidence)


def test_the_identity_that_was_meant_is_found_among_many_tunnels(
    pair: Any, add_tunnels: Any
) -> None:
    add_tunnels(pair.sun, 500)
    pair.up()
    pair.assert_up()
    assert pair.sun.views[0].remote_id == Identity.parse("moon")
