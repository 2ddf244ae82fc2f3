"""`on_down: block`, from the policy into force; and `python -m xfrmpy.daemon.blocking`.

The command does it without a daemon: at boot, before there is a network. What is blocked stays so
when the daemon ends, however it does; the command lifts it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable
from contextlib import closing

from xfrmpy.datapath.block import Block
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.failures import ExitCode, OperatorError
from xfrmpy.ipsec.selectors import Selector
from xfrmpy.policy.blocking import blocked_traffic
from xfrmpy.policy.load import LoadedPolicy, config_path, load_policy
from xfrmpy.policy.model import TunnelPolicy

log = logging.getLogger(__name__)


class Blocking:
    """What is blocked, as far as we have said so. Methods raise `OperatorError` XF3004."""

    def __init__(self) -> None:
        self._known: frozenset[Selector] | None = None

    def enforce(self, loaded: LoadedPolicy) -> None:
        """Block what a policy says, and nothing else.

        What cannot be read of it may be what was blocked before, so then nothing is lifted. A host
        that cannot block anything is good enough for a policy that asks for nothing.
        """
        try:
            _enforce(loaded.blocked, keep_others=bool(loaded.errors))
        except OperatorError as error:
            if loaded.blocked:
                raise
            log.debug("%s", error)
        self._known = None if loaded.errors else frozenset(loaded.blocked)

    def follow(self, policies: Iterable[TunnelPolicy]) -> None:
        """Block the traffic of these and of no others."""
        traffic = frozenset(blocked_traffic(policies))
        if traffic != self._known:
            _enforce(traffic)
            self._known = traffic


def _enforce(traffic: Iterable[Selector], *, keep_others: bool = False) -> None:
    try:
        with closing(Block(DEVICE)) as block:
            block.enforce(traffic, keep_others=keep_others)
    except DatapathError as error:
        raise OperatorError("XF3004", f"traffic cannot be blocked: {error}") from error


def main(arguments: list[str]) -> int:
    """Do it once; the exit code, after what there is to say on standard error."""
    options = _parse(arguments)
    try:
        if options.lift:
            _enforce(())
            return int(ExitCode.DONE)
        loaded = load_policy(config_path(os.environ))
        Blocking().enforce(loaded)
    except OperatorError as error:
        print(error, file=sys.stderr)
        return int(error.failure.kind.exit_code)
    for fault in loaded.errors:
        print(fault, file=sys.stderr)
    return int(ExitCode.BAD_POLICY if loaded.errors else ExitCode.DONE)


def _parse(arguments: list[str]) -> argparse.Namespace:
    what = "Block the traffic of tunnels with `on_down: block`, but for what is protected."
    parser = argparse.ArgumentParser(prog="xfrmpy block", description=what)
    parser.add_argument("--lift", action="store_true", help="let it pass in clear again")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
