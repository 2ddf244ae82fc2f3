"""The TUN device on which packets come from and go to the host's own IP (linux/if_tun.h)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from struct import Struct

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.netdevices import Devices
from xfrmpy.datapath.userspace import virtio
from xfrmpy.datapath.userspace.virtio import Offload

DEVICE = "xfrmpy0"

_TUN = Path("/dev/net/tun")
_TUNSETIFF, _TUNGETIFF = 0x400454CA, 0x800454D2
_TUNSETOFFLOAD, _TUNSETVNETHDRSZ = 0x400454D0, 0x400454D8
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_IFF_MULTI_QUEUE, _IFF_PERSIST = 0x0100, 0x0800
ONE_QUEUE, SHARED_QUEUES = 0, _IFF_MULTI_QUEUE

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFMTU = 0x8913, 0x8914, 0x8922
_IFF_UP = 0x1
_FLAGS = Struct("=16sH22x")  # struct ifreq with ifr_flags
_MTU = Struct("=16si20x")  # struct ifreq with ifr_mtu
_INTEGER = Struct("=i")

_CHECKSUM, _TSO = 0x01, 0x02 | 0x04 | 0x08  # TUN_F_CSUM; TUN_F_TSO4, _TSO6, _TSO_ECN
_USO = 0x20 | 0x40  # TUN_F_USO4, _USO6: Linux 6.2
_OFFLOADS = _CHECKSUM | _TSO | _USO, _CHECKSUM | _TSO
"""What the host may leave to us, best first."""

_HELD = {
    errno.EBUSY: " (another process has it)",
    errno.EINVAL: " (another process has it, or it is of another kind)",
}


def queue_name(reqid: int) -> str:
    """Of the device that has what is for a reqid, where several share `DEVICE` (`queues`)."""
    return f"xfrmpy-{reqid:x}"


DEVICE_MTU = 65535
"""Of the device; what a tunnel really carries is the MTU of its route."""

_ROOM = virtio.SIZE + DEVICE_MTU

SUPER_PACKET = 60_000
"""Octets. Cut into segments of 1,400 and sealed it is about 65,000, which just fits one send; with
the 65,536 that devices have otherwise, each takes two."""


class Tun:
    """A device for as long as this object is open. Reading and writing never block."""

    def __init__(self, name: str, *, queues: int = ONE_QUEUE, lent: int | None = None) -> None:
        """One that is there and that nobody else has open is taken as it is.

        One with `SHARED_QUEUES` has a queue for each process that opens it so, and is there as long
        as one of them has it; one that was made to stay without them has one. `lent` is the
        descriptor of a queue that another process has opened, which is gone on with.
        Raises `DatapathError` where there are no TUN devices, or none for us.
        """
        self._descriptor = _open() if lent is None else lent
        try:
            if lent is None:
                self._obtain(name, queues)
            size = _INTEGER.pack(virtio.SIZE)  # Of one that was there it may be another.
            fcntl.ioctl(self._descriptor, _TUNSETVNETHDRSZ, size)
            self.is_adopted = bool(self._told()[1] & _IFF_PERSIST)
        except OSError as error:
            os.close(self._descriptor)
            held = _HELD.get(error.errno or 0, "")
            reason = f"the TUN device {name} cannot be made: {error.strerror}{held}"
            raise DatapathError(reason, error.errno) from error
        self.takes_datagrams = self._take_over_work()
        if not self.is_adopted:
            _limit_super_packets(name)

    def _obtain(self, name: str, queues: int) -> None:
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR
        try:
            asked = _FLAGS.pack(name.encode(), flags | queues)
            fcntl.ioctl(self._descriptor, _TUNSETIFF, asked)
        except OSError as error:
            if queues == ONE_QUEUE or error.errno != errno.EINVAL:
                raise
            fcntl.ioctl(self._descriptor, _TUNSETIFF, _FLAGS.pack(name.encode(), flags))

    def _told(self) -> tuple[bytes, int]:
        """What it is called, and its flags. Raises `OSError` if somebody has removed it."""
        answer = fcntl.ioctl(self._descriptor, _TUNGETIFF, _FLAGS.pack(b"", 0))
        name, flags = _FLAGS.unpack(answer)
        return name.rstrip(b"\0"), flags

    def _take_over_work(self) -> bool:
        """Where a host does all by itself we are slower, and nothing else. Returns whether it takes
        several datagrams as one: a kernel that gives them takes them."""
        for offloads in _OFFLOADS:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._descriptor, _TUNSETOFFLOAD, offloads)
                return bool(offloads & _USO)
        return False

    @classmethod
    def brought_up(cls, name: str, *, queues: int = ONE_QUEUE) -> Tun:
        """A device that is up, and sends nothing of its own. Raises `DatapathError`."""
        made = cls(name, queues=queues)
        try:
            _silence(name)
            bring_up(name)
        except OSError as error:
            made.close()
            reason = f"the TUN device {name} cannot be brought up: {error.strerror}"
            raise DatapathError(reason, error.errno) from error
        return made

    @classmethod
    def of_all_tunnels(cls, *, queues: int = ONE_QUEUE) -> Tun:
        """`DEVICE`, into which our own routes lead. Raises `DatapathError`."""
        return cls.brought_up(DEVICE, queues=queues)

    @property
    def name(self) -> str:
        """What it is called by now, wherever it is; nothing if somebody has removed it."""
        try:
            return self._told()[0].decode(errors="replace")
        except OSError:
            return ""

    def fileno(self) -> int:
        return self._descriptor

    def read(self) -> tuple[bytes, Offload]:
        """The next packet, and what its sender has left undone. Raises `BlockingIOError` if there
        is none."""
        octets = os.read(self._descriptor, _ROOM)
        if octets.startswith(virtio.NOTHING):
            return octets[virtio.SIZE :], virtio.COMPLETE
        return octets[virtio.SIZE :], virtio.decode_offload(octets)

    def read_into(self, parts: Sequence[memoryview]) -> int:
        """As `read`, the virtio header first, into one part after the other; returns the octets of
        the packet."""
        return os.readv(self._descriptor, parts) - virtio.SIZE

    def write(self, *pieces: bytes | memoryview, offload: Offload = virtio.COMPLETE) -> None:
        """A packet, which may be in several pieces. Raises `OSError` for what the kernel does not
        take as one."""
        header = virtio.NOTHING if offload is virtio.COMPLETE else virtio.encode_offload(offload)
        os.writev(self._descriptor, (header, *pieces))

    def close(self) -> None:
        """The device goes, and with it every route through it; one that was there stays, and does
        its own work again."""
        if self.is_adopted:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._descriptor, _TUNSETOFFLOAD, 0)
        os.close(self._descriptor)


def _open() -> int:
    try:
        return os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DatapathError(f"{_TUN} cannot be opened: {error.strerror}", error.errno) from error


def _limit_super_packets(name: str) -> None:
    """Where that is not possible, one more send is needed for some."""
    with contextlib.suppress(DatapathError, OSError), contextlib.closing(Devices()) as devices:
        devices.limit_super_packets(socket.if_nametoindex(name), SUPER_PACKET)


def _silence(name: str) -> None:
    """No router solicitations; inner IPv6 works without. Without IPv6 there is nothing to do."""
    with contextlib.suppress(DatapathError), contextlib.closing(Devices()) as devices:
        devices.silence(socket.if_nametoindex(name))


def bring_up(name: str = DEVICE) -> None:
    """A device, with the MTU that it is to have. Raises `OSError`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFMTU, _MTU.pack(name.encode(), DEVICE_MTU))
        current = fcntl.ioctl(control, _SIOCGIFFLAGS, _FLAGS.pack(name.encode(), 0))
        flags: int = _FLAGS.unpack(current)[1] | _IFF_UP
        fcntl.ioctl(control, _SIOCSIFFLAGS, _FLAGS.pack(name.encode(), flags))
