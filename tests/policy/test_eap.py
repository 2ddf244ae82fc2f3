"""EAP in policy files: both ends, what must not stand together, and lists of users."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.keypairs import key_pair, private_key, public_key
from tests.policy.test_pairing import OURS, THEIRS
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.policy.changes import Impact, compare_policies
from xfrmpy.policy.eap import parse_users
from xfrmpy.policy.load import LoadedPolicy, load_policy
from xfrmpy.policy.model import (
    EapAcceptance,
    EapCredential,
    EapMethod,
    EapUsers,
    SharedKey,
    StartMode,
    TunnelPolicy,
)
from xfrmpy.policy.pairing import pair_policies

Load = Callable[..., LoadedPolicy]
Lines = Callable[[LoadedPolicy], list[str]]

USERS = "# those of the office\ncarol: correct horse\n\n  dave@example.org :\tx:y \n"
CLIENT = """\
peer: vpn.example.org
auth:
  psk: secret:key
  local: {eap: EAP}
local: 10.1.0.0/16
remote: 10.2.0.0/16
"""
SERVER = """\
auth:
  local: {id: gw1.example.net, key: secret:gw}
  remote: {eap: EAP}
local: 10.1.0.0/16
remote: 10.2.0.0/16
"""
CAROL = "{identity: carol, password: secret:carol}"
ANYBODY = "{users: secret:users}"


def client(load: Load, eap: str = CAROL, more: str = "", **secrets: str | bytes) -> LoadedPolicy:
    files = {"../secrets/carol": "correct horse\n"} | {
        f"../secrets/{name}": content for name, content in secrets.items()
    }
    return load(**{**files, "office.yaml": CLIENT.replace("EAP", eap) + more})


def server(load: Load, eap: str = ANYBODY, more: str = "", **secrets: str | bytes) -> LoadedPolicy:
    files: dict[str, Any] = {
        "../secrets/users": USERS,
        "../secrets/gw": key_pair(KeyKind.ED25519).pem(),
    } | {f"../secrets/{name}": content for name, content in secrets.items()}
    return load(**{**files, "office.yaml": SERVER.replace("EAP", eap) + more})


def is_told(message: str, lines: list[str]) -> bool:
    """Whether an error says so, with the number of the line before it where that is given."""
    number, _, text = message.rpartition(": XF")
    return any(f"XF{text}" in each and f"yaml:{number}" in each for each in lines)


def only(found: LoadedPolicy) -> TunnelPolicy:
    assert (found.errors, found.warnings) == ((), ())
    (policy,) = found.tunnels
    return policy


def test_who_calls_is_a_user_with_a_password(load: Load) -> None:
    policy = only(client(load))
    assert policy.local_eap is not None
    assert policy.local_eap.identity == "carol"
    assert policy.local_eap.password is not None
    assert policy.local_eap.password.octets == b"correct horse"
    assert policy.local_eap.methods == (EapMethod.MSCHAPV2,)
    assert not policy.local_eap.alone
    assert policy.remote_eap is None


def test_the_user_is_who_id_says_where_nothing_else_does(load: Load) -> None:
    text = "{password: secret:carol, method: [md5, gtc]}, id: carol@example.org"
    policy = only(client(load, text))
    assert policy.local_eap is not None
    assert policy.local_eap.identity == "carol@example.org"
    assert policy.local_eap.methods == (EapMethod.MD5, EapMethod.GTC)


def test_a_password_is_text_as_it_is(load: Load) -> None:
    """What begins as hex or base64 is not taken for that."""
    policy = only(client(load, carol="0xyz pässword\r\n"))
    assert policy.local_eap is not None
    assert policy.local_eap.password is not None
    assert policy.local_eap.password.octets.decode() == "0xyz pässword"


def test_a_gateway_knows_users_and_waits_for_them(load: Load) -> None:
    policy = only(server(load))
    assert policy.remote_eap is not None
    assert policy.remote_eap.users is not None
    assert dict(policy.remote_eap.users.passwords) == {
        b"carol": "correct horse",
        b"dave@example.org": "x:y",
    }
    assert (policy.remote_id, policy.peers, policy.start) == (None, (), StartMode.LISTEN)


def test_a_gateway_admits_the_users_that_its_policy_names(load: Load) -> None:
    eap = "{users: secret:users, identities: ['*@example.org', carol], methods: [gtc, md5, gtc]}"
    acceptance = only(server(load, eap)).remote_eap
    assert acceptance is not None
    assert acceptance.methods == (EapMethod.GTC, EapMethod.MD5)
    admitted = [b"carol", b"dave@example.org", b"dave", b"xcarol", b"carol@example.com"]
    assert [acceptance.admits(user) for user in admitted] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("eap", "more", "message"),
    [
        ("{password: secret:carol}", "", "4: XF1005: 'identity' of 'eap' is missing"),
        ("{identity: carol}", "", "4: XF1005: 'password' of 'eap' is missing"),
        (
            "{identity: carol, password: horse}",
            "",
            "4: XF1010: 'password' must not hold the secret itself",
        ),
        (f"{{method: tsl, {CAROL[1:]}", "", "4: XF1004: 'method' must be one of"),
        (f"{{alone: yes, {CAROL[1:]}", "", "4: XF1004: 'alone' would tell anybody the password"),
        (CAROL, "resumption: yes\n", "7: XF1004: 'resumption' would let a user in"),
        (CAROL, "start: listen\n", "4: XF1004: who proves itself by EAP calls"),
        (f"{CAROL}, key: secret:key", "", "4: XF1004: 'eap' and a key exclude each other"),
        (f"{CAROL}, colour: red", "", "4: XF1002: unknown key 'colour'"),
        ('{identity: "a\\tb", password: secret:carol}', "", "4: XF1004: 'identity' must be"),
    ],
)
def test_what_is_wrong_with_our_end_is_told_where_it_stands(
    eap: str, more: str, message: str, load: Load, lines: Lines
) -> None:
    found = client(load, eap, more)
    assert is_told(message, lines(found)), lines(found)
    assert not any("horse" in line for line in lines(found))
    assert found.tunnels == ()


@pytest.mark.parametrize(
    ("eap", "more", "message"),
    [
        ("{methods: md5}", "", "3: XF1005: 'users' of 'eap' is missing"),
        (ANYBODY, "peer: 192.0.2.1\n", "6: XF1004: who proves itself by EAP calls: 'peer'"),
        (f"{ANYBODY}, id: carol", "", "3: XF1004: 'id' says nothing of who proves itself by EAP"),
        (f"{ANYBODY[:-1]}, alone: yes}}", "", "3: XF1004: 'alone' would tell anybody"),
        (ANYBODY, "start: auto\n", "6: XF1004: 'start' cannot be auto without a 'peer'"),
        (ANYBODY, "resumption: yes\n", "6: XF1004: 'resumption' would let a user in"),
        ("{users: secret:nobody}", "", "3: XF1008: the secret 'nobody' is not there"),
        ("{users: [secret:users]}", "", "3: XF1004: 'users' must be a reference"),
    ],
)
def test_what_is_wrong_with_their_end_is_told_where_it_stands(
    eap: str, more: str, message: str, load: Load, lines: Lines
) -> None:
    found = server(load, eap, more)
    assert is_told(message, lines(found)), lines(found)
    assert found.tunnels == ()


def test_of_two_ends_one_asks(load: Load, lines: Lines) -> None:
    text = CLIENT.replace("EAP", CAROL).replace("  psk: secret:key\n", "")
    text = text.replace("local: {eap", f"remote: {{eap: {ANYBODY}}}\n  local: {{eap", 1)
    found = load(**{"../secrets/carol": "x", "../secrets/users": USERS, "office.yaml": text})
    assert any("XF1004: of the two ends one alone" in line for line in lines(found))


@pytest.mark.parametrize(
    ("users", "message"),
    [
        ("carol correct horse\n", "line 1 is not NAME: PASSWORD"),
        ("\n# x\ncarol:\n", "line 3 is not NAME: PASSWORD"),
        (": horse\n", "line 1 is not NAME: PASSWORD"),
        ("carol: horse\nbob: y\ncarol: staple\n", "line 3 has a user who is there already"),
        ("# nobody\n", "it has no users"),
        ("", "it has no users"),
        (b"carol: x\nbob: \xff\n", "line 2 is not UTF-8"),
        ("x" * 254 + ": horse\n", "the name in line 1 is not text of at most 253 octets"),
        ("carol: " + "horse" * 52 + "\n", "the password in line 1 is not 256 characters at most"),
        ("carol: hor\x07se\n", "the password in line 1 is not"),
        ("x: " + "y" * (1 << 20), "it is longer than 1048576 octets"),
    ],
)
def test_a_list_of_users_that_is_wrong_is_told_by_line_and_never_quoted(
    users: str | bytes, message: str, load: Load, lines: Lines
) -> None:
    found = server(load, users=users)
    (line,) = lines(found)
    assert message in line
    assert line.startswith("office.yaml:3:")
    assert "horse" not in line
    assert "staple" not in line


def test_a_list_of_users_that_others_can_read_is_refused(
    load: Load, lines: Lines, tmp_path: Path
) -> None:
    only(server(load))
    (tmp_path / "etc" / "secrets" / "users").chmod(0o644)
    (line,) = lines(load_policy([tmp_path / "etc" / "conf.d"]))
    assert "XF1009" in line
    assert "chmod 600" in line


@given(st.binary(max_size=200))
def test_any_octets_are_a_list_of_users_or_refused_with_a_sentence(data: bytes) -> None:
    try:
        users = parse_users(data)
    except UnicodeError:
        raise
    except ValueError:
        return
    assert users
    assert all(name and password for name, password in users)
    assert len({name for name, _ in users}) == len(users)


def test_another_password_asks_for_another_authentication_and_is_not_shown() -> None:
    key = SharedKey(octets=b"horse", origin="secrets/carol")
    ours = EapCredential(identity="carol", methods=(EapMethod.MD5,), password=key)
    before = replace(OURS, local_eap=ours)
    after = replace(before, local_eap=replace(ours, password=replace(key, octets=b"staple")))
    (change,) = compare_policies([before], [after])
    assert change.impact is Impact.REAUTH
    (difference,) = change.differences
    assert difference.before == "carol, by md5, secrets/carol"
    assert difference.after == "carol, by md5, secrets/carol, with another value"


def test_another_list_of_users_touches_no_tunnel_and_is_shown_as_a_number() -> None:
    users = EapUsers(passwords=((b"carol", "horse"),), origin="users")
    before = replace(OURS, remote_eap=EapAcceptance(methods=(EapMethod.MD5,), users=users))
    more = replace(users, passwords=(*users.passwords, (b"dave", "staple")))
    after = replace(before, remote_eap=EapAcceptance(methods=(EapMethod.MD5,), users=more))
    (change,) = compare_policies([before], [after])
    assert change.impact is Impact.HOT
    (difference,) = change.differences
    assert (difference.before, difference.after) == (
        "1 users from users, by md5",
        "2 users from users, by md5",
    )


def ends(**changes: Any) -> tuple[TunnelPolicy, TunnelPolicy]:
    """A user and a gateway that understand each other, but for changes to the user."""
    key = SharedKey(octets=b"horse", origin="secrets/carol")
    credential = EapCredential(identity="carol", methods=(EapMethod.MD5,), password=key)
    users = EapUsers(passwords=((b"carol", "horse"),), origin="users")
    ours = replace(
        OURS,
        shared_key=None,
        remote_key=public_key(KeyKind.ED25519),
        local_eap=replace(credential, **changes),
    )
    theirs = replace(
        THEIRS,
        shared_key=None,
        remote_id=None,
        peers=(),
        local_key=private_key(KeyKind.ED25519),
        remote_eap=EapAcceptance(methods=(EapMethod.MD5,), users=users, identities=("carol",)),
    )
    return ours, theirs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"identity": "dave"}, "the users do not have that name with that password"),
        (
            {"password": SharedKey(octets=b"staple", origin="x")},
            "the users do not have that name with that password",
        ),
        ({"methods": (EapMethod.GTC,)}, "the ends have no method of EAP in common"),
    ],
)
def test_two_policies_tell_whether_a_user_would_come_in(
    changes: dict[str, Any], message: str | None
) -> None:
    ours, theirs = ends(**changes)
    for one, other in ((ours, theirs), (theirs, ours)):
        (pairing,) = pair_policies([one], [other])
        told = [d.message for d in pairing.disagreements if d.code == "XF2005"]
        assert told == ([] if message is None else [message])


def test_a_user_of_a_gateway_that_expects_a_key_is_told() -> None:
    ours, theirs = ends()
    (pairing,) = pair_policies([ours], [replace(theirs, remote_eap=None, remote_id=OURS.local_id)])
    assert "we prove by one method, and another counts" in [
        d.message for d in pairing.disagreements
    ]
