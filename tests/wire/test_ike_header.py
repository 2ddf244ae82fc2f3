from __future__ import annotations

from dataclasses import replace

import pytest

from xfrmpy.registry import ExchangeType, PayloadType
from xfrmpy.wire.cursor import Malformed
from xfrmpy.wire.header import HEADER_SIZE, IkeHeader, decode_header_untrusted

# RFC 7296 section 3.1, figure 4, field by field.
OCTETS = bytes.fromhex(
    "0102030405060708"  # initiator's SPI
    "1112131415161718"  # responder's SPI
    "2e"  # next payload: SK
    "20"  # version 2.0
    "25"  # INFORMATIONAL
    "08"  # flags: initiator
    "00000007"  # message ID
    "0000001c"  # length
)
HEADER = IkeHeader(
    spi_i=bytes.fromhex("0102030405060708"),
    spi_r=bytes.fromhex("1112131415161718"),
    next_payload=PayloadType.SK,
    exchange=ExchangeType.INFORMATIONAL,
    is_response=False,
    is_initiator=True,
    message_id=7,
    length=28,
)


def changed(at: int, value: int) -> bytes:
    return OCTETS[:at] + bytes([value]) + OCTETS[at + 1 :]


def test_the_header_is_laid_out_as_in_the_rfc() -> None:
    assert decode_header_untrusted(OCTETS) == HEADER
    assert HEADER.encode() == OCTETS
    assert len(OCTETS) == HEADER_SIZE


@pytest.mark.parametrize("size", range(HEADER_SIZE))
def test_a_truncated_header_is_malformed(size: int) -> None:
    with pytest.raises(Malformed):
        decode_header_untrusted(OCTETS[:size])


@pytest.mark.parametrize("length", [0, 27, 29, 255])
def test_a_length_that_is_not_that_of_the_datagram_is_malformed(length: int) -> None:
    with pytest.raises(Malformed, match=f"length {length} in a datagram of 28 octets"):
        decode_header_untrusted(changed(27, length))


def test_the_response_flag_is_the_sixth_bit() -> None:
    assert decode_header_untrusted(changed(19, 0x20)) == replace(
        HEADER, is_response=True, is_initiator=False
    )


def test_the_version_flag_and_reserved_flags_are_ignored() -> None:
    assert decode_header_untrusted(changed(19, 0x08 | 0xD7)) == HEADER


@pytest.mark.parametrize(("octet", "version"), [(0x10, (1, 0)), (0x3F, (3, 15)), (0x21, (2, 1))])
def test_any_version_is_let_through(octet: int, version: tuple[int, int]) -> None:
    header = decode_header_untrusted(changed(17, octet))
    assert (header.major, header.minor) == version


@pytest.mark.parametrize(
    "header",
    [
        replace(HEADER, spi_i=bytes(7)),
        replace(HEADER, spi_r=bytes(9)),
        replace(HEADER, message_id=2**32),
        replace(HEADER, length=2**32),
        replace(HEADER, exchange=ExchangeType(256)),
        replace(HEADER, major=16),
    ],
)
def test_what_does_not_fit_is_not_encoded(header: IkeHeader) -> None:
    with pytest.raises(ValueError, match=r"8 octets|does not fit"):
        header.encode()
