"""The metrics: a table of families, and their text in Prometheus' exposition format 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/. Every child of the policy has its
series from the beginning on, up or not: an alert can only see what is there. A name never changes
its meaning. `docs/monitoring.md` is drawn from the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from xfrmpy.control.protocol import TunnelStatus
from xfrmpy.daemon.tally import Tally
from xfrmpy.daemon.totals import NOTHING, Carrier
from xfrmpy.ipsec.sad import Direction, Usage

Sample = tuple[dict[str, str], float]
"""Labels and a value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    kind: str
    help: str


FAMILIES: dict[str, Family] = {
    name: Family(kind=kind, help=text)
    for name, kind, text in (
        ("xfrmpy_build_info", "gauge", "The version of the daemon; always 1."),
        ("xfrmpy_start_time_seconds", "gauge", "When the daemon was started, in Unix time."),
        ("xfrmpy_tunnel_up", "gauge", "Whether a tunnel has a Child SA in force."),
        ("xfrmpy_tunnel_established_seconds", "gauge", "For how long it is up; 0 if it is not."),
        ("xfrmpy_tunnel_datapath", "gauge", "Which datapath carries a tunnel; always 1."),
        ("xfrmpy_tunnel_failure", "gauge", "Why a tunnel that is down failed last; always 1."),
        (
            "xfrmpy_certificate_expiry_time_seconds",
            "gauge",
            "When the first certificate ends, of `ours` or of the `authorities`, in Unix time.",
        ),
        ("xfrmpy_ike_sas", "gauge", "IKE SAs of a tunnel, those that are beginning included."),
        ("xfrmpy_child_up", "gauge", "Whether a Child SA of the policy is in force."),
        ("xfrmpy_child_received_bytes_total", "counter", "Octets of inner packets received."),
        ("xfrmpy_child_sent_bytes_total", "counter", "Octets of inner packets sent."),
        ("xfrmpy_child_received_packets_total", "counter", "Inner packets received."),
        ("xfrmpy_child_sent_packets_total", "counter", "Inner packets sent."),
        ("xfrmpy_child_replayed_packets_total", "counter", "Packets refused as replayed or late."),
        ("xfrmpy_child_integrity_failures_total", "counter", "Packets that were not authentic."),
        ("xfrmpy_handshakes_total", "counter", "IKE SAs that came to be, or did not."),
        ("xfrmpy_rekeyings_total", "counter", "IKE and Child SAs that took an older one's place."),
        ("xfrmpy_failures_total", "counter", "Failures by their code; see docs/failures.md."),
        ("xfrmpy_events_total", "counter", "Events by their name; see docs/events.md."),
        ("xfrmpy_events_missed_total", "counter", "Events that slow listeners did not get."),
        ("xfrmpy_drops_total", "counter", "Datagrams and packets dropped, by the reason."),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Everything that is measured, at one moment.

    `children` are those of the policies, `up` those of them that have a Child SA in force;
    `expiries` are by tunnel, and whose certificates they are of.
    """

    version: str
    started: float
    tunnels: list[TunnelStatus]
    children: dict[str, list[str]]
    ike_sas: dict[str, int]
    up: dict[str, set[str]]
    carried: Mapping[Carrier, Usage]
    tally: Tally
    missed: int
    drops: Mapping[str, int]
    expiries: Mapping[tuple[str, str], float]


def render(measured: Measured) -> str:
    """The exposition: families in the order of the table, HELP and TYPE before each."""
    samples: dict[str, list[Sample]] = {name: [] for name in FAMILIES}
    for name, labels, value in _samples(measured):
        samples[name].append((labels, value))
    lines: list[str] = []
    for name, family in FAMILIES.items():
        if samples[name]:
            lines += [f"# HELP {name} {family.help}", f"# TYPE {name} {family.kind}"]
            lines += [_line(name, labels, value) for labels, value in samples[name]]
    return "\n".join(lines) + "\n"


def _samples(measured: Measured) -> Iterator[tuple[str, dict[str, str], float]]:
    yield "xfrmpy_build_info", {"version": measured.version}, 1
    yield "xfrmpy_start_time_seconds", {}, measured.started
    for tunnel in measured.tunnels:
        yield from _of_tunnel(tunnel, measured)
        for child in measured.children[tunnel.name]:
            yield from _of_child(tunnel.name, child, measured)
    for (role, result), count in measured.tally.handshakes.items():
        yield "xfrmpy_handshakes_total", {"role": role, "result": result}, count
    for (name, sa), count in measured.tally.rekeyings.items():
        yield "xfrmpy_rekeyings_total", {"tunnel": name, "sa": sa}, count
    for (name, code), count in measured.tally.failures.items():
        yield "xfrmpy_failures_total", {"tunnel": name, "code": code}, count
    for (name, event), count in measured.tally.events.items():
        yield "xfrmpy_events_total", {"tunnel": name, "event": event}, count
    for (name, whose), moment in measured.expiries.items():
        yield "xfrmpy_certificate_expiry_time_seconds", {"tunnel": name, "whose": whose}, moment
    yield "xfrmpy_events_missed_total", {}, measured.missed
    for reason, count in measured.drops.items():
        yield "xfrmpy_drops_total", {"reason": reason}, count


def _of_tunnel(
    tunnel: TunnelStatus, measured: Measured
) -> Iterator[tuple[str, dict[str, str], float]]:
    labels = {"tunnel": tunnel.name}
    yield "xfrmpy_tunnel_up", labels, tunnel.state == "up"
    yield "xfrmpy_tunnel_established_seconds", labels, tunnel.seconds_up
    yield "xfrmpy_ike_sas", labels, measured.ike_sas[tunnel.name]
    if tunnel.datapath:
        yield "xfrmpy_tunnel_datapath", {**labels, "datapath": tunnel.datapath}, 1
    if tunnel.failure is not None:
        yield "xfrmpy_tunnel_failure", {**labels, "code": tunnel.failure.code}, 1


def _of_child(
    tunnel: str, child: str, measured: Measured
) -> Iterator[tuple[str, dict[str, str], float]]:
    labels = {"tunnel": tunnel, "child": child}

    def of(direction: Direction) -> Usage:
        key = Carrier(tunnel=tunnel, child=child, direction=direction)
        return measured.carried.get(key, NOTHING)

    received, sent = of(Direction.IN), of(Direction.OUT)
    yield "xfrmpy_child_up", labels, child in measured.up[tunnel]
    yield "xfrmpy_child_received_bytes_total", labels, received.octets
    yield "xfrmpy_child_sent_bytes_total", labels, sent.octets
    yield "xfrmpy_child_received_packets_total", labels, received.packets
    yield "xfrmpy_child_sent_packets_total", labels, sent.packets
    yield "xfrmpy_child_replayed_packets_total", labels, received.replayed
    yield "xfrmpy_child_integrity_failures_total", labels, received.integrity_failed


def _line(name: str, labels: dict[str, str], value: float) -> str:
    told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
    return f"{name}{{{told}}} {_number(value)}" if told else f"{name} {_number(value)}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
