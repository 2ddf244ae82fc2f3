"""MD5-Challenge (RFC 3748 section 5.4): CHAP. It makes no key, and the server proves nothing."""

from __future__ import annotations

import hashlib
import hmac
from typing import ClassVar

from xfrmpy.eap.method import EapFailed, Random, Users
from xfrmpy.eap.packet import EapType

CHALLENGE_SIZE = 16


class Md5Peer:
    """The peer's side; it answers one challenge and no other."""

    type: ClassVar[EapType] = EapType.MD5_CHALLENGE
    msk = b""

    def __init__(self, password: str) -> None:
        self._password = password
        self.is_finished = False

    def respond(self, identifier: int, data: bytes) -> bytes:
        if self.is_finished:
            raise EapFailed("the server sends a second MD5 challenge")
        challenge, _name = _take_value(data)
        self.is_finished = True
        return _with_size(_digest(identifier, self._password, challenge))


class Md5Server:
    """The server's side, for the user that the peer says it is."""

    type: ClassVar[EapType] = EapType.MD5_CHALLENGE
    msk = b""

    def __init__(self, user: bytes, users: Users, random: Random) -> None:
        self.user = user
        self._password = users(user)
        self._challenge = random(CHALLENGE_SIZE)
        self._nobodys = random(CHALLENGE_SIZE).hex()

    def begin(self, identifier: int) -> bytes:  # noqa: ARG002 (others need it)
        return _with_size(self._challenge)

    def judge(self, identifier: int, data: bytes) -> None:
        """A user who is unknown, or has an empty password, has one that nobody knows."""
        value, _name = _take_value(data)
        password = self._password or self._nobodys
        if not hmac.compare_digest(value, _digest(identifier, password, self._challenge)):
            raise EapFailed("the MD5 response is not that of the user's password")


def _digest(identifier: int, password: str, challenge: bytes) -> bytes:
    octets = bytes([identifier]) + password.encode() + challenge
    return hashlib.md5(octets, usedforsecurity=False).digest()


def _with_size(value: bytes) -> bytes:
    return bytes([len(value)]) + value


def _take_value(data: bytes) -> tuple[bytes, bytes]:
    """The value, and the name behind it."""
    if not data or not 0 < data[0] < len(data):
        raise EapFailed("the size of an MD5 value is not right")
    return data[1 : 1 + data[0]], data[1 + data[0] :]
