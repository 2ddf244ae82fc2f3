"""Tunnels on demand: traps stand before, beneath and after Child SAs, and traffic gets its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from xfrmpy.ike.outputs import AddPolicy, ChildSaEstablished, RemovePolicy, TrapsRefused
from xfrmpy.ipsec.addresses import IKE_PORT, Path, SocketAddress
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import SpdEntry
from xfrmpy.policy.model import ChildPolicy, StartMode
from xfrmpy.wire.payloads import TsiPayload, TsrPayload

ENDS = Path(
    local=SocketAddress(ip_address("192.0.2.1"), IKE_PORT),
    remote=SocketAddress(ip_address("192.0.2.2"), IKE_PORT),
)
ELSEWHERE = replace(ENDS, remote=SocketAddress(ip_address("192.0.2.9"), IKE_PORT))
NET = ("10.1.0.1/32[tcp/4711]", "10.2.0.9/32[tcp/443]")
LAB = ("10.5.0.1/32[udp/53]", "10.6.0.9/32[udp/53]")


def _lab(net: ChildPolicy) -> ChildPolicy:
    return replace(
        net,
        name="lab",
        reqid=net.reqid + 1,
        local=(TrafficSelector.parse("10.5.0.0/16"),),
        remote=(TrafficSelector.parse("10.6.0.0/16"),),
    )


@pytest.fixture
def pair(make_pair: Callable[..., Any], make_policy: Callable[..., Any]) -> Any:
    """Moon has two children on demand, and its traps are set."""
    policy = replace(make_policy(), start=StartMode.ON_DEMAND)
    (net,) = policy.children
    made = make_pair(replace(policy, children=(net, _lab(net))), keeps=True)
    made.moon.endpoint.set_traps("tunnel-a", ENDS)
    made.deliver()
    return made


def ask(pair: Any, child: str, packet: tuple[str, str]) -> bool:
    """A packet meets moon's trap, and everything that comes of it is done."""
    source, destination = map(TrafficSelector.parse, packet)
    has_sa: bool = pair.moon.endpoint.handle_acquire(
        "tunnel-a", child, source, destination, pair.now
    )
    if not has_sa:
        pair.initiate()
    pair.deliver()
    return has_sa


def made(pair: Any) -> list[str]:
    return [report.child for report in pair.moon.reports(ChildSaEstablished)]


def spd(pair: Any) -> set[SpdEntry]:
    return set(pair.moon.datapath.dump().spd)


def leads_to(entry: SpdEntry) -> str:
    assert entry.template is not None
    return str(entry.template.destination)


def test_traps_lead_to_the_peer_in_every_direction_before_there_is_an_sa(pair: Any) -> None:
    entries = spd(pair)
    assert len(entries) == 6
    assert {(str(e.direction), leads_to(e)) for e in entries} == {
        ("out", "192.0.2.2"),
        ("in", "192.0.2.1"),
        ("fwd", "192.0.2.1"),
    }
    assert pair.moon.ike_sas == []


def test_a_packet_gets_its_child_with_the_ike_sa_and_no_other(pair: Any, sealing: Any) -> None:
    assert not ask(pair, "lab", LAB)
    assert made(pair) == ["lab"]
    tsi, tsr = (
        next(p for _, payloads in sealing.sent for p in payloads if isinstance(p, kind))
        for kind in (TsiPayload, TsrPayload)
    )
    assert [str(s) for s in tsi.selectors] == [LAB[0], "10.5.0.0/16"]
    assert [str(s) for s in tsr.selectors] == [LAB[1], "10.6.0.0/16"]
    pair.run(600)
    assert made(pair) == ["lab"]


def test_another_packet_gets_its_child_on_the_ike_sa_there_is(pair: Any) -> None:
    ask(pair, "lab", LAB)
    assert ask(pair, "net", NET)
    assert made(pair) == ["lab", "net"]
    assert len(pair.moon.views) == 1
    assert ask(pair, "net", NET)
    assert made(pair) == ["lab", "net"], "it has its Child SA"


