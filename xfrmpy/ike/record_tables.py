"""Which attributes of which objects the record of an IKE SA (`snapshot`) has, each by its codec.

A test sees to it that every attribute stands in a table, or in `LEFT_OUT` with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from xfrmpy.crypto.key_schedule import IkeKeys
from xfrmpy.ike.announcement import Announcement
from xfrmpy.ike.auth import IkeAuth
from xfrmpy.ike.channel import Channel
from xfrmpy.ike.child_sa import ChildSa, Scope
from xfrmpy.ike.collisions import Nonces
from xfrmpy.ike.crash import TheirTokens
from xfrmpy.ike.create_child_sa import CreateChildSa
from xfrmpy.ike.credentials import Heard
from xfrmpy.ike.exchange import Exchange
from xfrmpy.ike.first_contact import ProofOfLife
from xfrmpy.ike.followup import FollowupKe
from xfrmpy.ike.ike_sa import IkeSa
from xfrmpy.ike.informational import DeleteChildSas, Farewell, LivenessCheck
from xfrmpy.ike.intermediate import IkeIntermediate
from xfrmpy.ike.nat import NatSituation
from xfrmpy.ike.record_codecs import (
    AGREEMENT,
    CHILD,
    CHILDREN,
    DEMAND,
    DIALOGUE,
    IDENTITY_PAYLOAD,
    IKE_SA_REFERENCE,
    KEY_EXCHANGE,
    PAYLOADS,
    PROPOSAL,
    PROPOSALS,
    RESPONDER_PAYLOAD,
    RESUMED,
    ROUND,
    UNFINISHED,
    Codec,
    Table,
    bare,
    collected,
    items,
    or_none,
    read_payloads,
    typed,
    write_payloads,
)
from xfrmpy.ike.rekey_ike_sa import RekeyIkeSa
from xfrmpy.ike.resumption import HeldTicket, TicketRequest
from xfrmpy.ike.states import ChildSaState, IkeSaState
from xfrmpy.ike.transcript import Transcript
from xfrmpy.ike.window import Outstanding, Sent, Window
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.plain import Plain, from_plain, to_plain
from xfrmpy.ipsec.sad import Direction, SadEntry
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.policy.model import Retransmission
from xfrmpy.registry import ExchangeType, KeyExchangeMethod
from xfrmpy.wire.message import Message
from xfrmpy.wire.payloads import OpenPayload

if TYPE_CHECKING:
    from xfrmpy.ike.snapshot import Reader, Writer


def _write_sent(sent: Sent) -> dict[str, Plain]:
    payloads = cast("tuple[OpenPayload, ...]", sent.message.payloads)
    return {
        "type": sent.message.exchange.value,
        "message_id": sent.message.message_id,
        "inside": write_payloads(payloads) if payloads else None,
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
        payloads=() if inside is None else read_payloads(inside),
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
    for each in items(plain):
        sent = _read_sent(each, reader, is_response=False)
        requests[sent.message.message_id] = Outstanding(
            message_id=sent.message.message_id,
            exchange=_read_exchange(each["exchange"], reader),
            sent=sent,
            due_at=from_plain(float, each["due_at"]),
        )
    return requests


def write_answers(answers: dict[int, Sent]) -> Plain:
    return [_write_sent(sent) for sent in answers.values()]


def _read_answers(plain: Any, reader: Reader) -> dict[int, Sent]:
    found = (_read_sent(each, reader, is_response=True) for each in items(plain))
    return {sent.message.message_id: sent for sent in found}


def _read_waiting(plain: Any, reader: Reader) -> Any:
    return [_read_exchange(one, reader) for one in items(plain)]


_MOMENT = bare(float | None)
_FLAG = bare(bool)
_TIME = bare(float)
_NUMBER = bare(int)
_OCTETS = Codec(lambda value, _: value.hex(), lambda plain, _: from_plain(bytes, plain))

IKE_SA: Table = {
    "is_client": _FLAG,
    "state": typed(IkeSaState),
    "nat": typed(NatSituation),
    "proposal": or_none(PROPOSAL),
    "keys": typed(IkeKeys | None),
    "remote_id": typed(Identity | None),
    "local_id": typed(Identity | None),
    "nonces": typed(Nonces),
    "transcript": typed(Transcript),
    "heard": typed(Heard),
    "their_tokens": or_none(
        Codec(
            lambda theirs, _: to_plain(theirs.tokens),
            lambda plain, _: TheirTokens(tokens=from_plain(tuple[bytes, ...], plain)),
        )
    ),
    "ticket": typed(HeldTicket | None),
    "resumed": RESUMED,
    "peer_follows": _FLAG,
    "peer_takes_childless": _FLAG,
    "ppk_exchange": typed(ExchangeType | None),
    "ppk_id": bare(str),
    "childless_until": _MOMENT,
    "ticket_at": _MOMENT,
    "replaces": IKE_SA_REFERENCE,
    "heir": IKE_SA_REFERENCE,
    "unfinished": UNFINISHED,
    "demand": DEMAND,
    "refused_scopes": collected(frozenset, Scope),
    "postponed": typed(tuple[str, ...]),
    "filled": typed(tuple[str, ...]),
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
    "schedule": typed(Retransmission),
    "outstanding": Codec(_write_outstanding, _read_outstanding),
    "waiting": Codec(
        lambda waiting, writer: [_write_exchange(one, writer) for one in waiting], _read_waiting
    ),
    "_their_size": _NUMBER,
    "_next_id": _NUMBER,
    "_our_size": _NUMBER,
    "_expected_id": _NUMBER,
    "_highest_id": _NUMBER,
    "_answers": Codec(lambda answers, _: write_answers(answers), _read_answers),
}

COUNTED = {
    name: WINDOW[name]
    for name in ("outstanding", "waiting", "_next_id", "_expected_id", "_highest_id")
}
"""What of a window a message changes that says nothing, beside its answers."""

CHILD_SA: Table = {
    "state": typed(ChildSaState),
    "spi_in": _NUMBER,
    "proposal": or_none(PROPOSAL),
    "local": typed(tuple[TrafficSelector, ...]),
    "remote": typed(tuple[TrafficSelector, ...]),
    "reqid": _NUMBER,
    "peer_address": typed(IpAddress | None),
    "peer_cpi": bare(int | None),
    "peer_takes_fragments": _FLAG,
    "peer_takes_tfc": _FLAG,
    "is_per_resource": _FLAG,
    "nonces": typed(Nonces),
    "is_initiator": _FLAG,
    "replaces": or_none(CHILD),
    "heir": or_none(CHILD),
    "entries": typed(tuple[SadEntry, ...]),
    "directions": collected(tuple, Direction),
    "failure": bare(str),
    "established_at": _TIME,
    "rekey_at": _MOMENT,
    "wait_until": _MOMENT,
    "is_told": _FLAG,
    "is_lost": _FLAG,
    "outdated_at": _MOMENT,
    "gone_spis": collected(frozenset, bytes),
    "last_received_at": _TIME,
    "last_sent_at": _TIME,
    "last_used_at": _TIME,
    "claimed_as": bare(int | None),
    "_packet": typed(Scope),
    "_proposals": PROPOSALS,
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
            "_solution": PAYLOADS,
            "_number": ROUND,
            "_remote": typed(Identity | None),
            "_idr": or_none(RESPONDER_PAYLOAD),
            "_identity": IDENTITY_PAYLOAD,
            "_eap": DIALOGUE,
            "_child": or_none(CHILD),
        },
        of_sa=("_sa", "_tunnel"),
    ),
    "ike-intermediate": ExchangeRow(
        IkeIntermediate,
        {"_solution": PAYLOADS, "_key_exchange": KEY_EXCHANGE, "_ppks": PAYLOADS},
        of_sa=("_sa", "_tunnel"),
    ),
    "create-child-sa": ExchangeRow(
        CreateChildSa,
        {
            "_replaces": or_none(CHILD),
            "_demanded": typed(KeyExchangeMethod | None),
            "_nonce": _OCTETS,
            "_scope": typed(Scope | None),
            "_packet": typed(Scope | None),
            "_is_further": _FLAG,
            "_child": CHILD,
            "_key_exchange": KEY_EXCHANGE,
            "agreement": AGREEMENT,
        },
    ),
    "rekey-ike-sa": ExchangeRow(
        RekeyIkeSa,
        {
            "_demanded": typed(KeyExchangeMethod | None),
            "_spi": _OCTETS,
            "_nonce": _OCTETS,
            "_offered": PROPOSALS,
            "_key_exchange": KEY_EXCHANGE,
            "agreement": AGREEMENT,
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
            "_key_exchange": KEY_EXCHANGE,
        },
    ),
    "liveness-check": ExchangeRow(LivenessCheck, {}),
    "proof-of-life": ExchangeRow(ProofOfLife, {}),
    "delete-child-sas": ExchangeRow(DeleteChildSas, {"_children": CHILDREN}),
    "farewell": ExchangeRow(Farewell, {"_payloads": PAYLOADS}),
    "announcement": ExchangeRow(Announcement, {"_payloads": PAYLOADS}, of_sa=()),
    "ticket-request": ExchangeRow(TicketRequest, {}),
    "unheeded": ExchangeRow(Unheeded, {"type": typed(ExchangeType)}, of_sa=()),
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
