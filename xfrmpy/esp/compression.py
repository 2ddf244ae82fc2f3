"""IP payload compression by DEFLATE (RFC 3173, RFC 2394), between ESP and what it carries.

Each packet is compressed for itself, and goes as it is where that does not make it smaller
(RFC 3173 section 2.2). The compression parameter index is told by IKE, so it names nothing but an
agreement: what stands in a packet must be what the SA has.
"""

from __future__ import annotations

import zlib
from struct import Struct

IPCOMP = 108
"""The IP protocol number."""

SHORTEST = 90
"""Octets. What is smaller seldom gets smaller still; Linux has the same threshold."""

MAX_PACKET = 65535

_HEADER = Struct(">BBH")  # next header, flags, CPI
_RAW_WINDOW = -11
"""RFC 2394: without zlib's header. Of 2 KiB, as much as the decompressor of Linux has."""


class BadCompression(Exception):
    """It does not decompress, to no more than a packet, under the index of its SA."""


def compress(protocol: int, payload: bytes, cpi: int) -> tuple[int, bytes]:
    """What goes in the place of a payload, with its protocol number."""
    if len(payload) < SHORTEST:
        return protocol, payload
    deflater = zlib.compressobj(wbits=_RAW_WINDOW)
    smaller = deflater.compress(payload) + deflater.flush()
    if _HEADER.size + len(smaller) >= len(payload):
        return protocol, payload
    return IPCOMP, _HEADER.pack(protocol, 0, cpi) + smaller


def decompress(payload: bytes, cpi: int) -> tuple[int, bytes]:
    """The protocol and the payload that `compress` was given. Raises `BadCompression`.

    RFC 3173 section 3.3: the flags are ignored.
    """
    if len(payload) < _HEADER.size:
        raise BadCompression
    protocol, _, index = _HEADER.unpack_from(payload)
    if index != cpi:
        raise BadCompression
    inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    try:
        whole = inflater.decompress(payload[_HEADER.size :], MAX_PACKET)
    except zlib.error as error:
        raise BadCompression from error
    if not inflater.eof:
        raise BadCompression
    return protocol, whole
