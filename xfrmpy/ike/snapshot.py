"""An IKE SA with all that it has as octets, and back: what another process needs to go on with it.

Read RFC 7296 sections 2.1 to 2.3 first, and RFC 5282 section 3.1 for why the count of what was
sealed must never go back. The tables below say which attribute of which object is kept, and how it
is written; a test sees to it that every other one is left out on purpose. A reader takes what the
tables have and nothing else, so a record of another version is refused and never guessed at.
The tunnel is found again by its name, and its policy has a record of its own (`kept_policy`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias, cast

from xfrmpy.crypto.key_exchange import KeyExchange, resume_key_exchange
from xfrmpy.crypto.key_schedule import IkeKeys
from xfrmpy.ike.agreement import Agreement
from xfrmpy.ike.announcement import Announcement
from xfrmpy.ike.auth import IkeAuth
from xfrmpy.ike.channel import Channel
from xfrmpy.ike.child_sa import ChildSa, Scope
from xfrmpy.ike.collisions import Nonces
from xfrmpy.ike.core import IKE_SPI_SIZE, Core
from xfrmpy.ike.crash import TheirTokens
from xfrmpy.ike.create_child_sa import CreateChildSa
from xfrmpy.ike.credentials import Heard
from xfrmpy.ike.demand import Demand
from xfrmpy.ike.eap_initiator import EapDialogue
from xfrmpy.ike.exchange import Exchange
from xfrmpy.ike.first_contact import ProofOfLife
from xfrmpy.ike.followup import FollowupKe, Unfinished
from xfrmpy.ike.ike_sa import IkeSa
from xfrmpy.ike.informational import DeleteChildSas, Farewell, LivenessCheck
from xfrmpy.ike.intermediate import IkeIntermediate
from xfrmpy.ike.modes import policy_between
from xfrmpy.ike.nat import NatSituation, is_open
from xfrmpy.ike.rekey_ike_sa import RekeyIkeSa
from xfrmpy.ike.resumption import HeldTicket, Resumed, TicketRequest
from xfrmpy.ike.states import ChildSaState, IkeSaState
from xfrmpy.ike.transcript import Transcript
from xfrmpy.ike.window import Outstanding, Sent, Window
from xfrmpy.ipsec.addresses import IpAddress, Path
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.plain import Plain, from_plain, to_plain
from xfrmpy.ipsec.proposals import Proposal, ike_suite
from xfrmpy.ipsec.sad import Direction, SadEntry
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.model import ChildPolicy, Retransmission, TunnelPolicy
from xfrmpy.registry import ExchangeType, KeyExchangeMethod, PayloadType
from xfrmpy.wire.cursor import Cursor, Malformed
from xfrmpy.wire.message import Message, decode_payloads_untrusted, encode_payloads
from xfrmpy.wire.payloads import IdiPayload, IdrPayload, OpenPayload, SaPayload

FORMAT = 10
"""Of both records. Another table is another format."""

KNOWN_PROPOSALS = 64
"""Those of policies stand in many records."""

_COUNT = b"+"

Table: TypeAlias = "Mapping[str, Codec]"


class Unreadable(Exception):
    """A record that this version did not write, or whose like it does not know."""


def is_lasting(sa: IkeSa) -> bool:
    """Whether it is worth keeping: the peer may hold it for established, or hears its end.

    What a stranger has half opened is not, so nobody unknown can make us write anything; nor is
    what we begin as long as our last AUTH has not left, for a puzzle is to be solved first, or EAP.
    """
    outstanding = sa.channel.window.outstanding.values()
    has_asked = sa.is_initiator and not all(_is_early(r.exchange) for r in outstanding)
    is_wanted = has_asked or sa.is_authenticated
    return sa.channel.is_protected and sa.tunnel is not None and is_wanted


def _is_early(exchange: Exchange) -> bool:
    return isinstance(exchange, IkeAuth) and exchange.is_early


def write_ike_sa(sa: IkeSa) -> bytes:
    """The record of an IKE SA between two steps. It is as secret as its keys."""
    writer = Writer(sa)
    assert sa.tunnel is not None
    held = [*sa.children, *(child for _, child in sa.retired)]
    record: dict[str, Plain] = {
        "format": FORMAT,
        "tunnel": sa.tunnel.name,
        "is_initiator": sa.is_initiator,
        "spis": [sa.channel.our_spi.hex(), sa.channel.their_spi.hex()],
        "path": to_plain(sa.path),
        "ike_sa": writer.write(sa, IKE_SA),
        "channel": writer.write(sa.channel, CHANNEL),
        "window": writer.write(sa.channel.window, WINDOW),
        "children": [writer.child(child) for child in held],
        "retired_until": [until for until, _ in sa.retired],
    }
    record["gone"] = list(writer.write_gone())
    return _encode(record)


def count_of(spi: bytes) -> bytes:
    """The name of the record beside that of an IKE SA: what its last messages have changed."""
    return spi + _COUNT


def spi_of(name: bytes) -> bytes:
    """The IKE SA that a record is about."""
    return name.removesuffix(_COUNT) if len(name) > IKE_SPI_SIZE else name


def write_count(sa: IkeSa) -> bytes:
    """All that a message changes that says nothing: Message IDs, the count of what was sealed, and
    what may have to be sent again. It holds until the IKE SA itself is written again, whose answers
    are not repeated (`Window.note_kept`)."""
    writer = Writer(sa)
    window = sa.channel.window
    return _encode(
        {
            "format": FORMAT,
            "sealed": sa.channel.sealed,
            "window": writer.write(window, COUNTED),
            "answers": _write_answers(window.answers_not_kept),
        }
    )


_encoder = json.JSONEncoder(separators=(",", ":"))


def _encode(record: dict[str, Plain]) -> bytes:
    return _encoder.encode(record).encode()


def read_ike_sas(
    core: Core, records: Mapping[bytes, bytes], usable: Collection[str]
) -> tuple[list[IkeSa], list[IkeSa], list[str]]:
    """Bring IKE SAs back into an endpoint that has none of them.

    Gives them, then those whose tunnels are not `usable` or whose port is not ours any more, which
    come back without Child SAs and can do no more than say goodbye, then a sentence for each record
    that was refused.
    """
    readers: list[Reader] = []
    errors: list[str] = []
    living: dict[int, ChildSa] = {}
    for spi, record in records.items():
        if spi_of(spi) != spi:
            continue
        try:
            recorded = Recorded.parse(record, records.get(count_of(spi)))
            _check(recorded.spis[0] == spi, "it stands under another name")
            is_usable = recorded.tunnel in usable and is_open(recorded.path, core.natt_port)
            readers.append(Reader(core, recorded, living, is_usable=is_usable))
        except _WRONG as error:
            errors.append(f"{type(error).__name__}: {error}")
    restored: list[IkeSa] = []
    unusable: list[IkeSa] = []
    for reader in readers:
        try:
            reader.link()
        except _WRONG as error:
            errors.append(f"{type(error).__name__}: {error}")
            core.forget(reader.sa)
        else:
            (restored if reader.is_usable else unusable).append(reader.sa)
    return restored, unusable, errors


_WRONG = (Unreadable, KeyError, TypeError, ValueError, Malformed)
"""What a record can be wrong by; all of it costs that IKE SA and no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A record taken apart, none of it believed yet but its form."""

    format: int
    tunnel: str
    is_initiator: bool
    spis: tuple[bytes, ...]
    path: Path
    ike_sa: dict[str, Any]
    channel: dict[str, Any]
    window: dict[str, Any]
    children: list[Any]
    retired_until: tuple[float, ...]
    gone: list[Any]
    kept_answers: frozenset[int]

    @classmethod
    def parse(cls, octets: bytes, count: bytes | None) -> Recorded:
        plain = _decode(octets)
        kept_answers = frozenset(answer["message_id"] for answer in plain["window"]["_answers"])
        if count is not None:
            plain = with_count(plain, _decode(count))
        bare = {name: plain.pop(name) for name in ("ike_sa", "channel", "window")}
        lists = {name: plain.pop(name) for name in ("children", "gone")}
        _check(all(isinstance(part, dict) for part in bare.values()), "a part is missing")
        _check(all(isinstance(part, list) for part in lists.values()), "a list is missing")
        simple = {name: from_plain(kind, plain.pop(name)) for name, kind in _SIMPLE.items()}
        _check(not plain, "there is more than there should be")
        return cls(**simple, **bare, **lists, kept_answers=kept_answers)


def with_count(record: dict[str, Any], count: dict[str, Any]) -> dict[str, Any]:
    """A record, and what has been counted since; of its answers, those that are still kept."""
    _check(count.keys() == {"format", "sealed", "window", "answers"}, "a count is another")
    _check(count["window"].keys() == COUNTED.keys(), "a count is of others")
    window = record["window"] | count["window"]
    first = window["_highest_id"] - window["_our_size"] + 1
    answers = [answer for answer in window["_answers"] if answer["message_id"] >= first]
    return record | {
        "channel": record["channel"] | {"sealed": count["sealed"]},
        "window": window | {"_answers": answers + _items(count["answers"])},
    }


def _decode(octets: bytes) -> dict[str, Any]:
    plain = json.loads(octets)
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        raise Unreadable("the record is of another format")
    return plain


_SIMPLE: dict[str, Any] = {
    "format": int,
    "tunnel": str,
    "is_initiator": bool,
    "spis": tuple[bytes, ...],
    "path": Path,
    "retired_until": tuple[float, ...],
}


def _check(is_right: bool, sentence: str) -> None:
    if not is_right:
        raise Unreadable(sentence)


def _items(plain: Any) -> list[Any]:
    if not isinstance(plain, list):
        raise Unreadable("it should be a list")
    return plain


class Writer:
    """Writes the objects of one IKE SA. `gone` are Child SAs that only others still refer to."""

    def __init__(self, sa: IkeSa) -> None:
        self.sa = sa
        self._core = sa.core
        self._gone: list[ChildSa] = []
        tunnel = sa.core.tunnels.get(sa.tunnel_name)
        self._policies = () if tunnel is None else tunnel.policy.children

    def write(self, thing: object, table: Table) -> dict[str, Plain]:
        return {name: codec.write(getattr(thing, name), self) for name, codec in table.items()}

    def child(self, child: ChildSa) -> dict[str, Plain]:
        return {"policy": self._policy_of(child), **self.write(child, CHILD_SA)}

    def _policy_of(self, child: ChildSa) -> Plain:
        """Its name where it is the tunnel's; one of an older policy is written in full."""
        named = (p for p in self._policies if p.name == child.policy.name)
        if any(policy_between(policy, self.sa.path) == child.policy for policy in named):
            return child.policy.name
        return to_plain(child.policy)

    def reference(self, child: ChildSa) -> int:
        """The SPI of one that is held by an IKE SA; -1, -2 and so on for one that is gone."""
        if self._core.children.get(child.spi_in) is child:
            return child.spi_in
        if child not in self._gone:
            self._gone.append(child)
        return -1 - self._gone.index(child)

    def write_gone(self) -> Iterator[Plain]:
        """Each may refer to another that is gone."""
        written = 0
        while written < len(self._gone):
            yield self.child(self._gone[written])
            written += 1

    def ike_sa(self, sa: IkeSa | None) -> str | None:
        """One that is forgotten matters no more."""
        is_known = sa is not None and self._core.ike_sas.get(sa.our_spi) is sa
        return sa.our_spi.hex() if sa is not None and is_known else None


