"""The Internet checksum (RFC 1071), which IPv4, TCP, UDP and ICMPv6 share."""

from __future__ import annotations

from functools import cache
from struct import Struct

_PSEUDO = Struct(">II")
_NONE = 0xFFFF

_LONG, _LONGEST = 256, 9216
"""Octets that are summed up in quarters. What cuts a size is kept, 0.35 KiB of it: 3 MiB for all up
to jumbo frames, but for all that there are 22."""


def ones_complement_sum(octets: bytes | memoryview) -> int:
    """Of the 16-bit words, an odd octet being the high one of its word; 0 only for zeros.

    It is the remainder by 65535, as 65536 leaves one; of the two zeros of ones' complement, a sum
    of anything but zeros is 0xFFFF.
    """
    size = len(octets)
    if not _LONG <= size <= _LONGEST:
        number = int.from_bytes(octets, "big") << size % 2 * 8
    else:
        # A division goes digit by digit, so that the fewer digits, the better: 1,400 octets take
        # 1.7 us in quarters, 2.3 us as one number that is folded twice, 2.6 us as one number.
        first, second, third, fourth = quarters_of(size).unpack(octets)
        number = (
            int.from_bytes(first, "big")
            + int.from_bytes(second, "big")
            + int.from_bytes(third, "big")
            + (int.from_bytes(fourth, "big") << size % 2 * 8)
        )
    return number % _NONE or (number and _NONE)


@cache
def quarters_of(size: int) -> Struct:
    """Of so many octets, each of whole words but the last."""
    words = size // 8 * 2
    return Struct(f"{words}s{words}s{words}s{size - 3 * words}s")


def checksum_of(octets: bytes | memoryview) -> int:
    """What a header says, of octets in which its own place is zero."""
    return _NONE - ones_complement_sum(octets)


def pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    """What TCP, UDP and ICMPv6 sum up besides themselves (RFC 9293 section 3.1, RFC 8200 section
    8.1); the two families' have the same sum."""
    return source + destination + _PSEUDO.pack(length, protocol)
