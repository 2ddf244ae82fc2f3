"""A process's memory gets into large pages, with all that is in it."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from xfrmpy.datapath.userspace import pages

PROGRAM = """
from pathlib import Path
from tests.datapath.userspace.test_pages import in_large_pages
from xfrmpy.datapath.userspace.pages import use_large_pages

octets, before = bytearray(range(256)) * 2**16, in_large_pages("self")
use_large_pages()
print(before, in_large_pages("self"), octets == bytearray(range(256)) * 2**16)
"""
"""It has 16 MiB, of which at least the half is in whole pages of 2 MiB."""


def in_large_pages(pid: int | str) -> int:
    """KiB of a process's memory."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("AnonHugePages")))


def are_given() -> bool:
    """Whether the kernel has large pages for who asks (Linux 6.1)."""
    with mmap.mmap(-1, 8 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as room:
        room.write(bytes(len(room)))
        try:
            room.madvise(pages.COLLAPSE)
        except OSError:
            return False
    return True


needs_large_pages = pytest.mark.skipif(not are_given(), reason="this kernel gives no large pages")


@needs_large_pages
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
