"""SAs and policies go in and come out; nothing moves."""

from __future__ import annotations

import errno
import select
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import ip_address

import pytest

from integration.contract.entries import (
    ENDS,
    OUTER,
    SUITES,
    sad_entry,
    skip_unless_able,
    spd_entry,
)
from integration.contract.sites import OpenDatapath
from xfrmpy.datapath.interface import Datapath, DatapathError, NotAdded
from xfrmpy.ipsec.drift import Dump
from xfrmpy.ipsec.sad import Direction, DontFragment, Lifetime, Mode, OuterHeader, UdpEncapsulation
from xfrmpy.ipsec.selectors import MaskedPort
from xfrmpy.ipsec.spd import Action, PolicyDirection

_ENDS = ("source", "destination")


class DatapathContract:
    """SAs and policies go in and come out; nothing moves."""

    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls, gateway: object, open_datapath: OpenDatapath) -> Iterator[Datapath]:
        del gateway
        with closing(open_datapath()) as datapath:
            yield datapath

    @pytest.fixture
    def datapath(self, opened: Datapath) -> Iterator[Datapath]:
        opened.remove_ours()
        yield opened
        opened.remove_ours()

    @pytest.mark.parametrize("name", SUITES)
    def test_an_sa_is_dumped_as_it_went_in(
        self, datapath: Datapath, spi_bits: int, name: str
    ) -> None:
        skip_unless_able(datapath.probe(), SUITES[name])
        entry = sad_entry(spi_bits, suite=SUITES[name])
        datapath.add_sa(entry)
        assert datapath.dump().sad == (entry,)

    @pytest.mark.parametrize(
        "changes",
        [
            {"replay_window": 32},
            {"replay_window": 1024},
            {"replay_window": 4096},
            {"tfc": 1280},
            {"outer": OuterHeader(copies_dscp=False)},
            {"outer": OuterHeader(restores_dscp=True)},
            {"outer": OuterHeader(copies_ecn=False)},
            {"outer": OuterHeader(dont_fragment=DontFragment.CLEAR)},
            {"mode": Mode.TRANSPORT},
            {"mode": Mode.BEET, "inner": ENDS[4]},
            {"mode": Mode.BEET, "inner": ENDS[6], "encapsulation": UdpEncapsulation(4500, 4500)},
            {"cpi": 0x1234},
            {"cpi": 0x1234, "mode": Mode.TRANSPORT},
            {"cpi": 0x1234, "encapsulation": UdpEncapsulation(4500, 4500)},
            {"cpi": 0x1234, "outer": OuterHeader(copies_ecn=False, copies_dscp=False)},
            {"cpi": 0x1234, "lifetime": Lifetime(soft_seconds=3000, hard_seconds=3600)},
            {"encapsulation": UdpEncapsulation(40_000, 4500)},
            {"source": OUTER[6][1], "destination": OUTER[6][0]},
            {"lifetime": Lifetime(soft_seconds=3000, hard_seconds=3600)},
            {"lifetime": Lifetime(soft_bytes=1 << 40, hard_bytes=1 << 41)},
            {"lifetime": Lifetime(soft_packets=1 << 33, hard_packets=1 << 34)},
        ],
        ids=str,
    )
    def test_an_sa_keeps_every_field(
        self, datapath: Datapath, spi_bits: int, changes: dict[str, object]
    ) -> None:
        inbound = sad_entry(spi_bits, **changes)
        if inbound.mode not in datapath.probe().modes:
            pytest.skip(datapath.probe().missing[f"{inbound.mode} mode"])
        outbound = replace(
            inbound,
            direction=Direction.OUT,
            spi=0x7654321,
            source=inbound.destination,
            destination=inbound.source,
        )
        for entry in (inbound, outbound):
            datapath.add_sa(entry)
        assert set(datapath.dump().sad) == {inbound, outbound}

    def test_the_same_sa_twice_is_refused(self, datapath: Datapath, spi_bits: int) -> None:
        datapath.add_sa(sad_entry(spi_bits))
        with pytest.raises(DatapathError) as refused:
            datapath.add_sa(sad_entry(spi_bits))
        assert refused.value.errno == errno.EEXIST

    def test_an_sa_that_compresses_is_one_thing(self, datapath: Datapath, spi_bits: int) -> None:
        one, other, third = (
            sad_entry(spi_bits, cpi=0x1234 + number, spi=0x1234560 + number | spi_bits)
            for number in range(3)
        )
        datapath.add_sa(one)
        for _ in range(2):
            with pytest.raises(NotAdded) as refused:
                datapath.add([other, one, third])
            assert (refused.value.done, refused.value.errno) == (1, errno.EEXIST)
            assert set(datapath.dump().sad) == {one, other}
            datapath.remove_sa(other.id)
            assert datapath.dump().sad == (one,)
        datapath.add([other, third, spd_entry(compresses=True)])
        assert datapath.remove_ours() == 4

    def test_several_entries_go_in_at_once(self, datapath: Datapath, spi_bits: int) -> None:
        sas = (sad_entry(spi_bits), sad_entry(spi_bits, spi=0x1234561 | spi_bits))
        policies = tuple(spd_entry(direction) for direction in PolicyDirection)
        datapath.add([*sas, *policies])
        assert set(datapath.dump().sad) == set(sas)
        assert set(datapath.dump().spd) == set(policies)

    def test_what_comes_behind_a_refused_entry_does_not_go_in(
        self, datapath: Datapath, spi_bits: int
    ) -> None:
        first, second = sad_entry(spi_bits), sad_entry(spi_bits, spi=0x1234561 | spi_bits)
        with pytest.raises(NotAdded) as refused:
            datapath.add([first, first, second, spd_entry()])
        assert (refused.value.done, refused.value.errno) == (1, errno.EEXIST)
        assert datapath.dump() == Dump(sad=(first,), spd=())

    def test_where_there_is_no_way_to_the_peer_no_policy_goes_in(
        self, datapath: Datapath, spi_bits: int
    ) -> None:
        """Not what comes behind it either, though a worker had both before it was found out."""
        entry = sad_entry(spi_bits)
        nowhere = ip_address("2001:db8:dead::1")
        lost = sad_entry(
            spi_bits,
            direction=Direction.OUT,
            spi=0x1234561,
            source=OUTER[6][0],
            destination=nowhere,
        )
        template = spd_entry().template
        assert template is not None
        template = replace(template, source=OUTER[6][0], destination=nowhere)
        policy = replace(spd_entry(), template=template)
        with pytest.raises(NotAdded) as refused:
            datapath.add([entry, lost, policy, spd_entry(PolicyDirection.IN)])
        left = datapath.dump()
        assert set(left.sad) == set((entry, lost)[: refused.value.done])
        assert left.spd == ()

    def test_a_removed_sa_is_gone_and_may_be_removed_again(
        self, datapath: Datapath, spi_bits: int
    ) -> None:
        entry = sad_entry(spi_bits)
        datapath.add_sa(entry)
        for _ in range(2):
            datapath.remove_sa(entry.id)
        assert datapath.dump().sad == ()

    @pytest.mark.parametrize(
        "changes",
        [
            {"lifetime": Lifetime(soft_seconds=100, hard_seconds=200)},
            {"encapsulation": UdpEncapsulation(1025, 4500)},
            {"source": ip_address("198.51.100.77")},
            {"encapsulation": None},
        ],
        ids=str,
    )
    def test_an_update_changes_what_it_may(
        self, datapath: Datapath, spi_bits: int, changes: dict[str, object]
    ) -> None:
        old = sad_entry(spi_bits, encapsulation=UdpEncapsulation(4500, 4500))
        datapath.add_sa(old)
        new = replace(old, **changes)  # type: ignore[arg-type]
        datapath.update_sa(new)
        assert datapath.dump().sad == (new,)

    @pytest.mark.parametrize("direction", Direction)
    def test_a_moved_sa_is_known_by_its_new_id(
        self, datapath: Datapath, spi_bits: int, direction: Direction
    ) -> None:
        order = 1 if direction is Direction.OUT else -1
        before, after = (dict(zip(_ENDS, OUTER[v][::order], strict=True)) for v in (4, 6))
        old = sad_entry(
            spi_bits, direction=direction, encapsulation=UdpEncapsulation(4500, 4500), **before
        )
        datapath.add_sa(old)
        new = replace(old, encapsulation=UdpEncapsulation(4500, 1025), **after)  # type: ignore[arg-type]
        datapath.move_sa(old.id, new)
        assert datapath.dump().sad == (new,)
        with pytest.raises(DatapathError):
            datapath.usage(old.id)
        datapath.remove_sa(new.id)
        assert datapath.dump().sad == ()

    def test_a_move_of_no_sa_is_refused(self, datapath: Datapath, spi_bits: int) -> None:
        entry = sad_entry(spi_bits)
        with pytest.raises(DatapathError) as refused:
            datapath.move_sa(entry.id, replace(entry, source=ip_address("198.51.100.77")))
        assert refused.value.errno == errno.ESRCH
        assert datapath.dump().sad == ()

    def test_an_update_of_no_sa_is_refused(self, datapath: Datapath, spi_bits: int) -> None:
        with pytest.raises(DatapathError) as refused:
            datapath.update_sa(sad_entry(spi_bits))
        assert refused.value.errno == errno.ESRCH
        assert datapath.dump().sad == ()

    def test_an_unused_sa_has_carried_nothing(self, datapath: Datapath, spi_bits: int) -> None:
        entry = sad_entry(spi_bits)
        datapath.add_sa(entry)
        usage = datapath.usage(entry.id)
        assert (usage.octets, usage.packets, usage.seconds_idle) == (0, 0, None)

    def test_the_usage_of_no_sa_is_refused(self, datapath: Datapath, spi_bits: int) -> None:
        with pytest.raises(DatapathError):
            datapath.usage(sad_entry(spi_bits).id)

    @pytest.mark.parametrize("compresses", [False, True])
    @pytest.mark.parametrize("mode", Mode)
    @pytest.mark.parametrize("version", [4, 6])
    @pytest.mark.parametrize("direction", PolicyDirection)
    def test_a_policy_is_dumped_as_it_went_in(
        self,
        datapath: Datapath,
        direction: PolicyDirection,
        version: int,
        mode: Mode,
        compresses: bool,
    ) -> None:
        if compresses and mode in (Mode.BEET, Mode.IPTFS):
            pytest.skip("a kernel does not compress in BEET mode, nor with IP-TFS")
        if mode is Mode.IPTFS and mode not in datapath.probe().modes:
            pytest.skip("this one has no IP-TFS")
        if mode is Mode.TRANSPORT and (version == 6 or direction is PolicyDirection.FORWARD):
            pytest.skip("transport mode ends on this host and changes no family")
        entry = spd_entry(direction, version=version, mode=mode, compresses=compresses)
        datapath.add_policy(entry)
        assert datapath.dump().spd == (entry,)

    @pytest.mark.parametrize("action", [Action.BYPASS, Action.DISCARD])
    @pytest.mark.parametrize("direction", PolicyDirection)
    def test_a_policy_without_an_sa_is_known_as_ours(
        self,
        datapath: Datapath,
        open_datapath: OpenDatapath,
        direction: PolicyDirection,
        action: Action,
    ) -> None:
        entry = spd_entry(direction, action=action)
        datapath.add_policy(entry)
        later = open_datapath()
        try:
            assert later.dump().spd == (entry,)
        finally:
            later.close()

    def test_masked_ports_and_a_protocol_survive(self, datapath: Datapath) -> None:
        plain = spd_entry()
        selector = replace(
            plain.selector,
            protocol=6,
            source_port=MaskedPort(0x1F00, 0xFF00),
            destination_port=MaskedPort(443, 0xFFFF),
        )
        entry = replace(plain, selector=selector)
        datapath.add_policy(entry)
        assert datapath.dump().spd == (entry,)

    @pytest.mark.parametrize("action", Action)
    def test_a_policy_replaces_ours_of_the_same_selector(
        self, datapath: Datapath, action: Action
    ) -> None:
        datapath.add_policy(spd_entry())
        entry = replace(spd_entry(action=action), priority=77)
        datapath.add_policy(entry)
        assert datapath.dump().spd == (entry,)
        datapath.add_policy(spd_entry())
        assert datapath.dump().spd == (spd_entry(),)

    def test_a_removed_policy_is_gone_and_may_be_removed_again(self, datapath: Datapath) -> None:
        datapath.add_policy(spd_entry())
        for _ in range(2):
            datapath.remove_policy(spd_entry())
        assert datapath.dump().spd == ()

    def test_removing_ours_leaves_nothing_and_counts(
        self, datapath: Datapath, spi_bits: int
    ) -> None:
        datapath.add_sa(sad_entry(spi_bits))
        for direction in PolicyDirection:
            datapath.add_policy(spd_entry(direction))
        assert datapath.remove_ours() == 4
        dump = datapath.dump()
        assert (dump.sad, dump.spd) == ((), ())
        assert datapath.remove_ours() == 0

    def test_a_later_process_finds_all_of_it(
        self, datapath: Datapath, open_datapath: OpenDatapath, spi_bits: int
    ) -> None:
        datapath.add_sa(sad_entry(spi_bits))
        datapath.add_policy(spd_entry())
        later = open_datapath()
        try:
            assert later.dump() == datapath.dump()
            assert later.remove_ours() == 2
        finally:
            later.close()

    def test_probing_leaves_nothing_behind(self, datapath: Datapath) -> None:
        capabilities = datapath.probe()
        assert capabilities.suites
        assert Mode.TUNNEL in capabilities.modes
        dump = datapath.dump()
        assert (dump.sad, dump.spd) == ((), ())

    def test_reading_events_does_not_wait_for_any(self, datapath: Datapath) -> None:
        assert datapath.read_events() == ()
        assert not select.select([datapath.fileno()], [], [], 0)[0]
