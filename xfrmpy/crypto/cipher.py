"""Packet ciphers: what turns plaintext into ciphertext || ICV and back, for IKE and for ESP alike.

Read RFC 7296 section 3.14 and RFC 5282 (the SK payload), RFC 4303 sections 2 and 3.3.2 (ESP),
RFC 4106, 4309, 4543 and 7634 (the AEAD ciphers), RFC 3602 and 3686 with RFC 4868 (AES-CBC and
AES-CTR with HMAC-SHA2). Padding, headers, IVs and sequence numbers belong to the callers. A cipher
is made once for each SA and called for each packet; it keeps state between packets, so two threads
may not share one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from hmac import compare_digest
from typing import NamedTuple, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.decrepit.ciphers.algorithms import Camellia, TripleDES
from cryptography.hazmat.primitives import ciphers
from cryptography.hazmat.primitives.ciphers import BlockCipherAlgorithm, aead, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from xfrmpy.crypto.mac import Mac, Octets, keyed_mac
from xfrmpy.ipsec import algorithms
from xfrmpy.registry import EncryptionAlgorithm

IntegrityFailed = InvalidTag
"""A packet is not what the holder of the keys sealed: forged, damaged or of an odd size."""


@dataclass(frozen=True, slots=True)
class InPlace:
    """An AEAD algorithm under a key, from buffer to buffer, which may be one and the same.

    The library's own functions, as a call of ours around each would cost a tenth of what sealing a
    packet does. All take nonce, input and associated data, and those that end in `_into` the
    output; the nonce is salt || IV. With
    `seal_into`, the output is longer than the input by the ICV. `open_into` raises
    `IntegrityFailed`, and has then overwritten its output with what nobody vouches for.
    """

    salt: bytes = field(repr=False)
    seal: Callable[[bytes, bytes, bytes], bytes] = field(repr=False)
    open: Callable[[bytes, bytes, bytes], bytes] = field(repr=False)
    seal_into: Callable[[Octets, Octets, Octets, Octets], int] = field(repr=False)
    open_into: Callable[[Octets, Octets, Octets, Octets], int] = field(repr=False)

    def open_each(
        self,
        nonces: Sequence[Octets],
        sealed: Sequence[Octets],
        associated: Sequence[Octets],
        plaintexts: Sequence[Octets],
    ) -> list[bool]:
        """Open several packets; tells which are authentic."""
        open_into = self.open_into
        are_authentic: list[bool] = []
        for nonce, octets, data, plaintext in zip(
            nonces, sealed, associated, plaintexts, strict=True
        ):
            try:
                open_into(nonce, octets, data, plaintext)
            except IntegrityFailed:
                are_authentic.append(False)
            else:
                are_authentic.append(True)
        return are_authentic


class Chained(NamedTuple):
    """Packets that CBC and then a MAC are to seal or open where they lie, a view of each.

    `covered` is what the ICV is made of, from the header to the end of the ciphertext; `chains` of
    it what is encrypted, the IV, too; `outputs` are the same and the ICV, `icvs` the ICVs.
    """

    covered: Sequence[memoryview]
    chains: Sequence[memoryview]
    outputs: Sequence[memoryview]
    icvs: Sequence[memoryview]


class ChainedInPlace(Protocol):
    """CBC and then a MAC under their keys, of packets that leave or came together.

    `trailer` is as with `PacketCipher.seal`, and the same for all.
    """

    def seal_each(self, packets: Chained, trailer: bytes) -> None:
        """Encrypt packets with random octets in the place of each IV, which become the IV."""

    def open_each(self, packets: Chained, trailer: bytes) -> list[bool]:
        """Decrypt those that are authentic, and no others; tells which are."""


class PacketCipher(Protocol):
    """Sizes in octets: `iv_size` per packet, `icv_size` at the end of it, `block` to pad to.

    The IV is the one that the algorithm takes, whether it travels in the packet or not (RFC 8750).
    `in_place` is None for what has to be put together from pieces.
    """

    iv_size: int
    icv_size: int
    block: int
    is_aead: bool
    in_place: InPlace | ChainedInPlace | None

    def seal(self, iv: bytes, plaintext: bytes, associated: bytes, trailer: bytes = b"") -> bytes:
        """Ciphertext || ICV of a padded plaintext.

        `associated` is authenticated before the IV (the IKE or ESP header), `trailer` behind the
        ciphertext: ESP's implicit high sequence number, which an AEAD cipher has in `associated`.
        The caller chooses the IV: unpredictable for CBC, never twice with one key for others.
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
        kind = _Gmac if cipher.id == EncryptionAlgorithm.NULL_AUTH_AES_GMAC else _Aead
        return kind(cipher, encryption_key)
    return _EncryptThenMac(cipher, integrity, encryption_key, integrity_key)


