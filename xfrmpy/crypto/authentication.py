"""The AUTH payload of shared keys and of signatures (RFC 7296 section 2.15, RFC 7427).

Both are over the same octets. Comparing is done here only, in constant time, and a mismatch is an
exception: there is no truth value to forget. Keys and schemes are those of `signatures`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from hmac import compare_digest

from xfrmpy.crypto.prf import prf
from xfrmpy.crypto.signatures import (
    LEGACY_ECDSA,
    LEGACY_RSA,
    SCHEMES,
    WEAK_RSA,
    Form,
    KeyKind,
    Scheme,
    SignatureMismatch,
    VerifyingKey,
    choose_scheme,
    scheme_of,
)
from xfrmpy.ipsec import algorithms
from xfrmpy.registry import AuthenticationMethod

_KEY_PAD = b"Key Pad for IKEv2"  # 17 octets, with no zero at the end


class AuthenticationMismatch(Exception):
    """The AUTH data received is not that of a peer who has the key; says how it is wrong."""


class NoSchemeInCommon(Exception):
    """Our key has no way to sign that the peer would verify."""


def signed_octets(
    prf_row: algorithms.Prf,
    *,
    message: bytes,
    peer_nonce: bytes,
    sk_p: bytes,
    identity: bytes,
    int_auth: bytes = b"",
) -> bytes:
    """What one end proves itself over: InitiatorSignedOctets or ResponderSignedOctets.

    All is seen from the end that proves itself: `message` is its own IKE_SA_INIT message from the
    IKE header on (not the non-ESP marker), `peer_nonce` the nonce data of the other end, `sk_p` its
    SK_pi or SK_pr, `identity` the body of its ID payload, behind the generic payload header.
    `int_auth` is what stands for the IKE_INTERMEDIATE exchanges, if there were any (RFC 9242
    section 3.3.2).
    """
    return message + peer_nonce + prf(prf_row, sk_p, identity) + int_auth


def shared_key_auth(prf_row: algorithms.Prf, shared_key: bytes, octets: bytes) -> bytes:
    """The AUTH data with which one end proves that it knows `shared_key`: `prf_row.key` octets.

    `octets` are those of `signed_octets`.
    """
    return prf(prf_row, prf(prf_row, shared_key, _KEY_PAD), octets)


def resumed_auth(prf_row: algorithms.Prf, sk_p: bytes, octets: bytes) -> bytes:
    """The AUTH data of a resumed IKE SA (RFC 5723 section 4.3.3): its keys prove themselves.

    The same octets are signed as with a shared key, whose place SK_pi or SK_pr takes.
    """
    return prf(prf_row, sk_p, octets)


def verify_auth(expected: bytes, received: bytes) -> None:
    """Raises `AuthenticationMismatch` unless the two are equal; takes the same time either way."""
    if not compare_digest(expected, received):
        raise AuthenticationMismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class SignaturePolicy:
    """Which schemes may be used at all, and how an RSA key of ours signs.

    `weak_rsa` is whether method 1 may be with SHA-1, as old peers know it and nothing else.
    """

    schemes: tuple[Scheme, ...] = SCHEMES
    rsa_form: Form = Form.PSS
    weak_rsa: bool = False

    @property
    def hashes(self) -> tuple[int, ...]:
        """What we verify with, for SIGNATURE_HASH_ALGORITHMS (RFC 7427 section 4)."""
        return tuple(sorted({scheme.hash for scheme in self.schemes}))


def signature_auth(method: AuthenticationMethod, scheme: Scheme, signature: bytes) -> bytes:
    """The AUTH data of a method with a signature (RFC 7427 section 3)."""
    if method != AuthenticationMethod.DIGITAL_SIGNATURE:
        return signature
    identifier = scheme.identifiers[0]
    return bytes((len(identifier),)) + identifier + signature


def choose_method(
    kind: KeyKind, hashes: Collection[int], policy: SignaturePolicy
) -> tuple[AuthenticationMethod, Scheme]:
    """How a key of ours signs for a peer with these hashes. Raises `NoSchemeInCommon`."""
    if hashes:
        chosen = choose_scheme(policy.schemes, kind, hashes, rsa_form=policy.rsa_form)
        if chosen is not None:
            return AuthenticationMethod.DIGITAL_SIGNATURE, chosen
        raise NoSchemeInCommon(f"it verifies with no hash that a key of {kind} signs with here")
    if kind in LEGACY_ECDSA:
        return _LEGACY_METHODS[kind], LEGACY_ECDSA[kind]
    if kind is KeyKind.RSA and policy.weak_rsa:
        return AuthenticationMethod.RSA_SIGNATURE, WEAK_RSA
    if kind is KeyKind.RSA:
        raise NoSchemeInCommon("without RFC 7427 an RSA key signs with SHA-1, which is weak")
    raise NoSchemeInCommon(f"it does not know RFC 7427, which keys of {kind} need")


def verify_signed_auth(
    keys: Iterable[VerifyingKey],
    method: AuthenticationMethod,
    data: bytes,
    octets: bytes,
    policy: SignaturePolicy,
) -> VerifyingKey:
    """The key, of those that are acceptable, by which the peer signed `octets`.

    Raises `AuthenticationMismatch` if there is none.
    """
    schemes, signature = _schemes_of(method, data, policy)
    mismatch = SignatureMismatch("there is no key to verify it with")
    for key in keys:
        for scheme in schemes:
            try:
                key.verify(scheme, signature, octets)
            except SignatureMismatch as error:
                mismatch = error
            else:
                return key
    raise AuthenticationMismatch(str(mismatch)) from mismatch


def _schemes_of(
    method: AuthenticationMethod, data: bytes, policy: SignaturePolicy
) -> tuple[tuple[Scheme, ...], bytes]:
    """What an AUTH payload may be signed by, and its signature."""
    if method == AuthenticationMethod.DIGITAL_SIGNATURE:
        length = data[0] if data else 0
        identifier, signature = data[1 : 1 + length], data[1 + length :]
        scheme = scheme_of(policy.schemes, identifier)
        if scheme is None:
            raise AuthenticationMismatch(
                f"the algorithm is none that we verify: {identifier.hex() or 'empty'}"
            )
        return (scheme,), signature
    if method == AuthenticationMethod.RSA_SIGNATURE:
        return (*LEGACY_RSA, *([WEAK_RSA] if policy.weak_rsa else [])), data
    kind = next((kind for kind, legacy in _LEGACY_METHODS.items() if legacy == method), None)
    if kind is None:
        raise AuthenticationMismatch(f"the method {method.name} is no signature that we verify")
    return (LEGACY_ECDSA[kind],), data


_LEGACY_METHODS = {
    KeyKind.ECDSA_P256: AuthenticationMethod.ECDSA_SHA256_P256,
    KeyKind.ECDSA_P384: AuthenticationMethod.ECDSA_SHA384_P384,
    KeyKind.ECDSA_P521: AuthenticationMethod.ECDSA_SHA512_P521,
}