class Reader:
    """Makes the objects of one IKE SA anew; `link` follows when every IKE SA has been made."""

    def __init__(
        self,
        core: Core,
        recorded: Recorded,
        living: dict[int, ChildSa],
        *,
        is_usable: bool,
    ) -> None:
        self.core = core
        self.is_usable = is_usable
        self._recorded = recorded
        self._living = living
        known = core.tunnels.get(recorded.tunnel)
        our_spi, their_spi = recorded.spis
        _check(our_spi not in core.ike_sas, "it is there already")
        self.sa = IkeSa(
            core,
            path=recorded.path,
            is_initiator=recorded.is_initiator,
            schedule=Retransmission(),
            tunnel=None if known is None else known.policy,
            spis=(our_spi, their_spi),
        )
        try:
            self._make()
        except _WRONG:
            core.forget(self.sa)
            raise
        if self.is_usable:
            living.update({child.spi_in: child for child in self._children})

    def _make(self) -> None:
        self._read_soon, self._read_late = _split(IKE_SA)
        plain = self._recorded.ike_sa
        _check(plain.keys() == IKE_SA.keys(), "the attributes of the IKE SA are others")
        self._read(self.sa, self._read_soon, plain)
        proposal = self.sa.proposal
        _check(proposal is not None and self.sa.keys is not None, "it has no keys")
        assert proposal is not None
        assert self.sa.keys is not None
        self.sa.suite = ike_suite(proposal)
        self.sa.channel.protect(self.sa.suite, self.sa.keys)
        self.read(self.sa.channel, CHANNEL, self._recorded.channel)
        if self.is_usable:
            self._children = [self._child(plain) for plain in self._recorded.children]
            self._gone = [self._child(plain) for plain in self._recorded.gone]

    def link(self) -> None:
        """What refers to other objects: exchanges, and what replaces what."""
        sa, recorded = self.sa, self._recorded
        if not self.is_usable:
            self.read(sa.channel.window, WINDOW, {**recorded.window, "waiting": []})
            return
        self.read(sa.channel.window, WINDOW, recorded.window)
        sa.channel.window.note_kept(recorded.kept_answers)
        self._read(sa, self._read_late, recorded.ike_sa)
        for child, plain in zip(
            (*self._children, *self._gone), (*recorded.children, *recorded.gone), strict=True
        ):
            self._read(child, _split(CHILD_SA)[1], plain)
        count = len(self._children) - len(recorded.retired_until)
        _check(count >= 0, "more is retired than there is")
        sa.children = self._children[:count]
        sa.retired = list(zip(recorded.retired_until, self._children[count:], strict=True))
        for child in self._children:
            self.core.add_child(child)
            child.name(child.entries)

    def read(self, thing: object, table: Table, plain: dict[str, Any]) -> None:
        """Set every attribute that the table has, from a record that has exactly these."""
        _check(plain.keys() == table.keys(), f"the attributes of {type(thing).__name__} are others")
        self._read(thing, table, plain)

    def _read(self, thing: object, table: Table, plain: dict[str, Any]) -> None:
        for name, codec in table.items():
            setattr(thing, name, codec.read(plain[name], self))

    def _child(self, plain: Any) -> ChildSa:
        """A Child SA without those that it refers to."""
        assert self.sa.tunnel is not None
        _check(plain.keys() == {"policy", *CHILD_SA}, "the attributes of a Child SA are others")
        child = ChildSa.__new__(ChildSa)
        child.policy = self._policy(plain["policy"], self.sa.tunnel)
        child.tunnel = self.sa.tunnel
        child._core = self.core  # noqa: SLF001
        child._absent = ()  # noqa: SLF001
        child.ids = ()
        child.is_asking_usage = False
        self._read(child, _split(CHILD_SA)[0], plain)
        _check(child.spi_in not in self.core.children, "a Child SA is there already")
        return child

    def _policy(self, plain: Any, tunnel: TunnelPolicy) -> ChildPolicy:
        if not isinstance(plain, str):
            return from_plain(ChildPolicy, plain)
        (policy,) = (child for child in tunnel.children if child.name == plain)
        return policy_between(policy, self.sa.path)

    def reference(self, plain: Any) -> ChildSa:
        number = from_plain(int, plain)
        if number < 0:
            return self._gone[-1 - number]
        return self._living[number]

    def ike_sa(self, plain: Any) -> IkeSa | None:
        return None if plain is None else self.core.ike_sas.get(from_plain(bytes, plain))