class _Primitive(Protocol):
    """An AEAD algorithm under a key."""

    def encrypt(self, nonce: bytes, data: bytes, associated: bytes, /) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated: bytes, /) -> bytes: ...


_IN_PLACE = (aead.AESGCM, aead.AESCCM, aead.ChaCha20Poly1305)


class _ShortGcm:
    """AES-GCM with a tag that is cut off; the library's own has one of 16 octets only."""

    __slots__ = ("_key", "_tag", "_whole")

    def __init__(self, tag: int, key: bytes) -> None:
        self._tag = tag
        self._key = AES(key)
        self._whole = aead.AESGCM(key)

    def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
        return self._whole.encrypt(nonce, data, associated)[: len(data) + self._tag]

    def decrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
        end = len(data) - self._tag
        if end < 0:
            raise IntegrityFailed
        mode = modes.GCM(nonce, data[end:], min_tag_length=self._tag)
        decryptor = ciphers.Cipher(self._key, mode).decryptor()
        decryptor.authenticate_additional_data(associated)
        return decryptor.update(data[:end]) + decryptor.finalize()


_E = EncryptionAlgorithm

_AEAD: dict[EncryptionAlgorithm, Callable[[bytes], _Primitive]] = {
    _E.AES_GCM_16: aead.AESGCM,
    _E.AES_GCM_12: partial(_ShortGcm, 12),
    _E.AES_GCM_8: partial(_ShortGcm, 8),
    _E.AES_CCM_16: partial(aead.AESCCM, tag_length=16),
    _E.AES_CCM_12: partial(aead.AESCCM, tag_length=12),
    _E.AES_CCM_8: partial(aead.AESCCM, tag_length=8),
    _E.CHACHA20_POLY1305: aead.ChaCha20Poly1305,
    _E.NULL_AUTH_AES_GMAC: aead.AESGCM,
    _E.AES_GCM_16_IIV: aead.AESGCM,
    _E.AES_CCM_8_IIV: partial(aead.AESCCM, tag_length=8),
    _E.CHACHA20_POLY1305_IIV: aead.ChaCha20Poly1305,
}


class _Aead:
    """The nonce is salt || IV (RFC 4106 section 4, RFC 4309 section 4, RFC 7634 section 2)."""

    __slots__ = ("_primitive", "_salt", "block", "icv_size", "in_place", "is_aead", "iv_size")

    def __init__(self, cipher: algorithms.Cipher, key_and_salt: bytes) -> None:
        self.iv_size = cipher.whole_iv
        self.icv_size = cipher.icv
        self.block = cipher.block
        self.is_aead = True
        key_size = cipher.key_bits // 8
        self._primitive = _AEAD[cipher.id](key_and_salt[:key_size])
        self._salt = key_and_salt[key_size:]
        self.in_place: InPlace | ChainedInPlace | None = self._in_place()

    def _in_place(self) -> InPlace | None:
        primitive = self._primitive
        if not isinstance(primitive, _IN_PLACE):
            return None
        return InPlace(
            *(self._salt, primitive.encrypt, primitive.decrypt),
            *(primitive.encrypt_into, primitive.decrypt_into),
        )

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
        return self._primitive.decrypt(self._salt + iv, sealed, associated)


