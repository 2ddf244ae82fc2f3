"""What the daemon asks of a worker, and what a worker tells it: JSON in packets of a Unix socket.

A request is `{"do": NAME, "with": VALUE}`; a reply `{"result": VALUE}`, with `"more": true` if
another packet follows, or `{"error": SENTENCE, "errno": NUMBER or null}`. On a connection that has
asked for `events`, the worker sends `{"event": KIND, "of": VALUE}` as they happen. Values are as in
`xfrmpy.ipsec.plain`, and the SAs of the commonest question by their names (`name_of`). Sockets pass
as SCM_RIGHTS beside the request `keep` and the reply to `kept`. Keys pass here: the socket is of
mode 0600 and the peer's uid is checked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any, TypeVar

from xfrmpy.datapath.interface import (
    Acquire,
    Event,
    Expired,
    MappingChanged,
    OffloadRefused,
)
from xfrmpy.ipsec.addresses import IpAddress, SocketAddress
from xfrmpy.ipsec.algorithms import CIPHERS, INTEGRITY, Cipher, Integrity
from xfrmpy.ipsec.marks import Mark
from xfrmpy.ipsec.plain import KNOWN_ADDRESSES, Plain, from_plain, to_plain
from xfrmpy.ipsec.proposals import AhSuite, EspSuite
from xfrmpy.ipsec.sad import (
    Direction,
    DontFragment,
    InnerEnds,
    Lifetime,
    Mode,
    OuterHeader,
    SadEntry,
    SaId,
    UdpEncapsulation,
    Usage,
)
from xfrmpy.ipsec.selectors import MaskedPort, Selector, TrafficSelector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry, Template
from xfrmpy.registry import ProtocolId

T = TypeVar("T")

READY = b"\0"
"""What a worker says when it listens."""

REQUESTS = frozenset(
    (
        *("add", "carry", "close_interface", "close_queue", "drops", "dump", "hello"),
        *("interfaces", "join_interface", "lead", "leave_port", "move_sa", "open_interface"),
        *("open_queue", "queues", "raw_refusal", "remove_all", "remove_policy", "remove_sa"),
        *("resumable", "seconds_idle", "set_room", "shut", "stop", "survey", "update_sa", "usage"),
    )
)
"""What a worker of this version answers, each a method of `Worker`."""

MAX_PACKET = 64 * 1024
"""Octets; well below what a local socket buffers by default."""

ENTRIES_PER_PACKET = 50
"""An entry of the SAD takes about 700 octets, one of the SPD 500."""

IDS_PER_PACKET = 500
"""An `SaId` takes up to 90 octets, what is said of it fewer."""

SURVEYED_PER_PACKET = 250
"""What is told of one SA takes up to 180 octets."""

IPV4_OCTETS = 4

MAX_EVENTS = 1000
"""Kept for a daemon that is away, or does not read; then the oldest is forgotten."""

EVENT_KINDS: dict[str, type[Event]] = {
    kind.__name__: kind for kind in (Acquire, Expired, MappingChanged, OffloadRefused)
}


_MEANING = 2
"""Counted up when a request or a value comes to mean something else without changing its shape."""

VALUES = (
    *(SadEntry, SpdEntry, SaId, Usage, EspSuite, AhSuite, Cipher, Integrity, UdpEncapsulation),
    *(Lifetime, OuterHeader, InnerEnds),
    *(Selector, MaskedPort, Mark, Template, TrafficSelector, SocketAddress),
    *(Acquire, Expired, MappingChanged, OffloadRefused),
)


def _format() -> str:
    """What a daemon and a worker must agree about, whatever version each is of."""
    shapes = {
        kind.__name__: [(f.name, str(f.type)) for f in dataclasses.fields(kind)] for kind in VALUES
    }
    words = [
        [str(member) for member in each]
        for each in (Mode, DontFragment, Direction, Action, PolicyDirection)
    ]
    algorithms = [[c.name for c in CIPHERS], [i.name for i in INTEGRITY]]
    everything = json.dumps([_MEANING, shapes, words, algorithms])
    return hashlib.sha256(everything.encode()).hexdigest()[:16]


FORMAT = _format()


def socket_name(worker: int | str) -> str:
    """Of the socket in the runtime directory by which a worker is asked."""
    return f"worker-{worker}.sock"


def log_name(worker: int) -> str:
    """Of the file beside it that has what a worker says on standard error."""
    return f"worker-{worker}.log"


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def decode(packet: bytes) -> dict[str, Any]:
    """Raises `ValueError` for what is no message."""
    try:
        message = json.loads(packet)
    except RecursionError as error:
        raise ValueError("a message is not so deep") from error
    if not isinstance(message, dict):
        raise ValueError("a message is an object")
    return message


def encode_event(event: Event) -> bytes:
    return encode({"event": type(event).__name__, "of": to_plain(event)})


def decode_event(packet: bytes) -> Event:
    """Raises `ValueError`, `KeyError` or `TypeError` for what is no event."""
    message = decode(packet)
    return from_plain(EVENT_KINDS[message["event"]], message["of"])


def in_pieces(entries: Sequence[object]) -> Iterator[list[Plain]]:
    """The entries of a dump, as many as go into a packet at a time; at least one piece."""
    for start in range(0, max(len(entries), 1), ENTRIES_PER_PACKET):
        yield [to_plain(entry) for entry in entries[start : start + ENTRIES_PER_PACKET]]


_PROTOCOLS = {f"{protocol:02x}": protocol for protocol in (ProtocolId.AH, ProtocolId.ESP)}


def name_of(sa: SaId) -> str:
    """An SA named in hex: SPI, protocol and destination. A third of the time of its plain form."""
    return f"{sa.spi:08x}{sa.protocol:02x}{sa.destination.packed.hex()}"


def named(name: object) -> SaId:
    """The inverse of `name_of`. Raises `ValueError`, `KeyError` or `TypeError` for what is none."""
    if not isinstance(name, str):
        raise TypeError(f"{name!r} is not the name of an SA")
    protocol, destination = _PROTOCOLS[name[8:10]], _packed_address(name[10:])
    return SaId(spi=int(name[:8], 16), protocol=protocol, destination=destination)


@lru_cache(maxsize=KNOWN_ADDRESSES)
def _packed_address(octets: str) -> IpAddress:
    packed = bytes.fromhex(octets)
    return IPv4Address(packed) if len(packed) == IPV4_OCTETS else IPv6Address(packed)


def network_namespace() -> int:
    """Which one this thread is in: a worker of another is of no use."""
    return os.stat("/proc/thread-self/ns/net").st_ino
