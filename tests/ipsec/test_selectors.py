"""Traffic selectors and SPD selectors against slow twins: sets of all packets of a small world.

In that world a family has 8 addresses, a packet one of 3 protocols, and a port that is one of the
ends of the ranges in use, something between, or OPAQUE: not to be had.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network, summarize_address_range
from itertools import pairwise, product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.selectors import (
    MAX_PORT,
    PROTOCOL_NAMES,
    MaskedPort,
    Selector,
    TrafficSelector,
    covered_by,
    format_service,
    narrow_selectors,
    parse_service,
    selectors_between,
)

BASES = {4: int(IPv4Address("10.0.0.8")), 6: int(IPv6Address("2001:db8::8"))}
ADDRESSES = range(8)
PROTOCOLS = (1, 6, 17)
OPAQUE = -1
PORTS = (0, 1, 2, 3, 1000, MAX_PORT - 1, MAX_PORT, OPAQUE)
ENDS = (0, 1, 2, 3, MAX_PORT - 1, MAX_PORT)

Packet = tuple[int, int, int, int]  # IP version, protocol, address, port


def address(version: int, number: int) -> IpAddress:
    kind = IPv4Address if version == 4 else IPv6Address
    return kind(BASES[version] + number)


@st.composite
def selectors(
    draw: st.DrawFn, ports: tuple[int, ...] = ENDS, version: int | None = None
) -> TrafficSelector:
    version = version or draw(st.sampled_from([4, 6]))
    start, end = sorted(draw(st.tuples(*[st.sampled_from(ADDRESSES)] * 2)))
    first, last = sorted(draw(st.tuples(*[st.sampled_from(ports)] * 2)))
    special = draw(st.sampled_from([None, None, (0, MAX_PORT), (MAX_PORT, 0)]))
    return TrafficSelector(
        protocol=draw(st.sampled_from([0, 6, 17])),
        start_port=special[0] if special else first,
        end_port=special[1] if special else last,
        start_address=address(version, start),
        end_address=address(version, end),
    )


LISTS = st.lists(selectors(), max_size=4)


def has_port(selector: TrafficSelector, port: int) -> bool:
    """RFC 4301 section 4.4.1.1: "ANY encompasses OPAQUE"."""
    if (selector.start_port, selector.end_port) == (0, MAX_PORT):
        return True
    if (selector.start_port, selector.end_port) == (MAX_PORT, 0):
        return port == OPAQUE
    return selector.start_port <= port <= selector.end_port


@cache
def packets(selector: TrafficSelector) -> frozenset[Packet]:
    return frozenset(
        (version, protocol, number, port)
        for version, protocol, number, port in product((4, 6), PROTOCOLS, ADDRESSES, PORTS)
        if version == selector.start_address.version
        and selector.protocol in (0, protocol)
        and int(selector.start_address) <= BASES[version] + number <= int(selector.end_address)
        and has_port(selector, port)
    )


def all_packets(several: Iterable[TrafficSelector]) -> frozenset[Packet]:
    return frozenset().union(*map(packets, several))


# Traffic selectors.


@given(selectors(), selectors())
@settings(deadline=None)
def test_an_intersection_has_the_packets_that_both_have(
    one: TrafficSelector, other: TrafficSelector
) -> None:
    common = one.intersect(other)
    assert (frozenset() if common is None else packets(common)) == packets(one) & packets(other)
    assert common == other.intersect(one)


@given(selectors(), selectors())
@settings(deadline=None)
def test_covering_is_being_a_superset(one: TrafficSelector, other: TrafficSelector) -> None:
    assert one.covers(other) == (packets(one) >= packets(other))
    assert one.covers(one)


@given(LISTS, LISTS)
@settings(deadline=None)
def test_narrowing_leaves_what_both_sides_allow(
    offered: list[TrafficSelector], allowed: list[TrafficSelector]
) -> None:
    results = narrow_selectors(offered, allowed)
    assert all_packets(results) == all_packets(offered) & all_packets(allowed)
    assert covered_by(results, offered)
    assert covered_by(results, allowed)


@given(LISTS, LISTS)
@settings(deadline=None)
def test_narrowing_repeats_nothing_and_keeps_the_order_of_the_offer(
    offered: list[TrafficSelector], allowed: list[TrafficSelector]
) -> None:
    results = narrow_selectors(offered, allowed)
    assert not any(a.covers(b) for a, b in product(results, results) if a is not b)
    origins = [
        next(index for index, offer in enumerate(offered) if offer.covers(result))
        for result in results
    ]
    assert origins == sorted(origins)


@given(LISTS, LISTS)
@settings(deadline=None)
def test_covered_by_looks_for_one_limit_for_each(
    some: list[TrafficSelector], limits: list[TrafficSelector]
) -> None:
    slowly = all(any(packets(s) <= packets(limit) for limit in limits) for s in some)
    assert covered_by(some, limits) == slowly


def test_generators_will_do_where_lists_do() -> None:
    one = TrafficSelector.parse("10.0.0.0/8")
    two = TrafficSelector.parse("2001:db8::/32")
    assert narrow_selectors(iter((one, two)), iter((one, two))) == (one, two)
    assert covered_by(iter((one, two)), iter((one, two)))
    assert len(selectors_between(iter((one, two)), iter((one, two)))) == 2


def test_a_range_of_addresses_is_the_fewest_prefixes() -> None:
    for version, start, end in product((4, 6), range(16), range(16)):
        if start > end:
            continue
        lone = TrafficSelector(
            start_address=address(version, start), end_address=address(version, end)
        )
        networks = lone.networks()
        assert [a for network in networks for a in network] == [
            address(version, number) for number in range(start, end + 1)
        ]
        assert not any(
            a.prefixlen and a.supernet() == b.supernet() for a, b in pairwise(networks)
        ), "two halves of one prefix"


@pytest.mark.parametrize(
    ("protocol", "start_port", "end_port"),
    [(-1, 0, 1), (256, 0, 1), (6, -1, 1), (6, MAX_PORT + 1, MAX_PORT + 2), (6, 0, MAX_PORT + 1)],
)
def test_what_does_not_fit_its_octets_is_refused(
    protocol: int, start_port: int, end_port: int
) -> None:
    with pytest.raises(ValueError, match="port out of range"):
        TrafficSelector(
            protocol=protocol,
            start_port=start_port,
            end_port=end_port,
            start_address=address(4, 0),
            end_address=address(4, 0),
        )


@pytest.mark.parametrize(
    ("start", "end", "ports", "sentence"),
    [
        ("10.0.0.1", "2001:db8::1", (0, 1), "a traffic selector's addresses must be of one family"),
        ("10.0.0.2", "10.0.0.1", (0, 1), "reversed address range 10.0.0.2-10.0.0.1"),
        ("10.0.0.1", "10.0.0.2", (2, 1), "reversed port range 2-1"),
        ("10.0.0.1", "10.0.0.2", (MAX_PORT, 1), "reversed port range 65535-1"),
    ],
)
def test_reversed_and_mixed_ranges_are_refused(
    start: str, end: str, ports: tuple[int, int], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrafficSelector(
            start_port=ports[0],
            end_port=ports[1],
            start_address=ip_address(start),
            end_address=ip_address(end),
        )


# As text.


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("10.1.0.0/16", None),
        ("10.1.0.7", "10.1.0.7/32"),
        ("10.1.0.1-10.1.0.9[udp]", None),
        ("10.1.0.0-10.1.0.255", "10.1.0.0/24"),
        ("10.1.0.1 - 10.1.0.9 [ UDP/53 ]", "10.1.0.1-10.1.0.9[udp/53]"),
        ("2001:db8::/32[tcp/443]", None),
        ("::/0[any]", "::/0"),
        ("::/0[*]", "::/0"),
        ("0.0.0.0/0[tcp/1000-2000]", None),
        ("0.0.0.0/0[tcp/any]", "0.0.0.0/0[tcp]"),
        ("0.0.0.0/0[17/4500]", "0.0.0.0/0[udp/4500]"),
        ("0.0.0.0/0[41]", None),
        ("0.0.0.0/0[0]", "0.0.0.0/0"),
        ("0.0.0.0/0[tcp/opaque]", None),
        ("0.0.0.0/0[icmp]", None),
        ("0.0.0.0/0[icmp/8]", None),
        ("0.0.0.0/0[icmp/8.0-8.255]", "0.0.0.0/0[icmp/8]"),
        ("0.0.0.0/0[icmp/3.4]", None),
        ("0.0.0.0/0[icmp/3-5]", None),
        ("0.0.0.0/0[icmp/3.1-5]", "0.0.0.0/0[icmp/3.1-5.255]"),
        ("::/0[icmpv6/128-129]", None),
        ("::/0[58/1.0]", "::/0[icmpv6/1.0]"),
        ("::/0[icmpv6]", None),
        ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
    ],
)
def test_a_selector_is_read_and_written(text: str, again: str | None) -> None:
    assert str(TrafficSelector.parse(text)) == (again or text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "'' does not appear to be an IPv4 or IPv6 network"),
        ("office", "'office' does not appear"),
        ("10.1.0.1/16", "10.1.0.1/16 has host bits set"),
        ("10.1.0.0/33", "does not appear"),
        ("10.0.0.1-", "'' does not appear to be an IPv4 or IPv6 address"),
        ("10.0.0.9-10.0.0.1", "reversed address range 10.0.0.9-10.0.0.1"),
        ("10.0.0.1-::1", "must be of one family"),
        ("fe80::1%eth0", "'fe80::1%eth0': a traffic selector has no zone"),
        ("10.0.0.0/8[tcp", r"'10.0.0.0/8\[tcp': the bracket is not closed"),
        ("10.0.0.0/8[tcp]x", "the bracket is not closed"),
        ("10.0.0.0/8[]", "unknown protocol ''; known are gre, icmp, icmpv6, ospf, sctp, tcp, udp,"),
        ("10.0.0.0/8[tpc]", "unknown protocol 'tpc'; known are .* and numbers below 256"),
        ("10.0.0.0/8[256]", "unknown protocol '256'"),
        ("10.0.0.0/8[tcp/]", "'' is neither a port nor a range of ports"),
        ("10.0.0.0/8[tcp/http]", "'http' is neither a port nor a range of ports"),
        ("10.0.0.0/8[tcp/2-1]", "'2-1' is neither a port nor a range of ports"),
        ("10.0.0.0/8[tcp/65536]", "'65536' is neither a port nor a range of ports"),
        ("10.0.0.0/8[tcp/-1]", "'-1' is neither a port nor a range of ports"),
        ("10.0.0.0/8[any/80]", "'any' has no ports"),
        ("10.0.0.0/8[gre/80]", "'gre' has no ports"),
        ("10.0.0.0/8[icmp/echo]", "'echo' is neither an ICMP type, with or without a code, nor"),
        ("10.0.0.0/8[icmp/256]", "'256' is neither an ICMP type"),
        ("10.0.0.0/8[icmp/3.256]", "'3.256' is neither an ICMP type"),
        ("10.0.0.0/8[icmp/5-3]", "'5-3' is neither an ICMP type"),
    ],
)
def test_what_is_no_selector_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrafficSelector.parse(text)


@given(st.text(alphabet="0123456789abcdf.:/-[]%* tcpudyn\u0663", max_size=30))
@example("10.0.0.0/8[tcp/" + "9" * 5000 + "]")
@settings(deadline=None)
def test_text_gives_a_selector_or_a_value_error(text: str) -> None:
    try:
        selector = TrafficSelector.parse(text)
    except ValueError:
        return
    assert TrafficSelector.parse(str(selector)) == selector


@st.composite
def any_selectors(draw: st.DrawFn) -> TrafficSelector:
    family = st.ip_addresses(v=4) if draw(st.booleans()) else st.ip_addresses(v=6)
    start, end = sorted((draw(family), draw(family)), key=int)
    first, last = sorted(draw(st.tuples(*[st.integers(0, MAX_PORT)] * 2)))
    special = draw(st.sampled_from([None, (0, MAX_PORT), (MAX_PORT, 0)]))
    ported = draw(st.sampled_from([6, 17, 33, 132, 136]))
    return TrafficSelector(
        protocol=draw(st.integers(0, 255)) if special else ported,
        start_port=special[0] if special else first,
        end_port=special[1] if special else last,
        start_address=start,
        end_address=end,
    )


@given(any_selectors())
@settings(deadline=None)
def test_a_selector_is_written_as_it_can_be_read(selector: TrafficSelector) -> None:
    assert TrafficSelector.parse(str(selector)) == selector


@given(st.integers(0, 255), st.integers(0, MAX_PORT), st.integers(0, MAX_PORT))
@settings(deadline=None)
def test_a_service_is_read_as_it_is_written_or_has_no_ports(
    protocol: int, start: int, end: int
) -> None:
    start, end = sorted((start, end))
    text = format_service(protocol, start, end)
    if protocol in (1, 6, 17, 33, 58, 132, 136) or (start, end) == (0, MAX_PORT):
        assert parse_service(text) == (protocol, (start, end))
    else:
        with pytest.raises(ValueError, match="has no ports"):
            parse_service(text)


def test_the_names_of_protocols_are_those_of_iana() -> None:
    assert PROTOCOL_NAMES == {
        "icmp": 1,
        "tcp": 6,
        "udp": 17,
        "gre": 47,
        "icmpv6": 58,
        "ospf": 89,
        "sctp": 132,
    }


# SPD selectors.


def masked_ports(first: int, last: int) -> tuple[MaskedPort, ...]:
    everything = TrafficSelector.parse("10.0.0.0/8[tcp]")
    some = TrafficSelector(
        protocol=6,
        start_port=first,
        end_port=last,
        start_address=everything.start_address,
        end_address=everything.end_address,
    )
    found = selectors_between([some], [everything])
    assert all(selector.destination_port == MaskedPort() for selector in found)
    assert tuple(s.destination_port for s in selectors_between([everything], [some])) == tuple(
        s.source_port for s in found
    )
    return tuple(selector.source_port for selector in found)


@given(*[st.integers(0, MAX_PORT)] * 2)
@example(0, MAX_PORT)
@example(1, MAX_PORT - 1)
@example(0, 0)
@example(MAX_PORT, MAX_PORT)
@example(1024, MAX_PORT)
@settings(deadline=None)
def test_a_range_of_ports_is_the_fewest_masked_ports(first: int, last: int) -> None:
    """The twin: prefixes of the addresses 0.0.0.0 to 0.0.255.255, whose numbers are ports."""
    first, last = sorted((first, last))
    prefixes = summarize_address_range(IPv4Address(first), IPv4Address(last))
    assert masked_ports(first, last) == tuple(
        MaskedPort(int(prefix.network_address), int(prefix.netmask) & MAX_PORT)
        for prefix in prefixes
    )


@pytest.mark.parametrize("last", range(24))
def test_masked_ports_match_the_ports_of_their_range_and_no_others(last: int) -> None:
    for first in range(last + 1):
        masks = masked_ports(first, last)
        matched = [port for port in range(64) for mask in masks if mask.matches(port)]
        assert sorted(matched) == list(range(first, last + 1))
        assert not any(mask.matches(port) for mask in masks for port in (1000, MAX_PORT))


def test_opaque_ports_become_any_port_because_kernels_know_no_opaque() -> None:
    assert masked_ports(MAX_PORT, 0) == (MaskedPort(),)


NARROW = st.lists(selectors(ports=(1, 2, 3), version=4) | selectors(ports=(1, 2, 3)), max_size=3)
VISIBLE = tuple(port for port in PORTS if port != OPAQUE)


def side(selector: TrafficSelector) -> set[tuple[int, int, int, int]]:
    """The packets of one end; an SPD takes OPAQUE for any port."""
    is_any = has_port(selector, OPAQUE)
    return {
        (version, protocol, number, port)
        for version, protocol, number, port in product((4, 6), PROTOCOLS, ADDRESSES, VISIBLE)
        if any(p[:3] == (version, protocol, number) for p in packets(selector))
        and (is_any or has_port(selector, port))
    }


def matches(selector: Selector, version: int, protocol: int) -> tuple[set[tuple[int, int]], ...]:
    """The (address, port) pairs of each end that an SPD selector matches."""
    if selector.source.version != version or selector.protocol not in (0, protocol):
        return (set(), set())
    return tuple(
        {
            (number, port)
            for number, port in product(ADDRESSES, VISIBLE)
            if address(version, number) in network and mask.matches(port)
        }
        for network, mask in (
            (selector.source, selector.source_port),
            (selector.destination, selector.destination_port),
        )
    )


@given(NARROW, NARROW)
@settings(max_examples=25, deadline=None)
def test_spd_selectors_match_the_packets_between_two_ends(
    sources: list[TrafficSelector], destinations: list[TrafficSelector]
) -> None:
    found = selectors_between(sources, destinations)
    assert len(set(found)) == len(found)
    for version, protocol in product((4, 6), PROTOCOLS):
        expected = {
            (a[2:], b[2:])
            for source, destination in product(sources, destinations)
            for a, b in product(side(source), side(destination))
            if a[:2] == b[:2] == (version, protocol)
        }
        pairs = [matches(selector, version, protocol) for selector in found]
        assert {pair for ends in pairs for pair in product(*ends)} == expected


@given(NARROW, NARROW)
@settings(deadline=None)
def test_the_other_direction_is_the_same_selectors_reversed(
    sources: list[TrafficSelector], destinations: list[TrafficSelector]
) -> None:
    there = selectors_between(sources, destinations)
    back = selectors_between(destinations, sources)
    assert {selector.reversed() for selector in there} == set(back)
    assert all(selector.reversed().reversed() == selector for selector in there)


def test_an_spd_selector_is_shown_with_its_protocol() -> None:
    everything = Selector(source=ip_network("10.0.0.0/8"), destination=ip_network("::/0"))
    assert str(everything) == "10.0.0.0/8 -> ::/0"
    web = Selector(source=ip_network("10.0.0.0/8"), destination=ip_network("0.0.0.0/0"), protocol=6)
    assert str(web) == "10.0.0.0/8 -> 0.0.0.0/0 tcp"


# ICMP: a type and a code in the place of ports.


@st.composite
def icmp_ranges(draw: st.DrawFn) -> tuple[int, int]:
    ends = [draw(st.integers(0, 0xFFFF)), draw(st.integers(0, 0xFFFF))]
    return min(ends), max(ends)


def _icmp(address: str, ports: tuple[int, int]) -> TrafficSelector:
    one = ip_address(address)
    return TrafficSelector(
        protocol=1, start_port=ports[0], end_port=ports[1], start_address=one, end_address=one
    )


@given(icmp_ranges(), icmp_ranges())
@example((0, 0xFFFF), (0x0800, 0x08FF))
@example((0x0301, 0x0504), (0, 0xFFFF))
@settings(deadline=None)
def test_icmp_types_and_codes_are_matched_as_the_range_of_both_ends_says(
    ours: tuple[int, int], theirs: tuple[int, int]
) -> None:
    """The twin: a message passes if its 16 bits are in both ranges."""
    found = selectors_between([_icmp("10.0.0.1", ours)], [_icmp("10.0.0.2", theirs)])
    edges = {end + step for end in (*ours, *theirs) for step in (-256, -1, 0, 1, 256)}
    for number in {n for n in edges if 0 <= n <= 0xFFFF} | {0, 0x0800, 0xFFFF}:
        kind, code = divmod(number, 256)
        wanted = ours[0] <= number <= ours[1] and theirs[0] <= number <= theirs[1]
        hits = [
            s for s in found if s.source_port.matches(kind) and s.destination_port.matches(code)
        ]
        assert len(hits) == wanted
    assert len(found) <= 30


def test_an_icmp_message_has_its_type_in_either_direction() -> None:
    (echo,) = selectors_between(
        [TrafficSelector.parse("10.0.0.1/32[icmp/8]")], [TrafficSelector.parse("10.0.0.2/32[icmp]")]
    )
    back = echo.reversed()
    assert (back.source, back.destination) == (echo.destination, echo.source)
    assert (back.source_port, back.destination_port) == (echo.source_port, echo.destination_port)
    assert echo.source_port.matches(8)
    assert not echo.source_port.matches(0)


_MASKED = st.builds(
    lambda value, mask: MaskedPort(value & mask, mask),
    st.integers(0, 15),
    st.integers(0, 15).map(lambda low: 0xFFF0 | low) | st.just(0),
)
_SMALL = st.builds(
    Selector,
    source=st.sampled_from(["10.0.0.0/30", "10.0.0.2/31", "10.0.0.4/30", "::/126"]).map(ip_network),
    destination=st.just(ip_network("10.0.0.0/30")),
    protocol=st.sampled_from([0, 6, 17]),
    source_port=_MASKED,
    destination_port=_MASKED,
)


@given(_SMALL, _SMALL)
def test_selectors_overlap_if_there_is_a_packet_that_both_match(
    one: Selector, other: Selector
) -> None:
    packets = product(
        [ip_address("::1"), *(ip_address(f"10.0.0.{n}") for n in range(8))],
        (1, 6, 17),
        range(17),
        range(17),
    )
    assert one.overlaps(other) == any(
        each in one.source
        and each in other.source
        and all(s.protocol in (0, protocol) for s in (one, other))
        and all(s.source_port.matches(source) for s in (one, other))
        and all(s.destination_port.matches(destination) for s in (one, other))
        for each, protocol, source, destination in packets
    )
