"""Transport mode: who asks and who agrees, whose addresses the selectors have, with NATs between.

RFC 7296 sections 1.3.1 and 2.23.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from xfrmpy.ike.outputs import AddSa, RequestRefused, SendDatagram, TunnelClosed
from xfrmpy.ipsec.addresses import SocketAddress
from xfrmpy.ipsec.sad import Direction, Mode
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import PolicyDirection
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.payloads import NotifyPayload, TsiPayload, TsrPayload

MakePolicy = Callable[..., Any]
MOON, SUN = ip_address("192.0.2.1"), ip_address("192.0.2.2")
PUBLIC = {MOON: ip_address("198.51.100.1"), SUN: ip_address("198.51.100.2")}


@pytest.fixture
def policy(make_policy: MakePolicy) -> Any:
    return transport(make_policy("0.0.0.0/0", "0.0.0.0/0"))


def transport(policy: Any, mode: Mode = Mode.TRANSPORT) -> Any:
    return replace(policy, children=tuple(replace(c, mode=mode) for c in policy.children))


class Nats:
    """The ends named have other addresses outside; ports of moon's are changed, too."""

    def __init__(self, *ends: str) -> None:
        names = {"moon": MOON, "sun": SUN}
        self.public = {names[end]: PUBLIC[names[end]] for end in ends}
        self.private = {outer: inner for inner, outer in self.public.items()}

    def install(self, pair: Any) -> None:
        pair.translate, pair.reach = self.translate, self.reach
        for host, peer in ((pair.moon, SUN), (pair.sun, MOON)):
            host.endpoint.set_peer_addresses("tunnel-a", (self.public.get(peer, peer),))

    def translate(self, source: SocketAddress) -> SocketAddress:
        if source.address not in self.public:
            return source
        port = source.port + 40_000 if source.address == MOON else source.port
        return SocketAddress(self.public[source.address], port)

    def reach(self, destination: SocketAddress) -> SocketAddress:
        inner = self.private.get(destination.address, destination.address)
        return SocketAddress(inner, destination.port % 40_000)


def up(pair: Any, *behind: str) -> Any:
    nats = Nats(*behind)
    nats.install(pair)
    inner, pair.sun.address = pair.sun.address, str(nats.public.get(SUN, SUN))
    pair.initiate()
    pair.sun.address = inner
    pair.deliver()
    return pair


def _one(address: Any) -> TrafficSelector:
    return TrafficSelector(start_address=address, end_address=address)


def test_the_child_carries_what_the_two_ends_say(make_pair: Any, policy: Any) -> None:
    pair = up(make_pair(policy))
    for host, here, there in ((pair.moon, MOON, SUN), (pair.sun, SUN, MOON)):
        (child,) = host.views[0].children
        assert (child.local, child.remote) == ((_one(here),), (_one(there),))
        assert {entry.mode for entry in child.entries} == {Mode.TRANSPORT}
        assert {e.direction for e in host.datapath.dump().spd} == {
            PolicyDirection.IN,
            PolicyDirection.OUT,
        }


@pytest.mark.parametrize("ends", [("moon",), ("sun",), ("moon", "sun")], ids="+".join)
def test_through_nats_each_end_has_the_addresses_that_it_sees(
    make_pair: Any, policy: Any, ends: tuple[str, ...], sealing: Any
) -> None:
    pair = up(make_pair(policy), *ends)
    outside = {a: PUBLIC[a] if name in ends else a for name, a in (("moon", MOON), ("sun", SUN))}
    for host, here, there in ((pair.moon, MOON, SUN), (pair.sun, SUN, MOON)):
        (child,) = host.views[0].children
        assert child.local == (_one(here),)
        assert child.remote == (_one(outside[there]),)
        inbound, outbound = child.entries
        assert (inbound.source, inbound.destination) == (outside[there], here)
        assert (outbound.source, outbound.destination) == (here, outside[there])
        assert inbound.encapsulation.original == there, "for the checksums"
        assert outbound.encapsulation.original is None
    # On the wire: the client names its own address and the one that it calls; the server answers
    # with those that it sees.
    (asked,) = [p for m, p in sealing.sent if m.exchange is ExchangeType.IKE_AUTH][:1]
    assert _selectors(asked) == (_one(MOON), _one(outside[SUN]))
    (answer,) = sealing.answers(ExchangeType.IKE_AUTH)
    assert _selectors(answer) == (_one(outside[MOON]), _one(SUN))


def _selectors(payloads: Any) -> tuple[TrafficSelector, ...]:
    return tuple(s for p in payloads if isinstance(p, TsiPayload | TsrPayload) for s in p.selectors)


def test_the_policy_limits_protocols_and_ports(make_pair: Any, make_policy: MakePolicy) -> None:
    policy = transport(make_policy("0.0.0.0/0[tcp]", "192.0.2.0/24[tcp/5432]"))
    pair = up(make_pair(policy), "moon")
    (child,) = pair.moon.views[0].children
    assert [str(s) for s in child.remote] == ["192.0.2.2/32[tcp/5432]"]
    (child,) = pair.sun.views[0].children
    assert [str(s) for s in child.remote] == ["198.51.100.1/32[tcp]"]


def test_a_policy_that_leaves_the_ends_out_is_told_and_nothing_is_sent(
    make_pair: Any, make_policy: MakePolicy
) -> None:
    pair = make_pair(transport(make_policy("10.1.0.0/16", "192.0.2.2/32")))
    pair.initiate()
    pair.deliver()
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2021"
    assert pair.moon.reports(SendDatagram) == []