@dataclass(frozen=True, slots=True)
class Codec:
    """How one attribute is written and read; if `is_late`, it refers to other objects."""

    write: Callable[[Any, Writer], Plain]
    read: Callable[[Any, Reader], Any]
    is_late: bool = False


def _split(table: Table) -> tuple[Table, Table]:
    soon = {name: codec for name, codec in table.items() if not codec.is_late}
    return soon, {name: codec for name, codec in table.items() if codec.is_late}


def _value(kind: Any) -> Codec:
    """Whatever `ipsec.plain` can read."""
    return Codec(lambda value, _: to_plain(value), lambda plain, _: from_plain(kind, plain))


def _bare(kind: Any) -> Codec:
    """A value that JSON has, or None: written as it is, for these are most of a record."""
    return Codec(lambda value, _: value, lambda plain, _: from_plain(kind, plain))


def _collection(make: Callable[[Any], Any], kind: Any) -> Codec:
    """A list, set or the like of such values."""
    return Codec(
        lambda values, _: to_plain(tuple(values)),
        lambda plain, _: make(from_plain(tuple[kind, ...], plain)),
    )


def _optional(codec: Codec) -> Codec:
    return Codec(
        lambda value, writer: None if value is None else codec.write(value, writer),
        lambda plain, reader: None if plain is None else codec.read(plain, reader),
        is_late=codec.is_late,
    )


