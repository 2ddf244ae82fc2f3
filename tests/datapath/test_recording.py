"""The datapath of the tests is itself one: it keeps the contract."""

from __future__ import annotations

import errno
import select
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from xfrmpy.datapath.interface import Datapath, DatapathError, Expired
from xfrmpy.datapath.recording import EVERYTHING, Call, RecordingDatapath
from xfrmpy.ipsec.algorithms import CIPHERS
from xfrmpy.ipsec.proposals import EspSuite
from xfrmpy.ipsec.sad import OUR_REQIDS, Direction, Lifetime, SadEntry, Usage
from xfrmpy.ipsec.selectors import Selector
from xfrmpy.ipsec.spd import PolicyDirection, SpdEntry, Template

SA = SadEntry(
    direction=Direction.IN,
    spi=0x1000,
    source=ip_address("198.51.100.2"),
    destination=ip_address("198.51.100.1"),
    reqid=OUR_REQIDS[0],
    suite=EspSuite(cipher=CIPHERS[0], integrity=None, esn=True),
    encryption_key=bytes(20),
)
POLICY = SpdEntry(
    direction=PolicyDirection.OUT,
    selector=Selector(source=ip_network("10.1.0.0/16"), destination=ip_network("10.2.0.0/16")),
    priority=1,
    template=Template(source=SA.destination, destination=SA.source, reqid=SA.reqid),
)


@pytest.fixture
def recording() -> Iterator[RecordingDatapath]:
    datapath = RecordingDatapath()
    yield datapath
    datapath.close()


def test_it_is_a_datapath_that_can_do_everything(recording: RecordingDatapath) -> None:
    datapath: Datapath = recording
    assert datapath.probe() == EVERYTHING
    assert {"aes128gcm16", "aes256-sha512", "chacha20poly1305"} <= EVERYTHING.suites


def test_calls_are_recorded_in_their_order(recording: RecordingDatapath) -> None:
    recording.add_sa(SA)
    recording.add_policy(POLICY)
    recording.remove_policy(POLICY)
    recording.remove_sa(SA.id)
    recording.remove_ours()
    assert recording.calls == [
        Call("add_sa", SA),
        Call("add_policy", POLICY),
        Call("remove_policy", POLICY),
        Call("remove_sa", SA.id),
        Call("remove_ours"),
    ]


def test_the_same_sa_twice_is_refused(recording: RecordingDatapath) -> None:
    recording.add_sa(SA)
    with pytest.raises(DatapathError) as refused:
        recording.add_sa(replace(SA, direction=Direction.OUT))
    assert refused.value.errno == errno.EEXIST
    assert recording.dump().sad == (SA,)


def test_an_update_replaces_only_what_is_there(recording: RecordingDatapath) -> None:
    with pytest.raises(DatapathError):
        recording.update_sa(SA)
    recording.add_sa(SA)
    recording.used[SA.id] = Usage(octets=5, packets=1)
    changed = replace(SA, lifetime=Lifetime(soft_bytes=1))
    recording.update_sa(changed)
    assert recording.dump().sad == (changed,)
    assert recording.usage(SA.id).octets == 5


def test_a_moved_sa_has_a_new_id_and_its_old_usage(recording: RecordingDatapath) -> None:
    moved = replace(SA, destination=ip_address("198.51.100.9"))
    with pytest.raises(DatapathError):
        recording.move_sa(SA.id, moved)
    recording.add_sa(SA)
    recording.used[SA.id] = Usage(octets=5, packets=1)
    recording.move_sa(SA.id, moved)
    assert recording.dump().sad == (moved,)
    assert recording.usage(moved.id).octets == 5
    recording.add_sa(SA)
    with pytest.raises(DatapathError):
        recording.move_sa(SA.id, moved)


def test_many_sas_are_asked_about_at_once(recording: RecordingDatapath) -> None:
    other = replace(SA, spi=SA.spi + 1)
    gone = replace(SA, spi=SA.spi + 2)
    recording.add_sa(SA)
    recording.add_sa(other)
    recording.used[SA.id] = Usage(octets=5, packets=1, seconds_idle=2.0)
    assert recording.seconds_idle([other.id, SA.id, gone.id]) == (None, 2.0, None)


def test_what_is_gone_may_be_removed_again(recording: RecordingDatapath) -> None:
    recording.remove_sa(SA.id)
    recording.remove_policy(POLICY)


def test_a_policy_replaces_that_of_its_selector(recording: RecordingDatapath) -> None:
    recording.add_policy(POLICY)
    recording.add_policy(replace(POLICY, priority=2))
    assert recording.dump().spd == (replace(POLICY, priority=2),)


def test_removing_ours_counts(recording: RecordingDatapath) -> None:
    recording.add_sa(SA)
    recording.add_policy(POLICY)
    assert recording.remove_ours() == 2
    assert recording.dump().sad == ()
    with pytest.raises(DatapathError):
        recording.usage(SA.id)


def test_the_nth_call_of_a_kind_can_be_refused(recording: RecordingDatapath) -> None:
    recording.refuse("add_sa", nth=2)
    recording.add_sa(SA)
    other = replace(SA, spi=0x2000)
    with pytest.raises(DatapathError, match="refused by the test"):
        recording.add_sa(other)
    recording.add_sa(other)
    assert len(recording.calls) == 3


@pytest.mark.parametrize("direction", Direction)
def test_a_refusal_can_be_for_one_direction(
    recording: RecordingDatapath, direction: Direction
) -> None:
    recording.refuse(f"add_sa {direction}", reason="no memory")
    for entry in (SA, replace(SA, spi=0x2000, direction=Direction.OUT)):
        if entry.direction is direction:
            with pytest.raises(DatapathError, match="no memory"):
                recording.add_sa(entry)
        else:
            recording.add_sa(entry)


def test_events_wake_the_reader_and_come_once(recording: RecordingDatapath) -> None:
    event = Expired(sa=SA.id, reqid=SA.reqid, hard=False)
    assert recording.read_events() == ()
    for _ in range(2):
        recording.happen(event)
    assert select.select([recording.fileno()], [], [], 0)[0]
    assert recording.read_events() == (event, event)
    assert recording.read_events() == ()
    assert not select.select([recording.fileno()], [], [], 0)[0]
