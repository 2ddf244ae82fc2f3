"""Route-based tunnels with foreign peers, whose own are route-based by their own means."""

from __future__ import annotations

import pytest

from integration.lab.marks import BOTH_ROLES
from integration.lab.network import Host, subnet
from integration.lab.process import IN_VM
from integration.lab.site import Pair, Peer, Role, Site
from integration.lab.tunnel import Tunnel
from integration.test_interfaces import LINK, keys

IF_ID = 42


@BOTH_ROLES
@pytest.mark.native
@pytest.mark.vm
def test_strongswan_carries_what_is_routed(site: Site, role: Role) -> None:
    """In user space by its own TUN device, in the kernel by an xfrm interface of ours for it."""
    tunnel, sun = everything(site.network.tunnel()), site.network.sun
    child = f"if_id_in = {IF_ID}\nif_id_out = {IF_ID}" if IN_VM else ""
    theirs = site.strongswan(sun, tunnel.mirrored(), child=child)
    device = "ipsec0"
    # It would lead everything into its device, also what is bob's.
    sun.run("ip", "rule", "add", "pref", "100", "lookup", "main")
    if IN_VM:
        device = "xfrm0"
        sun.run("ip", "link", "add", device, "type", "xfrm", "if_id", str(IF_ID))
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel, **keys(1)), theirs)
    pair.connect(role)
    _lead(sun, device)
    assert_routed(pair, role)


@BOTH_ROLES
@pytest.mark.vm
def test_libreswan_carries_what_is_routed(site: Site, role: Role) -> None:
    tunnel, sun = everything(site.network.tunnel()), site.network.sun
    # Its own script would lead everything into the tunnel, IKE too. We rekey without a group here.
    lines = ("ipsec-interface=1", "leftupdown=/bin/true", "pfs=no")
    theirs: Peer = site.libreswan(sun, tunnel.mirrored(), connection=lines)
    pair = Pair(site, site.xfrmpy(site.network.moon, tunnel, **keys(1)), theirs)
    pair.connect(role)
    _lead(sun, "ipsec1")
    assert_routed(pair, role)


def everything(tunnel: Tunnel) -> Tunnel:
    """The same, carrying everything."""
    return tunnel.between(("0.0.0.0/0",), ("0.0.0.0/0",))


def _lead(host: Host, device: str) -> None:
    """What routing there is at the peer's end."""
    host.run("ip", "link", "set", device, "up")
    host.run("ip", "address", "add", f"{LINK[2]}/30", "dev", device)
    host.run("ip", "route", "add", subnet(1), "dev", device)


def assert_routed(pair: Pair, role: Role) -> None:
    """What neither end has named in a selector is carried, because it is routed there."""
    site, status = pair.site, pair.ours.tunnel()
    assert status.role == role
    (child,) = status.children
    assert (child.local, child.remote) == (["0.0.0.0/0"], ["0.0.0.0/0"])
    site.assert_protected()
    assert site.network.moon.ping(LINK[2]) == 0
    pair.ours.rekey()
    site.assert_protected()