# Proposals and payloads, as the wire has them.


@lru_cache(maxsize=KNOWN_PROPOSALS)
def write_proposals(proposals: tuple[Proposal, ...]) -> Plain:
    """A tenth of what `to_plain` makes of them, and a twentieth of its time."""
    return SaPayload(proposals=proposals).encode_body().hex() if proposals else ""


def read_proposals(plain: Any) -> tuple[Proposal, ...]:
    octets = from_plain(bytes, plain)
    if not octets:
        return ()
    return SaPayload.decode_body_untrusted(Cursor(octets, "record")).proposals


_PROPOSALS = Codec(
    lambda proposals, _: write_proposals(proposals), lambda plain, _: read_proposals(plain)
)
_PROPOSAL = Codec(
    lambda proposal, _: write_proposals((proposal,)), lambda plain, _: read_proposals(plain)[0]
)


def _write_payloads(payloads: tuple[OpenPayload, ...]) -> Plain:
    first, octets = encode_payloads(payloads)
    return [first.value, octets.hex()]


def _read_payloads(plain: Any) -> tuple[OpenPayload, ...]:
    first, octets = plain
    return decode_payloads_untrusted(PayloadType(from_plain(int, first)), from_plain(bytes, octets))


_PAYLOADS = Codec(
    lambda payloads, _: _write_payloads(payloads), lambda plain, _: _read_payloads(plain)
)
_IDENTITY_PAYLOAD = Codec(
    lambda payload, _: to_plain(payload.identity),
    lambda plain, _: IdiPayload(identity=from_plain(Identity, plain)),
)
_RESPONDER_PAYLOAD = Codec(
    lambda payload, _: to_plain(payload.identity),
    lambda plain, _: IdrPayload(identity=from_plain(Identity, plain)),
)


