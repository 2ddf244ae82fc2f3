"""What a Child SA carries is negotiated: narrowed, cut into pairs, asked for by a packet.

Read RFC 7296 sections 2.9 and 2.9.1 beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.ike.childless import CHILDLESS_SECONDS
from xfrmpy.ike.outputs import ChildSaEstablished, SaNotCreated, TunnelClosed
from xfrmpy.ike.succession import OVERLAP_SECONDS
from xfrmpy.ipsec.sad import OUR_REQIDS
from xfrmpy.ipsec.selectors import TrafficSelector, narrow_selectors
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.payloads import NotifyPayload, TsiPayload, TsrPayload

LOCAL, REMOTE = "10.1.0.0/16 10.3.0.0/16 2001:db8:1::/48", "10.2.0.0/16 10.4.0.0/16 2001:db8:2::/48"
PAIRS = {
    ("10.1.0.0/16", "10.2.0.0/16"),
    ("10.1.0.0/16", "10.4.0.0/16"),
    ("10.3.0.0/16", "10.2.0.0/16"),
    ("10.3.0.0/16", "10.4.0.0/16"),
    ("2001:db8:1::/48", "2001:db8:2::/48"),
}


def _scopes(host: Any) -> list[tuple[str, str]]:
    return [
        (" ".join(map(str, c.local)), " ".join(map(str, c.remote)))
        for v in host.views
        for c in v.children
    ]


@pytest.fixture
def first_pair_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A responder such as there are many: of what it is offered it takes the first of each."""

    def narrow(*args: Any) -> Any:
        return narrow_selectors(*args)[:1]

    monkeypatch.setattr("xfrmpy.ike.child_sa.narrow_selectors", narrow)


@pytest.mark.usefixtures("first_pair_only")
def test_where_the_peer_takes_the_first_pair_the_others_become_child_sas(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any]
) -> None:
    pair = make_pair(make_policy(LOCAL, REMOTE))
    pair.up()
    assert set(_scopes(pair.moon)) == PAIRS
    assert len(_scopes(pair.moon)) == len(PAIRS)
    assert {(b, a) for a, b in _scopes(pair.sun)} == PAIRS
    pair.assert_mirrored()


@pytest.mark.usefixtures("first_pair_only")
def test_each_pair_has_sas_that_no_other_pairs_policy_finds(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any]
) -> None:
    pair = make_pair(make_policy(LOCAL, REMOTE))
    pair.up()
    for host in (pair.moon, pair.sun):
        reqids = [child.reqid for child in host.ike_sa.children]
        assert len(set(reqids)) == len(PAIRS)
        assert set(reqids) <= set(OUR_REQIDS)
        for child in host.ike_sa.children:
            assert {e.reqid for e in child.entries} == {child.reqid}
            nets = {str(s) for s in (*child.local, *child.remote)}
            for entry in host.datapath.spd.values():
                if entry.template.reqid == child.reqid:
                    assert {str(entry.selector.source), str(entry.selector.destination)} <= nets


@pytest.mark.usefixtures("first_pair_only")
def test_pairs_are_rekeyed_each_for_itself_and_made_anew(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any]
) -> None:
    pair = make_pair(make_policy(LOCAL, REMOTE))
    pair.up()
    reqids = sorted(child.reqid for child in pair.moon.ike_sa.children)
    pair.moon.endpoint.rekey_child_sas("tunnel-a", pair.now)
    pair.run(OVERLAP_SECONDS + 1)
    assert sorted(child.reqid for child in pair.moon.ike_sa.children) == reqids
    pair.moon.endpoint.reauthenticate("tunnel-a", pair.now)
    pair.run(OVERLAP_SECONDS + 1)
    assert set(_scopes(pair.moon)) == PAIRS
    pair.assert_mirrored()


def test_a_narrowed_selector_is_not_asked_for_again(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], make_mirror: Any, sealing: Any
) -> None:
    sun = make_mirror(make_policy("10.1.8.0/24", "10.2.0.0/16 10.4.0.0/16"))
    pair = make_pair(make_policy("10.1.0.0/16", "10.2.0.0/16 10.4.0.0/16"), sun)
    pair.up()
    pair.run(100)
    assert _scopes(pair.moon) == [("10.1.8.0/24", "10.2.0.0/16 10.4.0.0/16")]
    assert not sealing.answers(ExchangeType.CREATE_CHILD_SA)