class _Gmac(_Aead):
    """All is associated data, the IV too, and nothing is encrypted (RFC 4543 section 3.3)."""

    __slots__ = ()

    def _in_place(self) -> None:
        return None

    def seal(self, iv: bytes, plaintext: bytes, associated: bytes, trailer: bytes = b"") -> bytes:
        return plaintext + super().seal(iv, b"", associated + iv + plaintext, trailer)

    def open(self, iv: bytes, sealed: bytes, associated: bytes, trailer: bytes = b"") -> bytes:
        end = max(0, len(sealed) - self.icv_size)
        plaintext = sealed[:end]
        super().open(iv, sealed[end:], associated + iv + plaintext, trailer)
        return plaintext


class _Encryption(Protocol):
    """Encryption alone; sizes are the caller's to check."""

    def encrypt(self, iv: bytes, plaintext: bytes) -> bytes: ...

    def decrypt(self, iv: bytes, ciphertext: bytes) -> bytes: ...


class _Cbc:
    """Setting up a context costs more than a small packet takes to encrypt, so one is kept.

    It goes on from the last ciphertext block that it met. Decrypting starts anew by feeding it the
    IV as a block and dropping what comes out; encrypting, by folding the last block out of the
    first plaintext block and the IV into it.
    """

    __slots__ = ("_block", "_decryptor", "_encryptor", "_last_block")

    def __init__(self, algorithm: BlockCipherAlgorithm) -> None:
        self._block = algorithm.block_size // 8
        self._last_block = bytes(self._block)
        context = ciphers.Cipher(algorithm, modes.CBC(self._last_block))
        self._encryptor = context.encryptor()
        self._decryptor = context.decryptor()

    def encrypt(self, iv: bytes, plaintext: bytes) -> bytes:
        block = self._block
        first = (
            int.from_bytes(plaintext[:block])
            ^ int.from_bytes(iv)
            ^ int.from_bytes(self._last_block)
        )
        ciphertext = self._encryptor.update(first.to_bytes(block) + plaintext[block:])
        self._last_block = ciphertext[-block:]
        return ciphertext

    def decrypt(self, iv: bytes, ciphertext: bytes) -> bytes:
        return self._decryptor.update(iv + ciphertext)[self._block :]

    def encrypt_each(self, chains: Sequence[memoryview], outputs: Sequence[memoryview]) -> None:
        """Each of several plaintexts, which has a block of random octets before it, in place.

        What comes out of that block is the packet's IV: by the definition of CBC the next block was
        encrypted with it. RFC 3602 section 3: "The IV MUST be chosen at random, and MUST be
        unpredictable". A random block, folded into whatever came before, is as random as it was,
        and so is what a block cipher makes of it. So the chain goes on from packet to packet.
        """
        update_into = self._encryptor.update_into
        for chain, output in zip(chains, outputs, strict=True):
            update_into(chain, output)
        self._last_block = bytes(chains[-1][-self._block :])

    def decrypt_into(self, chain: memoryview, output: memoryview) -> None:
        """A ciphertext with its IV before it, in place. Where that was, there is rubbish then."""
        self._decryptor.update_into(chain, output)


class _Ctr:
    """The counter block is nonce || IV || counter, which begins with one (RFC 3686 section 4)."""

    __slots__ = ("_key", "_nonce")

    def __init__(self, key: bytes, nonce: bytes) -> None:
        self._key = AES(key)
        self._nonce = nonce

    def encrypt(self, iv: bytes, plaintext: bytes) -> bytes:
        mode = modes.CTR(self._nonce + iv + b"\0\0\0\1")
        return ciphers.Cipher(self._key, mode).encryptor().update(plaintext)

    decrypt = encrypt


class _Null:
    """RFC 2410."""

    def encrypt(self, _iv: bytes, plaintext: bytes) -> bytes:
        return plaintext

    decrypt = encrypt