# What refers to others.

_CHILD = Codec(
    lambda child, writer: writer.reference(child),
    lambda plain, reader: reader.reference(plain),
    is_late=True,
)
_CHILDREN = Codec(
    lambda children, writer: [writer.reference(child) for child in children],
    lambda plain, reader: [reader.reference(one) for one in _items(plain)],
    is_late=True,
)
_IKE_SA_REFERENCE = Codec(
    lambda sa, writer: writer.ike_sa(sa), lambda plain, reader: reader.ike_sa(plain), is_late=True
)


def _write_demand(demand: Demand, _writer: Writer) -> Plain:
    children = None if demand.children is None else [*sorted(demand.children)]
    return [[[p.name, to_plain(packet)] for p, packet in demand.packets], children]


def _read_demand(plain: Any, reader: Reader) -> Demand:
    """A child that the policy has no more is not wanted any more."""
    assert reader.sa.tunnel is not None
    packets, children = plain
    policies = {child.name: child for child in reader.sa.tunnel.children}
    wanted = [
        (policies[name], from_plain(cast("type[Scope]", Scope), packet))
        for name, packet in _items(packets)
        if name in policies
    ]
    return Demand(wanted, None if children is None else frozenset(map(str, _items(children))))


def _write_key_exchange(key_exchange: KeyExchange, _writer: Writer) -> Plain:
    return [key_exchange.method.value, key_exchange.seed.hex()]


def _read_key_exchange(plain: Any, _reader: Reader) -> KeyExchange:
    method, seed = plain
    return resume_key_exchange(KeyExchangeMethod(method), from_plain(bytes, seed))


_KEY_EXCHANGE = _optional(Codec(_write_key_exchange, _read_key_exchange))


def _write_resumed(resumed: Resumed, _writer: Writer) -> Plain:
    return [to_plain(resumed.local), to_plain(resumed.remote)]


def _read_resumed(plain: Any, reader: Reader) -> Resumed:
    """Of an initiator's, whose ticket is spent."""
    assert reader.sa.tunnel is not None
    local, remote = (from_plain(Identity, identity) for identity in plain)
    return Resumed(tunnel=reader.sa.tunnel, local=local, remote=remote)


def _write_dialogue(dialogue: EapDialogue, _writer: Writer) -> Plain:
    """One that is at its end: only AUTH is to come."""
    assert dialogue.idr is not None
    assert dialogue.msk is not None
    return [to_plain(dialogue.idr.identity), dialogue.msk.hex()]


def _read_dialogue(plain: Any, reader: Reader) -> EapDialogue:
    assert reader.sa.tunnel is not None
    credential = reader.sa.tunnel.credential
    if credential is None:
        raise Unreadable("the tunnel does not use EAP any more")
    identity, msk = plain
    idr = IdrPayload(identity=from_plain(Identity, identity))
    return EapDialogue(credential, idr=idr, msk=from_plain(bytes, msk))


def _read_round(plain: Any, reader: Reader) -> int:
    assert reader.sa.tunnel is not None
    number = from_plain(int, plain)
    _check(0 <= number <= len(reader.sa.tunnel.rounds), "the tunnel has no such round any more")
    return number


def _write_agreement(agreement: Agreement, _writer: Writer) -> Plain:
    secrets = [secret.hex() for secret in agreement.secrets]
    return [write_proposals((agreement.chosen,)), to_plain(agreement.nonces), secrets]