def test_packets_while_the_ike_sa_is_begun_get_theirs_with_it(pair: Any) -> None:
    for child, packet in (("lab", LAB), ("net", NET), ("net", NET)):
        source, destination = map(TrafficSelector.parse, packet)
        endpoint = pair.moon.endpoint
        if not endpoint.handle_acquire("tunnel-a", child, source, destination, pair.now):
            pair.initiate()
    pair.deliver()
    assert made(pair) == ["lab", "net"]


def test_an_operators_up_brings_every_child(pair: Any) -> None:
    pair.up()
    assert made(pair) == ["net", "lab"]


def test_a_child_sa_changes_nothing_of_the_spd_and_the_trap_stays_when_it_goes(pair: Any) -> None:
    before = spd(pair)
    pair.moon.outputs.clear()
    ask(pair, "net", NET)
    pair.moon.endpoint.terminate("tunnel-a", pair.now)
    pair.deliver()
    assert spd(pair) == before
    assert not pair.moon.reports(AddPolicy)
    assert not pair.moon.reports(RemovePolicy)
    assert not ask(pair, "net", NET)
    assert made(pair) == ["net", "net"]


def test_a_child_that_the_peer_narrows_leaves_the_rest_to_the_trap(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any]
) -> None:
    policy = replace(make_policy(), start=StartMode.ON_DEMAND)
    theirs = make_policy("10.2.0.0/24 10.2.1.0/24", "10.1.0.0/16", here="sun", there="moon")
    theirs = replace(theirs, peers=("192.0.2.1",))
    first, second = (
        replace(theirs.children[0], name=f"part{n}", reqid=0x58460010 + n, local=(selector,))
        for n, selector in enumerate(theirs.children[0].local)
    )
    pair = make_pair(policy, replace(theirs, children=(first, second)))
    pair.moon.endpoint.set_traps("tunnel-a", ENDS)
    pair.deliver()
    trap = spd(pair)
    ask(pair, "net", ("10.1.0.1/32[udp/9]", "10.2.0.9/32[udp/9]"))
    assert ask(pair, "net", ("10.1.0.1/32[udp/9]", "10.2.1.9/32[udp/9]"))
    carried = [[str(s) for s in child.remote] for child in pair.moon.ike_sa.children]
    assert carried == [["10.2.0.0/24"], ["10.2.1.0/24"]]
    assert trap < spd(pair)
    reqids = {entry.reqid for entry in pair.moon.datapath.dump().sad}
    assert len(reqids) == 2
    assert policy.children[0].reqid not in reqids, "its SA would carry what the peer refuses"
    pair.moon.endpoint.terminate("tunnel-a", pair.now)
    pair.deliver()
    assert spd(pair) == trap


def test_traps_follow_the_peer_and_are_not_set_twice(pair: Any) -> None:
    pair.moon.outputs.clear()
    pair.moon.endpoint.set_traps("tunnel-a", ENDS)
    pair.deliver()
    assert pair.moon.outputs == []
    pair.moon.endpoint.set_traps("tunnel-a", ELSEWHERE)
    pair.deliver()
    assert len(pair.moon.reports(AddPolicy)) == len(spd(pair)) == 6
    ends = {leads_to(e) for e in spd(pair) if e.direction == "out"}
    assert ends == {"192.0.2.9"}


def test_traps_that_follow_the_peer_leave_the_policies_of_a_child_sa_alone(pair: Any) -> None:
    ask(pair, "net", NET)
    before = {e for e in spd(pair) if "10.2.0.0" in str(e.selector)}
    pair.moon.endpoint.set_traps("tunnel-a", ELSEWHERE)
    pair.deliver()
    assert before < spd(pair)


