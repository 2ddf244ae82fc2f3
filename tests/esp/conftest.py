"""SAs to try, in every suite, and a second opinion on what an ESP packet is."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.decrepit.ciphers.algorithms import Camellia, TripleDES
from cryptography.hazmat.primitives import cmac
from cryptography.hazmat.primitives.ciphers import BlockCipherAlgorithm, Cipher, aead
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC, CTR, ECB

from tests.suites import ESP_SUITES
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import Direction, SadEntry, UdpEncapsulation

MakeEntry = Callable[..., SadEntry]
SealByHand = Callable[[SadEntry, int, bytes, bytes], bytes]


@pytest.fixture(params=ESP_SUITES, ids=str)
def suite(request: pytest.FixtureRequest) -> EspSuite:
    chosen: EspSuite = request.param
    return chosen


@pytest.fixture(scope="session")
def make_entry() -> MakeEntry:
    """An SA of AES-256-GCM with ESN, or of another suite, with fields as wanted."""

    def make(suite: EspSuite = ESP_SUITES[5], **changes: object) -> SadEntry:
        entry = SadEntry(
            direction=Direction.OUT,
            spi=0x81020304,
            source=ip_address("198.51.100.1"),
            destination=ip_address("198.51.100.2"),
            reqid=7,
            suite=suite,
            encryption_key=bytes(range(suite.cipher.keymat)),
            integrity_key=b"" if suite.integrity is None else bytes(range(suite.integrity.key)),
            encapsulation=UdpEncapsulation(4500, 4500),
        )
        return replace(entry, **changes)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def seal_by_hand() -> SealByHand:
    """The packet of a plaintext, its padding and trailer included, straight from the RFCs.

    Takes the SA, the whole sequence number, the IV and the plaintext.
    """

    def seal(entry: SadEntry, sequence: int, iv: bytes, plaintext: bytes) -> bytes:
        spi, whole = entry.spi.to_bytes(4, "big"), sequence.to_bytes(8, "big")
        high, low = whole[:4], whole[4:]
        suite = entry.suite
        assert isinstance(suite, EspSuite)
        name, key = suite.cipher.name, entry.encryption_key
        if suite.integrity is None:
            associated = spi + (whole if suite.esn else low)
            nonce_iv = iv or (whole if suite.esn else bytes(4) + low)
            return spi + low + iv + _seal_aead(name, key, nonce_iv, plaintext, associated)
        covered = spi + low + iv + _encrypt(name, key, iv, plaintext)
        tag = _mac(suite.integrity.name, entry.integrity_key, covered + (high * suite.esn))
        return covered + tag

    return seal


def _seal_aead(name: str, key: bytes, iv: bytes, plaintext: bytes, associated: bytes) -> bytes:
    salt = 3 if "ccm" in name else 4
    nonce, key = key[-salt:] + iv, key[:-salt]
    icv = next((size for size in (8, 12) if f"m{size}" in name), 16)
    if "chacha" in name:
        return aead.ChaCha20Poly1305(key).encrypt(nonce, plaintext, associated)
    if "ccm" in name:
        return aead.AESCCM(key, icv).encrypt(nonce, plaintext, associated)
    if "gmac" in name:
        return plaintext + aead.AESGCM(key).encrypt(nonce, b"", associated + iv + plaintext)
    return aead.AESGCM(key).encrypt(nonce, plaintext, associated)[: len(plaintext) + icv]


def _encrypt(name: str, key: bytes, iv: bytes, plaintext: bytes) -> bytes:
    if name == "null":
        return plaintext
    if name.endswith("ctr"):
        counter = CTR(key[-4:] + iv + b"\0\0\0\1")
        return Cipher(AES(key[:-4]), counter).encryptor().update(plaintext)
    algorithms: dict[str, Callable[[bytes], BlockCipherAlgorithm]]
    algorithms = {"3": TripleDES, "c": Camellia, "a": AES}
    return Cipher(algorithms[name[0]](key), CBC(iv)).encryptor().update(plaintext)


def _mac(name: str, key: bytes, message: bytes) -> bytes:
    if name == "aescmac":
        made = cmac.CMAC(AES(key))
        made.update(message)
        return made.finalize()[:12]
    if name == "aesxcbc":
        return xcbc_by_hand(key, message)[:12]
    tag = hmac.new(key, message, getattr(hashlib, name)).digest()
    return tag[:12] if name == "sha1" else tag[: len(tag) // 2]  # RFC 4868 section 2.6


def xcbc_by_hand(key: bytes, message: bytes) -> bytes:
    """RFC 3566 section 4, a block at a time."""

    def block(key: bytes, octets: bytes) -> bytes:
        return Cipher(AES(key), ECB()).encryptor().update(octets)

    k1, k2, k3 = (block(key, bytes([number] * 16)) for number in (1, 2, 3))
    blocks = [message[start : start + 16] for start in range(0, len(message), 16)] or [b""]
    chain = bytes(16)
    for octets in blocks[:-1]:
        chain = block(k1, _xor(octets, chain))
    last = blocks[-1]
    if len(last) == 16:
        return block(k1, _xor(_xor(last, chain), k2))
    padded = last + b"\x80" + bytes(15 - len(last))
    return block(k1, _xor(_xor(padded, chain), k3))


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], Any]:
    """Reads `tests/vectors/NAME.json`; that folder's README names the sources."""
    folder = Path(__file__).parents[1] / "vectors"
    return lambda name: json.loads((folder / f"{name}.json").read_text())
