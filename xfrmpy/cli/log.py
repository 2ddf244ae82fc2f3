"""`xfrmpy log`: what has happened to the tunnels, and what happens."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime

from xfrmpy.cli.terminal import Painter, note, printable, say
from xfrmpy.control.client import Client
from xfrmpy.control.protocol import Event, EventsReply
from xfrmpy.failures import ExitCode

_STYLES = {"warning": "yellow", "error": "red", "critical": "bold red", "debug": "dim"}


def show_log(client: Client, tunnel: str | None, last: int, *, follow: bool, as_json: bool) -> int:
    """Print the last events, and with `follow` each new one, until it is interrupted."""
    replies = client.follow(tunnel, last) if follow else (client.events(tunnel, last),)
    try:
        _tell(replies, as_json=as_json, debug=follow)
    except KeyboardInterrupt:
        return ExitCode.DONE  # It is how one ends what goes on for ever.
    return ExitCode.DONE


def _tell(replies: Iterable[EventsReply], *, as_json: bool, debug: bool) -> None:
    paint = Painter(sys.stdout)
    for reply in replies:
        if reply.missed:
            note(f"{reply.missed:,} events are missing here: they came faster than they were read")
        for event in reply.events:
            if as_json:
                say(json.dumps(asdict(event)))
            elif debug or event.severity != "debug":
                say(event_line(event, paint))


def event_line(event: Event, paint: Painter) -> str:
    """`17:00:00  office  closed: XF2001 ...`, in the time of this host."""
    when = paint(moment(event), "dim")
    who = paint(printable(event.tunnel) or "-", "bold")
    return f"{when}  {who}  {paint(printable(event.text), _STYLES.get(event.severity, ''))}"


def moment(event: Event) -> str:
    """When it happened, in the time of this host."""
    return datetime.fromisoformat(event.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
