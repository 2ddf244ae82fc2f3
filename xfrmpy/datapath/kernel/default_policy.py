"""The kernel's default policy: whether a packet passes that no policy matches.

XFRM_MSG_SETDEFAULT, from Linux 5.15. It is the whole network namespace's, and bears no mark of
whose it is: it is ours while our own exceptions to it are in force (`spd.default_exceptions`). Only
what we block is ever set back, and what others block beside it stays theirs.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.kernel.messages import MessageType
from xfrmpy.datapath.netlink.messages import Message
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Request
from xfrmpy.ipsec.spd import OF_DEFAULT, PolicyDirection, SpdEntry

BLOCK, ACCEPT = 1, 2  # XFRM_USERPOLICY_*; 0 leaves a direction as it is.


class DefaultPolicy:
    """Of the network namespace of a socket. Methods raise `DatapathError`."""

    def __init__(self, requests: NetlinkSocket) -> None:
        self._requests = requests
        self._ours: frozenset[PolicyDirection] = frozenset()

    def refusal(self) -> str:
        """Why there is none; empty if there is."""
        try:
            read_default(self._requests)
        except DatapathError as error:
            since = "it is there since Linux 5.15"
            return since if error.errno == errno.EINVAL else str(error)
        return ""

    def blocked(self) -> frozenset[PolicyDirection]:
        """In what directions it blocks, of those that are ours."""
        return self._ours & read_default(self._requests) if self._ours else frozenset()

    def set(self, blocked: frozenset[PolicyDirection]) -> None:
        gone = self._ours - blocked
        if blocked or gone:
            words = {each.value: BLOCK for each in blocked} | {each.value: ACCEPT for each in gone}
            message = Message(type=MessageType.SETDEFAULT, body=words)
            self._requests.ask(Request(message, "set the default policy"))
        self._ours = blocked

    def set_again(self) -> None:
        self.set(self._ours)

    def adopt(self, entries: Iterable[SpdEntry]) -> None:
        """Know by the policies in force whether an earlier process has set it."""
        if any(entry.priority == OF_DEFAULT for entry in entries):
            self._ours = read_default(self._requests)


def read_default(requests: NetlinkSocket) -> frozenset[PolicyDirection]:
    """The directions in which it blocks, whoever has set it. Raises `DatapathError`."""
    get = Message(type=MessageType.GETDEFAULT)
    (told,) = requests.ask(Request(get, "read the default policy"))
    return frozenset(each for each in PolicyDirection if told.body[each.value] == BLOCK)
