"""The IKE SA is replaced, by a rekeying or by a reauthentication, and the Child SAs go on.

Read RFC 7296 sections 1.3.2, 2.8.2, 2.8.3, 2.18 and 2.25.2 beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.crypto.key_schedule import derive_rekeyed_ike_keys
from xfrmpy.ike.auth_answer import REAUTH_PATIENCE_SECONDS
from xfrmpy.ike.outputs import (
    AddPolicy,
    AddSa,
    ChildSaClosed,
    ChildSaRekeyed,
    IkeSaRekeyed,
    RemovePolicy,
    RemoveSa,
    SaNotCreated,
    TunnelClosed,
)
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ike.succession import DELETION_PATIENCE_SECONDS
from xfrmpy.ike.uniqueness import THEIRS_SECONDS
from xfrmpy.ipsec.sad import Direction
from xfrmpy.policy.model import Uniqueness
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.header import decode_header_untrusted
from xfrmpy.wire.payloads import KePayload, NotifyPayload

ENDS = ("moon", "sun")
CREATE = ExchangeType.CREATE_CHILD_SA


def _rekey(pair: Any, host: Any) -> None:
    host.endpoint.rekey_ike_sas("tunnel-a", pair.now)


def _at_rest(pair: Any) -> None:
    """One IKE SA, the same at both ends, with one Child SA, and no bad news on the way."""
    pair.run(2 * DELETION_PATIENCE_SECONDS + 1)
    pair.assert_up()
    (moon,), (sun,) = (
        [sa for sa in host.ike_sas if sa.state is not IkeSaState.DELETED]
        for host in (pair.moon, pair.sun)
    )
    assert (moon.channel.spi_i, moon.channel.spi_r) == (sun.channel.spi_i, sun.channel.spi_r)
    for host in (pair.moon, pair.sun):
        assert not host.reports(TunnelClosed)
        assert not host.reports(ChildSaClosed)
        assert len(host.datapath.dump().sad) == 2


# Rekeying.


@pytest.mark.parametrize("end", ENDS)
def test_an_ike_sa_is_rekeyed_by_either_end_and_nothing_else_is_touched(up: Any, end: str) -> None:
    host, other = up.ends(end)
    before = [
        (each.ike_sa.our_spi, each.datapath.dump(), len(each.outputs)) for each in (host, other)
    ]
    _rekey(up, host)
    up.deliver()
    for each, (spi, dump, start) in zip((host, other), before, strict=True):
        assert each.ike_sa.our_spi != spi
        assert each.datapath.dump() == dump
        touched = (AddSa, RemoveSa, AddPolicy, RemovePolicy)
        assert not [o for o in each.outputs[start:] if isinstance(o, touched)]
        (report,) = each.reports(IkeSaRekeyed)
        assert report.reauthenticated is False
        assert report.is_initiator is (each is host)
    _at_rest(up)


def test_the_initiator_of_the_rekeying_is_the_original_initiator_from_then_on(up: Any) -> None:
    _rekey(up, up.sun)
    up.deliver()
    assert (up.sun.ike_sa.is_initiator, up.moon.ike_sa.is_initiator) == (True, False)
    _rekey(up, up.moon)
    _at_rest(up)
    assert (up.sun.ike_sa.is_initiator, up.moon.ike_sa.is_initiator) == (False, True)


def test_a_tunnel_is_up_since_its_first_ike_sa(up: Any) -> None:
    for command in ("rekey_ike_sas", "reauthenticate", "rekey_ike_sas"):
        up.run(100)
        getattr(up.moon.endpoint, command)("tunnel-a", up.now)
        up.run(20)
    (view,) = up.moon.views
    assert (view.up_since, view.established_at > 300) == (0.0, True)


def test_message_ids_begin_again_and_the_old_ike_sa_keeps_its_own(up: Any) -> None:
    old = up.moon.ike_sa
    _rekey(up, up.moon)
    up.sent.clear()
    up.deliver()
    up.run(31)
    ids: dict[bytes, list[int]] = {}
    for _name, output in up.sent:
        header = decode_header_untrusted(output.data)
        if not header.is_response:
            ids.setdefault(header.spi_i, []).append(header.message_id)
    assert ids[old.channel.spi_i] == [2, 3]  # IKE_SA_INIT and IKE_AUTH were 0 and 1.
    assert ids[up.moon.ike_sa.channel.spi_i][0] == 0


def test_the_keys_follow_from_the_old_ones_and_the_new_exchange(
    up: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def derive(suite: Any, **given: Any) -> Any:
        seen.append(given)
        return derive_rekeyed_ike_keys(suite, **given)

    monkeypatch.setattr("xfrmpy.ike.ike_sa.derive_rekeyed_ike_keys", derive)
    old = up.moon.ike_sa
    _rekey(up, up.moon)
    up.deliver()
    new = up.moon.ike_sa
    assert seen[0] == seen[1]
    assert seen[0]["old_sk_d"] == old.keys.sk_d != new.keys.sk_d
    assert (seen[0]["spi_i"], seen[0]["spi_r"]) == (new.channel.spi_i, new.channel.spi_r)


def test_the_new_ike_sa_makes_child_sas_and_is_rekeyed_in_turn(up: Any) -> None:
    for host in (up.moon, up.sun, up.sun, up.moon):
        _rekey(up, host)
        up.deliver()
        host.endpoint.rekey_child_sas("tunnel-a", up.now)
        up.deliver()
    assert len(up.moon.reports(IkeSaRekeyed)) == len(up.moon.reports(ChildSaRekeyed)) == 4
    _at_rest(up)


def test_a_wrong_guess_of_the_method_is_mended(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], make_mirror: Any, sealing: Any
) -> None:
    ike = "aes128gcm16-prfsha256-x25519-ecp384"
    pair = make_pair(make_policy(ike=ike), make_mirror(make_policy(ike=ike)))
    pair.up()
    (tunnel,) = pair.sun.endpoint._core.tunnels.values()
    only = make_mirror(make_policy(ike="aes128gcm16-prfsha256-ecp384")).proposals
    pair.sun.ike_sa.tunnel = replace(tunnel.policy, proposals=only)
    _rekey(pair, pair.moon)
    pair.deliver()
    assert sealing.errors(CREATE) == [NotifyType.INVALID_KE_PAYLOAD]
    assert pair.moon.reports(IkeSaRekeyed)[0].suite.endswith("ecp384")
    _at_rest(pair)


def test_an_ike_sa_is_replaced_ahead_of_its_end_and_never_lives_longer(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any]
) -> None:
    pair = make_pair(replace(make_policy(), lifetime_seconds=500.0))
    pair.up()
    pair.run(398)
    assert not pair.moon.reports(IkeSaRekeyed)
    pair.run(53)
    assert pair.moon.reports(IkeSaRekeyed)
    for _ in range(10):
        pair.run(450)
    assert 8 <= len(pair.moon.reports(IkeSaRekeyed)) <= 13
    _at_rest(pair)


def test_an_ike_sa_that_could_not_be_replaced_in_time_is_closed(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any]
) -> None:
    pair = make_pair(replace(make_policy(), lifetime_seconds=100.0))
    pair.up()
    for host in (pair.moon, pair.sun):
        host.ike_sa.rekey_at = None
    pair.run(101)
    pair.assert_down()
    assert "XF2014" in [o.failure.code for o in pair.moon.reports(TunnelClosed)]


# Collisions (sections 2.8.2 and 2.25.2).


@pytest.mark.parametrize("seed", range(12))
def test_of_two_crossing_rekeyings_the_one_with_the_lowest_nonce_is_undone(
    make_seeded: Callable[[int], Any], seed: int
) -> None:
    pair = make_seeded(seed)
    made: list[Any] = []
    for host in (pair.moon, pair.sun):
        _rekey(pair, host)
    pair.deliver()
    for host in (pair.moon, pair.sun):
        made += [sa.nonces for sa in host.ike_sas if sa.nonces != pair.moon.ike_sas[0].nonces]
    _at_rest(pair)
    assert len(set(made)) == 2
    assert min(pair.moon.ike_sa.nonces) == max(min(nonces) for nonces in made)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("slow", ENDS)
def test_the_answer_to_one_of_two_crossing_rekeyings_may_come_last(
    make_seeded: Callable[[int], Any], hold: Any, seed: int, slow: str
) -> None:
    pair = make_seeded(seed)
    link = hold(pair)
    link.is_held = lambda header, sender: header.is_response and sender != slow
    for host in (pair.moon, pair.sun):
        _rekey(pair, host)
    pair.deliver()
    link.release()
    _at_rest(pair)


@pytest.mark.parametrize("slow", ENDS)
def test_a_peer_that_does_not_notice_our_rekeying_prevails(up: Any, hold: Any, slow: str) -> None:
    """Section 2.8.2: its Delete makes us forget ours, and our late request no difference."""
    link = hold(up)
    link.is_held = lambda header, sender: (
        header.exchange is CREATE and sender == slow and not header.is_response
    )
    for host in (up.moon, up.sun):
        _rekey(up, host)
    up.deliver()
    link.release()
    _at_rest(up)


@pytest.mark.parametrize("end", ENDS)
def test_a_request_to_rekey_what_was_rekeyed_must_wait(up: Any, hold: Any, end: str) -> None:
    """Section 2.8.2: the late request comes while the old IKE SA is being closed."""
    host, other = up.ends(end)
    link = hold(up)
    link.is_held = lambda header, sender: (
        sender == host.name
        and (header.exchange is ExchangeType.INFORMATIONAL or not header.is_response)
    )
    _rekey(up, host)
    _rekey(up, other)
    up.deliver()
    link.release()
    _at_rest(up)


@pytest.mark.parametrize("end", ENDS)
def test_a_child_sa_cannot_be_rekeyed_while_the_ike_sa_is(up: Any, sealing: Any, end: str) -> None:
    host, other = up.ends(end)
    _rekey(up, host)
    other.endpoint.rekey_child_sas("tunnel-a", up.now)
    up.deliver()
    assert sealing.errors(CREATE) == [NotifyType.TEMPORARY_FAILURE] * 2
    _at_rest(up)
    up.run(60)
    assert up.moon.reports(IkeSaRekeyed)
    assert up.moon.reports(ChildSaRekeyed)


@pytest.mark.parametrize("end", ENDS)
def test_an_ike_sa_cannot_be_rekeyed_while_we_delete_it(up: Any, sealing: Any, end: str) -> None:
    host, other = up.ends(end)
    host.endpoint.terminate("tunnel-a", up.now)
    _rekey(up, other)
    up.deliver()
    assert sealing.errors(CREATE) == [NotifyType.TEMPORARY_FAILURE]
    up.run(100)
    up.assert_forgotten()


def test_two_ends_may_delete_an_ike_sa_at_once(up: Any) -> None:
    for host in (up.moon, up.sun):
        host.endpoint.terminate("tunnel-a", up.now)
    up.deliver()
    up.run(100)
    up.assert_forgotten()


@pytest.mark.parametrize("end", ENDS)
def test_down_in_the_middle_of_a_rekeying_leaves_nothing(up: Any, hold: Any, end: str) -> None:
    for seed in range(4):
        _host, other = up.ends(end)
        link = hold(up)
        link.is_held = lambda header, _sender, n=seed: header.is_response and n % 2 == 0
        for each in (up.moon, up.sun):
            _rekey(up, each)
        up.deliver()
        other.endpoint.terminate("tunnel-a", up.now)
        up.deliver()
        link.release()
        up.run(200)
        up.assert_forgotten()
        up.up()


def test_a_peer_that_does_not_delete_the_ike_sa_it_replaced_is_not_waited_for(
    up: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xfrmpy.ike.rekey_ike_sa.leave", lambda *_: None)
    _rekey(up, up.moon)
    up.run(DELETION_PATIENCE_SECONDS + 1)
    assert len([s for s in up.sun.ike_sas if s.state is IkeSaState.ESTABLISHED]) == 1
    up.run(60)
    up.assert_up()


def test_a_proposal_with_a_bad_spi_ends_the_ike_sa(up: Any, sealing: Any) -> None:
    def spoil(message: Any, payloads: Any) -> Any:
        if message.exchange is not CREATE or message.is_response:
            return payloads
        (first, *rest) = payloads
        return (
            replace(first, proposals=tuple(replace(p, spi=bytes(8)) for p in first.proposals)),
            *rest,
        )

    sealing.change = spoil
    _rekey(up, up.moon)
    up.run(100)
    assert [o.failure.code for o in up.sun.reports(TunnelClosed)] == ["XF2008"]
    up.assert_down()


def test_a_bad_public_value_makes_no_ike_sa(up: Any, sealing: Any) -> None:
    def spoil(message: Any, payloads: Any) -> Any:
        if message.exchange is not CREATE:
            return payloads
        return tuple(
            replace(p, data=bytes(32)) if isinstance(p, KePayload) else p for p in payloads
        )

    sealing.change = spoil
    _rekey(up, up.moon)
    up.run(100)
    assert [o.failure.code for o in up.sun.reports(TunnelClosed)] == ["XF2008"]
    up.assert_down()


# Reauthentication (section 2.8.3).


@pytest.mark.parametrize("end", ENDS)
def test_a_reauthentication_makes_all_anew_before_it_breaks(up: Any, end: str) -> None:
    host, other = up.ends(end)
    before = {host.ike_sa.our_spi, *host.endpoint._core.children}

    def check(output: Any, _sender: Any) -> list[bytes]:
        for each in (host, other):
            assert any(v.children for v in each.views)
        return [output.data]

    up.impair = check
    host.endpoint.reauthenticate("tunnel-a", up.now)
    up.run(6)
    assert not before & {host.ike_sa.our_spi, *host.endpoint._core.children}
    assert [o.reauthenticated for o in host.reports(IkeSaRekeyed)] == [True]
    _at_rest(up)


@pytest.mark.parametrize("name", ENDS)
def test_nothing_is_sent_that_a_reauthenticating_initiator_cannot_receive_yet(
    up: Any, name: str
) -> None:
    """It knows the keys only when it has the answer; until then its peer sends on the old SA."""
    watched: list[set[int]] = []

    def check(output: Any, _sender: Any) -> list[bytes]:
        for one, other in ((up.moon, up.sun), (up.sun, up.moon)):
            into = {e.spi for e in other.datapath.sad.values() if e.direction is Direction.IN}
            out = {e.spi for e in one.datapath.sad.values() if e.direction is Direction.OUT}
            assert out
            assert out <= into
            watched.append(out)
        return [output.data]

    up.impair = check
    getattr(up, name).endpoint.reauthenticate("tunnel-a", up.now)
    up.deliver()
    assert len({frozenset(out) for out in watched}) > 2, "nothing was made anew"
    _at_rest(up)


def test_a_peer_that_has_lost_its_ike_sa_and_does_not_say_so_waits_for_two_seconds(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any]
) -> None:
    pair = make_pair(replace(make_policy(), unique=Uniqueness.NEVER))
    pair.up()
    (old,) = _out(pair.sun)
    pair.moon.start()
    pair.moon.datapath.remove_ours()
    pair.initiate()
    pair.deliver()
    assert _out(pair.sun) == [old]
    pair.run(REAUTH_PATIENCE_SECONDS)
    assert _out(pair.sun)[-1] != old


def test_what_a_responder_cannot_send_on_after_all_is_given_up(up: Any) -> None:
    up.sun.datapath.refuse("add_sa out", nth=2, reason="no memory")
    up.moon.endpoint.reauthenticate("tunnel-a", up.now)
    up.run(20)
    assert [o.failure.code for o in up.sun.reports(TunnelClosed)] == ["XF3002"]
    up.assert_down()


def _out(host: Any) -> list[int]:
    """Of the outbound SAs, the newest last: it carries."""
    return [e.spi for e in host.datapath.sad.values() if e.direction is Direction.OUT]


def test_a_policy_asks_for_authentication_ever_again(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], make_mirror: Any
) -> None:
    policy = replace(make_policy(), reauth_seconds=1000.0)
    pair = make_pair(policy, make_mirror(make_policy()))
    pair.up()
    pair.run(5000)
    assert 4 <= len(pair.moon.reports(IkeSaRekeyed)) <= 7
    _at_rest(pair)


def test_a_rekeying_does_not_put_off_the_reauthentication(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any]
) -> None:
    pair = make_pair(replace(make_policy(), reauth_seconds=1000.0, lifetime_seconds=300.0))
    pair.up()
    pair.run(1000)
    kinds = [o.reauthenticated for o in pair.moon.reports(IkeSaRekeyed)]
    assert True in kinds
    assert False in kinds
    _at_rest(pair)


def test_a_reauthentication_that_fails_is_tried_again_and_the_tunnel_stays(
    up: Any, sealing: Any
) -> None:
    def refuse(message: Any, payloads: Any) -> Any:
        if message.exchange is ExchangeType.IKE_AUTH and message.is_response:
            return (NotifyPayload(type=NotifyType.TEMPORARY_FAILURE),)
        return payloads

    sealing.change = refuse
    up.moon.endpoint.reauthenticate("tunnel-a", up.now)
    up.run(2)
    assert up.moon.reports(SaNotCreated)
    assert not up.moon.reports(TunnelClosed)
    sealing.change = lambda _message, payloads: payloads
    up.run(20)
    assert up.moon.reports(IkeSaRekeyed)


# One tunnel, one IKE SA.


@pytest.mark.parametrize("seed", range(8))
def test_two_ends_that_begin_at_once_keep_one_ike_sa(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], make_random: Any, seed: int
) -> None:
    pair = make_pair(make_policy())
    for host in (pair.moon, pair.sun):
        host.endpoint._core.random = make_random(f"{host.name}{seed}")
        pair.initiate(host)
    pair.deliver()
    pair.run(THEIRS_SECONDS + 6)
    _at_rest(pair)


@pytest.mark.parametrize("end", ENDS)
def test_what_began_twice_is_kept_once(up: Any, end: str) -> None:
    host, _ = up.ends(end)
    up.run(60)
    up.initiate(host)
    up.deliver()
    newest = {sa.our_spi for sa in up.moon.ike_sas} - {up.moon.ike_sas[0].our_spi}
    up.run(THEIRS_SECONDS + 6)
    _at_rest(up)
    if end == "moon":
        assert up.moon.ike_sa.our_spi in newest
