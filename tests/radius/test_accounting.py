"""Records of sessions: what is in them, and that they arrive at last or are counted as lost."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from tests.radius.replies import SECRET, reply
from tests.radius.test_client import middle
from xfrmpy.radius import accounting
from xfrmpy.radius.accounting import (
    AGAIN_SECONDS,
    MAX_AGE_SECONDS,
    Accountant,
    Cause,
    Session,
    Traffic,
    interim_record,
    start_record,
    stop_record,
)
from xfrmpy.radius.attributes import Attribute, Code, Kind, split_untrusted, values_of
from xfrmpy.radius.client import Answered, RadiusClient, Send, Server, Timing, Unanswered

SERVER = Server(address=("192.0.2.1", 1813), secret=SECRET)
ALICE = Session(
    id="1-2", user=b"alice", classes=(b"staff", b"\x01"), address=IPv4Address("10.9.0.7")
)
START = start_record(ALICE, 1000)
INTERIM = interim_record(ALICE, 1060, 60, Traffic())
STOP = stop_record(ALICE, 1100, 100, Traffic(octets_in=2**32 + 5), Cause.IDLE_TIMEOUT)


class Desk:
    """An accountant and its client, as whoever drives both has them."""

    def __init__(self) -> None:
        self.client = RadiusClient([SERVER], Timing(wait_seconds=1.0, tries=1), middle())
        self.accountant = Accountant(self.client)

        self.sent: list[Send] = []

    def silence(self, now: float) -> None:
        self.client.handle_timeout(now)
        self._settle(now)
        self.sent.clear()

    def again(self, now: float) -> None:
        self.accountant.handle_timeout(now)
        self._settle(now)

    def take_all(self, now: float) -> list[int]:
        """The server takes what is sent; the Acct-Status-Types of it."""
        self._settle(now)
        taken, self.sent = self.sent, []
        for each in taken:
            octets = reply(each.octets, Code.ACCOUNTING_RESPONSE)
            self.client.receive_datagram(0, SERVER.address, octets, now)
        self._settle(now)
        return [dict(split_untrusted(each.octets[20:]))[40][3] for each in taken]

    def _settle(self, now: float) -> None:
        while (output := self.client.next_output()) is not None:
            match output:
                case Send():
                    self.sent.append(output)
                case Answered():
                    self.accountant.handle_answer(output.ticket, now)
                case Unanswered():
                    self.accountant.handle_silence(output.ticket, now)


def test_a_record_has_the_session_the_user_and_the_classes_as_they_came() -> None:
    for record in (START, INTERIM, STOP):
        assert values_of(record, Kind.ACCT_SESSION_ID) == (b"1-2",)
        assert values_of(record, Kind.USER_NAME) == (b"alice",)
        assert values_of(record, Kind.CLASS) == (b"staff", b"\x01")
        assert values_of(record, Kind.FRAMED_IP_ADDRESS) == (bytes([10, 9, 0, 7]),)


def test_octets_go_on_in_gigawords() -> None:
    assert values_of(STOP, Kind.ACCT_INPUT_OCTETS) == ((5).to_bytes(4, "big"),)
    assert values_of(STOP, Kind.ACCT_INPUT_GIGAWORDS) == ((1).to_bytes(4, "big"),)
    assert values_of(STOP, Kind.ACCT_TERMINATE_CAUSE) == ((4).to_bytes(4, "big"),)
    assert values_of(STOP, Kind.ACCT_SESSION_TIME) == ((100).to_bytes(4, "big"),)


def test_a_record_that_nobody_took_is_told_again_and_says_how_late_it_is() -> None:
    desk = Desk()
    desk.accountant.tell(STOP, 0.0)
    desk.silence(2.0)
    assert desk.accountant.next_timeout() == 2.0 + AGAIN_SECONDS
    desk.again(1.9 + AGAIN_SECONDS)
    assert desk.sent == []
    desk.again(2.0 + AGAIN_SECONDS)
    (late,) = desk.sent
    assert dict(split_untrusted(late.octets[20:]))[41] == (32).to_bytes(4, "big")
    assert desk.take_all(33.0) == [2]
    assert desk.accountant.is_idle
    assert desk.accountant.lost == 0


def test_an_interim_record_is_told_once_and_an_old_one_no_more() -> None:
    desk = Desk()
    desk.accountant.tell(INTERIM, 0.0)
    desk.silence(2.0)
    assert desk.accountant.is_idle
    assert desk.accountant.lost == 1
    desk.accountant.tell(STOP, 0.0)
    desk.silence(MAX_AGE_SECONDS + 1)
    assert desk.accountant.is_idle
    assert desk.accountant.lost == 2


def of_session(number: int) -> Session:
    return replace(ALICE, id=str(number))


def test_the_records_of_a_session_are_told_one_after_the_other() -> None:
    """While the first server is tried in vain, the end of a session may overtake its begin."""
    desk = Desk()
    for record in (START, INTERIM, STOP):
        desk.accountant.tell(record, 0.0)
    desk.accountant.tell(start_record(of_session(2), 0), 0.0)
    assert desk.take_all(0.1) == [1, 1]
    assert desk.take_all(0.1) == [3]
    assert not desk.accountant.is_idle
    assert desk.take_all(0.1) == [2]
    assert desk.accountant.is_idle


def test_what_is_behind_a_record_that_nobody_took_waits_for_it() -> None:
    desk = Desk()
    desk.accountant.tell(START, 0.0)
    desk.accountant.tell(STOP, 0.0)
    desk.silence(2.0)
    assert desk.take_all(2.0) == []
    desk.again(2.0 + AGAIN_SECONDS)
    assert desk.take_all(33.0) == [1]
    assert desk.take_all(33.0) == [2]
    assert desk.accountant.is_idle


def test_what_is_too_much_goes_interim_records_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MAX_RECORDS", 3)
    desk = Desk()
    interim = interim_record(of_session(2), 0, 60, Traffic())
    for record in (START, interim, STOP, start_record(of_session(3), 0)):
        desk.accountant.tell(record, 0.0)
    assert desk.accountant.lost == 1
    assert desk.take_all(0.1) == [1, 3, 1]  # the interim one had left already
    assert desk.take_all(0.1) == [2]
    assert desk.accountant.is_idle


def test_of_the_rest_the_oldest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "MAX_RECORDS", 2)
    desk = Desk()
    for number in range(4):
        desk.accountant.tell(
            stop_record(of_session(number), 0, 1, Traffic(), Cause.USER_REQUEST), 0.0
        )
    assert desk.accountant.lost == 2
    desk.take_all(0.1)
    assert desk.accountant.is_idle


def test_a_name_that_is_too_long_is_cut_and_told() -> None:
    record = start_record(Session(id="1", user=b"a" * 300), 0)
    assert values_of(record, Kind.USER_NAME) == (b"a" * 253,)
    assert Attribute.number(Kind.ACCT_STATUS_TYPE, 1) in record
