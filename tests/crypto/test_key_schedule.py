from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import pytest

from xfrmpy.crypto.key_schedule import (
    ChildKeys,
    IkeKeys,
    derive_child_keys,
    derive_ike_keys,
    derive_ike_keys_with_ppk,
    derive_rekeyed_ike_keys,
    derive_resumed_ike_keys,
    ppk_confirmation,
)
from xfrmpy.crypto.prf import prf, prf_plus
from xfrmpy.ipsec import algorithms
from xfrmpy.ipsec.proposals import EspSuite, IkeSuite, esp_suite, ike_suite, parse_proposal
from xfrmpy.registry import ProtocolId


def _ike_suite(text: str) -> IkeSuite:
    return ike_suite(parse_proposal(text, ProtocolId.IKE))


def _esp_suite(text: str) -> EspSuite:
    return esp_suite(parse_proposal(text, ProtocolId.ESP))


def _octets(case: dict[str, str], **names: str) -> dict[str, bytes]:
    return {parameter: bytes.fromhex(case[name]) for parameter, name in names.items()}


def _same_start(keys: IkeKeys | ChildKeys, stream: str) -> None:
    """The keys one after the other, and the published stream, as far as both of them go."""
    mine: bytes = b"".join(astuple(keys))
    theirs = bytes.fromhex(stream)
    length = min(len(mine), len(theirs))
    assert length >= 64
    assert mine[:length] == theirs[:length]


HMAC_PRFS = [row for row in algorithms.PRFS if row.mac.startswith("sha")]


def _cavs_cases(published: Any, row: algorithms.Prf) -> list[dict[str, str]]:
    groups = [g for g in published["groups"] if g["hash"] == f"SHA-{row.mac[3:]}"]
    return [case for group in groups for case in group["tests"]]


@pytest.mark.parametrize("row", HMAC_PRFS, ids=lambda row: row.name)
def test_the_key_schedule_agrees_with_the_nist_cases_of_each_prf(
    row: algorithms.Prf, vectors: Callable[[str], Any]
) -> None:
    cases = _cavs_cases(vectors("ikev2-kdf-nist-cavs"), row)
    assert len(cases) == (40 if row.name == "prfsha1" else 60)
    suite = _ike_suite(f"aes128-sha256-{row.name}-x25519")
    esp = _esp_suite("aes256-sha512")
    for case in cases:
        nonces = _octets(case, nonce_i="ni", nonce_r="nr")
        spis = _octets(case, spi_i="spi_i", spi_r="spi_r")
        first, second = bytes.fromhex(case["gir"]), bytes.fromhex(case["gir_new"])
        seed = b"".join((*nonces.values(), *spis.values()))
        skeyseed = bytes.fromhex(case["skeyseed"])
        dkm = bytes.fromhex(case["dkm"])
        assert prf(row, nonces["nonce_i"] + nonces["nonce_r"], first) == skeyseed
        assert prf_plus(row, skeyseed, seed, len(dkm)) == dkm

        keys = derive_ike_keys(suite, shared_secret=first, **nonces, **spis)
        _same_start(keys, case["dkm"])
        child = derive_child_keys(row, keys.sk_d, esp, **nonces)
        _same_start(child, case["dkm_child"])
        child = derive_child_keys(row, keys.sk_d, esp, **nonces, shared_secret=second)
        _same_start(child, case["dkm_child_dh"])

        rekeyed = derive_rekeyed_ike_keys(
            suite, old_prf=row, old_sk_d=keys.sk_d, shared_secret=second, **nonces, **spis
        )
        new_skeyseed = bytes.fromhex(case["skeyseed_rekey"])
        _same_start(rekeyed, prf_plus(row, new_skeyseed, seed, 255).hex())


def test_the_keys_are_those_that_strongswan_derived(vectors: Callable[[str], Any]) -> None:
    for case in vectors("strongswan-exchanges")["cases"]:
        suite, esp = _ike_suite(case["ike"]), _esp_suite(case["esp"])
        session = _octets(case, shared_secret="shared_secret", nonce_i="nonce_i", nonce_r="nonce_r")
        keys = derive_ike_keys(suite, **session, **_octets(case, spi_i="spi_i", spi_r="spi_r"))
        assert _hex(keys) == case["keys"]

        del session["shared_secret"]
        assert _hex(derive_child_keys(suite.prf, keys.sk_d, esp, **session)) == case["child"]

        new = case["rekeyed_child"]
        session = _octets(new, shared_secret="shared_secret", nonce_i="nonce_i", nonce_r="nonce_r")
        assert _hex(derive_child_keys(suite.prf, keys.sk_d, esp, **session)) == new["keys"]

        new = case["rekeyed_ike"]
        session = _octets(new, shared_secret="shared_secret", nonce_i="nonce_i", nonce_r="nonce_r")
        spis = _octets(new, spi_i="spi_i", spi_r="spi_r")
        rekeyed = derive_rekeyed_ike_keys(
            suite, old_prf=suite.prf, old_sk_d=keys.sk_d, **session, **spis
        )
        assert _hex(rekeyed) == new["keys"]


def _hex(keys: IkeKeys | ChildKeys) -> dict[str, str]:
    """The keys that are not empty, by name, in hex."""
    names = type(keys).__dataclass_fields__
    return {name: getattr(keys, name).hex() for name in names if getattr(keys, name)}


