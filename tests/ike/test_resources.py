"""Per-resource Child SAs (RFC 9611): one traffic, a Child SA for each worker of the two ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from xfrmpy.ike.lifetimes import RECREATE_SECONDS
from xfrmpy.ike.outputs import (
    ChildSaEstablished,
    ChildSaRekeyed,
    IkeSaRekeyed,
    RequestRefused,
    SaNotCreated,
    TunnelClosed,
)
from xfrmpy.ike.resources import PATIENCE_SECONDS
from xfrmpy.ike.states import ChildSaState
from xfrmpy.ipsec.sad import MAX_RESOURCES, Direction, Usage, lane_of
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.model import DatapathChoice, StartMode
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.payloads import NotifyPayload

INFO = NotifyType.SA_RESOURCE_INFO
CREATE = ExchangeType.CREATE_CHILD_SA
DAY = 86400.0
LAB = (TrafficSelector.parse("10.5.0.0/16"), TrafficSelector.parse("10.6.0.0/16"))


@pytest.fixture
def meet(make_pair: Callable[..., Any], make_policy: Callable[..., Any]) -> Callable[..., Any]:
    """Two ends with so many workers each; `most` is what their policies have for `per_resource`."""

    def make(
        lanes: tuple[int, int], most: tuple[int, int] = (MAX_RESOURCES,) * 2, **terms: Any
    ) -> Any:
        policy = replace(make_policy(), datapath=DatapathChoice.USERSPACE, **terms)
        pair = make_pair(policy, keeps=True)
        for host, count, per_resource in zip((pair.moon, pair.sun), lanes, most, strict=True):
            host.policy = _with(host.policy, per_resource=per_resource)
            host.lanes = count
            host.start()
        return pair

    return make


def _with(policy: Any, **terms: Any) -> Any:
    (child,) = policy.children
    return replace(policy, children=(replace(child, **terms),))


def _reconfigure(pair: Any, host: Any, per_resource: int) -> None:
    host.policy = _with(host.policy, per_resource=per_resource)
    host.endpoint.reconfigure(host.policy, pair.now)


def _workers(host: Any) -> list[int | None]:
    """Of each Child SA that sends."""
    return sorted(c.entries[0].resource for v in host.views for c in v.children)


def _spis(host: Any) -> set[int]:
    return {c.entries[0].spi for v in host.views for c in v.children}


def _created(sealing: Any) -> int:
    return sum(m.exchange is CREATE and not m.is_response for m, _ in sealing.sent)


def _has_info(payloads: Any) -> bool:
    return any(isinstance(p, NotifyPayload) and p.type == INFO for p in payloads)


def test_each_worker_has_a_child_sa_of_its_own(meet: Any, sealing: Any) -> None:
    pair = meet((3, 3))
    pair.up()
    for host in (pair.moon, pair.sun):
        assert _workers(host) == [0, 1, 2]
        dump = host.datapath.dump()
        assert len({entry.reqid for entry in dump.sad}) == 1
        assert len(dump.spd) == 3, "they share the policies"
        for entry in dump.sad:
            if entry.direction is Direction.IN:
                assert entry.resource == lane_of(entry.spi, 3)
        assert len(host.reports(ChildSaEstablished)) == 3
    pair.assert_mirrored()
    about = [p for m, p in sealing.sent if m.exchange in (CREATE, ExchangeType.IKE_AUTH)]
    assert len(about) == 6
    assert all(map(_has_info, about))
    pair.run(PATIENCE_SECONDS + 1)
    assert _created(sealing) == 2, "nothing is missing any more"


def test_both_sas_of_a_pair_are_of_one_worker(meet: Any) -> None:
    pair = meet((2, 3))
    pair.up()
    pair.run(PATIENCE_SECONDS + 1)
    for host in (pair.moon, pair.sun):
        for view in host.views:
            for child in view.children:
                inbound, outbound = child.entries
                assert inbound.resource == outbound.resource


@pytest.mark.parametrize(("moons", "suns"), [(1, 4), (2, 4), (4, 2)])
def test_the_end_that_was_called_adds_what_its_own_workers_lack(
    meet: Any, moons: int, suns: int
) -> None:
    pair = meet((moons, suns))
    pair.up()
    assert len(_workers(pair.moon)) == moons
    pair.run(PATIENCE_SECONDS + 1)
    for host in (pair.moon, pair.sun):
        assert len(_workers(host)) == 4
        assert set(_workers(host)) == set(range(host.lanes))
        lanes = [_workers(host).count(lane) for lane in range(host.lanes)]
        assert max(lanes) - min(lanes) <= 1, "they are spread evenly"


@pytest.mark.parametrize("most", [(0, MAX_RESOURCES), (MAX_RESOURCES, 0), (0, 0)])
def test_without_the_word_of_both_there_is_one(
    meet: Any, sealing: Any, most: tuple[int, int]
) -> None:
    pair = meet((4, 4), most)
    pair.up()
    pair.run(60)
    assert _created(sealing) == 0
    for host in (pair.moon, pair.sun):
        assert _workers(host) == [None]
    auth = [_has_info(p) for m, p in sealing.sent if m.exchange is ExchangeType.IKE_AUTH]
    assert auth == [most[0] > 0, False], "nobody says it to who has not"


def test_a_peer_that_wants_no_more_is_not_asked_again(meet: Any, sealing: Any) -> None:
    pair = meet((4, 1), (MAX_RESOURCES, 2), lifetime_seconds=None, start=StartMode.AUTO)
    pair.up()
    (refused,) = pair.sun.reports(RequestRefused)
    assert refused.failure.code == "XF2032"
    assert sealing.errors(CREATE) == [NotifyType.TS_MAX_QUEUE]
    pair.run(2000)
    assert len(_workers(pair.moon)) == 2
    assert _created(sealing) == 2
    assert not pair.moon.reports(SaNotCreated), "that is no failure"
    assert not pair.moon.reports(TunnelClosed)
    pair.assert_mirrored()


def test_a_number_is_the_most_that_we_make(meet: Any, sealing: Any) -> None:
    pair = meet((4, 4), (3, 3))
    pair.up()
    pair.run(60)
    assert _workers(pair.moon) == _workers(pair.sun) == [0, 1, 2]
    assert not sealing.errors(CREATE)


def test_one_more_that_the_peer_does_not_bind_is_the_last(meet: Any, sealing: Any) -> None:
    pair = meet((4, 1))

    def silent(message: Any, payloads: Any) -> Any:
        is_answer = message.is_response and message.exchange is CREATE
        return tuple(p for p in payloads if not (is_answer and _has_info((p,))))

    sealing.change = silent
    pair.up()
    pair.run(300)
    assert _created(sealing) == 1


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_each_is_rekeyed_by_itself_and_keeps_its_worker(meet: Any, end: str) -> None:
    pair = meet((3, 3))
    pair.up()
    host, other = pair.ends(end)
    before = {c.spi_in: c.lane for c in host.ike_sa.children}
    chosen = host.ike_sa.children[1]
    chosen.rekey_at = pair.now
    host.endpoint._run(host.ike_sa, host.ike_sa.attend, pair.now)
    pair.run(60)
    after = {c.spi_in: c.lane for c in host.ike_sa.children}
    assert before.items() - after.items() == {(chosen.spi_in, chosen.lane)}
    assert sorted(after.values()) == _workers(other) == [0, 1, 2]
    assert len(host.reports(ChildSaRekeyed)) == 1
    pair.assert_mirrored()


@pytest.mark.parametrize("command", ["rekey_child_sas", "rekey_ike_sas", "reauthenticate"])
def test_whatever_is_made_anew_there_are_as_many_again(meet: Any, command: str) -> None:
    pair = meet((3, 2))
    pair.up()
    for end in ("moon", "sun", "moon"):
        host, _ = pair.ends(end)
        getattr(host.endpoint, command)("tunnel-a", pair.now)
        pair.run(90)
        assert _workers(pair.moon) == [0, 1, 2]
        assert len(_workers(pair.sun)) == 3
        assert len(pair.moon.datapath.dump().spd) == 3
        pair.assert_mirrored()
    assert bool(pair.moon.reports(IkeSaRekeyed)) == (command != "rekey_child_sas")
    pair.moon.endpoint.terminate("tunnel-a", pair.now)
    pair.run(100)
    pair.assert_forgotten()


@pytest.mark.parametrize("end", ["moon", "sun"])
def test_one_that_is_deleted_leaves_the_others_and_comes_back(meet: Any, end: str) -> None:
    pair = meet((3, 3))
    pair.up()
    host, _ = pair.ends(end)
    sa = host.ike_sa
    sa.children[0].move_to(ChildSaState.DELETING)
    host.endpoint._run(sa, sa.attend, pair.now)
    pair.run(1)
    for each in (pair.moon, pair.sun):
        assert len(_workers(each)) == 2
        assert len(each.datapath.dump().spd) == 3
        assert not each.reports(TunnelClosed)
    pair.run(RECREATE_SECONDS)
    assert _workers(pair.moon) == _workers(pair.sun) == [0, 1, 2]


def test_a_killed_daemon_goes_on_where_it_was(meet: Any) -> None:
    """Whatever output is its last; the Child SA whose making it did not live to see comes, too."""
    for outputs in range(1, 60, 3):
        pair = meet((3, 3))
        pair.moon.dies_after, pair.moon.lives_again = outputs, True
        pair.up()
        pair.run(120)
        if not pair.moon.views:  # It died before there was anything to keep.
            pair.initiate()
            pair.run(120)
        assert _workers(pair.moon) == _workers(pair.sun) == [0, 1, 2], outputs
        pair.assert_mirrored()


@pytest.mark.parametrize("is_used", [True, False])
def test_all_are_used_if_one_is(meet: Any, is_used: bool) -> None:
    pair = meet((3, 3))
    for host in (pair.moon, pair.sun):
        host.policy = _with(host.policy, inactivity_seconds=60.0)
        host.start()
    pair.up()
    before = _spis(pair.moon)
    for host in (pair.moon, pair.sun) if is_used else ():
        chosen = next(e.id for e in host.datapath.dump().sad if e.resource == 2)
        host.datapath.used[chosen] = Usage(octets=1, packets=1, seconds_idle=1.0)
    pair.run(200)
    if is_used:
        assert _spis(pair.moon) == before
    else:
        pair.assert_down()


def test_switched_on_what_is_up_gets_more(meet: Any) -> None:
    pair = meet((3, 3), (0, 0))
    pair.up()
    _reconfigure(pair, pair.sun, MAX_RESOURCES)
    _reconfigure(pair, pair.moon, MAX_RESOURCES)
    pair.run(2 * PATIENCE_SECONDS)
    assert _workers(pair.moon) == _workers(pair.sun) == [0, 1, 2]
    assert not pair.moon.reports(TunnelClosed)


@pytest.mark.parametrize(("most", "left"), [(2, [0, 1]), (0, [None])])
@pytest.mark.parametrize("first", ["moon", "sun"])
def test_switched_off_or_down_the_surplus_goes(
    meet: Any, most: int, left: list[int | None], first: str
) -> None:
    pair = meet((3, 3))
    pair.up()
    for host in pair.ends(first):
        _reconfigure(pair, host, most)
    pair.run(60)
    for host in (pair.moon, pair.sun):
        assert len(_workers(host)) == len(left)
        assert (None in _workers(host)) == (None in left)
        assert not host.reports(TunnelClosed)
    pair.assert_mirrored()
    pair.run(DAY / 12)
    assert len(_workers(pair.moon)) == len(left)


def test_the_kernel_has_one_more_that_is_of_no_cpu(meet: Any, sealing: Any) -> None:
    """With the newest Linux an SA of a CPU is an outbound one, and has no window."""
    pair = meet((1, 1))
    for host in (pair.moon, pair.sun):
        host.policy = replace(host.policy, datapath=DatapathChoice.KERNEL)
        host.cpus = 3
        host.start()
    pair.up()
    pair.run(60)
    about = [p for m, p in sealing.sent if m.exchange in (CREATE, ExchangeType.IKE_AUTH)]
    assert len(about) == 8
    assert all(map(_has_info, about))
    for host in (pair.moon, pair.sun):
        ends = [c.entries for v in host.views for c in v.children]
        assert [inbound.resource for inbound, _ in ends] == [None] * 4
        outbound = {out.resource: out.replay_window for _, out in ends}
        assert outbound.keys() == {None, 0, 1, 2}
        assert outbound[None] > 0
        assert not any(outbound[cpu] for cpu in range(3))
    before = _cpus_of(pair.moon)
    pair.moon.endpoint.rekey_child_sas("tunnel-a", pair.now)
    pair.run(60)
    after = _cpus_of(pair.moon)
    assert sorted(before.values(), key=str) == sorted(after.values(), key=str)
    assert not before.keys() & after.keys()
    pair.assert_mirrored()


def _cpus_of(host: Any) -> dict[int, int | None]:
    return {c.entries[1].spi: c.entries[1].resource for v in host.views for c in v.children}


@pytest.mark.parametrize("datapath", [DatapathChoice.KERNEL, DatapathChoice.USERSPACE])
def test_the_ends_may_have_different_datapaths(meet: Any, datapath: DatapathChoice) -> None:
    pair = meet((2, 2))
    pair.moon.policy = replace(pair.moon.policy, datapath=DatapathChoice.KERNEL)
    pair.sun.policy = replace(pair.sun.policy, datapath=datapath)
    pair.moon.cpus, pair.sun.cpus = 4, 1
    pair.moon.start()
    pair.sun.start()
    pair.up()
    pair.run(60)
    assert set(_cpus_of(pair.moon).values()) == {None, 0, 1, 2, 3}
    assert len(_cpus_of(pair.sun)) == 5
    pair.assert_mirrored()


def test_two_children_have_each_as_many(meet: Any, make_mirror: Any) -> None:
    pair = meet((2, 2))
    policy = pair.moon.policy
    (net,) = policy.children
    lab = replace(net, name="lab", reqid=net.reqid + 1, local=LAB[:1], remote=LAB[1:])
    policy = replace(policy, children=(net, lab))
    pair.moon.policy, pair.sun.policy = policy, make_mirror(policy)
    for host in (pair.moon, pair.sun):
        host.start()
    pair.up()
    pair.run(60)
    for host in (pair.moon, pair.sun):
        found = [(c.child, c.entries[0].resource) for v in host.views for c in v.children]
        assert sorted(found) == [("lab", 0), ("lab", 1), ("net", 0), ("net", 1)]