def _read_agreement(plain: Any, _reader: Reader) -> Agreement:
    chosen, nonces, secrets = plain
    return Agreement(
        chosen=read_proposals(chosen)[0],
        nonces=from_plain(cast("type[Nonces]", Nonces), nonces),
        secrets=from_plain(tuple[bytes, ...], secrets),
    )


_AGREEMENT = _optional(Codec(_write_agreement, _read_agreement))


def _write_unfinished(unfinished: list[Unfinished], writer: Writer) -> Plain:
    return [
        [
            u.link.hex(),
            _write_agreement(u.agreement, writer),
            u.until,
            None if u.child is None else writer.reference(u.child),
            u.our_spi.hex(),
        ]
        for u in unfinished
    ]


def _read_unfinished(plain: Any, reader: Reader) -> list[Unfinished]:
    return [
        Unfinished(
            link=from_plain(bytes, link),
            agreement=_read_agreement(agreement, reader),
            until=from_plain(float, until),
            child=None if child is None else reader.reference(child),
            our_spi=from_plain(bytes, our_spi),
        )
        for link, agreement, until, child, our_spi in _items(plain)
    ]


# Messages and exchanges.


def _write_sent(sent: Sent) -> dict[str, Plain]:
    payloads = cast("tuple[OpenPayload, ...]", sent.message.payloads)
    return {
        "type": sent.message.exchange.value,
        "message_id": sent.message.message_id,
        "inside": _write_payloads(payloads) if payloads else None,
        "datagrams": [datagram.hex() for datagram in sent.datagrams],
    }


def _read_sent(plain: Any, reader: Reader, *, is_response: bool) -> Sent:
    """The inside is there only where smaller datagrams may have to be made of it."""
    channel = reader.sa.channel
    inside = plain["inside"]
    message = Message(
        spi_i=channel.spi_i,
        spi_r=channel.spi_r,
        exchange=ExchangeType(from_plain(int, plain["type"])),
        is_response=is_response,
        is_initiator=channel.is_initiator,
        message_id=from_plain(int, plain["message_id"]),
        payloads=() if inside is None else _read_payloads(inside),
    )
    return Sent(message=message, datagrams=from_plain(tuple[bytes, ...], plain["datagrams"]))


class Unheeded:
    """An exchange whose answer changes nothing any more, but whose number is taken."""

    def __init__(self, kind: ExchangeType) -> None:
        self.type = kind

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        """It is only waited for."""


def _write_exchange(exchange: Exchange, writer: Writer) -> Plain:
    name = _NAMES[type(exchange)]
    return [name, writer.write(exchange, EXCHANGES[name].table)]


def _read_exchange(plain: Any, reader: Reader) -> Exchange:
    name, attributes = plain
    if not reader.is_usable:
        kind = EXCHANGES[name].kind.type if name != "unheeded" else attributes["type"]
        return cast("Exchange", Unheeded(ExchangeType(kind)))
    row = EXCHANGES[name]
    exchange = object.__new__(row.kind)
    for place in row.of_sa:
        setattr(exchange, place, reader.sa if place == "_sa" else reader.sa.tunnel)
    reader.read(exchange, row.table, attributes)
    return cast("Exchange", exchange)


def _write_outstanding(requests: dict[int, Outstanding], writer: Writer) -> Plain:
    return [
        {
            "due_at": request.due_at,
            "exchange": _write_exchange(request.exchange, writer),
            **_write_sent(request.sent),
        }
        for request in requests.values()
        if request.sent is not None
    ]


def _read_outstanding(plain: Any, reader: Reader) -> dict[int, Outstanding]:
    requests = {}
    for each in _items(plain):
        sent = _read_sent(each, reader, is_response=False)
        requests[sent.message.message_id] = Outstanding(
            message_id=sent.message.message_id,
            exchange=_read_exchange(each["exchange"], reader),
            sent=sent,
            due_at=from_plain(float, each["due_at"]),
        )
    return requests


def _write_answers(answers: dict[int, Sent]) -> Plain:
    return [_write_sent(sent) for sent in answers.values()]


def _read_answers(plain: Any, reader: Reader) -> dict[int, Sent]:
    found = (_read_sent(each, reader, is_response=True) for each in _items(plain))
    return {sent.message.message_id: sent for sent in found}


def _read_waiting(plain: Any, reader: Reader) -> Any:
    return [_read_exchange(one, reader) for one in _items(plain)]


_MOMENT = _bare(float | None)
_FLAG = _bare(bool)
_TIME = _bare(float)
_NUMBER = _bare(int)
_OCTETS = Codec(lambda value, _: value.hex(), lambda plain, _: from_plain(bytes, plain))

