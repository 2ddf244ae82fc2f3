"""A datapath that moves no packet: for tests of whoever uses one.

It keeps the contract of `interface.py` in dictionaries, records what was asked in its order, and
fails on demand. Events and usage are what the test puts in.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from xfrmpy.datapath.interface import (
    Capabilities,
    DatapathError,
    Event,
    Realm,
    add_one_by_one,
)
from xfrmpy.ipsec.drift import Difference, Dump
from xfrmpy.ipsec.interfaces import InterfaceState, TunnelInterface
from xfrmpy.ipsec.proposals import AH_SUITES, ESP_SUITES
from xfrmpy.ipsec.sad import Direction, DontFragment, Mode, SadEntry, SaId, Usage
from xfrmpy.ipsec.spd import Action, Place, PolicyDirection, SpdEntry
from xfrmpy.registry import ProtocolId

EVERYTHING = Capabilities(
    protocols=frozenset({ProtocolId.ESP, ProtocolId.AH}),
    modes=frozenset(Mode),
    suites=ESP_SUITES | AH_SUITES,
    esn=True,
    udp_encapsulation=True,
    raw_esp=True,
    marks=True,
    dont_fragment=frozenset(DontFragment),
    compression=True,
    missing={},
    interfaces=True,
)


Argument: TypeAlias = (
    SadEntry
    | SpdEntry
    | SaId
    | Difference
    | TunnelInterface
    | frozenset[PolicyDirection]
    | int
    | None
)


@dataclass(frozen=True, slots=True)
class Call:
    """One call that changes something: the method's name and its argument."""

    name: str
    argument: Argument = None


