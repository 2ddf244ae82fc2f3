"""Padding that hides sizes: not where the peer says that it does not accept it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.ike import child_sa
from xfrmpy.ipsec.sad import Direction
from xfrmpy.registry import NotifyType
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload

REFUSAL = NotifyPayload(type=NotifyType.ESP_TFC_PADDING_NOT_SUPPORTED)


def padding(policy: Any) -> Any:
    return replace(policy, children=tuple(replace(c, tfc=1280) for c in policy.children))


@pytest.mark.parametrize("refusing", ["", "moon", "sun"])
def test_each_end_pads_what_it_sends_unless_the_other_refuses(
    make_pair: Any,
    make_policy: Any,
    make_mirror: Any,
    monkeypatch: pytest.MonkeyPatch,
    refusing: str,
) -> None:
    """RFC 7296 section 1.3.1: "If included in only one of the messages, TFC padding can still be
    sent in the other direction." """
    method = {"moon": "offer", "sun": "answer"}.get(refusing)
    if method is not None:
        plain = getattr(child_sa.ChildSa, method)

        def with_refusal(self: child_sa.ChildSa) -> tuple[OpenPayload, ...]:
            return (*plain(self), REFUSAL)

        monkeypatch.setattr(child_sa.ChildSa, method, with_refusal)
    policy = padding(make_policy())
    pair = make_pair(policy, padding(make_mirror(make_policy())))
    pair.initiate()
    pair.deliver()
    for name, host in (("moon", pair.moon), ("sun", pair.sun)):
        sizes = {entry.direction: entry.tfc for entry in host.datapath.dump().sad}
        is_refused = refusing not in ("", name)
        assert sizes == {Direction.IN: 0, Direction.OUT: 0 if is_refused else 1280}
