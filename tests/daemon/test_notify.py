"""Readiness over a real datagram socket, as a service manager listens to it."""

from __future__ import annotations

import socket
from pathlib import Path

from xfrmpy.daemon.notify import notify_service_manager


def test_readiness_reaches_the_service_manager(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        notify_service_manager({"NOTIFY_SOCKET": str(tmp_path / "notify")}, "READY=1")
        assert manager.recv(100) == b"READY=1"


def test_an_abstract_socket_is_meant_by_an_at_sign(tmp_path: Path) -> None:
    name = f"xfrmpy-test-{tmp_path.name}-{id(tmp_path)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name)
        notify_service_manager({"NOTIFY_SOCKET": "@" + name}, "STOPPING=1")
        assert manager.recv(100) == b"STOPPING=1"


def test_without_a_manager_or_with_one_that_is_gone_nothing_happens(tmp_path: Path) -> None:
    notify_service_manager({}, "READY=1")
    notify_service_manager({"NOTIFY_SOCKET": str(tmp_path / "gone")}, "READY=1")
