"""The one table of algorithms that xfrmpy implements, with their sizes and their names.

Only what stands here is ever offered, accepted, or handed to a factory; the registry knows more.
Sizes are in octets unless a name says bits. Sources: RFC 4106 and 5282 (AES-GCM), RFC 4309
(AES-CCM), RFC 4543 (AES-GMAC), RFC 7634 (ChaCha20-Poly1305), RFC 8750 (implicit IV), RFC 3602
(AES-CBC), RFC 3686 and 5930 (AES-CTR), RFC 5529 (Camellia), RFC 2451 (3DES), RFC 2410 (NULL), RFC
4868 (HMAC-SHA2), RFC 2404 (HMAC-SHA1), RFC 3566 and 4434 (AES-XCBC), RFC 4494 and 4615 (AES-CMAC),
RFC 7296 section 3.3.2, FIPS 203 (ML-KEM). Names are those of strongSwan where it has the algorithm.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    in each packet, `implicit_iv` octets are made of its sequence number instead (RFC 8750); `icv`
    is the tag of an AEAD cipher and 0 for one that needs an integrity algorithm beside it;
    plaintext is padded to a multiple of `block`. `kernel_name` is empty where Linux has none.
    `weakness` says why only the profile `compat` allows it, if so.
    """

    id: EncryptionAlgorithm
    name: str
    key_bits: int
    sends_key_length: bool = True
    salt: int = 0
    iv: int
    implicit_iv: int = 0
    icv: int = 0
    block: int = 1
    kernel_name: str = ""
    is_for_ike: bool = True
    weakness: str = ""

    @property
    def is_aead(self) -> bool:
        return self.icv > 0

    @property
    def keymat(self) -> int:
        """Octets taken from the keying material: key and salt."""
        return self.key_bits // 8 + self.salt

    @property
    def counts_iv(self) -> bool:
        """Whether an IV must never come twice under a key, as a counter does not.

        That of a CBC cipher must be unpredictable instead (RFC 3602 section 3).
        """
        return self.block == 1 and self.whole_iv > 0

    @property
    def whole_iv(self) -> int:
        """Octets of the IV, whether they travel or not."""
        return self.iv + self.implicit_iv


@dataclass(frozen=True, slots=True, kw_only=True)
class Integrity:
    """An integrity algorithm: key and truncated ICV in octets (RFC 4868 section 2.6).

    `mac` is the hash of an HMAC, or the MAC's own name. `weakness` as of a cipher.
    """

    id: IntegrityAlgorithm
    name: str
    key: int
    icv: int
    mac: str
    kernel_name: str
    weakness: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prf:
    """A PRF: `key` is its preferred key and output size in octets (RFC 7296 section 2.13).

    `mac` and `weakness` are as those of an integrity algorithm. `nonce_part` is how much of each
    nonce keys it in IKE_SA_INIT, None for the whole (RFC 7296 section 2.14).
    """

    id: PseudorandomFunction
    name: str
    key: int
    mac: str
    nonce_part: int | None = None
    weakness: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyExchangeGroup:
    """A key exchange method, and the octets of the initiator's public value.

    `answer` are those of the responder's where they are others: a key encapsulation mechanism is
    answered with a ciphertext.
    """

    id: KeyExchangeMethod
    name: str
    public_value: int
    answer: int = 0

    def size(self, *, of_answer: bool) -> int:
        """Octets in the KE payload of one end."""
        return self.answer if of_answer and self.answer else self.public_value

    @property
    def is_post_quantum(self) -> bool:
        """Whether a quantum computer is not known to break it."""
        return self.answer > 0


_SHORT_ICV = "its ICV of 8 octets is guessed in 2^64 packets (RFC 8221 has it for IoT only)"
_CLEAR = "it encrypts nothing"
_SMALL_BLOCK = "blocks of 64 bits collide after some gigabytes (RFC 8221: SHOULD NOT)"
_SHA1 = "SHA-1 is on its way out (RFC 8221 and 8247: MUST-)"
_FOR_IOT = "RFC 8221 and 8247 have it for IoT only"

_AES_BITS = (128, 192, 256)
_E = EncryptionAlgorithm


