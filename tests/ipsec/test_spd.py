"""SPD entries: both ends of an SA mirror each other, and the specific goes before the general."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xfrmpy.ipsec.addresses import IpNetwork
from xfrmpy.ipsec.sad import Mode
from xfrmpy.ipsec.selectors import MaskedPort, Selector, TrafficSelector
from xfrmpy.ipsec.spd import (
    Action,
    PolicyDirection,
    SpdEntry,
    Template,
    protect_entries,
    selector_priority,
)

HERE, THERE = ip_address("192.0.2.1"), ip_address("192.0.2.2")
EVERYTHING = Selector(source=ip_network("0.0.0.0/0"), destination=ip_network("0.0.0.0/0"))


def template(*, back: bool = False, reqid: int = 7, mode: Mode = Mode.TUNNEL) -> Template:
    ends = (THERE, HERE) if back else (HERE, THERE)
    return Template(source=ends[0], destination=ends[1], reqid=reqid, mode=mode)


@st.composite
def traffic(draw: st.DrawFn) -> TrafficSelector:
    text = draw(
        st.sampled_from(
            ["10.1.0.0/16", "10.2.0.0/24", "10.1.0.3-10.1.0.6", "2001:db8::/48", "::/0", "10.9.9.9"]
        )
    )
    service = draw(st.sampled_from(["", "[tcp]", "[tcp/80]", "[udp/1000-1003]", "[icmp]"]))
    return TrafficSelector.parse(text + service)


SIDE = st.lists(traffic(), min_size=1, max_size=3)


def of(direction: PolicyDirection, entries: Iterable[SpdEntry]) -> set[tuple[object, ...]]:
    """The entries of a direction but for their reqids, which the two ends do not share."""
    return {
        (e.selector, e.priority, e.action, e.template.source, e.template.destination)
        for e in entries
        if e.direction is direction and e.template is not None
    }


@given(SIDE, SIDE, st.sampled_from(Mode))
@settings(deadline=None)
def test_what_one_end_sends_the_other_lets_in(
    local: list[TrafficSelector], remote: list[TrafficSelector], mode: Mode
) -> None:
    here = protect_entries(
        local=local,
        remote=remote,
        outbound=template(mode=mode),
        inbound=template(back=True, mode=mode),
    )
    there = protect_entries(
        local=remote,
        remote=local,
        outbound=template(back=True, reqid=8, mode=mode),
        inbound=template(reqid=8, mode=mode),
    )
    assert of(PolicyDirection.OUT, here) == of(PolicyDirection.IN, there)
    assert of(PolicyDirection.IN, here) == of(PolicyDirection.OUT, there)
    assert len(set(here)) == len(here)


@given(SIDE, SIDE)
@settings(deadline=None)
def test_in_is_out_reversed_and_forward_stands_beside_in(
    local: list[TrafficSelector], remote: list[TrafficSelector]
) -> None:
    entries = protect_entries(
        local=local, remote=remote, outbound=template(), inbound=template(back=True)
    )
    sent, received = of(PolicyDirection.OUT, entries), of(PolicyDirection.IN, entries)
    assert {selector for selector, *_ in received} == {
        selector.reversed() for selector, *_ in sent if isinstance(selector, Selector)
    }
    assert received == of(PolicyDirection.FORWARD, entries)
    assert {e.template for e in entries if e.direction is PolicyDirection.OUT} <= {template()}


def test_transport_mode_forwards_nothing() -> None:
    everything = [TrafficSelector.parse("10.0.0.0/8")]
    entries = protect_entries(
        local=everything,
        remote=everything,
        outbound=template(mode=Mode.TRANSPORT),
        inbound=template(back=True, mode=Mode.TRANSPORT),
    )
    assert [e.direction for e in entries] == [PolicyDirection.OUT, PolicyDirection.IN]


def test_two_families_have_nothing_to_protect() -> None:
    ends = [TrafficSelector.parse("10.0.0.0/8")], [TrafficSelector.parse("::/0")]
    assert (
        protect_entries(
            local=ends[0], remote=ends[1], outbound=template(), inbound=template(back=True)
        )
        == ()
    )


@pytest.mark.parametrize(
    ("action", "given_template"),
    [(Action.PROTECT, None), (Action.BYPASS, template()), (Action.DISCARD, template())],
)
def test_a_template_goes_with_protect_alone(
    action: Action, given_template: Template | None
) -> None:
    with pytest.raises(ValueError, match="a template goes with PROTECT, and only with it"):
        SpdEntry(
            direction=PolicyDirection.OUT,
            selector=EVERYTHING,
            action=action,
            priority=1,
            template=given_template,
        )


@pytest.mark.parametrize("action", [Action.BYPASS, Action.DISCARD])
def test_other_actions_need_no_template(action: Action) -> None:
    entry = SpdEntry(direction=PolicyDirection.OUT, selector=EVERYTHING, action=action, priority=1)
    assert entry.template is None


# Priorities.


@st.composite
def prefixes(draw: st.DrawFn, version: int) -> IpNetwork:
    bits = 32 if version == 4 else 128
    length = draw(st.integers(0, bits))
    number = draw(st.integers(0, (1 << length) - 1)) << (bits - length)
    return (IPv4Network if version == 4 else IPv6Network)((number, length))


@st.composite
def within(draw: st.DrawFn, network: IpNetwork) -> IpNetwork:
    longest = network.max_prefixlen
    length = draw(st.integers(network.prefixlen, longest))
    lower = draw(st.integers(0, (1 << (length - network.prefixlen)) - 1)) << (longest - length)
    kind = IPv4Network if network.version == 4 else IPv6Network
    return kind((int(network.network_address) | lower, length))


@st.composite
def ports_within(draw: st.DrawFn, outer: MaskedPort) -> MaskedPort:
    length = draw(st.integers(outer.mask.bit_count(), 16))
    mask = (0xFFFF << (16 - length)) & 0xFFFF
    return MaskedPort((outer.value | (draw(st.integers(0, 0xFFFF)) & ~outer.mask)) & mask, mask)


@st.composite
def nested_selectors(draw: st.DrawFn) -> tuple[Selector, Selector]:
    version = draw(st.sampled_from([4, 6]))
    protocol = draw(st.sampled_from([0, 6]))
    outer = Selector(
        source=draw(prefixes(version)),
        destination=draw(prefixes(version)),
        protocol=protocol,
        source_port=draw(ports_within(MaskedPort())),
        destination_port=draw(ports_within(MaskedPort())),
    )
    inner = Selector(
        source=draw(within(outer.source)),
        destination=draw(within(outer.destination)),
        protocol=protocol or draw(st.sampled_from([0, 6])),
        source_port=draw(ports_within(outer.source_port)),
        destination_port=draw(ports_within(outer.destination_port)),
    )
    return outer, inner


@given(nested_selectors())
@settings(deadline=None)
def test_the_more_specific_selector_is_looked_at_first(pair: tuple[Selector, Selector]) -> None:
    outer, inner = pair
    if inner == outer:
        assert selector_priority(inner) == selector_priority(outer)
    else:
        assert selector_priority(inner) < selector_priority(outer)


@given(nested_selectors())
@settings(deadline=None)
def test_a_priority_is_the_same_in_both_directions_and_fits_the_kernel(
    pair: tuple[Selector, Selector],
) -> None:
    for selector in pair:
        priority = selector_priority(selector)
        assert 0 < priority < 1 << 31
        assert priority == selector_priority(selector.reversed())


def test_a_longer_prefix_counts_more_than_protocol_and_ports() -> None:
    host = Selector(source=ip_network("10.0.0.1/32"), destination=ip_network("0.0.0.0/0"))
    service = Selector(
        source=ip_network("10.0.0.0/31"),
        destination=ip_network("0.0.0.0/0"),
        protocol=6,
        source_port=MaskedPort(80, 0xFFFF),
        destination_port=MaskedPort(443, 0xFFFF),
    )
    assert selector_priority(host) < selector_priority(service)
