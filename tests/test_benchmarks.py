"""What a benchmark of throughput tells of its figures, which themselves are no test's business."""

from __future__ import annotations

from benchmarks.throughput import TUNNELS, report, report_of_pings

OURS = {"tcp": 1500.0, TUNNELS: 1600.0}


def test_a_rival_without_a_test_has_a_blank_there_and_keeps_its_others() -> None:
    results = {
        "xfrmpy": OURS,
        "strongswan": {"tcp": 500.0, TUNNELS: 400.0},
        "third": {"tcp": 750.0},
    }
    lines = report({"cpu": "two"}, {"aes128gcm16": results}).splitlines()
    (in_all,) = (line for line in lines if line.startswith("tcp, Mbit/s"))
    (in_two,) = (line for line in lines if line.startswith(TUNNELS))
    assert in_all.split()[2:] == ["1500", "500", "3.00", "750", "2.00"]
    assert in_two.split()[-3:] == ["1600", "400", "4.00"]


def test_turns_of_pings_are_told_by_their_medians() -> None:
    turns = {
        "xfrmpy": [{"median": 600.0}, {"median": 900.0}, {"median": 660.0}],
        "strongswan": [{"median": 600.0}] * 3,
    }
    row = report_of_pings("aes128gcm16", turns).splitlines()[1]
    assert row.split() == ["median", "660", "600", "1.10"]
