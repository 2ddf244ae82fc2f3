"""Debian's wireguard-go at a gateway: another tunnel in user space, to be measured beside ours.

It knows one suite, ChaCha20-Poly1305 with x25519, and no negotiation: both ends are told.
"""

from __future__ import annotations

import os
from pathlib import Path

from integration.lab.network import Host
from integration.lab.process import Background, eventually, run
from integration.lab.tunnel import Tunnel

PACKAGES = ("wireguard-go", "wireguard-tools")
SUITE = "chacha20poly1305"

_PORT = 51820
_MTU = 1420
"""wg-quick(8)'s, for 1500 octets between the gateways."""


class WireguardGateway:
    """One end of a tunnel; `meet` before it can carry anything."""

    def __init__(self, host: Host, tunnel: Tunnel, directory: Path) -> None:
        directory.mkdir()
        self.host = host
        self._tunnel = tunnel
        # Its socket is in a directory of all namespaces.
        self._device = f"{host.name}{os.getpid()}"
        self._key = directory / "key"
        self._key.touch(0o600)
        self._key.write_text(run("wg", "genkey").stdout)
        self.public_key = run("wg", "pubkey", stdin=self._key.read_text()).stdout.strip()
        command = host.command("wireguard-go", "--foreground", self._device)
        self._process = Background(command, directory / "log", {"LOG_LEVEL": "error"})
        socket = Path("/run/wireguard", f"{self._device}.sock")
        eventually("wireguard-go to listen", socket.exists)

    @property
    def pid(self) -> int:
        return self._process.process.pid

    def meet(self, other: WireguardGateway) -> None:
        subnets = ",".join(self._tunnel.theirs.subnets)
        endpoint = f"{self._tunnel.theirs.public}:{_PORT}"
        own = ("private-key", str(self._key), "listen-port", str(_PORT))
        peer = ("peer", other.public_key, "allowed-ips", subnets, "endpoint", endpoint)
        self.host.run("wg", "set", self._device, *own, *peer)
        self.host.batch(
            f"link set {self._device} mtu {_MTU} up",
            *(f"route add {each} dev {self._device}" for each in self._tunnel.theirs.subnets),
        )

    def stop(self) -> None:
        self._process.stop()
