"""Packet ciphers: what turns plaintext into ciphertext || ICV and back, for IKE and for ESP alike.

Read RFC 7296 section 3.14 and RFC 5282 (the SK payload), RFC 4303 sections 2 and 3.3.2 (ESP),
RFC 4106 and RFC 7634 (the AEAD ciphers), RFC 3602 with RFC 4868 (AES-CBC with HMAC-SHA2). Padding,
headers, IVs and sequence numbers belong to the callers. A cipher is made once for each SA and
called for each packet; it keeps state between packets, so two threads may not share one.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import Protocol, TypeAlias

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import ciphers, hashes, hmac
from cryptography.hazmat.primitives.ciphers import aead, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from xfrmpy.ipsec import algorithms
from xfrmpy.registry import EncryptionAlgorithm


class IntegrityFailed(Exception):
    """A packet is not what the holder of the keys sealed: forged, damaged or of an odd size."""


class PacketCipher(Protocol):
    """Sizes in octets: `iv_size` per packet, `icv_size` at the end of it, `block` to pad to."""

    iv_size: int
    icv_size: int
    block: int
    is_aead: bool

    def seal(self, iv: bytes, plaintext: bytes, associated: bytes, trailer: bytes = b"") -> bytes:
        """Ciphertext || ICV of a padded plaintext.

        `associated` is authenticated before the IV (the IKE or ESP header), `trailer` behind the
        ciphertext: ESP's implicit high sequence number, which an AEAD cipher has in `associated`.
        The caller chooses the IV: never twice with one key for AEAD, unpredictable for CBC.
        Raises `ValueError` for a wrong size of IV or plaintext, or an AEAD cipher's trailer.
        """

    def open(self, iv: bytes, sealed: bytes, associated: bytes, trailer: bytes = b"") -> bytes:
        """The padded plaintext. Raises `IntegrityFailed`, for wrong sizes off the wire too."""


def packet_cipher(
    cipher: algorithms.Cipher,
    integrity: algorithms.Integrity | None,
    encryption_key: bytes,
    integrity_key: bytes,
) -> PacketCipher:
    """A cipher under one direction's keys.

    `encryption_key` has the salt at its end (RFC 4106 section 8.1); `integrity` is None and
    `integrity_key` empty for an AEAD cipher. Raises `ValueError` for keys of the wrong size, an
    integrity algorithm too many or missing.
    """
    if len(encryption_key) != cipher.keymat:
        raise ValueError(f"{cipher.name} takes {cipher.keymat} octets of key and salt")
    if len(integrity_key) != (0 if integrity is None else integrity.key):
        raise ValueError("the integrity key has the wrong size")
    if cipher.is_aead != (integrity is None):
        raise ValueError(f"{cipher.name} and the integrity algorithm do not go together")
    if integrity is None:
        return _Aead(cipher, encryption_key)
    return _CbcThenHmac(cipher, integrity, encryption_key, integrity_key)


_Primitive: TypeAlias = aead.AESGCM | aead.ChaCha20Poly1305

_AEAD: dict[EncryptionAlgorithm, type[_Primitive]] = {
    EncryptionAlgorithm.AES_GCM_16: aead.AESGCM,
    EncryptionAlgorithm.CHACHA20_POLY1305: aead.ChaCha20Poly1305,
}

_HASHES: dict[str, type[hashes.HashAlgorithm]] = {
    "sha256": hashes.SHA256,
    "sha384": hashes.SHA384,
    "sha512": hashes.SHA512,
}


class _Aead:
    """AES-GCM-16 and ChaCha20-Poly1305: the nonce is salt || IV (RFC 4106 section 4)."""

    __slots__ = ("_primitive", "_salt", "block", "icv_size", "is_aead", "iv_size")

    def __init__(self, cipher: algorithms.Cipher, key_and_salt: bytes) -> None:
        self.iv_size = cipher.iv
        self.icv_size = cipher.icv
        self.block = cipher.block
        self.is_aead = True
        key_size = cipher.key_bits // 8
        self._primitive = _AEAD[cipher.id](key_and_salt[:key_size])
        self._salt = key_and_salt[key_size:]

    def seal(self, iv: bytes, plaintext: bytes, associated: bytes, trailer: bytes = b"") -> bytes:
        # The library takes nonces of many sizes, so a wrong one would pass unnoticed.
        if len(iv) != self.iv_size or trailer:
            raise ValueError("wrong IV size, or a trailer, which an AEAD cipher has not")
        return self._primitive.encrypt(self._salt + iv, plaintext, associated)

    def open(self, iv: bytes, sealed: bytes, associated: bytes, trailer: bytes = b"") -> bytes:
        if trailer:
            raise ValueError("an AEAD cipher has no trailer")
        if len(iv) != self.iv_size:
            raise IntegrityFailed
        try:
            return self._primitive.decrypt(self._salt + iv, sealed, associated)
        except InvalidTag:
            raise IntegrityFailed from None


class _CbcThenHmac:
    """AES-CBC, then HMAC over associated || IV || ciphertext || trailer, truncated (RFC 4868).

    Setting up a cipher and a keyed hash costs more than a small packet takes to encrypt, so both
    are set up once. A CBC context goes on from the last ciphertext block it met. Decrypting starts
    anew by feeding it the IV as a block and dropping what comes out; encrypting, by folding the
    last block out of the first plaintext block and the IV into it.
    """

    __slots__ = (
        "_decryptor",
        "_encryptor",
        "_hmac",
        "_last_block",
        "block",
        "icv_size",
        "is_aead",
        "iv_size",
    )

    def __init__(
        self,
        cipher: algorithms.Cipher,
        integrity: algorithms.Integrity,
        encryption_key: bytes,
        integrity_key: bytes,
    ) -> None:
        self.iv_size = cipher.iv
        self.icv_size = integrity.icv
        self.block = cipher.block
        self.is_aead = False
        self._last_block = bytes(cipher.block)
        context = ciphers.Cipher(AES(encryption_key), modes.CBC(self._last_block))
        self._encryptor = context.encryptor()
        self._decryptor = context.decryptor()
        self._hmac = hmac.HMAC(integrity_key, _HASHES[integrity.hash_name]())

    def seal(self, iv: bytes, plaintext: bytes, associated: bytes, trailer: bytes = b"") -> bytes:
        if len(iv) != self.iv_size or not plaintext or len(plaintext) % self.block:
            raise ValueError("wrong IV size, or a plaintext that is not padded to whole blocks")
        first = (
            int.from_bytes(plaintext[: self.block])
            ^ int.from_bytes(iv)
            ^ int.from_bytes(self._last_block)
        )
        ciphertext = self._encryptor.update(first.to_bytes(self.block) + plaintext[self.block :])
        self._last_block = ciphertext[-self.block :]
        return ciphertext + self._icv(associated + iv + ciphertext + trailer)

    def open(self, iv: bytes, sealed: bytes, associated: bytes, trailer: bytes = b"") -> bytes:
        end = len(sealed) - self.icv_size
        if len(iv) != self.iv_size or end <= 0 or end % self.block:
            raise IntegrityFailed
        ciphertext = iv + sealed[:end]
        if not compare_digest(self._icv(associated + ciphertext + trailer), sealed[end:]):
            raise IntegrityFailed
        return self._decryptor.update(ciphertext)[self.block :]

    def _icv(self, message: bytes) -> bytes:
        keyed = self._hmac.copy()
        keyed.update(message)
        return keyed.finalize()[: self.icv_size]
