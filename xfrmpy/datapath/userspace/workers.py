"""The workers of one runtime directory together, as their daemon sees them: as if they were one.

An inbound SA is in the worker that its SPI names (`shares`), an outbound one where the inbound SAs
of its reqid are, or in the one that it is a `resource` of; policies, and queues of every device,
are in all of them. Each is told by which worker the packets of a reqid leave, so that it hands over
what it should not have got (`neighbours`); one that has an outbound SA as a resource lets them
leave by that. If one ends, what it had is put into another process from what the others have;
meanwhile the daemon has its sockets and its queue of the device open, too: else the kernel would
move the last ones into their places, and packets would come to the wrong worker. With one worker
nothing of this is needed, and nothing is done.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from stat import S_ISSOCK
from typing import Any, TypeVar

from xfrmpy.datapath.interface import DatapathError, Event
from xfrmpy.datapath.userspace import requests
from xfrmpy.datapath.userspace.process import WorkerProcess
from xfrmpy.datapath.userspace.shares import FIRST, Share
from xfrmpy.ipsec.drift import Dump
from xfrmpy.ipsec.plain import Plain, from_plain, to_plain
from xfrmpy.ipsec.sad import Direction, SadEntry, SaId, lane_of
from xfrmpy.ipsec.spd import SpdEntry

Entry = SadEntry | SpdEntry
T = TypeVar("T")


class Workers:
    """See the module. Asking may raise `DatapathError`.

    `replaced` tells why earlier workers were ended, if any were.
    """

    def __init__(self, processes: Sequence[WorkerProcess]) -> None:
        self._processes = processes
        self._natt_port = 0
        self._lanes: dict[SaId, int] = {}
        self._lane_of_reqid: dict[int, int] = {}
        self._leads: dict[int, list[int]] = {}  # by reqid, of each worker
        self._outbound: dict[int, dict[SaId, int]] = {}  # by reqid, the oldest first
        self._resources: set[SaId] = set()
        self._reqids: dict[SaId, int] = {}  # of those
        self._lent: list[list[int]] = [[] for _ in processes]
        self._events: dict[int, socket.socket] = {}
        self._readable = select.epoll()
        self._ended: set[int] = set()

    @classmethod
    def attach(cls, runtime_dir: Path, count: int) -> Workers:
        """So many of a runtime directory, made if need be; more than these are ended."""
        end_surplus(runtime_dir, count)
        with contextlib.ExitStack() as undo:
            processes = []
            for index in range(count):
                process = WorkerProcess.attach(runtime_dir, Share(index, count))
                undo.callback(process.stop if process.is_new else process.close)
                processes.append(process)
            undo.pop_all()
        return cls(processes)

    @property
    def _are_many(self) -> bool:
        return len(self._processes) > 1

    def ask(self, what: str, value: Plain = None) -> Plain:
        """The result of a request to the first."""
        return self._processes[FIRST].ask(what, value)

    def ask_at(self, index: int, what: str, value: Plain = None) -> Plain:
        return self._processes[index].ask(what, value)

    def ask_each(self, what: str, value: Plain = None) -> list[Plain]:
        """The results of a request to each, in their order."""
        return [process.ask(what, value) for process in self._processes]

    # Beginning and end.

    def carry(self, natt_port: int, *, are_in_place: bool) -> None:
        """Begin to carry packets, or go on.

        The daemon's sockets on the shared port must be open; they `are_in_place` if they are those
        of an earlier daemon, so that the others may be behind them.
        """
        self._natt_port = natt_port
        self.ask_each("carry", natt_port)
        if self._are_many:
            self._lent = [process.lend() for process in self._processes]
            if not (are_in_place and all(map(self._is_in_place, self._lent))):
                self._line_up()
            for index in range(1, len(self._processes)):
                self._align(index, FIRST)
            self._learn_leads(self.dump())

    def _learn_leads(self, dump: Dump) -> None:
        """Of the SAs in force since an earlier daemon."""
        for entry in dump.sad:
            lane = self._lanes[entry.id]
            if entry.direction is Direction.IN:
                self._lane_of_reqid[entry.reqid] = lane
        self._lead(dump.sad)

    def _is_in_place(self, lent: Sequence[int]) -> bool:
        """Whether a worker has a socket on the shared port."""
        return any(S_ISSOCK(os.fstat(each).st_mode) for each in lent)

    def _line_up(self) -> None:
        """Have the sockets on the shared port in the order of the workers."""
        self._close_lent()
        self.ask_each("leave_port")
        for index, process in enumerate(self._processes):
            process.join()
            self._lent[index] = process.lend()

    def _close_lent(self) -> None:
        for each in (descriptor for lent in self._lent for descriptor in lent):
            os.close(each)
        self._lent = [[] for _ in self._processes]

    def _align(self, index: int, model: int) -> None:
        """Give a worker the policies and the devices that another has, and no more of them."""
        process, pattern = self._processes[index], self._processes[model]
        wanted, found = (set(dump_of(each).spd) for each in (pattern, process))
        for policy in found - wanted:
            process.ask("remove_policy", to_plain(policy))
        for piece in _pieces([*(wanted - found)], requests.ENTRIES_PER_PACKET):
            told = process.ask("add", _plain_of(piece))
            assert isinstance(told, dict)
            if told["done"] < len(piece):
                raise DatapathError(told["error"], told["errno"])
        self._align_devices(process, pattern)

    def _align_devices(self, process: WorkerProcess, pattern: WorkerProcess) -> None:
        wanted, found = (_interfaces_of(each) for each in (pattern, process))
        for if_id in found.keys() - wanted.keys():
            process.ask("close_interface", if_id)
        for if_id in wanted.keys() - found.keys():
            try:
                process.ask("join_interface", [if_id, wanted[if_id]])
            except DatapathError:  # In another namespace, where it cannot be joined: made anew.
                self.ask_each("close_interface", if_id)

    def revive(self) -> None:
        """Have other processes in the places of those that have ended."""
        gone = {i for i, process in enumerate(self._processes) if process.has_ended()}
        ended, self._ended = sorted(gone | self._ended), set()
        left = [index for index in range(len(self._processes)) if index not in ended]
        for index in ended:
            self._mute(index)
            process = self._processes[index]
            process.begin_anew()
            if self._lent[index]:
                process.join(self._lent[index])
            process.ask("carry", self._natt_port)
            if self._are_many and left:
                self._align(index, left[0])
            self._listen_to(index)
        if self._are_many:
            self._tell_leads(tuple(self._leads))

    def give_up(self) -> None:
        """End those that are new; the others go on as before."""
        for process in self._processes:
            if process.is_new:
                process.stop()
        self.close()

    def stop(self) -> None:
        """End them, and with them all that they hold."""
        for process in self._processes:
            process.stop()
        self.close()

    def close(self) -> None:
        """They go on."""
        for index in tuple(self._events):
            self._mute(index)
        self._readable.close()
        self._close_lent()
        for process in self._processes:
            process.close()

    # Events.

    def listen(self) -> None:
        """Begin to hear of what happens."""
        for index in range(len(self._processes)):
            self._listen_to(index)

    def _listen_to(self, index: int) -> None:
        self._events[index] = listener = self._processes[index].listen()
        self._readable.register(listener, select.EPOLLIN)

    def _mute(self, index: int) -> None:
        listener = self._events.pop(index, None)
        if listener is not None:
            self._readable.unregister(listener)
            listener.close()

    def fileno(self) -> int:
        return self._readable.fileno()

    def read_events(self) -> tuple[Event, ...]:
        """What has happened. Raises `DatapathError` if one has ended, and nothing else happened."""
        events: list[Event] = []
        ended = [i for i, listener in self._events.items() if not _read(listener, events)]
        if not ended or (events and self._are_many):
            return tuple(events)
        for index in ended:
            self._mute(index)
        self._ended.update(ended)
        words = [words for index in ended if (words := self._processes[index].last_words())]
        said = f"; its last words: {'; '.join(words)}" if words else ""
        raise DatapathError(f"the userspace worker has ended{said}")

    # SAs and policies.

    def add(self, entries: Sequence[Entry]) -> tuple[int, DatapathError | None]:
        """As many as fit into one request: how many are in force, and why no more are."""
        if not self._are_many:
            told = self.ask("add", _plain_of(entries))
            assert isinstance(told, dict)
            return told["done"], _error_in(told)
        return self._spread(entries)

    def _spread(self, entries: Sequence[Entry]) -> tuple[int, DatapathError | None]:
        """SAs first: a packet that meets its policy then asks for no other."""
        sas = {at: entry for at, entry in enumerate(entries) if isinstance(entry, SadEntry)}
        policies = [at for at in range(len(entries)) if at not in sas]
        self._lane_of_reqid |= {
            sa.reqid: self._lane(sa) for sa in sas.values() if sa.direction is Direction.IN
        }
        lanes = {at: self._lane(sa) for at, sa in sas.items()}
        added: set[int] = set()
        refused: dict[int, DatapathError] = {}
        for index in range(len(self._processes)):
            mine = [at for at, lane in lanes.items() if lane == index]
            self._add_to(index, entries, mine, added, refused)
        self._lanes |= {sa.id: lanes[at] for at, sa in sas.items() if at in added}
        self._lead([sas[at] for at in lanes if at in added])
        for index in range(len(self._processes)):
            self._add_to(index, entries, policies, added, refused)
        if not refused:
            return len(entries), None
        first = min(refused)
        for at in sorted(added):
            if at >= first:
                self._take_out(entries[at])
        return first, refused[first]

    def _add_to(
        self,
        index: int,
        entries: Sequence[Entry],
        places: Sequence[int],
        added: set[int],
        refused: dict[int, DatapathError],
    ) -> None:
        """Add some of the entries to one worker, and note what became of them."""
        if not places:
            return
        plain = _plain_of([entries[at] for at in places])
        try:
            told = self._processes[index].ask("add", plain)
        except DatapathError as error:
            refused.setdefault(places[0], error)
            return
        assert isinstance(told, dict)
        added.update(places[: told["done"]])
        reason = _error_in(told)
        if reason is not None:
            refused.setdefault(places[told["done"]], reason)

    def _take_out(self, entry: Entry) -> None:
        with contextlib.suppress(DatapathError):
            if isinstance(entry, SadEntry):
                self.remove_sa(entry.id)
            else:
                self.remove_policy(entry)

    def _lane(self, entry: SadEntry) -> int:
        if entry.direction is Direction.IN:
            return lane_of(entry.spi, len(self._processes))
        if entry.resource is not None:
            return lane_of(entry.resource, len(self._processes))
        return self._lanes.get(entry.id, self._lane_of_reqid.get(entry.reqid, FIRST))

    def _lead(self, sas: Iterable[SadEntry]) -> None:
        """Packets leave by the newest SA of their reqid, but for those that are `_resources`."""
        reqids = []
        for sa in sas:
            if sa.direction is Direction.OUT:
                self._outbound.setdefault(sa.reqid, {})[sa.id] = self._lanes[sa.id]
                self._reqids[sa.id] = sa.reqid
                reqids.append(sa.reqid)
                if sa.resource is not None:
                    self._resources.add(sa.id)
        self._learn(dict.fromkeys(reqids))

    def _lead_back(self, gone: SaId) -> None:
        """By an older one, if that is in another worker."""
        self._resources.discard(gone)
        reqid = self._reqids.pop(gone, None)
        if reqid is None:
            return
        del self._outbound[reqid][gone]
        if self._outbound[reqid]:
            self._learn((reqid,))
        else:
            del self._outbound[reqid]

    def _learn(self, reqids: Iterable[int]) -> None:
        """Tell by which worker their packets leave now, where that is another."""
        leads = {reqid: self._leads_of(reqid) for reqid in reqids}
        changed = [reqid for reqid, lanes in leads.items() if self._leads.get(reqid) != lanes]
        self._leads |= leads
        self._tell_leads(changed)

    def lanes_of(self, reqid: int) -> frozenset[int]:
        """By which workers its packets leave, as far as it has SAs."""
        return frozenset(self._leads.get(reqid, ()) if self._are_many else (FIRST,))

    def _leads_of(self, reqid: int) -> list[int]:
        """The way out from each worker."""
        outbound = self._outbound[reqid]
        leads = [next(reversed(outbound.values()))] * len(self._processes)
        for lane in (lane for sa, lane in outbound.items() if sa in self._resources):
            leads[lane] = lane
        return leads

    def _tell_leads(self, reqids: Sequence[int]) -> None:
        for piece in _pieces(reqids, requests.IDS_PER_PACKET):
            for index, process in enumerate(self._processes):
                process.ask("lead", [[reqid, self._leads[reqid][index]] for reqid in piece])

    def update_sa(self, entry: SadEntry) -> None:
        self._holder(entry.id).ask("update_sa", to_plain(entry))

    def move_sa(self, sa: SaId, entry: SadEntry) -> None:
        self._holder(sa).ask("move_sa", [to_plain(sa), to_plain(entry)])
        if sa in self._lanes:
            self._lanes[entry.id] = self._lanes.pop(sa)
        if sa in self._resources:
            self._resources ^= {sa, entry.id}
        if sa in self._reqids:
            self._reqids[entry.id] = reqid = self._reqids.pop(sa)
            self._outbound[reqid][entry.id] = self._outbound[reqid].pop(sa)

    def remove_sa(self, sa: SaId) -> None:
        self._holder(sa).ask("remove_sa", to_plain(sa))
        self._lanes.pop(sa, None)
        self._lead_back(sa)

    def _holder(self, sa: SaId) -> WorkerProcess:
        return self._processes[self._lanes.get(sa, FIRST)]

    def remove_policy(self, entry: SpdEntry) -> None:
        self.ask_each("remove_policy", to_plain(entry))

    def set_room(self, reqid: int, mtu: int) -> None:
        self.ask_each("set_room", [reqid, mtu])

    def remove_all(self) -> int:
        """How many entries there were."""
        held = self.dump() if self._are_many else None
        (first, *_) = self.ask_each("remove_all")
        assert isinstance(first, int)
        tables = (self._lanes, self._lane_of_reqid, self._leads, self._outbound, self._reqids)
        for table in tables:
            table.clear()
        self._resources.clear()
        return first if held is None else len(held.sad) + len(held.spd)

    def dump(self) -> Dump:
        dumps = [dump_of(process) for process in self._processes]
        if self._are_many:
            for lane, dump in enumerate(dumps):
                self._lanes |= {entry.id: lane for entry in dump.sad}
        return Dump(sad=tuple(entry for dump in dumps for entry in dump.sad), spd=dumps[FIRST].spd)

    def usage(self, sa: SaId) -> Plain:
        return self._holder(sa).ask("usage", to_plain(sa))

    def ask_of(
        self, what: str, sas: Sequence[SaId], at_once: int, name: Callable[[SaId], Plain]
    ) -> list[Any]:
        """What is said of each of many SAs, by whoever has it."""
        answers: list[Any] = [None] * len(sas)
        for index, process in enumerate(self._processes):
            mine: Sequence[int] = range(len(sas))
            if self._are_many:
                mine = [at for at in mine if self._lanes.get(sas[at], FIRST) == index]
            for piece in _pieces(mine, at_once):
                told = process.ask(what, [name(sas[at]) for at in piece])
                assert isinstance(told, list)
                for at, answer in zip(piece, told, strict=True):
                    answers[at] = answer
        return answers

    def are_resumable(self, entries: Sequence[SadEntry]) -> list[bool]:
        """Of each whether it could go on; it is added then to the worker that knows it."""
        answers = [False] * len(entries)
        for index, process in enumerate(self._processes):
            told: list[bool] = []
            for piece in _pieces(entries, requests.ENTRIES_PER_PACKET):
                plain = process.ask("resumable", to_plain(tuple(piece)))
                told += from_plain(tuple[bool, ...], plain)
            for at, (entry, is_resumable) in enumerate(zip(entries, told, strict=True)):
                is_apt = entry.direction is Direction.OUT or self._lane(entry) == index
                if is_resumable and is_apt:
                    answers[at] = True
                    if self._are_many:
                        self._lanes[entry.id] = index
        return answers

    def drops(self) -> dict[str, int]:
        """How many packets were dropped, by the reason."""
        counts: dict[str, int] = {}
        for each in self.ask_each("drops"):
            assert isinstance(each, dict)
            for reason, count in each.items():
                counts[reason] = counts.get(reason, 0) + count
        return counts


def end_surplus(runtime_dir: Path, count: int) -> None:
    """End the workers that were more than so many; what they had is not in force any more."""
    for path in runtime_dir.glob(requests.socket_name("*")):
        index = path.stem.rpartition("-")[2]
        if index.isdecimal() and int(index) >= count:
            found = WorkerProcess.find(runtime_dir, Share(int(index), int(index) + 1))
            if found is not None:
                found.stop()


def _read(listener: socket.socket, events: list[Event]) -> bool:
    """Take the events that are waiting; whether whoever tells them is still there."""
    try:
        while packet := listener.recv(requests.MAX_PACKET):
            events.append(requests.decode_event(packet))
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _plain_of(entries: Iterable[Entry]) -> list[Plain]:
    return [[type(entry).__name__, to_plain(entry)] for entry in entries]


def _error_in(told: dict[str, Any]) -> DatapathError | None:
    return DatapathError(told["error"], told["errno"]) if "error" in told else None


def dump_of(process: WorkerProcess) -> Dump:
    """What one worker has in force."""
    tables: dict[str, list[Plain]] = {"sad": [], "spd": []}
    for piece in process.ask_all("dump"):
        tables[piece["table"]] += piece["entries"]
    return Dump(
        sad=tuple(from_plain(SadEntry, plain) for plain in tables["sad"]),
        spd=tuple(from_plain(SpdEntry, plain) for plain in tables["spd"]),
    )


def _interfaces_of(process: WorkerProcess) -> dict[int, str]:
    told = process.ask("interfaces")
    assert isinstance(told, list)
    return {if_id: name for if_id, name, _ in told}


def _pieces(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
