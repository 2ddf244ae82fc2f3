"""Rules that lead a shunt's packets past our routes, or nowhere.

Our routes go by destinations alone, so a packet that a BYPASS entry lets through would take the way
into a tunnel all the same; and what a datapath without an SPD in the kernel is to DISCARD must not
leave. Rules know what selectors know, but for ICMP's types and codes. They stand around the rule
that leads to our routes (`routes.RULE_PRIORITY`): most before it, and after it those that come
behind all tunnels.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Iterator, Sequence

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.links import FAMILIES
from xfrmpy.datapath.netlink.messages import NUMBER, Message, decode_number
from xfrmpy.datapath.netlink.route import RTNETLINK, MessageType, Rule
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Request
from xfrmpy.datapath.routes import OUR_BITS, OUR_MARK, RULE_PRIORITY, Attributes, RouteOwner
from xfrmpy.ipsec.drift import Difference, Finding
from xfrmpy.ipsec.selectors import MAX_PORT, MaskedPort
from xfrmpy.ipsec.spd import (
    BEFORE_TUNNELS,
    OF_DEFAULT,
    Action,
    PolicyDirection,
    SpdEntry,
    beyond_rules,
)

_GOTO, _NOP, _BLACKHOLE = 2, 3, 6  # FR_ACT_*
_EXEMPT, _FIRST, _LAST, _LANDING = (RULE_PRIORITY + n for n in (-3, -2, 1, 2))
"""What is protected already passes; the shunts before tunnels; those behind; where all lead that
passes."""
_OUR_PRIORITIES = range(_EXEMPT, _LANDING + 1)
_PROTECTED: Attributes = {
    Rule.FWMARK: NUMBER.pack(OUR_MARK),
    Rule.FWMASK: NUMBER.pack(OUR_BITS),
}
_PORTS = struct.Struct("=HH")
_VERY_LAST = MAX_PORT - 1
"""Rules take ports from 1 to 65534."""


class ShuntRules:
    """Those of one datapath, in the network namespace of the thread that makes this.

    `actions` are those that it needs rules for. Every method raises `DatapathError`.
    """

    def __init__(self, owner: RouteOwner, actions: Iterable[Action]) -> None:
        self._owner = owner
        self._actions = frozenset(actions)
        self._entries: tuple[SpdEntry, ...] = ()
        self._netlink = NetlinkSocket(RTNETLINK)

    def concerns(self, entry: SpdEntry) -> bool:
        """Whether an entry has rules."""
        if entry.direction is not PolicyDirection.OUT or entry.priority == OF_DEFAULT:
            return False
        return entry.action in self._actions

    def check(self, entry: SpdEntry) -> None:
        """Raises `DatapathError` for an entry of which rules cannot say all."""
        if self.concerns(entry) and (reason := beyond_rules(entry)):
            raise DatapathError(f"the shunt {entry.selector}: {reason}", errno.EOPNOTSUPP)

    def add(self, entry: SpdEntry) -> None:
        self.check(entry)
        if self.concerns(entry):
            others = (e for e in self._entries if e.selector != entry.selector)
            self._enforce(sorted((*others, entry), key=_priority))

    def remove(self, entry: SpdEntry) -> None:
        left = [e for e in self._entries if e.selector != entry.selector]
        if len(left) < len(self._entries):
            self._enforce(left)

    def claim(self, entries: Iterable[SpdEntry]) -> None:
        """Know of what an earlier process has added, and make the rules right."""
        self._enforce(sorted(filter(self.concerns, entries), key=_priority))

    def clear(self) -> None:
        self._enforce(())

    def find_amiss(self) -> Iterator[Difference]:
        """The rules of one IP version, if they are not those that should be there."""
        for version in FAMILIES:
            there = [_essence(rule) for rule in self._there(version)]
            if there != [_essence(rule) for rule in self._wanted(version)]:
                what = f"the rules of IPv{version} shunts"
                yield Difference(finding=Finding.SHUNT_RULES_CHANGED, what=what, subject=version)

    def mend(self) -> None:
        self._enforce(self._entries)

    @property
    def port(self) -> int:
        """Of the socket by which everything here is changed."""
        return self._netlink.port

    def close(self) -> None:
        """Free the socket; the rules stay."""
        self._netlink.close()

    def _enforce(self, entries: Sequence[SpdEntry]) -> None:
        """The rules are few, and all made anew when one changes, for their order is meaning."""
        self._entries = tuple(entries)
        for version in FAMILIES:
            old, new = self._there(version), self._wanted(version)
            if [*map(_essence, old)] == [*map(_essence, new)]:
                continue
            gone = [Request(_deletion(rule), _WHAT) for rule in old]
            made = [Request(rule, _WHAT, create=True) for rule in new]
            for reply in self._netlink.exchange([*gone, *made]):
                reply.unless(errno.ENOENT, errno.EEXIST)

    def _there(self, version: int) -> list[Message]:
        rules = Message(type=MessageType.GETRULE, body={"family": FAMILIES[version]})
        found = self._netlink.ask(Request(rules, "list the rules", dump=True))
        ours = [rule for rule in found if rule.attributes.get(Rule.PROTOCOL) == self._mark_of_owner]
        return [r for r in ours if _number(r, Rule.PRIORITY) in _OUR_PRIORITIES]

    @property
    def _mark_of_owner(self) -> bytes:
        return bytes([self._owner])

    def _wanted(self, version: int) -> list[Message]:
        """In the order in which the kernel lists them."""
        entries = [e for e in self._entries if e.selector.source.version == version]
        if not entries:
            return []
        first = [e for e in entries if e.priority <= BEFORE_TUNNELS]
        last = [e for e in entries if e.priority > BEFORE_TUNNELS]
        landing: Attributes = {Rule.GOTO: NUMBER.pack(_LANDING)}
        return [
            self._rule(version, _GOTO, _EXEMPT, {**_PROTECTED, **landing}),
            *(self._of_entry(entry, _FIRST) for entry in first),
            *(self._of_entry(entry, _LAST) for entry in last if entry.action is Action.DISCARD),
            self._rule(version, _NOP, _LANDING, {}),
        ]

    def _of_entry(self, entry: SpdEntry, priority: int) -> Message:
        selector = entry.selector
        attributes: Attributes = {}
        if selector.source.prefixlen:
            attributes[Rule.SRC] = selector.source.network_address.packed
        if selector.destination.prefixlen:
            attributes[Rule.DST] = selector.destination.network_address.packed
        if selector.protocol:
            attributes[Rule.IP_PROTO] = bytes([selector.protocol])
        for kind, port in (
            (Rule.SPORT_RANGE, selector.source_port),
            (Rule.DPORT_RANGE, selector.destination_port),
        ):
            if port.mask:
                attributes[kind] = _ports(port)
        bypasses = entry.action is Action.BYPASS
        if bypasses:
            attributes[Rule.GOTO] = NUMBER.pack(_LANDING)
        rule = self._rule(
            selector.source.version, _GOTO if bypasses else _BLACKHOLE, priority, attributes
        )
        rule.body["src_len"] = selector.source.prefixlen
        rule.body["dst_len"] = selector.destination.prefixlen
        return rule

    def _rule(self, version: int, action: int, priority: int, more: Attributes) -> Message:
        return Message(
            type=MessageType.NEWRULE,
            body={"family": FAMILIES[version], "action": action},
            attributes={
                Rule.PRIORITY: NUMBER.pack(priority),
                Rule.PROTOCOL: self._mark_of_owner,
                **more,
            },
        )


def _priority(entry: SpdEntry) -> int:
    return entry.priority


def _ports(port: MaskedPort) -> bytes:
    last = port.value | (MAX_PORT & ~port.mask)
    return _PORTS.pack(max(port.value, 1), min(last, _VERY_LAST))


_WHAT = "change the rules of shunts"


def _deletion(rule: Message) -> Message:
    kept = {k: v for k, v in rule.attributes.items() if k in _TELLING}
    body = {k: rule.body[k] for k in ("family", "src_len", "dst_len", "action")}
    return Message(type=MessageType.DELRULE, body=body, attributes=kept)


_TELLING = frozenset(
    {
        *(Rule.DST, Rule.SRC, Rule.GOTO, Rule.PRIORITY, Rule.PROTOCOL, *_PROTECTED),
        *(Rule.IP_PROTO, Rule.SPORT_RANGE, Rule.DPORT_RANGE),
    }
)


def _essence(rule: Message) -> tuple[object, ...]:
    lengths = tuple(rule.body.get(name, 0) for name in ("src_len", "dst_len", "action"))
    telling = tuple(sorted((k, v) for k, v in rule.attributes.items() if k in _TELLING))
    return lengths, telling


def _number(rule: Message, attribute: Rule) -> int:
    octets = rule.attributes.get(attribute)
    return 0 if octets is None else decode_number(octets)
