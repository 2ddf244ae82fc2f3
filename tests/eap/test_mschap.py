"""MD4 and MSCHAPv2 by the vectors of their RFCs."""

from __future__ import annotations

import pytest

from xfrmpy.eap.md4 import md4
from xfrmpy.eap.mschap import Challenges, Secret

MD4 = {
    b"": "31d6cfe0d16ae931b73c59d7e0c089c0",
    b"a": "bde52cb31de33e46245e05fbdbd6fb24",
    b"abc": "a448017aaf21d8525fc10ae87aa6729d",
    b"message digest": "d9130a8164549fe818874806e1c7014b",
    b"abcdefghijklmnopqrstuvwxyz": "d79e1c308aa5bbcdeea8ed63df412da9",
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789": (
        "043f8582f241db351ce627e153e7f0e4"
    ),
    b"1234567890" * 8: "e33b4ddc9c38f2199c3e7b164fcc0536",
}
"""RFC 1320 appendix A.5."""

USER = Challenges(
    authenticator=bytes.fromhex("5b5d7c7d7b3f2f3e3c2c602132262628"),
    peer=bytes.fromhex("21402324255e262a28295f2b3a337c7e"),
    user=b"User",
)
PASSWORD = Secret.of_password("clientPass")
RESPONSE = bytes.fromhex("82309ecd8d708b5ea08faa3981cd83544233114a3d85d6df")
"""RFC 2759 section 9.2."""


@pytest.mark.parametrize(("data", "digest"), MD4.items())
def test_md4_is_that_of_rfc_1320(data: bytes, digest: str) -> None:
    assert md4(data).hex() == digest


@pytest.mark.parametrize("size", [54, 55, 56, 57, 63, 64, 65, 119, 120, 128])
def test_md4_pads_to_a_whole_block(size: int) -> None:
    assert len({md4(bytes(size)), md4(bytes(size - 1)), md4(bytes(size + 1))}) == 3


def test_what_rfc_2759_computes() -> None:
    assert USER.digest.hex() == "d02e4386bce91226"
    assert PASSWORD.digest.hex() == "44ebba8d5312b8d611474411f56989ae"
    assert md4(PASSWORD.digest).hex() == "41c00c584bd2d91c4017a2a12fa59f3f"
    assert PASSWORD.response(USER) == RESPONSE
    expected = b"S=407A5589115FD0D6209F510FE9C04566932CDA56"
    assert PASSWORD.authenticator_response(USER, RESPONSE) == expected


def test_the_keys_of_rfc_3079() -> None:
    """Section 3.5.3: the key that the server sends with, of 128 bits."""
    msk = PASSWORD.msk(RESPONSE)
    assert msk[16:32].hex() == "8b7cdc149b993a1ba118cb153f56dccb"
    assert (len(msk), msk[32:]) == (64, bytes(32))
    assert msk[:16] != msk[16:32]


def test_a_domain_before_the_name_does_not_count() -> None:
    inside = Challenges(authenticator=USER.authenticator, peer=USER.peer, user=b"DOMAIN\\User")
    assert inside.digest == USER.digest


def test_a_password_may_have_any_letters() -> None:
    assert len({Secret.of_password(p).digest for p in ("Zürich", "zürich", "\U0001d54f", "")}) == 4


def test_no_secret_is_in_a_representation() -> None:
    assert repr(PASSWORD) == "Secret()"
