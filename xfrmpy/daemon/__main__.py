"""`python -m xfrmpy.daemon`: read the policy, take the runtime directory, run until stopped.

Nothing of what is imported and read becomes garbage, and looking for garbage among it would take a
fifth of the start: the collector is off until the service is ready.
"""

# ruff: noqa: E402 - see above
from __future__ import annotations

import gc

gc.disable()

import argparse
import asyncio
import fcntl
import logging
import os
import sys
from pathlib import Path

from xfrmpy.control.client import runtime_dir
from xfrmpy.daemon.journal import log_handler, spare_origins
from xfrmpy.daemon.options import add_natt_port, add_workers
from xfrmpy.datapath.dumps import forbid_dumps
from xfrmpy.failures import ExitCode, Failure, OperatorError
from xfrmpy.policy.load import config_path, load_policy

LOCK_NAME = "daemon.lock"


def main(arguments: list[str]) -> int:
    """The exit code, after whatever the daemon had to say on standard error."""
    options = option_parser().parse_args(arguments)
    forbid_dumps()
    logging.basicConfig(handlers=[log_handler(os.environ)])
    spare_origins()
    logging.getLogger("xfrmpy").setLevel(logging.DEBUG if options.verbose else logging.INFO)
    try:
        directory = runtime_dir(os.environ)
        lock = _take(directory)
        try:
            _run(directory, options)
        finally:
            os.close(lock)
    except OperatorError as error:
        print(_explain(error.failure), file=sys.stderr)
        return int(error.failure.kind.exit_code)
    return int(ExitCode.DONE)


def option_parser() -> argparse.ArgumentParser:
    """What `xfrmpy daemon` takes."""
    parser = argparse.ArgumentParser(prog="xfrmpy daemon", description="Run the xfrmpy daemon.")
    parser.add_argument("-v", "--verbose", action="store_true", help="log every datagram")
    who = "whose members may look at tunnels; xfrmpy if there is such a group, '' for none"
    parser.add_argument("--group", metavar="NAME", help=who)
    where = "tell Prometheus' metrics at ADDRESS:PORT of this host, or unix:PATH"
    parser.add_argument("--metrics", metavar="WHERE", default="", help=where)
    file = "write them to a file every 15 seconds, for node_exporter's textfile collector"
    parser.add_argument("--metrics-file", metavar="PATH", default="", help=file)
    anywhere = "tell them at an address that other hosts reach, to whoever asks"
    parser.add_argument("--metrics-anywhere", action="store_true", help=anywhere)
    often = "how often the names of peers are looked up (60)"
    parser.add_argument("--resolve-every", type=_count, metavar="SECONDS", default=60, help=often)
    add_natt_port(parser)
    add_workers(parser)
    for option, (_, what) in _LIMITS.items():
        parser.add_argument(option, type=_count, metavar="N", help=f"half-open IKE SAs {what}")
    return parser


_LIMITS = {
    "--cookies-at": ("cookies_at", "from which on callers must return a cookie; 0: always"),
    "--puzzles-at": ("puzzles_at", "from which on callers must solve a puzzle; 0: always"),
    "--half-open-limit": ("strangers", "at most"),
    "--half-open-per-address": ("strangers_per_address", "at most from one address or IPv6 /64"),
}
"""Options, and what they set of `AdmissionLimits`, whose defaults hold for those not given."""


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError(text)
    return number


def _limits(options: argparse.Namespace) -> dict[str, int]:
    given = vars(options)
    wanted = {key: given[option[2:].replace("-", "_")] for option, (key, _) in _LIMITS.items()}
    return {key: count for key, count in wanted.items() if count is not None}


def _run(directory: Path, options: argparse.Namespace) -> None:
    # A second daemon need not pay for these.
    from xfrmpy.daemon.callers import Doorkeeper, reading_group  # noqa: PLC0415
    from xfrmpy.daemon.exposition import Exposure  # noqa: PLC0415
    from xfrmpy.daemon.service import Service  # noqa: PLC0415
    from xfrmpy.ike.admission import AdmissionLimits  # noqa: PLC0415

    loaded = load_policy(config_path(os.environ))
    for error in loaded.errors:
        logging.getLogger("xfrmpy.daemon").error("%s", error)
    for warning in loaded.warnings:
        logging.getLogger("xfrmpy.daemon").warning("%s", warning)
    doorkeeper = Doorkeeper(reading_group(options.group))
    exposure = Exposure(
        listen=options.metrics, file=options.metrics_file, anywhere=options.metrics_anywhere
    )
    limits = AdmissionLimits(**_limits(options))
    service = Service(
        loaded,
        directory,
        os.environ,
        limits,
        doorkeeper,
        exposure,
        resolve_seconds=max(1, options.resolve_every),
        natt_port=options.natt_port,
        workers=options.workers,
    )
    asyncio.run(service.run())


def _take(directory: Path) -> int:
    """Make the runtime directory ours; the lock goes with the process."""
    try:
        directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        reason = f"{directory} cannot be used: {error.strerror}"
        raise OperatorError("XF4003", reason) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise OperatorError("XF4004", f"a daemon already uses {directory}") from error
    return lock


def _explain(failure: Failure) -> str:
    lines = [f"{failure.code} {failure.kind.title}: {failure.summary}"]
    lines += [f"  {label}: {value}" for label, value in failure.evidence]
    lines += [f"  cause: {cause}" for cause in failure.kind.causes]
    lines += [f"  try: {fix}" for fix in failure.kind.fixes]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
