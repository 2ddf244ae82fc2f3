"""A key on a token: IKE_AUTH waits for its signature, and for nothing else of ours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.ike.conftest import Host, Pair
from tests.ike.test_eap import pair_of
from tests.ike.test_rounds import WAYS
from tests.ike.test_signatures import failure_at, signing
from tests.keypairs import key_pair, private_key
from xfrmpy.crypto.signatures import KeyKind, signing_key
from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.kept_policy import read_policies, write_policy
from xfrmpy.ike.outputs import AskSignature, IkeSaEstablished, RequestRefused
from xfrmpy.ike.states import IkeSaState
from xfrmpy.policy.changes import Impact, compare_policies
from xfrmpy.policy.model import PrivateKey, TokenKey, TunnelPolicy
from xfrmpy.tokens.uri import TokenUri

PIN = b"a pin of many words"
URI = TokenUri(module="/usr/lib/module.so", token="gw", object="key")


def on_token(key: PrivateKey, pin: bytes = PIN) -> PrivateKey:
    return replace(key, octets=b"", token=TokenKey(uri=URI, pin=pin))


def pair_with_token(end: str, kind: KeyKind = KeyKind.ECDSA_P256, **changes: Any) -> Pair:
    moon, sun = signing(kind, **changes)
    if end in ("moon", "both"):
        moon = replace(moon, local_key=on_token(private_key(kind, "moon")))
    if end in ("sun", "both"):
        sun = replace(sun, local_key=on_token(private_key(kind, "sun")))
    return Pair(moon, sun)


def answer(pair: Pair, host: Host, whose: str, *, refusal: str = "") -> None:
    """What the token says to the last that it was asked."""
    asked = host.reports(AskSignature)[-1]
    key = key_pair(KeyKind.ECDSA_P256, whose)
    signed = refusal or key.sign(asked.scheme, asked.octets)
    host.endpoint.handle_signature(asked, signed, pair.now)
    pair.deliver()


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_ike_auth_goes_on_when_the_token_has_signed(end: str) -> None:
    pair = pair_with_token(end)
    host = pair.moon if end == "moon" else pair.sun
    pair.up()
    assert host.ike_sa.state is IkeSaState.AUTHENTICATING
    (asked,) = host.reports(AskSignature)
    assert asked.key.token == TokenKey(uri=URI, pin=PIN)
    answer(pair, host, end)
    pair.assert_up()


def test_both_ends_may_have_a_token() -> None:
    pair = pair_with_token("both")
    pair.up()
    answer(pair, pair.moon, "moon")
    answer(pair, pair.sun, "sun")
    pair.assert_up()


def test_while_the_token_thinks_the_peer_repeats_itself_and_one_signature_is_made() -> None:
    pair = pair_with_token("sun")
    pair.up()
    pair.run(4.0)
    assert len(pair.sun.reports(AskSignature)) == 1
    assert DropReason.REQUEST_IN_HAND in pair.sun.drops
    answer(pair, pair.sun, "sun")
    pair.assert_up()


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_a_token_that_does_not_sign_is_told_to_our_operator_alone(end: str) -> None:
    pair = pair_with_token(end)
    host = pair.moon if end == "moon" else pair.sun
    pair.up()
    answer(pair, host, end, refusal="the token is not there: there is none")
    failure = failure_at(pair, end)
    assert failure.code == "XF2044"
    assert "the token is not there" in failure.summary
    assert {sa.state for sa in host.ike_sas} == {IkeSaState.DELETED}
    assert PIN.decode() not in repr(failure)


def test_a_signature_by_another_key_fails_at_the_peer() -> None:
    pair = pair_with_token("moon")
    pair.up()
    answer(pair, pair.moon, "stranger")
    (refused,) = pair.sun.reports(RequestRefused)
    assert refused.failure.code == "XF2041"


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_an_answer_that_comes_late_or_twice_changes_nothing(end: str) -> None:
    pair = pair_with_token(end)
    host = pair.moon if end == "moon" else pair.sun
    pair.up()
    answer(pair, host, end)
    pair.assert_up()
    answer(pair, host, end)
    pair.assert_up()


def test_a_tunnel_that_is_taken_down_meanwhile_stays_down() -> None:
    pair = pair_with_token("moon")
    pair.up()
    (sa,) = pair.moon.ike_sas
    pair.moon.endpoint.terminate("tunnel-a", pair.now)
    pair.deliver()
    answer(pair, pair.moon, "moon")
    assert sa.state in (IkeSaState.DELETING, IkeSaState.DELETED)
    assert not pair.sun.reports(IkeSaEstablished)


def test_what_waits_for_a_token_is_not_kept_for_another_daemon() -> None:
    pair = pair_with_token("moon")
    pair.up()
    assert not pair.moon.ike_sa.channel.window.outstanding
    answer(pair, pair.moon, "moon")
    pair.assert_up()


def test_a_gateway_proves_itself_by_a_token_before_eap() -> None:
    pair = pair_of()
    policy = pair.sun.endpoint._core.tunnels["tunnel-a"].policy
    assert policy.local_key is not None
    key = policy.local_key
    pair.sun.endpoint.replace_tunnel(replace(policy, local_key=on_token(key)))
    pair.up()
    (asked,) = pair.sun.reports(AskSignature)
    assert pair.sun.ike_sa.state is IkeSaState.AUTHENTICATING
    signed = signing_key(key.octets).sign(asked.scheme, asked.octets)
    pair.sun.endpoint.handle_signature(asked, signed, pair.now)
    pair.deliver()
    pair.assert_up()


def all_on_tokens(policy: TunnelPolicy) -> TunnelPolicy:
    rounds = tuple(
        each if each.local_key is None else replace(each, local_key=on_token(each.local_key))
        for each in policy.rounds
    )
    first = policy.local_key and on_token(policy.local_key)
    return replace(policy, local_key=first, rounds=rounds)


@pytest.mark.parametrize("way", WAYS)
def test_tokens_sign_in_every_round(way: str) -> None:
    """Whichever end has one, and with EAP behind it, what is signed is right for its round."""
    moon, sun = policies = WAYS[way]()
    further = [each.local_key for policy in policies for each in policy.rounds]
    held = [moon.local_key, sun.local_key, *further]
    keys = {key.public: signing_key(key.octets) for key in held if key is not None}
    pair = Pair(all_on_tokens(moon), all_on_tokens(sun))
    pair.up()
    signatures = 0
    while (
        len(asks := pair.moon.reports(AskSignature) + pair.sun.reports(AskSignature)) > signatures
    ):
        signatures = len(asks)
        for host in (pair.moon, pair.sun):
            for asked in host.reports(AskSignature):
                signed = keys[asked.key.public].sign(asked.scheme, asked.octets)
                host.endpoint.handle_signature(asked, signed, pair.now)
                pair.deliver()
    pair.assert_up()
    assert signatures == sum(key is not None for key in held)


def test_what_is_kept_of_a_policy_has_neither_pin_nor_token() -> None:
    policy, _ = signing(KeyKind.ECDSA_P256)
    policy = replace(policy, local_key=on_token(private_key(KeyKind.ECDSA_P256, "moon")))
    record = write_policy(policy, bytes(16))
    for secret in (PIN, PIN.hex().encode(), b"module.so"):
        assert secret not in record
    (kept,) = read_policies({b"policy of tunnel-a": record}).values()
    assert kept.beside(policy) == policy
    assert PIN.decode() not in repr(policy)


@pytest.mark.parametrize("change", ["key", "pin"])
def test_another_key_on_a_token_or_another_pin_is_another_secret(change: str) -> None:
    policy, _ = signing(KeyKind.ECDSA_P256)
    whose, pin = ("moon", b"another") if change == "pin" else ("other", PIN)
    old = replace(policy, local_key=on_token(private_key(KeyKind.ECDSA_P256, "moon")))
    new = replace(policy, local_key=on_token(private_key(KeyKind.ECDSA_P256, whose), pin))
    assert old.secrets != new.secrets
    (found,) = compare_policies([old], [new])
    assert found.impact in (Impact.REAUTH, Impact.REPLACE)
    assert PIN.decode() not in repr(found)