def test_another_policy_has_other_traps_and_one_that_is_not_on_demand_has_none(pair: Any) -> None:
    policy = pair.moon.policy
    wider = replace(policy.children[0], remote=(TrafficSelector.parse("10.0.0.0/8"),))
    pair.moon.endpoint.reconfigure(replace(policy, children=(wider,)), pair.now)
    pair.deliver()
    assert {str(e.selector.destination) for e in spd(pair) if e.direction == "out"} == {
        "10.0.0.0/8"
    }
    pair.moon.endpoint.reconfigure(replace(policy, start=StartMode.MANUAL), pair.now)
    pair.deliver()
    assert spd(pair) == set()
    assert not pair.moon.endpoint.has_traps("tunnel-a")


def test_a_tunnel_that_goes_takes_its_traps_along(pair: Any) -> None:
    pair.moon.endpoint.remove_tunnel("tunnel-a", pair.now)
    pair.deliver()
    assert spd(pair) == set()


@pytest.mark.parametrize("nth", [1, 2, 5])
def test_a_trap_that_the_datapath_refuses_leaves_none_and_is_told(
    make_pair: Callable[..., Any], make_policy: Callable[..., Any], nth: int
) -> None:
    policy = replace(make_policy(), start=StartMode.ON_DEMAND)
    (net,) = policy.children
    pair = make_pair(replace(policy, children=(net, _lab(net))))
    pair.moon.datapath.refuse("add_policy", nth=nth)
    pair.moon.endpoint.set_traps("tunnel-a", ENDS)
    pair.deliver()
    assert spd(pair) == set()
    (refused,) = pair.moon.reports(TrapsRefused)
    assert refused.failure.code == "XF3002"
    assert not pair.moon.endpoint.has_traps("tunnel-a")
    pair.moon.endpoint.set_traps("tunnel-a", ENDS)
    pair.deliver()
    assert len(spd(pair)) == 6


def test_traps_are_wanted_and_what_others_do_to_them_is_found(pair: Any) -> None:
    compare = pair.moon.endpoint.compare
    dump = pair.moon.datapath.dump()
    assert compare(["tunnel-a"], dump) == ()
    (missing,) = compare(["tunnel-a"], replace(dump, spd=dump.spd[1:]))
    assert (missing.subject, missing.tunnel, missing.child) == (dump.spd[0], "tunnel-a", "net")


def test_a_daemon_that_takes_over_adopts_traps_and_begins_with_what_was_there(pair: Any) -> None:
    before = spd(pair)
    restored = pair.moon.take_over()
    pair.moon.outputs.clear()
    pair.deliver()
    assert restored.spd == {(e.direction, e.selector, e.if_id) for e in before}
    assert spd(pair) == before
    assert not pair.moon.reports(AddPolicy)
    pair.moon.endpoint.set_traps("tunnel-a", ENDS)
    pair.deliver()
    assert not pair.moon.reports(AddPolicy)


def test_a_daemon_that_takes_over_knows_what_was_asked_for(pair: Any) -> None:
    ask(pair, "lab", LAB)
    pair.moon.take_over()
    pair.deliver()
    assert ask(pair, "net", NET)
    pair.moon.endpoint.reauthenticate("tunnel-a", pair.now)
    pair.run(60)
    assert sorted(c.policy.name for c in pair.moon.ike_sa.children) == ["lab", "net"]
    pair.moon.endpoint.rekey_ike_sas("tunnel-a", pair.now)
    pair.run(60)
    assert sorted(c.policy.name for c in pair.moon.ike_sa.children) == ["lab", "net"]


def test_reauthentication_brings_no_child_that_nobody_has_asked_for(pair: Any) -> None:
    ask(pair, "lab", LAB)
    pair.moon.endpoint.reauthenticate("tunnel-a", pair.now)
    pair.run(60)
    assert [c.policy.name for c in pair.moon.ike_sa.children] == ["lab"]


def test_an_acquire_is_told_apart_by_its_reqid(pair: Any) -> None:
    net, lab = pair.moon.policy.children
    assert pair.moon.endpoint.asked_for(net.reqid) == ("tunnel-a", "net")
    assert pair.moon.endpoint.asked_for(lab.reqid) == ("tunnel-a", "lab")
    assert pair.moon.endpoint.asked_for(0x58467777) is None