IKE_SA: Table = {
    "is_client": _FLAG,
    "state": _value(IkeSaState),
    "nat": _value(NatSituation),
    "proposal": _optional(_PROPOSAL),
    "keys": _value(IkeKeys | None),
    "remote_id": _value(Identity | None),
    "local_id": _value(Identity | None),
    "nonces": _value(Nonces),
    "transcript": _value(Transcript),
    "heard": _value(Heard),
    "their_tokens": _optional(
        Codec(
            lambda theirs, _: to_plain(theirs.tokens),
            lambda plain, _: TheirTokens(tokens=from_plain(tuple[bytes, ...], plain)),
        )
    ),
    "ticket": _value(HeldTicket | None),
    "resumed": _optional(Codec(_write_resumed, _read_resumed, is_late=True)),
    "peer_follows": _FLAG,
    "peer_takes_childless": _FLAG,
    "uses_ppk": _FLAG,
    "ppk_id": _bare(str),
    "childless_until": _MOMENT,
    "ticket_at": _MOMENT,
    "replaces": _IKE_SA_REFERENCE,
    "heir": _IKE_SA_REFERENCE,
    "unfinished": Codec(_write_unfinished, _read_unfinished, is_late=True),
    "demand": Codec(_write_demand, _read_demand, is_late=True),
    "refused_scopes": _collection(frozenset, Scope),
    "postponed": _value(tuple[str, ...]),
    "filled": _value(tuple[str, ...]),
    "asks_pairs": _FLAG,
    "is_rekeying": _FLAG,
    "begun_after": _NUMBER,
    "authenticated_as": _NUMBER,
    "established_at": _TIME,
    "up_since": _TIME,
    "heard_at": _TIME,
    "sent_at": _TIME,
    "rekey_at": _MOMENT,
    "reauth_at": _MOMENT,
    "wait_until": _MOMENT,
    "alone_at": _MOMENT,
    "doubted_until": _MOMENT,
    "create_at": _MOMENT,
    "widen_at": _MOMENT,
    "busy_since": _MOMENT,
    "_must_reauth_by": _MOMENT,
    "_expires_at": _MOMENT,
    "_was_established": _FLAG,
    "is_reported": _FLAG,
}

CHANNEL: Table = {
    "init_request": _OCTETS,
    "init_response": _OCTETS,
    "intermediate_request": _OCTETS,
    "fragments": _FLAG,
    "may_sync": _FLAG,
    "sealed": _NUMBER,
    "_size_step": _NUMBER,
    "_is_closed": _FLAG,
}

WINDOW: Table = {
    "schedule": _value(Retransmission),
    "outstanding": Codec(_write_outstanding, _read_outstanding),
    "waiting": Codec(
        lambda waiting, writer: [_write_exchange(one, writer) for one in waiting], _read_waiting
    ),
    "_their_size": _NUMBER,
    "_next_id": _NUMBER,
    "_our_size": _NUMBER,
    "_expected_id": _NUMBER,
    "_highest_id": _NUMBER,
    "_answers": Codec(lambda answers, _: _write_answers(answers), _read_answers),
}

COUNTED = {
    name: WINDOW[name]
    for name in ("outstanding", "waiting", "_next_id", "_expected_id", "_highest_id")
}
"""What of a window a message changes that says nothing, beside its answers."""

CHILD_SA: Table = {
    "state": _value(ChildSaState),
    "spi_in": _NUMBER,
    "proposal": _optional(_PROPOSAL),
    "local": _value(tuple[TrafficSelector, ...]),
    "remote": _value(tuple[TrafficSelector, ...]),
    "reqid": _NUMBER,
    "peer_address": _value(IpAddress | None),
    "peer_cpi": _bare(int | None),
    "peer_takes_fragments": _FLAG,
    "peer_takes_tfc": _FLAG,
    "is_per_resource": _FLAG,
    "nonces": _value(Nonces),
    "is_initiator": _FLAG,
    "replaces": _optional(_CHILD),
    "heir": _optional(_CHILD),
    "entries": _value(tuple[SadEntry, ...]),
    "directions": _collection(tuple, Direction),
    "failure": _bare(str),
    "established_at": _TIME,
    "rekey_at": _MOMENT,
    "wait_until": _MOMENT,
    "is_told": _FLAG,
    "is_lost": _FLAG,
    "outdated_at": _MOMENT,
    "gone_spis": _collection(frozenset, bytes),
    "last_received_at": _TIME,
    "last_sent_at": _TIME,
    "last_used_at": _TIME,
    "claimed_as": _bare(int | None),
    "_packet": _value(Scope),
    "_proposals": _PROPOSALS,
}


