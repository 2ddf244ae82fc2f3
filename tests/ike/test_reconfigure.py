"""A tunnel's policy changes while it is up: nothing more is disturbed than the change takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from xfrmpy.ike.lifetimes import RECREATE_SECONDS
from xfrmpy.ike.outputs import (
    ChildSaEstablished,
    ChildSaRekeyed,
    IkeSaRekeyed,
    SaNotCreated,
    TunnelClosed,
)
from xfrmpy.ike.reconfigure import PATIENCE_SECONDS
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import parse_proposal
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.model import ChildPolicy, SharedKey, TunnelPolicy
from xfrmpy.registry import ProtocolId

ENDS = ("moon", "sun")


def _spis(pair: Any) -> list[tuple[int, int]]:
    return [tuple(e.spi for e in c.entries) for v in pair.moon.views for c in v.children]


def _reconfigure(pair: Any, host: Any, **terms: Any) -> None:
    host.policy = replace(host.policy, **terms)
    host.endpoint.reconfigure(host.policy, pair.now)


def _with(policy: TunnelPolicy, **terms: Any) -> tuple[ChildPolicy, ...]:
    (child,) = policy.children
    return (replace(child, **terms),)


def _selectors(*texts: str) -> tuple[TrafficSelector, ...]:
    return tuple(map(TrafficSelector.parse, texts))


def _more(host: Any, ours: str, theirs: str) -> tuple[ChildPolicy, ...]:
    (net,) = host.policy.children
    here, there = (ours, theirs) if host.name == "moon" else (theirs, ours)
    voice = replace(
        net, name="voice", reqid=net.reqid + 1, local=_selectors(here), remote=_selectors(there)
    )
    return (net, voice)


def test_the_same_policy_again_says_and_does_nothing(pair: Any) -> None:
    pair.up()
    before = (pair.moon.snapshot(), len(pair.moon.outputs))
    pair.moon.endpoint.reconfigure(pair.moon.policy, pair.now)
    pair.deliver()
    assert (pair.moon.snapshot(), len(pair.moon.outputs)) == before


@pytest.mark.parametrize("name", ENDS)
def test_a_hot_change_is_in_force_at_once_and_touches_no_sa(pair: Any, name: str) -> None:
    pair.up()
    host, spis = getattr(pair, name), _spis(pair)
    _reconfigure(pair, host, dpd_seconds=7.0)
    assert host.ike_sa.tunnel.dpd_seconds == 7.0
    pair.run(20)
    assert _spis(pair) == spis
    pair.assert_up()


@pytest.mark.parametrize("name", ENDS)
def test_other_esp_proposals_rekey_the_child_sa_only(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], name: str
) -> None:
    pair = make_pair(make_policy(esp="aes128gcm16 aes256gcm16"))
    pair.up()
    host = getattr(pair, name)
    stronger = parse_proposal("aes256gcm16", ProtocolId.ESP)
    _reconfigure(pair, host, children=_with(host.policy, proposals=(stronger,)))
    pair.run(20)
    assert len(host.reports(ChildSaRekeyed)) == 1
    assert not host.reports(IkeSaRekeyed)
    assert {e.suite.cipher.name for e in host.datapath.dump().sad} == {"aes256gcm16"}
    pair.assert_mirrored()


@pytest.mark.parametrize("name", ENDS)
def test_other_ike_proposals_rekey_the_ike_sa_and_leave_the_child_sas(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], name: str
) -> None:
    pair = make_pair(make_policy(ike="aes128gcm16-prfsha256-x25519 aes256gcm16-prfsha384-x25519"))
    pair.up()
    host, spis = getattr(pair, name), _spis(pair)
    _reconfigure(pair, host, proposals=host.policy.proposals[1:])
    pair.run(20)
    (view,) = host.views
    assert view.suite.startswith("aes256gcm16")
    assert _spis(pair) == spis
    pair.assert_mirrored()


def test_another_key_at_both_ends_is_proved_by_a_new_ike_sa_before_the_old_one_goes(
    pair: Any,
) -> None:
    pair.up()
    key = SharedKey(octets=b"the key of the next year, longer", origin="test")
    _reconfigure(pair, pair.sun, shared_key=key)
    _reconfigure(pair, pair.moon, shared_key=key)
    pair.run(60)
    assert not pair.moon.reports(TunnelClosed)
    assert any(r.reauthenticated for r in pair.moon.reports(IkeSaRekeyed))
    assert len(pair.moon.views) == len(pair.sun.views) == 1
    pair.assert_mirrored()


def test_a_key_that_the_peer_does_not_know_leaves_the_tunnel_up_until_it_is_taken_back(
    pair: Any,
) -> None:
    pair.up()
    old = pair.moon.policy.shared_key
    spis = _spis(pair)
    _reconfigure(pair, pair.moon, shared_key=SharedKey(octets=b"a mistyped key", origin="test"))
    pair.run(3)
    assert [r.failure.code for r in pair.moon.reports(SaNotCreated)] == ["XF2005"]
    assert _spis(pair) == spis
    _reconfigure(pair, pair.moon, shared_key=old)
    pair.run(60)
    assert _spis(pair) == spis
    assert not pair.moon.reports(TunnelClosed)
    pair.assert_mirrored()


def test_another_identity_of_ours_is_told_by_a_new_ike_sa(pair: Any) -> None:
    pair.up()
    luna = Identity.parse("luna.example.net")
    _reconfigure(pair, pair.sun, remote_id=luna)
    _reconfigure(pair, pair.moon, local_id=luna)
    pair.run(60)
    (view,) = pair.sun.views
    assert view.remote_id == luna
    assert not pair.moon.reports(TunnelClosed)


@pytest.mark.parametrize("order", [ENDS, ENDS[::-1]])
def test_a_child_more_comes_up_beside_the_others(pair: Any, order: tuple[str, str]) -> None:
    pair.up()
    spis = _spis(pair)
    for name in order:
        host = getattr(pair, name)
        _reconfigure(pair, host, children=_more(host, "10.7.0.0/16", "10.8.0.0/16"))
        pair.deliver()
    pair.run(RECREATE_SECONDS + 1)
    assert [c.child for c in pair.moon.views[0].children] == ["net", "voice"]
    assert _spis(pair)[:1] == spis
    assert len(pair.sun.views[0].children) == 2
    pair.assert_mirrored()


def test_a_child_less_is_deleted_and_the_others_stay(pair: Any) -> None:
    for host in (pair.moon, pair.sun):
        host.policy = replace(host.policy, children=_more(host, "10.7.0.0/16", "10.8.0.0/16"))
        host.endpoint.replace_tunnel(host.policy)
    pair.up()
    spis = _spis(pair)
    for host in (pair.moon, pair.sun):
        _reconfigure(pair, host, children=host.policy.children[:1])
    pair.run(60)
    assert _spis(pair) == spis[:1]
    assert len(pair.sun.datapath.dump().sad) == 2
    pair.assert_mirrored()


@pytest.mark.parametrize("order", [ENDS, ENDS[::-1]])
def test_a_child_with_more_traffic_is_made_before_the_old_one_goes(
    pair: Any, order: tuple[str, str]
) -> None:
    pair.up()
    sides = {"moon": ("local", "remote"), "sun": ("remote", "local")}
    for name in order:
        host = getattr(pair, name)
        terms = {sides[name][0]: _selectors("10.1.0.0/16", "10.9.0.0/16")}
        _reconfigure(pair, host, children=_with(host.policy, **terms))
        pair.deliver()
        assert host.datapath.dump().spd
    pair.run(RECREATE_SECONDS + PATIENCE_SECONDS + 1)
    for host in (pair.moon, pair.sun):
        (child,) = host.views[0].children
        assert {*map(str, (*child.local, *child.remote))} == {
            "10.1.0.0/16",
            "10.9.0.0/16",
            "10.2.0.0/16",
        }
        assert len(host.datapath.dump().sad) == 2
    assert not pair.moon.reports(TunnelClosed)
    pair.assert_mirrored()


def test_between_the_old_traffic_and_the_new_there_is_a_policy_at_every_moment(
    pair: Any,
) -> None:
    pair.up()
    seen = []
    keep = pair.moon.datapath.remove_policy

    def watch(entry: Any) -> None:
        keep(entry)
        seen.append(len(pair.moon.datapath.dump().spd))

    pair.moon.datapath.remove_policy = watch
    for host, side in ((pair.sun, "remote"), (pair.moon, "local")):
        terms = {side: _selectors("10.1.0.0/17")}
        _reconfigure(pair, host, children=_with(host.policy, **terms))
    pair.run(60)
    assert seen
    assert min(seen) >= 3
    (child,) = pair.moon.views[0].children
    assert [str(s) for s in child.local] == ["10.1.0.0/17"]


def test_what_is_half_open_began_under_the_old_policy_and_ends(pair: Any) -> None:
    pair.initiate()
    pair.moon.take_outputs()
    _reconfigure(pair, pair.moon, dpd_seconds=1.0)
    pair.moon.take_outputs()
    assert [r.failure for r in pair.moon.reports(TunnelClosed)] == [None]


def test_a_shorter_life_rekeys_what_has_lived_longer_and_does_not_end_it(pair: Any) -> None:
    pair.up()
    pair.run(1000)
    before = _spis(pair)
    lifetime = {"lifetime_seconds": 600.0}
    _reconfigure(pair, pair.moon, **lifetime, children=_with(pair.moon.policy, **lifetime))
    pair.run(30)
    assert len(pair.moon.reports(IkeSaRekeyed)) == len(pair.moon.reports(ChildSaRekeyed)) == 1
    assert not pair.moon.reports(TunnelClosed)
    assert _spis(pair) != before
    pair.assert_mirrored()


def test_a_change_that_comes_during_a_rekeying_is_followed_after_it(pair: Any) -> None:
    pair.up()
    for host, other in ((pair.moon, pair.sun), (pair.sun, pair.moon)):
        host.endpoint.rekey_child_sas("tunnel-a", pair.now)
        window = host.policy.children[0].replay_window * 2
        _reconfigure(pair, host, children=_with(host.policy, replay_window=window))
        pair.run(30)
        assert {e.replay_window for e in host.datapath.dump().sad} == {window}
        assert other.views
    pair.assert_mirrored()


def test_a_tunnel_that_is_added_can_be_called_and_one_removed_is_unknown(pair: Any) -> None:
    lone = replace(pair.sun.policy, name="other")
    pair.sun.endpoint.remove_tunnel("tunnel-a", pair.now)
    pair.initiate()
    pair.deliver()
    pair.run(5)
    assert not pair.sun.endpoint.ike_sas("tunnel-a")
    pair.sun.endpoint.add_tunnel(lone)
    pair.sun.endpoint.set_peer_addresses("other", (ip_address(pair.moon.address),))
    pair.run(5)
    pair.initiate()
    pair.deliver()
    assert pair.sun.endpoint.ike_sas("other")[0].children
    assert pair.moon.reports(ChildSaEstablished)
