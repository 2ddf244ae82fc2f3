"""The data of the notification SUPPORTED_AUTH_METHODS (RFC 9593 section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from struct import Struct

from xfrmpy.registry import AuthenticationMethod
from xfrmpy.wire.cursor import Cursor, Members, pack

_HEAD = Struct(">BB")
_METHODS = Members(AuthenticationMethod)
_LINKED = 3
"""Octets of an announcement that names an authority; a shorter one has no room for it."""

_BY_SECRET = frozenset({AuthenticationMethod.SHARED_KEY, AuthenticationMethod.NULL})
_BY_SIGNATURE = frozenset(
    {
        AuthenticationMethod.RSA_SIGNATURE,
        AuthenticationMethod.ECDSA_SHA256_P256,
        AuthenticationMethod.ECDSA_SHA384_P384,
        AuthenticationMethod.ECDSA_SHA512_P521,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthAnnouncement:
    """A method by which the sender takes a proof.

    `authority` is the place of the one that it is for among those of the message's CERTREQs, from 1
    on; 0 is any. `algorithm` is the DER AlgorithmIdentifier of DIGITAL_SIGNATURE.
    """

    method: AuthenticationMethod
    authority: int = 0
    algorithm: bytes = b""

    def encode(self) -> bytes:
        """Raises `ValueError` for an algorithm of more than 252 octets."""
        if self.method in _BY_SECRET:
            return pack(_HEAD, _HEAD.size, self.method)
        body = bytes((self.authority,)) + self.algorithm
        if _HEAD.size + len(body) > 0xFF:
            raise ValueError("an AlgorithmIdentifier of more than 252 octets")
        return pack(_HEAD, _HEAD.size + len(body), self.method) + body


def encode_auth_methods(announcements: Iterable[AuthAnnouncement]) -> bytes:
    return b"".join(announcement.encode() for announcement in announcements)


def decode_auth_methods_untrusted(data: bytes) -> tuple[AuthAnnouncement, ...]:
    """The announcements of a notification, but those that say what we do not understand.

    Raises `Malformed`.
    """
    cursor = Cursor(data, "SUPPORTED_AUTH_METHODS")
    found = []
    while cursor.remaining:
        size, number = cursor.unpack(_HEAD)
        if size < _HEAD.size:
            raise cursor.malformed(f"an announcement of {size} octets")
        body = cursor.take(size - _HEAD.size)
        announcement = _announcement(size, _METHODS[number], body)
        if announcement is not None:
            found.append(announcement)
    return tuple(found)


def _announcement(size: int, method: AuthenticationMethod, body: bytes) -> AuthAnnouncement | None:
    """By its length: 2 octets (section 3.2.1), 3 (3.2.2) or more (3.2.3)."""
    if size == _HEAD.size:
        return AuthAnnouncement(method=method) if method in _BY_SECRET else None
    if size == _LINKED:
        is_known = method in _BY_SIGNATURE
        return AuthAnnouncement(method=method, authority=body[0]) if is_known else None
    if method != AuthenticationMethod.DIGITAL_SIGNATURE:
        return None
    return AuthAnnouncement(method=method, authority=body[0], algorithm=body[1:])
