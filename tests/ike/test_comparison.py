"""What others do to what is in force is found, and what the core can do about it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from xfrmpy.ike.outputs import AddSa, ChildSaRekeyed, ExchangeStarted, IkeSaRekeyed, TunnelClosed
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ipsec.addresses import IKE_PORT, Path, SocketAddress
from xfrmpy.ipsec.drift import Difference, Finding
from xfrmpy.ipsec.sad import Direction, SadEntry, SaId
from xfrmpy.ipsec.selectors import MaskedPort
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry
from xfrmpy.registry import ExchangeType

Make = Callable[..., Any]

TUNNELS = frozenset({"tunnel-a"})


@pytest.fixture
def pair(make_pair: Make, make_policy: Make) -> Any:
    made = make_pair(make_policy())
    made.up()
    return made


def found(host: Any) -> tuple[Difference, ...]:
    differences: tuple[Difference, ...] = host.endpoint.compare(TUNNELS, host.datapath.dump())
    return differences


def findings(host: Any) -> list[Finding]:
    return [difference.finding for difference in found(host)]


def recover(pair: Any, host: Any) -> None:
    host.endpoint.recover(found(host), pair.now)
    pair.deliver()


def sa_of(host: Any, direction: Direction) -> SadEntry:
    entry: SadEntry
    (entry,) = (e for e in host.datapath.sad.values() if e.direction is direction)
    return entry


def test_what_is_as_it_should_be_is_no_difference(pair: Any) -> None:
    for host in (pair.moon, pair.sun):
        assert found(host) == ()
        assert host.endpoint.compare((), host.datapath.dump()) != (), "of a tunnel that is nobody's"


@pytest.mark.parametrize("end", ["moon", "sun"])
@pytest.mark.parametrize("gone", [(Direction.IN,), (Direction.OUT,), tuple(Direction)], ids=str)
def test_an_sa_that_was_deleted_is_rekeyed_and_never_put_back(
    pair: Any, end: str, gone: Iterable[Direction]
) -> None:
    host = getattr(pair, end)
    for direction in gone:
        del host.datapath.sad[sa_of(host, direction).id]
    assert findings(host) == [Finding.SA_MISSING for _ in gone]
    assert {(d.tunnel, d.child) for d in found(host)} == {("tunnel-a", "net")}
    recover(pair, host)
    pair.run(20)
    assert found(host) == ()
    assert len(host.reports(ChildSaRekeyed)) == 1
    assert host.reports(TunnelClosed) == []
    keys = [output.entry.encryption_key for output in host.reports(AddSa)]
    assert len(keys) == len(set(keys)) == 4, "no key is used twice"
    pair.assert_mirrored()


def test_a_tunnel_whose_sa_is_being_replaced_is_recovering(pair: Any) -> None:
    moon = pair.moon
    assert not moon.endpoint.is_recovering("tunnel-a", pair.now)
    moon.datapath.sad.clear()
    moon.endpoint.recover(found(moon), pair.now)
    assert moon.endpoint.is_recovering("tunnel-a", pair.now)
    pair.deliver()
    pair.run(20)
    assert not moon.endpoint.is_recovering("tunnel-a", pair.now)


def test_an_sa_that_is_lost_while_it_is_being_replaced_needs_no_other(pair: Any) -> None:
    pair.moon.endpoint.rekey_child_sas("tunnel-a", pair.now)
    pair.moon.take_outputs()
    del pair.moon.datapath.sad[sa_of(pair.moon, Direction.OUT).id]
    recover(pair, pair.moon)
    pair.run(20)
    assert found(pair.moon) == ()
    pair.assert_mirrored()


def test_what_receives_after_its_time_may_be_lost(pair: Any) -> None:
    pair.moon.endpoint.rekey_child_sas("tunnel-a", pair.now)
    pair.deliver()
    current = pair.moon.views[0].children[0].entries[0]
    there = pair.moon.datapath.sad.values()
    (retired,) = (e for e in there if e.direction is Direction.IN and e.id != current.id)
    del pair.moon.datapath.sad[retired.id]
    recover(pair, pair.moon)
    assert found(pair.moon) == ()
    assert len(pair.moon.reports(ChildSaRekeyed)) == 1


def test_an_sa_that_was_changed_goes_back(pair: Any) -> None:
    entry = sa_of(pair.moon, Direction.OUT)
    changed = replace(entry, replay_window=32)
    pair.moon.datapath.sad[entry.id] = changed
    (difference,) = found(pair.moon)
    assert difference.finding is Finding.SA_CHANGED
    assert difference.subject == entry
    recover(pair, pair.moon)
    assert sa_of(pair.moon, Direction.OUT) == entry
    assert found(pair.moon) == ()


def test_how_long_an_sa_lives_is_no_difference(pair: Any) -> None:
    entry = sa_of(pair.moon, Direction.OUT)
    pair.moon.datapath.sad[entry.id] = replace(
        entry, lifetime=replace(entry.lifetime, hard_bytes=1 << 50)
    )
    assert found(pair.moon) == ()


def test_what_is_marked_as_ours_and_nobody_wants_is_surplus(pair: Any) -> None:
    entry = sa_of(pair.moon, Direction.IN)
    other = replace(entry, spi=0x7777, encryption_key=bytes(len(entry.encryption_key)))
    pair.moon.datapath.sad[other.id] = other
    policy = next(iter(pair.moon.datapath.spd.values()))
    stray = replace(policy, selector=replace(policy.selector, protocol=6))
    pair.moon.datapath.spd[stray.place] = stray
    sa, spd = found(pair.moon)
    assert (sa.finding, sa.subject) == (Finding.SA_SURPLUS, other.id)
    assert (spd.finding, spd.subject) == (Finding.POLICY_SURPLUS, stray)
    strange = SaId(spi=0x8888, protocol=entry.protocol, destination=entry.destination)
    dump = replace(pair.moon.datapath.dump(), strange=(strange,))
    assert strange in [d.subject for d in pair.moon.endpoint.compare(TUNNELS, dump)]


def test_each_policy_that_is_missing_or_another_is_found(pair: Any) -> None:
    spd = pair.moon.datapath.spd
    out, inbound = (
        next(place for place in spd if place[0] is direction)
        for direction in (PolicyDirection.OUT, PolicyDirection.IN)
    )
    wanted = spd.pop(out), spd[inbound]
    spd[inbound] = replace(spd[inbound], priority=1)
    assert [(d.finding, d.subject) for d in found(pair.moon)] == [
        (Finding.POLICY_MISSING, wanted[0]),
        (Finding.POLICY_CHANGED, wanted[1]),
    ]


@pytest.mark.parametrize(
    ("changes", "overrules"),
    [
        ({}, True),
        ({"priority": 200_000}, False),
        ({"direction": PolicyDirection.IN}, False),
        ({"destination": ip_network("10.2.3.0/24")}, True),
        ({"destination": ip_network("10.3.0.0/16")}, False),
        ({"protocol": 6, "destination_port": MaskedPort(80, 0xFFFF)}, True),
    ],
    ids=str,
)
def test_a_policy_of_another_program_that_comes_first_is_told(
    pair: Any, changes: dict[str, Any], overrules: bool
) -> None:
    ours: SpdEntry = next(
        e for e in pair.moon.datapath.spd.values() if e.direction is PolicyDirection.OUT
    )
    fields = {name: changes[name] for name in ("priority", "direction") if name in changes}
    selector = {name: value for name, value in changes.items() if name not in fields}
    theirs = replace(
        ours,
        action=Action.BYPASS,
        template=None,
        selector=replace(ours.selector, **selector),
        **{"priority": 5, **fields},
    )
    dump = replace(pair.moon.datapath.dump(), others=(theirs,))
    differences = pair.moon.endpoint.compare(TUNNELS, dump)
    assert [d.finding for d in differences] == [Finding.POLICY_SHADOWED] * overrules


def test_a_path_that_changed_has_its_peer_asked(pair: Any) -> None:
    pair.moon.outputs.clear()
    ends = (ip_address("192.0.2.1"), ip_address("192.0.2.2"))
    pair.moon.endpoint.check_paths([ends[::-1]], pair.now)
    assert pair.moon.take_outputs() == []
    pair.moon.endpoint.check_paths([ends], pair.now)
    pair.deliver()
    (started,) = pair.moon.reports(ExchangeStarted)
    assert started.exchange is ExchangeType.INFORMATIONAL


def test_a_tunnel_goes_over_to_another_path_before_it_leaves_the_old(pair: Any) -> None:
    there = ip_address("192.0.2.77")
    pair.reach = lambda address: replace(address, address=ip_address("192.0.2.2"))
    path = Path(
        local=SocketAddress(ip_address("192.0.2.1"), IKE_PORT),
        remote=SocketAddress(there, IKE_PORT),
    )
    (before,) = pair.moon.views
    pair.moon.endpoint.reauthenticate_on("tunnel-a", path, pair.now)
    assert pair.moon.views[0].spi_i == before.spi_i
    pair.deliver()
    pair.run(20)
    (after,) = (v for v in pair.moon.views if v.state is IkeSaState.ESTABLISHED)
    assert after.path.remote.address == there
    assert pair.moon.reports(TunnelClosed) == []
    (report,) = pair.moon.reports(IkeSaRekeyed)
    assert report.reauthenticated
