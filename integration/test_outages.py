"""A tunnel that ought to be up comes back by itself, whatever happened to either end of it.

Liveness checks notice a peer that is cut off; who began a tunnel brings it up again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from integration.lab.gateway import XfrmpyGateway
from integration.lab.libreswan import LibreswanPeer
from integration.lab.marks import BOTH_ROLES, PEERS_ONCE
from integration.lab.process import IN_VM, eventually
from integration.lab.site import Role, Site
from integration.lab.strongswan import StrongswanPeer

TRIES = 3 if IN_VM else 2
"""From a question to giving the peer up it is 7 seconds, as strongSwan is told, or 15, as libreswan
is: on busy cores pluto took nine in the emulated machine to answer."""

OURS: dict[str, Any] = {"dpd": "2s", "retransmission": {"tries": TRIES, "initial": "1s"}}

STRONGSWAN: dict[Role, dict[str, Any]] = {
    role: {
        "connection": "dpd_delay = 2s\nkeyingtries = 0",
        "child": child,
        "settings": ("retransmit_timeout=1.0", "retransmit_base=2.0", "retransmit_tries=2"),
    }
    for role, child in (
        (Role.INITIATOR, "dpd_action = clear"),
        (Role.RESPONDER, "dpd_action = restart\nstart_action = start"),
    )
}

_QUICK = ("dpddelay=2", "dpdtimeout=15", "retransmit-timeout=15", "retransmit-interval=1000")

LIBRESWAN: dict[Role, dict[str, Any]] = {
    Role.INITIATOR: {"connection": (*_QUICK, "dpdaction=clear")},
    Role.RESPONDER: {"connection": (*_QUICK, "dpdaction=restart"), "auto": "start"},
}


@PEERS_ONCE
@BOTH_ROLES
def test_a_tunnel_comes_back_after_every_kind_of_outage(
    site: Site, role: Role, make_peer: Callable[..., StrongswanPeer | LibreswanPeer]
) -> None:
    options = (LIBRESWAN if make_peer is Site.libreswan else STRONGSWAN)[role]
    tunnel = site.network.tunnel()

    def start_theirs() -> StrongswanPeer | LibreswanPeer:
        return make_peer(site, site.network.sun, tunnel.mirrored(), **options)

    theirs = start_theirs()
    start = "auto" if role is Role.INITIATOR else "listen"
    ours = site.xfrmpy(site.network.moon, tunnel, start=start, **OURS)
    _assert_comes_up(site, ours, role)

    with site.network.severed():
        eventually("us to notice that the peer is cut off", lambda: not ours.is_up(), seconds=30)
        eventually("the peer to notice", lambda: not theirs.is_up(), seconds=60)
    _assert_comes_up(site, ours, role)

    before = ours.tunnel().spi_i
    theirs.kill()
    theirs = start_theirs()
    eventually("another IKE SA", lambda: ours.tunnel().spi_i != before, seconds=60)
    _assert_comes_up(site, ours, role)

    ours.crash()
    ours.start_again()
    _assert_comes_up(site, ours, role)


def _assert_comes_up(site: Site, ours: XfrmpyGateway, role: Role) -> None:
    eventually("the tunnel to be up", ours.is_up, seconds=120)
    assert ours.tunnel().role == role
    site.network.alice.await_answer(site.network.bob.inside_address())
    site.assert_protected()
