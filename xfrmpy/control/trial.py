"""What a host can do for tunnels, as the program that tries it tells `xfrmpy doctor`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialReply:
    """Each sentence says why something does not work, and is empty if it does.

    `kernel` is about ESP, the first need of the kernel datapath. `missing` are the sentences of
    what else it lacks, by the names of `Capabilities`; `suites` the names of those that work.
    """

    kernel: str
    missing: dict[str, str]
    suites: list[str]
    modes: list[str]
    tun: str
    nf_tables: str