class RecordingDatapath:
    """See the module. `calls` has every attempt to change something, refused ones too."""

    name = "recording"
    ruled: frozenset[Action] = frozenset()

    def __init__(self, capabilities: Capabilities = EVERYTHING) -> None:
        self.calls: list[Call] = []
        self.sad: dict[SaId, SadEntry] = {}
        self.spd: dict[Place, SpdEntry] = {}
        self.used: dict[SaId, Usage] = {}
        self.interfaces = RecordedInterfaces(self._record)
        self.default_policy = RecordedDefaultPolicy(self._record)
        self._capabilities = capabilities
        self._refusals: dict[tuple[str, int], str] = {}
        self._counts: Counter[str] = Counter()
        self._events: deque[Event] = deque()
        self._readable, self._writable = socket.socketpair()
        self._readable.setblocking(False)
        self.amiss: list[Difference] = []
        self._changes = Realm.NOTHING
        self._changed = socket.socketpair()

    def refuse(self, kind: str, *, nth: int = 1, reason: str = "refused by the test") -> None:
        """Fail the `nth` call of a kind from the beginning (the first is 1).

        A kind is a method's name, or that with a direction: `add_sa in`, `add_policy fwd`.
        """
        self._refusals[kind, nth] = reason

    def happen(self, event: Event) -> None:
        """Make an event wait, and `fileno()` readable."""
        self._events.append(event)
        self._writable.send(b"\0")

    def change(self, realm: Realm) -> None:
        """Make it known that others may have changed something."""
        if not self._changes:
            self._changed[1].send(b"\0")
        self._changes |= realm

    def probe(self) -> Capabilities:
        return self._capabilities

    def add_sa(self, entry: SadEntry) -> None:
        self._record("add_sa", entry, entry.direction)
        if entry.id in self.sad:
            raise DatapathError(f"cannot add {entry.id}: File exists", errno.EEXIST)
        self.sad[entry.id] = entry

    def add(self, entries: Sequence[SadEntry | SpdEntry]) -> None:
        add_one_by_one(self, entries)

    def update_sa(self, entry: SadEntry) -> None:
        self._record("update_sa", entry, entry.direction)
        self._entry(entry.id, "update")
        self.sad[entry.id] = entry

    def move_sa(self, sa: SaId, entry: SadEntry) -> None:
        self._record("move_sa", entry, entry.direction)
        self._entry(sa, "move")
        if entry.id != sa and entry.id in self.sad:
            raise DatapathError(f"cannot move {sa} to {entry.id}: File exists", errno.EEXIST)
        del self.sad[sa]
        self.sad[entry.id] = entry
        if sa in self.used:
            self.used[entry.id] = self.used.pop(sa)

    def remove_sa(self, sa: SaId) -> None:
        entry = self.sad.get(sa)
        self._record("remove_sa", sa, None if entry is None else entry.direction)
        self.sad.pop(sa, None)
        self.used.pop(sa, None)

    def add_policy(self, entry: SpdEntry) -> None:
        self._record("add_policy", entry, entry.direction)
        self.spd[entry.place] = entry

    def remove_policy(self, entry: SpdEntry) -> None:
        self._record("remove_policy", entry, entry.direction)
        self.spd.pop(entry.place, None)

    def usage(self, sa: SaId) -> Usage:
        self._entry(sa, "read the usage of")
        return self.used.get(sa, Usage(octets=0, packets=0))

    def seconds_idle(self, sas: Sequence[SaId]) -> tuple[float | None, ...]:
        return tuple(self.usage(sa).seconds_idle if sa in self.sad else None for sa in sas)

    def dump(self) -> Dump:
        return Dump(
            sad=tuple(self.sad.values()),
            spd=tuple(self.spd.values()),
            blocked=self.default_policy.blocked,
        )

    def find_amiss(self) -> tuple[Difference, ...]:
        return tuple(self.amiss)

    def mend(self, amiss: Difference) -> None:
        self._record("mend", amiss)
        if amiss in self.amiss:
            self.amiss.remove(amiss)

    def remove_ours(self) -> int:
        self._record("remove_ours")
        count = len(self.sad) + len(self.spd)
        for table in (self.sad, self.spd, self.used):
            table.clear()
        return count

    def fileno(self) -> int:
        return self._readable.fileno()

    def read_events(self) -> tuple[Event, ...]:
        if self._events:
            self._readable.recv(len(self._events))
        events = tuple(self._events)
        self._events.clear()
        return events

    def revive(self) -> None:
        self._record("revive")

    def are_resumable(self, entries: Sequence[SadEntry]) -> tuple[bool, ...]:
        return (False,) * len(entries)

    def changes_fileno(self) -> int:
        return self._changed[0].fileno()

    def read_changes(self) -> Realm:
        changes, self._changes = self._changes, Realm.NOTHING
        if changes:
            self._changed[0].recv(1)
        return changes

    def close(self) -> None:
        for each in (self._readable, self._writable, *self._changed):
            each.close()

    def _entry(self, sa: SaId, what: str) -> SadEntry:
        if sa not in self.sad:
            raise DatapathError(f"cannot {what} {sa}: No such process", errno.ESRCH)
        return self.sad[sa]

    def _record(
        self,
        name: str,
        argument: Argument = None,
        direction: Direction | PolicyDirection | None = None,
    ) -> None:
        self.calls.append(Call(name, argument))
        kinds = [name] if direction is None else [name, f"{name} {direction}"]
        self._counts.update(kinds)
        for kind in kinds:
            reason = self._refusals.get((kind, self._counts[kind]))
            if reason is not None:
                raise DatapathError(f"cannot {name.replace('_', ' ')}: {reason}", errno.EIO)


class RecordedInterfaces:
    """`there` are those that there would be, by their numbers."""

    def __init__(self, record: Callable[[str, Argument], None]) -> None:
        self.there: dict[int, TunnelInterface] = {}
        self._record = record

    def set(self, wanted: TunnelInterface) -> None:
        self._record("set_interface", wanted)
        self.there[wanted.if_id] = wanted

    def remove(self, if_id: int) -> None:
        self._record("remove_interface", if_id)
        self.there.pop(if_id, None)

    def keep_only(self, if_ids: Collection[int]) -> None:
        self.there = {n: i for n, i in self.there.items() if n in if_ids}

    def state(self, if_id: int) -> InterfaceState | None:
        found = self.there.get(if_id)
        if found is None:
            return None
        mtu = found.mtu or 1400
        return InterfaceState(name=found.name, if_id=if_id, is_up=True, mtu=mtu, is_adopted=False)


class RecordedDefaultPolicy:
    """`blocked` are the directions in which it would block."""

    def __init__(self, record: Callable[[str, Argument], None]) -> None:
        self.blocked: frozenset[PolicyDirection] = frozenset()
        self._record = record

    def refusal(self) -> str:
        return ""

    def set(self, blocked: frozenset[PolicyDirection]) -> None:
        self._record("set_default", blocked)
        self.blocked = blocked
