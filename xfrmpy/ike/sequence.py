"""In which order the outputs of one step leave: what is added, then the record, then the rest.

A daemon may be killed between any two of them, and then goes on from the last record. So what the
record says is in force always is: additions come before it. And nobody has seen anything of what it
does not say: datagrams come behind it, and removals too, for what an older record has in force must
still be there. What was added and is in no record is found by a comparison (`restoration`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import takewhile

from xfrmpy.ike.core import Core
from xfrmpy.ike.ike_sa import IkeSa
from xfrmpy.ike.kept_policy import PolicyRecords, is_policy
from xfrmpy.ike.outputs import (
    AddPolicy,
    AddSa,
    AskUsage,
    MoveSa,
    Output,
    Persist,
    RemovePolicy,
    RemoveSa,
    SendDatagram,
)
from xfrmpy.ike.snapshot import count_of, is_lasting, spi_of, write_count, write_ike_sa
from xfrmpy.policy.model import TunnelPolicy

_FIRST = (AddSa, MoveSa, AddPolicy, AskUsage)
_LAST = (SendDatagram, RemoveSa, RemovePolicy)


class Sequence:
    """See the module. `keeps` says whether there is anybody to keep records."""

    def __init__(self, core: Core, *, keeps: bool) -> None:
        self._core = core
        self._keeps = keeps
        self._held: deque[Output] = deque()
        self._kept: dict[bytes, int] = {}
        self._policies = PolicyRecords(core)

    def pass_on(self, output: Output) -> Output | None:
        """An output that can be done now: this one, or another that must come before it."""
        if isinstance(output, _LAST) or (self._held and not isinstance(output, _FIRST)):
            self._held.append(output)
            return None
        in_the_way = self._in_the_way_of(output)
        if in_the_way is None:
            return output
        self._held.remove(in_the_way)
        self._core.put_back(output)
        return in_the_way

    def next_additions(self, owner: int) -> list[AddSa | AddPolicy]:
        """What can be added right behind an addition for the same Child SA."""
        additions = self._core.next_additions(owner)
        free = list(takewhile(lambda each: self._in_the_way_of(each) is None, additions))
        for each in reversed(additions[len(free) :]):
            self._core.put_back(each)
        return free

    def _in_the_way_of(self, output: Output) -> Output | None:
        return next((held for held in self._held if _is_in_place(held, output)), None)

    def next_held(self) -> Output | None:
        """What comes when nothing more is to be added: the record, and then the rest."""
        records = tuple(self._changes()) if self._keeps and self._has_changed else ()
        self._core.changed.clear()
        self._core.counted.clear()
        self._core.changed_children.clear()
        if records:
            return Persist(records=records)
        return self._held.popleft() if self._held else None

    @property
    def _has_changed(self) -> bool:
        """Whether a record may be needed: each of many that are held asks for it."""
        core = self._core
        of_sas = core.changed or core.counted or core.changed_children
        return bool(of_sas) or self._policies.have_changed

    def resume(self, records: Mapping[bytes, bytes], in_force: Mapping[str, TunnelPolicy]) -> None:
        """An earlier daemon has kept these, of policies that were in force then.

        What came of none of them is to be forgotten.
        """
        self._kept = {n: hash(record) for n, record in records.items() if not is_policy(n)}
        self._core.changed |= set(map(spi_of, self._kept)) - self._core.ike_sas.keys()
        self._policies.resume(filter(is_policy, records), in_force)
        for spi in self._kept.keys() & self._core.ike_sas.keys():
            self._policies.follow(spi, self._core.ike_sas[spi].channel.tunnel)

    def _changes(self) -> list[tuple[bytes, bytes | None]]:
        core = self._core
        whole = core.changed | self._owners()
        found: list[tuple[bytes, bytes | None]] = []
        for spi in whole | core.counted:
            sa = core.ike_sas.get(spi)
            if sa is not None and spi not in whole and spi in self._kept:
                found += self._change(count_of(spi), write_count(sa))
            else:
                record = self._whole(sa)
                self._policies.follow(spi, None if sa is None or record is None else sa.tunnel_name)
                # What has been counted only grows, so this is never the record from before it.
                found += self._change(spi, record)
                found += self._change(count_of(spi), None)
        found += self._policies.changes()
        return found

    @staticmethod
    def _whole(sa: IkeSa | None) -> bytes | None:
        """The record of an IKE SA, if it is to have one."""
        if sa is None or not is_lasting(sa):
            return None
        sa.channel.window.note_kept()
        return write_ike_sa(sa)

    def _change(self, name: bytes, record: bytes | None) -> Iterator[tuple[bytes, bytes | None]]:
        """What must be kept under a name, or nothing, if that is not so already."""
        if record is None:
            if self._kept.pop(name, None) is not None:
                yield name, None
        elif self._kept.get(name) != hash(record):
            self._kept[name] = hash(record)
            yield name, record

    def _owners(self) -> set[bytes]:
        """The IKE SAs of the Child SAs that have changed."""
        changed = self._core.changed_children
        if not changed:
            return set()
        tunnels = {child.tunnel.name for child in changed}
        return {
            sa.our_spi
            for tunnel in tunnels
            for sa in self._core.ike_sas_of(tunnel)
            if not changed.isdisjoint(sa.children)
            or not changed.isdisjoint(child for _, child in sa.retired)
        }


def _is_in_place(held: Output, added: Output) -> bool:
    """Whether a removal is of the very thing that is added now."""
    match held, added:
        case RemoveSa(), AddSa() | MoveSa():
            return held.sa == added.entry.id
        case RemovePolicy(), AddPolicy():
            return held.entry.place == added.entry.place
        case _:
            return False