def test_a_rekeyed_ike_sa_takes_skeyseed_from_the_old_prf_and_the_rest_from_the_new() -> None:
    old = algorithms.PRFS[0]
    suite = _ike_suite("aes256gcm16-prfsha512-x25519")
    keys = derive_rekeyed_ike_keys(
        suite,
        old_prf=old,
        old_sk_d=b"d" * old.key,
        shared_secret=b"secret",
        nonce_i=b"Ni",
        nonce_r=b"Nr",
        spi_i=b"SPIinew.",
        spi_r=b"SPIrnew.",
    )
    skeyseed = prf(old, b"d" * old.key, b"secretNiNr")
    stream = prf_plus(suite.prf, skeyseed, b"NiNrSPIinew.SPIrnew.", 3 * 64 + 2 * 36)
    assert b"".join(astuple(keys)) == stream


@pytest.mark.parametrize("name", ["prfaesxcbc", "prfaescmac"])
def test_a_prf_of_aes_keys_skeyseed_with_the_first_halves_of_the_nonces(name: str) -> None:
    """RFC 7296 section 2.14, by hand; nobody has published a case."""
    suite = _ike_suite(f"aes128-aesxcbc-{name}-x25519")
    nonce_i, nonce_r = bytes(range(32)), bytes(range(100, 132))
    keys = derive_ike_keys(
        suite,
        shared_secret=b"secret",
        nonce_i=nonce_i,
        nonce_r=nonce_r,
        spi_i=b"SPIi....",
        spi_r=b"SPIr....",
    )
    skeyseed = prf(suite.prf, nonce_i[:8] + nonce_r[:8], b"secret")
    stream = prf_plus(suite.prf, skeyseed, nonce_i + nonce_r + b"SPIi....SPIr....", 7 * 16)
    assert b"".join(astuple(keys)) == stream


@pytest.mark.parametrize("cipher", algorithms.CIPHERS, ids=lambda cipher: cipher.name)
def test_keys_have_the_sizes_that_the_suite_needs(cipher: algorithms.Cipher) -> None:
    for prf_row in algorithms.PRFS:
        for integrity in (None,) if cipher.is_aead else algorithms.INTEGRITY:
            authentication = 0 if integrity is None else integrity.key
            suite = IkeSuite(
                cipher=cipher, integrity=integrity, prf=prf_row, group=algorithms.GROUPS[0]
            )
            sizes = [len(key) for key in astuple(_any_keys(suite))]
            size, key = prf_row.key, cipher.key_bits // 8 + cipher.salt
            assert sizes == [size, authentication, authentication, key, key, size, size]
            esp = EspSuite(cipher=cipher, integrity=integrity, esn=True)
            child = derive_child_keys(prf_row, bytes(size), esp, nonce_i=b"i", nonce_r=b"r")
            assert [len(octets) for octets in astuple(child)] == [key, authentication] * 2


def test_keys_do_not_show_in_a_repr() -> None:
    keys = _any_keys(_ike_suite("aes128-sha256-x25519"))
    esp = _esp_suite("aes128-sha256")
    child = derive_child_keys(algorithms.PRFS[0], keys.sk_d, esp, nonce_i=b"i", nonce_r=b"r")
    for value in (keys, child):
        assert "sk_" not in repr(value)
        assert "b'" not in repr(value)
        assert "encryption" not in str(value)


def _any_keys(suite: IkeSuite) -> IkeKeys:
    return derive_ike_keys(
        suite,
        shared_secret=b"secret",
        nonce_i=b"Ni",
        nonce_r=b"Nr",
        spi_i=bytes(8),
        spi_r=bytes(8),
    )


def test_a_resumed_ike_sa_has_keys_of_the_old_sk_d_and_the_nonces_alone() -> None:
    """RFC 5723 section 5.1, by the standard library; nobody has published a case."""
    old_sk_d, ni, nr, spi_i, spi_r = b"d" * 32, b"i" * 32, b"r" * 32, b"1" * 8, b"2" * 8
    keys = derive_resumed_ike_keys(
        _ike_suite("aes128-sha256-prfsha256-x25519"),
        old_sk_d=old_sk_d,
        nonce_i=ni,
        nonce_r=nr,
        spi_i=spi_i,
        spi_r=spi_r,
    )
    skeyseed = hmac.digest(old_sk_d, b"Resumption" + ni + nr, "sha256")
    stream = block = b""
    for number in range(1, 8):
        block = hmac.digest(skeyseed, block + ni + nr + spi_i + spi_r + bytes([number]), "sha256")
        stream += block
    _same_start(keys, stream.hex())


def test_a_ppk_goes_into_the_keys_as_libreswan_has_it(vectors: Callable[[str], Any]) -> None:
    """RFC 9867, with two PRFs and libreswan in either role."""
    for case in vectors("libreswan-ppk")["cases"]:
        suite = _ike_suite(case["suite"])
        given = _octets(case, nonce_i="Ni", nonce_r="Nr", spi_i="SPIi", spi_r="SPIr")
        ppk = bytes.fromhex(case["PPK"])
        confirmation = ppk_confirmation(suite.prf, ppk, b"".join(given.values()))
        assert confirmation.hex() == case["confirmation"]
        old_sk_d = bytes.fromhex(case["SK_d"])
        keys = derive_ike_keys_with_ppk(suite, old_sk_d=old_sk_d, ppk=ppk, **given)
        assert b"".join(astuple(keys)).hex() == case["keys"]
