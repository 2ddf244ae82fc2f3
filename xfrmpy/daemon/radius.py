"""RADIUS on the daemon's loop: what a client puts out is done, and what comes goes to it.

Imported where a policy has a RADIUS server. Nothing here waits: an answer is a call.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import secrets
import socket
from collections.abc import Callable, Sequence

from xfrmpy.radius.accounting import Accountant
from xfrmpy.radius.attributes import Attribute, Code
from xfrmpy.radius.client import (
    Answered,
    Output,
    RadiusClient,
    Send,
    Server,
    ServerBack,
    ServerSilent,
    Timing,
    Unanswered,
)
from xfrmpy.radius.login import Grant, Login, LoginFailed, Nas, ServersSilent
from xfrmpy.radius.packet import MAX_PACKET

log = logging.getLogger(__name__)

MAX_READ = 64
"""Datagrams that are read from a socket before anything else has its turn."""

IDLE_SECONDS = 60.0
"""After so long nobody comes back to a login; an IKE SA is half-open for no longer."""

MAX_LOGINS = 10_000
"""Authentications at a time; the half-open IKE SAs that they are of have a limit far below."""

Judgement = bytes | Grant | LoginFailed
"""The next EAP request for the peer, what it is granted, or why it does not come in."""


class RadiusTransport:
    """The sockets of one client, one for each of its servers.

    Unconnected, so that what others send to them is counted and not only dropped.
    """

    def __init__(self, client: RadiusClient, handle: Callable[[Output], None]) -> None:
        self._client = client
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._sockets = [_open_socket(server) for server in client.servers]
        for number, each in enumerate(self._sockets):
            self._loop.add_reader(each, self._receive, number)

    def settle(self) -> None:
        """Do all that the client wants done; to be called after everything that is asked of it."""
        while (output := self._client.next_output()) is not None:
            if isinstance(output, Send):
                self._send(output)
            else:
                self._handle(output)
        self._arm()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for each in self._sockets:
            self._loop.remove_reader(each)
            each.close()

    def _send(self, output: Send) -> None:
        server = self._client.servers[output.server]
        try:
            self._sockets[output.server].sendto(output.octets, server.address)
        except OSError as error:  # As one that is lost on its way.
            log.warning("cannot send to the RADIUS server %s: %s", server, error.strerror)

    def _receive(self, number: int) -> None:
        for _ in range(MAX_READ):
            try:
                octets, source = self._sockets[number].recvfrom(MAX_PACKET + 1)
            except BlockingIOError:
                break
            except OSError as error:
                log.debug("RADIUS server %s: %s", self._client.servers[number], error)
                break
            self._client.receive_datagram(number, source[:2], octets, self._loop.time())
        self.settle()

    def _handle_timeout(self) -> None:
        self._timer = None
        self._client.handle_timeout(self._loop.time())
        self.settle()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due_at = self._client.next_timeout()
        self._timer = None if due_at is None else self._loop.call_at(due_at, self._handle_timeout)


class RadiusLogins:
    """Users' authentications by the servers of a policy, each under a key of the caller's."""

    def __init__(self, servers: Sequence[Server], timing: Timing, name: str) -> None:
        self._name = name
        self._client = RadiusClient(servers, timing, secrets.token_bytes)
        self._loop = asyncio.get_running_loop()
        self._transport = RadiusTransport(self._client, self._hear)
        self._logins: dict[bytes, tuple[float, Login]] = {}
        self._asked: dict[int, tuple[bytes, Callable[[Judgement], None]]] = {}
        self._last_ticket = 0

    @property
    def refused(self) -> dict[str, int]:
        """Datagrams that were no replies, by the reason."""
        return {reason.value: number for reason, number in self._client.refused.items()}

    def ask(self, key: bytes, nas: Nas, response: bytes, tell: Callable[[Judgement], None]) -> None:
        """What the servers say to a peer's EAP response, of which the first begins a login."""
        now = self._loop.time()
        self._forget_idle(now)
        try:
            _, login = self._logins.pop(key, (now, Login(nas)))
            if len(self._logins) >= MAX_LOGINS:
                raise LoginFailed(f"{MAX_LOGINS} others authenticate themselves already")
            self._logins[key] = (now, login)
            attributes = login.request(response)
        except LoginFailed as failed:
            self._end(key, failed, tell)
            return
        self._last_ticket += 1
        self._asked[self._last_ticket] = (key, tell)
        self._client.ask(self._last_ticket, Code.ACCESS_REQUEST, attributes, now, login.server)
        self._transport.settle()

    def close(self) -> None:
        """Whoever still waits is told so."""
        self._transport.close()
        asked, self._asked = self._asked, {}
        for key, tell in asked.values():
            self._end(key, ServersSilent("other servers are to be asked now"), tell)

    def _forget_idle(self, now: float) -> None:
        """The one asked for first, of those that there are, is the first of the table."""
        while self._logins:
            key, (since, _) = next(iter(self._logins.items()))
            if now - since < IDLE_SECONDS:
                return
            del self._logins[key]

    def _hear(self, output: Output) -> None:
        match output:
            case Answered():
                self._answer(output)
            case Unanswered():
                key, tell = self._asked.pop(output.ticket, (b"", _nobody))
                self._end(key, ServersSilent(output.reason), tell)
            case _:
                _log_server(self._name, self._client, output)

    def _answer(self, output: Answered) -> None:
        key, tell = self._asked.pop(output.ticket, (b"", _nobody))
        if key not in self._logins:
            return
        try:
            judgement = self._logins[key][1].handle(output.server, output.reply)
        except LoginFailed as failed:
            self._end(key, failed, tell)
            return
        if isinstance(judgement, Grant):
            del self._logins[key]
        tell(judgement)

    def _end(self, key: bytes, failed: LoginFailed, tell: Callable[[Judgement], None]) -> None:
        self._logins.pop(key, None)
        tell(failed)


