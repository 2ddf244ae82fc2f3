"""Who may call the control socket: whoever runs the daemon may do all, a group may look.

The kernel says who is at the other end (unix(7): SO_PEERCRED, SO_PEERGROUPS), as of the moment when
he connected. A caller who may not call is told so, once, and nothing else.
"""

from __future__ import annotations

import contextlib
import grp
import os
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

from xfrmpy.failures import OperatorError

DEFAULT_GROUP = "xfrmpy"
"""Whose members may look, if there is such a group."""

MAX_CALLERS = 128
RESERVED_CALLERS = 32
"""Of all connections, these are for callers who may do all, however many look on."""

MAX_CALLERS_OF_A_USER = 32
"""Connections at a time. A command has one; systemd's own limit is 1,024."""

_UCRED = Struct("=iII")
_SO_PEERGROUPS = 59  # asm-generic/socket.h; Python has no name for it
_GROUPS_OCTETS = 1024  # as much as Python's getsockopt takes: 256 groups


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The user at the other end, and what he may do."""

    uid: int
    may_look: bool
    may_change: bool


class Doorkeeper:
    """Tells callers apart, and counts them. `gid` is the group that may look, if there is one."""

    def __init__(self, gid: int | None) -> None:
        self.gid = gid
        self._present: Counter[int] = Counter()

    def identify(self, connection: socket.socket) -> Caller:
        octets = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        _, uid, gid = _UCRED.unpack(octets)
        may_change = uid in (0, os.geteuid())
        may_look = may_change or (self.gid is not None and self.gid in _groups(connection, gid))
        return Caller(uid=uid, may_look=may_look, may_change=may_change)

    @contextlib.contextmanager
    def admit(self, caller: Caller) -> Iterator[None]:
        """While a caller is here. Raises `OperatorError` XF4003 or XF4011 if he cannot be."""
        self._check(caller)
        self._present[caller.uid] += 1
        try:
            yield
        finally:
            self._present[caller.uid] -= 1
            self._present += Counter()  # drops those that are zero

    def _check(self, caller: Caller) -> None:
        if not caller.may_look:
            raise OperatorError("XF4003", f"user {caller.uid} may not call this daemon")
        room = MAX_CALLERS if caller.may_change else MAX_CALLERS - RESERVED_CALLERS
        if self._present.total() >= room:
            raise OperatorError("XF4011", f"{room} connections are open, and no more are taken")
        if self._present[caller.uid] >= MAX_CALLERS_OF_A_USER:
            have = f"user {caller.uid} has {MAX_CALLERS_OF_A_USER} connections open"
            raise OperatorError("XF4011", f"{have}, and may have no more")


def reading_group(name: str | None) -> int | None:
    """The number of the group that may look: the one named, or the default one if it exists.

    An empty name is no group at all. Raises `OperatorError` if the named one does not exist.
    """
    if name == "":
        return None
    try:
        return grp.getgrnam(name or DEFAULT_GROUP).gr_gid
    except KeyError as error:
        if name is None:
            return None
        raise OperatorError("XF4005", f"there is no group {name!r} on this host") from error


def give_to_group(path: Path, gid: int) -> None:
    """Let a group use a socket. Raises `OperatorError` where it is not for us to give."""
    try:
        if path.stat().st_gid != gid:  # A service need not be allowed the call.
            os.chown(path, -1, gid)
    except PermissionError as error:
        reason = f"{path} may not be given to group {gid}, of which we are no member"
        raise OperatorError("XF4003", reason) from error
    path.chmod(0o660)


def _groups(connection: socket.socket, primary: int) -> set[int]:
    """The caller's groups; of somebody in more than 256 only the primary one is known."""
    try:
        octets = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _GROUPS_OCTETS)
    except OSError:
        return {primary}
    return {primary, *memoryview(octets).cast("I")}
