"""Tokens between two hosts: what they say comes through, and nothing else is believed."""

from __future__ import annotations

import base64
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.keypairs import key_pair
from xfrmpy.crypto.signatures import KeyKind
from xfrmpy.policy.invitation import (
    Invitation,
    Offer,
    Reply,
    check_reply,
    identity_of,
    policy_text,
    read_token,
    write_invitation,
    write_reply,
)
from xfrmpy.policy.keys import HOST_KEY, host_key
from xfrmpy.policy.load import LoadedPolicy
from xfrmpy.policy.model import StartMode

Load = Callable[..., LoadedPolicy]

MOON, SUN = (key_pair(KeyKind.ED25519, whose).public.spki for whose in ("moon", "sun"))


def offer(spki: bytes, address: str, local: str) -> Offer:
    key = base64.b64encode(spki).decode()
    return Offer(tunnel="office", id=identity_of(spki), address=address, key=key, local=(local,))


OURS, THEIRS = offer(MOON, "192.0.2.1", "10.1.0.0/16"), offer(SUN, "", "10.2.0.0/16")
INVITATION = Invitation(offer=OURS, secret=bytes(range(32)))


def test_an_invitation_and_its_reply_come_through() -> None:
    assert read_token(write_invitation(INVITATION)) == INVITATION
    reply = read_token(write_reply(THEIRS, INVITATION))
    assert isinstance(reply, Reply)
    assert reply.offer == THEIRS
    check_reply(reply, INVITATION)


def test_a_reply_of_who_has_not_the_invitation_is_refused() -> None:
    forged = read_token(write_reply(THEIRS, replace(INVITATION, secret=bytes(32))))
    assert isinstance(forged, Reply)
    with pytest.raises(ValueError, match="not to the invitation"):
        check_reply(forged, INVITATION)


@pytest.mark.parametrize(
    "change", [{"id": "keyid:x"}, {"address": "192.0.2.9"}, {"local": ("0.0.0.0/0",)}]
)
def test_a_reply_that_was_changed_on_its_way_is_refused(change: dict[str, Any]) -> None:
    reply = read_token(write_reply(THEIRS, INVITATION))
    assert isinstance(reply, Reply)
    with pytest.raises(ValueError, match="not to the invitation"):
        check_reply(replace(reply, offer=replace(reply.offer, **change)), INVITATION)


@pytest.mark.parametrize(
    "change",
    [
        {"key": "file:/etc/shadow"},
        {"key": "AAAA"},
        {"tunnel": "../../etc/passwd"},
        {"tunnel": ""},
        {"id": "a\nb"},
        {"local": ()},
    ],
)
def test_a_token_that_says_what_none_of_ours_would_is_refused(change: dict[str, Any]) -> None:
    token = write_invitation(replace(INVITATION, offer=replace(OURS, **change)))
    with pytest.raises(ValueError, match="damaged"):
        read_token(token)


@given(st.text(max_size=200), st.sampled_from(["", "xfrmpy-invite-1.", "xfrmpy-reply-1."]))
def test_no_text_is_taken_for_a_token(text: str, prefix: str) -> None:
    with pytest.raises(ValueError, match="token"):
        read_token(prefix + text)


def test_a_token_cut_anywhere_is_refused() -> None:
    token = write_invitation(INVITATION)
    for size in range(len(token)):
        with pytest.raises(ValueError, match="token"):
            read_token(token[:size])


def test_both_ends_get_policies_that_load_and_belong_together(load: Load) -> None:
    key = key_pair(KeyKind.ED25519, "moon").pem()
    text = policy_text(OURS, THEIRS, key="secret:host.key", begins=True)
    loaded = load(**{"office.yaml": text, "../secrets/host.key": key})
    assert loaded.errors == ()
    (policy,) = loaded.tunnels
    assert policy.local_key is not None
    assert policy.remote_key is not None
    assert (policy.local_key.public, policy.remote_key.spki) == (MOON, SUN)
    assert policy.start is StartMode.LISTEN  # Nobody knows where the other end is.
    other = policy_text(THEIRS, OURS, key="secret:host.key", begins=True)
    assert "start: auto" in other
    assert "peer: 192.0.2.1" in other


def test_the_key_of_the_host_is_made_once_and_nobody_else_reads_it(tmp_path: Path) -> None:
    made = host_key(tmp_path / "secrets")
    path = tmp_path / "secrets" / HOST_KEY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert host_key(tmp_path / "secrets") == made
    assert host_key(tmp_path / "others") != made
    assert made.fingerprint.startswith("SHA256:")
