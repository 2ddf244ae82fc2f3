"""The IKEv2 key schedule: which keys follow from a shared secret, and in which order.

Read RFC 7296 sections 2.14 (IKE SA), 2.17 (Child SA) and 2.18 (rekeyed IKE SA), and RFC 5282
section 7.1: an AEAD cipher's key carries its salt at the end, and it has no integrity key. How
further key exchanges come in: RFC 9370 sections 2.2.2 and 2.2.4; and a post-quantum preshared key:
RFC 8784 section 3, and RFC 9867 where that is before IKE_AUTH.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from xfrmpy.crypto.prf import prf, prf_plus
from xfrmpy.ipsec import algorithms
from xfrmpy.ipsec.proposals import ChildSuite, IkeSuite

PPK_CONFIRMATION_SIZE = 8
"""Octets, RFC 9867."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class IkeKeys:
    """The seven keys of an IKE SA, named as in RFC 7296 section 2.14."""

    sk_d: bytes
    sk_ai: bytes
    sk_ar: bytes
    sk_ei: bytes
    sk_er: bytes
    sk_pi: bytes
    sk_pr: bytes


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ChildKeys:
    """The keys of a Child SA's two directions; `_i` protects what the exchange's initiator sends.

    The initiator is that of the exchange which made the Child SA (RFC 7296 section 2.17).
    """

    encryption_i: bytes
    integrity_i: bytes
    encryption_r: bytes
    integrity_r: bytes


def derive_ike_keys(
    suite: IkeSuite,
    *,
    shared_secret: bytes,
    nonce_i: bytes,
    nonce_r: bytes,
    spi_i: bytes,
    spi_r: bytes,
) -> IkeKeys:
    """The keys of an IKE SA made by IKE_SA_INIT (RFC 7296 section 2.14).

    Of two PRFs "only the first 64 bits of Ni and the first 64 bits of Nr are used in calculating
    SKEYSEED, but all the bits are used for input to the prf+ function".
    """
    part = suite.prf.nonce_part
    skeyseed = prf(suite.prf, nonce_i[:part] + nonce_r[:part], shared_secret)
    return _expand_ike_keys(suite, skeyseed, nonce_i + nonce_r + spi_i + spi_r)


def derive_rekeyed_ike_keys(
    suite: IkeSuite,
    *,
    old_prf: algorithms.Prf,
    old_sk_d: bytes,
    shared_secret: bytes,
    nonce_i: bytes,
    nonce_r: bytes,
    spi_i: bytes,
    spi_r: bytes,
    further_secrets: bytes = b"",
) -> IkeKeys:
    """The keys of an IKE SA made by CREATE_CHILD_SA; the SPIs are the new ones.

    SKEYSEED comes from the old SA's PRF, all else from the new one's (RFC 7296 section 2.18).
    `further_secrets` are those of IKE_FOLLOWUP_KE exchanges, one behind the other (RFC 9370 section
    2.2.4).
    """
    nonces = nonce_i + nonce_r
    skeyseed = prf(old_prf, old_sk_d, shared_secret + nonces + further_secrets)
    return _expand_ike_keys(suite, skeyseed, nonces + spi_i + spi_r)


def derive_further_ike_keys(
    suite: IkeSuite,
    *,
    old_sk_d: bytes,
    shared_secret: bytes,
    nonce_i: bytes,
    nonce_r: bytes,
    spi_i: bytes,
    spi_r: bytes,
) -> IkeKeys:
    """The keys of the same IKE SA after a further key exchange in IKE_INTERMEDIATE.

    Nonces and SPIs are those of IKE_SA_INIT, SK_d that of the keys so far (RFC 9370 section 2.2.2).
    """
    nonces = nonce_i + nonce_r
    skeyseed = prf(suite.prf, old_sk_d, shared_secret + nonces)
    return _expand_ike_keys(suite, skeyseed, nonces + spi_i + spi_r)


def mix_in_ppk(suite: IkeSuite, keys: IkeKeys, ppk: bytes) -> IkeKeys:
    """The keys of the same IKE SA with a post-quantum preshared key in SK_d, SK_pi and SK_pr.

    Those that protect its messages stay as they are (RFC 8784 section 3).
    """
    size = suite.prf.key
    return replace(
        keys,
        sk_d=prf_plus(suite.prf, ppk, keys.sk_d, size),
        sk_pi=prf_plus(suite.prf, ppk, keys.sk_pi, size),
        sk_pr=prf_plus(suite.prf, ppk, keys.sk_pr, size),
    )


