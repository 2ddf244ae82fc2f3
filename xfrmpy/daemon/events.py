"""What may happen, as events with stable names: the table, and how a report becomes one of them.

`docs/events.md` is drawn from the table. An event's name never changes its meaning; another may be
added. What the core reports comes in its own words (`xfrmpy.ike.outputs`), what the daemon itself
does or meets is an `Occurrence`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, StrEnum
from functools import cache, lru_cache
from typing import TypeAlias

from xfrmpy.control.observed import Event
from xfrmpy.daemon.narration import narrate
from xfrmpy.daemon.replies import reply_of
from xfrmpy.failures import Failure
from xfrmpy.ike import outputs
from xfrmpy.ike.outputs import Output
from xfrmpy.ipsec.addresses import Path
from xfrmpy.registry import ExchangeType


class Severity(StrEnum):
    """How much an operator wants to know; `DEBUG` is not kept."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventKind:
    severity: Severity
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurrence:
    """Something that the daemon itself does or meets; `event` is a name of the table."""

    event: str
    text: str
    tunnel: str = ""
    failure: Failure | None = None
    details: dict[str, str] = field(default_factory=dict)


Report: TypeAlias = Output | Occurrence

EVENTS: dict[str, EventKind] = {
    name: EventKind(severity=severity, meaning=meaning)
    for name, severity, meaning in (
        ("daemon-started", Severity.INFO, "the daemon is ready"),
        ("taken-over", Severity.INFO, "what was up when an earlier daemon was killed goes on"),
        ("daemon-stopping", Severity.INFO, "the daemon was told to stop"),
        ("tunnel-placed", Severity.INFO, "which datapath carries a tunnel, and why"),
        ("tunnel-unusable", Severity.ERROR, "this host cannot have the tunnel"),
        ("tunnel-wanted", Severity.INFO, "from now on the tunnel is brought up, and kept up"),
        ("tunnel-demanded", Severity.INFO, "a packet has met a trap: its tunnel is brought up"),
        ("traps-refused", Severity.ERROR, "the datapath does not take a tunnel's traps"),
        ("tunnel-retrying", Severity.WARNING, "it failed, and is tried again in so many seconds"),
        ("peer-unresolved", Severity.WARNING, "the name of a tunnel's peer cannot be looked up"),
        ("peer-addresses-changed", Severity.INFO, "the names of a tunnel's peer lead elsewhere"),
        ("path-left", Severity.INFO, "a new IKE SA on another path is to replace the old: why"),
        ("exchange-started", Severity.INFO, "the first copy of a request was sent"),
        ("request-retransmitted", Severity.INFO, "the peer has not answered, it is asked again"),
        ("fragment-size-reduced", Severity.INFO, "large messages go in smaller datagrams now"),
        ("exchange-repeated", Severity.INFO, "the peer wants the exchange to begin again"),
        ("nat-detected", Severity.INFO, "ESP goes in UDP, and why"),
        ("peer-moved", Severity.INFO, "the peer has another address or port: its NAT moved it"),
        ("ike-sa-established", Severity.INFO, "both ends have proved who they are"),
        ("ike-sa-rekeyed", Severity.INFO, "a new IKE SA has taken the place of an older one"),
        ("ike-sa-reauthenticated", Severity.INFO, "the same, and who the peer is was proved again"),
        ("child-sa-established", Severity.INFO, "traffic can flow, both ways"),
        ("child-sa-rekeyed", Severity.INFO, "a new Child SA has taken the place of an older one"),
        ("child-sa-closed", Severity.INFO, "a Child SA is gone"),
        ("sa-not-created", Severity.WARNING, "a further SA, or a new one for an old, was refused"),
        ("redirected", Severity.INFO, "the peer sends us to another gateway, and we go"),
        ("request-refused", Severity.WARNING, "a peer wanted what our policy does not give"),
        ("authentication-failed", Severity.WARNING, "a peer did not prove that it is who it says"),
        ("tunnel-closed", Severity.INFO, "an operator's `down`: the IKE SA is gone"),
        ("tunnel-failed", Severity.WARNING, "a tunnel did not come up"),
        ("tunnel-lost", Severity.WARNING, "a tunnel that was up is gone"),
        (
            "drift-healed",
            Severity.WARNING,
            "others had changed what is in force; put right",
        ),
        ("offload-refused", Severity.WARNING, "no device does an SA's work, so the kernel does it"),
        ("drift-left", Severity.WARNING, "the same, but it stays as it is, and why"),
        ("interface-refused", Severity.ERROR, "the interface of a tunnel cannot be had, and why"),
        ("defect-found", Severity.CRITICAL, "a datagram met a defect of ours, and was kept"),
        (
            "block-restored",
            Severity.WARNING,
            "others took away what keeps traffic from going clear",
        ),
        ("block-lost", Severity.CRITICAL, "the same, and it cannot be put back"),
        ("datapath-revived", Severity.ERROR, "a datapath ended by itself; another goes on"),
        ("datapath-lost", Severity.CRITICAL, "a datapath ended by itself; the daemon stops"),
    )
}

