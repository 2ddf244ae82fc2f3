"""`docs/datapaths.md`, drawn from the probes of both datapaths.

`python -m integration.datapaths_page`, in the virtual machine, prints it: the page is about that
machine's kernel. `test_datapaths_page.py` compares.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from integration.conftest import MODULES
from integration.contract.sites import gateway_namespace
from integration.userspace.place import daemon_sockets, end_workers, open_here
from xfrmpy.datapath.interface import Capabilities
from xfrmpy.datapath.kernel.datapath import KernelDatapath
from xfrmpy.datapath.kernel.features import FEATURES, OTHERS
from xfrmpy.ipsec.algorithms import CIPHERS, INTEGRITY
from xfrmpy.ipsec.sad import DontFragment, Mode
from xfrmpy.registry import ProtocolId

PAGE = Path(__file__).parent.parent / "docs" / "datapaths.md"

HEAD = """# What the datapaths can do

Each is probed when the daemon starts: a throw-away SA is put in force, read back and removed. This
is Debian 12's kernel (Linux 6.1) and user space; your host may differ, and its daemon knows. What
the chosen datapath cannot do is left out of the proposals. A tunnel that cannot be had without it
is refused when the daemon starts, and by `plan` and `apply`, with XF3001 and the sentence that
stands here. `datapath: auto` takes the kernel if it can do all that the tunnel needs, and else user
space.
"""

FEATURES_HEAD = """
## What only some kernels have

Probed at each start by the same means. The last column says by which key of a policy it is asked
for, where that is not plain, or why xfrmpy makes no use of it.
"""

USES: dict[str, str] = {
    "sequence numbers that wrap": "ESN is there for that (RFC 4303 section 3.3.3)",
    "mapping changes told rarely": "changes of a peer's mapping are rare, and wanted at once",
    "SAs of one direction": "of one CPU; else an SA is told by its output mark, as on every kernel",
    "NAT keepalives by the kernel": "the daemon sends them, on both datapaths alike",
    "SAs of one CPU (RFC 9611)": "`per_resource`",
    "IP-TFS (RFC 9347)": (
        "`mode: iptfs`, with the kernel's own settings; no kernel of Debian's is built with it, so "
        "packets of it have not been seen"
    ),
    "IP-TFS, received": "`mode: iptfs`",
    "events of replay and lifetime (NEWAE)": (
        "what it would be for is there: counters are read when they are asked for, the kernel "
        "keeps the state of its SAs while a daemon restarts, and an SA that moves goes on with "
        "what its deletion reports; what GETAE reads, packets overtake before NEWAE sets it"
    ),
    "migration (MIGRATE)": (
        "an SA moves all the same, with its counters: it is removed, and made again with the "
        "state that its deletion reports. The message names SAs by addresses and reqid, not by "
        "SPI, so of two that overlap in a rekeying one moves, and nothing tells which; and it "
        "copies an SA before it removes it, so what leaves in between uses numbers that the copy "
        "uses again, which no AEAD cipher survives"
    ),
    "default policy (SETDEFAULT)": (
        "a shunt with `default`; it is the whole host's, so user space, whose device it would "
        "block, refuses it"
    ),
}


def probe_both() -> tuple[Capabilities, Capabilities]:
    """The kernel's and the worker's, of this host."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="xl-")))
        stack.enter_context(gateway_namespace())
        kernel = stack.enter_context(closing(KernelDatapath.open())).probe()
        stack.callback(end_workers, directory)
        stack.enter_context(daemon_sockets())
        userspace = stack.enter_context(closing(open_here(directory))).probe()
    return kernel, userspace


def rows(can: Capabilities) -> dict[str, str]:
    """`yes`, or why not, for everything that a policy may ask for."""

    def told(name: str, *, works: bool) -> str:
        return "yes" if works else can.missing.get(name, "no")

    found = {
        "ESP": told("esp", works=ProtocolId.ESP in can.protocols),
        "AH": told("ah", works=ProtocolId.AH in can.protocols),
        **{f"{mode} mode": told(f"{mode} mode", works=mode in can.modes) for mode in Mode},
        "ESP in UDP": told("udp encapsulation", works=can.udp_encapsulation),
        "ESP without UDP": told("raw esp", works=can.raw_esp),
        "extended sequence numbers": told("esn", works=can.esn),
        "IP compression": told("compression", works=can.compression),
        **{
            f"DF of the outer header: {how}": told("df", works=how in can.dont_fragment)
            for how in DontFragment
        },
    }
    for cipher in CIPHERS:
        works = any(s == cipher.name or s.startswith(f"{cipher.name}-") for s in can.suites)
        found[f"`{cipher.name}`"] = told(cipher.name, works=works)
    for integrity in INTEGRITY:
        works = any(s.endswith(f"-{integrity.name}") for s in can.suites)
        found[f"`{integrity.name}`"] = told(integrity.name, works=works)
    return found


def feature_rows(kernel: Capabilities) -> dict[str, str]:
    return {name: kernel.features[name] or "yes" for name in (*FEATURES, *OTHERS)}


def page(kernel: Capabilities, userspace: Capabilities) -> str:
    ours, theirs = rows(kernel), rows(userspace)
    lines = [HEAD, "| | kernel | user space |", "|---|---|---|"]
    lines += [f"| {name} | {ours[name]} | {theirs[name]} |" for name in ours]
    lines += [FEATURES_HEAD, "| | Linux 6.1 | xfrmpy |", "|---|---|---|"]
    told = feature_rows(kernel)
    lines += [f"| {name} | {told[name]} | {USES.get(name, '')} |" for name in told]
    return "\n".join(lines) + "\n"


def column(text: str, number: int, names: Mapping[str, str]) -> dict[str, str]:
    """What the page says of each of these names in one of its columns."""
    cells = [
        [c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line
    ]
    return {row[0]: row[number] for row in cells if row[0] in names}


if __name__ == "__main__":
    subprocess.run(["modprobe", "-qa", *MODULES.split()], check=False)
    print(page(*probe_both()), end="")
