"""What another worker knows of the SAs of one that was killed."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from tests.datapath.userspace.test_forwarding import (
    packet,
    policies,
    received,
    refused,
    sa,
    source_of,
)
from xfrmpy.datapath.userspace.forwarding import Forwarder
from xfrmpy.datapath.userspace.ledger import Ledger, fingerprint

SEQUENCE = slice(4, 8)


def gateway(end: int, ledger: Ledger) -> Forwarder:
    made = Forwarder(secrets.token_bytes, ledger)
    made.add_sa(sa(end), 0.0)
    made.add_sa(received(sa(1 - end)), 0.0)
    for entry in policies(end):
        made.add_policy(entry)
    return made


def test_another_goes_on_behind_the_last_number(tmp_path: Path) -> None:
    first = gateway(0, Ledger(tmp_path / "ledger"))
    for _ in range(5):
        sealed, _ = first.protect(packet(), 1.0)
    before = first.sad.usage(sa(0).id, 2.0)
    second = gateway(0, Ledger(tmp_path / "ledger"))
    assert second.sad.usage(sa(0).id, 2.0) == before
    assert int.from_bytes(sealed[SEQUENCE], "big") == 5
    assert int.from_bytes(second.protect(packet(), 1.0)[0][SEQUENCE], "big") == 6


def test_another_takes_nothing_that_may_have_been_taken(tmp_path: Path) -> None:
    peer = gateway(0, Ledger())
    sent = [peer.protect(packet(), 1.0)[0] for _ in range(4)]
    first = gateway(1, Ledger(tmp_path / "ledger"))
    for each in (sent[0], sent[2]):
        first.unprotect(each, source_of(0), 1.0)
    second = gateway(1, Ledger(tmp_path / "ledger"))
    for each in sent[:3]:  # The second of them was not, but nobody knows.
        with refused("replayed"):
            second.unprotect(each, source_of(0), 1.0)
    assert second.unprotect(sent[3], source_of(0), 1.0)[0] == packet()


def test_lifetimes_go_on_from_when_an_sa_was_added_first(tmp_path: Path) -> None:
    gateway(0, Ledger(tmp_path / "ledger"))
    second = Forwarder(secrets.token_bytes, Ledger(tmp_path / "ledger"))
    second.add_sa(sa(0), 50.0)
    assert second.sad.seconds_old(sa(0).id, 60.0) == 60.0


def test_only_an_sa_with_the_same_keys_goes_on(tmp_path: Path) -> None:
    first = gateway(0, Ledger(tmp_path / "ledger"))
    first.protect(packet(), 1.0)
    other = replace(sa(0), encryption_key=bytes(b ^ 1 for b in sa(0).encryption_key))
    second = Forwarder(secrets.token_bytes, Ledger(tmp_path / "ledger"))
    assert [second.sad.is_resumable(each) for each in (sa(0), other)] == [True, False]
    second.add_sa(other, 0.0)
    assert second.sad.usage(other.id, 0.0).packets == 0


def test_what_was_removed_is_forgotten(tmp_path: Path) -> None:
    first = gateway(0, Ledger(tmp_path / "ledger"))
    first.sad.remove(sa(0).id)
    second = Ledger(tmp_path / "ledger")
    assert fingerprint(sa(0)) not in second
    assert fingerprint(received(sa(1))) in second
    first.remove_all()
    assert fingerprint(received(sa(1))) not in Ledger(tmp_path / "ledger")


def test_there_is_room_for_any_number_of_sas(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    entries = [replace(sa(0), spi=0x80000000 + number) for number in range(2500)]
    for number, entry in enumerate(entries):
        ledger.line_of(entry, 0.0).note(number, 0, 0, 0.0)
    again = Ledger(tmp_path / "ledger")
    assert [again.line_of(e, 9.0).read()[0].sequence for e in entries] == list(range(2500))


def test_a_file_that_is_none_of_ours_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_bytes(b"no ledger")
    assert fingerprint(sa(0)) not in Ledger(tmp_path / "ledger")


_COUNTS = """
import sys
from pathlib import Path
from tests.datapath.userspace.test_forwarding import sa
from xfrmpy.datapath.userspace.ledger import Ledger

line = Ledger(Path(sys.argv[1])).line_of(sa(0), 0.0)
number = 0
while True:
    number += 1
    line.note(number, number, number, 0.0)
    if number % 1000 == 0:
        print(number, flush=True)
"""


def test_what_was_noted_outlives_a_kill(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", _COUNTS, str(tmp_path / "ledger")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(5)]
        os.kill(process.pid, signal.SIGKILL)
    progress, _ = Ledger(tmp_path / "ledger").line_of(sa(0), 0.0).read()
    assert progress.sequence >= told[-1]
