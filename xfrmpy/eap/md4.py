"""MD4 (RFC 1320), of which nothing but MSCHAPv2 has use: OpenSSL 3 hides it, so it is here.

It is broken as a hash. MSCHAPv2 needs it for what a password is known by, and is itself no stronger
than one DES key.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TypeAlias

_BLOCK = 64
_WORDS = Struct("<16I")
_STATE = Struct("<4I")
_MASK = 0xFFFFFFFF

_Function: TypeAlias = Callable[[int, int, int], int]

_ROUNDS: tuple[tuple[_Function, int, tuple[int, ...], tuple[int, ...]], ...] = (
    (lambda x, y, z: (x & y) | (~x & z), 0x00000000, (3, 7, 11, 19), tuple(range(16))),
    (
        lambda x, y, z: (x & y) | (x & z) | (y & z),
        0x5A827999,
        (3, 5, 9, 13),
        (0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15),
    ),
    (
        lambda x, y, z: x ^ y ^ z,
        0x6ED9EBA1,
        (3, 9, 11, 15),
        (0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15),
    ),
)
"""Of each round of section 3.4: its function, its constant, its shifts and the order of words."""


def md4(data: bytes) -> bytes:
    """The digest: 16 octets."""
    state = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
    padding = b"\x80" + bytes((_BLOCK - 9 - len(data)) % _BLOCK)
    padded = data + padding + (8 * len(data)).to_bytes(8, "little")
    for start in range(0, len(padded), _BLOCK):
        state = _compress(state, _WORDS.unpack_from(padded, start))
    return _STATE.pack(*state)


def _compress(
    state: tuple[int, int, int, int], words: tuple[int, ...]
) -> tuple[int, int, int, int]:
    a, b, c, d = state
    for function, constant, shifts, order in _ROUNDS:
        for step, number in enumerate(order):
            total = (a + function(b, c, d) + words[number] + constant) & _MASK
            shift = shifts[step % 4]
            a, b, c, d = d, ((total << shift) | (total >> (32 - shift))) & _MASK, b, c
    was_a, was_b, was_c, was_d = state
    return (was_a + a) & _MASK, (was_b + b) & _MASK, (was_c + c) & _MASK, (was_d + d) & _MASK
