"""The SPD of a worker: which policy a packet meets (RFC 4301 section 4.4.1)."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from typing import TypeAlias

from xfrmpy.esp.ip import InnerHeader
from xfrmpy.ipsec.sad import Mode, SadEntry
from xfrmpy.ipsec.spd import Place, PolicyDirection, SpdEntry

Table: TypeAlias = tuple[PolicyDirection, int]
"""The policies of one direction and interface, among which priority decides."""


class Policies:
    """Those in force."""

    def __init__(self) -> None:
        self._entries: dict[Place, SpdEntry] = {}
        self._by_priority: defaultdict[Table, list[SpdEntry]] = defaultdict(list)
        self._hosts: Counter[tuple[int, int]] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> tuple[SpdEntry, ...]:
        return tuple(self._entries.values())

    def add(self, entry: SpdEntry) -> None:
        """In place of one of the same direction and selector."""
        self.remove(entry)
        self._entries[entry.place] = entry
        self._hosts.update(_hosts_of(entry))
        insort(self._by_priority[_table_of(entry)], entry, key=_priority)

    def remove(self, entry: SpdEntry) -> None:
        """That of the same place, if there is one."""
        old = self._entries.pop(entry.place, None)
        if old is None:
            return
        entries = self._by_priority[_table_of(old)]
        place = bisect_left(entries, old.priority, key=_priority)
        while entries[place] is not old:
            place += 1
        del entries[place]
        if not entries:
            del self._by_priority[_table_of(old)]
        self._hosts -= Counter(_hosts_of(old))

    def clear(self) -> None:
        self._entries.clear()
        self._by_priority.clear()
        self._hosts.clear()

    def find(self, table: Table, header: InnerHeader) -> SpdEntry | None:
        """The one that a packet meets, of several the first by priority."""
        entries = self._by_priority.get(table, ())
        return next((entry for entry in entries if header.matches(entry.selector)), None)

    def is_host(self, header: InnerHeader) -> bool:
        """Whether a packet is for the peer of a transport mode, all of whose packets come here."""
        return (header.version, header.destination) in self._hosts

    def allow(self, sa: SadEntry, header: InnerHeader) -> bool:
        """RFC 4301 section 5.2 step 4: the policy met must be one that asks for this very SA.

        Whether the packet is for this host or goes on to another, only the host's routes know; so
        each of the two policies has a veto.
        """
        directions = (PolicyDirection.FORWARD, PolicyDirection.IN)
        tables = [(direction, sa.if_id) for direction in directions]
        met = [entry for table in tables if (entry := self.find(table, header))]
        reqids = {None if entry.template is None else entry.template.reqid for entry in met}
        return reqids == {sa.reqid}


def _table_of(entry: SpdEntry) -> Table:
    return entry.direction, entry.if_id


def _priority(entry: SpdEntry) -> int:
    return entry.priority


def _hosts_of(entry: SpdEntry) -> list[tuple[int, int]]:
    """Whom a policy of transport mode leads all packets here for, by version and address."""
    template, there = entry.template, entry.selector.destination
    if template is None or template.mode is not Mode.TRANSPORT:
        return []
    if entry.direction is not PolicyDirection.OUT or there.prefixlen < there.max_prefixlen:
        return []
    return [(there.version, int(there.network_address))]
