"""Keeps out what comes in clear and should have been protected (RFC 4301 section 5.2).

A packet that does not come out of our device is judged by the IN and FORWARD policies before the
host takes or forwards it: the first that matches must say BYPASS. A kernel with ESP does this
itself; here it is a table of our own in nf_tables, left standing when the worker dies. Policies of
one shape and priority share a rule and a map.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from xfrmpy.datapath import nftables
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.nftables import NfTables, Request
from xfrmpy.datapath.shapes import Shape, element_of, shape_of
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.datapath.watch import Source
from xfrmpy.ipsec.addresses import IKE_NATT_PORT, IKE_PORT
from xfrmpy.ipsec.selectors import Selector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry

TABLE = nftables.Table("xfrmpy-userspace")
CHAIN = "in"
_ESP, _AH = 50, 51

_Key: TypeAlias = tuple[PolicyDirection, Selector]
_Entries: TypeAlias = Sequence[tuple[_Key, SpdEntry | None]]
_Claims: TypeAlias = dict[_Key, int]
"""The policies that speak of one key of one shape, and their verdicts: IN and FORWARD mostly."""


class Guard:
    """The table of the network namespace of the thread that makes this. Raises `DatapathError`.

    `natt_port` is that on which we take IKE beside ESP in UDP.
    """

    def __init__(self, natt_port: int = IKE_NATT_PORT) -> None:
        self._ports = (IKE_PORT, natt_port)
        self._nf_tables = NfTables()
        self._entries: dict[_Key, SpdEntry] = {}
        self._shapes: dict[Shape, dict[bytes, _Claims]] = {}
        self._is_known = False

    def enforce(self, entries: Iterable[SpdEntry]) -> None:
        """Judge by these IN and FORWARD policies and no others; by none, let everything in."""
        self._entries.clear()
        self._shapes.clear()
        self._enter([(_key(entry), entry) for entry in entries])
        self._is_known = False
        self.renew()

    def add(self, entries: Iterable[SpdEntry]) -> None:
        """Judge by these too, each in place of any of the same direction and selector."""
        self._change([(_key(entry), entry) for entry in entries])

    def remove(self, entry: SpdEntry) -> None:
        self._change([(_key(entry), None)])

    def watch(self) -> tuple[Source, int]:
        """See `NfTables.watch`."""
        return self._nf_tables.watch(TABLE, self._doubt)

    def _doubt(self) -> None:
        self._is_known = False

    @property
    def is_doubtful(self) -> bool:
        """Whether what is enforced may not be what should be."""
        return bool(self._shapes) and not self._is_known

    def renew(self) -> None:
        """Whatever is there, make it anew."""
        self._nf_tables.send(self._everything())
        self._is_known = True

    def close(self) -> None:
        """What is enforced stays enforced."""
        self._nf_tables.close()

    def _change(self, entries: _Entries) -> None:
        """All of it or nothing; the IN and FORWARD policies of a Child SA are of one place."""
        old = [(key, self._entries.get(key)) for key, _ in entries]
        places = {_place(each) for _, each in (*old, *entries) if each is not None}
        shapes = self._shapes.keys() & {shape for shape, _ in places}
        had_table = bool(self._shapes)
        before = {place: self._verdict(*place) for place in places}
        self._enter(entries)
        after = {place: self._verdict(*place) for place in places}
        try:
            if not self._is_known or not had_table:
                self._nf_tables.send(self._everything())
            elif before != after:
                self._send_difference(before, after, shapes)
        except DatapathError:
            self._enter(old)
            raise
        self._is_known = True

    def _enter(self, entries: _Entries) -> None:
        """Keep entries in mind in place of what is there under their keys, if anything."""
        for key, entry in entries:
            self._strike(key)
            if entry is not None:
                self._entries[key] = entry
                shape, value = _place(entry)
                self._shapes.setdefault(shape, {}).setdefault(value, {})[key] = _verdict_of(entry)

    def _strike(self, key: _Key) -> None:
        if (old := self._entries.pop(key, None)) is None:
            return
        shape, value = _place(old)
        del self._shapes[shape][value][key]
        if not self._shapes[shape][value]:
            del self._shapes[shape][value]
        if not self._shapes[shape]:
            del self._shapes[shape]

    def _verdict(self, shape: Shape, value: bytes) -> int | None:
        claims = self._shapes.get(shape, {}).get(value)
        return None if claims is None else _strictest(claims)

    # What the kernel is told.

    def _send_difference(self, before: _Verdicts, after: _Verdicts, shapes: set[Shape]) -> None:
        """One that fails, because others have had their hands in our table, makes it anew."""
        try:
            self._nf_tables.send(self._difference(before, after, shapes))
        except DatapathError:
            self._nf_tables.send(self._everything())

    def _everything(self) -> list[Request]:
        requests = TABLE.delete()
        if not self._shapes:
            return requests
        requests.append(TABLE.add())
        requests.append(TABLE.add_chain(CHAIN, nftables.PREROUTING, nftables.RAW_PRIORITY))
        requests += [TABLE.add_map(s.name, s.fields()) for s in self._shapes]
        requests += self._rules()
        requests += [
            TABLE.add_element(shape.name, value, _strictest(claims))
            for shape, values in self._shapes.items()
            for value, claims in values.items()
        ]
        return requests

    def _difference(self, before: _Verdicts, after: _Verdicts, shapes: set[Shape]) -> list[Request]:
        """What leads from the verdicts `before` to those `after`; there were these `shapes`."""
        if not self._shapes:
            return TABLE.delete()
        changed = [place for place in before if before[place] != after[place]]
        requests = [
            TABLE.delete_element(shape.name, value)
            for shape, value in changed
            if before[shape, value] is not None
        ]
        left = self._shapes.keys() & {shape for shape, _ in before}
        if left != shapes:
            requests.append(TABLE.delete_rules(CHAIN))
            requests += [TABLE.delete_map(s.name) for s in shapes - left]
            requests += [TABLE.add_map(s.name, s.fields()) for s in left - shapes]
            requests += self._rules()
        requests += [
            TABLE.add_element(shape.name, value, verdict)
            for shape, value in changed
            if (verdict := after[shape, value]) is not None
        ]
        return requests

    def _rules(self) -> list[Request]:
        in_order = sorted(self._shapes, key=lambda shape: shape.priority)
        # IKE and ESP in UDP, where a policy covers the gateways.
        calls = [
            nftables.to_udp_port(port) + nftables.conclude(nftables.ACCEPT) for port in self._ports
        ]
        rules = [*calls, *_EXEMPT, *(shape.rule() for shape in in_order)]
        return [TABLE.add_rule(CHAIN, rule) for rule in rules]


_Place: TypeAlias = tuple[Shape, bytes]
_Verdicts: TypeAlias = dict[_Place, int | None]


def _key(entry: SpdEntry) -> _Key:
    return entry.direction, entry.selector


def _place(entry: SpdEntry) -> _Place:
    return shape_of(entry.selector, entry.priority), element_of(entry.selector)


def _verdict_of(entry: SpdEntry) -> int:
    return nftables.ACCEPT if entry.action is Action.BYPASS else nftables.DROP


def _strictest(claims: _Claims) -> int:
    return nftables.DROP if nftables.DROP in claims.values() else nftables.ACCEPT


_EXEMPT = tuple(
    matches + nftables.conclude(nftables.ACCEPT)
    for matches in (
        nftables.from_device(DEVICE),
        nftables.from_device("lo"),
        # The rest of IKE, and ESP and AH without UDP.
        nftables.later_udp_fragment(4) + nftables.is_to_us(),
        nftables.later_udp_fragment(6) + nftables.is_to_us(),
        nftables.has_protocol(_ESP),
        nftables.has_protocol(_AH),
        # Hop limit 255 keeps it on the link (RFC 4861 section 6.1); without it nothing moves.
        nftables.neighbour_discovery(),
    )
)
"""What is let in whatever the policies say."""
