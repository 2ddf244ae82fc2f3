"""The events that wait to be read, those that were lost among them.

The kernel throws events away when nobody reads them in time, and says so; what became of the SAs in
the meantime the SAD tells. What an event looks like is in `events.py`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from xfrmpy.datapath.interface import DatapathError, Event, Expired
from xfrmpy.datapath.kernel import events
from xfrmpy.datapath.kernel.messages import Group, MessageType
from xfrmpy.datapath.kernel.sad_in_force import SadInForce
from xfrmpy.datapath.netlink.messages import Message
from xfrmpy.datapath.netlink.socket import NetlinkSocket

EVENT_GROUPS = (Group.ACQUIRE, Group.EXPIRE, Group.MAPPING)

_DECODERS: dict[int, Callable[[Message], Event | None]] = {
    MessageType.ACQUIRE: events.decode_acquire,
    MessageType.EXPIRE: events.decode_expire,
    MessageType.MAPPING: events.decode_mapping,
}


class EventQueue:
    """See the module. `heard` is in `EVENT_GROUPS`, and the caller's, who closes it."""

    def __init__(self, heard: NetlinkSocket, sad: SadInForce) -> None:
        self._heard = heard
        self._sad = sad
        self._untold: list[Event] = []  # what happened before this process

    def fileno(self) -> int:
        return self._heard.fileno()

    def recall(self) -> None:
        """Have what happened before this process wait, too. Raises `DatapathError`."""
        self._untold = [*self._sad.lost_events()]

    def read(self) -> tuple[Event, ...]:
        """Raises `DatapathError`."""
        waiting = [*self._untold, *self._sad.take_refusals()]
        self._untold.clear()
        while not self._drain(waiting):
            waiting += self._sad.lost_events()
        for event in waiting:
            if isinstance(event, Expired) and event.hard:
                self._sad.end(event.sa)
        return tuple(waiting)

    def forget_all(self) -> None:
        self._untold.clear()

    def _drain(self, waiting: list[Event]) -> bool:
        """Read what waits; whether nothing was lost before it."""
        try:
            for message in self._heard.notifications():
                decode = _DECODERS.get(message.type)
                event = decode(message) if decode is not None else None
                if event is not None:
                    waiting.append(event)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise DatapathError(f"cannot read the events: {error}", error.errno) from error
            return False
        return True
