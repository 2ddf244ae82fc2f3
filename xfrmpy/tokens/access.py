"""What a token is asked: for the public half of a key, its certificates, and signatures.

Read PKCS #11 (OASIS, version 2.40) sections 2.1 and 2.3 and RFC 8017 section 9.2 first. A module is
the maker's code in this process; calls to it come one after another, and may take long: whoever
must not wait calls from a thread. Hashing is done here, for tokens differ in what they can hash.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

import pkcs11
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pkcs11 import MGF, Attribute, KeyType, Mechanism, ObjectClass
from pkcs11.exceptions import PKCS11Error

from xfrmpy.crypto.signatures import (
    EXPERIMENTAL,
    Form,
    KeyRefused,
    Scheme,
    SignatureMismatch,
    VerifyingKey,
    verifying_key,
)
from xfrmpy.registry import HashAlgorithm
from xfrmpy.tokens.uri import TokenUri

MAX_CERTIFICATES = 64
"""Ours: of one token."""


class TokenFailed(Exception):
    """Why a token does not do what it is asked, in a sentence without a full stop."""


class PinRefused(TokenFailed):
    """The PIN is not that of the token. Some lock themselves after three of these."""


def read_public(uri: TokenUri, pin: bytes) -> bytes:
    """The DER SubjectPublicKeyInfo of a private key. Raises `TokenFailed`."""
    with _module(uri.module).session(uri, pin, is_new=True) as session:
        spki = _public_half(session, _private_key(session, uri))
    try:
        kind = VerifyingKey.of_spki(spki).kind
    except KeyRefused as error:
        raise TokenFailed(f"the key cannot be used: {error}") from error
    if kind in EXPERIMENTAL:
        raise TokenFailed(f"a key of {kind} signs from a file only")
    return spki


def read_certificates(uri: TokenUri, pin: bytes, spki: bytes) -> tuple[bytes, ...]:
    """The certificates of a token in DER, if there is one of the key `spki`: that first."""
    with _module(uri.module).session(uri, pin) as session:
        ders = [c[Attribute.VALUE] for c in _objects(session, ObjectClass.CERTIFICATE, {})]
    ours = [der for der in ders if _certified_key(der) == spki]
    others = [der for der in ders if _certified_key(der) not in (None, spki)]
    return tuple((ours[:1] + others)[:MAX_CERTIFICATES]) if ours else ()


def sign(uri: TokenUri, pin: bytes, spki: bytes, scheme: Scheme, octets: bytes) -> bytes:
    """A signature of `octets` by the key `spki`, in the encoding of the scheme.

    A session that has ended is begun anew. Raises `TokenFailed`, also if the signature is not by
    that key.
    """
    module = _module(uri.module)
    try:
        signature = _sign_once(module, uri, pin, scheme, octets)
    except PinRefused:
        raise
    except TokenFailed:
        module.forget(uri)
        signature = _sign_once(module, uri, pin, scheme, octets)
    try:
        verifying_key(spki).verify(scheme, signature, octets)
    except SignatureMismatch as error:
        raise TokenFailed("it signs by another key than it had when the policy was read") from error
    return signature


class _Module:
    """A module, and our sessions with its tokens: the next signature needs no login."""

    def __init__(self, path: str) -> None:
        _check_custody(path)
        self._lock = threading.Lock()
        self._path = path
        try:
            self._library = pkcs11.lib(path)
        except (PKCS11Error, RuntimeError, OSError) as error:
            raise TokenFailed(f"the module {path} cannot be loaded: {_reason(error)}") from error
        self._sessions: dict[TokenUri, tuple[bytes, Any]] = {}
        self._refused: dict[TokenUri, bytes] = {}

    @contextmanager
    def session(self, uri: TokenUri, pin: bytes, *, is_new: bool = False) -> Iterator[Any]:
        """The session with the token of a key, for us alone. A new one takes a PIN that was wrong
        before, too, and sees tokens that were made meanwhile."""
        with self._lock, _explained():
            token = _token_of(uri)
            if is_new:
                self._close(token)
                self._refused.pop(token, None)
                self._look_again_for(token)
            yield self._open(token, pin)

    def forget(self, uri: TokenUri) -> None:
        """The next call begins a session anew."""
        with self._lock:
            self._close(_token_of(uri))

    def _open(self, token: TokenUri, pin: bytes) -> Any:
        known, session = self._sessions.get(token, (b"", None))
        if session is not None and known == pin:
            return session
        self._close(token)
        if pin and self._refused.get(token) == pin:
            raise PinRefused("the PIN was wrong before, and is not tried again")
        found = self._find(token)
        try:
            session = found.open(user_pin=pin.decode()) if pin else found.open()
        except pkcs11.UserAlreadyLoggedIn:
            session = found.open()
        except (pkcs11.PinIncorrect, pkcs11.PinLenRange, pkcs11.PinInvalid) as error:
            self._refused[token] = pin
            raise PinRefused("the PIN is wrong") from error
        self._sessions[token] = (pin, session)
        return session

    def _close(self, token: TokenUri) -> None:
        _, session = self._sessions.pop(token, (b"", None))
        if session is not None:
            with suppress(PKCS11Error):  # It has ended by itself if the token was taken out.
                session.close()

    def _look_again_for(self, token: TokenUri) -> None:
        """Some modules see only the tokens that there were when they began."""
        if not self._tokens_like(token):
            for each in tuple(self._sessions):
                self._close(each)
            self._library.reinitialize()

    def _tokens_like(self, wanted: TokenUri) -> list[Any]:
        """A slot whose token was taken out a moment ago has none."""
        tokens = []
        for slot in self._library.get_slots(token_present=True):
            with suppress(PKCS11Error):
                tokens.append(slot.get_token())
        return [token for token in tokens if _is_meant(token, wanted)]

    def _find(self, wanted: TokenUri) -> Any:
        found = self._tokens_like(wanted)
        if len(found) == 1:
            return found[0]
        every = self._tokens_like(TokenUri(module=self._path))
        labels = sorted({ascii(token.label) for token in every if token.label})
        if found:
            raise TokenFailed("several tokens are called so: add serial=NUMBER to the URI")
        known = f"there are {', '.join(labels)}" if labels else "there is none"
        raise TokenFailed(f"the token is not there: {known}")


@lru_cache(maxsize=16)
def _module(path: str) -> _Module:
    return _Module(path)


def _token_of(uri: TokenUri) -> TokenUri:
    """The URI of the token alone, whichever of its keys is meant."""
    return TokenUri(
        module=uri.module,
        token=uri.token,
        serial=uri.serial,
        manufacturer=uri.manufacturer,
        model=uri.model,
    )


def _is_meant(token: Any, wanted: TokenUri) -> bool:
    pairs = (
        (wanted.token, token.label),
        (wanted.serial, token.serial),
        (wanted.manufacturer, token.manufacturer_id),
        (wanted.model, token.model),
    )
    return all(not want or want == _text(has) for want, has in pairs)


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _check_custody(path: str) -> None:
    """Whoever may change a module is in this process."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise TokenFailed(f"the module {path} is not there: {error.strerror}") from error
    if status.st_uid not in (0, os.geteuid()) or stat.S_IMODE(status.st_mode) & 0o022:
        raise TokenFailed(f"the module {path} can be changed by others")


