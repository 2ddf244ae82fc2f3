"""Per-resource Child SAs (RFC 9611): one tunnel, and each of two workers carries what it reads.

strongSwan at the other end is not asked for them, for it does not say that it has them.
"""

from __future__ import annotations

from functools import partial

import pytest

from integration.lab.gateway import XfrmpyGateway
from integration.lab.network import unanswered
from integration.lab.process import eventually
from integration.lab.site import Role, Site
from integration.test_workers import COUNT, MANY, STREAMS, kill_worker, loads, send_streams

pytestmark = [pytest.mark.native, pytest.mark.copied]


@pytest.fixture
def gateways(site: Site) -> tuple[XfrmpyGateway, XfrmpyGateway]:
    """Two workers at either end, and one tunnel between them, up."""
    tunnel = site.network.tunnel()
    moon, sun = (
        site.xfrmpy(host, ends, options=MANY, per_resource="auto")
        for host, ends in ((site.network.moon, tunnel), (site.network.sun, tunnel.mirrored()))
    )
    site.connect(moon, sun)
    await_all(moon, sun)
    return moon, sun


def workers(gateway: XfrmpyGateway) -> list[int | None]:
    return [child.worker for child in gateway.tunnel().children]


def await_all(*gateways: XfrmpyGateway) -> None:
    """A Child SA for each worker, and nothing left of older ones."""
    for gateway in gateways:
        eventually("a Child SA for each worker", partial(_is_complete, gateway))


def _is_complete(gateway: XfrmpyGateway) -> bool:
    return {*workers(gateway)} == {*range(COUNT)} and loads(gateway) == [2] * COUNT


def _adds_up(gateway: XfrmpyGateway) -> bool:
    """Unless a packet came between one count and the next."""
    children = gateway.tunnel().children
    totals = {child.total_packets_out for child in children}
    return totals == {sum(child.packets_out for child in children)}


def test_what_a_worker_reads_leaves_by_its_own_child_sa(
    site: Site, gateways: tuple[XfrmpyGateway, XfrmpyGateway]
) -> None:
    site.assert_protected()
    before = {child.worker: child.packets_out for child in gateways[0].tunnel().children}
    send_streams(site)
    children = gateways[0].tunnel().children
    sent = [child.packets_out - before[child.worker] for child in children]
    assert min(sent) >= 1, "the queues of a device have each some of so many streams"
    assert sum(sent) >= STREAMS
    received = [child.packets_in for child in gateways[1].tunnel().children]
    assert min(received) >= 1
    eventually("totals to be sums", partial(_adds_up, gateways[0]))
    site.transfer(20_000_000)


def test_each_is_rekeyed_and_outlives_worker_and_daemon(
    site: Site, gateways: tuple[XfrmpyGateway, XfrmpyGateway]
) -> None:
    moon, sun = gateways
    bob = site.network.bob.inside_address()
    first = moon.spis()
    with site.network.alice.pinging(bob, site.log):
        moon.rekey()
        await_all(moon, sun)
        assert moon.spis() != first
        before = moon.spis()
        moon.crash()
        moon.start_again()
        await_all(moon, sun)
        for index in range(COUNT):
            kill_worker(moon, index, index + 1)
    site.log.unlink()
    assert moon.spis() == before
    await_all(moon, sun)
    send_streams(site)
    with site.network.alice.pinging(bob, site.log):
        sun.rekey()
        await_all(moon, sun)
    assert unanswered(site.log) == []


@pytest.mark.parametrize("role", Role)
def test_strongswan_has_one_child_sa(site: Site, role: Role) -> None:
    tunnel = site.network.tunnel()
    theirs = site.strongswan(site.network.sun, tunnel.mirrored())
    ours = site.xfrmpy(site.network.moon, tunnel, options=MANY, per_resource="auto")
    ends = (ours, theirs) if role is Role.INITIATOR else (theirs, ours)
    site.connect(*ends)
    site.assert_protected()
    assert workers(ours) == [None]
    ours.rekey()
    site.assert_protected()
    send_streams(site)
    assert workers(ours) == [None]
