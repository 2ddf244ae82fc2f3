"""Hears of what others change in the kernel, and not of what this process does itself.

The kernel tells each change with the port of the socket that asked for it, a change of its own with
none, and lets nothing through that bears a port of ours: what we do costs no look. One descriptor
stands for all the sockets that it takes. What a message is about, the datapath says that watches;
of links, addresses, routes and rules it is said here.
"""

from __future__ import annotations

import errno
import select
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

from xfrmpy.datapath.interface import DatapathError, Realm
from xfrmpy.datapath.netlink.messages import Family, Message
from xfrmpy.datapath.netlink.route import RTNETLINK, Group, MessageType
from xfrmpy.datapath.netlink.socket import NetlinkSocket


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The groups of a family, and what a message of theirs may have changed.

    None stands for messages that were lost.
    """

    family: Family
    groups: Sequence[int]
    concerns: Callable[[Message | None], Realm]


class Watch:
    """See the module. `our_ports` are those of the sockets that change things for us."""

    def __init__(self, sources: Sequence[Source], our_ports: Sequence[int]) -> None:
        with ExitStack() as stack:
            self._poll = stack.enter_context(closing(select.epoll()))
            self._sockets = [
                (stack.enter_context(closing(NetlinkSocket(s.family, s.groups))), s)
                for s in sources
            ]
            for heard, _ in self._sockets:
                heard.ignore(our_ports)
                self._poll.register(heard.fileno(), select.EPOLLIN)
            self._opened = stack.pop_all()

    def fileno(self) -> int:
        return self._poll.fileno()

    def join(self, heard: NetlinkSocket, source: Source, our_ports: Sequence[int]) -> None:
        """Hear by one more socket, which is of another network namespace and stays the caller's."""
        heard.ignore(our_ports)
        self._poll.register(heard.fileno(), select.EPOLLIN)
        self._sockets.append((heard, source))

    def heed(self, descriptor: int) -> None:
        """Be readable when this one is, which its owner reads."""
        self._poll.register(descriptor, select.EPOLLIN)

    def leave(self, heard: NetlinkSocket) -> None:
        """The inverse of `join`."""
        self._poll.unregister(heard.fileno())
        self._sockets = [(each, source) for each, source in self._sockets if each is not heard]

    def read(self) -> Realm:
        """What others may have changed since the last time. Raises `DatapathError`."""
        changed = Realm.NOTHING
        for heard, source in self._sockets:
            for message in _messages(heard):
                changed |= source.concerns(message)
        return changed

    def close(self) -> None:
        self._opened.close()


def _messages(heard: NetlinkSocket) -> Iterator[Message | None]:
    """All that waits; None where some were lost before."""
    while True:
        try:
            yield from heard.notifications()
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise DatapathError(f"cannot read of changes: {error}", error.errno) from error
            yield None
        else:
            return


def _leads_elsewhere(message: Message | None) -> Realm:
    """Whether packets may go another way by it; what the kernel keeps for itself is no way."""
    if message is None or message.type not in (MessageType.NEWROUTE, MessageType.DELROUTE):
        return Realm.WAYS
    is_of_kernel = message.body["type"] in _HOSTS_OWN or message.body["flags"] & _CLONED
    return Realm.NOTHING if is_of_kernel else Realm.WAYS


_HOSTS_OWN = range(2, 6)  # RTN_LOCAL, _BROADCAST, _ANYCAST and _MULTICAST
_CLONED = 0x200  # RTM_F_CLONED

ROUTING = Source(family=RTNETLINK, groups=tuple(Group), concerns=_leads_elsewhere)
