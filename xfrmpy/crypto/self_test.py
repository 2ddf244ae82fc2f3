"""The start-up test: which algorithms of the table does the library here really do, and rightly?

Each row computes a known answer (each cipher with each integrity algorithm that it needs), so that
nothing is ever offered that would fail or, worse, come out wrong once negotiated. An answer is kept
as the start of its SHA-256. The vectors of the test suite are the proof that the answers are right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial

from xfrmpy.crypto.cipher import IntegrityFailed, packet_cipher
from xfrmpy.crypto.key_exchange import start_key_exchange
from xfrmpy.crypto.prf import prf_plus
from xfrmpy.ipsec import algorithms


def failed_algorithms() -> dict[str, str]:
    """The algorithms that must not be offered, each with a sentence saying why; empty is good.

    Names are those of the table; a cipher that is not AEAD is named with its integrity algorithm
    (`aes256-sha256`), as in the datapath's `Capabilities`. Takes some 20 ms.
    """
    failed = {}
    for name, compute in _tests():
        try:
            answer = hashlib.sha256(compute()).hexdigest()[:_ANSWER_DIGITS]
        except Exception as error:  # whatever the library raises, it failed
            failed[name] = f"{type(error).__name__}: {error}"
        else:
            if answer != KNOWN_ANSWERS.get(name):
                failed[name] = "the result differs from the known answer"
    return failed


def _tests() -> Iterator[tuple[str, Callable[[], bytes]]]:
    for row in algorithms.PRFS:
        yield row.name, partial(_run_prf, row)
    for cipher in algorithms.CIPHERS:
        if cipher.is_aead:
            yield cipher.name, partial(_run_cipher, cipher, None)
            continue
        for integrity in algorithms.INTEGRITY:
            yield f"{cipher.name}-{integrity.name}", partial(_run_cipher, cipher, integrity)
    for group in algorithms.GROUPS:
        yield group.name, partial(_run_key_exchange, group)


def _run_prf(row: algorithms.Prf) -> bytes:
    return prf_plus(row, _octets(row.key), b"seed", 2 * row.key + 1)


def _run_cipher(cipher: algorithms.Cipher, integrity: algorithms.Integrity | None) -> bytes:
    key = _octets(cipher.keymat)
    integrity_key = b"" if integrity is None else _octets(integrity.key)
    iv, plaintext, header = _octets(cipher.iv), _octets(64), b"header"
    sealing = packet_cipher(cipher, integrity, key, integrity_key)
    sealed = sealing.seal(iv, plaintext, header)
    # Twice, because the second packet meets the state that the first one left.
    if sealing.seal(iv, plaintext, header) != sealed:
        raise ValueError("sealing twice gives two results")
    opening = packet_cipher(cipher, integrity, key, integrity_key)
    if opening.open(iv, sealed, header) != plaintext:
        raise ValueError("a sealed packet does not open")
    try:
        opening.open(iv, sealed, b"forged")
    except IntegrityFailed:
        return sealed
    raise ValueError("a forged packet opens")


def _run_key_exchange(group: algorithms.KeyExchangeGroup) -> bytes:
    """Our public value, and the secret shared with a peer who happens to send the same one."""
    exchange = start_key_exchange(group.id, _octets)
    return exchange.public_value + exchange.shared_secret(exchange.public_value)


def _octets(size: int) -> bytes:
    return bytes(range(size))


_ANSWER_DIGITS = 16

KNOWN_ANSWERS = {
    "prfsha256": "b674209c233ffc87",
    "prfsha384": "b173efdc8a0c5aea",
    "prfsha512": "c15204c807d88b45",
    "aes128gcm16": "96c4372c78937c0a",
    "aes192gcm16": "0ded1f096a83e99f",
    "aes256gcm16": "cd3f3642ac76dc97",
    "chacha20poly1305": "fd84bef2406d3dea",
    "aes128-sha256": "d2908daa879d5201",
    "aes128-sha384": "f3504043f57e09f0",
    "aes128-sha512": "972a5b142acab89f",
    "aes192-sha256": "a68a49f370246146",
    "aes192-sha384": "a25a04e4a75165bf",
    "aes192-sha512": "2729fc87f6ac5999",
    "aes256-sha256": "1d6ead27b8b12d11",
    "aes256-sha384": "93869e8b28cc6c33",
    "aes256-sha512": "aa0e6acfc935492a",
    "x25519": "b671df13b7c84382",
    "ecp256": "af572ad0b4e2a3aa",
    "ecp384": "ed0f5204db90c36a",
    "ecp521": "7cff726a1c7dc00c",
    "modp2048": "3facc1659c04fdf5",
    "modp3072": "725d4aab276a0735",
    "modp4096": "af9ec6725caee373",
}
