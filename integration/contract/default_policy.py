"""What passes that no policy matches: as before, or nothing, with what must pass all the same.

A datapath that has no such default says why, and refuses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from integration.contract.entries import OUTER
from integration.contract.sites import CleanSites, OpenDatapath, Site, inside
from integration.contract.watching import await_calm, is_told
from xfrmpy.datapath.interface import Datapath, DatapathError, Realm
from xfrmpy.ipsec.drift import Difference, Finding
from xfrmpy.ipsec.selectors import TrafficSelector
from xfrmpy.ipsec.spd import Action, PolicyDirection, default_exceptions, shunt_entries

IN, OUT, FORWARD = PolicyDirection.IN, PolicyDirection.OUT, PolicyDirection.FORWARD
EVERY = frozenset(PolicyDirection)
BRIEFLY = ("-W", "1")


def _put_in_force(datapath: Datapath, *directions: PolicyDirection) -> None:
    datapath.add(default_exceptions())
    datapath.default_policy.set(frozenset(directions))


def _passes(site: Site, version: int = 4) -> bool:
    """A ping of the other's outer address."""
    return site.ping_host(version, *BRIEFLY, count=1)


def _default(site: Site) -> str:
    return site.run("ip", "xfrm", "policy", "getdefault")


class DefaultContract(CleanSites):
    def test_who_has_no_default_says_why_and_refuses_it(self, sites: tuple[Site, Site]) -> None:
        datapath = sites[0].datapath
        if not datapath.default_policy.refusal():
            _put_in_force(datapath, IN)
            assert datapath.dump().blocked == {IN}
            return
        with pytest.raises(DatapathError, match="default policy"):
            datapath.default_policy.set(EVERY)
        datapath.default_policy.set(frozenset())
        assert datapath.dump().blocked == frozenset()


class DefaultInForce(DefaultContract):
    """Of a datapath that has one."""

    @pytest.fixture(autouse=True)
    def _accept(self, sites: tuple[Site, Site]) -> Iterator[None]:
        """Whatever became of a test, the next one begins as the first."""
        yield
        for site in sites:
            accept = ("in", "accept", "out", "accept", "fwd", "accept")
            site.run("ip", "xfrm", "policy", "setdefault", *accept)

    @pytest.mark.parametrize("version", [4, 6])
    @pytest.mark.parametrize("direction", [IN, OUT])
    def test_what_nothing_matches_does_not_pass(
        self, sites: tuple[Site, Site], version: int, direction: PolicyDirection
    ) -> None:
        here, there = sites
        assert _passes(here, version)
        _put_in_force(here.datapath, direction)
        assert not _passes(here, version)
        assert not _passes(there, version)
        here.datapath.default_policy.set(frozenset())
        assert _passes(here, version)

    @pytest.mark.parametrize("version", [4, 6])
    def test_what_is_bypassed_passes_and_so_does_the_host_to_itself(
        self, sites: tuple[Site, Site], version: int
    ) -> None:
        here, _ = sites
        _put_in_force(here.datapath, *EVERY)
        assert not _passes(here, version)
        ours, theirs = OUTER[version]
        here.datapath.add(
            shunt_entries(
                local=[TrafficSelector.parse(str(ours))],
                remote=[TrafficSelector.parse(str(theirs))],
                action=Action.BYPASS,
            )
        )
        # Neighbours are discovered anew.
        here.run("ip", "neigh", "flush", "dev", "wan")
        assert _passes(here, version)
        for itself in {4: ("127.0.0.1", str(ours)), 6: ("::1",)}[version]:
            here.run("ping", "-n", "-q", "-c", "1", *BRIEFLY, itself)

    def test_what_others_change_is_told_seen_and_put_back(self, sites: tuple[Site, Site]) -> None:
        here, _ = sites
        _put_in_force(here.datapath, IN, OUT)
        await_calm(here.datapath)
        here.run("ip", "xfrm", "policy", "setdefault", "out", "accept")
        assert is_told(here.datapath)
        assert Realm.ENTRIES in here.datapath.read_changes()
        assert here.datapath.dump().blocked == {IN}
        changed = Difference(finding=Finding.DEFAULT_CHANGED, what="the default policy")
        here.datapath.mend(changed)
        assert here.datapath.dump().blocked == {IN, OUT}
        assert not _passes(here)

    def test_what_others_block_is_neither_ours_nor_set_back(self, sites: tuple[Site, Site]) -> None:
        here, _ = sites
        here.run("ip", "xfrm", "policy", "setdefault", "fwd", "block")
        assert here.datapath.dump().blocked == frozenset()
        _put_in_force(here.datapath, IN)
        assert here.datapath.dump().blocked == {IN}
        here.datapath.remove_ours()
        assert re.findall(r"(\w+): +block", _default(here)) == ["fwd"]

    def test_a_later_process_knows_it_for_ours(
        self, sites: tuple[Site, Site], open_datapath: OpenDatapath
    ) -> None:
        here, _ = sites
        _put_in_force(here.datapath, IN, FORWARD)
        here.datapath.close()
        with inside(here.namespace):
            here.datapath = open_datapath()
        assert here.datapath.dump().blocked == {IN, FORWARD}
        here.datapath.remove_ours()
        assert "block" not in _default(here)
        assert here.datapath.dump().spd == ()

    def test_the_exceptions_are_in_force_as_they_were_added(self, sites: tuple[Site, Site]) -> None:
        here, _ = sites
        _put_in_force(here.datapath, OUT)
        assert set(here.datapath.dump().spd) == {*default_exceptions()}
        for entry in default_exceptions():
            here.datapath.remove_policy(entry)
        assert here.datapath.dump().spd == ()
