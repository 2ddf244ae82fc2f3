"""IKE and ESP in UDP on other ports than 500 and 4500: `peer_port`, and the `natt_port` of a core.

Read RFC 7296 section 2.23 beside these tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from xfrmpy.ipsec.addresses import IKE_NATT_PORT, IKE_PORT, Path, SocketAddress
from xfrmpy.ipsec.sad import Direction, UdpEncapsulation
from xfrmpy.policy.model import Encapsulation

OURS, THEIRS = 4501, 4602


@pytest.fixture
def pair(make_pair: Callable[..., Any], make_policy: Callable[..., Any]) -> Any:
    """Moon takes IKE and ESP on one port, sun on another, and each knows of the other's."""
    forced = replace(make_policy(), encapsulation=Encapsulation.FORCE)
    pair = make_pair(forced, keeps=True)
    for host, own, other in ((pair.moon, OURS, THEIRS), (pair.sun, THEIRS, OURS)):
        host.policy = replace(host.policy, peer_port=other)
        _start_on(host, own)
    return pair


def _start_on(host: Any, port: int) -> None:
    host.natt_port = port
    host.start()


def _ports(pair: Any) -> set[tuple[int, int]]:
    return {(sent.path.local.port, sent.path.remote.port) for _, sent in pair.sent}


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_all_goes_between_the_ports_that_are_written(pair: Any, end: str) -> None:
    pair.initiate(getattr(pair, end))
    pair.deliver()
    pair.assert_up()
    assert _ports(pair) == {(OURS, THEIRS), (THEIRS, OURS)}
    for _, sent in pair.sent:
        assert sent.data[:4] == bytes(4), "it shares the port with ESP"
    for host, ports in ((pair.moon, (OURS, THEIRS)), (pair.sun, (THEIRS, OURS))):
        of = {e.direction: e.encapsulation for e in host.datapath.dump().sad}
        assert of[Direction.OUT] == UdpEncapsulation(*ports)
        assert of[Direction.IN] == UdpEncapsulation(ports[1], ports[0])


def test_reauthentication_goes_there_too(pair: Any) -> None:
    pair.up()
    pair.sent.clear()
    pair.moon.endpoint.reauthenticate("tunnel-a", pair.now)
    pair.run(10.0)
    pair.assert_up()
    assert _ports(pair) == {(OURS, THEIRS), (THEIRS, OURS)}


def test_port_4500_may_be_where_ike_begins(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any]
) -> None:
    pair = make_pair(make_policy())
    pair.moon.policy = replace(pair.moon.policy, peer_port=IKE_NATT_PORT)
    pair.moon.start()
    pair.up()
    pair.assert_up()
    pair.moon.endpoint.reauthenticate("tunnel-a", pair.now)
    pair.run(10.0)
    assert _ports(pair) == {(IKE_NATT_PORT, IKE_NATT_PORT)}


def test_behind_a_nat_we_go_on_from_our_own_port_to_4500(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any]
) -> None:
    """What the peer has there nobody has told us, so it is what the RFC says."""
    pair = make_pair(replace(make_policy(), encapsulation=Encapsulation.FORCE))
    _start_on(pair.moon, OURS)
    pair.up()
    pair.assert_up()
    to_sun = [p for name, sent in pair.sent if name == "moon" for p in [sent.path]]
    ports = [(path.local.port, path.remote.port) for path in to_sun]
    assert ports[0] == (IKE_PORT, IKE_PORT)
    assert set(ports[1:]) == {(OURS, IKE_NATT_PORT)}


def test_an_earlier_daemon_with_another_port_leaves_what_says_goodbye(pair: Any) -> None:
    pair.up()
    pair.moon.natt_port = OURS + 1
    restored = pair.moon.take_over()
    assert (restored.ike_sas, restored.given_up) == (0, 1)
    assert restored.replaced == {"tunnel-a"}
    pair.sent.clear()
    pair.run(5.0)
    assert ("moon", OURS + 1) in {(name, sent.path.local.port) for name, sent in pair.sent}
    pair.assert_down()


def test_one_with_the_same_port_leaves_all_of_it(pair: Any) -> None:
    pair.up()
    restored = pair.moon.take_over()
    assert (restored.ike_sas, restored.given_up) == (1, 0)
    pair.assert_up()


def test_a_path_without_a_marker_is_on_no_port_of_the_two(pair: Any) -> None:
    """A caller on port 500 is answered there, whatever else there is."""
    ends = [SocketAddress(ip_address(host.address), IKE_PORT) for host in (pair.moon, pair.sun)]
    pair.moon.policy = replace(pair.moon.policy, peer_port=None)
    pair.moon.start()
    pair.moon.endpoint.initiate("tunnel-a", Path(local=ends[0], remote=ends[1]), pair.now)
    (request,) = pair.moon.take_outputs()
    pair.sun.receive(request.data, Path(local=ends[1], remote=ends[0]), pair.now)
    (answer,) = pair.sun.take_outputs()
    assert (answer.path.local, answer.path.remote, answer.path.natt) == (ends[1], ends[0], False)
