"""What others do to the surroundings of a datapath is noticed, found and put right."""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from integration.contract.entries import INNER, spd_entry
from integration.contract.sites import OpenDatapath, run
from integration.lab.process import PATIENCE
from xfrmpy.datapath.interface import Datapath, Realm
from xfrmpy.datapath.routes import OUR_TABLE
from xfrmpy.ipsec.drift import Finding
from xfrmpy.ipsec.spd import PolicyDirection

BY_HAND = {
    "route": (
        ("route", "del", str(INNER[4][1]), "table", str(OUR_TABLE)),
        Finding.ROUTE_MISSING,
    ),
    "another route": (
        ("route", "replace", str(INNER[4][1]), "dev", "lan", "table", str(OUR_TABLE)),
        Finding.ROUTE_MISSING,
    ),
    "changed route": (
        ("route", "change", str(INNER[4][1]), "dev", "lan", "table", str(OUR_TABLE)),
        Finding.ROUTE_MISSING,
    ),
    "rule": (("rule", "del", "table", str(OUR_TABLE)), Finding.RULE_MISSING),
}
"""What somebody types after `ip`, and what is found."""


CALM_SECONDS = 1.2
"""The kernel tells of the state of links once a second, so of one that has just been made, too."""


MANY = 12_000
"""Routes, each added and deleted."""


def is_told(datapath: Datapath) -> bool:
    """Whether the descriptor is readable, now or in a moment."""
    return bool(select.select([datapath.changes_fileno()], [], [], PATIENCE)[0])


def await_calm(datapath: Datapath) -> None:
    """Until nothing more comes of what was done before."""
    while select.select([datapath.changes_fileno()], [], [], CALM_SECONDS)[0]:
        datapath.read_changes()


def findings(datapath: Datapath) -> list[Finding]:
    return [amiss.finding for amiss in datapath.find_amiss()]


def assert_mended(watching: Datapath, finding: Finding) -> None:
    """One thing is told to be amiss, and nothing is when it was put right."""
    assert is_told(watching)
    assert Realm.WAYS in watching.read_changes()
    assert findings(watching) == [finding]
    for amiss in watching.find_amiss():
        watching.mend(amiss)
    assert findings(watching) == []


class WatchContract:
    """See the module."""

    @pytest.fixture
    def watching(self, gateway: object, open_datapath: OpenDatapath) -> Iterator[Datapath]:
        """With the policies of a tunnel in force, and nothing to tell."""
        del gateway
        with closing(open_datapath()) as datapath:
            datapath.remove_ours()
            datapath.add([spd_entry(direction) for direction in PolicyDirection])
            datapath.read_changes()
            yield datapath
            datapath.remove_ours()

    def test_what_it_does_itself_is_not_told(self, watching: Datapath) -> None:
        await_calm(watching)
        assert findings(watching) == []
        for direction in PolicyDirection:
            watching.remove_policy(spd_entry(direction))
        watching.add([spd_entry(direction, version=6) for direction in PolicyDirection])
        assert watching.read_changes() is Realm.NOTHING
        assert findings(watching) == []
        assert not select.select([watching.changes_fileno()], [], [], 0)[0]

    @pytest.mark.parametrize("name", BY_HAND)
    def test_what_others_change_is_told_and_mended(
        self, gateway: str, watching: Datapath, name: str
    ) -> None:
        await_calm(watching)
        command, finding = BY_HAND[name]
        before = run("ip", "-n", gateway, "route", "show", "table", str(OUR_TABLE))
        run("ip", "-n", gateway, *command)
        assert_mended(watching, finding)
        assert run("ip", "-n", gateway, "route", "show", "table", str(OUR_TABLE)) == before
        assert watching.read_changes() is Realm.NOTHING

    def test_ipv6_is_no_different(self, gateway: str, watching: Datapath) -> None:
        await_calm(watching)
        watching.add([spd_entry(direction, version=6) for direction in PolicyDirection])
        show = ("ip", "-n", gateway, "-6", "route", "show", "table", str(OUR_TABLE))
        before = run(*show)
        for command, finding in (
            (("rule", "del", "table", str(OUR_TABLE)), Finding.RULE_MISSING),
            (("route", "del", str(INNER[6][1]), "table", str(OUR_TABLE)), Finding.ROUTE_MISSING),
        ):
            run("ip", "-n", gateway, "-6", *command)
            assert_mended(watching, finding)
            assert watching.read_changes() is Realm.NOTHING
        assert run(*show) == before

    def test_an_address_of_ours_that_changes_changes_the_route(
        self, gateway: str, watching: Datapath
    ) -> None:
        old, new = (f"{INNER[4][0][host]}/24" for host in (1, 2))
        run("ip", "-n", gateway, "address", "del", old, "dev", "lan")
        run("ip", "-n", gateway, "address", "add", new, "dev", "lan")
        try:
            assert is_told(watching)
            assert Realm.WAYS in watching.read_changes()
            for amiss in watching.find_amiss():
                watching.mend(amiss)
            assert findings(watching) == []
            routes = run("ip", "-n", gateway, "route", "show", "table", str(OUR_TABLE))
            assert f"src {INNER[4][0][2]}" in routes
        finally:
            run("ip", "-n", gateway, "address", "del", new, "dev", "lan")
            run("ip", "-n", gateway, "address", "add", old, "dev", "lan")

    def test_where_changes_were_lost_anything_may_have_changed(
        self, gateway: str, watching: Datapath, tmp_path: Path
    ) -> None:
        """As on a host whose routes come by BGP: more than there is room for."""
        lines = [f"route add 172.16.{n // 250}.{n % 250} dev lan" for n in range(MANY)]
        lines += [line.replace("add", "del") for line in lines]
        batch = tmp_path / "batch"
        batch.write_text("\n".join([*lines, ""]))
        run("ip", "-n", gateway, "-batch", str(batch))
        assert Realm.WAYS in watching.read_changes()
        assert not select.select([watching.changes_fileno()], [], [], 0)[0]
        run("ip", "-n", gateway, *BY_HAND["rule"][0])
        assert is_told(watching), "it goes on listening"

    def test_what_does_not_concern_it_is_not_found(self, gateway: str, watching: Datapath) -> None:
        theirs = ("10.99.0.0/16", "dev", "lan", "table", str(OUR_TABLE))
        run("ip", "-n", gateway, "route", "add", *theirs)
        assert findings(watching) == []
        run("ip", "-n", gateway, "route", "del", *theirs)