_BLOCK_CIPHERS: dict[EncryptionAlgorithm, Callable[[bytes], BlockCipherAlgorithm]] = {
    _E.AES_CBC: AES,
    _E.CAMELLIA_CBC: Camellia,
    _E.TRIPLE_DES: TripleDES,
}


def _encryption(cipher: algorithms.Cipher, key_and_salt: bytes) -> _Encryption:
    key_size = cipher.key_bits // 8
    match cipher.id:
        case EncryptionAlgorithm.NULL:
            return _Null()
        case EncryptionAlgorithm.AES_CTR:
            return _Ctr(key_and_salt[:key_size], key_and_salt[key_size:])
        case _:
            return _Cbc(_BLOCK_CIPHERS[cipher.id](key_and_salt))


class _EncryptThenMac:
    """The MAC is over associated || IV || ciphertext || trailer, truncated (RFC 4868)."""

    __slots__ = ("_encryption", "_mac", "block", "icv_size", "in_place", "is_aead", "iv_size")

    in_place: InPlace | ChainedInPlace | None

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
        self._encryption = encryption = _encryption(cipher, encryption_key)
        self._mac = mac = keyed_mac(integrity.mac, integrity_key)
        self.in_place = None
        # The library wants room behind the output for a block less an octet, and writes nothing
        # there; an ICV of that size is such room.
        if isinstance(encryption, _Cbc) and self.icv_size >= self.block - 1:
            self.in_place = _CbcThenMac(encryption, mac, self.icv_size)

    def seal(self, iv: bytes, plaintext: bytes, associated: bytes, trailer: bytes = b"") -> bytes:
        if len(iv) != self.iv_size or not plaintext or len(plaintext) % self.block:
            raise ValueError("wrong IV size, or a plaintext that is not padded to whole blocks")
        ciphertext = self._encryption.encrypt(iv, plaintext)
        return ciphertext + self._mac(associated, iv, ciphertext, trailer)[: self.icv_size]

    def open(self, iv: bytes, sealed: bytes, associated: bytes, trailer: bytes = b"") -> bytes:
        end = len(sealed) - self.icv_size
        if len(iv) != self.iv_size or end <= 0 or end % self.block:
            raise IntegrityFailed
        ciphertext = sealed[:end]
        icv = self._mac(associated, iv, ciphertext, trailer)[: self.icv_size]
        if not compare_digest(icv, sealed[end:]):
            raise IntegrityFailed
        return self._encryption.decrypt(iv, ciphertext)


class _CbcThenMac:
    """See `ChainedInPlace`."""

    __slots__ = ("_encryption", "_icv", "_mac")

    def __init__(self, encryption: _Cbc, mac: Mac, icv: int) -> None:
        self._encryption = encryption
        self._mac = mac
        self._icv = icv

    def seal_each(self, packets: Chained, trailer: bytes) -> None:
        self._encryption.encrypt_each(packets.chains, packets.outputs)
        for icv, made in zip(packets.icvs, self._icvs(packets.covered, trailer), strict=True):
            icv[:] = made

    def open_each(self, packets: Chained, trailer: bytes) -> list[bool]:
        made = self._icvs(packets.covered, trailer)
        if compare_digest(b"".join(made), b"".join(packets.icvs)):
            are_authentic = [True] * len(made)
        else:
            are_authentic = [*map(compare_digest, made, packets.icvs)]
        decrypt_into = self._encryption.decrypt_into
        for chain, output, is_authentic in zip(
            packets.chains, packets.outputs, are_authentic, strict=True
        ):
            if is_authentic:
                decrypt_into(chain, output)
        return are_authentic

    def _icvs(self, covered: Sequence[memoryview], trailer: bytes) -> list[bytes]:
        mac, size, trailers = self._mac, self._icv, (trailer,) if trailer else ()
        return [mac(octets, *trailers)[:size] for octets in covered]
