"""Readiness for a service manager: the sd_notify datagram (systemd's sd_notify(3))."""

from __future__ import annotations

import socket
from collections.abc import Mapping


def notify_service_manager(environ: Mapping[str, str], state: str) -> None:
    """Send e.g. `READY=1` to the socket that the service manager named, if it did."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        try:
            sender.connect(address)
            sender.sendall(state.encode())
        except OSError:
            return  # A manager that is gone cannot be told, and nothing depends on it.
