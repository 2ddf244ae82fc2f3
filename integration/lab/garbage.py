"""Packets that nobody means, as fast as they go; run as a program inside a namespace.

`written` gives a device super-packets of TCP and UDP whose virtio header or own headers have been
spoiled, as a guest of a virtual machine, or whoever may write to raw sockets, could. `esp` sends
ESP in UDP that bears the SPI of an SA and proves false, several at once.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator

from integration.lab.network import Host
from tests.datapath.userspace.super_packets import ACK, DF, Stream
from xfrmpy.datapath.userspace.virtio import Offload, encode_offload

VARIANTS = 3000
"""Different ones; they come again and again."""

_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_ETHER_TYPE = {4: 0x0800, 6: 0x86DD}
_UDP_SEGMENT = 103
_PORT = 4500
_TOGETHER = 30


def write_garbage(
    host: Host, device: str, source: str, destination: str, seconds: float
) -> dict[str, int]:
    """What the kernel said of it: `taken`, or why it was not."""
    arguments = ("written", device, source, destination, str(seconds))
    said = host.run(sys.executable, "-m", __name__, *arguments, seconds=seconds + 60)
    return {word: int(count) for word, count in (line.split() for line in said.splitlines())}


def send_false_esp(host: Host, address: str, spi: int, seconds: float) -> int:
    """How many of them left."""
    arguments = ("esp", address, str(spi), str(seconds))
    return int(host.run(sys.executable, "-m", __name__, *arguments, seconds=seconds + 60))


def written(source: str, destination: str, seed: int = 1) -> list[tuple[int, bytes]]:
    """By IP version, and with a virtio header before each."""
    chance = random.Random(seed)
    return [_written(source, destination, chance) for _ in range(VARIANTS)]


def _written(source: str, destination: str, chance: random.Random) -> tuple[int, bytes]:
    stream = _stream(source, destination, chance)
    packet, offload = stream.super_packet()
    fields: dict[str, int] = {}
    for name in chance.sample(Offload._fields, chance.choice((0, 1, 1, 2))):
        fields[name] = chance.choice((0, 1, 3, 4, 5, 16, 20, 40, 80, 1000, 65535))
    header = offload._replace(**fields)  # type: ignore[arg-type]
    header = header._replace(segments=header.segments % 128)
    return stream.version, encode_offload(header) + _spoiled(packet, chance)


def segments(source: str, destination: str, seed: int = 2) -> Iterator[bytes]:
    """Of streams, a few of them spoiled."""
    chance = random.Random(seed)
    for _ in range(VARIANTS // 10):
        for packet in _stream(source, destination, chance).packets()[:50]:
            yield _spoiled(packet, chance)


def _stream(source: str, destination: str, chance: random.Random) -> Stream:
    return Stream(
        version=chance.choice((4, 4, 6)),
        is_tcp=chance.random() < 0.7,
        payload=bytes(chance.choice((1, 700, 3000, 20_000))),
        mss=chance.choice((1, 100, 536, 1300)),
        options=bytes(4 * chance.randrange(4)),
        ip_options=chance.choice((b"", b"", bytes(8))),
        fragment_bits=chance.choice((DF, DF, 0, 0x2000, 0x0100)),
        flags=chance.choice((ACK, ACK, chance.randrange(256))),
        addresses=(source, destination),
    )


def _spoiled(packet: bytes, chance: random.Random) -> bytes:
    """Not the addresses: what is not for the tunnel would not come to it."""
    spoiled = bytearray(packet)
    for _ in range(chance.choice((0, 0, 1, 2))):
        at = chance.choice((*range(12), *range(20, 60)))
        if at < len(spoiled):
            spoiled[at] = chance.randrange(256)
    return bytes(spoiled)


def _write(device: str, source: str, destination: str, seconds: float) -> None:
    ends_at, said = time.monotonic() + seconds, Counter[str]()
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as outlet:
        outlet.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        for version, octets in itertools.cycle(written(source, destination)):
            try:
                outlet.sendto(octets, (device, _ETHER_TYPE[version]))
                said["taken"] += 1
            except OSError as error:
                said[errno.errorcode.get(error.errno or 0, "error")] += 1
            if time.monotonic() > ends_at:
                break
    for word, count in said.items():
        print(word, count)


def _send_esp(address: str, spi: int, seconds: float) -> None:
    ends_at, sent, chance = time.monotonic() + seconds, 0, random.Random(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outlet:
        while time.monotonic() < ends_at:
            size = chance.choice((8, 9, 34, 37, 100, 1400))
            outlet.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, size)
            datagrams = (spi.to_bytes(4, "big") + os.urandom(size - 4) for _ in range(_TOGETHER))
            outlet.sendto(b"".join(datagrams), (address, _PORT))
            sent += _TOGETHER
    print(sent)


if __name__ == "__main__":
    if sys.argv[1] == "written":
        _write(sys.argv[2], sys.argv[3], sys.argv[4], float(sys.argv[5]))
    else:
        _send_esp(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
