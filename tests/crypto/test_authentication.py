from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

import pytest

from xfrmpy.crypto.authentication import (
    AuthenticationMismatch,
    resumed_auth,
    shared_key_auth,
    signed_octets,
    verify_auth,
)
from xfrmpy.ipsec import algorithms
from xfrmpy.ipsec.proposals import ike_suite, parse_proposal
from xfrmpy.registry import ProtocolId

PRF = algorithms.PRFS[0]


def test_the_auth_data_is_what_strongswan_sent_at_both_ends(
    vectors: Callable[[str], Any],
) -> None:
    for case in vectors("strongswan-exchanges")["cases"]:
        suite = ike_suite(parse_proposal(case["ike"], ProtocolId.IKE))
        for end, other in (("i", "r"), ("r", "i")):
            octets = signed_octets(
                suite.prf,
                message=bytes.fromhex(case[f"ike_sa_init_{end}"]),
                peer_nonce=bytes.fromhex(case[f"nonce_{other}"]),
                sk_p=bytes.fromhex(case["keys"][f"sk_p{end}"]),
                identity=bytes.fromhex(case[f"identity_{end}"]),
            )
            auth = shared_key_auth(suite.prf, case["shared_key"].encode(), octets)
            assert auth.hex() == case[f"auth_{end}"]
            verify_auth(auth, bytes.fromhex(case[f"auth_{end}"]))


@pytest.mark.parametrize("changed", ["shared_key", "message", "peer_nonce", "sk_p", "identity"])
def test_the_auth_data_depends_on_every_ingredient(changed: str) -> None:
    ingredients = {
        "shared_key": b"secret",
        "message": b"IKE_SA_INIT",
        "peer_nonce": b"nonce",
        "sk_p": b"sk_p",
        "identity": b"\x02\0\0\0a.test",
    }
    other = ingredients | {changed: ingredients[changed] + b"\x01"}
    with pytest.raises(AuthenticationMismatch):
        verify_auth(_auth(ingredients), _auth(other))


def _auth(ingredients: dict[str, bytes]) -> bytes:
    octets = signed_octets(
        PRF,
        message=ingredients["message"],
        peer_nonce=ingredients["peer_nonce"],
        sk_p=ingredients["sk_p"],
        identity=ingredients["identity"],
    )
    return shared_key_auth(PRF, ingredients["shared_key"], octets)


def test_auth_data_that_differs_anywhere_is_a_mismatch() -> None:
    expected = bytes(range(32))
    verify_auth(expected, bytes(range(32)))
    wrong = [bytes(31), b"", expected[:-1], expected + b"\0", bytes(32)]
    for bit in range(256):
        flipped = bytearray(expected)
        flipped[bit // 8] ^= 1 << bit % 8
        wrong.append(bytes(flipped))
    for received in wrong:
        with pytest.raises(AuthenticationMismatch):
            verify_auth(expected, received)


def test_the_auth_data_of_a_resumed_session_is_proved_by_sk_p_alone() -> None:
    """RFC 5723 section 4.3.3, by the standard library; nobody has published a case."""
    row = next(row for row in algorithms.PRFS if row.mac == "sha256")
    octets = signed_octets(row, message=b"m", peer_nonce=b"n", sk_p=b"p", identity=b"id")
    auth = resumed_auth(row, b"p", octets)
    signed = b"m" + b"n" + hmac.digest(b"p", b"id", "sha256")
    assert auth == hmac.digest(b"p", signed, "sha256")
