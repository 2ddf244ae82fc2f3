"""The server (RFC 3748 section 4): it asks, and says success only when a method has proved it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto

from xfrmpy.eap.method import MAX_ROUNDS, EapFailed, Outcome, ServerMethod
from xfrmpy.eap.packet import (
    EapCode,
    EapMalformed,
    EapPacket,
    EapType,
    decode_eap_untrusted,
)

MAX_IDENTITY = 253
"""Octets: the most that RADIUS would carry (RFC 2865 section 5.1)."""


class ServerState(Enum):
    """Where an authentication is."""

    IDENTIFYING = auto()
    OFFERING = auto()
    IN_METHOD = auto()
    SUCCEEDED = auto()
    FAILED = auto()


class EapServer:
    """One authentication. `methods` make those that we offer, the best first, for an identity.

    That identity is only what the peer says; who it has proved to be is in the `outcome`.
    `failure` is the reason, for our operator.
    """

    def __init__(self, methods: Sequence[Callable[[bytes], ServerMethod]], first_id: int) -> None:
        self._makers = tuple(methods)
        self._offered: set[EapType] = set()
        self._method: ServerMethod | None = None
        self._identifier = first_id % 256
        self._rounds = 0
        self.state = ServerState.IDENTIFYING
        self.identity = b""
        self.failure = ""

    @property
    def outcome(self) -> Outcome | None:
        """Who has proved itself; None before success."""
        if self.state is not ServerState.SUCCEEDED or self._method is None:
            return None
        method = self._method
        return Outcome(identity=method.user, method=method.type, msk=method.msk)

    def begin(self) -> bytes:
        """The first request: who the peer is."""
        return self._request(EapType.IDENTITY, b"")

    def handle(self, octets: bytes) -> bytes:
        """The next request to a response; or success or failure, when it is decided."""
        try:
            return self._handle(decode_eap_untrusted(octets))
        except (EapFailed, EapMalformed) as error:
            self.state, self.failure = ServerState.FAILED, str(error)
            return EapPacket(code=EapCode.FAILURE, identifier=self._identifier).encode()

    def _handle(self, response: EapPacket) -> bytes:
        if self.state in (ServerState.SUCCEEDED, ServerState.FAILED):
            raise EapFailed("the authentication was over already")
        self._rounds += 1
        if self._rounds > MAX_ROUNDS:
            raise EapFailed(f"more than {MAX_ROUNDS} responses")
        if response.code is not EapCode.RESPONSE or response.identifier != self._identifier:
            raise EapFailed(f"{response.code.name} {response.identifier} is no answer to us")
        if self.state is ServerState.IDENTIFYING:
            return self._identify(response)
        if self.state is ServerState.OFFERING and response.type == EapType.NAK:
            return self._offer_another(response.data)
        method = self._method
        if method is None or response.type != method.type:
            raise EapFailed("the response is of another type than the request")
        self.state = ServerState.IN_METHOD
        further = method.judge(self._identifier, response.data)
        if further is not None:
            return self._request(method.type, further)
        self.state = ServerState.SUCCEEDED
        return EapPacket(code=EapCode.SUCCESS, identifier=self._identifier).encode()

    def _identify(self, response: EapPacket) -> bytes:
        if response.type != EapType.IDENTITY or not 0 < len(response.data) <= MAX_IDENTITY:
            raise EapFailed("the peer does not say who it is")
        self.identity = response.data
        if not self._makers:
            raise EapFailed("there is no method")
        return self._offer(self._makers[0](self.identity))

    def _offer_another(self, wanted: bytes) -> bytes:
        """Our first of those that a Nak names (section 5.3.1)."""
        for make in self._makers:
            method = make(self.identity)
            if method.type in wanted and method.type not in self._offered:
                return self._offer(method)
        raise EapFailed("the peer takes part in none of our methods")

    def _offer(self, method: ServerMethod) -> bytes:
        self._method, self.state = method, ServerState.OFFERING
        self._offered.add(method.type)
        self._identifier = (self._identifier + 1) % 256
        return self._packet(method.type, method.begin(self._identifier))

    def _request(self, kind: EapType, data: bytes) -> bytes:
        self._identifier = (self._identifier + 1) % 256
        return self._packet(kind, data)

    def _packet(self, kind: EapType, data: bytes) -> bytes:
        return EapPacket(
            code=EapCode.REQUEST, identifier=self._identifier, type=kind, data=data
        ).encode()
