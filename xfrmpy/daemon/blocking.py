"""`on_down: block`, from the policy into force; and `python -m xfrmpy.daemon.blocking`.

The command does it without a daemon: at boot, before there is a network. What is blocked stays so
when the daemon ends, however it does; the command lifts it. While there is a daemon, it puts back
what anybody takes away.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from xfrmpy.daemon.events import Occurrence
from xfrmpy.daemon.options import add_natt_port
from xfrmpy.datapath.block import Block
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.userspace.tun import DEVICE
from xfrmpy.datapath.watch import Watch
from xfrmpy.failures import ExitCode, OperatorError
from xfrmpy.ipsec.addresses import IKE_NATT_PORT
from xfrmpy.ipsec.selectors import Selector
from xfrmpy.policy.blocking import block_exits, blocked_traffic
from xfrmpy.policy.load import LoadedPolicy, config_path, load_policy
from xfrmpy.policy.model import Shunt, TunnelPolicy
from xfrmpy.policy.shunts import bypassed

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """`traffic` is blocked, but for what is `passing`, and may leave by `exits` only."""

    traffic: frozenset[Selector] = frozenset()
    passing: frozenset[Selector] = frozenset()
    exits: frozenset[str] = frozenset()


class Blocking:
    """What is blocked, as far as we have said so. Methods raise `OperatorError` XF3004."""

    def __init__(self, natt_port: int = IKE_NATT_PORT) -> None:
        self._natt_port = natt_port
        self._block: Block | None = None
        self._wanted = _Wanted()
        self._is_known = False
        self._watch: Watch | None = None
        self._hear: Callable[[Occurrence], None] | None = None

    def enforce(self, loaded: LoadedPolicy) -> None:
        """Block what a policy says, and nothing else.

        What cannot be read of it may be what was blocked before, so then nothing is lifted. A host
        that cannot block anything is good enough for a policy that asks for nothing.
        """
        try:
            wanted = _Wanted(
                traffic=frozenset(loaded.blocked),
                passing=frozenset(bypassed(loaded.shunts)),
                exits=loaded.block_exits,
            )
            self._enforce(wanted, keep_others=bool(loaded.errors))
        except OperatorError as error:
            if loaded.blocked:
                raise
            log.debug("%s", error)
        self._is_known = not loaded.errors

    def follow(self, policies: Iterable[TunnelPolicy], shunts: Iterable[Shunt]) -> None:
        """Block the traffic of these and of no others, but for what shunts let through."""
        policies = tuple(policies)
        wanted = _Wanted(
            traffic=frozenset(blocked_traffic(policies)),
            passing=frozenset(bypassed(shunts)),
            exits=block_exits(policies),
        )
        if wanted != self._wanted or not self._is_known:
            self._enforce(wanted)
            self._is_known = True

    def lift(self) -> None:
        """Block nothing any more."""
        self._enforce(_Wanted())

    def keep(self, hear: Callable[[Occurrence], None]) -> None:
        """Put back from now on what others take away, and tell of it."""
        self._hear = hear
        self._look()

    def stop(self) -> None:
        """What is blocked stays blocked."""
        self._hear = None
        self._look()
        if self._block is not None:
            self._block.close()
            self._block = None

    def _enforce(self, wanted: _Wanted, *, keep_others: bool = False) -> None:
        with _explained():
            if self._block is None:
                self._block = Block(self._natt_port)
            self._block.enforce(
                wanted.traffic,
                {DEVICE, *wanted.exits},
                passing=wanted.passing,
                keep_others=keep_others,
            )
            self._wanted = wanted
            self._look()

    def _look(self) -> None:
        """Listen while there is something to lose, and somebody to tell."""
        is_due = bool(self._wanted.traffic) and self._hear is not None
        if is_due and self._watch is None:
            assert self._block is not None
            self._watch = self._block.watch()
            asyncio.get_running_loop().add_reader(self._watch.fileno(), self._mend)
        elif not is_due and self._watch is not None:
            asyncio.get_running_loop().remove_reader(self._watch.fileno())
            self._watch.close()
            self._watch = None

    def _mend(self) -> None:
        assert self._watch is not None
        assert self._hear is not None
        try:
            with _explained():
                if not self._watch.read():
                    return
            self._enforce(self._wanted)
        except OperatorError as error:
            summary = error.failure.summary
            self._hear(Occurrence(event="block-lost", text=summary, failure=error.failure))
            return
        text = "somebody took away what keeps traffic from going in clear; it is back"
        self._hear(Occurrence(event="block-restored", text=text))


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except DatapathError as error:
        raise OperatorError("XF3004", f"traffic cannot be blocked: {error}") from error


def main(arguments: list[str]) -> int:
    """Do it once; the exit code, after what there is to say on standard error."""
    options = option_parser().parse_args(arguments)
    try:
        if options.lift:
            Blocking().lift()
            return int(ExitCode.DONE)
        loaded = load_policy(config_path(os.environ))
        Blocking(options.natt_port).enforce(loaded)
    except OperatorError as error:
        print(error, file=sys.stderr)
        return int(error.failure.kind.exit_code)
    for fault in loaded.errors:
        print(fault, file=sys.stderr)
    return int(ExitCode.BAD_POLICY if loaded.errors else ExitCode.DONE)


def option_parser() -> argparse.ArgumentParser:
    """What `xfrmpy block` takes."""
    what = "Block the traffic of tunnels with `on_down: block`, but for what is protected."
    parser = argparse.ArgumentParser(prog="xfrmpy block", description=what)
    parser.add_argument("--lift", action="store_true", help="let it pass in clear again")
    add_natt_port(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
