"""Hears that packets of ours were too large for their path, and reminds when that may be over.

Read RFC 1191 sections 3 and 6.3, RFC 8201 sections 4 and 5.3 and RFC 4301 section 8.2.1 first. What
the kernel makes of such a message, which it remembers with the route to the peer for ten minutes,
it tells nobody; so whoever is told here asks it for the path. Anybody can send an ICMP message:
news is only what quotes a packet between the ends of an SA, and its SPI where the quotation reaches
so far. The message itself is not believed in anything else.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from struct import Struct

from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.registry import ProtocolId

MAX_MESSAGES = 64
"""Read at a time; what is left is news, too, and there will be another time."""

_EXPIRES = (
    Path("/proc/sys/net/ipv4/route/mtu_expires"),
    Path("/proc/sys/net/ipv6/route/mtu_expires"),
)
_EXPIRES_SECONDS = 600  # Where the kernel does not say. RFC 1191 section 6.3 recommends it.
_MARGIN_SECONDS = 1  # It is rounded to something smaller in the kernel.

_ICMP_FILTER, _ICMPV6_FILTER = 1, 1  # <linux/icmp.h>, <linux/icmpv6.h>
_SOL_RAW = 255
_UNREACHABLE, _FRAGMENTATION_NEEDED, _TOO_BIG = 3, 4, 2
# A bit for each type that is not wanted.
_ONLY_UNREACHABLE = Struct("=I").pack(0xFFFFFFFF ^ 1 << _UNREACHABLE)
_ONLY_TOO_BIG = Struct("=8I").pack(0xFFFFFFFF ^ 1 << _TOO_BIG, *[0xFFFFFFFF] * 7)

_ICMP_SIZE, _UDP_SIZE, _IPV6_SIZE = 8, 8, 40
_UDP, _ESP, _AH = 17, 50, 51
_SPI_AT = {_ESP: 0, _AH: 4}
_PROTOCOLS = {_UDP: ProtocolId.ESP, _ESP: ProtocolId.ESP, _AH: ProtocolId.AH}
_PORT = Struct(">H")
_SPI = Struct(">I")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quoted:
    """The packet that was too large: its ends, and the SPI if that much of it was quoted."""

    source: IpAddress
    destination: IpAddress
    protocol: ProtocolId
    spi: int | None


class PathNews:
    """See the module."""

    def __init__(self, natt_port: int) -> None:
        """Our ESP in UDP is sent from `natt_port`. Where raw sockets are not for us, there are no
        news. Raises `OSError`."""
        self._natt_port = natt_port
        with ExitStack() as stack:
            self._poll = stack.enter_context(closing(select.epoll()))
            self._sockets: dict[int, socket.socket] = {}
            for version, make in ((4, _listen_ipv4), (6, _listen_ipv6)):
                with contextlib.suppress(OSError):
                    self._sockets[version] = stack.enter_context(make())
            self._reminder = _Timer()
            stack.callback(self._reminder.close)
            self._poll.register(self._reminder.fileno(), select.EPOLLIN)
            for opened in self._sockets.values():
                self._poll.register(opened, select.EPOLLIN)
            self._opened = stack.pop_all()

    def fileno(self) -> int:
        return self._poll.fileno()

    def read(self, is_ours: Callable[[Quoted], bool]) -> bool:
        """Whether paths may have become narrower, or wider again, since the last time."""
        is_over = self._reminder.has_expired()
        heard = [quoted for quoted in self._messages() if is_ours(quoted)]
        if heard:
            self._reminder.set(_expires_seconds())
        return is_over or bool(heard)

    def close(self) -> None:
        self._opened.close()

    def _messages(self) -> Iterator[Quoted]:
        for version, opened in self._sockets.items():
            for _ in range(MAX_MESSAGES):
                try:
                    packet = opened.recv(2048)
                except OSError:
                    break
                quoted = quoted_untrusted(packet, version, self._natt_port)
                if quoted is not None:
                    yield quoted


def quoted_untrusted(packet: bytes, version: int, natt_port: int) -> Quoted | None:
    """What an ICMP message complains of, if it says that a packet is too large which may be ours.

    UDP may be ours if it is from `natt_port`. IPv4 comes with its header, IPv6 without.
    """
    message = packet
    if version == 4:
        message = packet[(packet[0] & 0xF) * 4 :] if packet else b""
        if message[:2] != bytes((_UNREACHABLE, _FRAGMENTATION_NEEDED)):
            return None
    elif message[:2] != bytes((_TOO_BIG, 0)):
        return None
    quote = message[_ICMP_SIZE:]
    return _quoted_ipv4(quote, natt_port) if version == 4 else _quoted_ipv6(quote, natt_port)


def _quoted_ipv4(quote: bytes, natt_port: int) -> Quoted | None:
    if len(quote) < 20 or quote[0] >> 4 != 4:
        return None
    ends = IPv4Address(quote[12:16]), IPv4Address(quote[16:20])
    return _quoted(*ends, quote[9], quote[(quote[0] & 0xF) * 4 :], natt_port)


def _quoted_ipv6(quote: bytes, natt_port: int) -> Quoted | None:
    if len(quote) < _IPV6_SIZE or quote[0] >> 4 != 6:
        return None
    ends = IPv6Address(quote[8:24]), IPv6Address(quote[24:40])
    return _quoted(*ends, quote[6], quote[_IPV6_SIZE:], natt_port)


def _quoted(
    source: IpAddress, destination: IpAddress, protocol: int, payload: bytes, natt_port: int
) -> Quoted | None:
    if protocol not in _PROTOCOLS:
        return None
    at = _SPI_AT.get(protocol, _UDP_SIZE)
    if protocol == _UDP and payload[:2] != _PORT.pack(natt_port):
        return None
    is_there = len(payload) >= at + _SPI.size
    return Quoted(
        source=source,
        destination=destination,
        protocol=_PROTOCOLS[protocol],
        spi=_SPI.unpack_from(payload, at)[0] if is_there else None,
    )


def _listen_ipv4() -> socket.socket:
    return _listen(socket.AF_INET, socket.IPPROTO_ICMP, _SOL_RAW, _ICMP_FILTER, _ONLY_UNREACHABLE)


def _listen_ipv6() -> socket.socket:
    protocol = socket.IPPROTO_ICMPV6
    return _listen(socket.AF_INET6, protocol, protocol, _ICMPV6_FILTER, _ONLY_TOO_BIG)


def _listen(
    family: socket.AddressFamily, protocol: int, level: int, option: int, wanted: bytes
) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        opened.setsockopt(level, option, wanted)
    except OSError:
        opened.close()
        raise
    return opened


def _expires_seconds() -> int:
    """Of both families the longer time."""
    seconds = []
    for path in _EXPIRES:
        with contextlib.suppress(OSError, ValueError):
            seconds.append(int(path.read_text()))
    return max(seconds, default=_EXPIRES_SECONDS) + _MARGIN_SECONDS


class _Timer:
    """timerfd_create(2), for which Python has no name before 3.13."""

    _VALUE = Struct("@4l")  # struct itimerspec: period, and the time until then

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None, use_errno=True)
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self._descriptor: int = self._library.timerfd_create(time.CLOCK_MONOTONIC, flags)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def fileno(self) -> int:
        return self._descriptor

    def set(self, seconds: int) -> None:
        self._library.timerfd_settime(self._descriptor, 0, self._VALUE.pack(0, 0, seconds, 0), None)

    def has_expired(self) -> bool:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        os.close(self._descriptor)
