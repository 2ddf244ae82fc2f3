"""`xfrmpy show kernel` beside a real tunnel, and with others' SAs and policies on the same host."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from integration.contract.sites import inside
from integration.lab.gateway import DATAPATH, XfrmpyGateway
from integration.lab.network import subnet
from integration.lab.process import IN_VM
from integration.lab.site import Site
from xfrmpy.control.client import Client
from xfrmpy.ipsec.sad import OUR_REQIDS

pytestmark = [pytest.mark.native, pytest.mark.vm]

THEIR_KEY = "5a" * 20
THEIR_SA = ("src", "192.0.2.99", "dst", "192.0.2.1", "proto", "esp", "spi", "0x4242", "reqid", "7")
THEIR_POLICY = ("dir", "out", "src", "10.77.0.0/24", "dst", "10.78.0.0/24", "priority", "5")


@pytest.fixture
def gateways(site: Site) -> tuple[XfrmpyGateway, XfrmpyGateway]:
    tunnel = site.network.tunnel()
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel)
    site.connect(ours, theirs)
    return ours, theirs


def shown(gateway: XfrmpyGateway, *arguments: str) -> dict[str, Any]:
    answer = gateway.command("show", "kernel", *arguments, "-o", "json")
    assert answer.code == 0, answer.errors
    document: dict[str, Any] = json.loads(answer.output)
    return document


def put_in_theirs(gateway: XfrmpyGateway) -> None:
    run = gateway.host.run
    run("ip", "xfrm", "policy", "add", *THEIR_POLICY)
    if IN_VM:  # elsewhere the kernel has no ESP
        aead = ("mode", "tunnel", "aead", "rfc4106(gcm(aes))", f"0x{THEIR_KEY}", "128")
        run("ip", "xfrm", "state", "add", *THEIR_SA, *aead)


def remove_theirs(gateway: XfrmpyGateway) -> None:
    gateway.host.run("ip", "xfrm", "policy", "delete", *THEIR_POLICY[:-2])
    if IN_VM:
        gateway.host.run("ip", "xfrm", "state", "delete", *THEIR_SA[:-2])


def test_ours_have_names_and_others_have_none_and_keys_are_nowhere(
    site: Site, gateways: tuple[XfrmpyGateway, XfrmpyGateway]
) -> None:
    ours, _ = gateways
    assert site.network.alice.ping(site.network.bob.inside_address(), 3) == 0
    put_in_theirs(ours)
    try:
        document = shown(ours)
        human = ours.command("show", "kernel")
        alone = shown(ours, "net0")
        keys = _keys_in_the_kernel(ours)
    finally:
        remove_theirs(ours)

    mine = [sa for sa in document["sas"] if sa["owner"] == "ours"]
    assert {(sa["tunnel"], sa["child"], sa["datapath"]) for sa in mine} == {
        ("net0", "net0", DATAPATH)
    }
    assert sorted(sa["direction"] for sa in mine) == ["in", "out"]
    assert all(sa["reqid"] in OUR_REQIDS for sa in mine)
    (child,) = ours.tunnel().children
    assert {sa["spi"] for sa in mine} == {child.spi_in, child.spi_out}
    assert [sa["packets"] >= 3 for sa in mine] == [True, True]
    assert all(0 <= sa["seconds_old"] < 600 for sa in mine)
    assert {sa["limits"]["hard_seconds"] for sa in mine} == {3600}

    by_owner = {p["owner"] for p in document["policies"]}
    assert {"ours", "foreign"} <= by_owner
    (foreign,) = [p for p in document["policies"] if p["owner"] == "foreign"]
    assert (foreign["tunnel"], foreign["selector"]) == ("", "10.77.0.0/24 -> 10.78.0.0/24")
    ends = {p["selector"] for p in document["policies"] if p["tunnel"] == "net0"}
    assert ends == {f"{subnet(1)} -> {subnet(2)}", f"{subnet(2)} -> {subnet(1)}"}

    if IN_VM:
        (stray,) = [sa for sa in document["sas"] if sa["owner"] == "foreign"]
        assert (stray["spi"], stray["reqid"], stray["tunnel"]) == ("0x00004242", 7, "")
        assert THEIR_KEY in keys
    else:
        assert [device["name"] for device in document["interfaces"]] == ["xfrmpy0"]
    for text in (json.dumps(document), human.output):
        assert not any(key in text for key in keys)
    assert "net0" in human.output
    assert "foreign" in human.output

    assert {entry["owner"] for entry in (*alone["sas"], *alone["policies"])} == {"ours"}
    assert len(alone["sas"]) == len(mine)


def test_a_packet_for_an_sa_that_is_not_there_is_counted_and_explained(
    site: Site, gateways: tuple[XfrmpyGateway, XfrmpyGateway]
) -> None:
    """The peer goes on sending on an SA that is gone here, as after a restart without a store."""
    ours, _ = gateways
    datagram = (0x0F0F0F0F if DATAPATH == "kernel" else 0x8F0F0F0F).to_bytes(4, "big") + bytes(60)
    with inside(site.network.sun.namespace), socket.socket(type=socket.SOCK_DGRAM) as sender:
        sender.sendto(datagram, (ours.host.outside[4], 4500))
    name = "XfrmInNoStates" if DATAPATH == "kernel" else "unknown-spi"
    counters = {c.name: c for c in Client(ours.runtime).show_kernel().errors}
    assert counters[name].count == 1
    assert "no SA of ours has" in counters[name].meaning
    assert f"1  {name}" in ours.command("show", "kernel").output


def test_without_its_daemon_the_kernel_is_shown_without_names(
    gateways: tuple[XfrmpyGateway, XfrmpyGateway],
) -> None:
    ours, _ = gateways
    ours.stop()
    put_in_theirs(ours)
    try:
        answer = ours.command("show", "kernel", "-o", "json")
    finally:
        remove_theirs(ours)
    assert answer.code == 0
    assert "no daemon runs" in answer.errors
    document = json.loads(answer.output)
    assert [policy["owner"] for policy in document["policies"]] == ["foreign"]
    assert [sa["spi"] for sa in document["sas"]] == (["0x00004242"] if IN_VM else [])


def _keys_in_the_kernel(gateway: XfrmpyGateway) -> set[str]:
    """What `ip` shows of the keys of every SA, ours and others'."""
    words = gateway.host.run("ip", "xfrm", "state").split()
    return {word.removeprefix("0x") for word in words if word.startswith("0x") and len(word) > 20}
