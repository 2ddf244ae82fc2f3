"""Counters of a child go through all its SAs and never back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xfrmpy.daemon.totals import Carrier, Totals
from xfrmpy.datapath.recording import RecordingDatapath
from xfrmpy.ike.outputs import AddSa, MoveSa, RemoveSa
from xfrmpy.ike.views import ChildSaView
from xfrmpy.ipsec.algorithms import CIPHERS
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import OUR_REQIDS, Direction, SadEntry, Usage

CIPHER = next(cipher for cipher in CIPHERS if cipher.name == "aes128gcm16")
SUITE = EspSuite(cipher=CIPHER, integrity=None, esn=False)
IN = Carrier(tunnel="a", child="lan", direction=Direction.IN)


def entry(spi: int) -> SadEntry:
    return SadEntry(
        direction=Direction.IN,
        spi=spi,
        source=ip_address("192.0.2.1"),
        destination=ip_address("192.0.2.2"),
        reqid=OUR_REQIDS[1],
        suite=SUITE,
        encryption_key=b"\xaa" * CIPHER.keymat,
    )


class Engine:
    """Notes, then does, as the daemon's does."""

    def __init__(self) -> None:
        self.now = 100.0
        self.totals = Totals(lambda: self.now)
        self.datapath = RecordingDatapath()

    def add(self, spi: int) -> None:
        added = AddSa(owner=spi, tunnel="a", child="lan", entry=entry(spi))
        self.totals.note(added, self.datapath)
        self.datapath.add_sa(added.entry)

    def carry(self, spi: int, octets: int) -> None:
        before = self.datapath.used.get(entry(spi).id, Usage(octets=0, packets=0))
        after = replace(before, octets=before.octets + octets, packets=before.packets + 1)
        self.datapath.used[entry(spi).id] = after

    def remove(self, spi: int) -> None:
        gone = RemoveSa(owner=spi, tunnel="a", child="lan", sa=entry(spi).id)
        self.totals.note(gone, self.datapath)
        self.datapath.remove_sa(gone.sa)

    def octets(self) -> int:
        return self.totals.carried()[IN].octets


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.datapath.close()


def test_what_a_replaced_sa_had_carried_stays(engine: Engine) -> None:
    engine.add(0x1001)
    engine.carry(0x1001, 1000)
    engine.add(0x1002)
    engine.carry(0x1002, 10)
    assert engine.octets() == 1010
    engine.carry(0x1001, 100)  # still on its way when the old SA is removed
    engine.remove(0x1001)
    assert engine.octets() == 1110
    engine.remove(0x1002)
    assert engine.octets() == 1110
    assert engine.totals.carried()[IN].packets == 3


def test_an_sa_that_moves_is_counted_once(engine: Engine) -> None:
    engine.add(0x1001)
    engine.carry(0x1001, 1000)
    moved = replace(entry(0x1001), destination=ip_address("192.0.2.3"))
    move = MoveSa(owner=0x1001, tunnel="a", child="lan", sa=entry(0x1001).id, entry=moved)
    engine.totals.note(move, engine.datapath)
    engine.datapath.move_sa(move.sa, move.entry)
    assert engine.octets() == 1000


def test_an_sa_that_ended_by_itself_keeps_what_was_seen_of_it(engine: Engine) -> None:
    engine.add(0x1001)
    engine.carry(0x1001, 1000)
    assert engine.octets() == 1000
    engine.datapath.remove_sa(entry(0x1001).id)
    assert engine.octets() == engine.octets() == 1000


def test_an_sa_that_was_refused_carried_nothing(engine: Engine) -> None:
    refused = AddSa(owner=1, tunnel="a", child="lan", entry=entry(0x1001))
    engine.totals.note(refused, engine.datapath)
    assert engine.octets() == 0
    assert engine.totals._open == {}


def test_what_was_in_force_before_the_daemon_is_counted(engine: Engine) -> None:
    engine.datapath.add_sa(entry(0x1001))
    engine.carry(0x1001, 1000)
    child = ChildSaView(
        child="lan",
        local=(),
        remote=(),
        entries=(entry(0x1001),),
        established_at=40.0,
        rekey_at=None,
    )
    for _ in range(2):
        engine.totals.adopt("a", child, engine.datapath)
        assert engine.octets() == 1000
    engine.add(0x1002)
    engine.remove(0x1001)
    engine.carry(0x1002, 10)
    assert engine.octets() == 1010
    assert engine.totals.seconds_carrying(IN) == 60.0


def test_the_age_of_a_child_goes_through_rekeyings_and_ends_with_its_last_sa(
    engine: Engine,
) -> None:
    engine.add(0x1001)
    engine.now += 50
    engine.add(0x1002)
    engine.remove(0x1001)
    engine.now += 50
    assert engine.totals.seconds_carrying(IN) == 100
    engine.remove(0x1002)
    assert engine.totals.seconds_carrying(IN) == 0
    engine.now += 50
    engine.add(0x1003)
    assert engine.totals.seconds_carrying(IN) == 0


def test_the_total_has_what_an_sa_carries_that_was_replaced_and_still_receives(
    engine: Engine,
) -> None:
    engine.add(0x1001)
    engine.add(0x1002)
    engine.carry(0x1001, 1000)
    engine.carry(0x1002, 10)
    assert engine.totals.of(IN).octets == 1010
    assert engine.totals.seen(entry(0x1002).id).octets == 10


@given(st.lists(st.tuples(st.sampled_from(["carry", "rekey", "read"]), st.integers(1, 99))))
def test_no_total_ever_goes_back(steps: list[tuple[str, int]]) -> None:
    engine = Engine()
    spi, carried, last = 0x1000, 0, 0
    engine.add(spi)
    for step, number in steps:
        if step == "carry":
            engine.carry(spi, number)
            carried += number
        elif step == "rekey":
            spi += 1
            engine.add(spi)
            engine.remove(spi - 1)
        assert last <= engine.octets() == carried
        last = carried
    engine.datapath.close()
