"""Events counted, for the metrics: how often each happened, and with which failures."""

from __future__ import annotations

from collections import Counter

from xfrmpy.control.protocol import Event

_HANDSHAKES = {"ike-sa-established": "established", "tunnel-failed": "failed"}
_REKEYINGS = {
    "ike-sa-rekeyed": "ike",
    "ike-sa-reauthenticated": "ike",
    "child-sa-rekeyed": "child",
}


class Tally:
    """Counts by tunnel; what belongs to none has an empty name."""

    def __init__(self) -> None:
        self.events: Counter[tuple[str, str]] = Counter()
        self.failures: Counter[tuple[str, str]] = Counter()
        self.handshakes: Counter[tuple[str, str]] = Counter()
        self.rekeyings: Counter[tuple[str, str]] = Counter()

    def count(self, event: Event) -> None:
        self.events[event.tunnel, event.event] += 1
        if event.code:
            self.failures[event.tunnel, event.code] += 1
        if event.event in _HANDSHAKES:
            role = "initiator" if event.details.get("is_initiator") == "yes" else "responder"
            self.handshakes[role, _HANDSHAKES[event.event]] += 1
        if event.event in _REKEYINGS:
            self.rekeyings[event.tunnel, _REKEYINGS[event.event]] += 1
