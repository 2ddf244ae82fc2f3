"""The Internet checksum (RFC 1071), which IPv4, TCP, UDP and ICMPv6 share."""

from __future__ import annotations

from struct import Struct

_PSEUDO = Struct(">II")
_NONE = 0xFFFF

_LONG = 352
_HALF, _QUARTER = 5632, 2816
_LOW_HALF, _LOW_QUARTER = (1 << _HALF) - 1, (1 << _QUARTER) - 1
"""Bits, for packets of about 1400 octets. A division goes digit by digit; folded twice, such a
number has a quarter of them, and the remainder takes 0.8 us instead of 1.5. To read it takes 0.9.
"""


def ones_complement_sum(octets: bytes | memoryview) -> int:
    """Of the 16-bit words, an odd octet being the high one of its word; 0 only for zeros.

    It is the remainder by 65535, as 65536 leaves one; of the two zeros of ones' complement, a sum
    of anything but zeros is 0xFFFF.
    """
    size = len(octets)
    number = int.from_bytes(octets, "big")
    if size > _LONG:
        number = (number >> _HALF) + (number & _LOW_HALF)
        number = (number >> _QUARTER) + (number & _LOW_QUARTER)
    number <<= size % 2 * 8
    return number % _NONE or (number and _NONE)


def checksum_of(octets: bytes | memoryview) -> int:
    """What a header says, of octets in which its own place is zero."""
    return _NONE - ones_complement_sum(octets)


def pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    """What TCP, UDP and ICMPv6 sum up besides themselves (RFC 9293 section 3.1, RFC 8200 section
    8.1); the two families' have the same sum."""
    return source + destination + _PSEUDO.pack(length, protocol)
