"""INITIAL_CONTACT and several IKE SAs with one peer (RFC 7296 sections 2.4 and 2.8.3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.ike.outputs import RequestRefused, TunnelClosed
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.addresses import IKE_PORT, Path, SocketAddress
from xfrmpy.ipsec.identity import Identity
from xfrmpy.policy.model import Uniqueness
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.message import Message
from xfrmpy.wire.payloads import NotifyPayload

FIRST = NotifyPayload(type=NotifyType.INITIAL_CONTACT)


def unique(policy: Any, kind: Uniqueness) -> Any:
    return replace(policy, unique=kind)


def said(sealing: Any) -> list[bool]:
    """Whether each IKE_AUTH request said INITIAL_CONTACT."""
    requests = (
        payloads
        for message, payloads in sealing.sent
        if message.exchange is ExchangeType.IKE_AUTH and not message.is_response
    )
    return [FIRST in payloads for payloads in requests]


def spis(host: Any) -> list[bytes]:
    return [view.spi_i for view in host.views if view.state is IkeSaState.ESTABLISHED]


def test_a_second_tunnel_between_the_same_identities_is_no_first_contact(
    make_pair: Any, make_policy: Any, sealing: Any
) -> None:
    """Else the peer would end the first: it knows identities, not our tunnels."""
    pair = make_pair(make_policy())
    pair.up()
    endpoint = pair.moon.endpoint
    other = replace(pair.moon.policy, name="tunnel-b")
    endpoint._core.tunnels["tunnel-b"] = replace(endpoint._core.tunnels["tunnel-a"], policy=other)
    path = Path(
        local=SocketAddress(pair.moon.views[0].path.local.address, IKE_PORT),
        remote=SocketAddress(pair.moon.views[0].path.remote.address, IKE_PORT),
    )
    endpoint.initiate("tunnel-b", path, pair.now)
    pair.deliver()
    assert said(sealing) == [True, False]
    assert len(pair.sun.views) == 2


def test_a_tunnel_with_another_identity_is_a_first_contact(
    make_pair: Any, make_policy: Any, sealing: Any
) -> None:
    pair = make_pair(make_policy())
    pair.up()
    endpoint = pair.moon.endpoint
    policy = replace(pair.moon.policy, local_id=Identity.parse("mars"))
    endpoint.replace_tunnel(policy)
    pair.initiate()
    pair.deliver()
    assert said(sealing) == [True, True]


def test_initial_contact_in_the_answer_counts_as_in_the_request(
    make_pair: Any, make_policy: Any, sealing: Any
) -> None:
    """Section 2.4: it "MUST be in the first IKE_AUTH request or response"."""
    pair = make_pair(make_policy())
    pair.up()
    (old,) = spis(pair.moon)

    def first(message: Message, payloads: Any) -> Any:
        is_answer = message.is_response and message.exchange is ExchangeType.IKE_AUTH
        return (*payloads, FIRST) if is_answer else payloads

    sealing.change = first
    pair.up()
    assert len(spis(pair.moon)) == 1
    assert old not in spis(pair.moon)


def test_initial_contact_in_another_exchange_is_ignored(pair: Any, make_ask: Any) -> None:
    """Section 2.4: "receiving parties MAY ignore it in other messages"."""
    pair.up()
    pair.up()
    ask = make_ask(ExchangeType.INFORMATIONAL, FIRST)
    pair.moon.ike_sas[0].start(ask, pair.now)
    pair.deliver()
    assert ask.answer == ()
    assert len(spis(pair.sun)) == 2


def test_initial_contact_of_who_cannot_prove_itself_ends_nothing(
    make_pair: Any, make_policy: Any
) -> None:
    pair = make_pair(make_policy())
    pair.up()
    before = pair.sun.snapshot()
    pair.moon.policy = make_policy(key=b"another key of thirty-two octets")
    pair.moon.start()
    pair.up()
    assert pair.sun.snapshot() == before


@pytest.mark.parametrize("kind", [Uniqueness.NO, Uniqueness.NEVER])
def test_a_peer_may_make_a_new_ike_sa_before_it_breaks_the_old_one(
    make_pair: Any, make_policy: Any, kind: Uniqueness
) -> None:
    """Reauthentication (section 2.8.3): no moment without a Child SA at either end."""
    pair = make_pair(unique(make_policy(), kind))
    pair.up()
    (old,) = spis(pair.moon)
    pair.initiate()
    pair.deliver()
    assert len(spis(pair.moon)) == len(spis(pair.sun)) == 2
    (first,) = (sa for sa in pair.moon.ike_sas if sa.channel.spi_i == old)
    first.terminate(None, pair.now)
    pair.run(10)
    pair.assert_up()
    assert old not in spis(pair.sun)
    assert not pair.sun.reports(RequestRefused)


def test_never_says_no_initial_contact_and_listens_to_none(
    make_pair: Any, make_policy: Any, sealing: Any
) -> None:
    pair = make_pair(unique(make_policy(), Uniqueness.NEVER))
    pair.up()
    assert said(sealing) == [False]
    sealing.change = lambda message, payloads: (
        (*payloads, FIRST) if not message.is_response else payloads
    )
    pair.up()
    assert len(spis(pair.sun)) == 2


def test_keep_refuses_a_second_ike_sa(make_pair: Any, make_policy: Any, make_mirror: Any) -> None:
    moon = make_policy()
    pair = make_pair(moon, unique(make_mirror(moon), Uniqueness.KEEP))
    pair.up()
    before = spis(pair.sun)
    pair.up()
    assert spis(pair.sun) == spis(pair.moon) == before
    (refused,) = pair.sun.reports(RequestRefused)
    assert refused.failure.code == "XF2024"
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2005"
    pair.assert_up()


def test_keep_lets_a_peer_that_began_anew_come_back(
    make_pair: Any, make_policy: Any, make_mirror: Any
) -> None:
    moon = make_policy()
    pair = make_pair(moon, unique(make_mirror(moon), Uniqueness.KEEP))
    pair.up()
    (old,) = spis(pair.sun)
    pair.moon.start()
    pair.up()
    (new,) = spis(pair.sun)
    assert new != old


def test_keep_tells_who_has_not_proved_itself_nothing(
    make_pair: Any, make_policy: Any, make_mirror: Any
) -> None:
    moon = make_policy()
    pair = make_pair(moon, unique(make_mirror(moon), Uniqueness.KEEP))
    pair.up()
    pair.moon.endpoint.replace_tunnel(make_policy(key=b"another key of thirty-two octets"))
    pair.up()
    assert pair.sun.reports(RequestRefused)[0].failure.code == "XF2006"


def test_replace_ends_the_old_ike_sa_and_tells_the_peer(make_pair: Any, make_policy: Any) -> None:
    pair = make_pair(unique(make_policy(), Uniqueness.REPLACE))
    pair.up()
    (old,) = spis(pair.moon)
    pair.up()
    (new,) = spis(pair.moon)
    assert new != old
    assert spis(pair.sun) == [new]
    pair.assert_up()


@pytest.mark.parametrize(("kind", "count"), [(Uniqueness.NO, 1), (Uniqueness.NEVER, 2)])
def test_a_surplus_ike_sa_ends_unless_all_may_stay(
    make_pair: Any, make_policy: Any, kind: Uniqueness, count: int
) -> None:
    pair = make_pair(unique(make_policy(), kind))
    pair.up()
    pair.up()
    pair.run(60)
    assert len(spis(pair.moon)) == len(spis(pair.sun)) == count
