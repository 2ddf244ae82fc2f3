"""What this host can do for tunnels, each thing tried and taken away again, for `xfrmpy doctor`.

A program of its own, for a network namespace that nobody else is in: what it makes there is in
nobody's way, and goes with it. It may load the kernel's modules, as the daemon would.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing

from xfrmpy.control.protocol import encode_reply
from xfrmpy.control.trial import TrialReply
from xfrmpy.datapath.interface import Capabilities, DatapathError
from xfrmpy.datapath.kernel.datapath import KernelDatapath
from xfrmpy.datapath.nftables import PREROUTING, RAW_PRIORITY, NfTables, Table
from xfrmpy.datapath.userspace.tun import Tun


def try_host() -> TrialReply:
    """In the network namespace of this process."""
    try:
        found: Capabilities | str = _probe_kernel()
    except DatapathError as error:
        found = str(error)
    tun, nf_tables = _reason(_make_device), _reason(_make_table)
    if isinstance(found, str):
        return TrialReply(
            kernel=found, missing={}, suites=[], modes=[], tun=tun, nf_tables=nf_tables
        )
    return TrialReply(
        kernel=found.missing.get("esp", ""),
        missing=found.missing,
        suites=sorted(found.suites),
        modes=sorted(found.modes),
        tun=tun,
        nf_tables=nf_tables,
    )


def _probe_kernel() -> Capabilities:
    with closing(KernelDatapath.open()) as kernel:
        return kernel.probe()


def _make_device() -> None:
    Tun.of_all_tunnels().close()


def _make_table() -> None:
    table = Table("xfrmpy-trial")
    chain = table.add_chain("trial", PREROUTING, RAW_PRIORITY)
    with closing(NfTables()) as nf_tables:
        nf_tables.send([table.add(), chain, *table.delete()])


def _reason(attempt: Callable[[], None]) -> str:
    try:
        attempt()
    except DatapathError as error:
        return str(error)
    return ""


def main() -> int:
    sys.stdout.buffer.write(encode_reply(try_host()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
