"""Key exchange: our public value, and the shared secret of it and the peer's.

Read RFC 7296 sections 2.12 and 3.4, RFC 6989 (checks of the peer's public value), RFC 5903 (ECP),
RFC 8031 (x25519) and FIPS 203 (ML-KEM); MODP stands in `modp.py`. The private value comes from the
caller's `random` and from nowhere else, so that a run can be replayed, and an exchange can go on
after a restart. The one exception is what a responder encapsulates with ML-KEM: the library takes
the randomness of that from the operating system. It need not be kept, for the answer is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, mlkem
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from xfrmpy.ipsec import algorithms
from xfrmpy.registry import KeyExchangeMethod

Random: TypeAlias = Callable[[int], bytes]


class InvalidPublicValue(Exception):
    """The peer's public value is of the wrong size, no member of the group, or degenerate."""


class KeyExchange(Protocol):
    """The end that begins a key exchange: used for one exchange, then forgotten (RFC 7296 2.12)."""

    method: KeyExchangeMethod
    public_value: bytes
    """The key exchange data of our KE payload, of the size that the algorithms table gives."""
    seed: bytes
    """What the private value follows from, as secret as that: see `resume_key_exchange`."""

    def shared_secret(self, peer_public_value: bytes) -> bytes:
        """g^ir at its fixed width, or what the peer has encapsulated for us.

        Raises `InvalidPublicValue`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The end that answers: the key exchange data of its KE payload, and how the secret is found.

    `shared_secret` raises `InvalidPublicValue`. With Diffie-Hellman it costs as much as the answer,
    so it can be put off until the peer is worth it.
    """

    public_value: bytes
    shared_secret: Callable[[], bytes] = field(repr=False)


def start_key_exchange(method: KeyExchangeMethod, random: Random) -> KeyExchange:
    """Choose a private value and compute the public one.

    Costs one private key operation of the method. Raises `KeyError` for a method that is not in
    the table of algorithms.
    """
    return _STARTERS[algorithms.group(method).id](method, random)


def answer_key_exchange(
    method: KeyExchangeMethod, peer_public_value: bytes, random: Random
) -> Answer:
    """Answer the one who has started. Raises `InvalidPublicValue`, or `KeyError` as above."""
    if method in _KEMS:
        check_size(method, peer_public_value)
        return _encapsulate(_KEMS[method], peer_public_value)
    exchange = start_key_exchange(method, random)
    return Answer(
        public_value=exchange.public_value,
        shared_secret=lambda: exchange.shared_secret(peer_public_value),
    )


def resume_key_exchange(method: KeyExchangeMethod, seed: bytes) -> KeyExchange:
    """The very exchange that had this `seed`, in another process. Raises `ValueError`."""

    def once(size: int) -> bytes:
        if len(seed) != size:
            raise ValueError(f"a seed of {len(seed)} octets in place of {size}")
        return seed

    return start_key_exchange(method, once)


def check_size(method: KeyExchangeMethod, public_value: bytes, *, of_answer: bool = False) -> None:
    """Raises `InvalidPublicValue` unless the value has the method's size (RFC 7296 3.4)."""
    size = algorithms.group(method).size(of_answer=of_answer)
    if len(public_value) != size:
        raise InvalidPublicValue(f"{len(public_value)} octets in place of {size}")


class _X25519:
    def __init__(self, method: KeyExchangeMethod, random: Random) -> None:
        self.method = method
        self.seed = random(32)
        self._private = X25519PrivateKey.from_private_bytes(self.seed)
        self.public_value = self._private.public_key().public_bytes_raw()

    def shared_secret(self, peer_public_value: bytes) -> bytes:
        check_size(self.method, peer_public_value)
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(peer_public_value))
        except ValueError:
            # The library refuses the all-zero result that the points of low order lead to
            # (RFC 7748 section 6.1). Other values, canonical or not, are good (RFC 8031 3.2).
            raise InvalidPublicValue("a point of low order") from None


