"""Notifications outside of any IKE SA: what we tell strangers, and what we make of it when told.

Read RFC 7296 sections 1.5, 2.5 and 2.21.4 first. Anybody can send what is answered here, with any
address on it, so an answer is rare, never answers a response, and is never larger than what it
answers. And anybody can send what is believed here: it is a hint, which asks a question of the peer
over the IKE SA, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

from xfrmpy.ike.budget import Budget
from xfrmpy.ike.exchange import notifications, payloads_in_clear
from xfrmpy.ike.ike_sa import IkeSa
from xfrmpy.ipsec.addresses import Path
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.header import IkeHeader
from xfrmpy.wire.message import Message, encode_message
from xfrmpy.wire.payloads import NotifyPayload

NOTICES_PER_SECOND, MOST_NOTICES = 10.0, 20.0
"""Answers to all the world together, and as many hints are looked at. For ICMP, Linux allows 1,000
a second in all, but one a second to each destination."""

_ESP_SPI_SIZE = 4


class Notices:
    """Answers to requests that belong to no IKE SA, and hints that do not look like one's."""

    def __init__(self) -> None:
        self._answers = Budget(per_second=NOTICES_PER_SECOND, most=MOST_NOTICES)
        self._hints = Budget(per_second=NOTICES_PER_SECOND, most=MOST_NOTICES)

    def answer(self, request: IkeHeader, kind: NotifyType, now: float) -> bytes | None:
        """The datagram that tells the sender of a request; None if it is not to be told.

        It has the SPIs, the Message ID and the exchange type of the request (section 1.5).
        """
        if request.is_response:
            return None
        answer = encode_message(
            Message(
                spi_i=request.spi_i,
                spi_r=request.spi_r,
                exchange=request.exchange,
                is_response=True,
                is_initiator=not request.is_initiator,
                message_id=request.message_id,
                payloads=(NotifyPayload(type=kind),),
            )
        )
        if len(answer) > request.length or not self._answers.spend(1, now):
            return None
        return answer

    def suspects(
        self, message: Message, path: Path, ike_sas: Iterable[IkeSa], now: float
    ) -> tuple[IkeSa, ...]:
        """The IKE SAs about whose Child SAs an INVALID_SPI in clear speaks: our outbound SPIs.

        Its IKE SPIs mean nothing, and it must not be answered (section 1.5).
        """
        if message.exchange is not ExchangeType.INFORMATIONAL or message.is_response:
            return ()
        spis = _invalid_spis(message)
        if not spis or not self._hints.spend(1, now):
            return ()
        return tuple(
            sa
            for sa in ike_sas
            if sa.path.remote.address == path.remote.address
            and any(child.spi_out in spis for child in sa.children)
        )


def is_hint_for(sa: IkeSa, message: Message, path: Path) -> bool:
    """Whether the peer's address says in clear that it does not know an IKE SA (section 2.21.4)."""
    return (
        message.is_response
        and message.sealed is None
        and sa.channel.is_protected
        and path.remote.address == sa.path.remote.address
        and bool(notifications(payloads_in_clear(message), NotifyType.INVALID_IKE_SPI))
    )


def _invalid_spis(message: Message) -> set[int]:
    if message.sealed is not None:
        return set()
    notifies = notifications(payloads_in_clear(message), NotifyType.INVALID_SPI)
    return {int.from_bytes(n.data, "big") for n in notifies if len(n.data) == _ESP_SPI_SIZE}
