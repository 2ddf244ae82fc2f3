"""NAT keepalives (RFC 3948 section 4): from whom, when, and what they are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from xfrmpy.ike.keepalive import KEEPALIVE
from xfrmpy.ike.outputs import AskUsage, DatagramDropped, SendDatagram
from xfrmpy.ipsec.addresses import SocketAddress
from xfrmpy.ipsec.sad import Direction, Usage
from xfrmpy.registry import ExchangeType

Start = Callable[..., Any]


@pytest.fixture
def start(make_pair: Callable[..., Any], make_policy: Callable[..., Any]) -> Start:
    """A tunnel that is up, where the ends named are behind a NAT."""

    def start(*behind: str, **changes: Any) -> Any:
        policy = replace(make_policy(), **{"dpd_seconds": 0.0, **changes})
        pair = make_pair(policy)
        public = ip_address("198.51.100.1")
        if "moon" in behind:
            pair.sun.endpoint.set_peer_addresses("tunnel-a", (public,))
            pair.translate = lambda a: (
                SocketAddress(public, a.port + 40_000) if a.address == MOON else a
            )
            pair.reach = lambda a: SocketAddress(MOON, a.port - 40_000) if a.port > 40_000 else a
        pair.up()
        pair.assert_up()
        return pair

    return start


MOON = ip_address("192.0.2.1")


def _keepalives(pair: Any) -> dict[str, int]:
    sent = [name for name, output in pair.sent if output.data == KEEPALIVE]
    return {name: sent.count(name) for name in ("moon", "sun")}


def _used(host: Any, seconds_idle: float | None) -> None:
    """ESP has sent its last packet so many seconds ago, whenever that is asked."""
    for entry in host.datapath.sad.values():
        if entry.direction is Direction.OUT:
            usage = Usage(octets=1, packets=1, seconds_idle=seconds_idle)
            host.datapath.used[entry.id] = usage


def test_the_end_behind_a_nat_sends_one_octet_every_20_seconds(start: Start) -> None:
    pair = start("moon")
    pair.run(19)
    assert _keepalives(pair) == {"moon": 0, "sun": 0}
    pair.run(42)
    assert _keepalives(pair) == {"moon": 3, "sun": 0}
    octet = [o for o in pair.moon.reports(SendDatagram) if o.data == KEEPALIVE][-1]
    assert octet == SendDatagram(path=pair.moon.views[0].path, data=b"\xff")


@pytest.mark.parametrize("changes", [{}, {"nat_keepalive_seconds": 20.0}], ids=["none", "key"])
def test_without_a_nat_before_us_there_are_none(start: Start, changes: dict[str, Any]) -> None:
    pair = start(**changes)
    pair.run(100)
    assert _keepalives(pair) == {"moon": 0, "sun": 0}


def test_the_policy_says_how_often_and_may_say_never(start: Start) -> None:
    pair = start("moon", nat_keepalive_seconds=5.0)
    pair.run(21)
    assert _keepalives(pair)["moon"] == 4
    pair = start("moon", nat_keepalive_seconds=0.0)
    pair.run(100)
    assert _keepalives(pair)["moon"] == 0
    assert pair.moon.reports(AskUsage) == []


def test_ike_messages_take_their_place(start: Start, make_ask: Any) -> None:
    pair = start("moon")
    for host in (pair.moon, pair.sun, pair.moon):
        pair.run(15)
        make_ask(ExchangeType.INFORMATIONAL).on(host, pair.now)
        pair.deliver()
    assert _keepalives(pair)["moon"] == 0, "a request or a response every 15 seconds"
    pair.run(21)
    assert _keepalives(pair)["moon"] == 1


def test_esp_takes_their_place_as_long_as_it_sends(start: Start) -> None:
    pair = start("moon")
    _used(pair.moon, 1.0)
    pair.run(120)
    assert _keepalives(pair)["moon"] == 0
    assert len(pair.moon.reports(AskUsage)) > 1
    _used(pair.moon, 60.0)
    pair.run(25)
    assert _keepalives(pair)["moon"] == 1, "noticed within a quarter of the interval"


def test_received_ones_are_ignored_and_are_no_sign_of_life(start: Start) -> None:
    pair = start("moon", nat_keepalive_seconds=1.0)
    heard_at = pair.sun.ike_sa.heard_at
    pair.run(10)
    assert _keepalives(pair)["moon"] == 10
    assert pair.sun.reports(DatagramDropped) == []
    assert pair.sun.ike_sa.heard_at == heard_at, "RFC 3948 section 4: they tell nothing"


def test_they_end_with_the_ike_sa(start: Start) -> None:
    pair = start("moon")
    pair.moon.endpoint.terminate("tunnel-a", pair.now)
    pair.deliver()
    pair.run(100)
    assert _keepalives(pair)["moon"] == 0
    pair.assert_forgotten()