def derive_ike_keys_with_ppk(
    suite: IkeSuite,
    *,
    old_sk_d: bytes,
    ppk: bytes,
    nonce_i: bytes,
    nonce_r: bytes,
    spi_i: bytes,
    spi_r: bytes,
) -> IkeKeys:
    """The keys of the same IKE SA with a post-quantum preshared key in all of them.

    SKEYSEED' = prf+ (PPK, SK_d); nonces and SPIs are those of IKE_SA_INIT, SK_d that of the keys so
    far (RFC 9867, in the IKE_INTERMEDIATE exchange).
    """
    skeyseed = prf_plus(suite.prf, ppk, old_sk_d, suite.prf.key)
    return _expand_ike_keys(suite, skeyseed, nonce_i + nonce_r + spi_i + spi_r)


def ppk_confirmation(row: algorithms.Prf, ppk: bytes, nonces_and_spis: bytes) -> bytes:
    """PPK Confirmation, 8 octets: that who names a post-quantum preshared key has it.

    It is the beginning of prf (PPK, Ni | Nr | SPIi | SPIr) (RFC 9867).
    """
    return prf(row, ppk, nonces_and_spis)[:PPK_CONFIRMATION_SIZE]


def derive_resumed_ike_keys(
    suite: IkeSuite,
    *,
    old_sk_d: bytes,
    nonce_i: bytes,
    nonce_r: bytes,
    spi_i: bytes,
    spi_r: bytes,
) -> IkeKeys:
    """The keys of an IKE SA made by IKE_SESSION_RESUME; the SPIs are the new ones.

    The suite is the old IKE SA's (RFC 5723 section 5.1).
    """
    nonces = nonce_i + nonce_r
    skeyseed = prf(suite.prf, old_sk_d, b"Resumption" + nonces)
    return _expand_ike_keys(suite, skeyseed, nonces + spi_i + spi_r)


def derive_child_keys(
    prf_row: algorithms.Prf,
    sk_d: bytes,
    suite: ChildSuite,
    *,
    nonce_i: bytes,
    nonce_r: bytes,
    shared_secret: bytes = b"",
    further_secrets: bytes = b"",
) -> ChildKeys:
    """The keys of a Child SA (RFC 7296 section 2.17).

    The PRF and SK_d are the IKE SA's; `shared_secret` is that of a key exchange in the same
    CREATE_CHILD_SA, if there was one, `further_secrets` are those of the IKE_FOLLOWUP_KE exchanges
    behind it (RFC 9370 section 2.2.4). AH has integrity keys only.
    """
    encryption = suite.keymat
    integrity = _integrity_key_size(suite.integrity)
    seed = shared_secret + nonce_i + nonce_r + further_secrets
    keys = _expand(prf_row, sk_d, seed, (encryption, integrity, encryption, integrity))
    return ChildKeys(
        encryption_i=next(keys),
        integrity_i=next(keys),
        encryption_r=next(keys),
        integrity_r=next(keys),
    )


def _expand_ike_keys(suite: IkeSuite, skeyseed: bytes, seed: bytes) -> IkeKeys:
    encryption = suite.cipher.keymat
    integrity = _integrity_key_size(suite.integrity)
    size = suite.prf.key
    sizes = (size, integrity, integrity, encryption, encryption, size, size)
    keys = _expand(suite.prf, skeyseed, seed, sizes)
    return IkeKeys(
        sk_d=next(keys),
        sk_ai=next(keys),
        sk_ar=next(keys),
        sk_ei=next(keys),
        sk_er=next(keys),
        sk_pi=next(keys),
        sk_pr=next(keys),
    )


def _expand(
    row: algorithms.Prf, key: bytes, seed: bytes, sizes: tuple[int, ...]
) -> Iterator[bytes]:
    """prf+ cut into consecutive keys of the given sizes in octets."""
    stream = prf_plus(row, key, seed, sum(sizes))
    start = 0
    for size in sizes:
        yield stream[start : start + size]
        start += size


def _integrity_key_size(integrity: algorithms.Integrity | None) -> int:
    return 0 if integrity is None else integrity.key
