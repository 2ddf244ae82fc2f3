"""ESP in UDP on its way out: datagrams for one peer that are equally long leave together.

The kernel takes them in one system call, and through its own stack as one packet, where it has UDP
segmentation offload (udp(7), UDP_SEGMENT: Linux 4.18). Where it has not, or not on the way to a
peer, they leave one by one.
"""

from __future__ import annotations

import errno
import socket
import time
from collections import Counter
from collections.abc import Sequence
from struct import Struct
from typing import TypeAlias

from xfrmpy.datapath.userspace.ancillary import DfSwitch, encode_fields
from xfrmpy.datapath.userspace.forwarding import refused_by_system
from xfrmpy.datapath.userspace.udp import packet_info
from xfrmpy.esp.transport import Fields
from xfrmpy.ipsec.sad import SadEntry

MAX_TOGETHER = 64  # UDP_MAX_SEGMENTS of <linux/udp.h>; 128 since Linux 6.9
MAX_OCTETS = 65507  # of UDP in IPv4

ALONE_SECONDS = 60.0
"""How long a way that has not taken datagrams together is not asked again."""

_UDP_SEGMENT = 103  # <linux/udp.h>
_STRIDE = Struct("=H")

_NOT_TOGETHER = frozenset({errno.EIO, errno.EINVAL, errno.EMSGSIZE, errno.EOPNOTSUPP})
"""Without checksums by the device (before Linux 6.11), too long for the path, not known at all."""

_Octets: TypeAlias = bytes | memoryview


class UdpSender:
    """One socket's. What it was given and could not send is counted in `refused`, and never tried
    again: it must not hold up what comes behind it."""

    def __init__(self, opened: socket.socket, version: int, refused: Counter[str]) -> None:
        self._socket = opened
        self._version = version
        self._refused = refused
        self._df = DfSwitch(opened) if version == 4 else None
        self._entry: SadEntry | None = None
        self._fields: Fields | None = None
        self._has_df = False
        self._told: list[tuple[int, int, bytes]] = []
        self._destination = ("", 0)
        self._waiting: list[bytes] = []
        self._stride = 0
        self._room = 0
        self._alone: dict[str, int] = {}
        self._alone_until = 0.0

    def add(self, sealed: bytes, entry: SadEntry, fields: Fields | None, *, has_df: bool) -> None:
        """One more datagram, which leaves with the next `flush` at the latest."""
        size = len(sealed)
        if (
            size > self._stride
            or size > self._room
            or len(self._waiting) >= MAX_TOGETHER
            or not self._is_headed(entry, fields, has_df)
        ):
            self._begin(entry, fields, has_df)
            self._stride, self._room = size, MAX_OCTETS
        self._waiting.append(sealed)
        self._room -= size
        if size < self._stride:  # A shorter one is the last.
            self.flush()

    def send_one(
        self, sealed: bytes, entry: SadEntry, fields: Fields | None, *, has_df: bool
    ) -> None:
        """One datagram, now; nothing waits."""
        if entry is not self._entry or fields != self._fields or has_df is not self._has_df:
            self._head_for(entry, fields, has_df)
        try:
            if self._df is not None and self._df.is_on is not has_df:
                self._df.turn(on=has_df)
            self._socket.sendmsg((sealed,), self._told, 0, self._destination)
        except OSError as error:
            self._count(error, 1)

    def flush(self) -> None:
        """Send what waits."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        stride, self._stride = self._stride, 0
        if len(waiting) == 1 or not self._send_together(waiting, stride, len(waiting)):
            self._send_each(waiting)

    def send_run(
        self,
        sealed: memoryview,
        stride: int,
        entry: SadEntry,
        fields: Fields | None,
        *,
        has_df: bool,
    ) -> None:
        """Datagrams that lie one behind the other, equally long but for the last."""
        self._begin(entry, fields, has_df)
        most = min(MAX_TOGETHER, MAX_OCTETS // stride) * stride
        for at in range(0, len(sealed), most):
            piece = sealed[at : at + most]
            if not self._send_together([piece], stride, -(-len(piece) // stride)):
                self._send_each([piece[i : i + stride] for i in range(0, len(piece), stride)])

    def _begin(self, entry: SadEntry, fields: Fields | None, has_df: bool) -> None:
        self.flush()
        if not self._is_headed(entry, fields, has_df):
            self._head_for(entry, fields, has_df)

    def _is_headed(self, entry: SadEntry, fields: Fields | None, has_df: bool) -> bool:
        return entry is self._entry and fields == self._fields and has_df is self._has_df

    def _head_for(self, entry: SadEntry, fields: Fields | None, has_df: bool) -> None:
        assert entry.encapsulation is not None, "this SA's packets leave without UDP"
        self._entry, self._fields, self._has_df = entry, fields, has_df
        self._destination = (str(entry.destination), entry.encapsulation.destination_port)
        self._told = [packet_info(entry.source)]
        if fields is not None:
            self._told += encode_fields(fields, self._version)

    def _send_together(self, octets: Sequence[_Octets], stride: int, count: int) -> bool:
        """Whether that was a way to send them, or else nothing was sent."""
        peer = self._destination[0]
        if self._alone and not self._may_leave_together(peer, stride):
            return False
        told = [*self._told, (socket.IPPROTO_UDP, _UDP_SEGMENT, _STRIDE.pack(stride))]
        try:
            self._sendmsg(octets, told)
        except OSError as error:
            if count > 1 and error.errno in _NOT_TOGETHER:
                self._alone[peer] = 0 if error.errno == errno.EIO else stride
                self._alone_until = time.monotonic() + ALONE_SECONDS
                return False
            self._count(error, count)
        return True

    def _may_leave_together(self, peer: str, stride: int) -> bool:
        if time.monotonic() >= self._alone_until:
            self._alone.clear()
        return stride < self._alone.get(peer, stride + 1)

    def _send_each(self, datagrams: Sequence[_Octets]) -> None:
        for datagram in datagrams:
            try:
                self._sendmsg([datagram], self._told)
            except OSError as error:
                self._count(error, 1)

    def _sendmsg(self, octets: Sequence[_Octets], told: list[tuple[int, int, bytes]]) -> None:
        if self._df is not None and self._df.is_on is not self._has_df:
            self._df.turn(on=self._has_df)
        self._socket.sendmsg(octets, told, 0, self._destination)

    def _count(self, error: OSError, count: int) -> None:
        self._refused[refused_by_system("udp-send", error).reason] += count
