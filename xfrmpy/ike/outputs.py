"""What the core asks of the world (imperatives) and tells it (past tense).

Outputs come in one ordered queue, because order is meaning: a responder's inbound SA is in force
before its response leaves, and what a restarted daemon must know is kept before anybody can see the
effects of it (`sequence`). What goes to the datapath names its `owner`: the inbound SPI of the
Child SA that wants it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from xfrmpy.crypto.signatures import Scheme
from xfrmpy.failures import Failure
from xfrmpy.ike.errors import DropReason
from xfrmpy.ipsec.addresses import IpAddress, Path, SocketAddress
from xfrmpy.ipsec.sad import SadEntry, SaId
from xfrmpy.ipsec.spd import SpdEntry
from xfrmpy.pki.lookups import Lookup
from xfrmpy.pki.sources import Source
from xfrmpy.policy.model import PrivateKey
from xfrmpy.registry import ExchangeType


@dataclass(frozen=True, slots=True, kw_only=True)
class SendDatagram:
    """`data` has the non-ESP marker where the path needs it."""

    path: Path
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Persist:
    """Keep this, all or nothing, before anything is done that comes behind it.

    Each is an IKE SA by our SPI, with its record, or None if it is to be forgotten.
    """

    records: tuple[tuple[bytes, bytes | None], ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddSa:
    owner: int
    tunnel: str
    child: str
    entry: SadEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveSa:
    """The SA that was `sa` goes on as `entry`: other addresses and ports, the same all else."""

    owner: int
    tunnel: str
    child: str
    sa: SaId
    entry: SadEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveSa:
    owner: int
    tunnel: str
    child: str
    sa: SaId


@dataclass(frozen=True, slots=True, kw_only=True)
class AddPolicy:
    """One that `is_in_place` of another of ours changes it; refused, the other stays in force."""

    owner: int
    tunnel: str
    child: str
    entry: SpdEntry
    is_in_place: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovePolicy:
    owner: int
    tunnel: str
    child: str
    entry: SpdEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class TrapsRefused:
    """The datapath has not taken a policy that was to wait for a tunnel's traffic."""

    tunnel: str
    child: str
    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeStarted:
    """The first copy of a request has been sent."""

    tunnel: str
    exchange: ExchangeType
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRetransmitted:
    """`count` is 1 for the first retransmission, of at most `of`."""

    tunnel: str
    exchange: ExchangeType
    path: Path
    count: int
    of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FragmentSizeReduced:
    """A large message got no answer: from now on IP datagrams have `octets` at most."""

    tunnel: str
    exchange: ExchangeType
    path: Path
    octets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeRepeated:
    """The peer wants the exchange to begin again, e.g. with a cookie; `reason` says why."""

    tunnel: str
    exchange: ExchangeType
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NatDetected:
    """`ours` and `theirs`: who is behind a NAT; `forced`: encapsulation was asked for by policy."""

    tunnel: str
    ours: bool
    theirs: bool
    forced: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerMoved:
    """The NAT before the peer gave it another address or port; IKE and ESP go there now."""

    tunnel: str
    old: SocketAddress
    new: SocketAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSaEstablished:
    """Both ends have proved who they are; perhaps another gateway has sent the peer to us."""

    tunnel: str
    path: Path
    suite: str
    remote_id: str
    is_initiator: bool
    redirected_from: IpAddress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSaEstablished:
    """Both SAs and their policies are in force, and the peer knows it."""

    tunnel: str
    child: str
    spi_in: int
    spi_out: int
    suite: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSaRekeyed:
    """A new Child SA has taken the place of an older one; its SPIs are these."""

    tunnel: str
    child: str
    spi_in: int
    spi_out: int
    suite: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSaRekeyed:
    """A new IKE SA has taken the place of an older one, with its Child SAs.

    `is_initiator` is who we are in the new one; `reauthenticated` if who the peer is was proved
    again, and its Child SAs are new.
    """

    tunnel: str
    path: Path
    suite: str
    is_initiator: bool
    reauthenticated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SaNotCreated:
    """A further SA, or one to replace another, could not be had; what was in force still is.

    `child` is empty if it was the IKE SA.
    """

    tunnel: str
    child: str
    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class AskUsage:
    """When SAs have carried their last packet is wanted, each with its tunnel.

    `IkeEndpoint.handle_usage` takes the answers.
    """

    sas: tuple[tuple[str, SaId], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskStatus:
    """Ask these sources, all at once, whether certificates are revoked; an IKE SA may wait for it.

    Each is to be told to `handle_status` in its time, whether it has answered or not.
    """

    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskCertificates:
    """Fetch what a peer says is at these URLs; an IKE SA waits for it.

    Each is to be told to `handle_certificates` in its time, whether anything was there or not.
    """

    lookups: tuple[Lookup, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AskAaa:
    """An AAA server, by the name that policy has for it, is to decide on an EAP packet of a peer.

    `session` stands for the whole of one authentication, `round` for this packet in it; `user` is
    who the peer says it is. `IkeEndpoint.handle_verdict` takes the answer, which is to come, if
    only as a `Refused`; one that comes too late is passed over. Nothing is said when the peer gives
    up: a session of which nothing is heard for a minute is over.
    """

    tunnel: str
    server: str
    session: bytes
    round: int
    user: bytes
    packet: bytes = field(repr=False)
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class AskSignature:
    """A token is to sign `octets` by its `key`, whose AUTH the IKE SA waits with.

    `IkeEndpoint.handle_signature` takes the answer, which is to come, if only as the sentence why
    there is none; one that comes too late is passed over.
    """

    number: int
    key: PrivateKey
    scheme: Scheme
    octets: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSaClosed:
    """A Child SA that was established is gone."""

    tunnel: str
    child: str
    spi_in: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelClosed:
    """The IKE SA is gone with all it had. `failure` is None if our operator asked for it.

    `was_established` tells a tunnel that broke from one that did not come up.
    """

    tunnel: str
    was_established: bool
    is_initiator: bool
    failure: Failure | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirected:
    """The peer sends us to another gateway, an address or a name, and we are allowed to go: the
    IKE SA with it ends, and an `initiate` with `original` is to follow."""

    tunnel: str
    gateway: IpAddress | str
    original: IpAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRefused:
    """A peer wanted what our policy does not give; `tunnel` is empty if none was found."""

    tunnel: str
    path: Path
    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class DatagramDropped:
    """`detail` is for a log at its most talkative; the reason is what is counted."""

    path: Path
    reason: DropReason
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DefectFound:
    """An exception that should not be: a bug of ours. It cost one SA at most."""

    path: Path
    datagram: bytes = field(repr=False)
    traceback: str


Output: TypeAlias = (
    SendDatagram
    | Persist
    | AddSa
    | MoveSa
    | RemoveSa
    | AddPolicy
    | RemovePolicy
    | TrapsRefused
    | ExchangeStarted
    | RequestRetransmitted
    | FragmentSizeReduced
    | ExchangeRepeated
    | NatDetected
    | PeerMoved
    | IkeSaEstablished
    | ChildSaEstablished
    | ChildSaRekeyed
    | ChildSaClosed
    | IkeSaRekeyed
    | SaNotCreated
    | AskUsage
    | AskStatus
    | AskCertificates
    | AskAaa
    | AskSignature
    | TunnelClosed
    | Redirected
    | RequestRefused
    | DatagramDropped
    | DefectFound
)
