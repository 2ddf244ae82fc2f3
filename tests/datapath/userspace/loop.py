"""A sender of ESP in UDP and the socket to which it sends, over the loopback."""

from __future__ import annotations

import socket
from collections import Counter
from dataclasses import replace
from ipaddress import ip_address

from tests.suites import ESP_SUITES
from xfrmpy.datapath.userspace.ancillary import ask_for_fields
from xfrmpy.datapath.userspace.sending import UdpSender
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.sad import Direction, SadEntry, UdpEncapsulation

HOME: dict[int, IpAddress] = {4: ip_address("127.0.0.1"), 6: ip_address("::1")}
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class Loop:
    """A sender, and the socket to which it sends."""

    def __init__(self, version: int = 4) -> None:
        self.version = version
        self.receiver = socket.socket(FAMILIES[version], socket.SOCK_DGRAM)
        self.receiver.bind((str(HOME[version]), 0))
        self.receiver.settimeout(5)
        self.receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        ask_for_fields(self.receiver, version)
        self._socket = socket.socket(FAMILIES[version], socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self.refused: Counter[str] = Counter()
        self.sender = UdpSender(self._socket, version, self.refused)

    def entry(self, **changes: object) -> SadEntry:
        """An SA by which things are sent to the receiver."""
        suite = ESP_SUITES[0]
        made = SadEntry(
            direction=Direction.OUT,
            spi=0x81020304,
            source=HOME[self.version],
            destination=HOME[self.version],
            reqid=7,
            suite=suite,
            encryption_key=bytes(suite.cipher.keymat),
            integrity_key=bytes(suite.integrity.key if suite.integrity else 0),
            encapsulation=UdpEncapsulation(4500, self.receiver.getsockname()[1]),
        )
        return replace(made, **changes)  # type: ignore[arg-type]

    def received(self, count: int) -> list[bytes]:
        return [self.receiver.recv(65535) for _ in range(count)]

    def close(self) -> None:
        self.receiver.close()
        self._socket.close()
