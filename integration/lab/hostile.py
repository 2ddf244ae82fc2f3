"""Datagrams that no honest peer sends; run as a program inside a namespace.

`half_open` starts a handshake and never goes on; `junk` is noise at both ports; `flood` starts many
handshakes, each from another address that is not the sender's.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from integration.lab.network import Host
from integration.lab.process import Background, eventually

_MARKER = bytes(4)
_BURST = 50
_SMALL_BURST = 10
_PORTS = (500, 4500)


def half_open(source: Host, address: str) -> None:
    """Send a good IKE_SA_INIT request (AES-GCM-16-128, PRF HMAC-SHA2-256, x25519), only that."""
    source.run(sys.executable, "-m", __name__, "half-open", address)


def junk(source: Host, address: str, count: int, per_second: int) -> None:
    """Send `count` junk and truncated datagrams to UDP 500 and 4500, a repeatable sequence."""
    arguments = ("junk", address, str(count), str(per_second))
    source.run(sys.executable, "-m", __name__, *arguments, seconds=300)


@contextmanager
def flooding(source: Host, address: str, per_second: int, log: Path) -> Iterator[Flood]:
    """Send IKE_SA_INIT requests from addresses in 198.18.0.0/15 all the while.

    Each is whole and new, with a public value that costs a key exchange to answer. Afterwards
    `Flood` holds what was sent.
    """
    flood = Flood()
    command = source.command(sys.executable, "-m", __name__, "flood", address, str(per_second))
    sender = Background(command, log)
    try:
        eventually("a flood", lambda: "ready" in sender.output, seconds=60)
        yield flood
    finally:
        sender.stop()
    sent, seconds = sender.output.split()[-2:]
    flood.sent, flood.seconds = int(sent), float(seconds)


@dataclass
class Flood:
    """How many datagrams left in how many seconds."""

    sent: int = 0
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        return self.sent / self.seconds


def _ike_sa_init() -> bytes:
    """RFC 7296 sections 3.1 to 3.4 and 3.9: SA, KE, Nonce."""
    transforms = (
        _transform(3, 1, 20, struct.pack("!HH", 0x8000 | 14, 128))
        + _transform(3, 2, 5)
        + _transform(0, 4, 31)
    )
    proposal = struct.pack("!BBHBBBB", 0, 0, 8 + len(transforms), 1, 1, 0, 3) + transforms
    payloads = (
        _payload(34, proposal)
        + _payload(40, struct.pack("!HH", 31, 0) + os.urandom(32))
        + _payload(0, os.urandom(32))
    )
    length = 28 + len(payloads)
    return os.urandom(8) + struct.pack("!8xBBBBII", 33, 0x20, 34, 0x08, 0, length) + payloads


def _payload(following: int, body: bytes) -> bytes:
    return struct.pack("!BBH", following, 0, 4 + len(body)) + body


def _transform(more: int, kind: int, number: int, attributes: bytes = b"") -> bytes:
    length = 8 + len(attributes)
    return struct.pack("!BBHBBH", more, 0, length, kind, 0, number) + attributes


def _junk(count: int) -> Iterator[bytes]:
    source = random.Random(count)
    message = _ike_sa_init()
    forms = (
        lambda: source.randbytes(source.randrange(200)),
        lambda: message[: source.randrange(len(message))],
        lambda: _MARKER + message[: source.randrange(len(message))],
        lambda: _MARKER + source.randbytes(source.randrange(100)),
        lambda: _corrupted(message, source),
    )
    return (source.choice(forms)() for _ in range(count))


def _corrupted(message: bytes, source: random.Random) -> bytes:
    octets = bytearray(message)
    for _ in range(4):
        octets[source.randrange(16, len(octets))] = source.randrange(256)
    return bytes(octets)


def _send_junk(address: str, count: int, per_second: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as outlet:
        start = time.monotonic()
        for number, datagram in enumerate(_junk(count)):
            outlet.sendto(datagram, (address, _PORTS[number % 2]))
            if number % _BURST == 0:
                time.sleep(max(0.0, start + number / per_second - time.monotonic()))


_PREPARED_SECONDS = 40
"""For so long no datagram of a flood comes twice."""


def _spoofed(address: str, count: int) -> Iterator[bytes]:
    """IPv4 (RFC 791), UDP without checksum (RFC 768), IKE_SA_INIT; the kernel adds what is 0."""
    message = _ike_sa_init()
    length = 28 + len(message)
    udp = struct.pack("!HHHH", 500, 500, length - 20, 0)
    destination = socket.inet_aton(address)
    for number in range(count):
        source = (0xC612_0000 + 1 + number % 0x1FFFE).to_bytes(4, "big")
        ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, length, 0, 0, 64, 17, 0, source, destination)
        fresh = os.urandom(8) + message[8:-68] + os.urandom(32) + message[-36:-32] + os.urandom(32)
        yield ip + udp + fresh


def _send_flood(address: str, per_second: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    datagrams = list(_spoofed(address, per_second * _PREPARED_SECONDS))
    sent, start = 0, time.monotonic()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as outlet:
            print("ready", flush=True)
            for datagram in itertools.cycle(datagrams):
                outlet.sendto(datagram, (address, 0))
                sent += 1
                if sent % _SMALL_BURST == 0:
                    time.sleep(max(0.0, start + sent / per_second - time.monotonic()))
    finally:
        print(sent, time.monotonic() - start, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "flood":
        _send_flood(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1] == "junk":
        _send_junk(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as once:
            once.sendto(_ike_sa_init(), (sys.argv[2], 500))
