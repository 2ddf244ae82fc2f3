"""The one table of algorithms that xfrmpy implements, with their sizes and their names.

Only what stands here is ever offered, accepted, or handed to a factory; the registry knows more.
Sizes are in octets unless a name says bits. Sources: RFC 4106 and 5282 (AES-GCM), RFC 7634
(ChaCha20-Poly1305), RFC 3602 (AES-CBC), RFC 4868 (HMAC-SHA2), RFC 7296 section 3.3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from xfrmpy.registry import (
    EncryptionAlgorithm,
    ExtendedSequenceNumbers,
    IntegrityAlgorithm,
    KeyExchangeMethod,
    PseudorandomFunction,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cipher:
    """An encryption algorithm at one key size.

    `salt` octets follow the key in the keying material (RFC 4106 section 8.1); `iv` octets travel
    in each packet; `icv` is the tag of an AEAD cipher and 0 for one that needs an integrity
    algorithm beside it; plaintext is padded to a multiple of `block`.
    """

    id: EncryptionAlgorithm
    name: str
    key_bits: int
    sends_key_length: bool
    salt: int
    iv: int
    icv: int
    block: int
    kernel_name: str

    @property
    def is_aead(self) -> bool:
        return self.icv > 0

    @property
    def keymat(self) -> int:
        """Octets taken from the keying material: key and salt."""
        return self.key_bits // 8 + self.salt


@dataclass(frozen=True, slots=True, kw_only=True)
class Integrity:
    """An integrity algorithm: key and truncated ICV in octets (RFC 4868 section 2.6)."""

    id: IntegrityAlgorithm
    name: str
    key: int
    icv: int
    hash_name: str
    kernel_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Prf:
    """A PRF: `key` is its preferred key and output size in octets (RFC 7296 section 2.13)."""

    id: PseudorandomFunction
    name: str
    key: int
    hash_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyExchangeGroup:
    """A key exchange method and the size of its public value in octets."""

    id: KeyExchangeMethod
    name: str
    public_value: int


def _aes(
    kind: EncryptionAlgorithm, name: str, kernel: str, *, salt: int, iv: int, icv: int, block: int
) -> tuple[Cipher, ...]:
    return tuple(
        Cipher(
            id=kind,
            name=name.format(bits),
            key_bits=bits,
            sends_key_length=True,
            salt=salt,
            iv=iv,
            icv=icv,
            block=block,
            kernel_name=kernel,
        )
        for bits in (128, 192, 256)
    )


_E = EncryptionAlgorithm
CIPHERS: tuple[Cipher, ...] = (
    *_aes(_E.AES_GCM_16, "aes{}gcm16", "rfc4106(gcm(aes))", salt=4, iv=8, icv=16, block=1),
    Cipher(
        id=_E.CHACHA20_POLY1305,
        name="chacha20poly1305",
        key_bits=256,
        sends_key_length=False,
        salt=4,
        iv=8,
        icv=16,
        block=1,
        kernel_name="rfc7539esp(chacha20,poly1305)",
    ),
    *_aes(_E.AES_CBC, "aes{}", "cbc(aes)", salt=0, iv=16, icv=0, block=16),
)

INTEGRITY: tuple[Integrity, ...] = tuple(
    Integrity(
        id=kind,
        name=f"sha{bits}",
        key=bits // 8,
        icv=bits // 16,
        hash_name=f"sha{bits}",
        kernel_name=f"hmac(sha{bits})",
    )
    for kind, bits in (
        (IntegrityAlgorithm.HMAC_SHA2_256_128, 256),
        (IntegrityAlgorithm.HMAC_SHA2_384_192, 384),
        (IntegrityAlgorithm.HMAC_SHA2_512_256, 512),
    )
)

PRFS: tuple[Prf, ...] = tuple(
    Prf(id=kind, name=f"prfsha{bits}", key=bits // 8, hash_name=f"sha{bits}")
    for kind, bits in (
        (PseudorandomFunction.HMAC_SHA2_256, 256),
        (PseudorandomFunction.HMAC_SHA2_384, 384),
        (PseudorandomFunction.HMAC_SHA2_512, 512),
    )
)

GROUPS: tuple[KeyExchangeGroup, ...] = tuple(
    KeyExchangeGroup(id=kind, name=name, public_value=size)
    for kind, name, size in (
        (KeyExchangeMethod.CURVE25519, "x25519", 32),
        (KeyExchangeMethod.ECP_256, "ecp256", 64),
        (KeyExchangeMethod.ECP_384, "ecp384", 96),
        (KeyExchangeMethod.ECP_521, "ecp521", 132),
        (KeyExchangeMethod.MODP_2048, "modp2048", 256),
        (KeyExchangeMethod.MODP_3072, "modp3072", 384),
        (KeyExchangeMethod.MODP_4096, "modp4096", 512),
    )
)

SEQUENCE_NUMBERS = {ExtendedSequenceNumbers.ESN: "esn", ExtendedSequenceNumbers.NO_ESN: "noesn"}

_CIPHER_BY_KEY = {(c.id, c.key_bits): c for c in CIPHERS}
_INTEGRITY_BY_ID = {i.id: i for i in INTEGRITY}
_PRF_BY_ID = {p.id: p for p in PRFS}
_GROUP_BY_ID = {g.id: g for g in GROUPS}


def cipher(algorithm: EncryptionAlgorithm, key_bits: int | None) -> Cipher:
    """The cipher of a transform; `key_bits` is its KEY_LENGTH attribute. Raises `KeyError`."""
    found = _CIPHER_BY_KEY[(algorithm, 256 if key_bits is None else key_bits)]
    if found.sends_key_length != (key_bits is not None):
        raise KeyError((algorithm, key_bits))
    return found


def integrity(algorithm: IntegrityAlgorithm) -> Integrity:
    """Raises `KeyError` for an algorithm that xfrmpy does not implement."""
    return _INTEGRITY_BY_ID[algorithm]


def prf(function: PseudorandomFunction) -> Prf:
    """Raises `KeyError` for a function that xfrmpy does not implement."""
    return _PRF_BY_ID[function]


def group(method: KeyExchangeMethod) -> KeyExchangeGroup:
    """Raises `KeyError` for a method that xfrmpy does not implement."""
    return _GROUP_BY_ID[method]
