"""Generic Token Card (RFC 3748 section 5.6): the server shows a text, the peer sends a password.

The password goes to whoever asks: only inside a tunnel to a server that has proved who it is.
"""

from __future__ import annotations

import hmac
from typing import ClassVar

from xfrmpy.eap.method import EapFailed, Users
from xfrmpy.eap.packet import EapType

PROMPT = b"Password: "


class GtcPeer:
    """The peer's side; it tells the password once."""

    type: ClassVar[EapType] = EapType.GTC
    msk = b""

    def __init__(self, password: str) -> None:
        self._password = password
        self.is_finished = False

    def respond(self, identifier: int, data: bytes) -> bytes:  # noqa: ARG002 (whatever is shown)
        if self.is_finished:
            raise EapFailed("the server asks for the password a second time")
        self.is_finished = True
        return self._password.encode()


class GtcServer:
    """The server's side, for the user that the peer says it is."""

    type: ClassVar[EapType] = EapType.GTC
    msk = b""

    def __init__(self, user: bytes, users: Users) -> None:
        self.user = user
        self._password = users(user)

    def begin(self, identifier: int) -> bytes:  # noqa: ARG002 (others need it)
        return PROMPT

    def judge(self, identifier: int, data: bytes) -> None:  # noqa: ARG002 (others need it)
        right = (self._password or "").encode()
        if not hmac.compare_digest(data, right) or not self._password:
            raise EapFailed("the password is not that of the user")
