"""Whole IKE messages: the chain of payloads behind the header (RFC 7296 sections 3.1, 3.2, 3.14).

A protected message is two chains: the outer one, whose last payload is an SK (or SKF) with sealed
octets, and the inner one, which the sealed octets hold. This module knows both chains and the
octets that are authenticated but not encrypted; it knows no key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from struct import Struct
from typing import cast

from xfrmpy.registry import ExchangeType, PayloadType
from xfrmpy.wire.cursor import Cursor, Malformed, Members, pack
from xfrmpy.wire.header import HEADER_SIZE, SPI_SIZE, IkeHeader, decode_header_untrusted
from xfrmpy.wire.payloads import (
    DECODERS,
    FRAGMENT_HEADER,
    SEALED_DECODERS,
    EncryptedFragmentPayload,
    OpenPayload,
    Payload,
    SealedPayload,
    UnknownPayload,
)

# Ours. libreswan stops at 40; IKE_AUTH with certificates, MOBIKE addresses and vendor IDs stays
# under 30.
MAX_PAYLOADS = 64

# Ours: the octets that anybody may have us take apart. At up to 0.8 us an octet for the worst that
# can stand in them, that is a few milliseconds. IKE_SA_INIT has about 500 octets; one with an
# 8192-bit public value and certificate requests for 150 authorities stays under 5,000.
MAX_CLEAR_SIZE = 8192

_GENERIC_HEADER = Struct(">BBH")  # next payload, critical bit, length
ENCRYPTED_PREFIX_SIZE = HEADER_SIZE + _GENERIC_HEADER.size
FRAGMENT_PREFIX_SIZE = ENCRYPTED_PREFIX_SIZE + FRAGMENT_HEADER.size
_NEXT_PAYLOAD_AT, _LENGTH_AT = 16, 24  # in the IKE header
_CRITICAL = 0x80
_PAYLOAD_TYPES = Members(PayloadType)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """A message as it travels: in clear, or with its sealed payload still sealed.

    `sealed_at` is set by decoding only: how many octets of the datagram stand before the sealed
    ones. Those octets are the associated data of an AEAD cipher (RFC 5282 section 5.1, RFC 7383
    section 2.5), and the first that an integrity algorithm covers (RFC 7296 section 3.14). It is 0
    for a message in clear.
    """

    spi_i: bytes
    spi_r: bytes
    exchange: ExchangeType
    is_response: bool
    is_initiator: bool
    message_id: int
    payloads: tuple[Payload, ...]
    sealed_at: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        if len(self.spi_i) != SPI_SIZE or len(self.spi_r) != SPI_SIZE:
            raise ValueError("an IKE SPI has 8 octets")
        for payload in self.payloads[:-1]:
            if isinstance(payload, SealedPayload):
                raise ValueError("an encrypted payload must be the last")

    @property
    def sealed(self) -> SealedPayload | None:
        """The SK or SKF payload, or None for a message in clear."""
        return _sealed_payload(self.payloads)


def decode_message_untrusted(data: bytes, header: IkeHeader | None = None) -> Message:
    """The message of one datagram (without its non-ESP marker), whose header may be known already.

    Raises `Malformed`, also for a major version other than 2: see `decode_header_untrusted`.
    """
    header = header or decode_header_untrusted(data)
    if header.major != 2:
        raise Malformed(f"IKE header: version {header.major}.{header.minor}")
    cursor = Cursor(data, header.exchange.name)
    cursor.take(HEADER_SIZE)
    if len(data) > MAX_CLEAR_SIZE and header.next_payload not in SEALED_DECODERS:
        raise cursor.malformed(f"{len(data)} octets in clear, more than {MAX_CLEAR_SIZE}")
    payloads = _decode_chain(cursor, header.next_payload)
    sealed = _sealed_payload(payloads)
    return Message(
        spi_i=header.spi_i,
        spi_r=header.spi_r,
        exchange=header.exchange,
        is_response=header.is_response,
        is_initiator=header.is_initiator,
        message_id=header.message_id,
        payloads=payloads,
        sealed_at=0 if sealed is None else len(data) - len(sealed.sealed),
    )


def encode_message(message: Message) -> bytes:
    """The octets of a message. Raises `ValueError` where something does not fit its field."""
    first, chain = _encode_chain(message.payloads)
    header = IkeHeader(
        spi_i=message.spi_i,
        spi_r=message.spi_r,
        next_payload=first,
        exchange=message.exchange,
        is_response=message.is_response,
        is_initiator=message.is_initiator,
        message_id=message.message_id,
        length=HEADER_SIZE + len(chain),
    )
    return header.encode() + chain


def encrypted_prefix(
    *,
    spi_i: bytes,
    spi_r: bytes,
    exchange: ExchangeType,
    is_response: bool,
    is_initiator: bool,
    message_id: int,
    first_inner: PayloadType,
    sealed_size: int,
    fragment: tuple[int, int] | None = None,
    outer: Sequence[OpenPayload] = (),
) -> bytes:
    """The octets in front of the `sealed_size` octets of a message whose last payload is an SK.

    They are the IKE header, the `outer` payloads in clear, and the SK payload's generic header,
    with final lengths: the associated data to seal with (RFC 5282 section 5.1), to which the sealed
    octets are then appended. With a `fragment`, its number and the total of fragments, the payload
    is an SKF, and both stand behind its generic header (RFC 7383 section 2.5). Raises `ValueError`
    where something does not fit its field.
    """
    if fragment is not None:
        sealed_size += FRAGMENT_HEADER.size
    kind = PayloadType.SK if fragment is None else PayloadType.SKF
    first_outer, chain = _encode_chain(outer, kind)
    header = IkeHeader(
        spi_i=spi_i,
        spi_r=spi_r,
        next_payload=first_outer,
        exchange=exchange,
        is_response=is_response,
        is_initiator=is_initiator,
        message_id=message_id,
        length=ENCRYPTED_PREFIX_SIZE + len(chain) + sealed_size,
    )
    generic = pack(_GENERIC_HEADER, first_inner, 0, _GENERIC_HEADER.size + sealed_size)
    numbers = pack(FRAGMENT_HEADER, *fragment) if fragment else b""
    return header.encode() + chain + generic + numbers


def unfragmented_prefix(message: Message, prefix: bytes, inner_size: int) -> bytes:
    """What `prefix`, the octets before the sealed ones, is to AUTH (RFC 9242 section 3.3.2).

    `message` came whole or is the first of its fragments. An SKF payload counts as the SK payload
    of the whole message, and both lengths do not count IV, padding, Pad Length and ICV: they are as
    if `inner_size` octets, those of the inner payloads, stood there in clear.
    """
    octets = bytearray(prefix)
    if isinstance(message.sealed, EncryptedFragmentPayload):
        del octets[-FRAGMENT_HEADER.size :]
        named_at, start = _NEXT_PAYLOAD_AT, HEADER_SIZE
        while start < len(octets) - _GENERIC_HEADER.size:
            named_at = start
            start += _GENERIC_HEADER.unpack_from(octets, start)[2]
        octets[named_at] = PayloadType.SK
    octets[-2:] = (_GENERIC_HEADER.size + inner_size).to_bytes(2, "big")
    octets[_LENGTH_AT:HEADER_SIZE] = (len(octets) + inner_size).to_bytes(4, "big")
    return bytes(octets)


def decode_payloads_untrusted(first: PayloadType, data: bytes) -> tuple[OpenPayload, ...]:
    """The payloads within an SK payload: `data` is its plaintext without the padding.

    Raises `Malformed`, also for an encrypted payload within an encrypted one (section 3.1).
    """
    payloads = _decode_chain(Cursor(data, "inside SK"), first)
    if _sealed_payload(payloads) is not None:
        raise Malformed("inside SK: another encrypted payload")
    return cast("tuple[OpenPayload, ...]", payloads)


def encode_payloads(payloads: Sequence[OpenPayload]) -> tuple[PayloadType, bytes]:
    """The inverse of `decode_payloads_untrusted`: the type of the first payload, and the octets.

    No payload at all is an empty chain of first type NO_NEXT_PAYLOAD. Raises `ValueError` where
    something does not fit its field.
    """
    return _encode_chain(payloads)


def _decode_chain(cursor: Cursor, first: PayloadType) -> tuple[Payload, ...]:
    payloads: list[Payload] = []
    kind = first
    while kind != PayloadType.NO_NEXT_PAYLOAD:
        if len(payloads) == MAX_PAYLOADS:
            raise cursor.malformed(f"more than {MAX_PAYLOADS} payloads")
        next_number, flags, length = cursor.unpack(_GENERIC_HEADER)
        following = _PAYLOAD_TYPES[next_number]
        with cursor.nested(length - _GENERIC_HEADER.size, kind._name_):  # `name` costs ten times
            if kind in SEALED_DECODERS:
                payloads.append(SEALED_DECODERS[kind](cursor, following))
                break
            payloads.append(_decode_open(cursor, kind, is_critical=bool(flags & _CRITICAL)))
        kind = following
    cursor.expect_end()
    return tuple(payloads)


def _decode_open(cursor: Cursor, kind: PayloadType, *, is_critical: bool) -> OpenPayload:
    """Section 3.2: the critical bit "MUST be ignored by the recipient if the recipient understands
    the payload type code"."""
    decode = DECODERS.get(kind)
    if decode is None:
        return UnknownPayload(type=kind, critical=is_critical, data=cursor.rest())
    return decode(cursor)


def _encode_chain(
    payloads: Sequence[Payload], behind: PayloadType = PayloadType.NO_NEXT_PAYLOAD
) -> tuple[PayloadType, bytes]:
    types = [payload.payload_type for payload in payloads]
    types.append(behind)
    parts: list[bytes] = []
    for payload, following in zip(payloads, types[1:], strict=True):
        if isinstance(payload, SealedPayload):
            following = payload.first_inner  # noqa: PLW2901 (what SK says in its place)
        flags = _CRITICAL if isinstance(payload, UnknownPayload) and payload.critical else 0
        body = payload.encode_body()
        parts += [pack(_GENERIC_HEADER, following, flags, _GENERIC_HEADER.size + len(body)), body]
    return types[0], b"".join(parts)


def _sealed_payload(payloads: Sequence[Payload]) -> SealedPayload | None:
    last = payloads[-1] if payloads else None
    return last if isinstance(last, SealedPayload) else None
