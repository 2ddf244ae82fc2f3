"""A daemon goes without a word, and another takes over what it put in force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from integration.contract.entries import GCM, OUTER, REQID, spd_entry
from integration.contract.sites import (
    CleanSites,
    OpenDatapath,
    SaPair,
    Site,
    add_policies,
    inside,
    install_pair,
    run,
)
from integration.lab.process import eventually
from xfrmpy.datapath.interface import Expired
from xfrmpy.datapath.routes import OUR_TABLE
from xfrmpy.ipsec.sad import Lifetime

Install = Callable[[Lifetime], SaPair]

_ELSEWHERE = ip_address("198.51.100.12")


class SuccessionContract(CleanSites):
    """Two gateways, each with a datapath of the kind under test."""

    @pytest.fixture
    def install(self, sites: tuple[Site, Site], spi_bits: int) -> Install:
        encapsulated = bool(spi_bits)
        return lambda lifetime: install_pair(
            sites, GCM, spi_bits=spi_bits, encapsulated=encapsulated, lifetime=lifetime
        )

    def test_counters_and_sequence_numbers_go_on(
        self, sites: tuple[Site, Site], open_datapath: OpenDatapath, install: Install
    ) -> None:
        pair = install(Lifetime())
        assert sites[0].ping(4)
        before = [(set(site.datapath.dump().sad), set(site.datapath.dump().spd)) for site in sites]
        for site in sites:
            _succeed(site, open_datapath)
        after = [(set(site.datapath.dump().sad), set(site.datapath.dump().spd)) for site in sites]
        assert after == before
        assert sites[0].ping(4)
        for site in sites:
            for entry in pair.at(site):
                usage = site.datapath.usage(entry.id)
                assert (usage.packets, usage.replayed, usage.integrity_failed) == (6, 0, 0)

    def test_what_is_removed_piece_by_piece_leaves_nothing(
        self, sites: tuple[Site, Site], open_datapath: OpenDatapath, install: Install
    ) -> None:
        site = sites[0]
        before = _traces(site)
        install(Lifetime())
        wide = spd_entry()
        everything = replace(wide.selector, destination=ip_network("0.0.0.0/0"))
        site.datapath.add_policy(replace(wide, selector=everything))
        assert f"throw {everything.source}" in _traces(site)
        _succeed(site, open_datapath)
        dump = site.datapath.dump()
        assert (len(dump.sad), len(dump.spd)) == (2, 4)
        for sa in dump.sad:
            site.datapath.remove_sa(sa.id)
        for policy in dump.spd:
            site.datapath.remove_policy(policy)
        assert _traces(site) == before
        assert site.datapath.remove_ours() == 0

    def test_an_sa_moves_with_its_counters(
        self, sites: tuple[Site, Site], open_datapath: OpenDatapath, install: Install
    ) -> None:
        pair = install(Lifetime())
        assert sites[0].ping(4)
        for site in sites:
            _succeed(site, open_datapath)
        moved = SaPair(
            replace(pair.forth, source=_ELSEWHERE), replace(pair.back, destination=_ELSEWHERE)
        )
        sites[0].run("ip", "address", "add", f"{_ELSEWHERE}/24", "dev", "wan")
        try:
            for site in sites:
                for old, new in zip(pair.at(site), moved.at(site), strict=True):
                    site.datapath.move_sa(old.id, new)
                add_policies(site, inner=4, ends=(_ELSEWHERE, OUTER[4][1]))
            assert sites[0].ping(4)
            for site in sites:
                for entry in moved.at(site):
                    usage = site.datapath.usage(entry.id)
                    assert (usage.packets, usage.replayed) == (6, 0)
        finally:
            sites[0].run("ip", "address", "del", f"{_ELSEWHERE}/24", "dev", "wan")

    def test_a_soft_limit_met_meanwhile_is_told(
        self, sites: tuple[Site, Site], open_datapath: OpenDatapath, install: Install
    ) -> None:
        pair = install(Lifetime(soft_packets=2))
        with inside(sites[0].namespace):
            sites[0].datapath.close()
            assert sites[0].ping(4)
            sites[0].datapath = open_datapath()
        soft = Expired(sa=pair.forth.id, reqid=REQID, hard=False)
        _await_expiry(sites[0], soft)

    def test_a_soft_limit_told_to_the_dead_is_told_again(
        self, sites: tuple[Site, Site], open_datapath: OpenDatapath, install: Install
    ) -> None:
        pair = install(Lifetime(soft_packets=2))
        assert sites[0].ping(4)
        _succeed(sites[0], open_datapath)
        soft = Expired(sa=pair.forth.id, reqid=REQID, hard=False)
        _await_expiry(sites[0], soft)

    def test_a_hard_limit_holds_without_a_daemon(
        self, sites: tuple[Site, Site], open_datapath: OpenDatapath, install: Install
    ) -> None:
        install(Lifetime(soft_seconds=1, hard_seconds=2))
        with inside(sites[0].namespace):
            sites[0].datapath.close()
            eventually("the SA to end", lambda: not sites[0].ping(4, "-W", "1"))
            sites[0].datapath = open_datapath()
        assert sites[0].datapath.dump().sad == ()


def _await_expiry(site: Site, expected: Expired) -> None:
    """Others may be told of before."""
    while site.wait_for(Expired) != expected:
        pass


def _succeed(site: Site, open_datapath: OpenDatapath) -> None:
    """What a daemon's death is to its datapath, and another's start."""
    with inside(site.namespace):
        site.datapath.close()
        site.datapath = open_datapath()


def _traces(site: Site) -> str:
    """What is in the site's kernel beside SAs and policies."""
    ip = ("ip", "-n", site.namespace)
    routes = run(*ip, "route", "show", "table", "all")
    ours = "\n".join(line for line in routes.splitlines() if f"table {OUR_TABLE}" in line)
    return ours + run(*ip, "rule") + site.run("nft", "list", "ruleset")
