"""Message IDs after a failover: answering a cluster of which our peer is a member (RFC 6311).

Read RFC 6311 sections 5 and 9 first. The member that takes over may not know the last Message IDs;
it asks, with Message ID zero, and both ends go on with the higher numbers. Only `window` knows
these. We are no cluster, so we never ask. Replay counters are not synchronized: no datapath of
ours can be told to skip sequence numbers, so we do not announce that we could, and pass over what
asks for it all the same: beside Message IDs, or alone, where it is acknowledged like any news.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Self

from xfrmpy.ike.errors import PeerMisbehaved
from xfrmpy.ike.exchange import notifications
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.message import Message
from xfrmpy.wire.payloads import EncryptedPayload, NotifyPayload, OpenPayload

SYNC_SUPPORTED = NotifyPayload(type=NotifyType.IKEV2_MESSAGE_ID_SYNC_SUPPORTED)
"""RFC 6311 section 6.1."""

SYNC_MESSAGE_ID = 0
"""RFC 6311 section 5.1: "The request and the response MUST both be sent with a Message ID value of
zero"."""

_LAYOUT = Struct(">4sII")


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageIdSync:
    """IKEV2_MESSAGE_ID_SYNC (section 6.3): what its sender will send next, and expects next."""

    nonce: bytes
    next_sent: int
    next_expected: int

    def encode(self) -> NotifyPayload:
        data = _LAYOUT.pack(self.nonce, self.next_sent, self.next_expected)
        return NotifyPayload(type=NotifyType.IKEV2_MESSAGE_ID_SYNC, data=data)

    @classmethod
    def decode(cls, notify: NotifyPayload) -> Self:
        if len(notify.data) != _LAYOUT.size:
            raise PeerMisbehaved("IKEV2_MESSAGE_ID_SYNC has 12 octets")
        nonce, next_sent, next_expected = _LAYOUT.unpack(notify.data)
        return cls(nonce=nonce, next_sent=next_sent, next_expected=next_expected)


def supports_sync(payloads: tuple[OpenPayload, ...]) -> bool:
    """Whether the peer says in IKE_AUTH that it may ask, or answer."""
    return bool(notifications(payloads, NotifyType.IKEV2_MESSAGE_ID_SYNC_SUPPORTED))


def is_sync_candidate(message: Message) -> bool:
    """Whether it is worth looking inside: zero is the number of a responder's first request too.

    Synchronization "MUST NOT be sent fragmented" (RFC 7383 section 3).
    """
    return (
        message.message_id == SYNC_MESSAGE_ID
        and message.exchange is ExchangeType.INFORMATIONAL
        and not message.is_response
        and isinstance(message.sealed, EncryptedPayload)
    )


def find_sync(payloads: tuple[OpenPayload, ...]) -> MessageIdSync | None:
    """What a member of a cluster asks, if it does.

    Raises `PeerMisbehaved` for anything beside it: the request "MUST NOT contain any additional
    payloads, other than an optional IPSEC_REPLAY_COUNTER_SYNC notification" (section 5.1).
    """
    found = notifications(payloads, NotifyType.IKEV2_MESSAGE_ID_SYNC)
    if not found:
        return None
    counters = notifications(payloads, NotifyType.IPSEC_REPLAY_COUNTER_SYNC)
    if len(found) > 1 or len(counters) > 1 or len(found) + len(counters) != len(payloads):
        raise PeerMisbehaved("IKEV2_MESSAGE_ID_SYNC does not stand alone")
    return MessageIdSync.decode(found[0])
