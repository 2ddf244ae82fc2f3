"""An INFORMATIONAL exchange that only tells the peer something (RFC 7296 section 1.4)."""

from __future__ import annotations

from typing import ClassVar

from xfrmpy.registry import ExchangeType
from xfrmpy.wire.payloads import OpenPayload


class Announcement:
    """News for the peer, which acknowledges it."""

    type: ClassVar[ExchangeType] = ExchangeType.INFORMATIONAL

    def __init__(self, payloads: tuple[OpenPayload, ...]) -> None:
        self._payloads = payloads

    def request(self) -> tuple[OpenPayload, ...]:
        return self._payloads

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        """The peer has it."""
