"""The IKE header (RFC 7296 section 3.1): 28 octets in front of every message.

Decoded on its own, because the header alone decides where a message goes, and whether it is of a
version that we can read at all (RFC 7296 section 2.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from xfrmpy.registry import ExchangeType, PayloadType
from xfrmpy.wire.cursor import Cursor, Members, pack

HEADER_SIZE = 28
SPI_SIZE = 8

_LAYOUT = Struct(">8s8sBBBBII")
_EXCHANGES = Members(ExchangeType)
_PAYLOAD_TYPES = Members(PayloadType)
_FLAG_INITIATOR = 0x08
_FLAG_RESPONSE = 0x20


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeHeader:
    """`length` is that of the whole message, header included, in octets.

    `is_initiator` is about the IKE SA: its sender is the one who began the IKE SA.
    """

    spi_i: bytes
    spi_r: bytes
    next_payload: PayloadType
    exchange: ExchangeType
    is_response: bool
    is_initiator: bool
    message_id: int
    length: int
    major: int = 2
    minor: int = 0

    def encode(self) -> bytes:
        """The 28 octets. Raises `ValueError` where a field does not fit its place."""
        if len(self.spi_i) != SPI_SIZE or len(self.spi_r) != SPI_SIZE:
            raise ValueError("an IKE SPI has 8 octets")
        flags = (_FLAG_RESPONSE if self.is_response else 0) | (
            _FLAG_INITIATOR if self.is_initiator else 0
        )
        return pack(
            _LAYOUT,
            self.spi_i,
            self.spi_r,
            self.next_payload,
            self.major << 4 | self.minor,
            self.exchange,
            flags,
            self.message_id,
            self.length,
        )


def decode_header_untrusted(data: bytes) -> IkeHeader:
    """The header of one datagram's IKE message.

    Any major version is let through, for the caller to answer; the version flag and the reserved
    flags are ignored, as section 3.1 has it. Raises `Malformed` if the datagram is not as long as
    its header says.
    """
    cursor = Cursor(data, "IKE header")
    spi_i, spi_r, next_payload, version, exchange, flags, message_id, length = cursor.unpack(
        _LAYOUT
    )
    if length != len(data):
        raise cursor.malformed(f"length {length} in a datagram of {len(data)} octets")
    return IkeHeader(
        spi_i=spi_i,
        spi_r=spi_r,
        next_payload=_PAYLOAD_TYPES[next_payload],
        exchange=_EXCHANGES[exchange],
        is_response=bool(flags & _FLAG_RESPONSE),
        is_initiator=bool(flags & _FLAG_INITIATOR),
        message_id=message_id,
        length=length,
        major=version >> 4,
        minor=version & 0x0F,
    )
