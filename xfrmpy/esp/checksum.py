"""The Internet checksum (RFC 1071), which IPv4, TCP, UDP and ICMPv6 share."""

from __future__ import annotations

from struct import Struct

_PSEUDO = Struct(">II")
_NONE = 0xFFFF


def ones_complement_sum(octets: bytes | memoryview) -> int:
    """Of the 16-bit words, an odd octet being the high one of its word; 0 only for zeros.

    It is the remainder by 65535, as 65536 leaves one; of the two zeros of ones' complement, a sum
    of anything but zeros is 0xFFFF.
    """
    number = int.from_bytes(octets, "big") << len(octets) % 2 * 8
    return number % _NONE or (number and _NONE)


def checksum_of(octets: bytes | memoryview) -> int:
    """What a header says, of octets in which its own place is zero."""
    return _NONE - ones_complement_sum(octets)


def pseudo_header(source: bytes, destination: bytes, protocol: int, length: int) -> bytes:
    """What TCP, UDP and ICMPv6 sum up besides themselves (RFC 9293 section 3.1, RFC 8200 section
    8.1); the two families' have the same sum."""
    return source + destination + _PSEUDO.pack(length, protocol)
