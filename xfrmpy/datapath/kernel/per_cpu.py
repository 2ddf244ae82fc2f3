"""SAs of one CPU (RFC 9611, XFRMA_SA_PCPU from Linux 6.13): packets find that of their own.

A policy keeps a list of the SAs that it has used. By the sources of Linux 6.13 and some after it
(xfrm_state_find: what the list has is taken without a look at the rest) one of no CPU in it is
taken on every CPU as long as it lives, whatever has come beside it meanwhile; 7.3 was seen to look
farther. A policy that is put in force again begins with an empty list (xfrm_policy_kill), and among
all SAs that of the CPU comes first. It costs a dump of the host's policies, some 4 microseconds for
each, when SAs of one CPU come or go, and nothing where there are none. By the same sources the
kernel's other way (XFRM_POLICY_CPU_ACQUIRE, an acquire for each CPU) holds back every packet of a
CPU but the first until it has an SA of its own, so it is of no use where a peer wants no more of
them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import suppress

from xfrmpy.datapath.kernel import spd
from xfrmpy.datapath.kernel.messages import Attribute, MessageType
from xfrmpy.datapath.netlink.layout import UnreadableMessage
from xfrmpy.datapath.netlink.messages import Message
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Request
from xfrmpy.ipsec.sad import Direction, SadEntry
from xfrmpy.ipsec.spd import PolicyDirection, SpdEntry


def bound_reqids(entries: Iterable[SadEntry | SpdEntry]) -> set[int]:
    """Of the SAs among them that are for one CPU."""
    return {
        entry.reqid
        for entry in entries
        if isinstance(entry, SadEntry)
        and entry.direction is Direction.OUT
        and entry.resource is not None
    }


def is_bound(state: Message) -> bool:
    return Attribute.SA_PCPU in state.attributes


def look_again(requests: NetlinkSocket, reqids: Collection[int]) -> None:
    """Have packets that meet the policies of these reqids look for their SAs anew.

    Raises `DatapathError`.
    """
    if not reqids:
        return
    dump = Request(Message(type=MessageType.GETPOLICY), "list the policies", dump=True)
    entries = []
    for policy in requests.ask(dump):
        with suppress(UnreadableMessage):  # Somebody else's, by our reqid.
            entries += [spd.decode_policy(policy)] if _reqids(policy) & set(reqids) else []
    renewals = [
        Request(spd.encode_policy(entry, replace=True), f"renew the policy {entry.selector}")
        for entry in entries
        if entry.direction is PolicyDirection.OUT
    ]
    for reply in requests.exchange(renewals):
        reply.unless()


def _reqids(policy: Message) -> set[int]:
    return {template["reqid"] for template in policy.attributes.get(Attribute.TMPL, ())}
