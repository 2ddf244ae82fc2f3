"""Signatures and the keys that make and verify them: the one door to the library's.

Read RFC 7427 section 3 and its appendix A, RFC 8420 for EdDSA, RFC 8247 section 3 for what may
still be used, and for ML-DSA FIPS 204 section 5 and draft-ietf-ipsecme-ikev2-pqc-auth. A key or a
scheme that is not in the tables here is refused. An AlgorithmIdentifier is compared octet for octet
with the few forms that a right one has, and never parsed. Verifying raises; nothing gives a truth
value to forget. What is signed is decided in `authentication`.
"""

from __future__ import annotations

import re
import warnings
from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from itertools import product
from typing import Self, TypeAlias

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA1, SHA256, SHA384, SHA512
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)
from cryptography.hazmat.primitives.serialization.pkcs12 import (
    PKCS12KeyAndCertificates,
    load_pkcs12,
)

from xfrmpy.registry import HashAlgorithm

MIN_RSA_BITS = 2048
"""RFC 8247 section 3.1: shorter keys SHOULD NOT be used; NIST SP 800-131A forbids them."""
MIN_RSA_EXPONENT = 65537
"""FIPS 186-5 section 5.1. With 1 anybody can sign, and 3 has made lenient checks forgeable."""

# Ours: what a strange key may cost us.
MAX_RSA_BITS = 8192
MAX_RSA_EXPONENT = 2**64
MAX_KEY_OCTETS = 4096

KNOWN_KEYS = 256
"""Keys that are kept parsed: checking an RSA key takes longer than signing with it."""

_Hash: TypeAlias = SHA1 | SHA256 | SHA384 | SHA512
_Public: TypeAlias = (
    rsa.RSAPublicKey
    | ec.EllipticCurvePublicKey
    | ed25519.Ed25519PublicKey
    | ed448.Ed448PublicKey
    | mldsa.MLDSA44PublicKey
    | mldsa.MLDSA65PublicKey
    | mldsa.MLDSA87PublicKey
)
_Private: TypeAlias = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
    | mldsa.MLDSA44PrivateKey
    | mldsa.MLDSA65PrivateKey
    | mldsa.MLDSA87PrivateKey
)


class KeyRefused(ValueError):
    """The octets are no key that may be used; says why, and nothing of a private key."""


class SignatureMismatch(Exception):
    """The signature is not one by this key over these octets."""


class KeyKind(StrEnum):
    """What a key is of, by the name that operators see."""

    RSA = "rsa"
    ECDSA_P256 = "ecdsa-p256"
    ECDSA_P384 = "ecdsa-p384"
    ECDSA_P521 = "ecdsa-p521"
    ED25519 = "ed25519"
    ED448 = "ed448"
    ML_DSA_44 = "ml-dsa-44"
    ML_DSA_65 = "ml-dsa-65"
    ML_DSA_87 = "ml-dsa-87"


EXPERIMENTAL = frozenset({KeyKind.ML_DSA_44, KeyKind.ML_DSA_65, KeyKind.ML_DSA_87})
"""Those of a draft, which may yet change."""


