"""What can be wrong with a message, by whose fault it is, and why a datagram is ignored.

`Malformed` (raised by the decoders) and `Drop` cost nothing but the datagram. `PeerMisbehaved` and
`PeerIncompatible` end an exchange with an answer and a `Failure` for our operator.
"""

from __future__ import annotations

from enum import StrEnum

from xfrmpy.failures import Failure
from xfrmpy.registry import NotifyType, PayloadType
from xfrmpy.wire.payloads import NotifyPayload


class DropReason(StrEnum):
    """Why a datagram was ignored; each is a counter."""

    MALFORMED = "malformed"
    NO_MARKER = "no-marker"
    WRONG_VERSION = "wrong-version"
    UNKNOWN_SPI = "unknown-spi"
    WRONG_EXCHANGE = "wrong-exchange"
    NOT_PROTECTED = "not-protected"
    NOT_AUTHENTIC = "not-authentic"
    WRONG_MESSAGE_ID = "wrong-message-id"
    REQUEST_IN_HAND = "request-in-hand"
    UNEXPECTED_RESPONSE = "unexpected-response"
    WRONG_STATE = "wrong-state"
    WRONG_ROLE = "wrong-role"
    FRAGMENTS_NOT_AGREED = "fragments-not-agreed"
    FRAGMENT_REPEATED = "fragment-repeated"
    FRAGMENT_OUTDATED = "fragment-outdated"
    SYNC_REPLAYED = "sync-replayed"
    PEERS_UNKNOWN = "peers-unknown"
    COOKIE_DEMANDED = "cookie-demanded"
    PUZZLE_DEMANDED = "puzzle-demanded"
    PUZZLE_UNSOLVED = "puzzle-unsolved"
    HALF_OPEN_LIMIT = "half-open-limit"
    ADDRESS_LIMIT = "address-limit"
    WORK_LIMIT = "work-limit"
    RATE_LIMIT = "rate-limit"
    WRONG_TOKEN = "wrong-token"
    HINT = "hint"
    DEFECT = "defect"


class Drop(Exception):
    """The datagram is ignored; nothing has changed."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason.value)
        self.reason = reason


class PeerMisbehaved(Exception):
    """An authentic message breaks the protocol; the sentence says how."""


class CriticalPayload(Exception):
    """An unknown payload with the critical bit: the message must be refused (section 2.5)."""

    def __init__(self, kind: PayloadType) -> None:
        super().__init__(f"the critical payload {kind.value} is unknown")
        self.notify = NotifyPayload(
            type=NotifyType.UNSUPPORTED_CRITICAL_PAYLOAD, data=bytes([kind.value])
        )


class PeerIncompatible(Exception):
    """A peer that keeps to the protocol wants what we do not; `notify` is the answer to give."""

    def __init__(self, failure: Failure, notify: NotifyPayload) -> None:
        super().__init__(failure.summary)
        self.failure = failure
        self.notify = notify

    @classmethod
    def of(
        cls,
        code: str,
        summary: str,
        notify: NotifyType,
        *,
        evidence: tuple[tuple[str, str], ...] = (),
        data: bytes = b"",
    ) -> PeerIncompatible:
        return cls(
            Failure(code=code, summary=summary, evidence=evidence),
            NotifyPayload(type=notify, data=data),
        )


class AuthenticationFailed(Exception):
    """The peer is not who it must be. It learns only that; `failure` tells our operator more."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.summary)
        self.failure = failure
