"""Our policies in the kernel's SPD, each with what leads packets to it.

A policy that is not ours is neither replaced nor removed, whatever its selector. What a message
looks like is in `spd.py`, what leads packets in `ways.py`.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterable, Iterator
from contextlib import suppress

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.kernel import spd
from xfrmpy.datapath.kernel.messages import MessageType
from xfrmpy.datapath.kernel.removal import gone_is_fine
from xfrmpy.datapath.kernel.ways import PolicyWays
from xfrmpy.datapath.netlink.layout import UnreadableMessage
from xfrmpy.datapath.netlink.messages import Message
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Reply, Request, Words
from xfrmpy.ipsec.spd import SpdEntry


class SpdInForce:
    """See the module. Methods may raise `DatapathError`."""

    def __init__(self, requests: NetlinkSocket, ways: PolicyWays) -> None:
        self._requests = requests
        self._ways = ways
        self._taken: set[int] = set()  # the indices of ours

    def take_index(self, entry: SpdEntry) -> int:
        """An index that marks a policy without a template as ours; 0 for one that has a reqid."""
        if entry.template is not None:
            return 0
        candidates = (spd.policy_index(n, entry.direction) for n in itertools.count())
        index = next(index for index in candidates if index not in self._taken)
        self._taken.add(index)
        return index

    def give_back(self, index: int) -> None:
        """The inverse of `take_index`."""
        self._taken.discard(index)

    def addition(self, entry: SpdEntry, index: int) -> Request:
        what = Words("add the", entry.direction, "policy", entry.selector)
        return Request(spd.encode_policy(entry, index), what, create=True)

    def conclude(self, entry: SpdEntry, index: int, reply: Reply) -> None:
        """One of the same direction and selector that is ours is replaced."""
        if reply.unless(errno.EEXIST).error is not None:
            self._replace(entry, index, reply.request)

    def _replace(self, entry: SpdEntry, index: int, new: Request) -> None:
        found = self._ours(entry, new.what)
        if entry.template is None and found.body["index"] not in spd.OUR_INDICES:
            # A replaced policy keeps its index, and by this one it would not be ours.
            delete = Request(spd.encode_policy_index(found), new.what)
            requests = [delete, new]
        else:
            self._taken.discard(index)
            requests = [Request(spd.encode_policy(entry, replace=True), new.what)]
        for reply in self._requests.exchange(requests):
            reply.unless()

    def remove(self, entry: SpdEntry) -> None:
        self._ways.remove(entry)
        what = f"remove the {entry.direction} policy {entry.selector}"
        with gone_is_fine():
            found = self._ours(entry, what)
            self._requests.ask(Request(spd.encode_policy_index(found), what))
            self._taken.discard(found.body["index"])

    def dump(self) -> tuple[tuple[SpdEntry, ...], tuple[SpdEntry, ...]]:
        """Ours, and those of others."""
        policies = self._policies()
        ours = [policy for policy in policies if spd.is_our_policy(policy)]
        others = [policy for policy in policies if not spd.is_our_policy(policy)]
        return tuple(_readable(ours)), tuple(_readable(others))

    def adopt(self) -> list[SpdEntry]:
        """Know of those in force since before this process, and mend what leads to them."""
        policies = [policy for policy in self._policies() if spd.is_our_policy(policy)]
        self._taken.update(policy.body["index"] for policy in policies)
        adopted = [*_readable(policies)]
        self._ways.adopt(adopted)
        return adopted

    def forget_all(self) -> None:
        self._taken.clear()

    def _ours(self, entry: SpdEntry, what: str | Words) -> Message:
        get = spd.encode_policy_id(entry, MessageType.GETPOLICY)
        found = self._requests.ask(Request(get, what))
        if not found or not spd.is_our_policy(found[0]):
            raise DatapathError(
                f"cannot {what}: another program has a policy of this direction and selector",
                errno.ENOENT,
            )
        return found[0]

    def _policies(self) -> list[Message]:
        message = Message(type=MessageType.GETPOLICY)
        return self._requests.ask(Request(message, "list the policies", dump=True))


def _readable(messages: Iterable[Message]) -> Iterator[SpdEntry]:
    """What can be read; the rest is not of our making."""
    for message in messages:
        with suppress(UnreadableMessage):
            yield spd.decode_policy(message)
