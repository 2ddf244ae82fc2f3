"""`kill -9` of the daemon: packets go on, what peers send waits, and the next daemon takes over."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import time
from contextlib import ExitStack
from typing import Any

import pytest

from integration.contract.sites import inside
from integration.lab.gateway import XFRMPY, XfrmpyGateway
from integration.lab.process import IN_VM, PATIENCE, eventually
from integration.lab.site import Site
from integration.userspace.place import WORKER_SOCKET, worker_of
from xfrmpy.datapath.userspace.tun import DEVICE

DEAD_SECONDS = 2.0

USERSPACE = pytest.param({}, marks=pytest.mark.native, id="userspace")
KERNEL = pytest.param({}, marks=pytest.mark.vm, id="kernel")
KERNEL_IN_UDP = pytest.param({"encapsulation": "force"}, marks=pytest.mark.vm, id="kernel-in-udp")


def connected(site: Site, **keys: Any) -> XfrmpyGateway:
    """Moon's daemon, with a tunnel that is up."""
    tunnel = site.network.tunnel()
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel, **keys)
    site.connect(ours, theirs)
    return ours


@pytest.mark.parametrize("keys", [USERSPACE, KERNEL, KERNEL_IN_UDP])
def test_no_packet_is_lost_while_there_is_no_daemon(site: Site, keys: dict[str, str]) -> None:
    ours = connected(site, **keys)
    bob = site.network.bob.inside_address()
    with site.network.alice.pinging(bob, site.log) as counts:
        ours.crash()
        time.sleep(DEAD_SECONDS)
    sent, lost = counts
    assert (sent > DEAD_SECONDS * 10, lost) == (True, 0)
    ours.start_again()
    ours.stop()


@pytest.mark.native
@pytest.mark.vm
def test_what_peers_send_meanwhile_is_answered_by_the_next_daemon(site: Site) -> None:
    """On both ports, and ESP on the one that it shares with IKE goes on before and after."""
    ours = connected(site)
    ours.crash()
    with ExitStack() as stack:
        asked = [stack.enter_context(_ask(site, port)) for port in (500, 4500)]
        site.assert_protected()
        ours.start_again()
        for each in asked:
            assert _UNKNOWN[:16] in each.recv(1000), "INVALID_IKE_SPI"


@pytest.mark.native
@pytest.mark.vm
def test_a_worker_that_only_keeps_the_sockets_is_replaced_when_it_ends(site: Site) -> None:
    """Where no tunnel needs it for its packets."""
    if IN_VM:
        ours = connected(site, encapsulation="force")
    else:
        ours = site.xfrmpy(site.network.moon, site.network.tunnel())
        (ours.policies / "net0.yaml").unlink()
        ours.crash()
        ours.start_again()
    path = ours.runtime / WORKER_SOCKET
    worker = worker_of(path)
    os.kill(worker, signal.SIGKILL)
    eventually("another worker", lambda: "keeps IKE's sockets from now on" in ours.log)
    assert worker_of(path) != worker
    ours.crash()
    with _ask(site, 500) as asked:
        if IN_VM:
            site.assert_protected()
        ours.start_again()
        assert _UNKNOWN[:16] in asked.recv(1000), "INVALID_IKE_SPI"


@pytest.mark.native
def test_a_tunnel_comes_up_anew_beside_a_worker_that_was_there(site: Site) -> None:
    ours = connected(site)
    (path,) = (site.directory / "moon1" / "run").glob(WORKER_SOCKET)
    worker = worker_of(path)
    for _ in range(2):
        ours.crash()
        ours.start_again()
        ours.initiate()
        site.assert_protected()
    assert worker_of(path) == worker
    assert ours.status().drops.get("esp-unknown-spi", 0) == 0


@pytest.mark.native
def test_a_tunnel_that_is_no_longer_wanted_does_not_outlive_the_next_start(site: Site) -> None:
    """Also where no other tunnel needs its datapath."""
    ours = connected(site)
    ours.crash()
    assert DEVICE in site.network.moon.run("ip", "link")
    for policy in (site.directory / "moon1" / "conf.d").iterdir():
        policy.unlink()
    ours.start_again()
    assert DEVICE not in site.network.moon.run("ip", "link")
    assert site.network.moon.run("nft", "list", "tables") == ""
    ours.stop()


@pytest.mark.native
def test_nobody_who_reads_the_daemons_output_waits_for_its_worker(site: Site) -> None:
    ours = site.xfrmpy(site.network.moon, site.network.tunnel())
    ours.stop()
    command = site.network.moon.command(XFRMPY, "daemon")
    daemon = subprocess.Popen(
        command,
        env={**os.environ, **ours.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert daemon.stdout is not None
    with daemon.stdout as output:
        said = b""
        while b"ready, process" not in said:
            assert select.select([output], [], [], 20 * PATIENCE)[0]
            said += os.read(output.fileno(), 4096)
        (path,) = (site.directory / "moon0" / "run").glob(WORKER_SOCKET)
        worker = worker_of(path)
        # As a terminal does it, and then as nobody should.
        assert os.getpgid(worker) != daemon.pid
        daemon.kill()
        daemon.wait()
        while select.select([output], [], [], 5 * PATIENCE)[0]:
            if not os.read(output.fileno(), 4096):
                break
        else:
            raise AssertionError("the output of a daemon that is dead is still open")
    os.kill(worker, 0)
    os.kill(worker, signal.SIGTERM)
    eventually("the worker to go", lambda: not path.exists())


_UNKNOWN = bytes(range(1, 17)) + struct.pack("!BBBBII", 46, 0x20, 37, 0x08, 7, 100)
"""The header of an INFORMATIONAL request of an IKE SA that nobody has."""


def _ask(site: Site, port: int) -> socket.socket:
    """A socket from which somebody has asked moon something, once."""
    with inside(site.network.internet.namespace):
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    asking.settimeout(10 * PATIENCE)
    marker = bytes(4) if port == 4500 else b""
    payload = bytes([0, 0]) + struct.pack("!H", 72) + bytes(68)
    asking.sendto(marker + _UNKNOWN + payload, (site.network.moon.outside[4], port))
    return asking
