"""A RADIUS server for `eapol_test`, that hands EAP to a server of ours and what it says back.

It listens on the loopback of the namespace of whoever makes it.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread

from pyrad.packet import AccessAccept, AccessChallenge, AccessReject, AuthPacket

from xfrmpy.eap.method import Outcome
from xfrmpy.eap.server import EapServer, ServerState
from xfrmpy.radius.attributes import MICROSOFT, Kind, MicrosoftKind, eap_attributes

SECRET = "radius secret of the laboratory"

_CODES = {ServerState.SUCCEEDED: AccessAccept, ServerState.FAILED: AccessReject}
_KEY_SIZE = 32


class EapOverRadius:
    """One authentication at a time; `server` is that of the newest."""

    def __init__(self, make: Callable[[], EapServer]) -> None:
        self._make = make
        self._state = b""
        self._socket = socket.socket(type=socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._ended = Event()
        self._thread = Thread(target=self._serve)
        self.server = make()
        self.port: int = self._socket.getsockname()[1]

    @property
    def outcome(self) -> Outcome | None:
        return self.server.outcome

    @classmethod
    @contextmanager
    def serving(cls, make: Callable[[], EapServer]) -> Iterator[EapOverRadius]:
        made = cls(make)
        with made._socket:
            made._thread.start()
            try:
                yield made
            finally:
                made._ended.set()
                with socket.socket(type=socket.SOCK_DGRAM) as waker:
                    waker.sendto(b"", ("127.0.0.1", made.port))
                made._thread.join()

    def _serve(self) -> None:
        while True:
            octets, client = self._socket.recvfrom(4096)
            if self._ended.is_set():
                return
            request = AuthPacket(packet=octets, secret=SECRET.encode())
            assert request.verify_message_authenticator()
            self._socket.sendto(self._answer(request), client)

    def _answer(self, request: AuthPacket) -> bytes:
        response = b"".join(request[int(Kind.EAP_MESSAGE)])
        if request.get(int(Kind.STATE), [b""])[0] != self._state or not self._state:
            # A peer begins with its identity, which a NAS has asked for with a number of its own.
            self._state = secrets.token_bytes(16)
            self.server = self._make()
            question = self.server.begin()
            response = response[:1] + question[1:2] + response[2:]
        eap = self.server.handle(response)
        reply = request.CreateReply()
        reply.code = _CODES.get(self.server.state, AccessChallenge)
        reply[int(Kind.EAP_MESSAGE)] = [each.value for each in eap_attributes(eap)]
        reply[int(Kind.STATE)] = [self._state]
        if self.outcome is not None and self.outcome.msk:
            halves = self.outcome.msk[:_KEY_SIZE], self.outcome.msk[_KEY_SIZE:]
            for kind, key in zip(_KINDS, halves, strict=True):
                reply[MICROSOFT, int(kind)] = [reply.SaltCrypt(key)]
        octets: bytes = reply.ReplyPacket()
        return octets


_KINDS = MicrosoftKind.MPPE_RECV_KEY, MicrosoftKind.MPPE_SEND_KEY
