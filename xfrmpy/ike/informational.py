"""INFORMATIONAL exchanges: deletion, liveness, and news (RFC 7296 sections 1.4 and 2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from xfrmpy.ike.child_sa import SPI_SIZE, ChildSa
from xfrmpy.ike.create_child_sa import take_back, take_over
from xfrmpy.ike.exchange import first_error
from xfrmpy.ike.extensions import take_notifications
from xfrmpy.ike.refusals import failure_of
from xfrmpy.ike.states import ChildSaState
from xfrmpy.ike.succession import deleted_by_peer, end_if_childless, remove_child
from xfrmpy.registry import ExchangeType, NotifyType, ProtocolId
from xfrmpy.wire.payloads import DeletePayload, OpenPayload

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

FATAL_ERRORS = frozenset(
    {
        NotifyType.AUTHENTICATION_FAILED,
        NotifyType.INVALID_SYNTAX,
        NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD,
    }
)
"""After these the sender has no IKE SA any more (RFC 7296 sections 2.21.2 and 2.21.3)."""

_PACKET_PROTOCOLS = (ProtocolId.ESP, ProtocolId.AH)


class LivenessCheck:
    """An empty request; any answer will do (RFC 7296 section 2.4)."""

    type: ClassVar[ExchangeType] = ExchangeType.INFORMATIONAL

    def __init__(self, sa: IkeSa) -> None:
        self._sa = sa

    def request(self) -> tuple[OpenPayload, ...]:
        return ()

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        """The peer lives: the IKE SA has noted that it was heard."""
        error = first_error(payloads)
        if error is not None and error.type in FATAL_ERRORS:
            self._sa.close(failure_of(error), now)


class DeleteChildSas:
    """A Delete of every Child SA that is to be deleted and of which the peer was not told yet."""

    type: ClassVar[ExchangeType] = ExchangeType.INFORMATIONAL

    def __init__(self, sa: IkeSa) -> None:
        self._sa = sa
        deleting = (c for c in sa.children if c.state is ChildSaState.DELETING)
        self._children = [child for child in deleting if not child.is_told]
        for child in self._children:
            child.is_told = True

    def request(self) -> tuple[OpenPayload, ...]:
        return _deleted(self._children)

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        """The peer has closed its halves; that it names them is of no use to us."""
        error = first_error(payloads)
        if error is not None and error.type in FATAL_ERRORS:
            self._sa.close(failure_of(error), now)
            return
        for child in self._children:
            if child in self._sa.children:
                take_over(self._sa, child, now)
                remove_child(self._sa, child, now)
        end_if_childless(self._sa, now)


class Farewell:
    """The last request on an IKE SA: a Delete of it, or the reason why there is none to delete."""

    type: ClassVar[ExchangeType] = ExchangeType.INFORMATIONAL

    def __init__(self, sa: IkeSa, payloads: tuple[OpenPayload, ...]) -> None:
        self._sa = sa
        self._payloads = payloads or (DeletePayload(protocol=ProtocolId.IKE),)

    def request(self) -> tuple[OpenPayload, ...]:
        return self._payloads

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:  # noqa: ARG002
        self._sa.close(None, now)


def answer_informational(sa: IkeSa, payloads: tuple[OpenPayload, ...], now: float) -> None:
    """Do what the peer tells, and answer; an empty answer says that we live."""
    deletes = [p for p in payloads if isinstance(p, DeletePayload)]
    error = first_error(payloads)
    if error is not None and error.type in FATAL_ERRORS:
        sa.respond(())
        sa.close(failure_of(error), now)
    elif any(p.protocol == ProtocolId.IKE for p in deletes):
        sa.respond(())
        deleted_by_peer(sa, now)
    else:
        _answer_child_deletes(sa, deletes, take_notifications(sa, payloads, now), now)


def _answer_child_deletes(
    sa: IkeSa, deletes: list[DeletePayload], news: tuple[OpenPayload, ...], now: float
) -> None:
    """The peer names its inbound SPIs; we answer with ours of the same pairs (section 1.4.1)."""
    spis = {
        protocol: {spi for p in deletes if p.protocol == protocol for spi in p.spis}
        for protocol in _PACKET_PROTOCOLS
    }
    there = [child for child in sa.children if child.entries and not child.is_gone]
    named = [c for c in there if c.spi_out.to_bytes(SPI_SIZE, "big") in spis[c.protocol]]
    for child in sa.children:
        if child.state is ChildSaState.CREATING:
            child.gone_spis |= spis[child.protocol]
    # Of what we are deleting too, "the responses MUST NOT include Delete payloads": each end
    # closes its outbound SA now, and its inbound one when its own request is answered.
    crossing = [child for child in named if child.state is ChildSaState.DELETING]
    gone = [child for child in named if child.state is not ChildSaState.DELETING]
    for child in named:
        take_over(sa, child, now)
    for child in gone:
        take_back(child)
    sa.respond((*_deleted(gone), *news))
    for child in crossing:
        child.stop_sending()
    for child in gone:
        remove_child(sa, child, now)
    if named:
        end_if_childless(sa, now)


def _deleted(children: list[ChildSa]) -> tuple[OpenPayload, ...]:
    """RFC 7296 section 3.11: "Mixing of protocol identifiers MUST NOT be performed in the Delete
    payload"."""
    return tuple(
        DeletePayload(protocol=protocol, spis=spis)
        for protocol in _PACKET_PROTOCOLS
        if (spis := tuple(_spi(c) for c in children if c.protocol is protocol))
    )


def _spi(child: ChildSa) -> bytes:
    return child.spi_in.to_bytes(SPI_SIZE, "big")
