"""The start-up test: which algorithms of the table does the library here really do, and rightly?

Each row computes a known answer (a cipher that needs an integrity algorithm beside it with
HMAC-SHA2-256), so that nothing is ever offered that would fail or, worse, come out wrong once
negotiated. An answer is kept as the start of its SHA-256. The vectors of the test suite are the
proof that the answers are right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, mldsa, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from xfrmpy.crypto.cipher import IntegrityFailed, packet_cipher
from xfrmpy.crypto.key_exchange import answer_key_exchange, start_key_exchange
from xfrmpy.crypto.mac import keyed_mac
from xfrmpy.crypto.prf import prf_plus
from xfrmpy.crypto.signatures import (
    CURVES,
    MIN_RSA_EXPONENT,
    SCHEMES,
    Form,
    KeyKind,
    Scheme,
    SignatureMismatch,
    SigningKey,
    VerifyingKey,
)
from xfrmpy.ipsec import algorithms


def failed_algorithms() -> dict[str, str]:
    """The algorithms that must not be offered, each with a sentence saying why; empty is good.

    Names are those of the table. Takes some 20 ms.
    """
    return _failed(_tests(), KNOWN_ANSWERS)


def failed_schemes() -> dict[str, str]:
    """The signature schemes that must not be used, by their names; empty is good."""
    return _failed(_scheme_tests(), KNOWN_SIGNATURES)


def _failed(
    tests: Iterable[tuple[str, Callable[[], bytes]]], answers: Mapping[str, str]
) -> dict[str, str]:
    failed = {}
    for name, compute in tests:
        try:
            answer = hashlib.sha256(compute()).hexdigest()[:_ANSWER_DIGITS]
        except Exception as error:  # whatever the library raises, it failed
            failed[name] = f"{type(error).__name__}: {error}"
        else:
            if answer != answers.get(name):
                failed[name] = "the result differs from the known answer"
    return failed


def _tests() -> Iterator[tuple[str, Callable[[], bytes]]]:
    for row in algorithms.PRFS:
        yield row.name, partial(_run_prf, row)
    for cipher in algorithms.CIPHERS:
        beside = None if cipher.is_aead else algorithms.INTEGRITY[0]
        yield cipher.name, partial(_run_cipher, cipher, beside)
    for integrity in algorithms.INTEGRITY:
        yield integrity.name, partial(_run_integrity, integrity)
    for group in algorithms.GROUPS:
        yield group.name, partial(_run_key_exchange, group)


def _run_prf(row: algorithms.Prf) -> bytes:
    return prf_plus(row, _octets(row.key), b"seed", 2 * row.key + 1)


def _run_cipher(cipher: algorithms.Cipher, integrity: algorithms.Integrity | None) -> bytes:
    key = _octets(cipher.keymat)
    integrity_key = b"" if integrity is None else _octets(integrity.key)
    iv, plaintext, header = _octets(cipher.whole_iv), _octets(64), b"header"
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


def _run_integrity(integrity: algorithms.Integrity) -> bytes:
    mac = keyed_mac(integrity.mac, _octets(integrity.key))
    # Twice, because the second message meets the state that the first one left.
    return b"".join(mac(_octets(size))[: integrity.icv] for size in (0, 16, 33, 33))


def _run_key_exchange(group: algorithms.KeyExchangeGroup) -> bytes:
    """Our public value, and the secret shared with a peer who happens to send the same one.

    To ML-KEM that one, cut or filled to size, is a ciphertext for somebody else.
    """
    exchange = start_key_exchange(group.id, _octets)
    answer = answer_key_exchange(group.id, exchange.public_value, _octets)
    if exchange.shared_secret(answer.public_value) != answer.shared_secret():
        raise ValueError("two ends come to two secrets")
    theirs = exchange.public_value.ljust(group.size(of_answer=True), b"\0")
    secret = exchange.shared_secret(theirs[: group.size(of_answer=True)])
    return exchange.public_value + secret


def _scheme_tests() -> Iterator[tuple[str, Callable[[], bytes]]]:
    for scheme in SCHEMES:
        yield scheme.name, partial(_run_scheme, scheme)


def _run_scheme(scheme: Scheme) -> bytes:
    """Signatures by keys that are no secret; the keys, where a signature is never twice the same.

    With every key that the scheme is of, a signature is verified, and a forged one refused.
    """
    answer = b""
    for kind in sorted(scheme.kinds):
        key = _key(kind)
        signature = key.sign(scheme, b"octets")
        key.public.verify(scheme, signature, b"octets")
        try:
            key.public.verify(scheme, signature, b"forged")
        except SignatureMismatch:
            is_random = scheme.form in (Form.PSS, Form.ML_DSA)
            answer += key.public.spki if is_random else signature
        else:
            raise ValueError("a forged signature is verified")
    return answer


@cache
def _key(kind: KeyKind) -> SigningKey:
    """A key that everybody knows."""
    match kind:
        case KeyKind.RSA:
            made: Any = _rsa_key()
        case KeyKind.ED25519:
            made = ed25519.Ed25519PrivateKey.from_private_bytes(_octets(32))
        case KeyKind.ED448:
            made = ed448.Ed448PrivateKey.from_private_bytes(_octets(57))
        case KeyKind.ML_DSA_44:
            made = mldsa.MLDSA44PrivateKey.from_seed_bytes(_octets(32))
        case KeyKind.ML_DSA_65:
            made = mldsa.MLDSA65PrivateKey.from_seed_bytes(_octets(32))
        case KeyKind.ML_DSA_87:
            made = mldsa.MLDSA87PrivateKey.from_seed_bytes(_octets(32))
        case _:
            made = ec.derive_private_key(0x5846, CURVES[kind]())
    public = made.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return SigningKey(made, VerifyingKey.of_spki(public))


def _rsa_key() -> rsa.RSAPrivateKey:
    """Of two primes with few digits to write."""
    p, q = (3 << 1022) + 1037, (7 << 1021) + 309
    d = pow(MIN_RSA_EXPONENT, -1, (p - 1) * (q - 1))
    return rsa.RSAPrivateNumbers(
        p=p,
        q=q,
        d=d,
        dmp1=d % (p - 1),
        dmq1=d % (q - 1),
        iqmp=pow(q, -1, p),
        public_numbers=rsa.RSAPublicNumbers(e=MIN_RSA_EXPONENT, n=p * q),
    ).private_key(unsafe_skip_rsa_key_validation=True)


def _octets(size: int) -> bytes:
    return bytes(range(size))


_ANSWER_DIGITS = 16

KNOWN_ANSWERS = {
    "prfsha256": "b674209c233ffc87",
    "prfsha384": "b173efdc8a0c5aea",
    "prfsha512": "c15204c807d88b45",
    "prfaescmac": "e19bac4153d3da36",
    "prfaesxcbc": "ad180576a4e79be2",
    "prfsha1": "39f799b7f7198812",
    "aes128gcm16": "96c4372c78937c0a",
    "aes192gcm16": "0ded1f096a83e99f",
    "aes256gcm16": "cd3f3642ac76dc97",
    "aes128gcm12": "2618b6a4a625f960",
    "aes192gcm12": "16f3fea95eab3d90",
    "aes256gcm12": "5902f8a1f4bea67d",
    "aes128gcm8": "b0ddb8d0b085a6d7",
    "aes192gcm8": "2b552dae1b33bb84",
    "aes256gcm8": "d5d743e47bde806e",
    "aes128ccm16": "c05b09d409f17890",
    "aes192ccm16": "fa8ceadade64fbc6",
    "aes256ccm16": "bddead5b05f4e0a0",
    "aes128ccm12": "c466f8bc7220c71c",
    "aes192ccm12": "d85d91d9da4a8abc",
    "aes256ccm12": "11ce5464214f0cf8",
    "aes128ccm8": "099c782ff4032ae5",
    "aes192ccm8": "a3214130ad3de16d",
    "aes256ccm8": "f2f506e15ae9097a",
    "chacha20poly1305": "fd84bef2406d3dea",
    "aes128gmac": "72afe49b74a1da5b",
    "aes192gmac": "e2fb81d84b299e55",
    "aes256gmac": "8e60d431c0e6930a",
    "aes128gcm16iiv": "96c4372c78937c0a",
    "aes192gcm16iiv": "0ded1f096a83e99f",
    "aes256gcm16iiv": "cd3f3642ac76dc97",
    "aes128ccm8iiv": "099c782ff4032ae5",
    "aes192ccm8iiv": "a3214130ad3de16d",
    "aes256ccm8iiv": "f2f506e15ae9097a",
    "chacha20poly1305iiv": "fd84bef2406d3dea",
    "aes128": "d2908daa879d5201",
    "aes192": "a68a49f370246146",
    "aes256": "1d6ead27b8b12d11",
    "aes128ctr": "6af6533affbf26a4",
    "aes192ctr": "4323da36fa19e081",
    "aes256ctr": "9b2df48f1e0eb4de",
    "camellia128": "12f9bed8c3358e16",
    "camellia192": "cd13b7ffe603bde5",
    "camellia256": "620666902799b77a",
    "3des": "5d1d7324c05b4002",
    "null": "8a610fa2828cd343",
    "sha256": "7585fd28ab3f8cbc",
    "sha384": "63a99218f4e48701",
    "sha512": "d3c005d4d5caa12c",
    "aescmac": "b19efd4f16ea4d8d",
    "aesxcbc": "6a82ad7d9b7c3aca",
    "sha1": "6515f2db4878d374",
    "x25519": "b671df13b7c84382",
    "ecp256": "af572ad0b4e2a3aa",
    "ecp384": "ed0f5204db90c36a",
    "ecp521": "7cff726a1c7dc00c",
    "modp2048": "3facc1659c04fdf5",
    "modp3072": "725d4aab276a0735",
    "modp4096": "af9ec6725caee373",
    "mlkem768": "7a9a887ec65a8a29",
    "mlkem1024": "1207248a3c573bba",
}

KNOWN_SIGNATURES = {
    "ed25519": "9cd0217b1e145f85",
    "ed448": "d55ec3bac920d270",
    "ecdsa-sha256": "b4fa1febfc34b420",
    "ecdsa-sha384": "6fe6e19c65b7e574",
    "ecdsa-sha512": "bd2eea13d74cf504",
    "rsa-pss-sha256": "7d5779c8508f8ac7",
    "rsa-pss-sha384": "7d5779c8508f8ac7",
    "rsa-pss-sha512": "7d5779c8508f8ac7",
    "rsa-pkcs1-sha256": "e1a009e6de595f1f",
    "rsa-pkcs1-sha384": "8d7be08f98eb7f90",
    "rsa-pkcs1-sha512": "506b62f68cb19617",
    "ml-dsa-44": "837832708c5236d9",
    "ml-dsa-65": "b8b62131bfbe8443",
    "ml-dsa-87": "07e57c4f14dbad12",
}
