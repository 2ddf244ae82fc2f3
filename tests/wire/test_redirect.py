"""REDIRECT and REDIRECTED_FROM as octets (RFC 5685 sections 9.2 and 9.3)."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.wire.cursor import Malformed
from xfrmpy.wire.redirect import (
    Gateway,
    Redirect,
    decode_redirect_untrusted,
    decode_redirected_from_untrusted,
    encode_redirected_from,
)

CASES: list[tuple[Gateway, str]] = [
    (ip_address("192.0.2.7"), "0104c0000207"),
    (ip_address("2001:db8::7"), "021020010db8000000000000000000000007"),
    ("vpn2.example.org", "0310" + b"vpn2.example.org".hex()),
]


@pytest.mark.parametrize(("gateway", "octets"), CASES, ids=["IPv4", "IPv6", "FQDN"])
@pytest.mark.parametrize("nonce", [b"", bytes(16), bytes(256)], ids=len)
def test_a_redirect_is_laid_out_as_the_rfc_draws_it(
    gateway: Gateway, octets: str, nonce: bytes
) -> None:
    redirect = Redirect(gateway=gateway, nonce=nonce)
    assert redirect.encode() == bytes.fromhex(octets) + nonce
    assert decode_redirect_untrusted(redirect.encode()) == redirect


def test_redirected_from_is_an_address_alone() -> None:
    for gateway, octets in CASES[:2]:
        assert not isinstance(gateway, str)
        assert encode_redirected_from(gateway) == bytes.fromhex(octets)
        assert decode_redirected_from_untrusted(bytes.fromhex(octets)) == gateway
    for wrong in (CASES[2][1], CASES[0][1] + "00"):
        with pytest.raises(Malformed):
            decode_redirected_from_untrusted(bytes.fromhex(wrong))


@pytest.mark.parametrize(
    "octets",
    [
        "",
        "01",
        "0104",
        "0104c00002",
        "0103c00002",
        "0110c0000207",
        "0204c0000207",
        "0004c0000207",
        "0404c0000207",
        "ff00",
        "0300",
        "0301ff",
        "03022e2e",
        "03032d6161",
        "03056120622063",
        "0104e0000001",
        "01047f000001",
        "010400000000",
        "0210" + "00" * 16,
        "0104c0000207" + "00" * 15,
        "0104c0000207" + "00" * 257,
    ],
)
def test_what_is_no_redirect_is_malformed(octets: str) -> None:
    with pytest.raises(Malformed):
        decode_redirect_untrusted(bytes.fromhex(octets))


def test_a_name_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="fit"):
        Redirect(gateway="a" * 256).encode()


@given(st.binary(max_size=300))
def test_any_octets_are_a_redirect_or_malformed(data: bytes) -> None:
    for decode in (decode_redirect_untrusted, decode_redirected_from_untrusted):
        try:
            decode(data)
        except Malformed:
            continue