def test_a_responder_that_wants_a_tunnel_makes_one_and_the_initiator_ends_it(
    make_pair: Any, policy: Any, make_mirror: Any
) -> None:
    pair = up(make_pair(policy, transport(make_mirror(policy), Mode.TUNNEL)))
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2020"
    assert pair.moon.reports(AddSa) == []
    pair.run(1)
    pair.assert_down()


def test_a_responder_that_wants_transport_mode_refuses_a_tunnel(
    make_pair: Any, policy: Any, make_mirror: Any
) -> None:
    pair = up(make_pair(transport(policy, Mode.TUNNEL), make_mirror(policy)))
    (refused,) = pair.sun.reports(RequestRefused)
    assert refused.failure.code == "XF2020"
    assert pair.sun.reports(AddSa) == []
    pair.run(1)
    pair.assert_down()


def test_a_tunnel_is_taken_by_its_own_selectors_though_transport_is_asked(
    make_pair: Any, make_policy: MakePolicy, make_mirror: Any, sealing: Any
) -> None:
    """RFC 7296 section 2.23.1: substitution is undone where the SPD wants a tunnel."""
    asks = NotifyPayload(type=NotifyType.USE_TRANSPORT_MODE)
    is_asking = (ExchangeType.IKE_AUTH, False)
    sealing.change = lambda m, p: (*p, asks) if (m.exchange, m.is_response) == is_asking else p
    policy = make_policy("192.0.2.1/32", "192.0.2.2/32")
    pair = up(make_pair(policy, replace(make_mirror(policy), peers=("198.51.100.1",))), "moon")
    pair.assert_up()
    (child,) = pair.sun.views[0].children
    assert child.remote == (_one(MOON),), "not the NAT's"
    assert {e.mode for e in child.entries} == {Mode.TUNNEL}


def _change_answer(sealing: Any, change: Callable[[Any], Any]) -> None:
    is_answer = (ExchangeType.IKE_AUTH, True)
    sealing.change = lambda m, p: change(p) if (m.exchange, m.is_response) == is_answer else p


def test_transport_mode_that_was_not_asked_for_is_a_breach(pair: Any, sealing: Any) -> None:
    _change_answer(sealing, lambda p: (*p, NotifyPayload(type=NotifyType.USE_TRANSPORT_MODE)))
    pair.up()
    (closed,) = pair.moon.reports(TunnelClosed)
    assert closed.failure.code == "XF2008"
    assert pair.moon.reports(AddSa) == []


@pytest.mark.parametrize("wide", ["198.51.100.0/24", "198.51.100.1-198.51.100.2", "0.0.0.0/0"])
def test_more_than_one_address_is_not_put_into_ours(
    make_pair: Any, policy: Any, sealing: Any, wide: str
) -> None:
    """RFC 7296 section 2.23.1: "it MUST use exactly one IP address"."""
    is_asking = (ExchangeType.IKE_AUTH, False)

    def widened(payloads: Any) -> Any:
        other = TsiPayload(selectors=(TrafficSelector.parse(wide),))
        return tuple(other if isinstance(p, TsiPayload) else p for p in payloads)

    sealing.change = lambda m, p: widened(p) if (m.exchange, m.is_response) == is_asking else p
    pair = up(make_pair(policy), "moon")
    local = [str(s) for c in pair.sun.views[0].children for s in c.remote]
    assert local in ([], ["198.51.100.1/32"]), "narrowed to the one that we see, or refused"


def test_a_peer_whose_nat_changes_the_port_is_followed_and_not_to_another_address(
    make_pair: Any, policy: Any
) -> None:
    pair = up(make_pair(policy), "moon")
    (inbound,) = (e for e in pair.sun.datapath.sad.values() if e.direction is Direction.IN)
    before = pair.sun.views[0].path.remote
    elsewhere = SocketAddress(ip_address("198.51.100.77"), 4500)
    pair.sun.endpoint.handle_mapping(inbound.id, elsewhere, pair.now)
    pair.sun.take_outputs()
    assert pair.sun.views[0].path.remote == before
    moved = replace(before, port=50_001)
    pair.sun.endpoint.handle_mapping(inbound.id, moved, pair.now)
    pair.sun.take_outputs()
    assert pair.sun.views[0].path.remote == moved
    (inbound,) = (e for e in pair.sun.datapath.sad.values() if e.direction is Direction.IN)
    assert (inbound.encapsulation.source_port, inbound.encapsulation.original) == (50_001, MOON)


@pytest.mark.parametrize("who", ["moon", "sun"])
def test_a_rekeyed_child_is_in_transport_mode_too(make_pair: Any, policy: Any, who: str) -> None:
    pair = up(make_pair(policy), "moon", "sun")
    before = {entry.id for entry in pair.moon.datapath.dump().sad}
    getattr(pair, who).endpoint.rekey_child_sas("tunnel-a", pair.now)
    pair.run(30)
    for host, there in ((pair.moon, SUN), (pair.sun, MOON)):
        inbound, outbound = sorted(host.datapath.dump().sad, key=lambda e: e.direction)
        assert {inbound.mode, outbound.mode} == {Mode.TRANSPORT}
        assert inbound.encapsulation.original == there
        (child,) = host.views[0].children
        assert child.remote == (_one(PUBLIC[there]),)
    assert before.isdisjoint(entry.id for entry in pair.moon.datapath.dump().sad)