class _Ecp:
    def __init__(self, method: KeyExchangeMethod, random: Random) -> None:
        self.method = method
        self._curve = _CURVES[method]
        order = self._curve.group_order
        # 64 bits more than the order has make the bias of the remainder negligible
        # (FIPS 186-5 appendix A.2.1).
        self.seed = random((order.bit_length() + 7) // 8 + 8)
        scalar = int.from_bytes(self.seed) % (order - 1) + 1
        self._private = ec.derive_private_key(scalar, self._curve)
        point = self._private.public_key().public_bytes(
            Encoding.X962, PublicFormat.UncompressedPoint
        )
        self.public_value = point[1:]

    def shared_secret(self, peer_public_value: bytes) -> bytes:
        # The secret is the x coordinate alone, of fixed width (RFC 5903 section 7).
        check_size(self.method, peer_public_value)
        try:
            point = b"\x04" + peer_public_value
            peer = ec.EllipticCurvePublicKey.from_encoded_point(self._curve, point)
        except ValueError:
            raise InvalidPublicValue("not a point of the curve") from None
        return self._private.exchange(ec.ECDH(), peer)


class _MlKem:
    """ML-KEM: the initiator's public value is an encapsulation key, the answer a ciphertext.

    The types of FIPS 203 section 7.3 are the sizes. A ciphertext that was not made for our key
    gives another secret and no error (implicit rejection), so AUTH fails.
    """

    def __init__(self, method: KeyExchangeMethod, random: Random) -> None:
        self.method = method
        self.seed = random(_ML_KEM_SEED)
        private, _ = _KEMS[method]
        self._private = private.from_seed_bytes(self.seed)
        self.public_value = self._private.public_key().public_bytes_raw()

    def shared_secret(self, peer_public_value: bytes) -> bytes:
        check_size(self.method, peer_public_value, of_answer=True)
        return self._private.decapsulate(peer_public_value)


def _encapsulate(kem: _Kem, encapsulation_key: bytes) -> Answer:
    _, public = kem
    try:
        # The library makes the modulus check of FIPS 203 section 7.2.
        secret, ciphertext = public.from_public_bytes(encapsulation_key).encapsulate()
    except ValueError:
        raise InvalidPublicValue("no encapsulation key of ML-KEM") from None
    return Answer(public_value=ciphertext, shared_secret=lambda: secret)


def _start_modp(method: KeyExchangeMethod, random: Random) -> KeyExchange:
    # Late, because the library means to drop finite-field Diffie-Hellman: when it has, the self
    # test finds the MODP groups failed and the other methods go on.
    from xfrmpy.crypto import modp  # noqa: PLC0415

    return modp.start(method, random)


_CURVES: dict[KeyExchangeMethod, ec.EllipticCurve] = {
    KeyExchangeMethod.ECP_256: ec.SECP256R1(),
    KeyExchangeMethod.ECP_384: ec.SECP384R1(),
    KeyExchangeMethod.ECP_521: ec.SECP521R1(),
}

_Kem: TypeAlias = tuple[
    type[mlkem.MLKEM768PrivateKey | mlkem.MLKEM1024PrivateKey],
    type[mlkem.MLKEM768PublicKey | mlkem.MLKEM1024PublicKey],
]

_KEMS: dict[KeyExchangeMethod, _Kem] = {
    KeyExchangeMethod.ML_KEM_768: (mlkem.MLKEM768PrivateKey, mlkem.MLKEM768PublicKey),
    KeyExchangeMethod.ML_KEM_1024: (mlkem.MLKEM1024PrivateKey, mlkem.MLKEM1024PublicKey),
}
_ML_KEM_SEED = 64
"""Octets of d and z (FIPS 203 section 7.1)."""

_STARTERS: dict[KeyExchangeMethod, Callable[[KeyExchangeMethod, Random], KeyExchange]] = {
    KeyExchangeMethod.CURVE25519: _X25519,
    KeyExchangeMethod.ECP_256: _Ecp,
    KeyExchangeMethod.ECP_384: _Ecp,
    KeyExchangeMethod.ECP_521: _Ecp,
    KeyExchangeMethod.MODP_2048: _start_modp,
    KeyExchangeMethod.MODP_3072: _start_modp,
    KeyExchangeMethod.MODP_4096: _start_modp,
    KeyExchangeMethod.ML_KEM_768: _MlKem,
    KeyExchangeMethod.ML_KEM_1024: _MlKem,
}
