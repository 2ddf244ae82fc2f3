"""A worker's memory gets into large pages, with all that is in it."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from xfrmpy.datapath.userspace import pages

PROGRAM = """
from pathlib import Path
from xfrmpy.datapath.userspace.pages import use_large_pages

def large():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))

octets, before = bytearray(range(256)) * 2**16, large()
use_large_pages()
print(before, large(), octets == bytearray(range(256)) * 2**16)
"""
"""It has 16 MiB, of which at least the half is in whole pages of 2 MiB."""


@pytest.mark.skipif(
    not pages._SIZE.exists() or tuple(map(int, platform.release().split(".")[:2])) < (6, 1),
    reason="this kernel has no large pages to ask for",
)
def test_what_is_there_gets_into_large_pages_and_stays_what_it_is() -> None:
    command = (sys.executable, "-c", PROGRAM)
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after, is_same = done.stdout.split()
    assert int(after) - int(before) >= 8 * 1024, done.stdout
    assert is_same == "True"


def test_without_large_pages_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pages, "_SIZE", tmp_path / "none")
    pages.use_large_pages()
