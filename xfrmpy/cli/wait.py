"""`xfrmpy wait`: come back when a tunnel is up, or down; a step for scripts."""

from __future__ import annotations

import re

from xfrmpy.cli.documents import document, tunnel_value
from xfrmpy.cli.terminal import printable, say
from xfrmpy.control.client import Client
from xfrmpy.failures import ExitCode

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_span(text: str) -> float:
    """Seconds, of `90`, `60s`, `2m` or `1.5h`; raises `ValueError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if found is None:
        raise ValueError(f"{text!r} is no span of time: write 90, 60s, 2m or 1h")
    return float(found[1]) * _UNITS[found[2]]


def wait_for_tunnel(
    client: Client, tunnel: str, state: str, timeout_seconds: float, *, as_json: bool
) -> int:
    """Raises `OperatorError` XF4007, exit code 4, if the tunnel does not come to it in time."""
    reply = client.wait(tunnel, state, timeout_seconds)
    if as_json:
        say(document("Wait", tunnel=tunnel_value(reply.tunnel)))
    else:
        say(f"{printable(tunnel)} is {printable(reply.tunnel.state)}")
    return ExitCode.DONE
