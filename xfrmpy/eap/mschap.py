"""What MSCHAPv2 computes: responses (RFC 2759 section 8) and keys (RFC 3079 section 3).

Only as strong as one DES key: whoever sees challenge and response finds the password's hash. In
IKEv2 both are inside an IKE SA whose responder has proved who it is, and must not be elsewhere.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.modes import ECB

from xfrmpy.eap.md4 import md4

CHALLENGE_SIZE = 16
RESPONSE_SIZE = 24
MSK_SIZE = 64
"""Octets; RFC 3748 section 7.10 asks for at least so many."""

_START_KEY_SIZE = 16
_MAGIC_SERVER_TO_CLIENT = b"Magic server to client signing constant"
_MAGIC_ITERATION = b"Pad to make it do more than one iteration"
_MAGIC_MASTER = b"This is the MPPE Master Key"
_MAGIC_CLIENT_SENDS = (
    b"On the client side, this is the send key; on the server side, it is the receive key."
)
_MAGIC_SERVER_SENDS = (
    b"On the client side, this is the receive key; on the server side, it is the send key."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenges:
    """What both ends know of one authentication, in clear. `user` is as the peer sent it."""

    authenticator: bytes
    peer: bytes
    user: bytes

    @property
    def digest(self) -> bytes:
        """ChallengeHash (section 8.2): 8 octets; a Windows domain before the name is left out."""
        name = self.user.rpartition(b"\\")[2]
        return _sha1(self.peer + self.authenticator + name)[:8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """What a password is known by: NtPasswordHash (section 8.3), 16 octets."""

    digest: bytes = field(repr=False)

    @classmethod
    def of_password(cls, password: str) -> Secret:
        return cls(digest=md4(password.encode("utf-16-le")))

    def response(self, challenges: Challenges) -> bytes:
        """GenerateNTResponse (section 8.1): 24 octets."""
        key = self.digest.ljust(21, b"\0")
        parts = (key[start : start + 7] for start in (0, 7, 14))
        return b"".join(_des(part, challenges.digest) for part in parts)

    def authenticator_response(self, challenges: Challenges, response: bytes) -> bytes:
        """By which the server proves that it knows it, too (section 8.7): `S=` and hex."""
        digest = _sha1(md4(self.digest) + response + _MAGIC_SERVER_TO_CLIENT)
        digest = _sha1(digest + challenges.digest + _MAGIC_ITERATION)
        return b"S=" + digest.hex().upper().encode()

    def msk(self, response: bytes) -> bytes:
        """The MSK: the key that the server receives with, the one that it sends with, zeros."""
        master = _sha1(md4(self.digest) + response + _MAGIC_MASTER)[:_START_KEY_SIZE]
        keys = (_start_key(master, m) for m in (_MAGIC_CLIENT_SENDS, _MAGIC_SERVER_SENDS))
        return b"".join(keys).ljust(MSK_SIZE, b"\0")


def _start_key(master: bytes, magic: bytes) -> bytes:
    """GetAsymetricStartKey of RFC 3079 section 3.4."""
    return _sha1(master + bytes(40) + magic + b"\xf2" * 40)[:_START_KEY_SIZE]


def _des(key: bytes, block: bytes) -> bytes:
    """One block under 56 bits of key: 3DES with three times the same key is DES."""
    bits = int.from_bytes(key, "big")
    octets = bytes((bits >> (49 - 7 * number) & 0x7F) << 1 for number in range(8))
    encryptor = Cipher(TripleDES(octets * 3), ECB()).encryptor()
    return encryptor.update(block)


def _sha1(octets: bytes) -> bytes:
    return hashlib.sha1(octets, usedforsecurity=False).digest()