class Form(StrEnum):
    """How octets and a hash become a signature."""

    PKCS1 = "rsa-pkcs1"
    PSS = "rsa-pss"
    ECDSA = "ecdsa"
    ECDSA_RAW = "ecdsa-raw"
    EDDSA = "eddsa"
    ML_DSA = "ml-dsa"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A way to sign. `identifiers` are the DER AlgorithmIdentifiers that mean it, ours first."""

    name: str
    form: Form
    kinds: frozenset[KeyKind]
    hash: HashAlgorithm
    identifiers: tuple[bytes, ...] = ()


class VerifyingKey:
    """A public key that may be used. `spki` is its DER SubjectPublicKeyInfo (RFC 5280 4.1.2.7)."""

    __slots__ = ("_key", "bits", "kind", "spki")

    def __init__(self, spki: bytes, kind: KeyKind, bits: int, key: _Public) -> None:
        self.spki = spki
        self.kind = kind
        self.bits = bits
        self._key = key

    @classmethod
    def of_spki(cls, spki: bytes) -> Self:
        """Raises `KeyRefused` for anything but the one DER encoding of a key of a `KeyKind`."""
        if len(spki) > MAX_KEY_OCTETS:
            raise KeyRefused(f"a public key of more than {MAX_KEY_OCTETS} octets")
        try:
            key = load_der_public_key(spki)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeyRefused("this is no DER SubjectPublicKeyInfo that can be read") from error
        kind, bits = _judge(key)
        assert isinstance(key, _Public)
        # Also a key that is for RSASSA-PSS alone (RFC 4055 section 3.1) is not that of an RSA key.
        if key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != spki:
            raise KeyRefused("the public key is not in its usual DER encoding")
        return cls(spki, kind, bits, key)

    @property
    def fingerprint(self) -> str:
        """See `fingerprint`."""
        return fingerprint(self.spki)

    @classmethod
    def of_file(cls, data: bytes) -> Self:
        """A SubjectPublicKeyInfo as people keep it: PEM, base64 or DER. Raises `KeyRefused`."""
        try:
            if b"-----BEGIN" in data:
                data = load_pem_public_key(data).public_bytes(
                    Encoding.DER, PublicFormat.SubjectPublicKeyInfo
                )
            elif not data.startswith(b"\x30"):
                data = b64decode(b"".join(data.split()), validate=True)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeyRefused("this is neither PEM nor base64 of a public key") from error
        return cls.of_spki(data)

    def verify(self, scheme: Scheme, signature: bytes, octets: bytes) -> None:
        """Raises `SignatureMismatch` unless `signature` is this key's over `octets`."""
        if self.kind not in scheme.kinds:
            raise SignatureMismatch(f"{scheme.name} is not of a key of {self.kind}")
        try:
            self._verify(scheme, signature, octets)
        except (InvalidSignature, ValueError) as error:
            raise SignatureMismatch("the signature is not by this key") from error

    def _verify(self, scheme: Scheme, signature: bytes, octets: bytes) -> None:
        key = self._key
        if isinstance(key, rsa.RSAPublicKey):
            if len(signature) != (self.bits + 7) // 8:
                raise SignatureMismatch(f"an RSA signature of {len(signature)} octets")
            key.verify(signature, octets, _padding(scheme), _HASHES[scheme.hash])
        elif isinstance(key, ec.EllipticCurvePublicKey):
            if scheme.form is Form.ECDSA_RAW:
                signature = _der_of_raw(signature, (self.bits + 7) // 8)
            key.verify(signature, octets, ec.ECDSA(_HASHES[scheme.hash]))
        else:
            key.verify(signature, octets)


_PKCS12 = re.compile(rb"\x30(?:[\0-\x80]|\x81.|\x82..|\x83...)\x02\x01\x03", re.DOTALL)
"""RFC 7292 section 4: a sequence that begins with the version, 3, as no other file of keys does."""


def is_pkcs12(data: bytes) -> bool:
    """Whether a file is of PKCS #12, by its beginning."""
    return _PKCS12.match(data) is not None


def certificates_of_pkcs12(data: bytes, passphrase: bytes | None = None) -> tuple[bytes, ...]:
    """The certificates of a PKCS #12 file in DER, that of its key first. Raises `KeyRefused`."""
    found = _load_pkcs12(data, passphrase)
    if found.cert is None:
        raise KeyRefused("no certificate of the key is in it")
    held = (found.cert, *found.additional_certs)
    return tuple(each.certificate.public_bytes(Encoding.DER) for each in held)


def _load_pkcs12(data: bytes, passphrase: bytes | None) -> PKCS12KeyAndCertificates:
    try:
        with warnings.catch_warnings():
            # RFC 7292 section 4 allows BER, which NSS writes; the library warns of it.
            warnings.filterwarnings("ignore", "PKCS#12 bundle could not be parsed as DER")
            return load_pkcs12(data, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        cause = "`passphrase` is missing" if passphrase is None else "the passphrase is another"
        raise KeyRefused(f"this PKCS #12 cannot be read: it is damaged, or {cause}") from error


class SigningKey:
    """A private key of ours in memory; its `public` half."""

    __slots__ = ("_key", "public")

    def __init__(self, key: _Private, public: VerifyingKey) -> None:
        self._key = key
        self.public = public

    @classmethod
    def of_pkcs8(cls, octets: bytes) -> Self:
        """An unencrypted DER PrivateKeyInfo (RFC 5958). Raises `KeyRefused`."""
        return cls.of_file(octets)

    @classmethod
    def of_file(cls, data: bytes, passphrase: bytes | None = None) -> Self:
        """A private key as people keep it: PEM or DER, PKCS #8 or older, perhaps encrypted; or
        PKCS #12 (RFC 7292).

        Raises `KeyRefused`.
        """
        if is_pkcs12(data):
            return cls._of_key(_load_pkcs12(data, passphrase).key)
        load = load_pem_private_key if b"-----BEGIN" in data else load_der_private_key
        try:
            key = load(data, password=passphrase)
        except TypeError as error:  # The library's word for a passphrase too few or too many.
            lacks = "it is encrypted, and `passphrase` is missing"
            raise KeyRefused(lacks if passphrase is None else "it is not encrypted") from error
        except (ValueError, UnsupportedAlgorithm) as error:
            wrong = "" if passphrase is None else ", or the passphrase is another"
            raise KeyRefused(f"this is no private key that can be read{wrong}") from error
        return cls._of_key(key)

    @classmethod
    def _of_key(cls, key: object) -> Self:
        if key is None:
            raise KeyRefused("no private key is in it")
        if not isinstance(key, _Private):
            raise KeyRefused("a private key of this kind does not sign in IKEv2")
        public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return cls(key, VerifyingKey.of_spki(public))

    @classmethod
    def generate(cls) -> Self:
        """A new one, of Ed25519."""
        return cls.of_pkcs8(_pkcs8(ed25519.Ed25519PrivateKey.generate()))

    @property
    def kind(self) -> KeyKind:
        return self.public.kind

    def pkcs8(self) -> bytes:
        """Its unencrypted DER PrivateKeyInfo, to be kept where nobody else can read."""
        return _pkcs8(self._key)

    def pem(self) -> bytes:
        """The same, as files have it."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, scheme: Scheme, octets: bytes) -> bytes:
        """A signature of `octets` in the encoding of the scheme.

        But for RSASSA-PSS and ML-DSA it is a function of key and octets.
        """
        assert self.kind in scheme.kinds
        key = self._key
        if isinstance(key, rsa.RSAPrivateKey):
            return key.sign(octets, _padding(scheme), _HASHES[scheme.hash])
        if isinstance(key, ec.EllipticCurvePrivateKey):
            signature = key.sign(octets, ec.ECDSA(_HASHES[scheme.hash], deterministic_signing=True))
            is_raw = scheme.form is Form.ECDSA_RAW
            return _raw_of_der(signature, (self.public.bits + 7) // 8) if is_raw else signature
        return key.sign(octets)


def fingerprint(spki: bytes) -> str:
    """How a public key is told from another, in a line: as OpenSSH writes it, over the SPKI."""
    digest = b64encode(sha256(spki).digest()).decode().rstrip("=")
    return f"SHA256:{digest}"


@lru_cache(maxsize=KNOWN_KEYS)
def verifying_key(spki: bytes) -> VerifyingKey:
    """See `VerifyingKey.of_spki`."""
    return VerifyingKey.of_spki(spki)


@lru_cache(maxsize=KNOWN_KEYS)
def signing_key(pkcs8: bytes) -> SigningKey:
    """See `SigningKey.of_pkcs8`."""
    return SigningKey.of_pkcs8(pkcs8)


def choose_scheme(
    schemes: Iterable[Scheme], kind: KeyKind, hashes: Iterable[int], *, rsa_form: Form = Form.PSS
) -> Scheme | None:
    """The scheme for a key of ours towards a peer that verifies with `hashes`; None if none fits.

    A curve goes with the hash of its strength first (RFC 5656 section 6.2.1).
    """
    usable = [
        scheme
        for scheme in schemes
        if kind in scheme.kinds
        and scheme.hash in set(hashes)
        and (kind is not KeyKind.RSA or scheme.form is rsa_form)
    ]
    preferred = _STRENGTH.get(kind, HashAlgorithm.SHA2_256)
    return min(usable, key=lambda scheme: (scheme.hash < preferred, scheme.hash), default=None)


def scheme_of(schemes: Iterable[Scheme], identifier: bytes) -> Scheme | None:
    """The scheme that an AlgorithmIdentifier means, if it is one of these."""
    return next((scheme for scheme in schemes if identifier in scheme.identifiers), None)


def _judge(key: object) -> tuple[KeyKind, int]:
    """What a public key is and its size. Raises `KeyRefused` if it may not be used."""
    if isinstance(key, rsa.RSAPublicKey):
        _judge_rsa(key)
        return KeyKind.RSA, key.key_size
    if isinstance(key, ec.EllipticCurvePublicKey):
        kinds = [kind for kind, curve in CURVES.items() if isinstance(key.curve, curve)]
        if not kinds:
            raise KeyRefused(f"the curve {key.curve.name} does not sign in IKEv2 here")
        return kinds[0], key.key_size
    if isinstance(key, ed25519.Ed25519PublicKey):
        return KeyKind.ED25519, 256
    if isinstance(key, ed448.Ed448PublicKey):
        return KeyKind.ED448, 456
    for kind, (of_kind, octets) in _ML_DSA.items():
        if isinstance(key, of_kind):
            return kind, 8 * octets
    raise KeyRefused("a public key of this kind does not sign in IKEv2")


def _judge_rsa(key: rsa.RSAPublicKey) -> None:
    exponent = key.public_numbers().e
    if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        raise KeyRefused(
            f"an RSA key of {key.key_size} bits; {MIN_RSA_BITS} to {MAX_RSA_BITS} are accepted"
        )
    if not MIN_RSA_EXPONENT <= exponent < MAX_RSA_EXPONENT or not exponent % 2:
        raise KeyRefused("an RSA key whose public exponent is not an odd one of at least 65537")


def _padding(scheme: Scheme) -> padding.AsymmetricPadding:
    if scheme.form is Form.PKCS1:
        return padding.PKCS1v15()
    algorithm = _HASHES[scheme.hash]
    return padding.PSS(mgf=padding.MGF1(algorithm), salt_length=algorithm.digest_size)


def _pkcs8(key: _Private) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def _der_of_raw(signature: bytes, size: int) -> bytes:
    """RFC 4754 section 7: r and s, each of the octets of the curve's order."""
    if len(signature) != 2 * size:
        raise SignatureMismatch(f"an ECDSA signature of {len(signature)} octets")
    return encode_dss_signature(
        int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
    )


def _raw_of_der(signature: bytes, size: int) -> bytes:
    return b"".join(number.to_bytes(size, "big") for number in decode_dss_signature(signature))


_HASHES: dict[int, _Hash] = {
    HashAlgorithm.SHA1: SHA1(),
    HashAlgorithm.SHA2_256: SHA256(),
    HashAlgorithm.SHA2_384: SHA384(),
    HashAlgorithm.SHA2_512: SHA512(),
}
CURVES: dict[KeyKind, type[ec.EllipticCurve]] = {
    KeyKind.ECDSA_P256: ec.SECP256R1,
    KeyKind.ECDSA_P384: ec.SECP384R1,
    KeyKind.ECDSA_P521: ec.SECP521R1,
}
_ML_DSA: dict[KeyKind, tuple[type, int]] = {
    KeyKind.ML_DSA_44: (mldsa.MLDSA44PublicKey, 1312),
    KeyKind.ML_DSA_65: (mldsa.MLDSA65PublicKey, 1952),
    KeyKind.ML_DSA_87: (mldsa.MLDSA87PublicKey, 2592),
}
"""With the octets of a public key (FIPS 204 table 2)."""
_STRENGTH = {
    KeyKind.ECDSA_P384: HashAlgorithm.SHA2_384,
    KeyKind.ECDSA_P521: HashAlgorithm.SHA2_512,
}
_RSA = frozenset({KeyKind.RSA})
_ECDSA = frozenset(CURVES)
_SHA2 = (HashAlgorithm.SHA2_256, HashAlgorithm.SHA2_384, HashAlgorithm.SHA2_512)


# DER, for the few constants that are needed of it.


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    assert len(body) < 0x80  # The short form of a length.
    return bytes((tag, len(body))) + body


_SEQUENCE, _OID, _INTEGER, _FIRST = 0x30, 0x06, 0x02, 0xA0
_NULLS = (b"\x05\x00", b"")
"""Parameters of a hash: both "MUST be accepted" (RFC 4055 section 2.1), and the first is usual."""
_PKCS1_ARC = bytes.fromhex("2a864886f70d0101")
_ECDSA_ARC = bytes.fromhex("2a8648ce3d0403")
_HASH_ARC = bytes.fromhex("608648016503040200")[:-1]
_SIGNATURE_ARC = bytes.fromhex("6086480165030403")
_MGF1 = _der(_OID, _PKCS1_ARC, b"\x08")
_ARC_ENDS = {  # Under the hashes' arc, PKCS #1 and ANSI X9.62.
    HashAlgorithm.SHA2_256: (1, 11, 2),
    HashAlgorithm.SHA2_384: (2, 12, 3),
    HashAlgorithm.SHA2_512: (3, 13, 4),
}


def _pkcs1_identifiers(algorithm: HashAlgorithm) -> tuple[bytes, ...]:
    oid = _der(_OID, _PKCS1_ARC, bytes((_ARC_ENDS[algorithm][1],)))
    return tuple(_der(_SEQUENCE, oid, null) for null in _NULLS)


def _pss_identifiers(algorithm: HashAlgorithm) -> tuple[bytes, ...]:
    """RFC 4055 section 3.1: hash, MGF1 with the same one, and a salt of its size."""
    oid = _der(_OID, _HASH_ARC, bytes((_ARC_ENDS[algorithm][0],)))
    salt = _der(_INTEGER, bytes((_HASHES[algorithm].digest_size,)))
    return tuple(
        _der(
            _SEQUENCE,
            _der(_OID, _PKCS1_ARC, b"\x0a"),
            _der(
                _SEQUENCE,
                _der(_FIRST, _der(_SEQUENCE, oid, null)),
                _der(_FIRST + 1, _der(_SEQUENCE, _MGF1, _der(_SEQUENCE, oid, mask_null))),
                _der(_FIRST + 2, salt),
            ),
        )
        for null, mask_null in product(_NULLS, repeat=2)
    )


def _ecdsa_identifiers(algorithm: HashAlgorithm) -> tuple[bytes, ...]:
    return (_der(_SEQUENCE, _der(_OID, _ECDSA_ARC, bytes((_ARC_ENDS[algorithm][2],)))),)


def _row(form: Form, algorithm: HashAlgorithm, identifiers: tuple[bytes, ...] = ()) -> Scheme:
    return Scheme(
        name=f"{form}-{_HASHES[algorithm].name}",
        form=form,
        kinds=_RSA if form in (Form.PKCS1, Form.PSS) else _ECDSA,
        hash=algorithm,
        identifiers=identifiers,
    )


def _unhashed(form: Form, kind: KeyKind, oid: bytes) -> Scheme:
    """It takes the octets themselves, which the hash list calls "identity" (RFC 8420)."""
    return Scheme(
        name=str(kind),
        form=form,
        kinds=frozenset({kind}),
        hash=HashAlgorithm.IDENTITY,
        identifiers=(_der(_SEQUENCE, _der(_OID, oid)),),
    )


SCHEMES = (
    _unhashed(Form.EDDSA, KeyKind.ED25519, b"\x2b\x65\x70"),
    _unhashed(Form.EDDSA, KeyKind.ED448, b"\x2b\x65\x71"),
    *(_row(Form.ECDSA, h, _ecdsa_identifiers(h)) for h in _SHA2),
    *(_row(Form.PSS, h, _pss_identifiers(h)) for h in _SHA2),
    *(_row(Form.PKCS1, h, _pkcs1_identifiers(h)) for h in _SHA2),
    *(
        _unhashed(Form.ML_DSA, kind, _SIGNATURE_ARC + bytes((end,)))
        for end, kind in enumerate(_ML_DSA, 0x11)
    ),
)
"""Those of the Digital Signature method (RFC 7427)."""

LEGACY_RSA = tuple(_row(Form.PKCS1, h) for h in _SHA2)
WEAK_RSA = _row(Form.PKCS1, HashAlgorithm.SHA1)
"""What method 1 may mean, and what every implementation of it means (RFC 7296 section 3.8)."""


def _legacy_ecdsa(kind: KeyKind, algorithm: HashAlgorithm) -> Scheme:
    return Scheme(
        name=f"{kind}-{_HASHES[algorithm].name}",
        form=Form.ECDSA_RAW,
        kinds=frozenset({kind}),
        hash=algorithm,
    )


LEGACY_ECDSA = {
    kind: _legacy_ecdsa(kind, algorithm) for kind, algorithm in zip(CURVES, _SHA2, strict=True)
}
"""Methods 9 to 11 (RFC 4754)."""
