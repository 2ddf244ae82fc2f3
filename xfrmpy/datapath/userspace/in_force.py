"""What is in force in a worker, as the daemon puts it there, changes it and asks for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.userspace import requests
from xfrmpy.datapath.userspace.forwarding import Forwarder
from xfrmpy.datapath.userspace.shares import Share
from xfrmpy.ipsec.plain import Plain, from_plain, to_plain
from xfrmpy.ipsec.sad import SadEntry, SaId
from xfrmpy.ipsec.spd import SpdEntry

_ENTRIES: dict[str, type[SadEntry] | type[SpdEntry]] = {
    kind.__name__: kind for kind in (SadEntry, SpdEntry)
}


class InForce:
    """The requests for it, by their names.

    `check` raises `DatapathError` for an SA whose packets the worker has no way for; `follow` is
    called when packets that waited may go.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        share: Share,
        check: Callable[[SadEntry], None],
        follow: Callable[[], None],
    ) -> None:
        self._forwarder = forwarder
        self._share = share
        self._check = check
        self._follow = follow

    def lead(self, plain: Plain) -> None:
        """Of each reqid in `plain` the worker that has its outbound SA."""
        for reqid, worker in from_plain(tuple[tuple[int, int], ...], plain):
            self._forwarder.lead(reqid, None if worker == self._share.index else worker)
        self._follow()

    def add(self, plain: Plain) -> Plain:
        """Entries, each with its kind, in their order: how many are in force, and why no more."""
        if not isinstance(plain, list):
            raise ValueError("entries are a list")
        entries = [from_plain(_ENTRIES[kind], entry) for kind, entry in plain]
        for done, entry in enumerate(entries):
            try:
                self._add(entry)
            except Exception as error:
                reason = str(error) if isinstance(error, DatapathError) else repr(error)
                return {"done": done, "error": reason, "errno": getattr(error, "errno", None)}
        self._follow()
        return {"done": len(entries)}

    def _add(self, entry: SadEntry | SpdEntry) -> None:
        if isinstance(entry, SadEntry):
            self._check(entry)
            self._forwarder.add_sa(entry, time.monotonic())
        else:
            self._forwarder.add_policy(entry)

    def update_sa(self, plain: Plain) -> None:
        entry = from_plain(SadEntry, plain)
        self._check(entry)
        self._forwarder.sad.update(entry)

    def move_sa(self, plain: Plain) -> None:
        """`plain` has the id of old, and the entry."""
        if not isinstance(plain, list) or len(plain) != 2:
            raise ValueError("a move has two parts")
        entry = from_plain(SadEntry, plain[1])
        self._check(entry)
        self._forwarder.sad.move(from_plain(SaId, plain[0]), entry)

    def set_room(self, plain: Plain) -> None:
        """`plain` has a reqid and the size of an inner packet."""
        reqid, octets = from_plain(tuple[int, ...], plain)
        self._forwarder.set_room(reqid, octets)

    def remove_sa(self, plain: Plain) -> None:
        self._forwarder.sad.remove(from_plain(SaId, plain))

    def remove_policy(self, plain: Plain) -> None:
        self._forwarder.remove_policy(from_plain(SpdEntry, plain))

    def usage(self, plain: Plain) -> Plain:
        return to_plain(self._forwarder.sad.usage(from_plain(SaId, plain), time.monotonic()))

    def seconds_idle(self, plain: Plain) -> Plain:
        names, now = from_plain(tuple[str, ...], plain), time.monotonic()
        return [self._forwarder.sad.seconds_idle(requests.named(name), now) for name in names]

    def resumable(self, plain: Plain) -> Plain:
        """Of each SA whether it could go on where it was, if it were added again."""
        entries = from_plain(tuple[SadEntry, ...], plain)
        return [self._forwarder.sad.is_resumable(entry) for entry in entries]

    def survey(self, plain: Plain) -> Plain:
        """Of each SA how long it is in force, and what it has carried; null of one that is not."""
        sas, now = from_plain(tuple[SaId, ...], plain), time.monotonic()
        ages = [(sa, self._forwarder.sad.seconds_old(sa, now)) for sa in sas]
        return [
            None if age is None else [age, to_plain(self._forwarder.sad.usage(sa, now))]
            for sa, age in ages
        ]

    def drops(self, _: Plain) -> Plain:
        return dict(self._forwarder.refused)

    def remove_all(self, _: Plain) -> Plain:
        return self._forwarder.remove_all()

    def dump(self) -> list[dict[str, Any]]:
        """Every entry, in as many packets as it takes."""
        dump = self._forwarder.dump()
        replies: list[dict[str, Any]] = []
        for table, entries in (("sad", dump.sad), ("spd", dump.spd)):
            replies += [
                {"result": {"table": table, "entries": piece}, "more": True}
                for piece in requests.in_pieces(entries)
            ]
        replies[-1]["more"] = False
        return replies
