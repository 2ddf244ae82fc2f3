"""Two hosts that have nothing but xfrmpy, and a tunnel between them by four commands."""

from __future__ import annotations

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.network import subnet
from integration.lab.process import eventually
from integration.lab.site import Site

pytestmark = pytest.mark.native


def said(host: XfrmpyGateway, *argv: str) -> str:
    """The last line that a command answers with; it must have succeeded."""
    answer = host.command(*argv)
    assert answer.code == 0, answer.errors
    return answer.output.splitlines()[-1]


def test_two_hosts_are_connected_by_four_commands(site: Site) -> None:
    network = site.network
    moon, sun = site.xfrmpy(network.moon), site.xfrmpy(network.sun)
    ours, theirs = (network.tunnel().ours, network.tunnel().theirs)
    here, there = ("--local", subnet(1)), ("--local", subnet(2))

    token = said(moon, "invite", "office", "--address", ours.address, *here)
    reply = said(sun, "join", token, "--address", theirs.address, *there)
    said(moon, "join", reply)
    said(moon, "up", "office")

    eventually("the tunnel to be up", lambda: sun.status().tunnels[0].state == "up")
    site.assert_protected()

    again = moon.command("join", reply)
    assert again.code == 64
    assert "has not invited anybody" in again.errors
    shown = said(moon, "key", "show")
    assert shown not in said(sun, "key", "show")
