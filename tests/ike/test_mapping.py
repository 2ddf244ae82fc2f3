"""A peer whose NAT gives it another address or port, and what somebody else may make of that.

Read RFC 7296 section 2.23, its last bullet, beside these tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from xfrmpy.ike.errors import DropReason
from xfrmpy.ike.outputs import AddPolicy, MoveSa, PeerMoved, SendDatagram, TunnelClosed
from xfrmpy.ipsec.addresses import IKE_NATT_PORT, IKE_PORT, Path, SocketAddress
from xfrmpy.ipsec.sad import Direction, UdpEncapsulation
from xfrmpy.policy.model import Encapsulation
from xfrmpy.registry import ExchangeType

PUBLIC = ip_address("198.51.100.1")
FIRST = {IKE_PORT: 41500, IKE_NATT_PORT: 44500}
ELSEWHERE = SocketAddress(ip_address("198.51.100.77"), 50001)
MOON = ip_address("192.0.2.1")


class Nat:
    """Moon's NAT: what it makes of moon's addresses. `forget` gives another mapping."""

    def __init__(self) -> None:
        self.address = PUBLIC
        self.ports = dict(FIRST)

    def __call__(self, source: SocketAddress) -> SocketAddress:
        if source.address != MOON:
            return source
        return SocketAddress(self.address, self.ports[source.port])

    def reach(self, destination: SocketAddress) -> SocketAddress | None:
        """Where a datagram arrives; what is sent to a forgotten mapping is lost."""
        if destination.address.version == 4 and str(destination.address).startswith("192.0.2."):
            return destination
        if destination.address == self.address and destination.port in self.ports.values():
            own = {mapped: port for port, mapped in self.ports.items()}
            return SocketAddress(MOON, own[destination.port])
        return None

    @property
    def mapped(self) -> SocketAddress:
        return SocketAddress(self.address, self.ports[IKE_NATT_PORT])

    def forget(self, address: str = "", port: int = 45678) -> None:
        self.address = ip_address(address) if address else self.address
        self.ports[IKE_NATT_PORT] = port


@pytest.fixture
def nat() -> Nat:
    return Nat()


@pytest.fixture
def pair(make_pair: Callable[..., Any], make_policy: Callable[..., Any], nat: Nat) -> Any:
    """Moon is behind a NAT, sun is not, and the tunnel is up."""
    pair = make_pair(make_policy())
    pair.sun.endpoint.set_peer_addresses("tunnel-a", (PUBLIC, ELSEWHERE.address))
    pair.translate, pair.reach = nat, nat.reach
    pair.up()
    pair.assert_up()
    return pair


def _ports(host: Any) -> set[UdpEncapsulation]:
    return {e.encapsulation for e in host.datapath.sad.values()}


def _assert_follows(pair: Any, old: SocketAddress, new: SocketAddress) -> None:
    """Sun sends IKE and ESP to `new`, and takes ESP from there."""
    assert pair.sun.reports(PeerMoved)[-1] == PeerMoved(tunnel="tunnel-a", old=old, new=new)
    assert pair.sun.views[0].path.remote == new
    inbound, outbound = sorted(pair.sun.datapath.dump().sad, key=lambda e: e.direction)
    assert (inbound.source, outbound.destination) == (new.address, new.address)
    assert inbound.encapsulation == UdpEncapsulation(new.port, IKE_NATT_PORT)
    assert outbound.encapsulation == UdpEncapsulation(IKE_NATT_PORT, new.port)
    for entry in pair.sun.datapath.dump().spd:
        assert new.address in (entry.template.source, entry.template.destination)
    pair.assert_up()


def _assert_stays(pair: Any, nat_address: SocketAddress) -> None:
    assert pair.sun.reports(PeerMoved) == []
    assert pair.sun.reports(MoveSa) == []
    assert pair.sun.views[0].path.remote == nat_address


@pytest.mark.parametrize("address", ["", "198.51.100.2"], ids=["port", "address"])
def test_a_fresh_request_from_elsewhere_takes_the_tunnel_along(
    pair: Any, nat: Nat, address: str
) -> None:
    before, keys = nat.mapped, {e.encryption_key for e in pair.sun.datapath.sad.values()}
    policies = len(pair.sun.reports(AddPolicy))
    nat.forget(address)
    pair.run(31)  # Moon asks whether sun lives.
    _assert_follows(pair, before, nat.mapped)
    assert {e.encryption_key for e in pair.sun.datapath.sad.values()} == keys
    assert len(pair.sun.reports(AddPolicy)) - policies == (3 if address else 0)
    assert pair.moon.reports(MoveSa) == []


def test_a_fresh_response_from_elsewhere_takes_the_tunnel_along(
    pair: Any, nat: Nat, make_ask: Any
) -> None:
    before = nat.mapped
    nat.forget()
    make_ask(ExchangeType.INFORMATIONAL).on(pair.sun, pair.now)
    (request,) = pair.sun.take_outputs()
    pair.moon.endpoint.receive_datagram(request.data, pair.moon.views[0].path, pair.now)
    pair.deliver()
    _assert_follows(pair, before, nat.mapped)


def test_esp_from_elsewhere_takes_the_tunnel_and_ike_along(pair: Any, nat: Nat) -> None:
    before = nat.mapped
    nat.forget("198.51.100.2")
    (inbound,) = (e for e in pair.sun.datapath.sad.values() if e.direction is Direction.IN)
    pair.sun.endpoint.handle_mapping(inbound.id, nat.mapped, pair.now)
    pair.deliver()
    _assert_follows(pair, before, nat.mapped)
    again = len(pair.sun.outputs)
    pair.sun.endpoint.handle_mapping(inbound.id, nat.mapped, pair.now)
    pair.deliver()
    assert len(pair.sun.outputs) == again, "told twice, done once"


def test_a_retransmission_goes_where_the_peer_is_now(pair: Any, nat: Nat, make_ask: Any) -> None:
    make_ask(ExchangeType.INFORMATIONAL).on(pair.sun, pair.now)
    pair.impair = lambda output, sender: [] if sender is pair.sun else [output.data]
    pair.deliver()
    nat.forget()
    (inbound,) = (e for e in pair.sun.datapath.sad.values() if e.direction is Direction.IN)
    pair.sun.endpoint.handle_mapping(inbound.id, nat.mapped, pair.now)
    pair.run(2)
    assert pair.sun.reports(SendDatagram)[-1].path.remote == nat.mapped


def test_a_mapping_of_no_sa_of_ours_changes_nothing(pair: Any, nat: Nat) -> None:
    (outbound,) = (e for e in pair.moon.datapath.sad.values() if e.direction is Direction.OUT)
    unknown = replace(outbound.id, spi=0x5555)
    pair.sun.endpoint.handle_mapping(unknown, ELSEWHERE, pair.now)
    pair.deliver()
    _assert_stays(pair, nat.mapped)


def test_everything_is_taken_out_of_force_where_it_has_moved_to(pair: Any, nat: Nat) -> None:
    nat.forget("198.51.100.2")
    pair.run(31)
    pair.moon.endpoint.terminate("tunnel-a", pair.now)
    pair.deliver()
    pair.assert_down()


# Who is not followed.


def test_an_end_behind_a_nat_does_not_follow(pair: Any, nat: Nat) -> None:
    """One packet with a forged source address would break the connection."""
    nat.forget()
    pair.run(31)
    sun = pair.moon.views[0].path.remote
    datagram = [o for name, o in pair.sent if name == "sun"][-1]
    (inbound,) = (e for e in pair.moon.datapath.sad.values() if e.direction is Direction.IN)
    pair.moon.endpoint.handle_mapping(inbound.id, ELSEWHERE, pair.now)
    pair.impair = lambda output, sender: [] if sender is pair.sun else [output.data]
    pair.moon.endpoint.receive_datagram(
        datagram.data, replace(pair.moon.views[0].path, remote=ELSEWHERE), pair.now
    )
    pair.deliver()
    assert pair.moon.views[0].path.remote == sun
    assert pair.moon.reports(MoveSa) == pair.moon.reports(PeerMoved) == []


@pytest.mark.parametrize("encapsulation", Encapsulation)
def test_without_a_nat_nobody_is_followed(
    make_pair: Any, make_policy: Any, make_mirror: Any, encapsulation: Encapsulation
) -> None:
    """Moon may pretend that it is behind a NAT; then sun believes it, and moon knows better."""
    moon = replace(make_policy(), encapsulation=encapsulation)
    pair = make_pair(moon, make_mirror(make_policy()))
    pair.up()
    for host in (pair.moon, pair.sun):
        before = host.views[0].path
        host.endpoint.handle_mapping(host.views[0].children[0].entries[0].id, ELSEWHERE, 0.0)
        host.take_outputs()
        pretended = encapsulation is Encapsulation.FORCE and host is pair.sun
        assert bool(host.reports(PeerMoved)) == pretended
        assert (host.views[0].path != before) == pretended


# What somebody on the way may try.


def _captured(pair: Any, sender: str, nth: int = -1) -> SendDatagram:
    sent: SendDatagram = [o for name, o in pair.sent if name == sender][nth]
    return sent


def _from_elsewhere(pair: Any) -> Path:
    path: Path = pair.sun.views[0].path
    return replace(path, remote=ELSEWHERE)


def test_a_replayed_request_from_elsewhere_is_answered_there_and_not_followed(
    pair: Any, nat: Nat, make_ask: Any
) -> None:
    make_ask(ExchangeType.INFORMATIONAL).on(pair.moon, pair.now)
    pair.deliver()
    replayed = _captured(pair, "moon").data
    pair.sun.endpoint.receive_datagram(replayed, _from_elsewhere(pair), pair.now)
    (answer,) = pair.sun.take_outputs()
    assert answer.path.remote == ELSEWHERE
    _assert_stays(pair, nat.mapped)


@pytest.mark.parametrize(("later", "drops"), [(2, []), (9, [DropReason.WRONG_MESSAGE_ID])])
def test_an_old_request_cannot_revert_the_address(
    pair: Any, nat: Nat, make_ask: Any, later: int, drops: list[DropReason]
) -> None:
    """Neither one that is answered once more from the window, nor one that has left it."""

    def ask() -> None:
        make_ask(ExchangeType.INFORMATIONAL).on(pair.moon, pair.now)
        pair.deliver()

    ask()
    old, path = _captured(pair, "moon").data, pair.sun.views[0].path
    nat.forget("198.51.100.2")
    for _ in range(later):
        ask()
        assert pair.sun.views[0].path.remote == nat.mapped
    pair.sun.endpoint.receive_datagram(old, path, pair.now)
    pair.sun.take_outputs()
    assert pair.sun.views[0].path.remote == nat.mapped
    assert pair.sun.drops == drops


def test_a_replayed_response_from_elsewhere_is_not_followed(
    pair: Any, nat: Nat, make_ask: Any
) -> None:
    make_ask(ExchangeType.INFORMATIONAL).on(pair.sun, pair.now)
    pair.deliver()
    pair.sun.endpoint.receive_datagram(
        _captured(pair, "moon").data, _from_elsewhere(pair), pair.now
    )
    pair.sun.take_outputs()
    assert pair.sun.drops[-1] is DropReason.UNEXPECTED_RESPONSE
    _assert_stays(pair, nat.mapped)


@pytest.mark.parametrize("at", [30, 60, -1], ids=["header", "inside", "checksum"])
def test_a_forged_message_from_elsewhere_is_not_followed(pair: Any, nat: Nat, at: int) -> None:
    pair.impair = lambda output, sender: [] if sender is pair.moon else [output.data]
    pair.run(31)
    fresh = bytearray(_captured(pair, "moon").data)
    fresh[at] ^= 1
    pair.sun.endpoint.receive_datagram(bytes(fresh), _from_elsewhere(pair), pair.now)
    pair.sun.take_outputs()
    _assert_stays(pair, nat.mapped)


def test_nobody_is_followed_to_port_500_or_to_another_family(pair: Any, nat: Nat) -> None:
    pair.impair = lambda output, sender: [] if sender is pair.moon else [output.data]
    pair.run(31)
    fresh = _captured(pair, "moon").data
    in_clear = replace(
        pair.sun.views[0].path,
        local=SocketAddress(pair.sun.views[0].path.local.address, IKE_PORT),
        remote=ELSEWHERE,
        natt=False,
    )
    pair.sun.endpoint.receive_datagram(fresh[4:], in_clear, pair.now)
    pair.sun.take_outputs()
    inbound = pair.sun.views[0].children[0].entries[0]
    sixth = SocketAddress(ip_address("2001:db8::1"), 4500)
    pair.sun.endpoint.handle_mapping(inbound.id, sixth, pair.now)
    pair.sun.take_outputs()
    _assert_stays(pair, nat.mapped)


def test_a_datapath_that_cannot_move_an_sa_ends_the_tunnel_with_its_reason(
    pair: Any, nat: Nat
) -> None:
    nat.forget("198.51.100.2")
    pair.sun.datapath.refuse("move_sa", reason="no memory")
    pair.run(31)
    (closed,) = pair.sun.reports(TunnelClosed)
    assert closed.failure.code == "XF3002"
    assert "no memory" in closed.failure.summary
    assert pair.sun.datapath.dump().spd == ()


@pytest.mark.parametrize("address", ["", "198.51.100.2"], ids=["port", "address"])
def test_a_tunnel_that_moved_is_rekeyed_where_it_is(pair: Any, nat: Nat, address: str) -> None:
    nat.forget(address)
    pair.run(31)
    pair.sun.endpoint.rekey_child_sas("tunnel-a", pair.now)
    pair.run(30)
    pair.sun.endpoint.rekey_ike_sas("tunnel-a", pair.now)
    pair.run(10)
    inbound, outbound = sorted(pair.sun.datapath.dump().sad, key=lambda e: e.direction)
    assert inbound.encapsulation == UdpEncapsulation(nat.mapped.port, IKE_NATT_PORT)
    assert outbound.destination == nat.mapped.address
    pair.assert_up()
    nat.forget("198.51.100.3", 40_404)
    pair.run(61)
    assert pair.sun.views[0].path.remote == nat.mapped
    pair.assert_up()
