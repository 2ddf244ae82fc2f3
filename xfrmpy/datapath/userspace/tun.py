"""The TUN device on which packets come from and go to the host's own IP (linux/if_tun.h)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path
from struct import Struct

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.netlink.messages import Message, encode_attributes
from xfrmpy.datapath.netlink.route import RTNETLINK, LinkAttribute, LinkInet6, MessageType
from xfrmpy.datapath.netlink.socket import NetlinkSocket, Request

DEVICE = "xfrmpy0"

_TUN = Path("/dev/net/tun")
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU = 0x8913, 0x8914, 0x8922
_IFF_UP = 0x1
_FLAGS = Struct("=16sH22x")  # struct ifreq with ifr_flags
_MTU = Struct("=16si20x")  # struct ifreq with ifr_mtu

_ADDR_GEN_NONE = b"\x01"  # IN6_ADDR_GEN_MODE_NONE

MAX_MTU = 65535

DEVICE_MTU = 65535
"""Of the device; what a tunnel really carries is the MTU of its route."""


class Tun:
    """The device, up, for as long as this object is open. Reading and writing never block."""

    def __init__(self) -> None:
        """Raises `DatapathError` where there are no TUN devices, or none for us."""
        try:
            self._descriptor = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise DatapathError(
                f"{_TUN} cannot be opened: {error.strerror}", error.errno
            ) from error
        try:
            request = _FLAGS.pack(DEVICE.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(self._descriptor, _TUNSETIFF, request)
            _silence()
            bring_up()
        except OSError as error:
            os.close(self._descriptor)
            held = " (another process has it)" if error.errno == errno.EBUSY else ""
            reason = f"the TUN device {DEVICE} cannot be made: {error.strerror}{held}"
            raise DatapathError(reason, error.errno) from error

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> bytes:
        """The next packet. Raises `BlockingIOError` if there is none."""
        return os.read(self._descriptor, MAX_MTU)

    def write(self, packet: bytes) -> None:
        """Raises `OSError` for what the kernel does not take as a packet."""
        os.write(self._descriptor, packet)

    def close(self) -> None:
        """The device goes, and with it every route through it."""
        os.close(self._descriptor)


def _silence() -> None:
    """No address of its own, so no router solicitations; inner IPv6 works without.

    By netlink, for /proc/sys may be read-only to a service. Without IPv6 there is nothing to do.
    """
    mode = encode_attributes({LinkInet6.ADDR_GEN_MODE: _ADDR_GEN_NONE})
    setting = Message(
        type=MessageType.NEWLINK,
        body={"index": socket.if_nametoindex(DEVICE)},
        attributes={LinkAttribute.AF_SPEC: encode_attributes({socket.AF_INET6: mode})},
    )
    with contextlib.suppress(DatapathError), contextlib.closing(NetlinkSocket(RTNETLINK)) as kernel:
        kernel.ask(Request(setting, f"keep {DEVICE} without an address"))


def bring_up() -> None:
    """The device, with the MTU that it is to have. Raises `OSError`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFMTU, _MTU.pack(DEVICE.encode(), DEVICE_MTU))
        current = fcntl.ioctl(control, _SIOCGIFFLAGS, _FLAGS.pack(DEVICE.encode(), 0))
        flags: int = _FLAGS.unpack(current)[1] | _IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, _FLAGS.pack(DEVICE.encode(), flags))
