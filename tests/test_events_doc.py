"""`docs/events.md` is the table of events; `python -m tests.test_events_doc` renews it."""

from __future__ import annotations

import json
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import Path

from xfrmpy.control.observed import Event
from xfrmpy.daemon.events import EVENTS, event_of
from xfrmpy.failures import Failure
from xfrmpy.ike.outputs import RequestRefused
from xfrmpy.ipsec import addresses

PAGE = Path(__file__).parent.parent / "docs" / "events.md"

HEAD = """# Events

Everything that is news to an operator is an event with a name that never changes its meaning: in
`xfrmpy log`, in the daemon's log, on the control socket (`org.xfrmpy.Monitor`, see
[control-socket.md](control-socket.md)). The daemon keeps the last 1,000, and the last 50 of each
tunnel whatever the others do; what strangers cause (a refused IKE_SA_INIT, say) is kept apart, 100
of it. They end with the daemon; the log of the host is for longer.

`xfrmpy log -o json` writes one JSON object a line. `number` goes up by one from event to event,
`time` is UTC, `monotonic` the seconds of a clock that nobody sets. `details` differ from event to
event. What failed has a `code` (see [failures.md](failures.md)) and a `failure` with what both
sides said:

"""


def page() -> str:
    rows = [f"| `{name}` | {kind.severity} | {kind.meaning} |" for name, kind in EVENTS.items()]
    table = ["| event | severity | meaning |", "|---|---|---|", *rows]
    example = json.dumps(asdict(_example()), indent=2)
    return f"{HEAD}```json\n{example}\n```\n\n" + "\n".join(table) + "\n"


def _example() -> Event:
    failure = Failure(
        code="XF2004",
        summary="the peer asks for traffic that our policy does not carry",
        evidence=(("our local", "10.1.0.0/16"), ("they asked for", "10.9.0.0/16")),
    )
    path = addresses.Path(
        local=addresses.SocketAddress(ip_address("192.0.2.1"), 4500),
        remote=addresses.SocketAddress(ip_address("198.51.100.1"), 4500),
    )
    report = RequestRefused(tunnel="tunnel-a", path=path, failure=failure)
    event = event_of(report, 42, 1764090000.125, 86400.5)
    assert event is not None
    return event


def test_the_page_of_events_is_the_table() -> None:
    assert PAGE.read_text() == page()


if __name__ == "__main__":
    PAGE.write_text(page())
