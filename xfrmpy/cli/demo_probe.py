"""What the demo's hosts do, each a small program that runs inside a network namespace.

`capture` counts what passes on an interface by kind, `ping` sends ICMP echoes (RFC 792), `sink` and
`send` measure TCP. They need nothing but Python: a fresh machine may have neither ping nor tcpdump.
Each prints one JSON object; those that serve first print `ready`, and end when their input does.
"""

from __future__ import annotations

import json
import mmap
import os
import select
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from enum import StrEnum

SNAP = 128
"""Octets of a frame that are looked at: Ethernet, IPv6, UDP and an IKE header are 90."""

_ETHERNET = struct.Struct("!12xH")
_UDP = struct.Struct("!HHH2x")
_ECHO = struct.Struct("!BBHHH")
_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_RX_RING, _PACKET_STATISTICS = 263, 5, 6  # <linux/if_packet.h>
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_ICMP, _UDP_PROTOCOL, _ESP, _ICMPV6 = 1, 17, 50, 58
_IKE_PORT, _NATT_PORT = 500, 4500
_IKE_HEADER = 28
_BLOCK = 256 * 1024


class Kind(StrEnum):
    """What a frame on the wire is."""

    IKE = "ike"
    ESP = "esp"
    NAT_KEEPALIVE = "nat-keepalive"
    NEIGHBOUR = "neighbour"
    FRAGMENT = "fragment"
    CLEAR = "clear"


def classify(frame: bytes) -> tuple[Kind, int]:
    """The kind of an Ethernet frame, and the SPI if it is ESP (else 0).

    NEIGHBOUR is ARP and IPv6 neighbour and multicast listener discovery; FRAGMENT is an IP fragment
    without the header that would tell; whatever is not known to be protected is CLEAR.
    Sources: RFC 3948 sections 2 and 4 (ESP, IKE and keep-alives on one port), RFC 4303 section 2.
    """
    if len(frame) < 34:
        return Kind.CLEAR, 0
    (ether_type,) = _ETHERNET.unpack_from(frame)
    packet = frame[_ETHERNET.size :]
    if ether_type == _ARP:
        return Kind.NEIGHBOUR, 0
    if ether_type == _IPV4:
        if int.from_bytes(packet[6:8], "big") & 0x1FFF:
            return Kind.FRAGMENT, 0
        return _classify_transport(packet[9], packet[(packet[0] & 0x0F) * 4 :])
    if ether_type == _IPV6 and len(packet) > 40:
        return _classify_ipv6(packet[6], packet[40:])
    return Kind.CLEAR, 0


def _classify_ipv6(next_header: int, body: bytes) -> tuple[Kind, int]:
    if next_header == 0:  # hop-by-hop options: multicast listener reports carry a router alert
        next_header, body = body[0], body[(body[1] + 1) * 8 :]
    if next_header == 44:
        return Kind.FRAGMENT, 0
    if next_header == _ICMPV6 and body and body[0] in {*range(130, 138), 143}:
        return Kind.NEIGHBOUR, 0
    return _classify_transport(next_header, body)


def _classify_transport(protocol: int, body: bytes) -> tuple[Kind, int]:
    if protocol == _ESP and len(body) >= 8:
        return Kind.ESP, int.from_bytes(body[:4], "big")
    if protocol != _UDP_PROTOCOL or len(body) < _UDP.size:
        return Kind.CLEAR, 0
    source, destination, length = _UDP.unpack_from(body)
    payload = body[8:length]
    if _IKE_PORT in (source, destination):
        return (Kind.IKE if _is_ike(payload) else Kind.CLEAR), 0
    if _NATT_PORT in (source, destination):
        return _classify_natt(payload)
    return Kind.CLEAR, 0


def _classify_natt(payload: bytes) -> tuple[Kind, int]:
    if payload == b"\xff":
        return Kind.NAT_KEEPALIVE, 0
    if payload[:4] == bytes(4):
        return (Kind.IKE if _is_ike(payload[4:]) else Kind.CLEAR), 0
    if len(payload) >= 8:
        return Kind.ESP, int.from_bytes(payload[:4], "big")
    return Kind.CLEAR, 0


def _is_ike(payload: bytes) -> bool:
    return len(payload) >= _IKE_HEADER and payload[17] == 0x20


def capture(interface: str) -> dict[str, object]:
    """Count the frames of an interface, both ways, until standard input ends."""
    counter = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    with counter, _Ring(counter) as ring:
        counter.bind((interface, _ETH_P_ALL))
        _print("ready")
        tally = _Tally()
        watched: list[socket.socket | int] = [counter, 0]
        while select.select(watched, [], [])[0] != [0]:
            for frame, length in ring.waiting():
                tally.add(frame, length)
        seen, lost = _packet_statistics(counter)
    return {
        "packets": {kind.value: tally.packets[kind] for kind in Kind},
        "octets": {kind.value: tally.octets[kind] for kind in Kind},
        "spis": sorted(tally.spis),
        "seen": seen,
        "lost": lost,
    }


class _Tally:
    def __init__(self) -> None:
        self.packets: Counter[Kind] = Counter()
        self.octets: Counter[Kind] = Counter()
        self.spis: set[int] = set()

    def add(self, frame: bytes, length: int) -> None:
        kind, spi = classify(frame)
        self.packets[kind] += 1
        self.octets[kind] += length
        if kind is Kind.ESP and len(self.spis) < 64:
            self.spis.add(spi)


