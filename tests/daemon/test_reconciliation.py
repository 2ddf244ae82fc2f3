"""What others change is looked at once a burst, put right, and told; what cannot be is left.

The cores and what is in force are real; only sockets are not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, cast

import pytest

from tests.ike.conftest import Pair, tunnel_policy
from xfrmpy.daemon import reconciliation
from xfrmpy.daemon.core import Core
from xfrmpy.daemon.datapaths import Datapaths
from xfrmpy.daemon.events import Occurrence
from xfrmpy.daemon.reconciliation import BURST_SECONDS, NOT_OURS, Reconciler
from xfrmpy.daemon.restraint import FREELY
from xfrmpy.datapath.interface import Datapath, Realm
from xfrmpy.datapath.recording import RecordingDatapath
from xfrmpy.ike.outputs import ChildSaRekeyed
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.drift import Difference, Dump, Ends, Finding
from xfrmpy.ipsec.sad import OUR_REQIDS
from xfrmpy.ipsec.spd import Action

QUEUES = Difference(finding=Finding.QUEUES_MISSING, what="a queue for each tunnel")
RULE = Difference(finding=Finding.RULE_MISSING, what="the rule", subject=4)


class Daemon:
    """A reconciler over a tunnel that is up."""

    def __init__(self) -> None:
        self.pair = Pair(tunnel_policy())
        self.host = self.pair.moon
        self.datapath = self.host.datapath = RecordingDatapath()
        self.pair.up()
        self.datapath.calls.clear()
        self.looks = 0
        self.told: list[Occurrence] = []
        self.followed: list[Ends] = []
        self.reconciler = Reconciler(
            cast("Core", self), cast("Datapaths", self), self.told.append, self.followed.append
        )
        self.reconciler.watch()

    def opened(self) -> tuple[Datapath, ...]:
        return (self.datapath,)

    def compare(self, datapath: Datapath) -> tuple[Difference, ...]:
        self.looks += 1
        return self.host.endpoint.compare({"tunnel-a"}, datapath.dump())

    def recover(self, differences: Sequence[Difference]) -> None:
        self.host.endpoint.recover(differences, self.pair.now)
        self.pair.deliver()

    async def rest(self) -> None:
        await asyncio.sleep(2.5 * BURST_SECONDS)

    @property
    def events(self) -> list[str]:
        return [occurrence.event for occurrence in self.told]


def run(test: Callable[[Daemon], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        daemon = Daemon()
        with closing(daemon.datapath):
            await test(daemon)
            daemon.reconciler.stop()

    asyncio.run(body())


def test_a_burst_is_one_look_and_silence_is_none() -> None:
    async def test(daemon: Daemon) -> None:
        await daemon.rest()
        assert daemon.looks == 0
        for _ in range(5):
            daemon.datapath.change(Realm.ENTRIES)
            await asyncio.sleep(0)
        await daemon.rest()
        assert daemon.looks == 1
        daemon.datapath.change(Realm.WAYS)
        await daemon.rest()
        assert daemon.looks == 1, "SAs are not looked at for the sake of routes"
        assert daemon.told == []

    run(test)


def test_what_is_missing_is_put_right_and_told_in_one_sentence_each() -> None:
    async def test(daemon: Daemon) -> None:
        spd = dict(daemon.datapath.spd)
        daemon.datapath.spd.clear()
        daemon.datapath.sad.clear()
        daemon.datapath.change(Realm.ENTRIES)
        await daemon.rest()
        assert daemon.datapath.spd == spd
        assert len(daemon.host.reports(ChildSaRekeyed)) == 1
        told = {each.details["finding"]: each for each in daemon.told}
        sas, policies = told.pop("sa-missing"), told.pop("policy-missing")
        assert told == {}
        assert (sas.event, sas.tunnel, sas.details["count"]) == ("drift-healed", "tunnel-a", "2")
        assert sas.text.endswith("and 1 more like it: its Child SA is rekeyed")
        assert policies.details["count"] == "3"

    run(test)


def test_a_policy_that_is_refused_does_not_keep_the_others_out() -> None:
    async def test(daemon: Daemon) -> None:
        spd = dict(daemon.datapath.spd)
        daemon.datapath.spd.clear()
        daemon.datapath.refuse("add_policy", nth=len(spd) + 2)  # They were all added once.
        daemon.datapath.change(Realm.ENTRIES)
        await daemon.rest()
        assert daemon.datapath.spd == spd
        assert [each.details["count"] for each in daemon.told] == ["3"]

    run(test)


def test_what_bears_our_mark_and_is_not_ours_is_removed() -> None:
    async def test(daemon: Daemon) -> None:
        entry = next(iter(daemon.datapath.sad.values()))
        stray = replace(entry, spi=0x4242, encryption_key=bytes(len(entry.encryption_key)))
        policy = next(iter(daemon.datapath.spd.values()))
        other = replace(policy, selector=replace(policy.selector, protocol=6))
        daemon.datapath.sad[stray.id] = stray
        daemon.datapath.spd[other.place] = other
        daemon.datapath.change(Realm.ENTRIES)
        await daemon.rest()
        assert stray.id not in daemon.datapath.sad
        assert other.place not in daemon.datapath.spd
        assert daemon.events == ["drift-healed", "drift-healed"]
        assert stray.reqid in OUR_REQIDS

    run(test)


def test_what_a_plan_has_read_is_looked_at_all_the_same() -> None:
    async def test(daemon: Daemon) -> None:
        daemon.datapath.amiss.append(RULE)
        daemon.datapath.change(Realm.WAYS)
        assert daemon.reconciler.find() == (RULE,)
        await daemon.rest()
        assert daemon.reconciler.find() == ()
        assert daemon.events == ["drift-healed"]

    run(test)


def test_what_cannot_be_put_right_is_told_once_and_again_only_after_it_was() -> None:
    async def test(daemon: Daemon) -> None:
        daemon.datapath.refuse("mend", nth=1)
        daemon.datapath.refuse("mend", nth=2)
        for _ in range(3):
            if RULE not in daemon.datapath.amiss:
                daemon.datapath.amiss.append(RULE)
            daemon.datapath.change(Realm.WAYS)
            await daemon.rest()
        assert daemon.events == ["drift-left", "drift-healed"]
        assert daemon.told[0].details["why"].endswith("refused by the test")

    run(test)


def test_what_tunnels_can_do_without_is_not_asked_for_again_at_once() -> None:
    """What comes of asking is told as a change."""

    async def test(daemon: Daemon) -> None:
        daemon.datapath.refuse("mend", nth=1)
        daemon.datapath.amiss.append(QUEUES)
        for _ in range(3):
            daemon.datapath.change(Realm.WAYS)
            await daemon.rest()
        assert [call.name for call in daemon.datapath.calls] == ["mend"]
        assert daemon.events == ["drift-left"]

    run(test)


def test_but_after_a_while_and_without_any_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciliation, "RETRY_SECONDS", 0.0)

    async def test(daemon: Daemon) -> None:
        daemon.datapath.refuse("mend", nth=1)
        daemon.datapath.refuse("mend", nth=2)
        daemon.datapath.amiss.append(QUEUES)
        daemon.datapath.change(Realm.WAYS)
        while daemon.datapath.amiss:
            await daemon.rest()
        assert [call.name for call in daemon.datapath.calls] == ["mend"] * 3
        assert daemon.events == ["drift-left", "drift-healed"]

    run(test)


def test_whoever_applies_asks_at_once() -> None:
    async def test(daemon: Daemon) -> None:
        daemon.datapath.refuse("mend", nth=1)
        daemon.datapath.amiss.append(QUEUES)
        daemon.datapath.change(Realm.WAYS)
        await daemon.rest()
        assert daemon.reconciler.find() == (QUEUES,)
        daemon.reconciler.heal()
        assert daemon.reconciler.find() == ()

    run(test)


def test_what_was_left_and_is_well_again_is_news_when_it_comes_back() -> None:
    async def test(daemon: Daemon) -> None:
        daemon.datapath.refuse("mend", nth=1)
        daemon.datapath.refuse("mend", nth=2)
        for amiss in ([RULE], [], [RULE]):
            daemon.datapath.amiss[:] = amiss
            daemon.datapath.change(Realm.WAYS)
            await daemon.rest()
        assert daemon.events == ["drift-left", "drift-left"]

    run(test)


def test_who_fights_us_is_put_off_until_somebody_applies() -> None:
    async def test(daemon: Daemon) -> None:
        for _ in range(FREELY + 1):
            daemon.datapath.amiss.append(RULE)
            daemon.datapath.change(Realm.WAYS)
            await daemon.rest()
        assert daemon.events == ["drift-healed"] * FREELY + ["drift-left"]
        assert daemon.reconciler.find() == (RULE,)
        assert daemon.reconciler.heal() == (RULE,)
        assert daemon.reconciler.find() == ()

    run(test)


def test_another_programs_policy_is_told_and_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(daemon: Daemon) -> None:
        ours = next(iter(daemon.datapath.spd.values()))
        theirs = replace(ours, priority=1, action=Action.BYPASS, template=None)
        plain = daemon.datapath.dump

        def dump() -> Dump:
            return replace(plain(), others=(theirs,))

        monkeypatch.setattr(daemon.datapath, "dump", dump)
        for _ in range(2):
            daemon.datapath.change(Realm.ENTRIES)
            await daemon.rest()
        (left,) = daemon.told
        assert (left.event, left.details["why"]) == ("drift-left", NOT_OURS)
        assert daemon.datapath.calls == []

    run(test)


def test_a_path_that_changed_is_followed_whether_there_is_another_or_none() -> None:
    async def test(daemon: Daemon) -> None:
        view = daemon.host.views[0]
        ends: tuple[IpAddress, IpAddress] = (view.path.local.address, view.path.remote.address)
        amiss = Difference(finding=Finding.PATH_CHANGED, what="the path", subject=ends)
        daemon.datapath.refuse("mend", nth=1)
        for _ in range(2):
            daemon.datapath.amiss[:] = [amiss]
            daemon.datapath.change(Realm.WAYS)
            await daemon.rest()
        assert daemon.followed == [ends, ends]
        assert daemon.events == ["drift-left", "drift-healed"]

    run(test)


def test_after_it_was_stopped_nothing_is_touched() -> None:
    async def test(daemon: Daemon) -> None:
        daemon.datapath.amiss.append(RULE)
        daemon.datapath.change(Realm.WAYS)
        await asyncio.sleep(0)
        daemon.reconciler.stop()
        await daemon.rest()
        assert daemon.datapath.calls == []

    run(test)
