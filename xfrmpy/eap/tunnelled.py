"""The two ends of a method that speaks TLS: Start, pieces, handshake, and then whatever is inside.

A method that is made of these says what it speaks within the tunnel (`_speak`), which is asked for
only when the tunnel is open: the other end has proved who it is, if it has to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from xfrmpy.eap.fragments import Conversation, Flag, Piece, decode_piece_untrusted
from xfrmpy.eap.method import EapFailed
from xfrmpy.eap.packet import EapType
from xfrmpy.eap.tls import TlsEnd, Tunnel


class TunnelPeer(ABC):
    """The peer's side, TLS's client."""

    type: ClassVar[EapType]

    def __init__(self, end: TlsEnd) -> None:
        self._end = end
        self._opened: Tunnel | None = None
        self._conversation = Conversation()
        self._identifier = 0

    @property
    def is_finished(self) -> bool:
        return self._has_proof() and not self._conversation.has_more

    @property
    def msk(self) -> bytes:
        return self._tunnel.msk(self.type) if self.is_finished else b""

    def respond(self, identifier: int, data: bytes) -> bytes:
        piece = decode_piece_untrusted(data)
        self._identifier = identifier
        if (self._opened is None) is not bool(piece.flags & Flag.START):
            raise EapFailed("the server does not begin, or begins a second time")
        if self._opened is None:
            self._opened = Tunnel(self._end, is_server=False)
        else:
            _check_version(self.type, piece)
        return self._conversation.exchange(piece, self._handle)

    @property
    def _tunnel(self) -> Tunnel:
        assert self._opened is not None
        return self._opened

    @abstractmethod
    def _has_proof(self) -> bool:
        """Whether all has been said, and the server has proved all that it has to."""

    @abstractmethod
    def _speak(self, plain: bytes) -> bytes:
        """What we say to what the server says, within the tunnel; either may be nothing."""

    def _handle(self, message: bytes) -> bytes:
        plain, ours = self._tunnel.advance(message)
        if not self._tunnel.is_open:
            return ours
        return ours + self._tunnel.seal(self._speak(plain))


class TunnelServer(ABC):
    """The server's side, TLS's server too."""

    type: ClassVar[EapType]

    def __init__(self, end: TlsEnd) -> None:
        self._end = end
        self._opened: Tunnel | None = None
        self._conversation = Conversation()
        self._is_done = False

    @property
    @abstractmethod
    def user(self) -> bytes:
        """Who has proved itself."""

    @property
    def msk(self) -> bytes:
        return self._tunnel.msk(self.type) if self._is_done else b""

    def begin(self, identifier: int) -> bytes:  # noqa: ARG002 (others need it)
        self._opened = Tunnel(self._end, is_server=True)
        return Piece(flags=Flag.START).encode()

    def judge(self, identifier: int, data: bytes) -> bytes | None:  # noqa: ARG002 (others need it)
        piece = decode_piece_untrusted(data)
        if piece.flags & Flag.START:
            raise EapFailed("only a server begins")
        _check_version(self.type, piece)
        further = self._conversation.exchange(piece, self._handle)
        return None if self._is_done else further

    @property
    def _tunnel(self) -> Tunnel:
        assert self._opened is not None
        return self._opened

    @abstractmethod
    def _speak(self, plain: bytes) -> bytes:
        """What we say to what the peer says, within the tunnel; sets `_is_done` if that is all."""

    def _handle(self, message: bytes) -> bytes:
        was_open = self._tunnel.is_open
        plain, ours = self._tunnel.advance(message)
        is_ours_last = not was_open and not self._tunnel.is_tls13
        if not self._tunnel.is_open or (is_ours_last and not plain):
            return ours
        return ours + self._tunnel.seal(self._speak(plain))


def _check_version(method: EapType, piece: Piece) -> None:
    """In EAP-TLS the bits are reserved, and ignored (RFC 5216 section 3.1)."""
    if piece.version and method != EapType.TLS:
        raise EapFailed(f"{method.name} of version {piece.version}, and here is version 0")
