"""Pseudorandom functions and the key expansion prf+ (RFC 7296 sections 2.13 and 5, RFC 4868).

Every PRF that xfrmpy implements is an HMAC, which takes keys of any length; the rules of
RFC 7296 section 2.14 for PRFs with keys of a fixed length have no place here until one is added.
"""

from __future__ import annotations

import hmac

from xfrmpy.ipsec import algorithms

MAXIMUM_BLOCKS = 255  # RFC 7296 section 2.13: the counter is a single octet


def prf(row: algorithms.Prf, key: bytes, data: bytes) -> bytes:
    """prf(key, data): `row.key` octets."""
    return hmac.digest(key, data, row.hash_name)


def prf_plus(row: algorithms.Prf, key: bytes, seed: bytes, length: int) -> bytes:
    """The first `length` octets of prf+(key, seed) (RFC 7296 section 2.13).

    Raises `ValueError` for more than 255 outputs of the PRF, which prf+ does not define.
    """
    blocks = -(-length // row.key)
    if blocks > MAXIMUM_BLOCKS:
        raise ValueError(f"prf+ gives at most {MAXIMUM_BLOCKS * row.key} octets, not {length}")
    block, stream = b"", bytearray()
    for counter in range(1, blocks + 1):
        block = prf(row, key, block + seed + bytes((counter,)))
        stream += block
    return bytes(stream[:length])