@contextmanager
def _explained() -> Iterator[None]:
    """Whatever a module says is one failure, in words."""
    try:
        yield
    except PKCS11Error as error:
        raise TokenFailed(_reason(error)) from error
    except UnicodeDecodeError as error:
        raise TokenFailed("the PIN is not UTF-8") from error


def _reason(error: Exception) -> str:
    known: dict[type[Exception], str] = {
        pkcs11.PinLocked: "the PIN is locked, after too many wrong ones",
        pkcs11.UserNotLoggedIn: "it wants a PIN: name one as 'passphrase'",
        pkcs11.MechanismInvalid: "it cannot sign in that way",
        pkcs11.TokenNotPresent: "the token is not there",
    }
    word = known.get(type(error))  # The library's exceptions have names and no words.
    return word or ascii(str(error))[1:-1][:120] or f"the module says {type(error).__name__}"


def _objects(session: Any, kind: ObjectClass, more: dict[Attribute, Any]) -> list[Any]:
    return list(session.get_objects({Attribute.CLASS: kind, **more}))


def _private_key(session: Any, uri: TokenUri) -> Any:
    more: dict[Attribute, Any] = {}
    if uri.object:
        more[Attribute.LABEL] = uri.object
    if uri.id:
        more[Attribute.ID] = uri.id
    found = _objects(session, ObjectClass.PRIVATE_KEY, more)
    if len(found) > 1:
        raise TokenFailed("several keys are called so: add id=%XX to the URI")
    if not found:
        raise TokenFailed("the key is not there, or needs a PIN to be seen")
    return found[0]


