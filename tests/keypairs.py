"""Key pairs for tests, made once a run: an own and a stranger's of each kind that may sign."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa
from cryptography.hazmat.primitives.asymmetric import rsa as rsa_keys
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from xfrmpy.crypto.signatures import KeyKind, SigningKey
from xfrmpy.policy.model import PrivateKey, PublicKey, RsaSignature

_MAKE: dict[KeyKind, Callable[[], Any]] = {
    KeyKind.RSA: lambda: rsa_keys.generate_private_key(65537, 2048),
    KeyKind.ECDSA_P256: lambda: ec.generate_private_key(ec.SECP256R1()),
    KeyKind.ECDSA_P384: lambda: ec.generate_private_key(ec.SECP384R1()),
    KeyKind.ECDSA_P521: lambda: ec.generate_private_key(ec.SECP521R1()),
    KeyKind.ED25519: ed25519.Ed25519PrivateKey.generate,
    KeyKind.ED448: ed448.Ed448PrivateKey.generate,
    KeyKind.ML_DSA_44: mldsa.MLDSA44PrivateKey.generate,
    KeyKind.ML_DSA_65: mldsa.MLDSA65PrivateKey.generate,
    KeyKind.ML_DSA_87: mldsa.MLDSA87PrivateKey.generate,
}


def key_pair(kind: KeyKind, whose: str = "ours") -> SigningKey:
    """The same for the same arguments, as long as the process lives."""
    return _key_pair(kind, whose)


@cache
def _key_pair(kind: KeyKind, _whose: str) -> SigningKey:
    made = _MAKE[kind]().private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return SigningKey.of_pkcs8(made)


def private_key(
    kind: KeyKind, whose: str = "ours", *, rsa: RsaSignature = RsaSignature.PSS
) -> PrivateKey:
    """As a policy holds it."""
    key = key_pair(kind, whose)
    return PrivateKey(octets=key.pkcs8(), public=key.public.spki, origin=whose, rsa=rsa)


def public_key(kind: KeyKind, whose: str = "ours") -> PublicKey:
    return PublicKey(spki=key_pair(kind, whose).public.spki, origin=f"{whose} (public)")
