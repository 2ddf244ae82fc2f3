"""A worker's socket in the runtime directory: who may speak, and what waits for whom.

Requests are answered one after the other, whoever asks. Here are those that have to do with the
daemon and not with packets: events, and the daemon's own sockets, which the worker keeps open while
there is no daemon: what arrives waits in them, and no place in the group of the shared port changes
(see `udp`). Nothing here knows of SAs or policies.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from struct import Struct
from typing import Any, Protocol

from xfrmpy.datapath.interface import DatapathError, Event
from xfrmpy.datapath.userspace import requests
from xfrmpy.datapath.userspace.turns import Readable
from xfrmpy.ipsec.plain import Plain

MAX_DESCRIPTORS = 16
"""The daemon has four sockets: two ports, two families; a worker two, and a device."""

REPLY_SECONDS = 0.5
"""A connection that does not take its replies is closed: packets are waiting."""

UCRED = Struct("=iII")
_DESCRIPTOR = Struct("=i")


class Colleague(Protocol):
    """A worker of several, and what concerns its sockets. May raise `DatapathError`."""

    def join(self, given: Sequence[int]) -> None:
        """Go on with what another has lent, or open sockets behind those of the shared port."""

    def lend(self) -> Sequence[int]:
        """Its sockets on the shared port, and its queue of the device."""

    def hear(self, channel: socket.socket) -> None:
        """On this connection a neighbour hands packets over from now on."""


class ControlSocket:
    """See the module.

    `is_behind` says whether somebody who listens has not read everything. `answer` gives the
    replies to every other request, by its name; `resettle` is called when other sockets of the
    daemon's are kept than before. Either may raise `DatapathError`. `colleague` is who answers what
    is asked of one of several workers only.
    """

    def __init__(
        self,
        path: Path,
        readable: Readable,
        answer: Callable[[str, Plain], Iterable[dict[str, Any]]],
        resettle: Callable[[], None],
        colleague: Colleague | None = None,
    ) -> None:
        self._colleague = colleague
        self.kept: tuple[socket.socket, ...] = ()
        self.is_behind = False
        self._path = path
        self._readable = readable
        self._answer_other = answer
        self._resettle = resettle
        self._listeners: dict[socket.socket, deque[bytes]] = {}
        self._waiting: deque[bytes] = deque(maxlen=requests.MAX_EVENTS)
        self._listener = _listen(path)
        self._readable.register(self._listener, self._accept)

    def tell(self, events: Iterable[Event]) -> None:
        """To whom listens, as far as they read; while nobody listens, events wait, each once."""
        packets = [requests.encode_event(event) for event in events]
        if not self._listeners:
            self._waiting.extend(packet for packet in packets if packet not in self._waiting)
            return
        for listener, waiting in self._listeners.items():
            waiting.extend(packets)
            with contextlib.suppress(OSError):  # It is full; or gone, which shows when it is read.
                while waiting:
                    listener.send(waiting[0])
                    waiting.popleft()
        self._note_progress()

    def _note_progress(self) -> None:
        self.is_behind = any(self._listeners.values())

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        self._readable.unregister(self._listener)
        self._listener.close()
        self._let_go()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # It has gone again, or we have no descriptors left.
        octets = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        if UCRED.unpack(octets)[1] not in (0, os.geteuid()):
            connection.close()
            return
        connection.settimeout(REPLY_SECONDS)
        self._readable.register(connection, partial(self._read_request, connection))

    def _read_request(self, connection: socket.socket) -> None:
        try:
            packet, descriptors = receive(connection)
        except OSError:
            packet, descriptors = b"", []
        try:
            if packet:
                for reply in self._answer(connection, packet, descriptors):
                    connection.send(requests.encode(reply))
                return
        except OSError:
            pass  # The daemon is gone, or does not read: it comes back if it wants something.
        finally:
            for each in descriptors:
                os.close(each)
        self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        unread = self._listeners.pop(connection, ())
        if not self._listeners:
            self._waiting.extend(unread)
        self._note_progress()
        self._readable.unregister(connection)
        connection.close()

    def _answer(
        self, connection: socket.socket, packet: bytes, descriptors: list[int]
    ) -> Iterable[dict[str, Any]]:
        """The replies to a request. No request ends the worker."""
        try:
            request = requests.decode(packet)
            match request["do"]:
                case "events":
                    self._listen_to(connection)
                    return [{"result": None}]
                case "keep":
                    self._keep(descriptors)
                    return [{"result": None}]
                case "kept":
                    _hand_back(connection, [each.fileno() for each in self.kept])
                    return []
                case "join" | "lend" | "hand" as what if self._colleague is not None:
                    return self._share(self._colleague, what, connection, descriptors)
                case name:
                    return self._answer_other(name, request.get("with"))
        except DatapathError as error:
            return [{"error": str(error), "errno": error.errno}]
        except Exception as error:
            return [{"error": f"a request that makes no sense: {error!r}", "errno": None}]

    def _listen_to(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._listeners[connection] = deque(self._waiting, requests.MAX_EVENTS)
        self._waiting.clear()
        self._note_progress()

    def _keep(self, descriptors: list[int]) -> None:
        kept = [_duplicate(each) for each in descriptors]
        self._let_go()
        self.kept = tuple(kept)
        self._resettle()

    def _share(
        self, colleague: Colleague, what: str, connection: socket.socket, descriptors: list[int]
    ) -> Iterable[dict[str, Any]]:
        match what:
            case "join":
                colleague.join([os.dup(each) for each in descriptors])
                return [{"result": None}]
            case "lend":
                _hand_back(connection, colleague.lend())
            case _:
                self._readable.unregister(connection)
                colleague.hear(connection)
        return []

    def _let_go(self) -> None:
        for each in self.kept:
            each.close()
        self.kept = ()


def _hand_back(connection: socket.socket, descriptors: Sequence[int]) -> None:
    reply = requests.encode({"result": None})
    socket.send_fds(connection, [reply], [*descriptors])


def _duplicate(descriptor: int) -> socket.socket:
    """Raises `OSError` for what is no socket.

    Not by `socket.dup`, which makes it blocking: the one that the daemon reads, too.
    """
    sent = socket.socket(fileno=descriptor)
    try:
        return socket.socket(sent.family, sent.type, sent.proto, fileno=os.dup(descriptor))
    finally:
        sent.detach()


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """A packet, and the descriptors that came with it, which no child will have.

    Raises `OSError`. (`socket.recv_fds` of Python 3.11 forgets its flags.)
    """
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * _DESCRIPTOR.size)
    flags = socket.MSG_CMSG_CLOEXEC
    packet, ancillary, _, _ = connection.recvmsg(requests.MAX_PACKET, room, flags)
    descriptors = [
        number
        for level, kind, octets in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (number,) in _DESCRIPTOR.iter_unpack(octets)
    ]
    return packet, descriptors


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path.unlink(missing_ok=True)
    old_mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old_mask)
    listener.listen()
    return listener
