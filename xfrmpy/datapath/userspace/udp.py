"""The UDP port that IKE and ESP share (RFC 3948), and who gets which datagram.

Every socket on the port is bound with SO_REUSEPORT; the daemon's is the first of its family and so
number 0 of the group, the workers' follow. A classic BPF program on the group looks at the first
word of each payload and names the socket.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from struct import Struct

from xfrmpy.datapath.userspace import bpf
from xfrmpy.datapath.userspace.shares import MAX_WORKERS
from xfrmpy.esp.transport import Fields, with_checksum, with_header
from xfrmpy.ipsec.addresses import IpAddress, SocketAddress
from xfrmpy.ipsec.sad import USERSPACE_SPI_BIT

_SO_ATTACH_REUSEPORT_CBPF = 51  # <asm-generic/socket.h>

DAEMON = 0

IP_PKTINFO = 8  # <linux/in.h>; Python 3.11 has no name for it
IPV4_INFO = Struct("=i4s4s")  # ifindex, local address, address in the header
IPV6_INFO = Struct("=16si")  # local address, ifindex

_HEADER = Struct(">HHHH")  # ports, length, checksum


def open_shared_udp_socket(family: socket.AddressFamily, port: int) -> socket.socket:
    """A socket on every address of a family, which others of this user may join on its port.

    Raises `OSError`.
    """
    opened = socket.socket(family, socket.SOCK_DGRAM)
    try:
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        opened.bind(("", port))
    except OSError:
        opened.close()
        raise
    return opened


def attach_reuseport_selector(member: socket.socket, workers: int) -> None:
    """Put the selector on the group that `member` belongs to, of so many workers.

    Raises `OSError`.
    """
    bpf.attach(member, _SO_ATTACH_REUSEPORT_CBPF, reuseport_program(workers))


def reuseport_program(workers: int) -> bytes:
    """IKE and the kernel's ESP go to the daemon's socket, ours to a worker by the SPI (`lane_of`).

    The non-ESP marker is a zero word, so its top bit is clear like that of the kernel's SPIs. A
    payload too short for the load (a keepalive) ends the program with 0, the daemon.
    """
    if not 1 <= workers <= MAX_WORKERS:
        raise ValueError(f"there are 1 to {MAX_WORKERS} workers")
    return bpf.assemble(
        (bpf.LOAD_WORD, 0, 0, 0),
        (bpf.JUMP_IF_SET, 1, 0, USERSPACE_SPI_BIT),
        (bpf.RETURN, 0, 0, DAEMON),
        (bpf.MODULO, 0, 0, workers),
        (bpf.ADD, 0, 0, 1),
        (bpf.RETURN_A, 0, 0, 0),
    )


def ask_for_destination(receiver: socket.socket, version: int) -> None:
    """Have the kernel tell it with each datagram. Raises `OSError`."""
    if version == 4:
        receiver.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    else:
        receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)


def decode_destination(told: Iterable[tuple[int, int, bytes]], version: int) -> IpAddress:
    """Which of our addresses a datagram came to."""
    words = {(level, kind): octets for level, kind, octets in told}
    if version == 4:
        return IPv4Address(IPV4_INFO.unpack(words[socket.IPPROTO_IP, IP_PKTINFO])[2])
    return IPv6Address(IPV6_INFO.unpack(words[socket.IPPROTO_IPV6, socket.IPV6_PKTINFO])[0])


def whole_datagram(
    source: SocketAddress, destination: SocketAddress, payload: bytes, fields: Fields
) -> bytes:
    """A datagram with its headers, as it has come."""
    ends = source.address, destination.address
    length = _HEADER.size + len(payload)
    # The checksum has to be something that is not zero, which says that there is none.
    blank = _HEADER.pack(source.port, destination.port, length, 1) + payload
    udp = with_checksum(*ends, socket.IPPROTO_UDP, blank)
    return with_header(*ends, socket.IPPROTO_UDP, udp, fields)


def packet_info(source: IpAddress) -> tuple[int, int, bytes]:
    """The ancillary data of `sendmsg` by which a datagram leaves from exactly this address."""
    if source.version == 4:
        return socket.IPPROTO_IP, IP_PKTINFO, IPV4_INFO.pack(0, source.packed, bytes(4))
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, IPV6_INFO.pack(source.packed, 0)
