"""The datapath contract: a SAD and an SPD in force, whoever it is that moves the packets.

Three implementations share it and one contract test: the kernel (XFRM), the userspace workers, and
the recording one of the tests. A datapath knows nothing of IKE. Calls are synchronous and short
(microseconds in the kernel, a round trip on a local socket in user space); events are read when
`fileno()` is readable, so that one event loop can own everything.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Flag
from typing import Protocol, TypeAlias

from xfrmpy.ipsec.addresses import SocketAddress
from xfrmpy.ipsec.drift import Difference, Dump
from xfrmpy.ipsec.interfaces import InterfaceState, TunnelInterface
from xfrmpy.ipsec.sad import DontFragment, Mode, SadEntry, SaId, Usage
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import Action, PolicyDirection, SpdEntry
from xfrmpy.registry import ProtocolId


class DatapathError(Exception):
    """A datapath could not do what it was asked; the sentence says what and why.

    `errno` is the operating system's number where there is one.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class NotAdded(DatapathError):
    """One of several entries was refused: the first `done` are in force, and no others."""

    def __init__(self, done: int, reason: DatapathError) -> None:
        super().__init__(str(reason), reason.errno)
        self.done = done


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a datapath can really do on this host, each tried and not guessed.

    `suites` holds the names of the ciphers that work: an AEAD cipher's own (`aes256gcm16`), others
    with their integrity (`aes256-sha256`). `missing` gives a sentence for what does not work, by
    the same names, or under `"esp"` when there is no ESP at all. `pads_compressed` is whether an SA
    may have both `tfc` and a `cpi`, `resources` whether one of several SAs of a policy may be bound
    to a worker or CPU (RFC 9611).
    """

    protocols: frozenset[ProtocolId]
    modes: frozenset[Mode]
    suites: frozenset[str]
    esn: bool
    udp_encapsulation: bool
    raw_esp: bool
    dont_fragment: frozenset[DontFragment]
    compression: bool
    missing: dict[str, str]
    marks: bool = False
    interfaces: bool = False
    padding: bool = True
    pads_compressed: bool = True
    resources: bool = True
    features: dict[str, str] = field(default_factory=dict)


class Realm(Flag):
    """What others may have changed: SAD and SPD, or what leads packets to them (`find_amiss`)."""

    NOTHING = 0
    ENTRIES = 1
    WAYS = 2
    EVERYTHING = ENTRIES | WAYS


@dataclass(frozen=True, slots=True, kw_only=True)
class Acquire:
    """A packet met a policy that has no SA yet; `source` and `destination` are the packet's."""

    reqid: int
    source: TrafficSelector
    destination: TrafficSelector


@dataclass(frozen=True, slots=True, kw_only=True)
class Expired:
    """An SA met its soft limit (replace it) or its hard one (`hard`: it is gone)."""

    sa: SaId
    reqid: int
    hard: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingChanged:
    """Authenticated packets of an inbound SA now come from another address or UDP port."""

    sa: SaId
    reqid: int
    old: SocketAddress
    new: SocketAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class OffloadRefused:
    """An SA is in force and no device does its work, although that was asked for."""

    sa: SaId
    reqid: int
    reason: str


Event: TypeAlias = Acquire | Expired | MappingChanged | OffloadRefused


class Interfaces(Protocol):
    """The interfaces of route-based tunnels. Every method may raise `DatapathError`."""

    def set(self, wanted: TunnelInterface) -> None:
        """Have it there, just like this; one of the same number is changed.

        One that somebody else made for this number is used, and stays his. What is refused is still
        wanted: `Datapath.find_amiss` finds it, and `mend` tries again.
        """

    def remove(self, if_id: int) -> None:
        """The inverse of `set`. One that is gone already is no error."""

    def keep_only(self, if_ids: Collection[int]) -> None:
        """Remove every other one that is ours, made since whenever."""

    def state(self, if_id: int) -> InterfaceState | None:
        """How it is at the moment; None if it is not there."""


class DefaultPolicy(Protocol):
    """What becomes of packets that no entry matches. Every method may raise `DatapathError`."""

    def refusal(self) -> str:
        """Why there is no `set`; empty if there is."""

    def set(self, blocked: frozenset[PolicyDirection]) -> None:
        """In these directions nothing passes that no entry matches; in others, what passed before.

        Entries that pass in spite of it (`default_exceptions`) are added apart, and before: it is
        by them that a later process knows the default for ours.
        """


