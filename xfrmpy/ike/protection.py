"""The Encrypted payload, whole and in fragments: sealing and opening messages.

Read RFC 7296 section 3.14, RFC 5282 and RFC 7383 section 2.5 first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, TypedDict

from xfrmpy.crypto.cipher import IntegrityFailed, PacketCipher, packet_cipher
from xfrmpy.crypto.key_schedule import IkeKeys
from xfrmpy.ike.errors import Drop, DropReason
from xfrmpy.ike.fragments import split
from xfrmpy.ipsec.proposals import IkeSuite
from xfrmpy.registry import ExchangeType, PayloadType
from xfrmpy.wire.message import (
    FRAGMENT_PREFIX_SIZE,
    Message,
    encode_payloads,
    encrypted_prefix,
)
from xfrmpy.wire.payloads import OpenPayload, PuzzleSolutionPayload

Inner: TypeAlias = tuple[PayloadType, bytes]
"""The type of the first inner payload, and the octets of all."""


class _Head(TypedDict):
    spi_i: bytes
    spi_r: bytes
    exchange: ExchangeType
    is_response: bool
    is_initiator: bool
    message_id: int


class Protection:
    """Both directions of one IKE SA.

    The IV of an AEAD cipher and of AES-CTR is a counter, which may never repeat under a key (RFC
    5282 section 3.1, RFC 5930); a CBC IV is random (RFC 7296 section 3.14). `sealed` is that
    counter. Ciphers are made for a message and not kept: OpenSSL's two take 5 KiB, a quarter of all
    that is kept of an IKE SA, to save a few microseconds each half minute.
    """

    __slots__ = ("_keys", "_random", "_suite", "_we_initiate", "sealed")

    def __init__(
        self,
        suite: IkeSuite,
        keys: IkeKeys,
        *,
        is_initiator: bool,
        random: Callable[[int], bytes],
    ) -> None:
        self._suite = suite
        self._keys = keys
        self._we_initiate = is_initiator
        self._random = random
        self.sealed = 0

    def seal(self, message: Message, payloads: tuple[OpenPayload, ...]) -> bytes:
        """The datagram of `message` with these payloads, protected, in place of its own."""
        outer, inner = _apart(payloads)
        return self._seal(message, encode_payloads(inner), None, outer)

    def seal_in_parts(
        self, message: Message, payloads: tuple[OpenPayload, ...], limit: int
    ) -> tuple[bytes, ...]:
        """The same in fragments, each a datagram of at most `limit` octets (RFC 7383 section 2.5).

        "The cryptographic processing of the Encrypted Fragment payload is identical", so each has
        an IV of its own.
        """
        outer, inner = _apart(payloads)
        first, octets = encode_payloads(inner)
        parts = split(octets, self._room(limit - len(encode_payloads(outer)[1])))
        kinds = [first] + [PayloadType.NO_NEXT_PAYLOAD] * (len(parts) - 1)
        return tuple(
            self._seal(message, (kind, part), (number, len(parts)), outer if number == 1 else ())
            for number, (kind, part) in enumerate(zip(kinds, parts, strict=True), 1)
        )

    def open(self, message: Message, data: bytes) -> Inner:
        """The inside of a received message. Raises `Drop` if it is not authentic."""
        payload = message.sealed
        if payload is None:
            raise Drop(DropReason.NOT_PROTECTED)
        cipher = self._cipher(of_initiator=not self._we_initiate)
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

    def _seal(
        self,
        message: Message,
        inner: Inner,
        fragment: tuple[int, int] | None,
        outer: tuple[OpenPayload, ...] = (),
    ) -> bytes:
        cipher = self._cipher(of_initiator=self._we_initiate)
        first, plaintext = inner
        padding = self._padding(len(plaintext))
        plaintext += bytes(padding) + bytes([padding])
        prefix = encrypted_prefix(
            **_head(message),
            first_inner=first,
            sealed_size=cipher.iv_size + len(plaintext) + cipher.icv_size,
            fragment=fragment,
            outer=outer,
        )
        iv = self._next_iv()
        return prefix + iv + cipher.seal(iv, plaintext, prefix)

    def _cipher(self, *, of_initiator: bool) -> PacketCipher:
        """What protects one end's messages."""
        suite, keys = self._suite, self._keys
        pair = (keys.sk_ei, keys.sk_ai) if of_initiator else (keys.sk_er, keys.sk_ar)
        return packet_cipher(suite.cipher, suite.integrity, *pair)

    def _padding(self, octets: int) -> int:
        return -(octets + 1) % self._suite.cipher.block

    def _room(self, limit: int) -> int:
        """The octets of a message that fit into one of its fragments."""
        cipher = self._suite.cipher
        room = limit - FRAGMENT_PREFIX_SIZE - cipher.iv - self._suite.icv
        return room - room % cipher.block - 1

    def _next_iv(self) -> bytes:
        cipher = self._suite.cipher
        if not cipher.counts_iv:
            return self._random(cipher.iv)
        self.sealed += 1
        return self.sealed.to_bytes(cipher.iv, "big")


def unsealed(message: Message, payloads: tuple[OpenPayload, ...]) -> bytes:
    """What AUTH covers of a message of ours in IKE_INTERMEDIATE (RFC 9242 section 3.3.2).

    That is the message in one piece as it is before encryption: no IV, no padding, no ICV, and
    lengths that do not count them.
    """
    outer, inner = _apart(payloads)
    first, octets = encode_payloads(inner)
    return (
        encrypted_prefix(**_head(message), first_inner=first, sealed_size=len(octets), outer=outer)
        + octets
    )


def _head(message: Message) -> _Head:
    return {
        "spi_i": message.spi_i,
        "spi_r": message.spi_r,
        "exchange": message.exchange,
        "is_response": message.is_response,
        "is_initiator": message.is_initiator,
        "message_id": message.message_id,
    }


def _apart(
    payloads: tuple[OpenPayload, ...],
) -> tuple[tuple[OpenPayload, ...], tuple[OpenPayload, ...]]:
    """What stands in clear, and what is sealed.

    RFC 8019 section 7.2.2: "The PS payload MUST be placed outside the Encrypted payload", and "be
    present only in the first IKE Fragment message".
    """
    outer = tuple(p for p in payloads if isinstance(p, PuzzleSolutionPayload))
    return outer, tuple(p for p in payloads if p not in outer) if outer else payloads
