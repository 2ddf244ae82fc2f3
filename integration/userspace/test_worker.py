"""Bad days of a worker."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from integration.contract.entries import sad_entry
from integration.contract.sites import run
from integration.lab.network import Network
from integration.lab.process import eventually
from integration.userspace.laboratory import fill, udp_packet
from integration.userspace.place import (
    ANY_WORKER_SOCKET,
    WORKER_SOCKET,
    WORKERS,
    connected,
    is_clean,
    open_here,
    worker_of,
)
from tests.datapath.userspace.test_pages import in_large_pages, needs_large_pages
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.userspace import process, requests
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.esp.packet import IPV4_IN_ESP, OutboundSa
from xfrmpy.ipsec.addresses import IKE_NATT_PORT
from xfrmpy.ipsec.drift import Dump
from xfrmpy.ipsec.plain import to_plain
from xfrmpy.ipsec.sad import USERSPACE_SPI_BIT, Direction

pytestmark = pytest.mark.native


def test_a_stopped_worker_leaves_nothing_behind(
    network: Network, moon: str, tmp_path: Path
) -> None:
    datapath = open_here(tmp_path)
    fill(network, datapath, default=True)
    (path,) = tmp_path.glob(f"*/{WORKER_SOCKET}")
    worker = worker_of(path)
    assert not is_clean(moon)
    datapath.stop()
    assert is_clean(moon)
    assert not path.exists()
    assert not Path(f"/proc/{worker}").exists()


@needs_large_pages
@pytest.mark.usefixtures("moon")
def test_a_worker_that_carries_lies_in_large_pages(tmp_path: Path) -> None:
    datapath = open_here(tmp_path)
    (path,) = tmp_path.glob(f"*/{WORKER_SOCKET}")
    assert in_large_pages(worker_of(path)) > 0
    datapath.stop()


def test_sigterm_ends_an_idle_worker_and_its_daemon_is_told_once(
    network: Network, moon: str, tmp_path: Path
) -> None:
    datapath = open_here(tmp_path)
    fill(network, datapath)
    workers = [worker_of(path) for path in tmp_path.glob(f"*/{ANY_WORKER_SOCKET}")]
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    for worker in workers:
        os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
    assert select.select([datapath.fileno()], [], [], 5)[0]
    with pytest.raises(DatapathError, match="has ended"):
        datapath.read_events()
    assert not select.select([datapath.fileno()], [], [], 0)[0], "an event loop may rest"
    if WORKERS == 1:  # With others it is there until the daemon has let go, too.
        eventually("the device to go", lambda: DEVICE not in run("ip", "-n", moon, "link"))
    assert not list(tmp_path.glob(f"*/{ANY_WORKER_SOCKET}"))
    with pytest.raises(DatapathError, match="userspace worker"):
        datapath.dump()
    datapath.stop()
    assert is_clean(moon)


def test_a_worker_whose_device_is_taken_away_makes_another(
    network: Network, moon: str, tmp_path: Path
) -> None:
    datapath = open_here(tmp_path)
    fill(network, datapath)
    before = device_index(moon)
    run("ip", "-n", moon, "link", "del", DEVICE)
    eventually("another device", lambda: device_index(moon) not in (None, before))
    assert datapath.dump().sad
    assert not select.select([datapath.fileno()], [], [], 0)[0]
    datapath.stop()


def device_index(namespace: str) -> int | None:
    links = json.loads(run("ip", "-n", namespace, "-j", "link"))
    return next((link["ifindex"] for link in links if link["ifname"] == DEVICE), None)


def test_a_worker_that_can_have_no_device_ends_and_says_why(
    network: Network, moon: str, tmp_path: Path
) -> None:
    datapath = open_here(tmp_path)
    fill(network, datapath)
    for words in (
        f"set {DEVICE} down",
        f"set {DEVICE} name other",
        f"add {DEVICE} type veth peer name {DEVICE}-end",
        "del other",
    ):
        run("ip", "-n", moon, "link", *words.split())
    assert select.select([datapath.fileno()], [], [], 5)[0]
    with pytest.raises(DatapathError, match="last words: worker: the TUN device is gone"):
        datapath.read_events()
    run("ip", "-n", moon, "link", "del", DEVICE)
    datapath.stop()


def test_a_stuck_worker_costs_its_daemon_seconds_and_no_more(
    network: Network, moon: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del moon
    monkeypatch.setattr(process, "ANSWER_SECONDS", 0.3)
    datapath = open_here(tmp_path)
    pair = fill(network, datapath)
    (path,) = tmp_path.glob(f"*/{WORKER_SOCKET}")
    worker = worker_of(path)
    os.kill(worker, signal.SIGSTOP)
    try:
        with pytest.raises(DatapathError, match="timed out"):
            datapath.usage(pair.forth.id)
    finally:
        os.kill(worker, signal.SIGCONT)
    assert len(datapath.dump().sad) == 2, "not the late answer to the question before"
    os.kill(worker, signal.SIGSTOP)
    datapath.stop()
    eventually("it to end", lambda: not Path(f"/proc/{worker}").exists())
    path.unlink()


def test_a_daemon_that_does_not_read_holds_up_nothing(
    network: Network, moon: str, tmp_path: Path
) -> None:
    del moon
    datapath = open_here(tmp_path)
    pair = fill(network, datapath)
    (path,) = tmp_path.glob(f"*/{WORKER_SOCKET}")
    attacker = OutboundSa(replace(pair.back, direction=Direction.OUT), os.urandom)
    inner = udp_packet(network.bob.inside_address(), network.alice.inside_address())
    with connected(path) as deaf, connected(path) as mute:
        deaf.send(requests.encode({"do": "events"}))
        mute.settimeout(3)
        with suppress(OSError):
            for _ in range(3000):
                mute.send(requests.encode({"do": "dump"}))
        for count in range(1500):  # Each packet has another source port: an event.
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.bind(("127.0.0.1", 20_000 + count))
                peer.sendto(attacker.seal(inner, IPV4_IN_ESP), ("127.0.0.1", IKE_NATT_PORT))
            if count % 100 == 99:  # No more at once than its socket holds.
                eventually(
                    f"{count + 1} packets",
                    lambda: datapath.usage(pair.back.id).packets == count + 1,  # noqa: B023
                )
    events = list(datapath.read_events())
    while events[-1].new.port != 21_499:  # type: ignore[union-attr]
        assert select.select([datapath.fileno()], [], [], 5)[0], "the rest comes when we read"
        events += datapath.read_events()
    assert len(events) <= 1500
    datapath.stop()


def test_junk_requests_are_answered_and_end_nothing(moon: str, tmp_path: Path) -> None:
    del moon
    datapath = open_here(tmp_path)
    (path,) = tmp_path.glob(f"*/{WORKER_SOCKET}")
    junk = (
        b"\xff",
        b"[]",
        b"[" * 60_000,
        b"{}",
        b'{"do": []}',
        b'{"do": "close"}',
        b'{"do": "add"}',
        b'{"do": "add", "with": 5}',
        b'{"do": "add", "with": [5]}',
        b'{"do": "add", "with": [["SadEntry", 5]]}',
        b'{"do": "add", "with": [["SaId", {"spi": 256}]]}',
        b'{"do": "remove_sa", "with": {"spi": -1, "protocol": 3, "destination": "10.0.0.1"}}',
        requests.encode(
            {
                "do": "add",
                "with": [
                    ["SadEntry", to_plain(replace(sad_entry(USERSPACE_SPI_BIT), replay_window=-1))]
                ],
            }
        ),
    )
    with connected(path) as connection:
        for request in junk:
            connection.send(request)
            reply = requests.decode(connection.recv(requests.MAX_PACKET))
            assert "error" in (reply.get("result") or reply) or request == junk[-2]
    assert datapath.dump() == Dump(sad=(), spd=())
    datapath.stop()


_KNOCK = """
import socket, sys
door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
door.connect(sys.argv[1])
try:
    door.send(b'{"do": "dump"}')
    print(door.recv(100))
except (BrokenPipeError, ConnectionResetError):
    print(b"")
"""


def test_another_user_is_refused(moon: str, tmp_path: Path) -> None:
    del moon
    datapath = open_here(tmp_path)
    (path,) = tmp_path.glob(f"*/{WORKER_SOCKET}")
    assert path.stat().st_mode & 0o777 == 0o600

    def knock() -> subprocess.CompletedProcess[str]:
        nobody = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")
        # The system's own interpreter, for ours may be where nobody can go.
        command = (*nobody, "/usr/bin/python3", "-c", _KNOCK, str(path))
        return subprocess.run(command, capture_output=True, text=True, check=False)

    for folder in (path.parent, *path.parents[1:]):
        if folder.is_relative_to("/tmp/pytest-of-root"):
            folder.chmod(0o711)
    assert "PermissionError" in knock().stderr
    path.chmod(0o666)
    assert knock().stdout == "b''\n", "the worker itself looks who it is"
    assert datapath.dump() == Dump(sad=(), spd=())
    datapath.stop()
