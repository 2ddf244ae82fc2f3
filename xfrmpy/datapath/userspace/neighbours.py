"""Packets that one worker has and another is to deal with.

The host's packets come by whichever queue of a device the kernel takes. It takes that by which the
stream's own packets came last, so those of a stream that goes both ways are soon where its SA is;
the others are handed over. A worker connects to the control socket of another and says `hand`;
then packets follow, each with what its device said of it. Nothing waits for a neighbour: what it
has no room for is lost, and counted, and so is what would be handed on once more.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import partial
from pathlib import Path
from struct import Struct

from xfrmpy.datapath.userspace import requests, virtio
from xfrmpy.datapath.userspace.forwarding import Refused, refused_by_system
from xfrmpy.datapath.userspace.requests import socket_name
from xfrmpy.datapath.userspace.shares import Share
from xfrmpy.datapath.userspace.turns import Readable
from xfrmpy.datapath.userspace.virtio import Offload

TURN = 64
"""Packets taken from a neighbour before other descriptors get their turn."""

ROOM = 512 * 1024
"""Octets on their way to a neighbour, as the kernel counts them: some super-packets."""

_SO_SNDBUFFORCE = 32
_MAX_PACKET = 1 << 17
_HEADER = Struct("=BI")  # kind, if_id; the virtio header and the packet follow


class Kind(IntEnum):
    """Which way a packet goes: it is to be protected, or written to a device."""

    OUTBOUND = 0
    INBOUND = 1


class Neighbours:
    """See the module. `handle` is called for each packet that a neighbour hands over."""

    def __init__(
        self,
        share: Share,
        directory: Path,
        readable: Readable,
        handle: Callable[[Kind, int, bytes, Offload], None],
        finish: Callable[[], None],
    ) -> None:
        """`finish` is called after each turn of packets."""
        self._share = share
        self._directory = directory
        self._readable = readable
        self._handle = handle
        self._finish = finish
        self._is_handling = False
        self._outgoing: dict[int, socket.socket] = {}
        self._incoming: set[socket.socket] = set()

    def hand(
        self,
        worker: int,
        kind: Kind,
        if_id: int,
        offload: Offload,
        pieces: Sequence[bytes | memoryview],
    ) -> None:
        """Give a packet to another worker. Raises `Refused`."""
        if self._is_handling:
            raise Refused("handed-twice")
        header = _HEADER.pack(kind, if_id) + virtio.encode_offload(offload)
        try:
            channel = self._outgoing.get(worker) or self._connect(worker)
            channel.sendmsg([header, *pieces])
        except BlockingIOError:
            raise Refused("handed-overflow") from None
        except OSError as error:
            self._forget(worker)
            raise refused_by_system("handed", error) from error

    def _connect(self, worker: int) -> socket.socket:
        """Raises `OSError`."""
        channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            _enlarge(channel)
            channel.connect(str(self._directory / socket_name(worker)))
            channel.send(requests.encode({"do": "hand"}))
        except OSError:
            channel.close()
            raise
        self._outgoing[worker] = channel
        return channel

    def _forget(self, worker: int) -> None:
        channel = self._outgoing.pop(worker, None)
        if channel is not None:
            channel.close()

    def hear(self, channel: socket.socket) -> None:
        """From now on packets come on this connection."""
        channel.setblocking(False)
        self._incoming.add(channel)
        self._readable.register(channel, partial(self._receive, channel))

    def _receive(self, channel: socket.socket) -> None:
        self._is_handling = True
        try:
            for _ in range(TURN):
                message = channel.recv(_MAX_PACKET)
                if not message:
                    self._drop(channel)
                    break
                kind, if_id = _HEADER.unpack_from(message)
                offload = virtio.decode_offload(message[_HEADER.size :][: virtio.SIZE])
                self._handle(Kind(kind), if_id, message[_HEADER.size + virtio.SIZE :], offload)
        except BlockingIOError:
            pass
        except OSError:
            self._drop(channel)
        finally:
            self._finish()
            self._is_handling = False

    def _drop(self, channel: socket.socket) -> None:
        self._incoming.discard(channel)
        self._readable.unregister(channel)
        channel.close()

    def close(self) -> None:
        """Let go of all neighbours."""
        for worker in tuple(self._outgoing):
            self._forget(worker)
        for channel in tuple(self._incoming):
            self._drop(channel)


def _enlarge(channel: socket.socket) -> None:
    """Beyond the host's limit where we may."""
    with contextlib.suppress(PermissionError):
        channel.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, ROOM)
