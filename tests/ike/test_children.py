"""Several Child SAs of one tunnel: the initiator makes them one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.ike.lifetimes import RECREATE_SECONDS
from xfrmpy.ike.outputs import (
    ChildSaClosed,
    ChildSaEstablished,
    ChildSaRekeyed,
    SaNotCreated,
    TunnelClosed,
)
from xfrmpy.ike.states import ChildSaState, IkeSaState
from xfrmpy.ike.succession import OVERLAP_SECONDS
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.model import ChildPolicy, StartMode
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.payloads import KePayload, NotifyPayload

NAMES = ["net", "voice", "lab"]


def _child(like: ChildPolicy, name: str, local: str, remote: str, number: int) -> ChildPolicy:
    return replace(
        like,
        name=name,
        reqid=like.reqid + number,
        local=(TrafficSelector.parse(local),),
        remote=(TrafficSelector.parse(remote),),
    )


@pytest.fixture
def pair(make_pair: Callable[..., Any], make_policy: Callable[..., Any]) -> Any:
    policy = make_policy(esp="aes128gcm16-x25519 aes128gcm16")
    (net,) = policy.children
    voice = _child(net, "voice", "10.1.9.0/24", "10.2.9.0/24", 1)
    lab = _child(net, "lab", "10.5.0.0/16", "10.6.0.0/16", 2)
    return make_pair(replace(policy, children=(net, voice, lab)))


def _names(host: Any) -> list[str]:
    return [child.child for child in host.views[0].children]


def test_every_child_of_the_policy_comes_up_in_its_order(pair: Any, sealing: Any) -> None:
    pair.up()
    for host in (pair.moon, pair.sun):
        assert [r.child for r in host.reports(ChildSaEstablished)] == NAMES
        assert _names(host) == NAMES
        assert len(host.datapath.dump().sad) == 6
    pair.assert_mirrored()
    created = [m for m, _ in sealing.sent if m.exchange is ExchangeType.CREATE_CHILD_SA]
    assert len(created) == 4


def test_a_further_child_sa_has_a_key_exchange_of_its_own(pair: Any, sealing: Any) -> None:
    pair.up()
    answers = sealing.answers(ExchangeType.CREATE_CHILD_SA)
    assert all(any(isinstance(p, KePayload) for p in answer) for answer in answers)
    assert [r.suite for r in pair.sun.reports(ChildSaEstablished)] == [
        "aes128gcm16-esn",
        "aes128gcm16-esn-x25519",
        "aes128gcm16-esn-x25519",
    ]


def test_each_child_has_sas_that_its_policies_alone_find(pair: Any) -> None:
    pair.up()
    for host in (pair.moon, pair.sun):
        wanted = {policy.reqid: policy for policy in host.policy.children}
        assert {e.reqid for e in host.datapath.dump().sad} == set(wanted)
        for entry in host.datapath.spd.values():
            policy = wanted[entry.template.reqid]
            nets = {n for s in (*policy.local, *policy.remote) for n in s.networks()}
            assert {entry.selector.source, entry.selector.destination} == nets


def test_the_responder_takes_the_more_specific_child_for_what_is_meant_so(pair: Any) -> None:
    pair.up()
    voice = next(c for c in pair.sun.ike_sa.children if c.policy.name == "voice")
    assert [str(s) for s in voice.local] == ["10.2.9.0/24"]


def test_each_child_is_rekeyed_in_its_own_place(pair: Any) -> None:
    pair.up()
    for host in (pair.moon, pair.sun):
        host.endpoint.rekey_child_sas("tunnel-a", pair.now)
        pair.run(OVERLAP_SECONDS + 1)
        assert sorted(_names(host)) == sorted(NAMES)
    assert len(pair.moon.reports(ChildSaRekeyed)) == 6
    assert not pair.moon.reports(ChildSaClosed)
    pair.assert_mirrored()


def test_all_children_move_to_a_rekeyed_ike_sa_and_are_made_anew_with_a_new_one(pair: Any) -> None:
    pair.up()
    pair.sun.endpoint.rekey_ike_sas("tunnel-a", pair.now)
    pair.run(60)
    assert _names(pair.moon) == _names(pair.sun) == NAMES
    pair.moon.endpoint.reauthenticate("tunnel-a", pair.now)
    pair.run(60)
    assert sorted(_names(pair.moon)) == sorted(_names(pair.sun)) == sorted(NAMES)
    assert not pair.moon.reports(TunnelClosed)
    pair.assert_mirrored()


def test_a_new_ike_sa_has_all_its_child_sas_before_the_old_one_goes(pair: Any) -> None:
    pair.up()
    fewest = []
    remove = pair.moon.datapath.remove_policy

    def look(entry: Any) -> None:
        remove(entry)
        fewest.append(len(pair.moon.datapath.spd))

    pair.moon.datapath.remove_policy = look
    whole = len(pair.moon.datapath.spd)
    pair.moon.endpoint.reauthenticate("tunnel-a", pair.now)
    pair.run(60)
    assert not [count for count in fewest if count < whole]
    assert len(pair.moon.views) == 1
    assert sorted(_names(pair.moon)) == sorted(NAMES)


def test_a_child_that_the_peer_refuses_does_not_keep_the_new_ike_sa_from_taking_over(
    pair: Any, sealing: Any
) -> None:
    pair.up()
    refusals = []

    def refuse(message: Any, payloads: Any) -> Any:
        if message.exchange is ExchangeType.CREATE_CHILD_SA and message.is_response:
            refusals.append(pair.now)
            return (NotifyPayload(type=NotifyType.NO_ADDITIONAL_SAS),)
        return payloads

    sealing.change = refuse
    pair.moon.endpoint.reauthenticate("tunnel-a", pair.now)
    pair.run(RECREATE_SECONDS / 2)
    assert len(pair.moon.views) == 2
    pair.run(RECREATE_SECONDS)
    assert len(refusals) >= 2
    (view,) = pair.moon.views
    assert len(view.children) == 1


def test_one_child_that_the_peer_refuses_leaves_the_others(
    make_pair: Callable[..., Any], make_mirror: Callable[..., Any], pair: Any
) -> None:
    mirror = make_mirror(pair.moon.policy)
    (_net, _voice, lab) = mirror.children
    policy = replace(pair.moon.policy, children=pair.moon.policy.children[::-1])
    pair = make_pair(policy, replace(mirror, children=(lab,)))
    pair.up()
    assert _names(pair.moon) == ["lab"]
    refused = [(r.child, r.failure.code) for r in pair.moon.reports(SaNotCreated)]
    assert refused == [("voice", "XF2004"), ("net", "XF2004")]
    pair.run(2.5 * RECREATE_SECONDS)
    assert len(pair.moon.reports(SaNotCreated)) == 6
    assert _names(pair.sun) == ["lab"]


def test_a_peer_that_takes_one_child_sa_only_is_not_asked_in_vain_all_the_time(
    pair: Any, sealing: Any
) -> None:
    def refuse(message: Any, payloads: Any) -> Any:
        is_answer = message.exchange is ExchangeType.CREATE_CHILD_SA and message.is_response
        return (NotifyPayload(type=NotifyType.NO_ADDITIONAL_SAS),) if is_answer else payloads

    sealing.change = refuse
    pair.up()
    pair.run(100)
    assert len(pair.moon.reports(SaNotCreated)) == 2
    assert _names(pair.moon) == ["net"]


@pytest.mark.parametrize("start", [StartMode.AUTO, StartMode.MANUAL])
def test_a_child_that_the_peer_deletes_comes_back_only_by_itself(pair: Any, start: Any) -> None:
    for host in (pair.moon, pair.sun):
        host.endpoint.replace_tunnel(replace(host.policy, start=start))
    pair.up()
    sa = pair.sun.ike_sa
    voice = next(c for c in sa.children if c.policy.name == "voice")
    voice.move_to(ChildSaState.DELETING)
    pair.sun.endpoint._run(sa, sa.attend, pair.now)
    pair.deliver()
    assert _names(pair.moon) == ["net", "lab"]
    assert [r.child for r in pair.moon.reports(ChildSaClosed)] == ["voice"]
    pair.run(RECREATE_SECONDS + 1)
    assert ("voice" in _names(pair.moon)) is (start is StartMode.AUTO)


def test_down_takes_every_child_down(pair: Any) -> None:
    pair.up()
    pair.moon.endpoint.terminate("tunnel-a", pair.now)
    pair.run(100)
    pair.assert_forgotten()
    assert all(sa.state is IkeSaState.DELETED for sa in pair.moon.ike_sas)
