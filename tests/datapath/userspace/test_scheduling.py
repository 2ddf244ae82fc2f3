"""Short time slices are asked for, and nothing else of how a process is scheduled changes."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

NICEST = 19

PROGRAM = """
import os, sys
from xfrmpy.datapath.userspace.scheduling import ask_for_short_slices
{before}
ask_for_short_slices()
print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0))
print(open("/proc/self/sched").read() if os.path.exists("/proc/self/sched") else "")
"""


def said(before: str) -> tuple[list[str], str]:
    """Nice value and policy afterwards, and what the kernel says of the process."""
    command = (sys.executable, "-c", PROGRAM.format(before=before))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, _, rest = done.stdout.partition("\n")
    return first.split(), rest


def slice_of(told: str) -> str:
    lines = [line for line in told.splitlines() if line.startswith("se.slice")]
    if not lines or tuple(map(int, platform.release().split(".")[:2])) < (6, 12):
        pytest.skip("this kernel does not say, or gives none")
    return lines[0].rpartition(":")[2].strip()


def test_the_slices_become_short_and_the_nice_value_stays() -> None:
    known, told = said("os.nice(5)")
    assert known == [str(min(int(said("")[0][0]) + 5, NICEST)), "0"]
    assert slice_of(told) == "100000"


def test_a_policy_that_somebody_has_chosen_stays() -> None:
    known, told = said("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))")
    assert known[1] == "3"
    assert slice_of(told) != "100000"
