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
_E = EncryptionAlgorithm
BY_KEY_SIZE = (
    *(_E.AES_GCM_8, _E.AES_GCM_12, _E.AES_GCM_16, _E.AES_CCM_8, _E.AES_CCM_12, _E.AES_CCM_16),
    *(_E.AES_CBC, _E.AES_CTR, _E.CAMELLIA_CBC, _E.NULL_AUTH_AES_GMAC),
    *(_E.AES_GCM_16_IIV, _E.AES_CCM_8_IIV),
)
OF_ONE_SIZE = (_E.CHACHA20_POLY1305, _E.CHACHA20_POLY1305_IIV, _E.TRIPLE_DES, _E.NULL)


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
    aes = {(kind, bits) for kind in BY_KEY_SIZE for bits in (128, 192, 256)}
    assert found == aes | {(kind, None) for kind in OF_ONE_SIZE}


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
        ("aes128gcm12", 20, 8, 12, 1),  # RFC 4106 section 6
        ("aes256gcm8", 36, 8, 8, 1),
        ("aes128ccm16", 19, 8, 16, 1),  # RFC 4309 sections 4 and 7.1
        ("aes192ccm12", 27, 8, 12, 1),
        ("aes256ccm8", 35, 8, 8, 1),
        ("aes128gmac", 20, 8, 16, 1),  # RFC 4543 section 3
        ("aes128gcm16iiv", 20, 0, 16, 1),  # RFC 8750 section 4
        ("aes128ccm8iiv", 19, 0, 8, 1),
        ("chacha20poly1305iiv", 36, 0, 16, 1),
        ("aes128ctr", 20, 8, 0, 1),  # RFC 3686 sections 2.1 and 5.1
        ("camellia256", 32, 16, 0, 16),  # RFC 5529 section 2
        ("3des", 24, 8, 0, 8),  # RFC 2451 section 2
        ("null", 0, 0, 0, 1),  # RFC 2410 section 2
    ],
)
def test_a_cipher_has_its_sizes(name: str, keymat: int, iv: int, icv: int, block: int) -> None:
    (row,) = [cipher for cipher in CIPHERS if cipher.name == name]
    assert (row.keymat, row.iv, row.icv, row.block) == (keymat, iv, icv, block)
    assert row.is_aead == (icv > 0)


@pytest.mark.parametrize("row", INTEGRITY[:3], ids=lambda row: row.name)
def test_an_integrity_key_is_a_digest_long_and_its_value_half_of_one(
    row: algorithms.Integrity,
) -> None:
    """RFC 4868 section 2.1."""
    size = hashlib.new(row.mac).digest_size
    assert (row.key, row.icv) == (size, size // 2)
    assert row.id.name == f"HMAC_SHA2_{size * 8}_{size * 4}"


@pytest.mark.parametrize(
    ("name", "key"),
    [("sha1", 20), ("aesxcbc", 16), ("aescmac", 16)],  # RFC 2404, RFC 3566, RFC 4494
)
def test_other_integrity_values_are_of_96_bits(name: str, key: int) -> None:
    (row,) = [row for row in INTEGRITY if row.name == name]
    assert (row.key, row.icv) == (key, 12)


def test_only_what_ike_may_use_is_for_ike() -> None:
    """RFC 8750 section 7, RFC 7296 section 5; GMAC encrypts nothing either."""
    for_packets = {c.id for c in CIPHERS if not c.is_for_ike}
    iiv = {_E.AES_GCM_16_IIV, _E.AES_CCM_8_IIV, _E.CHACHA20_POLY1305_IIV}
    assert for_packets == iiv | {_E.NULL, _E.NULL_AUTH_AES_GMAC}


def test_what_the_rfcs_warn_of_is_weak_and_nothing_that_modern_names() -> None:
    """RFC 8221 and 8247: SHOULD NOT, MUST-, or for IoT only; and what encrypts nothing."""
    expected = {"3des", "sha1", "prfsha1", "aesxcbc", "prfaesxcbc", "null"}
    for bits in (128, 192, 256):
        expected |= {f"aes{bits}{name}" for name in ("gcm8", "ccm8", "ccm8iiv", "gmac")}
    assert set(algorithms.WEAKNESSES) == expected


def test_linux_lacks_implicit_ivs_only() -> None:
    assert {c.name for c in CIPHERS if not c.kernel_name} == {
        c.name for c in CIPHERS if c.implicit_iv
    }


@pytest.mark.parametrize("row", PRFS[:3], ids=lambda row: row.name)
def test_a_prf_key_is_a_digest_long(row: algorithms.Prf) -> None:
    """RFC 4868 section 2.1.2."""
    assert row.key == hashlib.new(row.mac).digest_size
    assert row.id.name == f"HMAC_SHA2_{row.key * 8}"


def test_names_are_of_one_algorithm_each_and_hold_no_hyphen() -> None:
    rows: tuple[Any, ...] = (*CIPHERS, *INTEGRITY, *PRFS, *GROUPS)
    names = [row.name for row in rows] + list(algorithms.SEQUENCE_NUMBERS.values())
    assert len(set(names)) == len(names)
    assert not any("-" in name or name != name.lower() for name in names)
