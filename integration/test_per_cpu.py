"""SAs of the kernel's that are for one CPU each (RFC 9611), from Linux 6.13 on.

The kernel of the gate is older, and these are skipped there; by hand, with KERNEL_VM_SERIES=7.3:
`integration/lab/kernel-vm --cpus 2 -- .venv/bin/pytest integration/test_per_cpu.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from ipaddress import ip_address

import pytest

from integration.contract.entries import GCM, inner_address, sad_entry
from integration.contract.sites import (
    SaPair,
    Site,
    add_policies,
    make_pair,
    two_sites,
)
from integration.lab.gateway import XfrmpyGateway
from integration.lab.network import unanswered
from integration.lab.process import eventually
from integration.lab.site import Site as Laboratory
from xfrmpy.datapath.kernel.datapath import KernelDatapath
from xfrmpy.ipsec.sad import Direction, SadEntry

CPUS = range(os.cpu_count() or 1)
PINGS = 5


def _release() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))


pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(
        _release() < (6, 13), reason=f"Linux {os.uname().release} has no SAs of one CPU"
    ),
]


def test_what_is_in_force_is_what_was_added(datapath: KernelDatapath) -> None:
    assert datapath.probe().resources
    entries = [_of_cpu(sad_entry(0), cpu) for cpu in CPUS]
    datapath.add(entries)
    assert set(datapath.dump().sad) == {*entries}
    datapath.update_sa(entries[0])
    moved = replace(entries[-1], destination=ip_address("198.51.100.77"))
    datapath.move_sa(entries[-1].id, moved)
    assert set(datapath.dump().sad) == {*entries[:-1], moved}
    datapath.remove_sa(entries[0].id)
    assert entries[0] not in datapath.dump().sad


def _of_cpu(entry: SadEntry, cpu: int) -> SadEntry:
    return replace(
        entry, direction=Direction.OUT, spi=entry.spi + 1 + cpu, resource=cpu, replay_window=0
    )


@pytest.fixture
def sites() -> Iterator[tuple[Site, Site]]:
    with two_sites(KernelDatapath.open) as pair:
        yield pair


@pytest.mark.parametrize("rekeyed", ["", "of no cpu", "of a cpu"])
def test_a_packet_leaves_by_the_sa_of_its_cpu(sites: tuple[Site, Site], rekeyed: str) -> None:
    """Also where the policy has used another SA before, which it would keep to."""
    pairs = [make_pair(GCM, spi_bits=0, serial=serial) for serial in range(2 + len(CPUS))]
    fallback, *of_cpus, spare = pairs
    for site in sites:
        fallback.add_to(site)
        add_policies(site, inner=4)
    for cpu in CPUS:
        assert _packets_of(sites, [fallback], cpu) == [PINGS]
    for cpu, pair in enumerate(of_cpus):
        _add_bound(sites, pair, cpu)
    if rekeyed == "of no cpu":
        spare.add_to(sites[1])
        spare.add_to(sites[0])
        fallback.remove_from(sites[0], Direction.OUT)
        fallback = spare
    elif rekeyed:
        # Where the one of no CPU has been used meanwhile, by a CPU without one of its own.
        of_cpus[1].remove_from(sites[0], Direction.OUT)
        assert _packets_of(sites, [fallback], CPUS[1]) == [PINGS]
        _add_bound(sites, spare, CPUS[0])
        of_cpus[0].remove_from(sites[0], Direction.OUT)
        assert _packets_of(sites, [fallback, spare], CPUS[0]) == [0, PINGS]
        return
    for cpu, pair in enumerate(of_cpus):
        assert _packets_of(sites, [fallback, pair], cpu) == [0, PINGS]


def _add_bound(sites: tuple[Site, Site], pair: SaPair, cpu: int) -> None:
    pair.add_to(sites[1])
    sites[0].datapath.add_sa(replace(pair.forth, resource=cpu, replay_window=0))
    pair.add_to(sites[0], Direction.IN)


def _packets_of(sites: tuple[Site, Site], pairs: list[SaPair], cpu: int) -> list[int]:
    """How many the first site sends by each, if a process on one CPU makes them."""

    def sent() -> list[int]:
        return [sites[0].datapath.usage(pair.forth.id).packets for pair in pairs]

    before = sent()
    target = str(inner_address(4, 1))
    ping = ("ping", "-n", "-q", "-c", str(PINGS), "-i", "0.05", target)
    sites[0].run("taskset", "-c", str(cpu), *ping)
    return [after - count for after, count in zip(sent(), before, strict=True)]


def test_a_tunnel_has_a_child_sa_for_each_cpu(site: Laboratory) -> None:
    tunnel = site.network.tunnel()
    moon, sun = (
        site.xfrmpy(host, ends, datapath="kernel", per_resource="auto")
        for host, ends in ((site.network.moon, tunnel), (site.network.sun, tunnel.mirrored()))
    )
    site.connect(moon, sun)
    for gateway in (moon, sun):
        eventually("a Child SA for each CPU", partial(_is_complete, gateway))
    site.assert_protected()
    _assert_spread(site, moon)
    bob = site.network.bob.inside_address()
    with site.network.alice.pinging(bob, site.log):
        before = moon.spis()
        moon.rekey()
        eventually("the rekeyed ones alone", partial(_is_complete, moon))
        assert moon.spis() != before
        moon.crash()
        moon.start_again()
        eventually("what there was", partial(_is_complete, moon))
    assert unanswered(site.log) == []
    _assert_spread(site, moon)


def _is_complete(gateway: XfrmpyGateway) -> bool:
    cpus = [child.cpu for child in gateway.tunnel().children]
    return len(cpus) == 1 + len(CPUS) and {*cpus} == {None, *CPUS}


def _assert_spread(site: Laboratory, moon: XfrmpyGateway) -> None:
    alice, bob = site.network.alice, site.network.bob.inside_address()
    for cpu in CPUS:
        before = {child.cpu: child.packets_out for child in moon.tunnel().children}
        alice.run("taskset", "-c", str(cpu), "ping", "-n", "-c", str(PINGS), "-i", "0.05", bob)
        after = {child.cpu: child.packets_out for child in moon.tunnel().children}
        sent = {each: after[each] - before[each] for each in after}
        assert sent[cpu] >= PINGS
        assert sum(sent.values()) == sent[cpu]
