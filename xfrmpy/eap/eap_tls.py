"""EAP-TLS (RFC 5216, RFC 9190): each end proves by a certificate who it is.

With TLS 1.3 the server says within the tunnel that it is content, an octet of zero (RFC 9190
section 2.5): before it the handshake could still fail without the peer's knowing.
"""

from __future__ import annotations

from typing import ClassVar

from xfrmpy.eap.method import EapFailed
from xfrmpy.eap.packet import EapType
from xfrmpy.eap.tls import TlsEnd
from xfrmpy.eap.tunnelled import TunnelPeer, TunnelServer

COMMITMENT = b"\0"
"""The "protected success indication"."""


class TlsPeer(TunnelPeer):
    """The peer's side; `end` has trust, and a key, for no server does without."""

    type: ClassVar[EapType] = EapType.TLS

    def __init__(self, end: TlsEnd) -> None:
        super().__init__(end)
        self._is_told = False

    def _has_proof(self) -> bool:
        return self._is_told

    def _speak(self, plain: bytes) -> bytes:
        if self._is_told or plain not in ((b"", COMMITMENT) if self._tunnel.is_tls13 else (b"",)):
            raise EapFailed("the server says what has no place in EAP-TLS")
        self._is_told = plain == COMMITMENT or not self._tunnel.is_tls13
        return b""


class TlsServer(TunnelServer):
    """The server's side; `end` has a key and trust. The user is whom the certificate proves."""

    type: ClassVar[EapType] = EapType.TLS

    def __init__(self, end: TlsEnd) -> None:
        if end.trust is None:
            raise EapFailed("EAP-TLS is for a server that trusts somebody")
        super().__init__(end)
        self._has_committed = False

    @property
    def user(self) -> bytes:
        return self._tunnel.peer if self._is_done else b""

    def _speak(self, plain: bytes) -> bytes:
        if plain:
            raise EapFailed("the peer says what has no place in EAP-TLS")
        if self._tunnel.is_tls13 and not self._has_committed:
            self._has_committed = True
            return COMMITMENT
        self._is_done = True
        return b""
