"""How single values stand in the record of an IKE SA (`snapshot`): each way is a `Codec`.

What refers to another object of the record is read late, when all of them have been made. Whatever
is not as it was written is `Unreadable`, or another error that means the same to the reader.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from xfrmpy.crypto.key_exchange import KeyExchange, resume_key_exchange
from xfrmpy.ike.agreement import Agreement
from xfrmpy.ike.child_sa import Scope
from xfrmpy.ike.collisions import Nonces
from xfrmpy.ike.demand import Demand
from xfrmpy.ike.eap_initiator import EapDialogue
from xfrmpy.ike.followup import Unfinished
from xfrmpy.ike.resumption import Resumed
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.plain import Plain, from_plain, to_plain
from xfrmpy.ipsec.proposals import Proposal
from xfrmpy.registry import KeyExchangeMethod, PayloadType
from xfrmpy.wire.cursor import Cursor
from xfrmpy.wire.message import decode_payloads_untrusted, encode_payloads
from xfrmpy.wire.payloads import IdiPayload, IdrPayload, OpenPayload, SaPayload

if TYPE_CHECKING:
    from xfrmpy.ike.snapshot import Reader, Writer


KNOWN_PROPOSALS = 64
"""Those of policies stand in many records."""

Table: TypeAlias = "Mapping[str, Codec]"


class Unreadable(Exception):
    """A record that this version did not write, or whose like it does not know."""


def check(is_right: bool, sentence: str) -> None:
    if not is_right:
        raise Unreadable(sentence)


def items(plain: Any) -> list[Any]:
    if not isinstance(plain, list):
        raise Unreadable("it should be a list")
    return plain


@dataclass(frozen=True, slots=True)
class Codec:
    """How one attribute is written and read; if `is_late`, it refers to other objects."""

    write: Callable[[Any, Writer], Plain]
    read: Callable[[Any, Reader], Any]
    is_late: bool = False


def split(table: Table) -> tuple[Table, Table]:
    soon = {name: codec for name, codec in table.items() if not codec.is_late}
    return soon, {name: codec for name, codec in table.items() if codec.is_late}


def typed(kind: Any) -> Codec:
    """Whatever `ipsec.plain` can read."""
    return Codec(lambda value, _: to_plain(value), lambda plain, _: from_plain(kind, plain))


def bare(kind: Any) -> Codec:
    """A value that JSON has, or None: written as it is, for these are most of a record."""
    return Codec(lambda value, _: value, lambda plain, _: from_plain(kind, plain))


def collected(make: Callable[[Any], Any], kind: Any) -> Codec:
    """A list, set or the like of such values."""
    return Codec(
        lambda values, _: to_plain(tuple(values)),
        lambda plain, _: make(from_plain(tuple[kind, ...], plain)),
    )


def or_none(codec: Codec) -> Codec:
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


PROPOSALS = Codec(
    lambda proposals, _: write_proposals(proposals), lambda plain, _: read_proposals(plain)
)
PROPOSAL = Codec(
    lambda proposal, _: write_proposals((proposal,)), lambda plain, _: read_proposals(plain)[0]
)


def write_payloads(payloads: tuple[OpenPayload, ...]) -> Plain:
    first, octets = encode_payloads(payloads)
    return [first.value, octets.hex()]


def read_payloads(plain: Any) -> tuple[OpenPayload, ...]:
    first, octets = plain
    return decode_payloads_untrusted(PayloadType(from_plain(int, first)), from_plain(bytes, octets))


PAYLOADS = Codec(
    lambda payloads, _: write_payloads(payloads), lambda plain, _: read_payloads(plain)
)
IDENTITY_PAYLOAD = Codec(
    lambda payload, _: to_plain(payload.identity),
    lambda plain, _: IdiPayload(identity=from_plain(Identity, plain)),
)
RESPONDER_PAYLOAD = Codec(
    lambda payload, _: to_plain(payload.identity),
    lambda plain, _: IdrPayload(identity=from_plain(Identity, plain)),
)


# What refers to others.

CHILD = Codec(
    lambda child, writer: writer.reference(child),
    lambda plain, reader: reader.reference(plain),
    is_late=True,
)
CHILDREN = Codec(
    lambda children, writer: [writer.reference(child) for child in children],
    lambda plain, reader: [reader.reference(one) for one in items(plain)],
    is_late=True,
)
IKE_SA_REFERENCE = Codec(
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
        for name, packet in items(packets)
        if name in policies
    ]
    return Demand(wanted, None if children is None else frozenset(map(str, items(children))))


def _write_key_exchange(key_exchange: KeyExchange, _writer: Writer) -> Plain:
    return [key_exchange.method.value, key_exchange.seed.hex()]


def _read_key_exchange(plain: Any, _reader: Reader) -> KeyExchange:
    method, seed = plain
    return resume_key_exchange(KeyExchangeMethod(method), from_plain(bytes, seed))


KEY_EXCHANGE = or_none(Codec(_write_key_exchange, _read_key_exchange))


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
    check(0 <= number <= len(reader.sa.tunnel.rounds), "the tunnel has no such round any more")
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


AGREEMENT = or_none(Codec(_write_agreement, _read_agreement))


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
        for link, agreement, until, child, our_spi in items(plain)
    ]


DEMAND = Codec(_write_demand, _read_demand, is_late=True)
RESUMED = or_none(Codec(_write_resumed, _read_resumed, is_late=True))
DIALOGUE = or_none(Codec(_write_dialogue, _read_dialogue))
ROUND = Codec(lambda number, _: number, _read_round)
UNFINISHED = Codec(_write_unfinished, _read_unfinished, is_late=True)