_NAMES: dict[type, str] = {
    outputs.TrapsRefused: "traps-refused",
    outputs.ExchangeStarted: "exchange-started",
    outputs.RequestRetransmitted: "request-retransmitted",
    outputs.FragmentSizeReduced: "fragment-size-reduced",
    outputs.ExchangeRepeated: "exchange-repeated",
    outputs.NatDetected: "nat-detected",
    outputs.PeerMoved: "peer-moved",
    outputs.IkeSaEstablished: "ike-sa-established",
    outputs.IkeSaRekeyed: "ike-sa-rekeyed",
    outputs.ChildSaEstablished: "child-sa-established",
    outputs.ChildSaRekeyed: "child-sa-rekeyed",
    outputs.ChildSaClosed: "child-sa-closed",
    outputs.SaNotCreated: "sa-not-created",
    outputs.Redirected: "redirected",
    outputs.RequestRefused: "request-refused",
    outputs.TunnelClosed: "tunnel-closed",
    outputs.DefectFound: "defect-found",
}

_NOT_AUTHENTIC = {"XF2006", "XF2007", "XF2052", "XF2053", "XF2054", "XF2056"}
_NOT_TOLD = {"tunnel", "child", "failure", "event", "text", "details", "traceback"}
"""Fields of reports that an event has elsewhere."""


def event_of(report: Report, number: int, clock: float, monotonic: float) -> Event | None:
    """The event, or None if the report is no news to an operator. `clock` is the time of day."""
    name = event_name(report)
    if name is None:
        return None
    failure: Failure | None = getattr(report, "failure", None)
    return Event(
        number=number,
        time=_rfc3339(clock),
        monotonic=monotonic,
        tunnel=getattr(report, "tunnel", ""),
        child=getattr(report, "child", ""),
        event=name,
        severity=_severity(report, name),
        text=report.text if isinstance(report, Occurrence) else narrate(report),
        code="" if failure is None else failure.code,
        failure=None if failure is None else reply_of(failure),
        details=dict(_details(report)),
    )


def event_name(report: Report) -> str | None:
    """What a report is called in the table; None if it is no news."""
    match report:
        case Occurrence():
            return report.event
        case outputs.TunnelClosed(failure=Failure()):
            return "tunnel-lost" if report.was_established else "tunnel-failed"
        case outputs.IkeSaRekeyed(reauthenticated=True):
            return "ike-sa-reauthenticated"
        case outputs.RequestRefused() if report.failure.code in _NOT_AUTHENTIC:
            return "authentication-failed"
        case _:
            return _NAMES.get(type(report))


def is_of_stranger(event: Event) -> bool:
    """Whether anybody who sends datagrams could make this happen, as often as he likes."""
    return not event.tunnel and "remote" in event.details


def _severity(report: Report, name: str) -> Severity:
    match report:
        case outputs.ExchangeStarted(exchange=ExchangeType.INFORMATIONAL):
            return Severity.DEBUG  # it keeps a tunnel or ends it, and is no news
        case Occurrence() | outputs.RequestRefused() | outputs.DefectFound():
            return EVENTS[name].severity
        case _:
            # Before we know who calls, it is news only if we refuse him.
            return EVENTS[name].severity if getattr(report, "tunnel", "") else Severity.DEBUG


def _rfc3339(clock: float) -> str:
    seconds, milliseconds = divmod(int(clock * 1000), 1000)
    return f"{_whole_second(seconds)}.{milliseconds:03}Z"


@lru_cache(maxsize=1)
def _whole_second(clock: int) -> str:
    return datetime.fromtimestamp(clock, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _details(report: Report) -> Iterator[tuple[str, str]]:
    if isinstance(report, Occurrence):
        yield from report.details.items()
    kind: type = type(report)
    for name in _told_fields(kind):
        value = getattr(report, name)
        if isinstance(value, Path):
            yield "local", str(value.local)
            yield "remote", str(value.remote)
        else:
            yield name, _told(name, value)


@cache
def _told_fields(kind: type) -> tuple[str, ...]:
    """What `repr` leaves out is not for an operator's eyes."""
    return tuple(f.name for f in dataclasses.fields(kind) if f.repr and f.name not in _NOT_TOLD)


def _told(name: str, value: object) -> str:
    if name.startswith("spi_") and isinstance(value, int):
        return f"0x{value:08x}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value.name if isinstance(value, Enum) else str(value)