class _Ring:
    """The kernel's ring of captured frames, shared with us: see packet(7), PACKET_RX_RING.

    A socket's own buffer would be too small for a burst, and only the host's root may enlarge it.
    """

    _SLOT, _SLOTS, _BLOCK = 256, 128 * 1024, 128 * 1024
    _REQUEST = struct.Struct("@IIII")  # struct tpacket_req
    _HEADER = struct.Struct("@LIIH")  # struct tpacket_hdr: status, length, copied, offset
    _STATUS = struct.Struct("@L")
    _KERNEL, _USER = 0, 1

    def __init__(self, counter: socket.socket) -> None:
        size = self._SLOT * self._SLOTS
        request = self._REQUEST.pack(self._BLOCK, size // self._BLOCK, self._SLOT, self._SLOTS)
        counter.setsockopt(_SOL_PACKET, _PACKET_RX_RING, request)
        self._memory = mmap.mmap(counter.fileno(), size)
        self._at = 0

    def __enter__(self) -> _Ring:
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.close()

    def waiting(self) -> Iterator[tuple[bytes, int]]:
        """The start of each frame that waits, and its whole length; at most a ring of them."""
        for _ in range(self._SLOTS):
            status, length, copied, offset = self._HEADER.unpack_from(self._memory, self._at)
            if not status & self._USER:
                return
            start = self._at + offset
            yield self._memory[start : start + min(copied, SNAP)], length
            self._STATUS.pack_into(self._memory, self._at, self._KERNEL)
            self._at = (self._at + self._SLOT) % (self._SLOT * self._SLOTS)


def _packet_statistics(counter: socket.socket) -> tuple[int, int]:
    """PACKET_STATISTICS of packet(7): frames that passed, and those lost for lack of room."""
    octets = counter.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8)
    statistics: tuple[int, int] = struct.unpack("@II", octets)
    return statistics


def ping(address: str, count: int, timeout_seconds: float) -> dict[str, object]:
    """Send `count` ICMP echo requests, each after the answer to the one before, or its time-out."""
    milliseconds = []
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, _ICMP) as echo:
        echo.connect((address, 0))
        for sequence in range(1, count + 1):
            sent_at = time.monotonic()
            echo.send(echo_request(os.getpid() & 0xFFFF, sequence))
            if _answered(echo, sequence, sent_at + timeout_seconds):
                milliseconds.append(round((time.monotonic() - sent_at) * 1000, 3))
    return {"sent": count, "received": len(milliseconds), "milliseconds": milliseconds}


def echo_request(identifier: int, sequence: int) -> bytes:
    """An ICMP echo request of 64 octets (RFC 792, page 14)."""
    payload = b"xfrmpy".ljust(56, b".")
    header = _ECHO.pack(8, 0, 0, identifier, sequence)
    return _ECHO.pack(8, 0, checksum(header + payload), identifier, sequence) + payload


def checksum(octets: bytes) -> int:
    """The Internet checksum of an even number of octets (RFC 1071)."""
    total: int = sum(word for (word,) in struct.iter_unpack("!H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def _answered(echo: socket.socket, sequence: int, deadline_at: float) -> bool:
    while (left := deadline_at - time.monotonic()) > 0:
        echo.settimeout(left)
        try:
            packet = echo.recv(2048)
        except TimeoutError:
            return False
        kind, _, _, identifier, number = _ECHO.unpack_from(packet, (packet[0] & 0x0F) * 4)
        if (kind, identifier, number) == (0, os.getpid() & 0xFFFF, sequence):
            return True
    return False


def sink(address: str, port: int) -> dict[str, object]:
    """Take what one TCP connection brings, and time it from its first octet to its last."""
    with socket.create_server((address, port)) as server:
        server.settimeout(30)
        _print("ready")
        connection, _ = server.accept()
    with connection:
        connection.settimeout(30)
        buffer = bytearray(_BLOCK)
        octets = connection.recv_into(buffer)
        started_at = time.monotonic()
        while received := connection.recv_into(buffer):
            octets += received
        seconds = max(time.monotonic() - started_at, 1e-6)
    return {"octets": octets, "seconds": seconds, "bits_per_second": octets * 8 / seconds}


def send(address: str, port: int, seconds: float) -> dict[str, object]:
    """Send zeros over TCP for so many seconds."""
    octets = 0
    block = bytes(_BLOCK)
    with socket.create_connection((address, port), timeout=10) as connection:
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            octets += connection.send(block)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)  # until the other end has everything
    return {"octets": octets}


def _print(line: str) -> None:
    print(line, flush=True)


_PROGRAMS: dict[str, Callable[[list[str]], dict[str, object]]] = {
    "capture": lambda a: capture(a[0]),
    "ping": lambda a: ping(a[0], int(a[1]), float(a[2])),
    "sink": lambda a: sink(a[0], int(a[1])),
    "send": lambda a: send(a[0], int(a[1]), float(a[2])),
}


def main(arguments: list[str]) -> int:
    """Run one program; an error of the network is its result and no traceback."""
    try:
        _print(json.dumps(_PROGRAMS[arguments[0]](arguments[1:])))
    except OSError as error:
        _print(json.dumps({"error": error.strerror or str(error)}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
