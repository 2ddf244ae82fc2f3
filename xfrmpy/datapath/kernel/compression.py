"""What the kernel has beside an SA that compresses: a state of IPComp, between it and the packet.

To the kernel that is an SA of its own, whose SPI is the index of compression (RFC 3173). In tunnel
mode it is the tunnel, and ESP or AH is transport mode around it. The two are paired by the sequence
number of an acquire, which is not used here: it is the SPI that the other one has. It has no keys
and counts nothing that we ask for, so it may be put back at any time. The kernel makes a state of
its own (protocol 4 or 41, reqid 0) for what a peer has sent without compression.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.kernel import sad, values
from xfrmpy.datapath.kernel.messages import Attribute, MessageType
from xfrmpy.datapath.netlink.messages import Message
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Request, Words
from xfrmpy.ipsec.sad import Lifetime, SadEntry, SaId
from xfrmpy.ipsec.spd import SpdEntry

_DEFLATE = {"alg_name": b"deflate", "alg_key_len": 0, "alg_key": b""}


def encode_states(entry: SadEntry) -> tuple[Message, ...]:
    """The message for each state of an SA."""
    protecting = sad.encode_sa(entry)
    return (protecting,) if entry.cpi is None else (encode_compression(entry), protecting)


def encode_compression(entry: SadEntry) -> Message:
    """Without limits: it ends with the SA."""
    body = {
        "id_daddr": entry.destination.packed,
        "id_spi": entry.cpi,
        "id_proto": values.IPPROTO_COMP,
        "saddr": entry.source.packed,
        "seq": entry.spi,
        "reqid": entry.reqid,
        "family": values.family_of(entry.destination),
        "mode": values.MODES[entry.mode],
        "flags": sad.shared_flags(entry),
        **sad.encode_lifetime(Lifetime()),
    }
    attributes = {Attribute.ALG_COMP: _DEFLATE, **sad.encode_bearing(entry)}
    return Message(type=MessageType.NEWSA, body=body, attributes=attributes)


def decode_states(protecting: Message, compressing: Message | None = None) -> SadEntry:
    """The inverse of `encode_states`. Raises `UnreadableMessage`."""
    entry = sad.decode_sa(protecting)
    if compressing is None:
        return entry
    mode = values.decoded(values.MODES, compressing.body["mode"])
    return replace(entry, mode=mode, cpi=compressing.body["id_spi"])


@dataclass(frozen=True, slots=True)
class Added:
    """What came of adding compressions: by the place of the SA among those that were given."""

    new: dict[int, SaId] = field(default_factory=dict)
    refused: dict[int, DatapathError] = field(default_factory=dict)


class Compressions:
    """Those in force beside our SAs. Methods may raise `DatapathError`."""

    def __init__(self, requests: NetlinkSocket) -> None:
        self._requests = requests
        self._beside: dict[SaId, Message] = {}

    def add(self, added: Sequence[SadEntry | SpdEntry]) -> Added:
        """Those of the SAs that are not in force yet; a refusal is told, and not raised."""
        wanted: dict[SaId, tuple[int, SadEntry]] = {}
        for place, entry in enumerate(added):
            if isinstance(entry, SadEntry) and entry.cpi is not None:
                wanted.setdefault(entry.id, (place, entry))
        new = {sa: entry for sa, (_, entry) in wanted.items() if sa not in self._beside}
        outcome = Added()
        replies = self._requests.exchange([_addition(entry) for entry in new.values()])
        for sa, reply in zip(new, replies, strict=True):
            place, _ = wanted[sa]
            if reply.error is None:
                self._beside[sa] = reply.request.message
                outcome.new[place] = sa
            else:
                outcome.refused[place] = reply.error
        return outcome

    def put_back(self, entry: SadEntry) -> None:
        """Have that of an SA in force, if it has one, as it may be already."""
        if entry.cpi is None:
            return
        (reply,) = self._requests.exchange([_addition(entry)])
        if reply.error is not None and not self._is_there(reply.request.message):
            raise reply.error
        self._beside[entry.id] = reply.request.message

    def remove(self, sa: SaId) -> None:
        """That of an SA, if there is one; what has its place by now and is another's stays."""
        message = self._beside.pop(sa, None)
        if message is not None and self._is_there(message):
            self._delete([message], _what("remove", sa))

    def forget_all(self) -> None:
        self._beside.clear()

    def pair(self, states: Iterable[Message]) -> list[tuple[Message, Message | None]]:
        """The states of our SAs, each with what is beside it. One whose SA is gone is removed."""
        found: dict[tuple[object, ...], Message] = {}
        protecting, left_over = [], []
        for state in states:
            if not sad.is_compression(state):
                protecting.append(state)
            elif found.setdefault(_pairing(state, "seq"), state) is not state:
                left_over.append(state)
        pairs = [(state, found.pop(_pairing(state, "id_spi"), None)) for state in protecting]
        self._delete([*left_over, *found.values()], "remove a compression whose SA is gone")
        self._beside = {
            sad.decode_sa_id(state.body): compressing
            for state, compressing in pairs
            if compressing is not None
        }
        return pairs

    def _is_there(self, message: Message) -> bool:
        get = Request(sad.encode_state_id(message, MessageType.GETSA), "find a compression")
        (reply,) = self._requests.exchange([get])
        reply.unless(errno.ENOENT, errno.ESRCH)
        wanted = _pairing(message, "seq")
        return any(_pairing(found, "seq") == wanted for found in reply.messages)

    def _delete(self, states: Sequence[Message], what: str | Words) -> None:
        deletions = (sad.encode_state_id(state, MessageType.DELSA) for state in states)
        for reply in self._requests.exchange([Request(deletion, what) for deletion in deletions]):
            reply.unless(errno.ENOENT, errno.ESRCH)


def _pairing(state: Message, name: str) -> tuple[object, ...]:
    """What two states of one SA have in common; the SPI of the one is `name` of the other."""
    body = state.body
    address = body["family"], *(body[end].ljust(16, b"\0") for end in ("saddr", "id_daddr"))
    return (*address, body["reqid"], body[name])


def _addition(entry: SadEntry) -> Request:
    return Request(encode_compression(entry), _what("add", entry.id), create=True)


def _what(verb: str, sa: SaId) -> Words:
    return Words(verb, "the compression of", sa)