def test_what_the_peer_does_not_know_at_all_is_asked_for_once(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], make_mirror: Any, sealing: Any
) -> None:
    sun = make_mirror(make_policy("10.1.0.0/16", "10.2.0.0/16"))
    pair = make_pair(make_policy("10.1.0.0/16", "10.2.0.0/16 10.4.0.0/16"), sun)
    pair.up()
    pair.run(300)
    assert _scopes(pair.moon) == [("10.1.0.0/16", "10.2.0.0/16")]
    answers = sealing.answers(ExchangeType.CREATE_CHILD_SA)
    assert [p.type for (p,) in answers] == [NotifyType.TS_UNACCEPTABLE]
    assert not pair.moon.reports(SaNotCreated)


def test_a_peer_that_demands_single_pairs_gets_them(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], sealing: Any
) -> None:
    """SINGLE_PAIR_REQUIRED, section 2.9: "only willing to accept a single pair of addresses"."""
    pair = make_pair(make_policy("10.1.0.0/16 10.3.0.0/16", "10.2.0.0/16"))

    def demand(message: Any, payloads: Any) -> Any:
        if message.exchange is not ExchangeType.IKE_AUTH or not message.is_response:
            return payloads
        kept = tuple(p for p in payloads if type(p).__name__ in ("IdrPayload", "AuthPayload"))
        return (*kept, NotifyPayload(type=NotifyType.SINGLE_PAIR_REQUIRED))

    sealing.change = demand
    pair.up()
    assert set(_scopes(pair.moon)) == {
        ("10.1.0.0/16", "10.2.0.0/16"),
        ("10.3.0.0/16", "10.2.0.0/16"),
    }


def test_a_peer_that_demands_single_pairs_and_refuses_each_has_no_empty_ike_sa_for_long(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], sealing: Any
) -> None:
    pair = make_pair(make_policy("10.1.0.0/16 10.3.0.0/16", "10.2.0.0/16"))

    def refuse(message: Any, payloads: Any) -> Any:
        if not message.is_response or message.exchange is ExchangeType.INFORMATIONAL:
            return payloads
        if message.exchange is ExchangeType.CREATE_CHILD_SA:
            return (NotifyPayload(type=NotifyType.TS_UNACCEPTABLE),)
        kept = tuple(p for p in payloads if type(p).__name__ in ("IdrPayload", "AuthPayload"))
        return (*kept, NotifyPayload(type=NotifyType.SINGLE_PAIR_REQUIRED))

    sealing.change = refuse
    pair.up()
    assert len(sealing.answers(ExchangeType.CREATE_CHILD_SA)) == 2
    pair.run(CHILDLESS_SECONDS + 1)
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2023"
    assert pair.moon.views == ()


def test_a_packet_that_wants_a_child_sa_is_named_first_and_is_carried(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], sealing: Any
) -> None:
    """Section 2.9: the first selectors are those "of the packet that triggered the request"."""
    policy = make_policy()
    (net,) = policy.children
    lab = replace(
        net,
        name="lab",
        reqid=net.reqid + 1,
        local=(TrafficSelector.parse("10.5.0.0/16"),),
        remote=(TrafficSelector.parse("10.6.0.0/16"),),
    )
    pair = make_pair(replace(policy, children=(net, lab)))
    pair.up()
    sa = pair.moon.ike_sa
    gone = next(c for c in sa.children if c.policy.name == "lab")
    sa.children.remove(gone)
    gone.close()
    source = TrafficSelector.parse("10.5.0.1/32[tcp/4711]")
    destination = TrafficSelector.parse("10.6.0.9/32[tcp/443]")
    pair.moon.endpoint.handle_acquire("tunnel-a", "lab", source, destination, pair.now)
    pair.deliver()
    requests = [p for m, p in sealing.sent if not m.is_response]
    (tsi,) = (p for p in requests[-1] if isinstance(p, TsiPayload))
    (tsr,) = (p for p in requests[-1] if isinstance(p, TsrPayload))
    assert (tsi.selectors, tsr.selectors) == ((source, *lab.local), (destination, *lab.remote))
    assert [r.child for r in pair.moon.reports(ChildSaEstablished)] == ["net", "lab", "lab"]
    made = sa.children[-1]
    assert any(s.covers(source) for s in made.local)
    assert any(s.covers(destination) for s in made.remote)
