"""SPD entries: what is protected, let through or discarded (RFC 4301 section 4.4.1)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_network
from typing import TypeAlias

from xfrmpy.ipsec.addresses import IpAddress, IpNetwork
from xfrmpy.ipsec.marks import Mark
from xfrmpy.ipsec.sad import Mode
from xfrmpy.ipsec.selectors import (
    ICMP_PROTOCOLS,
    MAX_PORT,
    MaskedPort,
    Selector,
    TrafficSelector,
    selectors_between,
)
from xfrmpy.registry import ProtocolId


class PolicyDirection(StrEnum):
    """OUT: leaving this host. IN: for this host. FORWARD: came in and goes on to another."""

    IN = "in"
    OUT = "out"
    FORWARD = "fwd"


class Action(StrEnum):
    """RFC 4301 section 4.4.1, in its own words."""

    PROTECT = "protect"
    BYPASS = "bypass"
    DISCARD = "discard"


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """Which SA a PROTECT entry asks for: its outer addresses (but in transport mode) and its reqid.

    `compresses` if SAs of that reqid have an index of compression.
    """

    source: IpAddress
    destination: IpAddress
    reqid: int
    protocol: ProtocolId = ProtocolId.ESP
    mode: Mode = Mode.TUNNEL
    compresses: bool = False


Place: TypeAlias = tuple[PolicyDirection, Selector, int, Mark | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpdEntry:
    """One policy as a datapath takes and gives it; the lower `priority` is looked at first.

    With an `if_id` it is about what goes into the interface of that number and comes out of it, and
    about nothing else; 0 is about everything else. With a `mark`
    it is about packets that bear it, and about no others.
    """

    direction: PolicyDirection
    selector: Selector
    action: Action = Action.PROTECT
    priority: int
    template: Template | None = None
    mark: Mark | None = None
    if_id: int = 0

    def __post_init__(self) -> None:
        if (self.template is None) == (self.action is Action.PROTECT):
            raise ValueError("a template goes with PROTECT, and only with it")

    @property
    def place(self) -> Place:
        """Where in the SPD it stands: another one there would take its place."""
        return self.direction, self.selector, self.if_id, self.mark

    @property
    def is_led(self) -> bool:
        """Whether it is the datapath that leads packets to it; into an interface lead others."""
        return self.direction is PolicyDirection.OUT and not self.if_id


def protect_entries(
    *,
    local: Iterable[TrafficSelector],
    remote: Iterable[TrafficSelector],
    outbound: Template,
    inbound: Template,
    priority: int | None = None,
    mark_out: Mark | None = None,
    mark_in: Mark | None = None,
    if_id: int = 0,
) -> tuple[SpdEntry, ...]:
    """The OUT, IN and FORWARD entries of one pair of SAs.

    FORWARD stands beside IN but in transport mode, which ends on this host. Without a
    `priority` the more specific selector is looked at first.
    """
    entries: list[SpdEntry] = []
    for selector in selectors_between(local, remote):
        urgency = selector_priority(selector) if priority is None else priority
        back = selector.reversed()
        directions = [
            (PolicyDirection.OUT, selector, outbound, mark_out),
            (PolicyDirection.IN, back, inbound, mark_in),
        ]
        if inbound.mode is not Mode.TRANSPORT:
            directions.append((PolicyDirection.FORWARD, back, inbound, mark_in))
        entries += [
            SpdEntry(direction=d, selector=s, priority=urgency, template=t, mark=m, if_id=if_id)
            for d, s, t, m in directions
        ]
    return tuple(entries)


def shunt_entries(
    *,
    local: Iterable[TrafficSelector],
    remote: Iterable[TrafficSelector],
    action: Action,
    priority: int | None = None,
) -> tuple[SpdEntry, ...]:
    """The OUT, IN and FORWARD entries of a BYPASS or a DISCARD.

    Without a `priority` they are looked at before all PROTECT entries that have none either.
    """
    return tuple(
        SpdEntry(
            direction=direction,
            selector=each,
            action=action,
            priority=selector_priority(selector) - SHUNTS_FIRST if priority is None else priority,
        )
        for selector in selectors_between(local, remote)
        for direction, each in (
            (PolicyDirection.OUT, selector),
            (PolicyDirection.IN, selector.reversed()),
            (PolicyDirection.FORWARD, selector.reversed()),
        )
    )


def default_exceptions() -> tuple[SpdEntry, ...]:
    """What passes, unless something else matches it, where nothing passes that nothing matches.

    Without neighbour discovery IPv6 ends on a link (RFC 4861), and without the errors that tell of
    a narrow path so do the tunnels (RFC 1191, RFC 8201; RFC 4301 section 8.2). The kernel exempts
    the loopback device, but not from what comes in by IPv6.
    """
    discovery = ((133, 0xFFFF), (134, 0xFFFE), (136, 0xFFFE))  # Types 133 to 137.
    both = (PolicyDirection.IN, PolicyDirection.OUT)
    rows = [
        *((6, MaskedPort(value=v, mask=m), MaskedPort(), both) for v, m in discovery),
        (6, _exactly(_PACKET_TOO_BIG), MaskedPort(), (PolicyDirection.IN,)),
        (4, _exactly(_UNREACHABLE), _exactly(_FRAGMENTATION_NEEDED), (PolicyDirection.IN,)),
    ]
    itself = Selector(source=_LOOPBACK, destination=_LOOPBACK)
    entries = [(PolicyDirection.IN, itself)]
    entries += [
        (
            direction,
            Selector(
                source=_ALL[version],
                destination=_ALL[version],
                protocol=_ICMP[version],
                source_port=kind,
                destination_port=code,
            ),
        )
        for version, kind, code, directions in rows
        for direction in directions
    ]
    return _exceptions(entries)


def entries_inside(
    carried: Iterable[Selector], directions: Collection[PolicyDirection]
) -> tuple[SpdEntry, ...]:
    """As `default_exceptions`, for what is `carried`, as it leaves: before that the hosts behind
    this one send it to be forwarded, and the answers leave for them.

    Other entries say what of it must leave by a tunnel, and must have come by one.
    """
    rows = [
        (direction, selector)
        for each in carried
        for direction, selector in (
            (PolicyDirection.FORWARD, each),
            (PolicyDirection.OUT, each.reversed()),
        )
        if direction in directions
    ]
    return _exceptions(rows)


def _exceptions(rows: Iterable[tuple[PolicyDirection, Selector]]) -> tuple[SpdEntry, ...]:
    return tuple(
        SpdEntry(direction=d, selector=s, action=Action.BYPASS, priority=OF_DEFAULT)
        for d, s in rows
    )


def _exactly(number: int) -> MaskedPort:
    return MaskedPort(value=number, mask=MAX_PORT)


_ALL: dict[int, IpNetwork] = {4: ip_network("0.0.0.0/0"), 6: ip_network("::/0")}
_LOOPBACK: IpNetwork = ip_network("::1/128")
_ICMP = {4: 1, 6: 58}
_UNREACHABLE, _FRAGMENTATION_NEEDED = 3, 4
_PACKET_TOO_BIG = 2


def beyond_rules(entry: SpdEntry) -> str:
    """Why rules of routing cannot do for an entry what an SPD does; empty if they can, or need not.

    They stand before all tunnels or behind them, know protocols and ports, but no types of ICMP,
    and of ports neither the first nor the last by itself.
    """
    if entry.priority == OF_DEFAULT:  # No route of ours leads any of it elsewhere.
        return ""
    ports = (entry.selector.source_port, entry.selector.destination_port)
    if entry.selector.protocol in ICMP_PROTOCOLS and any(port.mask for port in ports):
        return "rules of routing know no ICMP types"
    if any(port.mask == MAX_PORT and port.value in (0, MAX_PORT) for port in ports):
        return f"rules of routing know ports from 1 to {MAX_PORT - 1}"
    if BEFORE_TUNNELS < entry.priority < BEHIND_TUNNELS:
        return (
            f"rules of routing come before all tunnels (priority up to {BEFORE_TUNNELS}) or behind "
            f"them (from {BEHIND_TUNNELS})"
        )
    return ""


def selector_priority(selector: Selector) -> int:
    """A priority by which the more specific selector is looked at first.

    Prefix lengths count most, then a protocol, then the bits of the ports.
    """
    prefixes = selector.source.prefixlen + selector.destination.prefixlen
    ports = (selector.source_port.mask.bit_count(), selector.destination_port.mask.bit_count())
    specific = prefixes * 128 + (64 if selector.protocol else 0) + sum(ports)
    return _LEAST_SPECIFIC - specific


_LEAST_SPECIFIC = 100_000
"""Above the 256 * 128 + 96 that the most specific selector takes off; below 2**31 by far."""

SHUNTS_FIRST = 50_000
"""Which a shunt is before a tunnel of the same selector: more than all specificity counts."""

BEFORE_TUNNELS, BEHIND_TUNNELS = _LEAST_SPECIFIC - SHUNTS_FIRST, _LEAST_SPECIFIC
"""No entry of a tunnel without an explicit priority is up to the one, or beyond the other."""

MAX_PRIORITY = 1_000_000

OF_DEFAULT = MAX_PRIORITY + 1
"""Of `default_exceptions`, which stand behind all that an operator can say, and are known by it."""
