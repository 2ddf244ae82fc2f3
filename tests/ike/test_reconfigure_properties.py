"""From any policy to any other, with the tunnel up: in force is what the other says, and no more.

The two ends are told one after the other, as operators do. What is in force in the end is compared
with a pair that came up under the second policy and never had another.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.ike.conftest import Pair, mirrored, tunnel_policy
from xfrmpy.ike.outputs import TunnelClosed
from xfrmpy.ipsec.proposals import parse_proposal
from xfrmpy.ipsec.sad import OUR_REQIDS
from xfrmpy.ipsec.selectors import Selector, TrafficSelector, selectors_between
from xfrmpy.ipsec.spd import PolicyDirection, SpdEntry
from xfrmpy.policy.model import ChildPolicy, TunnelPolicy
from xfrmpy.registry import ProtocolId

SETTLED_SECONDS = 90.0
"""By then both ends have followed, whoever was told first."""

IKE = ("aes128gcm16-prfsha256-x25519", "aes256gcm16-prfsha384-x25519")
ESP = ("aes128gcm16", "aes256gcm16", "aes128gcm16-x25519")
REMOTE = TrafficSelector.parse("10.2.0.0/16")
NETS = {
    "net": ("10.1.0.0/16", "10.1.0.0/17", "10.1.128.0/17"),
    "voice": ("10.7.0.0/16", "10.7.0.0/17"),
    "video": ("10.9.0.0/16", "10.10.0.0/16"),
}


CHILD = st.fixed_dictionaries(
    {
        "net": st.integers(0, 2),
        "esp": st.sampled_from(ESP),
        "replay_window": st.sampled_from((64, 128)),
        "lifetime_seconds": st.sampled_from((None, 600.0, 3600.0)),
    }
)
TERMS = st.fixed_dictionaries(
    {
        "children": st.dictionaries(st.sampled_from(sorted(NETS)), CHILD, min_size=1),
        "ike": st.sampled_from(IKE),
        "here": st.sampled_from(("moon", "luna")),
        "key": st.sampled_from((b"a shared key of thirty-two octets", b"the key of the next year")),
        "dpd_seconds": st.sampled_from((0.0, 30.0)),
        "lifetime_seconds": st.sampled_from((None, 14400.0)),
    }
)


def policy_of(terms: dict[str, Any]) -> TunnelPolicy:
    """Moon's policy; sun's is its mirror."""
    policy = tunnel_policy(ike=terms["ike"], here=terms["here"], key=terms["key"])
    children = (child_of(name, terms["children"][name]) for name in sorted(terms["children"]))
    kept = {key: terms[key] for key in ("dpd_seconds", "lifetime_seconds")}
    return replace(policy, children=tuple(children), **kept)


def child_of(name: str, terms: dict[str, Any]) -> ChildPolicy:
    nets = NETS[name]
    return ChildPolicy(
        name=name,
        reqid=OUR_REQIDS[sorted(NETS).index(name)],
        local=(TrafficSelector.parse(nets[terms["net"] % len(nets)]),),
        remote=(REMOTE,),
        proposals=(parse_proposal(terms["esp"], ProtocolId.ESP),),
        replay_window=terms["replay_window"],
        lifetime_seconds=terms["lifetime_seconds"],
    )


ONE: dict[str, Any] = {
    "children": {
        "net": {"net": 0, "esp": ESP[0], "replay_window": 128, "lifetime_seconds": None},
    },
    "ike": IKE[0],
    "here": "moon",
    "key": b"a shared key of thirty-two octets",
    "dpd_seconds": 0.0,
    "lifetime_seconds": None,
}
NARROWER = {
    **ONE,
    "children": {"net": {**ONE["children"]["net"], "net": 1, "replay_window": 64}},
}


@settings(max_examples=60)
@example(before=ONE, after=NARROWER, moon_first=True, lag=0.0)
@given(before=TERMS, after=TERMS, moon_first=st.booleans(), lag=st.sampled_from((0.0, 1.0, 4.0)))
def test_in_force_is_in_the_end_what_a_fresh_start_would_have_put_there(
    before: dict[str, Any],
    after: dict[str, Any],
    moon_first: bool,
    lag: float,
) -> None:
    old, new = policy_of(before), policy_of(after)
    pair, fresh = Pair(old), Pair(new)
    for each in (pair, fresh):
        each.up()
        each.run(SETTLED_SECONDS)
    leaks = [watch_for_leaks(host, common_traffic(old, new)) for host in (pair.moon, pair.sun)]
    for host in (pair.moon, pair.sun) if moon_first else (pair.sun, pair.moon):
        host.policy = new if host is pair.moon else mirrored(new)
        host.endpoint.reconfigure(host.policy, pair.now)
        pair.run(lag)
    pair.run(SETTLED_SECONDS)
    for host, model in ((pair.moon, fresh.moon), (pair.sun, fresh.sun)):
        assert in_force(host) == in_force(model)
        assert len(host.datapath.sad) == len(model.datapath.sad)
        assert [view.suite for view in host.views] == [view.suite for view in model.views]
        assert not host.endpoint.is_unsettled(new.name, pair.now)
        assert host.ike_sa.tunnel == host.policy
        for child in host.ike_sa.children:
            limit, rekey_at = child.policy.lifetime_seconds, child.rekey_at
            if limit is not None:
                assert rekey_at is not None
                assert rekey_at <= child.established_at + limit
    assert not pair.moon.reports(TunnelClosed)
    assert leaks == [[], []]
    pair.assert_mirrored()


def in_force(host: Any) -> set[tuple[object, ...]]:
    """Each policy with the SAs that carry its traffic, without what is drawn by lot.

    And without limits of time: these are followed by the next rekeying, which is planned by them.
    """
    dump = host.datapath.dump()
    return {
        (
            policy.direction,
            policy.selector,
            *sorted(
                f"{sa.direction} {sa.suite} {sa.mode} {sa.replay_window} {sa.encapsulation}"
                for sa in dump.sad
                if sa.reqid == policy.template.reqid
            ),
        )
        for policy in dump.spd
    }


def common_traffic(before: TunnelPolicy, after: TunnelPolicy) -> list[Selector]:
    """What moon sends through the tunnel under either policy."""
    both = (
        old.local[0].intersect(new.local[0]) for old in before.children for new in after.children
    )
    return [s for local in both if local for s in selectors_between([local], [REMOTE])]


def watch_for_leaks(host: Any, traffic: list[Selector]) -> list[Selector]:
    """What would leave in clear after one change of the SPD or another."""
    leaks: list[Selector] = []
    remove = host.datapath.remove_policy

    def look(entry: SpdEntry) -> None:
        remove(entry)
        out = [s for d, s, *_ in host.datapath.spd if d is PolicyDirection.OUT]
        ways = traffic if host.name == "moon" else [s.reversed() for s in traffic]
        leaks.extend(way for way in ways if not any(covers(s, way) for s in out))

    host.datapath.remove_policy = look
    return leaks


def covers(policy: Selector, traffic: Selector) -> bool:
    pairs = ((policy.source, traffic.source), (policy.destination, traffic.destination))
    return all(
        limit.prefixlen <= net.prefixlen and net.network_address in limit for limit, net in pairs
    )
