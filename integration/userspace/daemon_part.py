"""A daemon's part, for a process of its own that a test may kill.

`python -m integration.userspace.daemon_part DIRECTORY FILE` opens a datapath, puts the entries of
the file in force, says so, and waits.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from integration.userspace.place import daemon_sockets, open_here
from xfrmpy.ipsec.plain import from_plain, to_plain
from xfrmpy.ipsec.sad import SadEntry
from xfrmpy.ipsec.spd import SpdEntry

IN_FORCE = "in force"


def command_of(directory: Path, file: Path, entries: Sequence[SadEntry | SpdEntry]) -> list[str]:
    """Write the entries to the file; returns the command that puts them in force."""
    plain = {
        "sad": [to_plain(entry) for entry in entries if isinstance(entry, SadEntry)],
        "spd": [to_plain(entry) for entry in entries if isinstance(entry, SpdEntry)],
    }
    file.write_text(json.dumps(plain))
    return [sys.executable, "-m", __name__, str(directory), str(file)]


def main(directory: Path, file: Path) -> None:
    with daemon_sockets(), closing(open_here(directory)) as datapath:
        plain = json.loads(file.read_text())
        for sa in plain["sad"]:
            datapath.add_sa(from_plain(SadEntry, sa))
        for policy in plain["spd"]:
            datapath.add_policy(from_plain(SpdEntry, policy))
        print(IN_FORCE, flush=True)
        signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
