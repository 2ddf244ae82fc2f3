"""The shape of an exchange that we have begun: what it asks, and what its answer changes."""

from __future__ import annotations

from typing import ClassVar, Protocol, TypeVar, cast

from xfrmpy.ike.errors import CriticalPayload, PeerMisbehaved
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.message import Message
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload, Payload, UnknownPayload

P = TypeVar("P")

FIRST_EXCHANGES = frozenset({ExchangeType.IKE_SA_INIT, ExchangeType.IKE_SESSION_RESUME})
"""What an IKE SA may begin with: in clear, with Message ID 0 and no SPI of the responder."""


class Exchange(Protocol):
    """An outstanding exchange: an object that holds only what its response needs."""

    type: ClassVar[ExchangeType]

    def request(self) -> tuple[OpenPayload, ...]:
        """The payloads to send."""

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        """Take the peer's answer, already authenticated where the exchange is protected."""


def payloads_in_clear(message: Message) -> tuple[OpenPayload, ...]:
    """What a first exchange says. Raises `PeerMisbehaved` if a part is sealed, by no key yet."""
    if message.sealed is not None:
        raise PeerMisbehaved(f"{message.exchange.name} with an encrypted payload")
    return cast("tuple[OpenPayload, ...]", message.payloads)


def check_critical(payloads: tuple[Payload, ...]) -> None:
    """Raises `CriticalPayload` if there is one that we must not pass over."""
    for payload in payloads:
        if isinstance(payload, UnknownPayload) and payload.critical:
            raise CriticalPayload(payload.type)


def only(payloads: tuple[OpenPayload, ...], kind: type[P]) -> P:
    """The one payload of a kind. Raises `PeerMisbehaved` if there is none, or more than one."""
    found = optional(payloads, kind)
    if found is None:
        raise PeerMisbehaved(f"{kind.__name__} is missing")
    return found


def optional(payloads: tuple[OpenPayload, ...], kind: type[P]) -> P | None:
    """The one payload of a kind, or None. Raises `PeerMisbehaved` if there is more than one."""
    found = [p for p in payloads if isinstance(p, kind)]
    if len(found) > 1:
        raise PeerMisbehaved(f"{kind.__name__} is there {len(found)} times")
    return found[0] if found else None


def notifications(payloads: tuple[OpenPayload, ...], kind: NotifyType) -> tuple[NotifyPayload, ...]:
    """Every notification of a type."""
    return tuple([p for p in payloads if isinstance(p, NotifyPayload) and p.type == kind])


def first_error(payloads: tuple[OpenPayload, ...]) -> NotifyPayload | None:
    """The first notification that reports an error (RFC 7296 section 3.10.1)."""
    return next((p for p in payloads if isinstance(p, NotifyPayload) and p.type.is_error), None)
