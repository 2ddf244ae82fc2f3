"""The peer (RFC 3748 section 4.2): it answers requests, and believes in success at its time only.

Whether it may say anything to this server is the caller's to know: who answers must have proved
itself first, unless policy has asked for EAP alone (RFC 7296 section 2.16, RFC 5998).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto

from xfrmpy.eap.method import MAX_ROUNDS, EapFailed, Outcome, PeerMethod
from xfrmpy.eap.packet import (
    EapCode,
    EapMalformed,
    EapPacket,
    EapType,
    decode_eap_untrusted,
)

MAX_NOTE = 253
"""Octets of a notification that are kept."""


class PeerState(Enum):
    """Where an authentication is."""

    BEGINNING = auto()
    IN_METHOD = auto()
    SUCCEEDED = auto()
    FAILED = auto()


class EapPeer:
    """One authentication. `methods` make those that we take part in, the best first.

    `notes` are what the server wants to be shown to a user: anybody's octets, up to success.
    """

    def __init__(self, identity: bytes, methods: Sequence[Callable[[], PeerMethod]]) -> None:
        self._identity = identity
        self._methods = {made.type: make for make in methods for made in (make(),)}
        self._method: PeerMethod | None = None
        self._rounds = 0
        self.state = PeerState.BEGINNING
        self.notes: list[bytes] = []

    @property
    def outcome(self) -> Outcome | None:
        """What was agreed on; None before success."""
        if self.state is not PeerState.SUCCEEDED or self._method is None:
            return None
        return Outcome(identity=self._identity, method=self._method.type, msk=self._method.msk)

    @property
    def is_ready(self) -> bool:
        """Whether the server may say that we have succeeded."""
        return self._method is not None and self._method.is_finished

    def handle(self, octets: bytes) -> bytes | None:
        """Our response; None after success. Raises `EapFailed`, and then for good."""
        try:
            return self._handle(decode_eap_untrusted(octets))
        except (EapFailed, EapMalformed) as error:
            self.state = PeerState.FAILED
            raise EapFailed(str(error)) from error

    def _handle(self, packet: EapPacket) -> bytes | None:
        if self.state in (PeerState.SUCCEEDED, PeerState.FAILED):
            raise EapFailed("the authentication was over already")
        self._rounds += 1
        if self._rounds > MAX_ROUNDS:
            raise EapFailed(f"the server asks more than {MAX_ROUNDS} times")
        match packet.code:
            case EapCode.REQUEST:
                return self._answer(packet).encode()
            case EapCode.SUCCESS:
                self._succeed()
                return None
            case EapCode.FAILURE:
                raise EapFailed("the server refuses us")
            case EapCode.RESPONSE:
                raise EapFailed("the server sends a response")

    def _succeed(self) -> None:
        """RFC 3748 section 4.2: a peer "MUST silently discard" a success out of its time."""
        if not self.is_ready:
            raise EapFailed("the server speaks of success before anything is proved")
        self.state = PeerState.SUCCEEDED

    def _answer(self, request: EapPacket) -> EapPacket:
        assert request.type is not None
        if request.type == EapType.NOTIFICATION:
            self.notes.append(request.data[:MAX_NOTE])
            return _response(request, EapType.NOTIFICATION, b"")
        if request.type == EapType.IDENTITY:
            if self._method is not None:
                raise EapFailed("the server asks who we are amid a method")
            return _response(request, EapType.IDENTITY, self._identity)
        if self._method is None:
            make = self._methods.get(request.type)
            if make is None:
                return _response(request, EapType.NAK, bytes(self._methods) or b"\0")
            self._method, self.state = make(), PeerState.IN_METHOD
        if request.type != self._method.type:
            raise EapFailed(f"the server changes to {request.type.name} amid a method")
        data = self._method.respond(request.identifier, request.data)
        return _response(request, request.type, data)


def _response(request: EapPacket, kind: EapType, data: bytes) -> EapPacket:
    return EapPacket(code=EapCode.RESPONSE, identifier=request.identifier, type=kind, data=data)
