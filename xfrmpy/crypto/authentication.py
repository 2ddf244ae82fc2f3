"""The AUTH payload of a shared key (RFC 7296 section 2.15).

Signatures, which sign the same octets, will stand beside it. Comparing is done here only, in
constant time, and a mismatch is an exception: there is no truth value to forget.
"""

from __future__ import annotations

from hmac import compare_digest

from xfrmpy.crypto.prf import prf
from xfrmpy.ipsec import algorithms

_KEY_PAD = b"Key Pad for IKEv2"  # 17 octets, with no zero at the end


class AuthenticationMismatch(Exception):
    """The AUTH data received is not that of a peer who knows the key."""


def shared_key_auth(
    prf_row: algorithms.Prf,
    shared_key: bytes,
    *,
    message: bytes,
    peer_nonce: bytes,
    sk_p: bytes,
    identity: bytes,
    int_auth: bytes = b"",
) -> bytes:
    """The AUTH data with which one end proves that it knows `shared_key`: `prf_row.key` octets.

    All is seen from the end that proves itself: `message` is its own IKE_SA_INIT message from the
    IKE header on (not the non-ESP marker), `peer_nonce` the nonce data of the other end, `sk_p` its
    SK_pi or SK_pr, `identity` the body of its ID payload, behind the generic payload header.
    `int_auth` is what stands for the IKE_INTERMEDIATE exchanges, if there were any (RFC 9242
    section 3.3.2).
    """
    signed = message + peer_nonce + prf(prf_row, sk_p, identity) + int_auth
    return prf(prf_row, prf(prf_row, shared_key, _KEY_PAD), signed)


def resumed_auth(
    prf_row: algorithms.Prf, *, message: bytes, peer_nonce: bytes, sk_p: bytes, identity: bytes
) -> bytes:
    """The AUTH data of a resumed IKE SA (RFC 5723 section 4.3.3): its keys prove themselves.

    The same octets are signed as with a shared key, whose place SK_pi or SK_pr takes.
    """
    return prf(prf_row, sk_p, message + peer_nonce + prf(prf_row, sk_p, identity))


def verify_auth(expected: bytes, received: bytes) -> None:
    """Raises `AuthenticationMismatch` unless the two are equal; takes the same time either way."""
    if not compare_digest(expected, received):
        raise AuthenticationMismatch