def _gcm_and_ccm() -> Iterator[Cipher]:
    for kind, icv in ((_E.AES_GCM_16, 16), (_E.AES_GCM_12, 12), (_E.AES_GCM_8, 8)):
        for bits in _AES_BITS:
            yield Cipher(
                id=kind,
                name=f"aes{bits}gcm{icv}",
                key_bits=bits,
                salt=4,
                iv=8,
                icv=icv,
                kernel_name="rfc4106(gcm(aes))",
                weakness=_SHORT_ICV if icv == 8 else "",
            )
    for kind, icv in ((_E.AES_CCM_16, 16), (_E.AES_CCM_12, 12), (_E.AES_CCM_8, 8)):
        for bits in _AES_BITS:
            yield Cipher(
                id=kind,
                name=f"aes{bits}ccm{icv}",
                key_bits=bits,
                salt=3,
                iv=8,
                icv=icv,
                kernel_name="rfc4309(ccm(aes))",
                weakness=_SHORT_ICV if icv == 8 else "",
            )


def _gmac() -> Iterator[Cipher]:
    for bits in _AES_BITS:
        yield Cipher(
            id=_E.NULL_AUTH_AES_GMAC,
            name=f"aes{bits}gmac",
            key_bits=bits,
            salt=4,
            iv=8,
            icv=16,
            kernel_name="rfc4543(gcm(aes))",
            is_for_ike=False,
            weakness=_CLEAR,
        )


def _implicit_iv() -> Iterator[Cipher]:
    """RFC 8750 section 7: "these transforms are defined for ESP only"."""
    for kind, name, salt, icv in (
        (_E.AES_GCM_16_IIV, "aes{}gcm16iiv", 4, 16),
        (_E.AES_CCM_8_IIV, "aes{}ccm8iiv", 3, 8),
    ):
        for bits in _AES_BITS:
            yield Cipher(
                id=kind,
                name=name.format(bits),
                key_bits=bits,
                salt=salt,
                iv=0,
                implicit_iv=8,
                icv=icv,
                is_for_ike=False,
                weakness=_SHORT_ICV if icv == 8 else "",
            )
    yield Cipher(
        id=_E.CHACHA20_POLY1305_IIV,
        name="chacha20poly1305iiv",
        key_bits=256,
        sends_key_length=False,
        salt=4,
        iv=0,
        implicit_iv=8,
        icv=16,
        is_for_ike=False,
    )


def _counter_and_block() -> Iterator[Cipher]:
    for bits in _AES_BITS:
        yield Cipher(
            id=_E.AES_CBC,
            name=f"aes{bits}",
            key_bits=bits,
            iv=16,
            block=16,
            kernel_name="cbc(aes)",
        )
    for bits in _AES_BITS:
        yield Cipher(
            id=_E.AES_CTR,
            name=f"aes{bits}ctr",
            key_bits=bits,
            salt=4,
            iv=8,
            kernel_name="rfc3686(ctr(aes))",
        )
    for bits in _AES_BITS:
        yield Cipher(
            id=_E.CAMELLIA_CBC,
            name=f"camellia{bits}",
            key_bits=bits,
            iv=16,
            block=16,
            kernel_name="cbc(camellia)",
        )


CIPHERS: tuple[Cipher, ...] = (
    *_gcm_and_ccm(),
    Cipher(
        id=_E.CHACHA20_POLY1305,
        name="chacha20poly1305",
        key_bits=256,
        sends_key_length=False,
        salt=4,
        iv=8,
        icv=16,
        kernel_name="rfc7539esp(chacha20,poly1305)",
    ),
    *_gmac(),
    *_implicit_iv(),
    *_counter_and_block(),
    Cipher(
        id=_E.TRIPLE_DES,
        name="3des",
        key_bits=192,
        sends_key_length=False,
        iv=8,
        block=8,
        kernel_name="cbc(des3_ede)",
        weakness=_SMALL_BLOCK,
    ),
    Cipher(
        id=_E.NULL,
        name="null",
        key_bits=0,
        sends_key_length=False,
        iv=0,
        kernel_name="ecb(cipher_null)",
        is_for_ike=False,  # RFC 7296 section 5: "MUST NOT negotiate"
        weakness=_CLEAR,
    ),
)

