"""The Encrypted payload: sealing and opening messages (RFC 7296 section 3.14, RFC 5282)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from xfrmpy.crypto.cipher import IntegrityFailed, packet_cipher
from xfrmpy.crypto.key_schedule import IkeKeys
from xfrmpy.ike.errors import Drop, DropReason
from xfrmpy.ipsec.proposals import IkeSuite
from xfrmpy.registry import PayloadType
from xfrmpy.wire.message import Message, encode_payloads, encrypted_prefix
from xfrmpy.wire.payloads import EncryptedPayload, OpenPayload

Inner: TypeAlias = tuple[PayloadType, bytes]
"""The type of the first inner payload, and the octets of all."""


class Protection:
    """Both directions of one IKE SA.

    An AEAD cipher's IV is a counter, which may never repeat under a key (RFC 5282 section 3.1); a
    CBC IV is random (RFC 7296 section 3.14).
    """

    def __init__(
        self,
        suite: IkeSuite,
        keys: IkeKeys,
        *,
        is_initiator: bool,
        random: Callable[[int], bytes],
    ) -> None:
        of_initiator = packet_cipher(suite.cipher, suite.integrity, keys.sk_ei, keys.sk_ai)
        of_responder = packet_cipher(suite.cipher, suite.integrity, keys.sk_er, keys.sk_ar)
        ours_first = (of_initiator, of_responder)
        self._ours, self._theirs = ours_first if is_initiator else ours_first[::-1]
        self._random = random
        self._sealed = 0

    def seal(self, message: Message, payloads: tuple[OpenPayload, ...]) -> bytes:
        """The datagram of `message` with these payloads, protected, in place of its own."""
        cipher = self._ours
        first, plaintext = encode_payloads(payloads)
        padding = -(len(plaintext) + 1) % cipher.block
        plaintext += bytes(padding) + bytes([padding])
        prefix = encrypted_prefix(
            spi_i=message.spi_i,
            spi_r=message.spi_r,
            exchange=message.exchange,
            is_response=message.is_response,
            is_initiator=message.is_initiator,
            message_id=message.message_id,
            first_inner=first,
            sealed_size=cipher.iv_size + len(plaintext) + cipher.icv_size,
        )
        iv = self._next_iv()
        return prefix + iv + cipher.seal(iv, plaintext, prefix)

    def open(self, message: Message, data: bytes) -> Inner:
        """The inside of a received message. Raises `Drop` if it is not authentic."""
        payload = message.payloads[-1] if message.payloads else None
        if not isinstance(payload, EncryptedPayload):
            raise Drop(DropReason.NOT_PROTECTED)
        cipher = self._theirs
        prefix = data[: message.sealed_at]
        iv, sealed = payload.sealed[: cipher.iv_size], payload.sealed[cipher.iv_size :]
        try:
            plaintext = cipher.open(iv, sealed, prefix)
        except IntegrityFailed as error:
            raise Drop(DropReason.NOT_AUTHENTIC) from error
        padding = plaintext[-1] + 1 if plaintext else 0
        if not 0 < padding <= len(plaintext):
            raise Drop(DropReason.MALFORMED)
        return payload.first_inner, plaintext[:-padding]

    def _next_iv(self) -> bytes:
        if not self._ours.is_aead:
            return self._random(self._ours.iv_size)
        self._sealed += 1
        return self._sealed.to_bytes(self._ours.iv_size, "big")
