"""Keyed hashes against published values; those of HMAC-SHA2 are in `test_prf`."""

from __future__ import annotations

import hmac
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.esp.conftest import xcbc_by_hand
from xfrmpy.crypto.mac import is_of_block_cipher, keyed_mac
from xfrmpy.ipsec.algorithms import INTEGRITY, PRFS


def test_aes_xcbc_gives_the_values_of_rfc_3566(vectors: Callable[[str], Any]) -> None:
    cases = vectors("rfc3566")["cases"]
    assert len(cases) == 7
    for case in cases:
        mac = keyed_mac("aesxcbc", bytes.fromhex(case["key"]))
        assert mac(bytes.fromhex(case["message"])).hex() == case["mac"], case["case"]
        assert case["mac"].startswith(case["icv"])


def test_aes_cmac_gives_the_values_of_rfc_4494(vectors: Callable[[str], Any]) -> None:
    cases = vectors("rfc4494")["cases"]
    assert len(cases) == 4
    for case in cases:
        mac = keyed_mac("aescmac", bytes.fromhex(case["key"]))
        assert mac(bytes.fromhex(case["message"]))[:12].hex() == case["icv"], case["case"]


def test_aes_xcbc_does_what_a_block_at_a_time_gives() -> None:
    dice = random.Random(3566)
    key = dice.randbytes(16)
    mac = keyed_mac("aesxcbc", key)
    for length in range(200):
        message = dice.randbytes(length)
        assert mac(message) == xcbc_by_hand(key, message)


@pytest.mark.parametrize("name", ["sha1", "sha256", "sha384", "sha512"])
def test_a_kept_hmac_does_what_the_standard_library_does(name: str) -> None:
    mac = keyed_mac(name, b"key")
    for message in (b"", b"one", b"another", b"x" * 1000):
        assert mac(message) == hmac.digest(b"key", message, name)


@pytest.mark.parametrize("name", ["aesxcbc", "aescmac"])
def test_what_is_made_of_aes_128_takes_no_other_key(name: str) -> None:
    assert is_of_block_cipher(name)
    for size in (0, 15, 17, 24, 32):
        with pytest.raises(ValueError, match="16 octets"):
            keyed_mac(name, bytes(size))


def test_every_row_of_the_tables_has_a_mac_as_long_as_its_key() -> None:
    for name, key in [(i.mac, i.key) for i in INTEGRITY] + [(p.mac, p.key) for p in PRFS]:
        assert len(keyed_mac(name, bytes(key))(b"message")) == key
