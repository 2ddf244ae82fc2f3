"""Child SAs are spread over the lanes of the userspace datapath by their SPIs, and stay there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.ike.child_sa import ChildSa
from xfrmpy.ike.core import Core
from xfrmpy.ipsec.sad import MAX_RESOURCES, USERSPACE_SPI_BIT, Direction, lane_of
from xfrmpy.policy.model import DatapathChoice, TunnelPolicy

LANES = 3

MakePolicy = Callable[..., TunnelPolicy]


@pytest.fixture
def tunnels(make_policy: MakePolicy) -> list[TunnelPolicy]:
    """Many, each with two children."""
    model = replace(make_policy(), datapath=DatapathChoice.USERSPACE)
    (child,) = model.children
    return [
        replace(
            model,
            name=f"tunnel-{number}",
            children=tuple(
                replace(child, name=f"net{each}", reqid=child.reqid + 2 * number + each)
                for each in range(2)
            ),
        )
        for number in range(30)
    ]


@pytest.fixture
def core(make_random: Callable[[str], Callable[[int], bytes]]) -> Core:
    return Core(make_random("lanes"), lanes=LANES)


def children_of(core: Core, tunnel: TunnelPolicy) -> list[ChildSa]:
    return [ChildSa(core, tunnel, child, child.proposals) for child in tunnel.children]


def lane(child: ChildSa) -> int:
    assert child.spi_in & USERSPACE_SPI_BIT
    return lane_of(child.spi_in, LANES)


def test_tunnels_are_spread_evenly_and_each_has_one_lane(
    core: Core, tunnels: list[TunnelPolicy]
) -> None:
    found: Counter[int] = Counter()
    for tunnel in tunnels:
        (of_tunnel,) = {lane(child) for child in children_of(core, tunnel)}
        found[of_tunnel] += 1
    assert found == dict.fromkeys(range(LANES), len(tunnels) // LANES)


def test_what_is_gone_makes_room(core: Core, tunnels: list[TunnelPolicy]) -> None:
    first, second, third, fourth, *_ = tunnels
    before = [children_of(core, tunnel) for tunnel in (first, second, third)]
    for child in before[1]:
        core.forget_child(child)
    assert {lane(child) for child in children_of(core, fourth)} == {lane(before[1][0])}


def test_who_takes_the_place_of_another_has_its_lane(
    core: Core, tunnels: list[TunnelPolicy]
) -> None:
    for tunnel in tunnels[:LANES]:
        for child in children_of(core, tunnel):
            core.forget_child(child)
            heir = ChildSa(core, tunnel, child.policy, child.policy.proposals, replaces=child)
            assert lane(heir) == lane(child)


def test_peers_of_one_tunnel_for_any_are_spread(core: Core, tunnels: list[TunnelPolicy]) -> None:
    tunnel = replace(tunnels[0], peers=())
    found = Counter(lane(children_of(core, tunnel)[0]) for _ in range(LANES))
    assert set(found) == set(range(LANES))


def test_the_kernel_has_no_lanes(core: Core, tunnels: list[TunnelPolicy]) -> None:
    tunnel = replace(tunnels[0], datapath=DatapathChoice.KERNEL)
    spis = [child.spi_in for _ in range(10) for child in children_of(core, tunnel)]
    assert not any(spi & USERSPACE_SPI_BIT for spi in spis)
    assert len({lane_of(spi, LANES) for spi in spis}) > 1


def test_of_the_kernel_first_comes_that_of_no_cpu(
    make_random: Callable[[str], Callable[[int], bytes]], tunnels: list[TunnelPolicy]
) -> None:
    core = Core(make_random("lanes"), lanes=LANES, cpus=4)
    policy = replace(tunnels[0].children[0], per_resource=MAX_RESOURCES)
    for number in (0, 1):
        tunnel = replace(tunnels[number], datapath=DatapathChoice.KERNEL)
        group: list[ChildSa] = []
        for _ in range(6):
            group.append(ChildSa(core, tunnel, policy, policy.proposals, beside=group))
        assert [child.lane for child in group] == [0, 1, 2, 3, 4, 0]
    heir = ChildSa(core, tunnel, policy, policy.proposals, replaces=group[3])
    assert heir.lane == 3


def test_a_tunnel_keeps_its_lane_when_it_is_rekeyed_and_the_daemon_killed(
    make_pair: Callable[..., Any], make_policy: MakePolicy
) -> None:
    pair = make_pair(replace(make_policy(), datapath=DatapathChoice.USERSPACE), keeps=True)
    pair.moon.lanes = LANES
    pair.moon.start()
    pair.up()
    before = inbound_spi(pair.moon)
    for end in (pair.moon, pair.sun):
        pair.moon.take_over()
        end.endpoint.rekey_child_sas("tunnel-a", pair.now)
        pair.run(60)
        after = inbound_spi(pair.moon)
        assert after != before
        assert lane_of(after, LANES) == lane_of(before, LANES)
        before = after


def inbound_spi(host: Any) -> int:
    (spi,) = (e.spi for e in host.datapath.dump().sad if e.direction is Direction.IN)
    return int(spi)
