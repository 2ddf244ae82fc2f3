"""The daemon dies, the worker does not: its successor finds everything."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest

from integration.contract.entries import GCM, REQID
from integration.contract.sites import inside
from integration.lab.network import Network
from integration.lab.process import Background, eventually
from integration.userspace.daemon_part import IN_FORCE, command_of
from integration.userspace.laboratory import entries, fill, sa_between
from integration.userspace.place import daemon_sockets, is_clean, open_here, our_routes
from xfrmpy.datapath.routes import OUR_TABLE
from xfrmpy.datapath.userspace.udp import open_shared_udp_socket
from xfrmpy.ipsec.addresses import IKE_NATT_PORT

pytestmark = pytest.mark.native


def test_a_killed_daemon_costs_nothing_and_its_successor_finds_everything(
    network: Network, tmp_path: Path
) -> None:
    moon, sun = (ip_address(host.outside[4]) for host in (network.moon, network.sun))
    forth, back = sa_between(GCM, 1, moon, sun), sa_between(GCM, 2, sun, moon)
    bob, log = network.bob.inside_address(), tmp_path / "ping.log"
    daemons, force = [], {}
    for here, there, own, peers in (
        (network.moon, network.sun, forth, back),
        (network.sun, network.moon, back, forth),
    ):
        force[here.name] = entries(here, there, own, peers, 4)
        file = tmp_path / f"{here.name}.json"
        command = command_of(tmp_path, file, force[here.name])
        daemons.append(Background(here.command(*command), tmp_path / f"{here.name}.log"))
    for daemon in daemons:
        eventually("entries in force", lambda daemon=daemon: IN_FORCE in daemon.output)  # type: ignore[misc]

    with network.alice.pinging(bob, log) as counts:
        daemons[0].process.kill()
        daemons[0].process.wait()
        time.sleep(0.5)
    assert counts[0] > 10
    assert counts[1] == 0, "the worker forwards while nobody is its daemon"

    routes = our_routes(network.moon.namespace)
    network.moon.run("ip", "route", "flush", "table", str(OUR_TABLE))
    with inside(network.moon.namespace), daemon_sockets():
        later = open_here(tmp_path)
        dump = later.dump()
        assert [*dump.sad, *dump.spd] == force["moon"]
        assert our_routes(network.moon.namespace) == routes, "with its MTU"
        with network.alice.pinging(bob, log) as counts:
            time.sleep(0.3)
        assert counts[1] == 0
        assert not {"unknown-spi", "defect"} & later.drops().keys(), "all ESP came to the worker"
        assert later.remove_ours() == len(force["moon"])
        later.stop()
    assert our_routes(network.moon.namespace) == ""
    daemons[1].stop(signal.SIGKILL)


def test_ike_still_reaches_the_new_daemon_and_esp_the_worker(
    network: Network, tmp_path: Path
) -> None:
    """The order of the sockets: the daemon's first, whoever died and came back."""
    with inside(network.moon.namespace), ExitStack() as stack:
        with daemon_sockets():
            open_here(tmp_path).close()
        natt = stack.enter_context(open_shared_udp_socket(socket.AF_INET, IKE_NATT_PORT))
        natt.settimeout(5)
        datapath = open_here(tmp_path)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            here = ("127.0.0.1", IKE_NATT_PORT)
            peer.sendto(b"\x80\0\0\1" + bytes(40), here)
            peer.sendto(bytes(4) + b"an IKE message", here)
            assert natt.recv(100) == bytes(4) + b"an IKE message"
            eventually("the ESP", lambda: datapath.drops().get("unknown-spi") == 1)
        datapath.stop()


def test_a_joined_worker_is_stopped_as_well(network: Network, moon: str, tmp_path: Path) -> None:
    first = open_here(tmp_path)
    fill(network, first)
    first.close()
    open_here(tmp_path).stop()
    assert is_clean(moon)
    with suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_events_wait_for_a_daemon_that_is_away(network: Network, moon: str, tmp_path: Path) -> None:
    del moon
    datapath = open_here(tmp_path)
    pair = fill(network, datapath)
    datapath.remove_sa(pair.forth.id)
    datapath.close()
    assert network.alice.ping(network.bob.inside_address(), count=1) == 1
    later = open_here(tmp_path)
    assert select.select([later.fileno()], [], [], 5)[0]
    assert [event.reqid for event in later.read_events()] == [REQID]
    later.stop()
    with suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
