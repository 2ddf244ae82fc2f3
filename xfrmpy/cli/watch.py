"""`xfrmpy status --watch`: the status again whenever something happens, until Ctrl-C.

A terminal has it redrawn in place, with its counters every two seconds. What is no terminal gets
plain lines, and only those of tunnels that have changed: a log that may be read later.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

from xfrmpy.cli.documents import API, tunnel_value
from xfrmpy.cli.status import status_lines
from xfrmpy.cli.terminal import Painter, printable, say
from xfrmpy.control.client import Client
from xfrmpy.control.protocol import StatusReply, TunnelStatus
from xfrmpy.failures import ExitCode

REDRAW_SECONDS = 2.0
SETTLE_SECONDS = 0.1
"""What happens together is shown together."""

_HOME, _TO_END_OF_LINE, _TO_END = "\x1b[H", "\x1b[K", "\x1b[J"
_OTHER_SCREEN, _THIS_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def watch_status(client: Client, tunnel: str | None, *, as_json: bool) -> int:
    """Show it until it is interrupted, which is how it ends well."""
    in_place = sys.stdout.isatty() and not as_json
    try:
        if in_place:
            _redraw(client, tunnel)
        else:
            _tell_changes(client, tunnel, as_json=as_json)
    except KeyboardInterrupt:
        return ExitCode.DONE
    finally:
        if in_place:
            print(_THIS_SCREEN, end="", flush=True)
    return ExitCode.DONE


def _redraw(client: Client, tunnel: str | None) -> None:
    print(_OTHER_SCREEN, end="")
    for status in _statuses(client, tunnel):
        lines = status_lines(status, Painter(sys.stdout), named=tunnel is not None)
        text = "".join(f"{line}{_TO_END_OF_LINE}\n" for line in lines)
        print(f"{_HOME}{text}{_TO_END}", end="", flush=True)


def _tell_changes(client: Client, tunnel: str | None, *, as_json: bool) -> None:
    told: dict[str, tuple[object, ...]] = {}
    for status in _statuses(client, tunnel):
        for each in status.tunnels:
            marks = _marks(each)
            if told.get(each.name) != marks:
                told[each.name] = marks
                say(_json_line(each) if as_json else _line(each))


def _statuses(client: Client, tunnel: str | None) -> Iterator[StatusReply]:
    """One now, and one after each event; every two seconds if there is none."""
    for _ in client.follow(tunnel, 0, heartbeat_seconds=REDRAW_SECONDS):
        yield client.status(tunnel)
        time.sleep(SETTLE_SECONDS)


def _marks(tunnel: TunnelStatus) -> tuple[object, ...]:
    """What is a change: not its counters, nor its age."""
    failure = None if tunnel.failure is None else (tunnel.failure.code, tunnel.failure.summary)
    spis = tuple((child.child, child.spi_in) for child in tunnel.children)
    return tunnel.state, tunnel.remote_address, tunnel.spi_i, spis, failure


def _line(tunnel: TunnelStatus) -> str:
    moment = time.strftime("%Y-%m-%d %H:%M:%S")
    parts = [moment, printable(tunnel.name), tunnel.state, printable(tunnel.remote_address)]
    parts += [f"{printable(child.child)} {child.spi_in}" for child in tunnel.children]
    if tunnel.failure is not None:
        parts.append(f"{tunnel.failure.code} {printable(tunnel.failure.summary)}")
    return "  ".join(part for part in parts if part)


def _json_line(tunnel: TunnelStatus) -> str:
    return json.dumps({"api": API, "kind": "TunnelStatus", **tunnel_value(tunnel)})
