"""NULL authentication in policy files: asked for by name, and beside nothing else of that end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.policy.test_pairing import OURS, THEIRS
from xfrmpy.ipsec.identity import NOBODY, Identity
from xfrmpy.policy.changes import Impact, compare_policies
from xfrmpy.policy.foreign.exporting import other_end
from xfrmpy.policy.foreign.rendering import Unrenderable
from xfrmpy.policy.load import LoadedPolicy
from xfrmpy.policy.model import TunnelPolicy
from xfrmpy.policy.pairing import pair_policies

Load = Callable[..., LoadedPolicy]
Lines = Callable[[LoadedPolicy], list[str]]

TUNNEL = "peer: 192.0.2.1\nlocal: 10.1.0.0/16\nremote: 10.2.0.0/16\n"


def loaded(load: Load, auth: str, more: str = "") -> LoadedPolicy:
    return load(**{"office.yaml": f"{TUNNEL}auth: {auth}\n{more}"})


@pytest.mark.parametrize(
    ("auth", "ours", "theirs"),
    [
        ("{local: {null_auth: yes}, remote: {null_auth: yes}}", True, True),
        ("{local: {null_auth: yes}, psk: secret:key}", True, False),
        ("{remote: {null_auth: yes}, psk: secret:key}", False, True),
        ("{remote: {null_auth: no}, psk: secret:key}", False, False),
    ],
)
def test_each_end_may_be_asked_for_nothing(load: Load, auth: str, ours: bool, theirs: bool) -> None:
    found = loaded(load, auth)
    assert found.errors == ()
    (policy,) = found.tunnels
    assert (policy.local_null, policy.remote_null) == (ours, theirs)
    assert (policy.local_id == NOBODY, policy.remote_id == NOBODY) == (ours, theirs)
    assert policy.tells_apart is not (ours or theirs)


def test_any_peer_may_call_without_a_name(load: Load) -> None:
    text = TUNNEL.replace(
        "peer: 192.0.2.1\n", "auth: {psk: secret:key, remote: {null_auth: yes}}\n"
    )
    (policy,) = load(**{"office.yaml": text}).tunnels
    assert policy.peers == ()
    assert policy.remote_id == NOBODY


NOTHING = "null_auth: yes"


@pytest.mark.parametrize(
    ("auth", "more", "message"),
    [
        (f"local: {{{NOTHING}}}", "", "XF1005: 'psk' is missing"),
        (
            f"local: {{{NOTHING}}}, remote: {{{NOTHING}}}, psk: secret:key",
            "",
            "'psk' proves nothing",
        ),
        (f"local: {{{NOTHING}, id: a.example}}, psk: secret:key", "", "XF1004: 'id' stands beside"),
        (f"remote: {{{NOTHING}, ca: root}}, psk: secret:key", "", "XF1004: 'ca' stands beside"),
        (
            f"local: {{{NOTHING}}}, psk: secret:key",
            "unique: keep\n",
            "5:1: XF1004: 'unique' has no",
        ),
        (f"local: {{eap: {{identity: a}}}}, remote: {{{NOTHING}}}", "", "does not go with 'eap'"),
        ("local: {null_auth: maybe}, psk: secret:key", "", "XF1004: 'null_auth' must be yes or no"),
        ("local: {id: '%null'}, psk: secret:key", "", "could be anybody's"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(
    load: Load, lines: Lines, auth: str, more: str, message: str
) -> None:
    found = lines(loaded(load, f"{{{auth}}}", more))
    assert any(line.startswith("office.yaml:") and message in line for line in found), found


@pytest.mark.parametrize("key", ["local", "remote"])
def test_a_change_is_a_new_authentication(key: str) -> None:
    changes: dict[str, Any] = {f"{key}_null": True}
    after = replace(OURS, **changes)
    (change,) = compare_policies([OURS], [after])
    assert change.impact is Impact.REAUTH
    assert [d.key for d in change.differences] == [f"auth.{key}.null_auth"]


def disagreements(ours: TunnelPolicy, theirs: TunnelPolicy) -> list[str]:
    return [d.message for p in pair_policies([ours], [theirs]) for d in p.disagreements]


def test_two_ends_agree_on_who_proves_nothing_or_are_told() -> None:
    ours = replace(OURS, local_null=True, local_id=NOBODY)
    theirs = replace(THEIRS, remote_null=True, remote_id=NOBODY)
    assert disagreements(ours, theirs) == []
    named = replace(THEIRS, remote_id=NOBODY)
    assert disagreements(ours, named) == ["we prove by one method, and another counts"]


def test_it_is_not_carried_over_to_other_daemons() -> None:
    with pytest.raises(Unrenderable, match="null_auth"):
        other_end(replace(OURS, remote_null=True, remote_id=NOBODY), "192.0.2.1")


def test_nobody_looks_like_no_identity_that_can_be_written() -> None:
    with pytest.raises(ValueError, match="null_auth"):
        Identity.parse(str(NOBODY))
    assert str(Identity.parse(f"@{NOBODY}")) == f"@{NOBODY}"
