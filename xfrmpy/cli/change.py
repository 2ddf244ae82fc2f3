"""`xfrmpy up`, `down` and `rekey`: one tunnel after the other, with what happens on the way.

Several tunnels: a failure does not stop the rest, unless it is the daemon that fails; the command
exits with the highest code of all.
"""

# ruff: noqa: PLC0415 - rich is imported only where there is somebody to watch
from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from xfrmpy.cli.documents import document, failure_of, failure_value, tunnel_value
from xfrmpy.cli.failure import tell_failure
from xfrmpy.cli.terminal import Painter, duration, note, printable, say
from xfrmpy.control.client import Client
from xfrmpy.control.protocol import Progress, TunnelReply
from xfrmpy.failures import ExitCode, Failure, OperatorError

Verb = Literal["up", "down", "rekey"]

_NO_USE_GOING_ON = frozenset({"XF4001", "XF4003", "XF4008"})
"""The daemon is absent, not for us, or stopping: the other tunnels would fail the same way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outcome:
    tunnel: str
    seconds: float
    reply: TunnelReply | None = None
    failure: Failure | None = None


def change_tunnels(
    client: Client, verb: Verb, tunnels: Sequence[str], timeout_seconds: float, *, as_json: bool
) -> int:
    """Do it to each, telling of each as it ends; returns the worst exit code."""
    outcomes = []
    for tunnel in tunnels:
        outcome = _change(client, verb, tunnel, timeout_seconds)
        outcomes.append(outcome)
        if not as_json:
            _tell(outcome, verb)
        if outcome.failure is not None and outcome.failure.code in _NO_USE_GOING_ON:
            break
    if as_json:
        say(document(verb.capitalize(), tunnels=[_outcome_value(outcome) for outcome in outcomes]))
    return max(_exit_code(outcome) for outcome in outcomes)


def _change(client: Client, verb: Verb, tunnel: str, timeout_seconds: float) -> _Outcome:
    started_at = time.monotonic()
    call = {"up": client.up, "down": client.down, "rekey": client.rekey}[verb]
    try:
        reply = _follow(call(tunnel, timeout_seconds), started_at)
    except OperatorError as error:
        return _Outcome(tunnel=tunnel, seconds=time.monotonic() - started_at, failure=error.failure)
    return _Outcome(tunnel=tunnel, seconds=time.monotonic() - started_at, reply=reply)


def _follow(replies: Iterable[Progress | TunnelReply], started_at: float) -> TunnelReply:
    """Show each step; the last reply is the result."""
    with steps_shown(started_at) as shown:
        for reply in replies:
            if isinstance(reply, TunnelReply):
                return reply
            shown.step(reply)
    raise OperatorError("XF4006", "the daemon's last answer was no result")


def _tell(outcome: _Outcome, verb: Verb) -> None:
    name = printable(outcome.tunnel)
    if outcome.reply is None:
        assert outcome.failure is not None
        tell_failure(outcome.failure, tunnel=name)
        return
    say(_sentence(name, outcome.reply, verb, outcome.seconds))
    if outcome.reply.warning is not None:
        tell_failure(failure_of(outcome.reply.warning), tunnel=name)


def _sentence(name: str, reply: TunnelReply, verb: Verb, seconds: float) -> str:
    paint = Painter(sys.stdout)
    tunnel = reply.tunnel
    if verb == "rekey":
        return f"{paint(name, 'bold')} is {paint('rekeyed', 'green')}, in {duration(seconds)}"
    head = f"{paint(name, 'bold')} is {paint(verb, 'green' if verb == 'up' else '')}"
    if not reply.changed:
        since = f" for {duration(tunnel.seconds_up)}" if verb == "up" else ""
        return f"{head} already{since}: nothing changed"
    if verb == "down":
        return head
    peer = printable(tunnel.remote_address or tunnel.peer)
    datapath = printable(tunnel.datapath)
    return f"{head}: with {peer}, {datapath} datapath, in {duration(seconds)}"


def _outcome_value(outcome: _Outcome) -> dict[str, Any]:
    reply, failure = outcome.reply, outcome.failure
    return {
        "name": outcome.tunnel,
        "changed": reply is not None and reply.changed,
        "tunnel": reply and tunnel_value(reply.tunnel),
        "warning": reply and reply.warning and failure_value(failure_of(reply.warning)),
        "failure": failure and failure_value(failure),
    }


def _exit_code(outcome: _Outcome) -> int:
    return ExitCode.DONE if outcome.failure is None else outcome.failure.kind.exit_code


class _Shown(Protocol):
    def step(self, progress: Progress) -> None: ...


@contextmanager
def steps_shown(started_at: float) -> Iterator[_Shown]:
    if not sys.stderr.isatty():
        yield _PlainSteps()
        return
    live = _LiveSteps(started_at)
    try:
        yield live
    finally:
        live.close()


def _step_line(progress: Progress) -> str:
    return f"{progress.seconds:6.2f}s  {printable(progress.text)}"


class _PlainSteps:
    """A line for each step, for logs and pipes."""

    def step(self, progress: Progress) -> None:
        note(f"{printable(progress.tunnel)} {_step_line(progress)}")


class _LiveSteps:
    """The steps that are over, and on a last line the one going on, with a running clock.

    rich is imported with the first step: a tunnel that is up already never has one.
    """

    def __init__(self, started_at: float) -> None:
        self._started_at = started_at
        self._current: Progress | None = None
        self._live: Any = None

    def step(self, progress: Progress) -> None:
        if self._live is None:
            self._start()
        self._keep()
        self._current = progress

    def close(self) -> None:
        if self._live is not None:
            self._keep()
            self._current = None
            self._live.stop()

    def _keep(self) -> None:
        from rich.text import Text

        if self._current is not None:
            self._live.console.print(Text(_step_line(self._current), style="dim"))

    def _start(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner
        from rich.text import Text

        spinner = Spinner("dots", style="cyan")

        def going_on() -> Spinner | str:
            if self._current is None:
                return ""
            seconds = time.monotonic() - self._started_at
            spinner.update(text=Text(f"{seconds:4.1f}s  {printable(self._current.text)}"))
            return spinner

        console = Console(file=sys.stderr, highlight=False)
        self._live = Live(
            console=console, get_renderable=going_on, transient=True, refresh_per_second=10
        )
        self._live.start()
