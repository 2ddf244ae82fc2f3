"""IP compression: what comes back is what went in, and junk is no more than a counted packet."""

from __future__ import annotations

import os
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.esp.compression import IPCOMP, SHORTEST, BadCompression, compress, decompress

CPI = 0x1234
TEXT = b"all work and no play " * 40


@given(protocol=st.integers(0, 107), seed=st.binary(max_size=60), times=st.integers(1, 300))
def test_what_comes_back_is_what_went_in(protocol: int, seed: bytes, times: int) -> None:
    payload = seed * times
    became, octets = compress(protocol, payload, CPI)
    if became == IPCOMP:
        assert decompress(octets, CPI) == (protocol, payload)
        assert len(octets) < len(payload), "RFC 3173 section 2.2: or it goes as it is"
    else:
        assert (became, octets) == (protocol, payload)


def test_the_header_is_that_of_rfc_3173_section_3_3() -> None:
    protocol, octets = compress(4, TEXT, CPI)
    assert protocol == IPCOMP == 108
    assert octets[:4] == b"\x04\x00\x12\x34"
    assert zlib.decompress(octets[4:], wbits=-15) == TEXT


def test_the_flags_are_ignored() -> None:
    _, octets = compress(4, TEXT, CPI)
    assert decompress(octets[:1] + b"\xff" + octets[2:], CPI) == (4, TEXT)


@pytest.mark.parametrize("payload", [os.urandom(1400), bytes(SHORTEST - 1), b""])
def test_what_does_not_get_smaller_goes_as_it_is(payload: bytes) -> None:
    assert compress(17, payload, CPI) == (17, payload)


def test_what_reaches_back_farther_than_the_smallest_decompressor_is_not_made() -> None:
    """Linux's has a window of 2 KiB."""
    block = os.urandom(3000)
    _, octets = compress(17, block + block + TEXT * 9, CPI)
    assert zlib.decompress(octets[4:], wbits=-11) == block + block + TEXT * 9


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"\x04\x00\x12",
        compress(4, TEXT, CPI + 1)[1],
        compress(4, TEXT, CPI)[1][:-3],
        b"\x04\x00\x12\x34" + zlib.compress(bytes(70_000), wbits=-15),
        b"\x04\x00\x12\x34" + b"\xff" * 20,
    ],
    ids=["nothing", "short", "another-index", "cut", "bomb", "junk"],
)
def test_what_does_not_decompress_is_refused(octets: bytes) -> None:
    with pytest.raises(BadCompression):
        decompress(octets, CPI)


@given(st.binary(max_size=200))
def test_junk_is_no_defect(octets: bytes) -> None:
    try:
        _, payload = decompress(b"\x04\x00\x12\x34" + octets, CPI)
    except BadCompression:
        return
    assert len(payload) <= 65535
