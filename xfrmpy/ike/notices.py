"""Notifications outside of any IKE SA: what we tell strangers, and what we make of it when told.

Read RFC 7296 sections 1.5, 2.5 and 2.21.4 first. Anybody can send what is answered here, with any
address on it, so an answer is rare, never answers a response, and is not larger than what it
answers. And anybody can send what is believed here: it is a hint, which asks a question of the peer
over the IKE SA, and changes nothing. Who can prove that he lost an IKE SA shows more than a hint:
see `crash`.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from xfrmpy.ike.budget import Budget
from xfrmpy.ike.core import Core
from xfrmpy.ike.crash import shows_token
from xfrmpy.ike.exchange import FIRST_EXCHANGES, notifications, payloads_in_clear
from xfrmpy.ike.ike_sa import IkeSa
from xfrmpy.ipsec.addresses import Path
from xfrmpy.ipsec.sad import SaId
from xfrmpy.registry import ExchangeType, NotifyType, ProtocolId
from xfrmpy.wire.header import IkeHeader
from xfrmpy.wire.message import Message, encode_message
from xfrmpy.wire.payloads import NotifyPayload

NOTICES_PER_SECOND, MOST_NOTICES = 10.0, 20.0
"""Answers to one address, and as many hints are looked at from all the world together. A peer
retransmits less often."""

ANSWERS_PER_SECOND, MOST_ANSWERS = 100.0, 200.0
"""To all the world together."""

ROOMS = 64
"""In which the addresses that we answer are counted: the memory that a flood can take."""

PROOF_EXCESS = 3
"""Octets by which an answer with a token may be larger than what it answers. The smallest request
of a peer, sealed with AES-GCM and empty, has 57, the smallest such answer 60 (RFC 6290 sections 4.1
and 5): a forged source address gains next to nothing."""

_ESP_SPI_SIZE = 4


class Notices:
    """Answers to requests that belong to no IKE SA, and hints that do not look like one's."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._salt = b""
        self._rooms = [_budget() for _ in range(ROOMS)]
        self._answers = Budget(per_second=ANSWERS_PER_SECOND, most=MOST_ANSWERS)
        self._hints = _budget()

    def answer(
        self, request: IkeHeader, kind: NotifyType, path: Path, now: float, *proof: NotifyPayload
    ) -> bytes | None:
        """The datagram that tells the sender of a request; None if it is not to be told.

        It has the SPIs, the Message ID and the exchange type of the request (section 1.5).
        Nobody is told often, nor whose address shares a room with one that was.
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
                payloads=(NotifyPayload(type=kind), *proof),
            )
        )
        largest = request.length + (PROOF_EXCESS if proof else 0)
        if len(answer) > largest or not self._room(path).spend(1, now):
            return None
        return answer if self._answers.spend(1, now) else None

    def _room(self, path: Path) -> Budget:
        self._salt = self._salt or self._random(16)
        digest = hmac.digest(self._salt, path.remote.address.packed, "sha256")
        return self._rooms[digest[0] % ROOMS]

    def suspects(self, core: Core, message: Message, path: Path, now: float) -> tuple[IkeSa, ...]:
        """The IKE SAs about whose Child SAs an INVALID_SPI in clear speaks: our outbound SPIs.

        Its IKE SPIs mean nothing, and it must not be answered (section 1.5).
        """
        if message.exchange is not ExchangeType.INFORMATIONAL or message.is_response:
            return ()
        spis = _invalid_spis(message)
        if not spis or not self._hints.spend(1, now):
            return ()
        remote = path.remote.address
        named = [
            SaId(spi=spi, protocol=protocol, destination=remote)
            for spi in spis
            for protocol in (ProtocolId.ESP, ProtocolId.AH)
        ]
        found = (
            sa
            for child in (core.holders[sa_id] for sa_id in named if sa_id in core.holders)
            for sa in core.ike_sas_of(child.tunnel.name)
            if child in sa.children and not shows_token(sa, message)
        )
        return tuple(dict.fromkeys(found))


def may_be_lost(core: Core, message: Message) -> bool:
    """Whether a message is sealed by an IKE SA that can only have been ours once, if ever.

    Whoever claims the other role asks by our SPI in the peer's place, so neither may be one of
    ours: RFC 6290 section 9.2 forbids to show the token of "an existing IKE SA".
    """
    if message.sealed is None or message.exchange in FIRST_EXCHANGES or not any(message.spi_i):
        return False
    return message.spi_i not in core.ike_sas and message.spi_r not in core.ike_sas


def is_hint_for(sa: IkeSa, message: Message, path: Path) -> bool:
    """Whether the peer's address says in clear that it does not know an IKE SA (section 2.21.4)."""
    return (
        message.is_response
        and message.sealed is None
        and sa.channel.is_protected
        and path.remote.address == sa.path.remote.address
        and bool(notifications(payloads_in_clear(message), NotifyType.INVALID_IKE_SPI))
        and not shows_token(sa, message)
    )


def _budget() -> Budget:
    return Budget(per_second=NOTICES_PER_SECOND, most=MOST_NOTICES)


def _invalid_spis(message: Message) -> set[int]:
    if message.sealed is not None:
        return set()
    notifies = notifications(payloads_in_clear(message), NotifyType.INVALID_SPI)
    return {int.from_bytes(n.data, "big") for n in notifies if len(n.data) == _ESP_SPI_SIZE}
