from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from xfrmpy.crypto.prf import prf, prf_plus
from xfrmpy.ipsec import algorithms

HMAC_SHA2 = [row for row in algorithms.PRFS if row.name in ("prfsha256", "prfsha384", "prfsha512")]


@pytest.mark.parametrize("row", HMAC_SHA2, ids=lambda row: row.name)
def test_every_hmac_sha2_gives_the_outputs_of_rfc_4231(
    row: algorithms.Prf, vectors: Callable[[str], Any]
) -> None:
    for case in vectors("rfc4231")["cases"]:
        output = prf(row, bytes.fromhex(case["key"]), bytes.fromhex(case["data"]))
        expected = bytes.fromhex(case[row.mac])
        assert output[: len(expected)] == expected, case["case"]
        assert len(output) == row.key


@pytest.mark.parametrize(("name", "source"), [("prfaesxcbc", "rfc4434"), ("prfaescmac", "rfc4615")])
def test_a_prf_of_aes_takes_keys_of_any_size_as_its_rfc_says(
    name: str, source: str, vectors: Callable[[str], Any]
) -> None:
    (row,) = (row for row in algorithms.PRFS if row.name == name)
    cases = vectors(source)["cases"]
    assert len(cases) == 3
    for case in cases:
        output = prf(row, bytes.fromhex(case["key"]), bytes.fromhex(case["data"]))
        assert output.hex() == case["prf"], case["case"]


def test_hmac_sha1_gives_the_outputs_of_rfc_2202(
    nist_records: Callable[[str], Iterator[dict[str, str]]],
) -> None:
    (row,) = (row for row in algorithms.PRFS if row.name == "prfsha1")
    records = list(nist_records("HMAC/rfc-2202-sha1.txt"))
    assert len(records) == 7
    for record in records:
        output = prf(row, bytes.fromhex(record["Key"]), bytes.fromhex(record["Msg"]))
        assert output.hex() == record["MD"]
        assert len(output) == row.key


def test_every_hmac_sha2_and_icv_has_the_value_and_size_of_rfc_4868(
    vectors: Callable[[str], Any],
) -> None:
    prfs = {row.mac: row for row in algorithms.PRFS}
    integrity = {row.name: row for row in algorithms.INTEGRITY}
    cases = vectors("rfc4868")["cases"]
    assert {case["integrity"] for case in cases} == {"sha256", "sha384", "sha512"}
    for case in cases:
        row = integrity[case["integrity"]]
        key = bytes.fromhex(case["key"])
        output = prf(prfs[row.mac], key, bytes.fromhex(case["data"]))
        assert output.hex() == case["hmac"], case["case"]
        assert output[: row.icv].hex() == case["icv"], case["case"]
        assert len(key) == row.key


@pytest.mark.parametrize("row", algorithms.PRFS, ids=lambda row: row.name)
def test_prf_plus_chains_its_blocks_as_rfc_7296_writes_it(row: algorithms.Prf) -> None:
    first = prf(row, b"key", b"seed\x01")
    second = prf(row, b"key", first + b"seed\x02")
    third = prf(row, b"key", second + b"seed\x03")
    stream = first + second + third
    for length in (0, 1, row.key, row.key + 1, 3 * row.key):
        assert prf_plus(row, b"key", b"seed", length) == stream[:length]


@pytest.mark.parametrize("row", algorithms.PRFS, ids=lambda row: row.name)
def test_prf_plus_ends_after_255_blocks(row: algorithms.Prf) -> None:
    assert len(prf_plus(row, b"key", b"seed", 255 * row.key)) == 255 * row.key
    with pytest.raises(ValueError, match="at most"):
        prf_plus(row, b"key", b"seed", 255 * row.key + 1)
