"""Any policy after any other: what is planned leads to it, and nothing is left to plan then."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.ipsec.proposals import parse_proposal
from xfrmpy.ipsec.sad import OUR_REQIDS
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.changes import compare_policies, keep_reqids
from xfrmpy.policy.model import ChildPolicy, SharedKey, StartMode, TunnelPolicy
from xfrmpy.registry import ProtocolId

REQIDS = st.sampled_from((*OUR_REQIDS[-2:], *OUR_REQIDS[:3]))
"""Few, and at the end of the range, so that children want the same."""

CHILDREN = st.builds(
    ChildPolicy,
    name=st.sampled_from(("lan", "voice", "lab")),
    reqid=REQIDS,
    local=st.sampled_from(("10.1.0.0/16", "10.2.0.0/16")).map(
        lambda text: (TrafficSelector.parse(text),)
    ),
    remote=st.just((TrafficSelector.parse("10.3.0.0/16"),)),
    proposals=st.sampled_from(("aes128gcm16", "aes256gcm16")).map(
        lambda text: (parse_proposal(text, ProtocolId.ESP),)
    ),
    lifetime_seconds=st.sampled_from((None, 600.0)),
)
TUNNELS = st.builds(
    TunnelPolicy,
    name=st.sampled_from(("a", "b", "c")),
    origin=st.just("test:1"),
    peers=st.sampled_from((("192.0.2.1",), ("gw.example.net", "192.0.2.2"))),
    shared_key=st.binary(min_size=16, max_size=17).map(
        lambda octets: SharedKey(octets=octets, origin="test")
    ),
    proposals=st.just((parse_proposal("aes128gcm16-prfsha256-x25519", ProtocolId.IKE),)),
    children=st.lists(CHILDREN, min_size=1, max_size=3, unique_by=lambda c: c.name).map(tuple),
    start=st.sampled_from(StartMode),
)
POLICIES = st.lists(TUNNELS, max_size=3, unique_by=lambda t: t.name)


def _as_loaded(tunnels: list[TunnelPolicy]) -> tuple[TunnelPolicy, ...]:
    """No reqid twice, as the loader sees to it: nothing is in force that could be kept."""
    return keep_reqids(tunnels, ())


@given(before=POLICIES.map(_as_loaded), after=POLICIES)
def test_what_is_planned_leads_from_any_policy_to_any_other(
    before: tuple[TunnelPolicy, ...], after: list[TunnelPolicy]
) -> None:
    wanted = keep_reqids(after, before)
    in_force = {tunnel.name: tunnel for tunnel in before}
    for change in compare_policies(before, wanted):
        if change.after is None:
            del in_force[change.tunnel]
        else:
            assert in_force.get(change.tunnel) == change.before
            in_force[change.tunnel] = change.after
    assert set(in_force.values()) == set(wanted)
    assert compare_policies(in_force.values(), wanted) == ()


@given(before=POLICIES.map(_as_loaded), after=POLICIES)
def test_a_child_that_stays_keeps_its_reqid_and_no_other_gets_it(
    before: tuple[TunnelPolicy, ...], after: list[TunnelPolicy]
) -> None:
    known = {(t.name, c.name): c.reqid for t in before for c in t.children}
    wanted = keep_reqids(after, before)
    reqids = {(t.name, c.name): c.reqid for t in wanted for c in t.children}
    assert len(set(reqids.values())) == len(reqids)
    assert set(reqids.values()) <= set(OUR_REQIDS)
    assert {name: reqids[name] for name in reqids.keys() & known.keys()} == {
        name: known[name] for name in reqids.keys() & known.keys()
    }
    assert [replace(t, children=()) for t in wanted] == [replace(t, children=()) for t in after]