@dataclass(frozen=True, slots=True)
class ExchangeRow:
    """A kind of exchange, what of it is kept, and where it holds its IKE SA and its tunnel."""

    kind: type[Any]
    table: Table
    of_sa: tuple[str, ...] = ("_sa",)


EXCHANGES: dict[str, ExchangeRow] = {
    "ike-auth": ExchangeRow(
        IkeAuth,
        {
            "_solution": _PAYLOADS,
            "_number": Codec(lambda number, _: number, _read_round),
            "_remote": _value(Identity | None),
            "_idr": _optional(_RESPONDER_PAYLOAD),
            "_identity": _IDENTITY_PAYLOAD,
            "_eap": _optional(Codec(_write_dialogue, _read_dialogue)),
            "_child": _optional(_CHILD),
        },
        of_sa=("_sa", "_tunnel"),
    ),
    "ike-intermediate": ExchangeRow(
        IkeIntermediate,
        {"_solution": _PAYLOADS, "_key_exchange": _KEY_EXCHANGE},
        of_sa=("_sa", "_tunnel"),
    ),
    "create-child-sa": ExchangeRow(
        CreateChildSa,
        {
            "_replaces": _optional(_CHILD),
            "_demanded": _value(KeyExchangeMethod | None),
            "_nonce": _OCTETS,
            "_scope": _value(Scope | None),
            "_packet": _value(Scope | None),
            "_is_further": _FLAG,
            "_child": _CHILD,
            "_key_exchange": _KEY_EXCHANGE,
            "agreement": _AGREEMENT,
        },
    ),
    "rekey-ike-sa": ExchangeRow(
        RekeyIkeSa,
        {
            "_demanded": _value(KeyExchangeMethod | None),
            "_spi": _OCTETS,
            "_nonce": _OCTETS,
            "_offered": _PROPOSALS,
            "_key_exchange": _KEY_EXCHANGE,
            "agreement": _AGREEMENT,
        },
    ),
    "followup-ke": ExchangeRow(
        FollowupKe,
        {
            "_link": _OCTETS,
            "begun": Codec(
                _write_exchange,
                _read_exchange,
                is_late=True,
            ),
            "_key_exchange": _KEY_EXCHANGE,
        },
    ),
    "liveness-check": ExchangeRow(LivenessCheck, {}),
    "proof-of-life": ExchangeRow(ProofOfLife, {}),
    "delete-child-sas": ExchangeRow(DeleteChildSas, {"_children": _CHILDREN}),
    "farewell": ExchangeRow(Farewell, {"_payloads": _PAYLOADS}),
    "announcement": ExchangeRow(Announcement, {"_payloads": _PAYLOADS}, of_sa=()),
    "ticket-request": ExchangeRow(TicketRequest, {}),
    "unheeded": ExchangeRow(Unheeded, {"type": _value(ExchangeType)}, of_sa=()),
}
"""Every exchange that can be under way on an IKE SA that is kept."""

_NAMES = {row.kind: name for name, row in EXCHANGES.items()}

LEFT_OUT: dict[type[Any], frozenset[str]] = {
    IkeSa: frozenset(
        {
            # Made of what is kept, or written beside the table.
            *("core", "channel", "is_initiator", "tunnel", "suite", "children", "retired"),
            # Of a moment within one step, or before there are keys.
            *("is_asking_usage", "is_asking_sent", "on_silence", "_refusal", "_step", "_step_at"),
            *("auth_puzzle", "eap_serving", "rounds", "redirected_from"),
            # Without it a policy that comes back asks for an authentication more than it need.
            "proved",
            # Of whom has been revoked meanwhile the next authentication tells.
            "certified",
            # After a kill the datapath is asked a little sooner than it need be.
            "seen_idle_at",
            # Bounds what strangers may cost us, and begins anew.
            "_suspect_again_at",
        }
    ),
    Channel: frozenset(
        {
            *("path", "is_initiator", "our_spi", "their_spi", "window", "tunnel", "_core"),
            *("_question", "_protection"),
            # Of a moment within one step, or of a responder that does not know its peer yet.
            *("intermediate_response", "_prefix", "_replaced"),
            # The peer sends again what we have of it in part.
            "_reassembler",
        }
    ),
    Window: frozenset({"_random", "_in_hand"}),
    ChildSa: frozenset(
        {"policy", "tunnel", "in_force", "ids", "_core", "_absent", "is_asking_usage"}
    ),
}
"""Attributes that are not kept, and why."""
