"""What crosses the internet between the gateways, captured with tcpdump and sorted into kinds.

Kinds: `ike` (UDP 500, and 4500 behind the non-ESP marker of RFC 3948), `ike-fragment` (the same, of
RFC 7383), `esp` (raw), `ah`, `udp-esp` (on UDP 4500), `keepalive`, `neighbour` (ARP, neighbour
discovery, multicast listeners), `unreachable` (a kernel says that nobody takes such a packet; it
does when a raw socket's buffer is full), and `clear` for every other packet.
"""

from __future__ import annotations

import signal
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from integration.lab.network import Network
from integration.lab.process import Background, eventually

_SNAPLEN = 128
_PCAP_HEADER = 24
_RECORD = struct.Struct("=IIII")
_SLL2_HEADER = 20
"""Linux "cooked" capture, version 2: it tells us the device, which "any" needs."""

_IPV4, _IPV6 = 0x0800, 0x86DD
_UDP, _ESP, _AH, _ICMP, _ICMPV6, _HOP_BY_HOP = 17, 50, 51, 1, 58, 0
_UNREACHABLE = {_ICMP: (3, _IPV4), _ICMPV6: (1, _IPV6)}
"""Type of the message, and EtherType of the packet that it quotes."""
_ICMP_HEADER = 8
_END = b"end of capture"
"""Payload of a datagram on the loopback, after which nothing counts: once it is in the file, so is
all that came before it."""

_ENCRYPTED_FRAGMENT = 53
"""RFC 7383 section 2.5: the type of the first payload."""

_NEIGHBOUR_DISCOVERY = range(130, 138)
_MULTICAST_LISTENER_V2 = 143


class Capture:
    """A context: counts every packet once, where it enters the internet. `kinds` afterwards."""

    def __init__(self, network: Network, directory: Path) -> None:
        self._file = directory / "wire.pcap"
        self._internet = network.internet
        self._gateways = (network.moon, network.sun)
        self._log = directory / "tcpdump.log"
        self.kinds: Counter[str] = Counter()

    def __enter__(self) -> Capture:
        self._log.unlink(missing_ok=True)
        self._undo = ExitStack()
        for gateway in self._gateways:
            self._undo.enter_context(gateway.sending_one_by_one())
        options = (
            "-Z",
            "root",
            "-p",
            "-n",
            "-U",
            "--immediate-mode",
            "-B",
            "16384",
            "-s",
            str(_SNAPLEN),
        )
        where = ("-i", "any", "-y", "LINUX_SLL2", "-Q", "in", "-w", str(self._file))
        command = self._internet.command("tcpdump", *options, *where)
        self._tcpdump = Background(command, self._log)
        eventually("tcpdump to listen", lambda: "listening on" in self._tcpdump.output)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()
        self._internet.run("bash", "-c", f"echo -n '{_END.decode()}' >/dev/udp/127.0.0.1/9")
        eventually("the end of the capture", lambda: _END in self._file.read_bytes()[-4096:])
        self._tcpdump.stop(signal.SIGINT)
        self.kinds.update(_kind(*packet) for packet in _packets(self._file.read_bytes()))
        if kind is None:
            assert "\n0 packets dropped by kernel" in self._tcpdump.output, self._tcpdump.output

    @property
    def protected(self) -> int:
        """Packets of ESP, in UDP or not, and of AH."""
        return self.kinds["esp"] + self.kinds["udp-esp"] + self.kinds["ah"]


def _packets(pcap: bytes) -> Iterator[tuple[int, bytes]]:
    """EtherType and octets, from the network header on, of each packet up to the end."""
    at = _PCAP_HEADER
    while at + _RECORD.size <= len(pcap):
        _, _, length, _ = _RECORD.unpack_from(pcap, at)
        at += _RECORD.size
        packet = pcap[at + _SLL2_HEADER : at + length]
        if packet.endswith(_END):
            return
        yield int.from_bytes(pcap[at : at + 2], "big"), packet
        at += length


def _kind(ether_type: int, packet: bytes) -> str:
    if ether_type == _IPV4:
        header = (packet[0] & 0xF) * 4
        return _transport_kind(packet[9], packet[header:])
    if ether_type == _IPV6:
        if packet[6] == _HOP_BY_HOP:
            return _transport_kind(packet[40], packet[40 + 8 * (packet[41] + 1) :])
        return _transport_kind(packet[6], packet[40:])
    return "neighbour"


def _transport_kind(protocol: int, octets: bytes) -> str:
    if protocol in (_ESP, _AH):
        return "esp" if protocol == _ESP else "ah"
    if protocol == _ICMPV6 and octets[0] in {*_NEIGHBOUR_DISCOVERY, _MULTICAST_LISTENER_V2}:
        return "neighbour"
    if protocol in _UNREACHABLE and octets[0] == _UNREACHABLE[protocol][0]:
        quoted = _kind(_UNREACHABLE[protocol][1], octets[_ICMP_HEADER:])
        return "clear" if quoted == "clear" else "unreachable"
    if protocol != _UDP:
        return "clear"
    ports = struct.unpack_from("!HH", octets)
    if 500 in ports:
        return _ike_kind(octets[8:])
    if 4500 in ports:
        return _encapsulated_kind(octets[8:])
    return "clear"


def _encapsulated_kind(payload: bytes) -> str:
    if payload == b"\xff":
        return "keepalive"
    return _ike_kind(payload[4:]) if payload.startswith(bytes(4)) else "udp-esp"


def _ike_kind(message: bytes) -> str:
    return "ike-fragment" if message[16:17] == bytes([_ENCRYPTED_FRAGMENT]) else "ike"