class Datapath(Protocol):
    """See the module. Every method but `close` may raise `DatapathError`.

    `ruled` are the actions of which it takes no entry that is `beyond_rules`.
    """

    name: str
    ruled: frozenset[Action]

    @property
    def interfaces(self) -> Interfaces: ...

    @property
    def default_policy(self) -> DefaultPolicy: ...

    def probe(self) -> Capabilities:
        """Try each protocol, mode and algorithm with a throw-away SA; leaves nothing behind."""

    def add_sa(self, entry: SadEntry) -> None:
        """Put an SA in force. An entry with the same id in force already is an error (EEXIST)."""

    def add(self, entries: Sequence[SadEntry | SpdEntry]) -> None:
        """`add_sa` and `add_policy` of several, in their order, up to one that is refused.

        Raises `NotAdded`.
        """

    def update_sa(self, entry: SadEntry) -> None:
        """Replace addresses, ports and lifetimes of the SA of the same id, keeping its counters."""

    def move_sa(self, sa: SaId, entry: SadEntry) -> None:
        """An SA goes on as `entry`, under other addresses and ports, and so perhaps another id.

        Keys, sequence numbers, window and counters stay; no number is used twice. What is refused
        may have taken the SA out of force. Policies that name the addresses are moved by
        `add_policy`.
        """

    def remove_sa(self, sa: SaId) -> None:
        """Take an SA out of force. One that is gone already (it expired hard) is no error."""

    def add_policy(self, entry: SpdEntry) -> None:
        """Put a policy in force, replacing one of the same direction and selector that is ours.

        For an OUT entry of tunnel mode, also the route and the inner MTU that lead packets to it,
        unless it is an interface's: the routes into that are the host's.
        """

    def remove_policy(self, entry: SpdEntry) -> None:
        """The inverse of `add_policy`, with its route. One that is gone already is no error."""

    def usage(self, sa: SaId) -> Usage:
        """What an SA has carried so far."""

    def seconds_idle(self, sas: Sequence[SaId]) -> tuple[float | None, ...]:
        """`Usage.seconds_idle` of many SAs in one question; None for one that is not in force."""

    def dump(self) -> Dump:
        """Every SA and policy in force that is ours."""

    def find_amiss(self) -> tuple[Difference, ...]:
        """What leads packets to the entries in force, and is not as it was made or ought to be.

        Routes, rules, devices, and the ways to the peers; in the order in which to `mend` them.
        """

    def mend(self, amiss: Difference) -> None:
        """Put right what `find_amiss` has found. What is right by now stays so."""

    def remove_ours(self) -> int:
        """Remove every object that is ours, in force since whenever; returns how many."""

    def fileno(self) -> int:
        """A descriptor that is readable when `read_events` has something to say."""

    def read_events(self) -> tuple[Event, ...]:
        """The events that are waiting; never blocks.

        The first time also what of earlier events an SA still shows, whatever `fileno()` says.
        """

    def revive(self) -> None:
        """Have another process in the place of one that `read_events` has found to have ended.

        What was in force is not, until it is added again; `fileno()` is another one.
        """

    def are_resumable(self, entries: Sequence[SadEntry]) -> tuple[bool, ...]:
        """Of SAs that were in force and are not, whether each could go on where it was.

        Of one that is added again no sequence number is used twice, and none is accepted twice.
        """

    def changes_fileno(self) -> int:
        """A descriptor that is readable when `read_changes` has something to say, or may have."""

    def read_changes(self) -> Realm:
        """What others may have changed since the last time; never blocks.

        Not what this process has changed itself. What nobody else can change is never named.
        """

    def close(self) -> None:
        """Free what this process holds. What is in force stays in force."""


def add_one_by_one(datapath: Datapath, entries: Sequence[SadEntry | SpdEntry]) -> None:
    """`Datapath.add` of one that has nothing to gain by doing more at a time."""
    for done, entry in enumerate(entries):
        try:
            if isinstance(entry, SadEntry):
                datapath.add_sa(entry)
            else:
                datapath.add_policy(entry)
        except DatapathError as error:
            raise NotAdded(done, error) from error
