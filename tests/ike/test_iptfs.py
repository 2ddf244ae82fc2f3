"""IP-TFS (RFC 9347): who asks by USE_AGGFRAG and who agrees, and what becomes of who does not."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from xfrmpy.ike.errors import PeerMisbehaved
from xfrmpy.ike.modes import Ends, check_mode_answered, choose_child, traffic_of
from xfrmpy.ike.nat import NatSituation
from xfrmpy.ike.outputs import SaNotCreated
from xfrmpy.ipsec.addresses import Path, SocketAddress
from xfrmpy.ipsec.sad import Direction, Mode
from xfrmpy.policy.model import DatapathChoice
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.payloads import NotifyPayload, TsiPayload, TsrPayload

C, D = 2, 1
"""RFC 9347 section 5.1: wants to be told of congestion; takes no fragments."""


def use_aggfrag(*octets: int) -> NotifyPayload:
    return NotifyPayload(type=NotifyType(16442), data=bytes(octets))


def in_mode(policy: Any, mode: Mode) -> Any:
    children = tuple(replace(c, mode=mode) for c in policy.children)
    return replace(policy, datapath=DatapathChoice.KERNEL, children=children)


@pytest.fixture
def policy(make_policy: Any) -> Any:
    return in_mode(make_policy(), Mode.IPTFS)


def test_both_ends_say_it_and_it_stays_through_a_rekeying(
    make_pair: Any, policy: Any, sealing: Any
) -> None:
    pair = make_pair(policy)
    pair.up()
    for host in (pair.moon, pair.sun):
        host.endpoint.rekey_child_sas("tunnel-a", pair.now)
        pair.run(30)
    for exchange in (ExchangeType.IKE_AUTH, ExchangeType.CREATE_CHILD_SA):
        about = [payloads for message, payloads in sealing.sent if message.exchange is exchange]
        assert about
        assert all(use_aggfrag(0) in payloads for payloads in about)
    for host in (pair.moon, pair.sun):
        dump = host.datapath.dump()
        windows = {e.direction: e.replay_window for e in dump.sad}
        assert windows == {Direction.IN: policy.children[0].replay_window, Direction.OUT: 0}
        assert {e.mode for e in dump.sad} == {e.template.mode for e in dump.spd} == {Mode.IPTFS}


@pytest.mark.parametrize(
    ("ours", "theirs"), [(Mode.IPTFS, Mode.TUNNEL), (Mode.TUNNEL, Mode.IPTFS)], ids=str
)
def test_a_plain_tunnel_is_not_made_of_it(
    make_pair: Any, policy: Any, make_mirror: Any, ours: Mode, theirs: Mode
) -> None:
    """It would show what is to be hidden; whichever end has it in its policy."""
    pair = make_pair(in_mode(policy, ours), in_mode(make_mirror(policy), theirs))
    pair.initiate()
    pair.deliver()
    pair.run(30)
    assert pair.moon.datapath.dump().sad == pair.sun.datapath.dump().sad == ()
    failures = [r.failure.code for r in pair.moon.reports(SaNotCreated)]
    assert not failures or "XF2020" in failures


def test_who_takes_no_fragments_is_sent_none(make_pair: Any, policy: Any, sealing: Any) -> None:
    pair = make_pair(policy)
    sealing.change = lambda message, payloads: tuple(
        use_aggfrag(D) if message.is_response and p == use_aggfrag(0) else p for p in payloads
    )
    pair.up()
    takes = {e.direction: e.takes_fragments for e in pair.moon.datapath.dump().sad}
    assert takes == {Direction.IN: True, Direction.OUT: False}
    assert all(e.takes_fragments for e in pair.sun.datapath.dump().sad)


@pytest.mark.parametrize("flags", [(), (C,), (C | D,)], ids=str)
def test_what_we_cannot_keep_is_declined(policy: Any, flags: tuple[int, ...]) -> None:
    """Nobody is told of congestion (the C bit); and the notification has an octet."""
    child, ends = policy.children[0], _ends()
    payloads = (
        TsiPayload(selectors=child.remote),
        TsrPayload(selectors=child.local),
        use_aggfrag(*flags),
    )
    assert traffic_of(payloads, ends, is_initiator=False).mode is Mode.TUNNEL
    plain = replace(child, mode=Mode.TUNNEL)
    chosen, traffic = choose_child((plain,), payloads, ends)
    assert (chosen, traffic.mode) == (plain, Mode.TUNNEL)
    answered = traffic_of(payloads, ends, is_initiator=True)
    refusal = check_mode_answered(child, answered)
    assert refusal is not None
    assert refusal.code == "XF2020"


def test_an_answer_may_not_have_what_was_not_asked_for(policy: Any) -> None:
    child = replace(policy.children[0], mode=Mode.TUNNEL)
    payloads = (
        TsiPayload(selectors=child.local),
        TsrPayload(selectors=child.remote),
        use_aggfrag(0),
    )
    traffic = traffic_of(payloads, _ends(), is_initiator=True)
    assert traffic.mode is Mode.IPTFS
    with pytest.raises(PeerMisbehaved, match="IP-TFS"):
        check_mode_answered(child, traffic)


def _ends() -> Ends:
    ours, theirs = (SocketAddress(ip_address(f"192.0.2.{host}"), 500) for host in (2, 1))
    return Ends(path=Path(local=ours, remote=theirs), nat=NatSituation())
