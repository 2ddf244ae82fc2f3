"""The algorithms table: sizes as the RFCs have them, and nothing outside it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from xfrmpy.ipsec import algorithms
from xfrmpy.ipsec.algorithms import CIPHERS, GROUPS, INTEGRITY, PRFS
from xfrmpy.registry import (
    EncryptionAlgorithm,
    IntegrityAlgorithm,
    KeyExchangeMethod,
    PseudorandomFunction,
    Registry,
)

KEY_BITS = [None, *range(0, 1025, 8), 127, 129, 257, 0xFFFF]
AES_GCM, AES_CBC = EncryptionAlgorithm.AES_GCM_16, EncryptionAlgorithm.AES_CBC
CHACHA = EncryptionAlgorithm.CHACHA20_POLY1305


def test_of_every_16_bit_id_and_key_length_only_the_table_is_known() -> None:
    found = set()
    for number in [*range(300), *range(300, 1 << 16, 251), 0xFFFF]:
        for key_bits in KEY_BITS:
            try:
                row = algorithms.cipher(EncryptionAlgorithm(number), key_bits)
            except KeyError:
                continue
            assert (row.id, row.key_bits if row.sends_key_length else None) == (number, key_bits)
            found.add((number, key_bits))
    aes = {(kind, bits) for kind in (AES_GCM, AES_CBC) for bits in (128, 192, 256)}
    assert found == aes | {(CHACHA, None)}


LOOK_UPS: list[tuple[Callable[[Any], Any], type[Registry], set[int]]] = [
    (algorithms.integrity, IntegrityAlgorithm, {row.id for row in INTEGRITY}),
    (algorithms.prf, PseudorandomFunction, {row.id for row in PRFS}),
    (algorithms.group, KeyExchangeMethod, {row.id for row in GROUPS}),
]


def test_of_every_16_bit_id_only_the_table_is_known_of_the_other_types() -> None:
    for number in [*range(300), *range(300, 1 << 16, 251), 0xFFFF]:
        for look_up, kind, rows in LOOK_UPS:
            if number in rows:
                assert look_up(kind(number)).id == number
            else:
                with pytest.raises(KeyError):
                    look_up(kind(number))


@pytest.mark.parametrize(
    ("name", "keymat", "iv", "icv", "block"),
    [
        ("aes128gcm16", 20, 8, 16, 1),  # RFC 4106 section 8.1
        ("aes192gcm16", 28, 8, 16, 1),
        ("aes256gcm16", 36, 8, 16, 1),
        ("chacha20poly1305", 36, 8, 16, 1),  # RFC 7634 section 2
        ("aes128", 16, 16, 0, 16),  # RFC 3602 sections 2 and 3
        ("aes192", 24, 16, 0, 16),
        ("aes256", 32, 16, 0, 16),
    ],
)
def test_a_cipher_has_its_sizes(name: str, keymat: int, iv: int, icv: int, block: int) -> None:
    (row,) = [cipher for cipher in CIPHERS if cipher.name == name]
    assert (row.keymat, row.iv, row.icv, row.block) == (keymat, iv, icv, block)
    assert row.is_aead == (icv > 0)


@pytest.mark.parametrize("row", INTEGRITY, ids=lambda row: row.name)
def test_an_integrity_key_is_a_digest_long_and_its_value_half_of_one(
    row: algorithms.Integrity,
) -> None:
    """RFC 4868 section 2.1."""
    size = hashlib.new(row.hash_name).digest_size
    assert (row.key, row.icv) == (size, size // 2)
    assert row.id.name == f"HMAC_SHA2_{size * 8}_{size * 4}"


@pytest.mark.parametrize("row", PRFS, ids=lambda row: row.name)
def test_a_prf_key_is_a_digest_long(row: algorithms.Prf) -> None:
    """RFC 4868 section 2.1.2."""
    assert row.key == hashlib.new(row.hash_name).digest_size
    assert row.id.name == f"HMAC_SHA2_{row.key * 8}"


def test_names_are_of_one_algorithm_each_and_hold_no_hyphen() -> None:
    rows: tuple[Any, ...] = (*CIPHERS, *INTEGRITY, *PRFS, *GROUPS)
    names = [row.name for row in rows] + list(algorithms.SEQUENCE_NUMBERS.values())
    assert len(set(names)) == len(names)
    assert not any("-" in name or name != name.lower() for name in names)
