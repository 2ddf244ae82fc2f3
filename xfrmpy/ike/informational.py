"""INFORMATIONAL exchanges: deletion, liveness, and news (RFC 7296 sections 1.4 and 2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from xfrmpy.failures import Failure
from xfrmpy.ike.exchange import first_error
from xfrmpy.ike.refusals import failure_of
from xfrmpy.registry import ExchangeType, NotifyType, ProtocolId
from xfrmpy.wire.payloads import DeletePayload, OpenPayload

if TYPE_CHECKING:
    from xfrmpy.ike.child_sa import ChildSa
    from xfrmpy.ike.ike_sa import IkeSa

ESP_SPI_SIZE = 4

FATAL_ERRORS = frozenset(
    {
        NotifyType.AUTHENTICATION_FAILED,
        NotifyType.INVALID_SYNTAX,
        NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD,
    }
)
"""After these the sender has no IKE SA any more (RFC 7296 sections 2.21.2 and 2.21.3)."""


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
        sa.close(Failure(code="XF2011", summary="the peer deleted the IKE SA"), now)
    else:
        _answer_child_deletes(sa, deletes, now)


def _answer_child_deletes(sa: IkeSa, deletes: list[DeletePayload], now: float) -> None:
    """The peer names its inbound SPIs; we answer with ours of the same pairs (section 1.4.1)."""
    spis = {spi for p in deletes if p.protocol == ProtocolId.ESP for spi in p.spis}
    gone = [c for c in sa.children if c.spi_out.to_bytes(ESP_SPI_SIZE, "big") in spis]
    sa.respond(_deleted(gone))
    for child in gone:
        child.close()
        sa.children.remove(child)
    if gone and not sa.children:
        # A tunnel is its Child SA; an empty IKE SA would pass for one that works.
        sa.terminate(Failure(code="XF2011", summary="the peer deleted the Child SA"), now)


def _deleted(children: list[ChildSa]) -> tuple[OpenPayload, ...]:
    if not children:
        return ()
    spis = tuple(c.spi_in.to_bytes(ESP_SPI_SIZE, "big") for c in children)
    return (DeletePayload(protocol=ProtocolId.ESP, spis=spis),)
