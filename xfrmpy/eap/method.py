"""What a method is to the machines of the two ends, and how an authentication ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, TypeAlias

from xfrmpy.eap.packet import EapType

Random: TypeAlias = Callable[[int], bytes]
Users: TypeAlias = Callable[[bytes], str | None]
"""The password of a user, None for one that is unknown."""

MAX_ROUNDS = 64
"""Requests of one authentication: MSCHAPv2 has four; TLS with long chains in pieces thirty."""


class EapFailed(Exception):
    """The authentication is over, and has failed; the sentence is for our operator alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Who has proved itself, by which method; without an MSK the method makes no key."""

    identity: bytes
    method: EapType
    msk: bytes = field(default=b"", repr=False)


class PeerMethod(Protocol):
    """The peer's side. It is finished when the server may say that we have succeeded."""

    type: ClassVar[EapType]

    @property
    def is_finished(self) -> bool: ...

    @property
    def msk(self) -> bytes: ...

    def respond(self, identifier: int, data: bytes) -> bytes:
        """The data of our response to a request. Raises `EapFailed`."""


class ServerMethod(Protocol):
    """The server's side. `user` is who the peer proves to be, which only the method knows."""

    type: ClassVar[EapType]

    @property
    def user(self) -> bytes: ...

    @property
    def msk(self) -> bytes: ...

    def begin(self, identifier: int) -> bytes:
        """The data of the first request."""

    def judge(self, identifier: int, data: bytes) -> bytes | None:
        """The data of the next request, None if the peer has proved itself.

        `identifier` is that of the request which is answered. Raises `EapFailed`.
        """
