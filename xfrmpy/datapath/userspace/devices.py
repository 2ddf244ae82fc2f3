"""The TUN devices of a worker: that of all tunnels, those of tunnels with an interface, and queues.

A queue is a device behind that of all tunnels, for what is of one reqid (`queues`).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.userspace.shares import FIRST, Share
from xfrmpy.datapath.userspace.tun import (
    DEVICE,
    ONE_QUEUE,
    SHARED_QUEUES,
    Tun,
    bring_up,
    queue_name,
)
from xfrmpy.datapath.userspace.turns import Readable
from xfrmpy.ipsec.plain import Plain, from_plain


class TunDevices:
    """See the module. `reader_of` gives what is called whenever a device is readable, by the device
    and its number, 0 for one that has none. Methods raise `DatapathError`.
    """

    def __init__(
        self,
        share: Share,
        readable: Readable,
        reader_of: Callable[[Tun, int], Callable[[], None]],
    ) -> None:
        self.shared: Tun | None = None
        self._share = share
        self._readable = readable
        self._reader_of = reader_of
        self._tunnels: dict[int, Tun] = {}
        self._queues: dict[int, Tun] = {}
        self._tun_queues = SHARED_QUEUES if share.count > 1 else ONE_QUEUE

    def of(self, if_id: int) -> Tun | None:
        return self._tunnels.get(if_id) if if_id else self.shared

    def open_shared(self) -> None:
        """That of all tunnels."""
        self.shared = Tun.of_all_tunnels(queues=self._tun_queues)
        self._listen_to(self.shared, 0)

    def join_shared(self, lent: int) -> None:
        """Go on with a descriptor of it that another worker has lent."""
        self.shared = Tun(DEVICE, lent=lent)
        self._listen_to(self.shared, 0)

    def lose(self, tun: Tun) -> None:
        """Somebody has removed it. That of all tunnels is made anew; what another device has
        besides its name, only the daemon knows."""
        if tun is self.shared:
            self._close_shared()
            self.open_shared()
        for tuns in (self._tunnels, self._queues):
            for number in [number for number, each in tuns.items() if each is tun]:
                self._close_one(tuns, number)

    def close(self) -> None:
        for tuns in (self._tunnels, self._queues):
            for number in tuple(tuns):
                self._close_one(tuns, number)
        self._close_shared()

    def _close_shared(self) -> None:
        if self.shared is not None:
            self._readable.unregister(self.shared)
            self.shared.close()
            self.shared = None

    def _close_one(self, tuns: dict[int, Tun], number: int) -> None:
        tun = tuns.pop(number, None)
        if tun is not None:
            self._readable.unregister(tun)
            tun.close()

    def _listen_to(self, tun: Tun, if_id: int) -> None:
        self._readable.register(tun, self._reader_of(tun, if_id))

    # Requests, by their names.

    def open_interface(self, plain: Plain) -> None:
        """A tunnel's own device, unless it is there; `plain` has its number and what to call it."""
        if_id, name = from_plain(int, plain[0]), from_plain(str, plain[1])  # type: ignore[index]
        if if_id not in self._tunnels:
            try:
                self._tunnels[if_id] = Tun(name, queues=self._tun_queues)
            except DatapathError as error:
                # One of which the first worker has the only queue: it does the writing.
                if self._share.index == FIRST or error.errno != errno.EBUSY:
                    raise
                return
            self._listen_to(self._tunnels[if_id], if_id)

    def join_interface(self, plain: Plain) -> None:
        """As `open_interface`, one that another worker has; it must be in our own namespace."""
        name = from_plain(str, plain[1])  # type: ignore[index]
        try:
            socket.if_nametoindex(name)
        except OSError as error:
            raise DatapathError(f"the device {name} is not here", errno.ENODEV) from error
        self.open_interface(plain)

    def close_interface(self, plain: Plain) -> None:
        """Remove it, if it is one that was made here."""
        self._close_one(self._tunnels, from_plain(int, plain))

    def interfaces(self, _: Plain) -> Plain:
        """Number and name of each tunnel's own device, and whether somebody else has made it."""
        return [[if_id, tun.name, tun.is_adopted] for if_id, tun in self._tunnels.items()]

    def open_queue(self, plain: Plain) -> None:
        """That of the reqid `plain`, up."""
        reqid = from_plain(int, plain)
        name, there = queue_name(reqid), self._queues.get(reqid)
        if there is not None and there.name == name:
            bring_up(name)
            return
        self._close_one(self._queues, reqid)
        self._queues[reqid] = made = Tun.brought_up(name, queues=self._tun_queues)
        self._listen_to(made, 0)

    def close_queue(self, plain: Plain) -> None:
        self._close_one(self._queues, from_plain(int, plain))

    def queues(self, _: Plain) -> Plain:
        """The reqids that have one here."""
        return [*self._queues]
