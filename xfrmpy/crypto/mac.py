"""Keyed hashes, whole: HMAC (RFC 2104), AES-XCBC-MAC (RFC 3566) and AES-CMAC (RFC 4493).

Who truncates what comes out, and to how much, is told by the algorithms table. A MAC is made once
for each key and called for each message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from cryptography.hazmat.primitives import ciphers, cmac, hashes, hmac
from cryptography.hazmat.primitives.ciphers import modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES

Octets: TypeAlias = bytes | bytearray | memoryview


class Mac(Protocol):
    """What gives the MAC of a message, whose parts it takes one behind the other."""

    def __call__(self, *parts: Octets) -> bytes: ...


def keyed_mac(name: str, key: bytes) -> Mac:
    """The MAC called `name` in the algorithms table, under a key. Raises `KeyError`.

    XCBC and CMAC take keys of 16 octets only, and raise `ValueError` for others.
    """
    return _BLOCK_MACS[name](key) if name in _BLOCK_MACS else _hmac(_HASHES[name](), key)


def is_of_block_cipher(name: str) -> bool:
    """Whether a MAC takes keys of one size only, as no HMAC does."""
    return name in _BLOCK_MACS


_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "sha1": hashes.SHA1,
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}

_BLOCK = 16


def _hmac(algorithm: hashes.HashAlgorithm, key: bytes) -> Mac:
    begun = hmac.HMAC(key, algorithm)

    def mac(*parts: Octets) -> bytes:
        keyed = begun.copy()
        for part in parts:
            keyed.update(part)
        return keyed.finalize()

    return mac


def _cmac(key: bytes) -> Mac:
    begun = cmac.CMAC(_aes(key))

    def mac(*parts: Octets) -> bytes:
        keyed = begun.copy()
        for part in parts:
            keyed.update(bytes(part))
        return keyed.finalize()

    return mac


def _xcbc(key: bytes) -> Mac:
    """RFC 3566 section 4: a CBC-MAC under K1 whose last block is masked by K2 or K3."""
    encryptor = ciphers.Cipher(_aes(key), modes.ECB()).encryptor()
    k1, k2, k3 = (encryptor.update(bytes((number,)) * _BLOCK) for number in (1, 2, 3))
    masks = int.from_bytes(k2), int.from_bytes(k3)

    def mac(*parts: Octets) -> bytes:
        message = b"".join(parts)
        start = max(len(message) - 1, 0) // _BLOCK * _BLOCK
        last, mask = message[start:], masks[0]
        if len(last) < _BLOCK:
            last, mask = (last + b"\x80").ljust(_BLOCK, b"\0"), masks[1]
        masked = (int.from_bytes(last) ^ mask).to_bytes(_BLOCK)
        chain = ciphers.Cipher(AES(k1), modes.CBC(bytes(_BLOCK))).encryptor()
        return chain.update(message[:start] + masked)[-_BLOCK:]

    return mac


def _aes(key: bytes) -> AES:
    if len(key) != _BLOCK:
        raise ValueError(f"the key must have {_BLOCK} octets")
    return AES(key)


_BLOCK_MACS: dict[str, Callable[[bytes], Mac]] = {"aescmac": _cmac, "aesxcbc": _xcbc}
