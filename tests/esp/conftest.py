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
from cryptography.hazmat.primitives.ciphers import Cipher, aead
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

from xfrmpy.ipsec.algorithms import CIPHERS, INTEGRITY
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import Direction, SadEntry, UdpEncapsulation

SUITES = [
    EspSuite(cipher=cipher, integrity=integrity, esn=esn)
    for cipher in CIPHERS
    for integrity in ((None,) if cipher.is_aead else INTEGRITY)
    for esn in (False, True)
]

MakeEntry = Callable[..., SadEntry]
SealByHand = Callable[[SadEntry, int, bytes, bytes], bytes]


@pytest.fixture(params=SUITES, ids=str)
def suite(request: pytest.FixtureRequest) -> EspSuite:
    chosen: EspSuite = request.param
    return chosen


@pytest.fixture(scope="session")
def make_entry() -> MakeEntry:
    """An SA of AES-256-GCM with ESN, or of another suite, with fields as wanted."""

    def make(suite: EspSuite = SUITES[5], **changes: object) -> SadEntry:
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
        esn, key = entry.suite.esn, entry.encryption_key
        if entry.suite.integrity is None:
            is_aes = entry.suite.cipher.name.startswith("aes")
            primitive = (aead.AESGCM if is_aes else aead.ChaCha20Poly1305)(key[:-4])
            associated = spi + (whole if esn else low)
            sealed: bytes = primitive.encrypt(key[-4:] + iv, plaintext, associated)
            return spi + low + iv + sealed
        encryptor = Cipher(AES(key), CBC(iv)).encryptor()
        covered = spi + low + iv + encryptor.update(plaintext) + encryptor.finalize()
        digest = getattr(hashlib, entry.suite.integrity.hash_name)
        tag = hmac.new(entry.integrity_key, covered + (high if esn else b""), digest).digest()
        return covered + tag[: len(tag) // 2]  # RFC 4868 section 2.6: half of it

    return seal


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], Any]:
    """Reads `tests/vectors/NAME.json`; that folder's README names the sources."""
    folder = Path(__file__).parents[1] / "vectors"
    return lambda name: json.loads((folder / f"{name}.json").read_text())