def _public_half(session: Any, key: Any) -> bytes:
    """From what the key itself says, a public key of the same id, or a certificate of it."""
    if key.key_type == KeyType.RSA:
        modulus, exponent = (
            int.from_bytes(key[name]) for name in (Attribute.MODULUS, Attribute.PUBLIC_EXPONENT)
        )
        return _spki(rsa.RSAPublicNumbers(exponent, modulus).public_key())
    same = {Attribute.ID: key.id} if key.id else {Attribute.LABEL: key.label}
    for public in _objects(session, ObjectClass.PUBLIC_KEY, same):
        if public.key_type == key.key_type:
            return _spki_of_curve(public[Attribute.EC_PARAMS], public[Attribute.EC_POINT])
    for certificate in _objects(session, ObjectClass.CERTIFICATE, same):
        spki = _certified_key(certificate[Attribute.VALUE])
        if spki is not None:
            return spki
    raise TokenFailed("it has neither a public key nor a certificate with the id of the key")


def _spki_of_curve(parameters: bytes, point: bytes) -> bytes:
    """Some modules put the point into an OCTET STRING, as the standard has it, and some do not."""
    size = len(point) - 2
    if size >= 0 and point[0] == 4 and point[1] == size:
        point = point[2:]
    elif size > 0x80 and point[:3] == bytes((4, 0x81, size - 1)):
        point = point[3:]
    try:
        if parameters in _EDWARDS:
            return _spki(_EDWARDS[parameters].from_public_bytes(point))
        curve = _CURVES.get(parameters)
        if curve is not None:
            key = ec.EllipticCurvePublicKey.from_encoded_point(curve(), point)
            return _spki(key)
    except ValueError as error:
        raise TokenFailed("its public key is none of the curve that it names") from error
    raise TokenFailed("the curve of the key does not sign in IKEv2 here")


def _spki(key: Any) -> bytes:
    octets = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert isinstance(octets, bytes)
    return octets


def _certified_key(der: bytes) -> bytes | None:
    try:
        return _spki(x509.load_der_x509_certificate(der).public_key())
    except ValueError:
        return None


def _sign_once(module: _Module, uri: TokenUri, pin: bytes, scheme: Scheme, octets: bytes) -> bytes:
    with module.session(uri, pin) as session:
        key = _private_key(session, uri)
        if scheme.form is Form.EDDSA:
            return bytes(key.sign(octets, mechanism=Mechanism.EDDSA))
        name, mechanism, mask = _HASHES[scheme.hash]
        digest = hashlib.new(name, octets).digest()
        if scheme.form is Form.PKCS1:
            info = _DIGEST_INFOS[scheme.hash] + digest
            return bytes(key.sign(info, mechanism=Mechanism.RSA_PKCS))
        if scheme.form is Form.PSS:
            how = (mechanism, mask, len(digest))
            signed = key.sign(digest, mechanism=Mechanism.RSA_PKCS_PSS, mechanism_param=how)
            return bytes(signed)
        raw = bytes(key.sign(digest, mechanism=Mechanism.ECDSA))
    if scheme.form is Form.ECDSA_RAW:
        return raw
    half = len(raw) // 2
    return encode_dss_signature(int.from_bytes(raw[:half]), int.from_bytes(raw[half:]))


_HASHES = {
    HashAlgorithm.SHA1: ("sha1", Mechanism.SHA_1, MGF.SHA1),
    HashAlgorithm.SHA2_256: ("sha256", Mechanism.SHA256, MGF.SHA256),
    HashAlgorithm.SHA2_384: ("sha384", Mechanism.SHA384, MGF.SHA384),
    HashAlgorithm.SHA2_512: ("sha512", Mechanism.SHA512, MGF.SHA512),
}

_DIGEST_INFOS = {
    HashAlgorithm.SHA1: bytes.fromhex("3021300906052b0e03021a05000414"),
    HashAlgorithm.SHA2_256: bytes.fromhex("3031300d060960864801650304020105000420"),
    HashAlgorithm.SHA2_384: bytes.fromhex("3041300d060960864801650304020205000430"),
    HashAlgorithm.SHA2_512: bytes.fromhex("3051300d060960864801650304020305000440"),
}
"""RFC 8017 section 9.2, note 1: what stands before the hash."""

_CURVES: dict[bytes, Callable[[], ec.EllipticCurve]] = {
    bytes.fromhex("06082a8648ce3d030107"): ec.SECP256R1,
    bytes.fromhex("06052b81040022"): ec.SECP384R1,
    bytes.fromhex("06052b81040023"): ec.SECP521R1,
}
"""By CKA_EC_PARAMS: the OID of the curve (RFC 5480 section 2.1.1.1)."""

_EDWARDS: dict[bytes, Any] = {
    bytes.fromhex("06032b6570"): ed25519.Ed25519PublicKey,
    bytes.fromhex("06032b6571"): ed448.Ed448PublicKey,
    b"\x13\x0cedwards25519": ed25519.Ed25519PublicKey,
    b"\x13\x0aedwards448": ed448.Ed448PublicKey,
}
"""RFC 8410 section 3, or the names of PKCS #11 version 3.0."""
