"""The UDP sockets of IKE: ports 500 and 4500 or what is in its place, IPv4 and IPv6, and from which
address to answer.

The sockets are bound to every address, so each datagram comes and goes with its own local address
in the ancillary data (IP_PKTINFO, IPV6_PKTINFO). The second port is shared with ESP in UDP.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path as FilePath

from xfrmpy.datapath.routes import OUR_MARK
from xfrmpy.datapath.userspace.udp import (
    IP_PKTINFO,
    IPV4_INFO,
    IPV6_INFO,
    open_shared_udp_socket,
    packet_info,
)
from xfrmpy.failures import OperatorError
from xfrmpy.ipsec.addresses import (
    IKE_NATT_PORT,
    IKE_PORT,
    IpAddress,
    Path,
    SocketAddress,
)

MAX_DATAGRAM = 65535
BATCH = 64
"""Datagrams read before timers and commands get their turn."""

KNOWN_ADDRESSES = 1024
"""Of ours and of peers that are kept, to be read once and shared by all that is said of them."""

RECEIVE_BUFFER = 1 << 20
"""Octets as the kernel counts them, some 800 for a small datagram: half a second of 2,000 requests
a second, so that a daemon which has something else to do for a moment loses none."""

_SO_RCVBUFFORCE = 33
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT = 10, 23, 0


class IkeSockets:
    """See the module. Opening raises `OperatorError` XF4002 or XF4003.

    `kept` are those that an earlier daemon has left, of which what is on other ports is closed.
    `are_new` unless they were all there, and no others.
    """

    def __init__(self, kept: Iterable[socket.socket] = (), natt_port: int = IKE_NATT_PORT) -> None:
        self.natt_port = natt_port
        self._sockets = {_place(each): each for each in kept}
        self.are_new = self._close_others()
        try:
            for (version, _), each in self._sockets.items():
                _prepare(each, version)
            for place in itertools.product(_versions(), (IKE_PORT, natt_port)):
                if place not in self._sockets:
                    self._sockets[place] = _open(*place)
                    self.are_new = True
        except BaseException:
            self.close()
            raise

    def _close_others(self) -> bool:
        """Whether there were any."""
        others = [place for place in self._sockets if place[1] not in (IKE_PORT, self.natt_port)]
        for place in others:
            self._sockets.pop(place).close()
        return bool(others)

    def natt_sockets(self) -> tuple[socket.socket, ...]:
        """Those on which ESP in UDP arrives, too."""
        return tuple(s for (_, port), s in self._sockets.items() if port == self.natt_port)

    def all(self) -> tuple[socket.socket, ...]:
        return tuple(self._sockets.values())

    def read(self, ready: socket.socket) -> Iterator[tuple[bytes, Path]]:
        """What has arrived on a socket, as it came, marker included; one batch at most."""
        port = ready.getsockname()[1]
        for _ in range(BATCH):
            try:
                data, ancillary, _, remote = ready.recvmsg(MAX_DATAGRAM, 64)
            except BlockingIOError:
                return
            except OSError:
                continue  # An ICMP error for something sent earlier; timers deal with silence.
            local = _local_address(ancillary)
            if local is not None:
                path = Path(
                    local=SocketAddress(local, port),
                    remote=SocketAddress(_parsed(remote[0]), remote[1]),
                    natt=port == self.natt_port,
                )
                yield data, path

    def send(self, data: bytes, path: Path) -> None:
        """Send from exactly the path's local address. Raises `OSError`."""
        local, remote = path.local.address, path.remote
        sender = self._sockets[local.version, path.local.port]
        sender.sendmsg([data], [packet_info(local)], 0, (str(remote.address), remote.port))

    def close(self) -> None:
        for each in self._sockets.values():
            each.close()
        self._sockets.clear()


def local_address_for(remote: IpAddress) -> IpAddress:
    """The address that this host would send from to reach `remote`.

    Raises `OperatorError` XF2013 if there is no route.
    """
    family = socket.AF_INET if remote.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        _mark(probe)
        try:
            probe.connect((str(remote), IKE_PORT))
        except OSError as error:
            raise OperatorError("XF2013", f"no route to {remote}: {error.strerror}") from error
        return _parsed(probe.getsockname()[0])


def is_our_address(address: IpAddress) -> bool:
    """Whether this host has it, now."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True


def _enlarge_buffer(opened: socket.socket) -> None:
    """Beyond the host's limit where we may, which the root of a user namespace may not."""
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)


def _open(version: int, port: int) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        if port == IKE_PORT:
            opened = _open_own(family, port)
        else:
            opened = open_shared_udp_socket(family, port)
    except OSError as error:
        raise _explain(error, port) from error
    try:
        _prepare(opened, version)
    except BaseException:
        opened.close()
        raise
    return opened


def _prepare(opened: socket.socket, version: int) -> None:
    opened.setblocking(False)
    _mark(opened)
    _enlarge_buffer(opened)
    if version == 4:
        opened.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_DONT)


def _place(opened: socket.socket) -> tuple[int, int]:
    """Its version of IP, and its port."""
    return 4 if opened.family == socket.AF_INET else 6, opened.getsockname()[1]


def _open_own(family: socket.AddressFamily, port: int) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(("", port))
    except OSError:
        opened.close()
        raise
    return opened


def _explain(error: OSError, port: int) -> Exception:
    if error.errno == errno.EADDRINUSE:
        holder = _holder_of(port)
        return OperatorError("XF4002", f"UDP port {port} is taken", (("held by", holder),))
    if error.errno in (errno.EACCES, errno.EPERM):
        return OperatorError("XF4003", f"UDP port {port} may not be opened: {error.strerror}")
    return error


def _versions() -> tuple[int, ...]:
    """IPv6 may be compiled out or switched off at boot; then there is only IPv4."""
    return (4, 6) if FilePath("/proc/net/if_inet6").exists() else (4,)


def _mark(sender: socket.socket) -> None:
    """IKE itself must never be led into a tunnel."""
    try:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, OUR_MARK)
    except PermissionError as error:
        raise OperatorError(
            "XF4003", "sockets may not be marked: CAP_NET_ADMIN is missing"
        ) from error


def _local_address(ancillary: list[tuple[int, int, bytes]]) -> IpAddress | None:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            return _unpacked(IPV4_INFO.unpack(data)[2])
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return _unpacked(IPV6_INFO.unpack(data)[0])
    return None


@lru_cache(maxsize=KNOWN_ADDRESSES)
def _unpacked(octets: bytes) -> IpAddress:
    return ip_address(octets)


@lru_cache(maxsize=KNOWN_ADDRESSES)
def _parsed(address: str) -> IpAddress:
    """Without its zone."""
    return ip_address(address.partition("%")[0])


def _holder_of(port: int) -> str:
    """Which process has a UDP port open, as far as we may see."""
    inodes = {
        fields[9]
        for table in ("udp", "udp6")
        for fields in _socket_rows(table)
        if int(fields[1].rpartition(":")[2], 16) == port
    }
    for process in FilePath("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                if descriptor.readlink().name.removeprefix("socket:[").rstrip("]") in inodes:
                    return f"{(process / 'comm').read_text().strip()}, process {process.name}"
    return "a process that we may not see"


def _socket_rows(table: str) -> Iterator[list[str]]:
    with contextlib.suppress(OSError):
        rows = FilePath("/proc/net", table).read_text().splitlines()[1:]
        yield from (row.split() for row in rows)