INTEGRITY: tuple[Integrity, ...] = (
    *(
        Integrity(
            id=kind,
            name=f"sha{bits}",
            key=bits // 8,
            icv=bits // 16,
            mac=f"sha{bits}",
            kernel_name=f"hmac(sha{bits})",
        )
        for kind, bits in (
            (IntegrityAlgorithm.HMAC_SHA2_256_128, 256),
            (IntegrityAlgorithm.HMAC_SHA2_384_192, 384),
            (IntegrityAlgorithm.HMAC_SHA2_512_256, 512),
        )
    ),
    Integrity(
        id=IntegrityAlgorithm.AES_CMAC_96,
        name="aescmac",
        key=16,
        icv=12,
        mac="aescmac",
        kernel_name="cmac(aes)",
    ),
    Integrity(
        id=IntegrityAlgorithm.AES_XCBC_96,
        name="aesxcbc",
        key=16,
        icv=12,
        mac="aesxcbc",
        kernel_name="xcbc(aes)",
        weakness=_FOR_IOT,
    ),
    Integrity(
        id=IntegrityAlgorithm.HMAC_SHA1_96,
        name="sha1",
        key=20,
        icv=12,
        mac="sha1",
        kernel_name="hmac(sha1)",
        weakness=_SHA1,
    ),
)

_HALF_NONCE = 8
"""RFC 7296 section 2.14: of two PRFs "only the first 64 bits of Ni and the first 64 bits of Nr are
used in calculating SKEYSEED"."""

PRFS: tuple[Prf, ...] = (
    *(
        Prf(id=kind, name=f"prfsha{bits}", key=bits // 8, mac=f"sha{bits}")
        for kind, bits in (
            (PseudorandomFunction.HMAC_SHA2_256, 256),
            (PseudorandomFunction.HMAC_SHA2_384, 384),
            (PseudorandomFunction.HMAC_SHA2_512, 512),
        )
    ),
    Prf(
        id=PseudorandomFunction.AES128_CMAC,
        name="prfaescmac",
        key=16,
        mac="aescmac",
        nonce_part=_HALF_NONCE,
    ),
    Prf(
        id=PseudorandomFunction.AES128_XCBC,
        name="prfaesxcbc",
        key=16,
        mac="aesxcbc",
        nonce_part=_HALF_NONCE,
        weakness=_FOR_IOT,
    ),
    Prf(
        id=PseudorandomFunction.HMAC_SHA1,
        name="prfsha1",
        key=20,
        mac="sha1",
        weakness=_SHA1,
    ),
)

GROUPS: tuple[KeyExchangeGroup, ...] = (
    *(
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
    ),
    *(
        KeyExchangeGroup(id=kind, name=name, public_value=key, answer=ciphertext)
        for kind, name, key, ciphertext in (
            (KeyExchangeMethod.ML_KEM_768, "mlkem768", 1184, 1088),
            (KeyExchangeMethod.ML_KEM_1024, "mlkem1024", 1568, 1568),
        )
    ),
)

SEQUENCE_NUMBERS = {ExtendedSequenceNumbers.ESN: "esn", ExtendedSequenceNumbers.NO_ESN: "noesn"}

WEAKNESSES: dict[str, str] = {
    **{row.name: row.weakness for row in CIPHERS if row.weakness},
    **{row.name: row.weakness for row in INTEGRITY if row.weakness},
    **{row.name: row.weakness for row in PRFS if row.weakness},
}
"""By name: why only the profile `compat` allows it."""

_CIPHER_BY_KEY = {(c.id, c.key_bits if c.sends_key_length else None): c for c in CIPHERS}
_INTEGRITY_BY_ID = {i.id: i for i in INTEGRITY}
_PRF_BY_ID = {p.id: p for p in PRFS}
_GROUP_BY_ID = {g.id: g for g in GROUPS}


def cipher(algorithm: EncryptionAlgorithm, key_bits: int | None) -> Cipher:
    """The cipher of a transform; `key_bits` is its KEY_LENGTH attribute. Raises `KeyError`."""
    return _CIPHER_BY_KEY[(algorithm, key_bits)]


def integrity(algorithm: IntegrityAlgorithm) -> Integrity:
    """Raises `KeyError` for an algorithm that xfrmpy does not implement."""
    return _INTEGRITY_BY_ID[algorithm]


def prf(function: PseudorandomFunction) -> Prf:
    """Raises `KeyError` for a function that xfrmpy does not implement."""
    return _PRF_BY_ID[function]


def group(method: KeyExchangeMethod) -> KeyExchangeGroup:
    """Raises `KeyError` for a method that xfrmpy does not implement."""
    return _GROUP_BY_ID[method]
