"""Options that more than one of the daemon's programs have."""

from __future__ import annotations

import argparse
import os

from xfrmpy.datapath.userspace.shares import MAX_WORKERS
from xfrmpy.ipsec.addresses import IKE_NATT_PORT, IKE_PORT
from xfrmpy.ipsec.selectors import MAX_PORT


def add_natt_port(parser: argparse.ArgumentParser) -> None:
    """`--natt-port`, which gives `natt_port`."""
    what = f"the UDP port for IKE and ESP in UDP together, beside {IKE_PORT} ({IKE_NATT_PORT})"
    parser.add_argument("--natt-port", type=_port, metavar="PORT", default=IKE_NATT_PORT, help=what)


def add_workers(parser: argparse.ArgumentParser) -> None:
    """`--workers`, which gives `workers`."""
    what = "processes of the userspace datapath, which share the tunnels; auto: one a core (1)"
    parser.add_argument("--workers", type=_workers, metavar="N", default=1, help=what)


def _workers(text: str) -> int:
    if text == "auto":
        return min(len(os.sched_getaffinity(0)), MAX_WORKERS)
    number = int(text)
    if not 1 <= number <= MAX_WORKERS:
        raise ValueError(text)
    return number


def _port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= MAX_PORT or port == IKE_PORT:
        raise ValueError(text)
    return port
