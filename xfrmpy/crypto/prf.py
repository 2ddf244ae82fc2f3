"""Pseudorandom functions and the key expansion prf+ (RFC 7296 sections 2.13 and 5, RFC 4868).

An HMAC takes keys of any length. The two that are made of AES do as well, since RFC 4434 and RFC
4615 say how: a key that is not of 16 octets is brought to that first.
"""

from __future__ import annotations

import hmac

from xfrmpy.crypto.mac import is_of_block_cipher, keyed_mac
from xfrmpy.ipsec import algorithms

MAXIMUM_BLOCKS = 255  # RFC 7296 section 2.13: the counter is a single octet


def prf(row: algorithms.Prf, key: bytes, data: bytes) -> bytes:
    """prf(key, data): `row.key` octets."""
    if is_of_block_cipher(row.mac):
        return keyed_mac(row.mac, _sized_key(row, key))(data)
    return hmac.digest(key, data, row.mac)


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


def _sized_key(row: algorithms.Prf, key: bytes) -> bytes:
    """RFC 4434 section 2: a shorter key is padded with zeros, a longer one is itself hashed.

    RFC 4615 section 3 hashes either.
    """
    if len(key) == row.key:
        return key
    if len(key) < row.key and row.mac == "aesxcbc":
        return key.ljust(row.key, b"\0")
    return keyed_mac(row.mac, bytes(row.key))(key)
