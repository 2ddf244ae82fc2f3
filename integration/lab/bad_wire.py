"""A wire between the gateways that loses, repeats and reorders what goes over it.

Run as a program, this file is the wire: it takes each frame from one device of the internet to the
other, with what its sender left to be done for it (the checksum), which a virtio header tells. Or
it says to a device whether it is to join packets. Where there is netem, that would do as well.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import random
import select
import signal
import socket
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from struct import Struct

from integration.lab.network import Host, Network
from integration.lab.process import Background, eventually

LOST = REPEATED = REORDERED = 0.01
"""Of all frames."""

MOST_OVERTAKING = 20
"""So many frames overtake a reordered one at most, in each direction."""

MOST_SECONDS = 0.005
"""How long one waits to be overtaken, if nothing else comes."""

_TURN = 64
_FRAME = 1 << 17
_BUFFER = 1 << 23

_ALL_PROTOCOLS = 0x0003  # ETH_P_ALL
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23  # <linux/if_packet.h>
_SO_RCVBUFFORCE = 33
_SIOCETHTOOL, _ETHTOOL_STSO, _ETHTOOL_SGRO = 0x8946, 0x1F, 0x2C  # <linux/ethtool.h>
_REQUEST = Struct("16sP16x")  # struct ifreq with ifr_data


@dataclass(slots=True)
class Wear:
    """What became of the frames. `overflowed` is what there was no room for behind the wire."""

    frames: int = 0
    lost: int = 0
    repeated: int = 0
    reordered: int = 0
    overflowed: int = 0


@contextmanager
def bad_wire(network: Network, log: Path) -> Iterator[Wear]:
    """What goes between moon and sun goes over a bad wire; afterwards `Wear` holds how it went."""
    wear = Wear()
    log.unlink(missing_ok=True)
    with ExitStack() as undo:
        for gateway in (network.moon, network.sun):
            undo.enter_context(gateway.sending_one_by_one())
            undo.enter_context(_unbridged(network, gateway))
        process = Background(network.internet.command(sys.executable, "-m", __name__), log)
        try:
            eventually("the wire", lambda: "ready" in process.output)
            yield wear
        finally:
            process.stop()
        for name, count in json.loads(process.output.splitlines()[-1]).items():
            setattr(wear, name, count)


@contextmanager
def _unbridged(network: Network, gateway: Host) -> Iterator[None]:
    """A gateway's link without the bridge. What comes out of it is joined at the gateway, as a
    network card joins it; of a pair of devices that happens if the other one does not join."""
    link = gateway.name
    network.internet.batch(f"link set {link} nomaster")
    _set_offload(network.internet, link, _ETHTOOL_STSO, is_on=False)
    _set_offload(gateway, "wan", _ETHTOOL_SGRO, is_on=True)
    try:
        yield
    finally:
        _set_offload(gateway, "wan", _ETHTOOL_SGRO, is_on=False)
        _set_offload(network.internet, link, _ETHTOOL_STSO, is_on=True)
        network.internet.batch(f"link set {link} master br0")


def _set_offload(host: Host, device: str, which: int, *, is_on: bool) -> None:
    arguments = ("offload", device, str(which), str(int(is_on)))
    host.run(sys.executable, "-m", __name__, *arguments)


class _Way:
    """One direction."""

    def __init__(self, source: socket.socket, sink: socket.socket, wear: Wear, seed: int) -> None:
        self._source = source
        self._sink = sink
        self._wear = wear
        self._random = random.Random(seed)
        self._passed = 0
        self._held: list[tuple[int, float, bytes]] = []

    def fileno(self) -> int:
        return self._source.fileno()

    @property
    def is_holding(self) -> bool:
        return bool(self._held)

    def carry(self) -> None:
        """A turn's worth of what has come."""
        for _ in range(_TURN):
            try:
                frame = self._source.recv(_FRAME)
            except BlockingIOError:
                return
            self._wear.frames += 1
            self._fate(frame)
            self._passed += 1
            while self._held and self._held[0][0] <= self._passed:
                self._send(heapq.heappop(self._held)[2])

    def release(self, now: float) -> None:
        """What has waited long enough."""
        due = [each for each in self._held if each[1] <= now]
        if due:
            self._held = [each for each in self._held if each[1] > now]
            heapq.heapify(self._held)
        for _, _, frame in due:
            self._send(frame)

    def _fate(self, frame: bytes) -> None:
        chance = self._random.random()
        if chance < LOST:
            self._wear.lost += 1
        elif chance < LOST + REORDERED:
            self._wear.reordered += 1
            behind = self._passed + self._random.randint(2, MOST_OVERTAKING)
            heapq.heappush(self._held, (behind, time.monotonic() + MOST_SECONDS, frame))
        else:
            self._send(frame)
            if chance < LOST + REORDERED + REPEATED:
                self._wear.repeated += 1
                self._send(frame)

    def _send(self, frame: bytes) -> None:
        try:
            self._sink.send(frame)
        except OSError:
            self._wear.overflowed += 1


def _end_of(device: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    end.setblocking(False)
    end.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    end.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    end.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    end.bind((device, _ALL_PROTOCOLS))
    return end


def _be_the_wire() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    wear = Wear()
    with _end_of("moon") as moon, _end_of("sun") as sun:
        ways = (_Way(moon, sun, wear, 1), _Way(sun, moon, wear, 2))
        print("ready", flush=True)
        try:
            while True:
                is_holding = any(way.is_holding for way in ways)
                patience = MOST_SECONDS if is_holding else None
                for way in select.select(ways, (), (), patience)[0]:
                    way.carry()
                if is_holding:
                    for way in ways:
                        way.release(time.monotonic())
        finally:
            print(json.dumps(asdict(wear)), flush=True)


def _offload(device: str, which: int, value: int) -> None:
    setting = array("I", (which, value))
    request = _REQUEST.pack(device.encode(), setting.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCETHTOOL, request)


if __name__ == "__main__":
    if sys.argv[1:2] == ["offload"]:
        _offload(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        _be_the_wire()
