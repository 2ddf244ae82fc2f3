"""`auth.then` in policy files: further rounds of authentication, and what must not stand there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from tests.keypairs import key_pair
from tests.policy.test_eap import is_told, only
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.ipsec.identity import Identity
from xfrmpy.policy.changes import Impact, compare_policies
from xfrmpy.policy.load import LoadedPolicy
from xfrmpy.policy.model import EapAcceptance, EapMethod, EapUsers, FurtherRound, TunnelPolicy
from xfrmpy.policy.pairing import pair_policies

Load = Callable[..., LoadedPolicy]
Lines = Callable[[LoadedPolicy], list[str]]

TEXT = """\
peer: vpn.example.org
auth:
  psk: secret:key
  local: {id: laptop.example.net}
  remote: {id: vpn.example.org}
  then: THEN
local: 10.1.0.0/16
remote: 10.2.0.0/16
"""
GATEWAY = """\
auth:
  psk: secret:key
  local: {id: vpn.example.org}
  remote: {id: laptop.example.net}
  then: THEN
local: 10.2.0.0/16
remote: 10.1.0.0/16
"""
USER = "{eap: {identity: carol, password: secret:carol}}"
USERS = "{eap: {users: secret:users}}"
OURS = "{key: secret:two}"


def loaded(load: Load, then: str, text: str = TEXT, more: str = "") -> LoadedPolicy:
    files: dict[str, Any] = {
        "../secrets/carol": "correct horse\n",
        "../secrets/users": "carol: correct horse\n",
        "../secrets/two": key_pair(KeyKind.ECDSA_P256).pem(),
    }
    return load(**{**files, "office.yaml": text.replace("THEN", then) + more})


def test_a_user_behind_the_key_of_a_host(load: Load) -> None:
    policy = only(loaded(load, f"{{local: {USER}}}"))
    (further,) = policy.rounds
    assert further.we_prove
    assert not further.they_prove
    assert further.local_eap is not None
    assert further.local_eap.identity == "carol"
    assert further.local_id == Identity.parse("laptop.example.net")
    assert policy.credential == further.local_eap
    assert policy.local_eap is None
    assert policy.shared_key is not None
    assert policy.in_round(1).shared_key is None


def test_a_gateway_asks_users_behind_the_key_of_their_host(load: Load) -> None:
    policy = only(loaded(load, f"{{remote: {USERS}}}", GATEWAY))
    (further,) = policy.rounds
    assert (further.we_prove, further.they_prove) == (False, True)
    assert policy.acceptance == further.remote_eap
    assert policy.remote_id == Identity.parse("laptop.example.net")
    assert further.remote_id is None


def test_rounds_are_a_list_in_order(load: Load) -> None:
    policy = only(loaded(load, f"[{{local: {OURS}}}, {{local: {USER}}}]"))
    first, second = policy.rounds
    assert first.local_key is not None
    assert first.local_key.public == key_pair(KeyKind.ECDSA_P256).public.spki
    assert first.local_id == Identity.parse("laptop.example.net")
    assert second.local_eap is not None
    assert [policy.we_prove(n) for n in range(4)] == [True, True, True, False]
    assert [policy.they_prove(n) for n in range(3)] == [True, False, False]


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("{}", "6: XF1005: a round of 'then' needs 'local' or 'remote'"),
        ("{local: {id: a.example}}", "6: XF1005: 'local' has nothing to prove itself by"),
        ("{remote: {id: a.example}}", "6: XF1005: 'remote' has nothing to prove itself by"),
        ("{local: {null_auth: yes}}", "6: XF1004: 'null_auth' does not go with 'then'"),
        (f"[{{local: {USER}}}, {{local: {OURS}}}]", "6: XF1004: 'eap' is the last proof"),
        (
            "{local: {eap: {identity: c, password: secret:carol, alone: yes}}}",
            "6: XF1004: 'alone' has no meaning in 'then'",
        ),
        (
            f"{{local: {{key: secret:two, eap: {USER[6:-1]}}}}}",
            "6: XF1004: 'eap' and a key exclude each other",
        ),
        ("{local: {rsa: pkcs1}}", "6: XF1004: 'rsa' has no meaning without a 'key'"),
        ("{local: {key: secret:none}}", "6: XF1008: the secret 'none' is not there"),
        ("{psk: secret:key}", "6: XF1002: unknown key 'psk'"),
    ],
)
def test_what_makes_no_sense_is_told_where_it_stands(
    load: Load, lines: Lines, then: str, message: str
) -> None:
    found = lines(loaded(load, then))
    assert is_told(message, found), found


def test_an_error_in_the_second_of_a_list_is_told_at_its_line(load: Load, lines: Lines) -> None:
    then = f"\n    - {{local: {OURS}}}\n    - {{local: {{key: secret:none}}}}"
    assert is_told("8: XF1008: the secret 'none' is not there", lines(loaded(load, then)))


def test_eap_in_the_first_round_is_the_last(load: Load, lines: Lines) -> None:
    text = TEXT.replace("{id: laptop.example.net}", USER)
    assert is_told("4: XF1004: 'eap' is the last", lines(loaded(load, f"{{local: {OURS}}}", text)))


def test_a_user_is_asked_again_and_so_there_are_no_tickets(load: Load, lines: Lines) -> None:
    told = lines(loaded(load, f"{{local: {USER}}}", more="resumption: yes\n"))
    assert is_told("9: XF1004: 'resumption' would let a user in", told)


def test_other_users_touch_no_tunnel_and_another_round_does(load: Load) -> None:
    policy = only(loaded(load, f"{{remote: {USERS}}}", GATEWAY))
    (further,) = policy.rounds
    assert further.remote_eap is not None
    users = EapUsers(passwords=((b"dave", "x"),), origin="elsewhere")
    changed = replace(further, remote_eap=replace(further.remote_eap, users=users))
    assert impact(policy, replace(policy, rounds=(changed,))) is Impact.HOT
    assert impact(policy, replace(policy, rounds=())) is Impact.REAUTH
    named = replace(further, local_id=Identity.parse("other.example"))
    assert impact(policy, replace(policy, rounds=(named,))) is Impact.REAUTH


def impact(before: TunnelPolicy, after: TunnelPolicy) -> Impact:
    (change,) = compare_policies([before], [after])
    assert all(d.before != d.after for d in change.differences)
    return change.impact


def test_ends_with_other_rounds_disagree(load: Load) -> None:
    ours = only(loaded(load, f"{{local: {USER}}}"))
    asked = FurtherRound(remote_eap=EapAcceptance(methods=(EapMethod.MSCHAPV2,)))
    theirs = replace(
        ours,
        peers=(),
        local_id=ours.remote_id,
        remote_id=ours.local_id,
        rounds=(asked,),
    )
    codes = {d.code for d in told(ours, theirs)}
    assert "XF2057" not in codes
    assert "XF2057" in {d.code for d in told(ours, replace(theirs, rounds=()))}
    assert "XF2057" in {d.code for d in told(replace(ours, rounds=()), theirs)}


def told(ours: TunnelPolicy, theirs: TunnelPolicy) -> list[Any]:
    return [d for pairing in pair_policies([ours], [theirs]) for d in pairing.disagreements]
