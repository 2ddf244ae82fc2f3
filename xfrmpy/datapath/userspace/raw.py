"""ESP and AH without UDP: one raw socket for each protocol and family (RFC 4303 section 2).

A filter in the kernel lets in what bears an SPI of the userspace datapath, so that what the
kernel's own IPsec carries costs us nothing. The kernel makes the outer header, but for AH in IPv4,
whose ICV covers an Identification that only the sender of the whole header knows beforehand
(RFC 4302 section 3.3.3.1.1.1).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from struct import Struct

from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.userspace import bpf
from xfrmpy.datapath.userspace.ancillary import (
    ROOM,
    DfSwitch,
    ask_for_fields,
    decode_fields,
    encode_fields,
)
from xfrmpy.datapath.userspace.shares import ALL, Share
from xfrmpy.datapath.userspace.udp import IPV6_INFO, packet_info
from xfrmpy.esp.transport import Fields
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.sad import USERSPACE_SPI_BIT, SadEntry
from xfrmpy.registry import ProtocolId

NUMBERS = {ProtocolId.ESP: socket.IPPROTO_ESP, ProtocolId.AH: socket.IPPROTO_AH}

_SPI_OFFSET = {ProtocolId.ESP: 0, ProtocolId.AH: 4}
_RAW = socket.SOCK_RAW | socket.SOCK_NONBLOCK
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_SO_ATTACH_FILTER = 26  # <asm-generic/socket.h>
_EVERYTHING = 0xFFFFFFFF

_MAX_PACKET = 65535
_IPV6_HEADER = Struct(">IHBB16s16s")


@dataclass(frozen=True, slots=True)
class Arrived:
    """A packet that came in by itself: its IP header, and what is behind it, from its SPI on.

    Of IPv6 the header is put together from what the kernel tells, without extension headers.
    """

    header: bytes
    payload: bytes


class RawSockets:
    """Those of every protocol and family, or none and the reason why: `refusal`."""

    def __init__(
        self,
        prepare: Callable[[socket.socket, int], None],
        versions: tuple[int, ...],
        share: Share = ALL,
    ) -> None:
        """`prepare` sets what every socket of a worker has, by its IP version."""
        self.refusal: DatapathError | None = None
        self._opened: dict[tuple[ProtocolId, int], RawSocket] = {}
        self._clear: dict[int, socket.socket] = {}
        try:
            with ExitStack() as undo:
                for key in ((p, v) for p in NUMBERS for v in versions):
                    self._opened[key] = opened = RawSocket(*key, share)
                    undo.callback(opened.close)
                    prepare(opened.socket, opened.version)
                for version in versions:
                    # Such a socket takes whole packets, and is given none.
                    sender = socket.socket(_FAMILIES[version], _RAW, socket.IPPROTO_RAW)
                    self._clear[version] = undo.enter_context(sender)
                    prepare(sender, version)
                undo.pop_all()
        except OSError as error:
            self._opened.clear()
            self._clear.clear()
            need = " (it needs CAP_NET_RAW)" if error.errno == errno.EPERM else ""
            reason = f"raw sockets cannot be opened: {error.strerror}{need}"
            self.refusal = DatapathError(reason, error.errno)

    def __iter__(self) -> Iterator[RawSocket]:
        return iter(self._opened.values())

    def check(self, entry: SadEntry) -> None:
        """Raises `DatapathError` for an SA that would need a socket that is not there."""
        if self._key(entry) not in self._opened:
            raise self.refusal or DatapathError(
                f"this host has no IPv{entry.source.version}", errno.EAFNOSUPPORT
            )

    def send(self, packet: bytes, entry: SadEntry, fields: Fields | None, has_df: bool) -> None:
        """Raises `OSError`."""
        opened = self._opened.get(self._key(entry))
        if opened is None:
            raise OSError(errno.EPROTONOSUPPORT, "no raw socket")
        opened.send(packet, entry.source, entry.destination, fields, has_df=has_df)

    def send_in_clear(self, packet: bytes) -> None:
        """A whole packet, as it is. Raises `OSError`."""
        version = packet[0] >> 4
        sender = self._clear.get(version)
        if sender is None:
            raise OSError(errno.EPROTONOSUPPORT, "no raw socket")
        where = packet[16:20] if version == 4 else packet[24:40]
        sender.sendto(packet, (str(ip_address(where)), 0))

    def close(self) -> None:
        for opened in (*self, *self._clear.values()):
            opened.close()
        self._opened.clear()
        self._clear.clear()

    @staticmethod
    def _key(entry: SadEntry) -> tuple[ProtocolId, int]:
        return entry.protocol, entry.source.version


class RawSocket:
    """The packets of one protocol in one family. Raises `OSError`, `PermissionError` first of all.

    `takes_headers` tells whether `send` wants the packet with its IP header.
    """

    def __init__(self, protocol: ProtocolId, version: int, share: Share = ALL) -> None:
        self._share = share
        self.protocol = protocol
        self.version = version
        self.takes_headers = protocol is ProtocolId.AH and version == 4
        self.socket = socket.socket(_FAMILIES[version], socket.SOCK_RAW, NUMBERS[protocol])
        try:
            self._set_up()
        except OSError:
            self.socket.close()
            raise

        self._df = DfSwitch(self.socket) if version == 4 else None

    def _set_up(self) -> None:
        self.socket.setblocking(False)
        program = filter_program(self.protocol, self.version, self._share)
        bpf.attach(self.socket, _SO_ATTACH_FILTER, program)
        if self.takes_headers:
            self.socket.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
        if self.version == 6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            ask_for_fields(self.socket, 6)

    def fileno(self) -> int:
        return self.socket.fileno()

    def receive(self) -> Arrived:
        """The next packet. Raises `BlockingIOError` if there is none, and `OSError`."""
        if self.version == 4:
            packet = self.socket.recv(_MAX_PACKET)
            size = (packet[0] & 0xF) * 4
            return Arrived(packet[:size], packet[size:])
        payload, told, _, address = self.socket.recvmsg(_MAX_PACKET, ROOM)
        source = IPv6Address(address[0].partition("%")[0])
        return Arrived(self._ipv6_header(len(payload), source, told), payload)

    def _ipv6_header(
        self, length: int, source: IPv6Address, told: list[tuple[int, int, bytes]]
    ) -> bytes:
        words = {kind: octets for level, kind, octets in told if level == socket.IPPROTO_IPV6}
        destination = IPV6_INFO.unpack(words[socket.IPV6_PKTINFO])[0]
        fields = decode_fields(told, 6)
        first = 6 << 28 | fields.traffic_class << 20
        number = NUMBERS[self.protocol]
        return _IPV6_HEADER.pack(first, length, number, fields.hops, source.packed, destination)

    def send(
        self,
        packet: bytes,
        source: IpAddress,
        destination: IpAddress,
        fields: Fields | None = None,
        *,
        has_df: bool = False,
    ) -> None:
        """From exactly this address; `fields` are for a header that the kernel makes.

        Raises `OSError`.
        """
        told = [] if self.takes_headers else [packet_info(source)]
        if fields is not None:
            told += encode_fields(fields, self.version)
        if self._df is not None:
            self._df.turn(on=has_df)
        self.socket.sendmsg([packet], told, 0, (str(destination), 0))

    def close(self) -> None:
        self.socket.close()


def filter_program(protocol: ProtocolId, version: int, share: Share = ALL) -> bytes:
    """Lets in what is for a worker of the userspace datapath, by the SPI.

    The kernel looks at an IPv4 packet from its header on, at one of IPv6 from behind it.
    """
    offset = _SPI_OFFSET[protocol]
    load = [(bpf.LOAD_WORD, 0, 0, offset)]
    if version == 4:
        load = [(bpf.LOAD_HEADER_SIZE, 0, 0, 0), (bpf.LOAD_WORD_BEHIND_X, 0, 0, offset)]
    if share == ALL:
        is_ours = [(bpf.JUMP_IF_SET, 0, 1, USERSPACE_SPI_BIT)]
    else:
        is_ours = [
            (bpf.JUMP_IF_SET, 0, 3, USERSPACE_SPI_BIT),
            (bpf.MODULO, 0, 0, share.count),
            (bpf.JUMP_IF_EQUAL, 0, 1, share.index),
        ]
    return bpf.assemble(
        *load,
        *is_ours,
        (bpf.RETURN, 0, 0, _EVERYTHING),
        (bpf.RETURN, 0, 0, 0),
    )