class RadiusAccounts:
    """The accounting servers of a policy."""

    def __init__(self, servers: Sequence[Server], timing: Timing, name: str) -> None:
        self._name = name
        self._client = RadiusClient(servers, timing, secrets.token_bytes)
        self._accountant = Accountant(self._client)
        self._loop = asyncio.get_running_loop()
        self._transport = RadiusTransport(self._client, self._hear)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def lost(self) -> int:
        """Records that no server has taken."""
        return self._accountant.lost

    @property
    def is_idle(self) -> bool:
        """Whether every record is with a server, or lost."""
        return self._accountant.is_idle

    def tell(self, record: Sequence[Attribute]) -> None:
        self._accountant.tell(record, self._loop.time())
        self._settle()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._transport.close()

    def _hear(self, output: Output) -> None:
        match output:
            case Answered():
                self._accountant.handle_answer(output.ticket, self._loop.time())
            case Unanswered():
                log.warning("RADIUS accounting of %s: %s", self._name, output.reason)
                self._accountant.handle_silence(output.ticket, self._loop.time())
                self._arm()
            case _:
                _log_server(self._name, self._client, output)

    def _settle(self) -> None:
        self._transport.settle()
        self._arm()

    def _handle_timeout(self) -> None:
        self._timer = None
        self._accountant.handle_timeout(self._loop.time())
        self._settle()

    def _arm(self) -> None:
        due_at = self._accountant.next_timeout()
        if self._timer is None and due_at is not None:
            self._timer = self._loop.call_at(due_at, self._handle_timeout)


def _log_server(name: str, client: RadiusClient, output: Output) -> None:
    match output:
        case ServerSilent():
            server = client.servers[output.server]
            log.warning(
                "RADIUS %s: %s does not answer: does it run, and know our address and secret?",
                name,
                server,
            )
        case ServerBack():
            log.info("RADIUS %s: %s answers again", name, client.servers[output.server])


def _nobody(_: Judgement) -> None:
    """Whoever had asked has forgotten it."""


def _open_socket(server: Server) -> socket.socket:
    family = ipaddress.ip_address(server.address[0]).version
    with contextlib.ExitStack() as stack:
        opened = socket.socket(
            socket.AF_INET if family == 4 else socket.AF_INET6,
            socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
        )
        stack.callback(opened.close)
        opened.bind(("", 0))
        stack.pop_all()
    return opened
