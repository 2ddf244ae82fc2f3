"""BEET mode: who asks and who agrees, and the inner headers that no packet bears."""

from __future__ import annotations

from dataclasses import replace
from hashlib import md5
from ipaddress import ip_address
from typing import Any

import pytest

from xfrmpy.ike.modes import (
    STRONGSWAN,
    Ends,
    check_mode_answered,
    check_mode_asked,
    choose_child,
    traffic_of,
)
from xfrmpy.ike.nat import NatSituation
from xfrmpy.ipsec.addresses import Path, SocketAddress
from xfrmpy.ipsec.sad import Direction, InnerEnds, Mode
from xfrmpy.ipsec.spd import PolicyDirection
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.message import decode_message_untrusted
from xfrmpy.wire.payloads import NotifyPayload, TsiPayload, TsrPayload, VendorIdPayload

MOON, SUN = ip_address("192.0.2.1"), ip_address("192.0.2.2")
ALICE, BOB = ip_address("10.1.0.10"), ip_address("10.2.0.20")
USE_BEET_MODE = NotifyPayload(type=NotifyType(40961))


def in_mode(policy: Any, mode: Mode) -> Any:
    return replace(policy, children=tuple(replace(c, mode=mode) for c in policy.children))


@pytest.fixture
def policy(make_policy: Any) -> Any:
    return in_mode(make_policy(f"{ALICE}/32", f"{BOB}/32"), Mode.BEET)


def test_both_ends_know_the_inner_addresses(make_pair: Any, policy: Any, sealing: Any) -> None:
    pair = make_pair(policy)
    pair.initiate()
    pair.deliver()
    for host, here, there in ((pair.moon, ALICE, BOB), (pair.sun, BOB, ALICE)):
        (child,) = host.views[0].children
        ends = {entry.direction: entry.inner for entry in child.entries}
        assert ends == {
            Direction.IN: InnerEnds(source=there, destination=here),
            Direction.OUT: InnerEnds(source=here, destination=there),
        }
        spd = host.datapath.dump().spd
        assert {entry.direction for entry in spd} == set(PolicyDirection)
        assert {entry.template.mode for entry in spd} == {Mode.BEET}
    asked = next(p for m, p in sealing.sent if m.exchange is ExchangeType.IKE_AUTH)
    (answer,) = sealing.answers(ExchangeType.IKE_AUTH)
    assert USE_BEET_MODE in asked
    assert USE_BEET_MODE in answer


def test_it_stays_when_the_child_sa_is_rekeyed(make_pair: Any, policy: Any) -> None:
    pair = make_pair(policy)
    pair.initiate()
    pair.deliver()
    for host in (pair.moon, pair.sun):
        before = {entry.spi for entry in host.datapath.dump().sad}
        host.endpoint.rekey_child_sas("tunnel-a", pair.now)
        pair.deliver()
        pair.run(30)
        after = host.datapath.dump().sad
        assert not before & {entry.spi for entry in after}
        assert {entry.mode for entry in after} == {Mode.BEET}


@pytest.mark.parametrize("mode", [Mode.TUNNEL, Mode.BEET])
def test_strongswan_is_told_in_ike_sa_init_that_we_mean_what_it_does(
    make_pair: Any, policy: Any, mode: Mode
) -> None:
    pair = make_pair(in_mode(policy, mode))
    pair.initiate()
    pair.deliver()
    init = [decode_message_untrusted(output.data) for _, output in pair.sent[:2]]
    told = [STRONGSWAN in message.payloads for message in init]
    assert told == [mode is Mode.BEET] * 2
    assert VendorIdPayload(data=md5(b"strongSwan", usedforsecurity=False).digest()) == STRONGSWAN


@pytest.mark.parametrize(
    ("ours", "theirs"), [(Mode.BEET, Mode.TUNNEL), (Mode.TUNNEL, Mode.BEET)], ids=str
)
def test_one_that_wants_it_takes_no_tunnel(
    make_pair: Any, policy: Any, make_mirror: Any, ours: Mode, theirs: Mode
) -> None:
    """Whichever of them begins: a tunnel is made of it, or refused."""
    pair = make_pair(in_mode(policy, ours), in_mode(make_mirror(policy), theirs))
    pair.initiate()
    pair.deliver()
    pair.run(30)
    assert pair.moon.datapath.dump().sad == pair.sun.datapath.dump().sad == ()


def test_the_number_is_private_and_means_nothing_to_whom_policy_does_not_tell(policy: Any) -> None:
    """Another implementation may mean something else by it, in a request and in an answer."""
    payloads = (
        TsiPayload(selectors=policy.children[0].remote),
        TsrPayload(selectors=policy.children[0].local),
        USE_BEET_MODE,
    )
    path = Path(local=SocketAddress(SUN, 500), remote=SocketAddress(MOON, 500))
    ends = Ends(path=path, nat=NatSituation())
    (tunnel,) = in_mode(policy, Mode.TUNNEL).children
    child, traffic = choose_child((tunnel,), payloads, ends)
    assert (child, traffic.mode) == (tunnel, Mode.TUNNEL)
    check_mode_asked(child, traffic)
    answered = traffic_of(payloads, ends, is_initiator=True)
    assert answered.mode is Mode.BEET
    assert check_mode_answered(tunnel, answered) is None
    assert check_mode_answered(policy.children[0], answered) is None
