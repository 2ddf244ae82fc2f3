"""Key exchange in the MODP groups of RFC 3526 (RFC 7296 section 3.4, RFC 6989 section 2.1).

The exponentiations are OpenSSL's: constant in time, and seven times faster than `pow`. The library
warns that it will drop finite-field Diffie-Hellman; peers that know nothing else will stay, so the
warning is silenced here, and `key_exchange.py` imports this module only when a group is used.
"""

from __future__ import annotations

import warnings

from cryptography.utils import CryptographyDeprecationWarning

from xfrmpy.crypto.key_exchange import InvalidPublicValue, Random, check_size
from xfrmpy.registry import KeyExchangeMethod

with warnings.catch_warnings():
    warnings.simplefilter("ignore", CryptographyDeprecationWarning)
    from cryptography.hazmat.primitives.asymmetric.dh import (
        DHParameterNumbers,
        DHPrivateNumbers,
        DHPublicNumbers,
    )

GENERATOR = 2

EXPONENT_SIZE = {
    KeyExchangeMethod.MODP_2048: 40,
    KeyExchangeMethod.MODP_3072: 53,
    KeyExchangeMethod.MODP_4096: 60,
}
"""Octets of randomness in the private value: the larger estimate of RFC 3526 section 8."""


def start(method: KeyExchangeMethod, random: Random) -> ModpKeyExchange:
    """Choose a private value: a leading one, so that all are of one length, and random octets."""
    seed = random(EXPONENT_SIZE[method])
    return ModpKeyExchange(method, int.from_bytes(b"\x01" + seed), seed)


class ModpKeyExchange:
    """See `key_exchange.KeyExchange`."""

    def __init__(self, method: KeyExchangeMethod, exponent: int, seed: bytes = b"") -> None:
        self.method = method
        self.seed = seed
        self._group = _GROUPS[method]
        # The library wants a public value beside the private one and has no way to compute it:
        # give any, and exchange with the generator, which is the same thing.
        placeholder = DHPublicNumbers(GENERATOR, self._group)
        self._private = DHPrivateNumbers(exponent, placeholder).private_key()
        self.public_value = self._power(GENERATOR)

    def shared_secret(self, peer_public_value: bytes) -> bytes:
        """g^ir at the width of the prime. Raises `InvalidPublicValue` outside 1 < r < p - 1."""
        check_size(self.method, peer_public_value)
        public = int.from_bytes(peer_public_value)
        if not 1 < public < self._group.p - 1:
            raise InvalidPublicValue("not between 1 and p - 1")
        return self._power(public)

    def _power(self, base: int) -> bytes:
        return self._private.exchange(DHPublicNumbers(base, self._group).public_key())


def _group(prime: str) -> DHParameterNumbers:
    return DHParameterNumbers(int("".join(prime.split()), 16), GENERATOR)


_GROUPS = {
    KeyExchangeMethod.MODP_2048: _group(
        """
        ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74
        020bbea63b139b22514a08798e3404ddef9519b3cd3a431b302b0a6df25f1437
        4fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7ed
        ee386bfb5a899fa5ae9f24117c4b1fe649286651ece45b3dc2007cb8a163bf05
        98da48361c55d39a69163fa8fd24cf5f83655d23dca3ad961c62f356208552bb
        9ed529077096966d670c354e4abc9804f1746c08ca18217c32905e462e36ce3b
        e39e772c180e86039b2783a2ec07a28fb5c55df06f4c52c9de2bcbf695581718
        3995497cea956ae515d2261898fa051015728e5a8aacaa68ffffffffffffffff
        """
    ),
    KeyExchangeMethod.MODP_3072: _group(
        """
        ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74
        020bbea63b139b22514a08798e3404ddef9519b3cd3a431b302b0a6df25f1437
        4fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7ed
        ee386bfb5a899fa5ae9f24117c4b1fe649286651ece45b3dc2007cb8a163bf05
        98da48361c55d39a69163fa8fd24cf5f83655d23dca3ad961c62f356208552bb
        9ed529077096966d670c354e4abc9804f1746c08ca18217c32905e462e36ce3b
        e39e772c180e86039b2783a2ec07a28fb5c55df06f4c52c9de2bcbf695581718
        3995497cea956ae515d2261898fa051015728e5a8aaac42dad33170d04507a33
        a85521abdf1cba64ecfb850458dbef0a8aea71575d060c7db3970f85a6e1e4c7
        abf5ae8cdb0933d71e8c94e04a25619dcee3d2261ad2ee6bf12ffa06d98a0864
        d87602733ec86a64521f2b18177b200cbbe117577a615d6c770988c0bad946e2
        08e24fa074e5ab3143db5bfce0fd108e4b82d120a93ad2caffffffffffffffff
        """
    ),
    KeyExchangeMethod.MODP_4096: _group(
        """
        ffffffffffffffffc90fdaa22168c234c4c6628b80dc1cd129024e088a67cc74
        020bbea63b139b22514a08798e3404ddef9519b3cd3a431b302b0a6df25f1437
        4fe1356d6d51c245e485b576625e7ec6f44c42e9a637ed6b0bff5cb6f406b7ed
        ee386bfb5a899fa5ae9f24117c4b1fe649286651ece45b3dc2007cb8a163bf05
        98da48361c55d39a69163fa8fd24cf5f83655d23dca3ad961c62f356208552bb
        9ed529077096966d670c354e4abc9804f1746c08ca18217c32905e462e36ce3b
        e39e772c180e86039b2783a2ec07a28fb5c55df06f4c52c9de2bcbf695581718
        3995497cea956ae515d2261898fa051015728e5a8aaac42dad33170d04507a33
        a85521abdf1cba64ecfb850458dbef0a8aea71575d060c7db3970f85a6e1e4c7
        abf5ae8cdb0933d71e8c94e04a25619dcee3d2261ad2ee6bf12ffa06d98a0864
        d87602733ec86a64521f2b18177b200cbbe117577a615d6c770988c0bad946e2
        08e24fa074e5ab3143db5bfce0fd108e4b82d120a92108011a723c12a787e6d7
        88719a10bdba5b2699c327186af4e23c1a946834b6150bda2583e9ca2ad44ce8
        dbbbc2db04de8ef92e8efc141fbecaa6287c59474e6bc05d99b2964fa090c3a2
        233ba186515be7ed1f612970cee2d7afb81bdd762170481cd0069127d5b05aa9
        93b4ea988d8fddc186ffb7dc90a6c08f4df435c934063199ffffffffffffffff
        """
    ),
}
