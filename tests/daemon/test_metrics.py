"""The metrics as Prometheus' own parser reads them, and what the docs say of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.daemon.test_history import EVENT
from tests.daemon.test_varlink import TUNNEL
from xfrmpy.control.protocol import FailureReply
from xfrmpy.daemon.metrics import FAMILIES, Measured, render
from xfrmpy.daemon.tally import Tally
from xfrmpy.daemon.totals import Carrier
from xfrmpy.ipsec.sad import Direction, Usage

DOCS = Path(__file__).parent.parent.parent / "docs"

HOSTILE = 'a"b\\c\nd{e},f'


def measured() -> Measured:
    up = replace(TUNNEL, name="office", state="up", datapath="kernel", seconds_up=60.5)
    failure = FailureReply(code="XF2001", summary="", evidence=[])
    down = replace(TUNNEL, name="branch", state="down", failure=failure)
    tally = Tally()
    told = replace(EVENT, tunnel="office")
    for event in (
        replace(told, event="ike-sa-established", details={"is_initiator": "yes"}),
        replace(told, event="child-sa-rekeyed"),
        replace(told, event="child-sa-rekeyed"),
        replace(told, tunnel="branch", event="tunnel-failed", code="XF2001"),
    ):
        tally.count(event)
    usage = Usage(octets=1 << 60, packets=3, replayed=2, integrity_failed=1)
    carried = {Carrier(tunnel="office", child="lan", direction=Direction.IN): usage}
    return Measured(
        version="0.1.0",
        started=1764090000.25,
        tunnels=[down, up],
        children={"office": ["lan", "voice"], "branch": [HOSTILE]},
        ike_sas={"office": 1, "branch": 0},
        up={"office": {"lan"}, "branch": set()},
        carried=carried,
        tally=tally,
        missed=7,
        drops={"malformed": 4, "esp-replayed": 0},
        expiries={("office", "ours"): 1790000000.0, ("office", "authorities"): 1990000000.0},
    )


def samples() -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(render(measured())):
        for sample in family.samples:
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in found.setdefault(sample.name, {}), "a series twice"
            found[sample.name][labels] = sample.value
    return found


def value(name: str, **labels: str) -> float:
    return samples()[name][tuple(sorted(labels.items()))]


def test_prometheus_reads_every_family_of_the_table_with_its_type_and_help() -> None:
    families = {f.name: f for f in text_string_to_metric_families(render(measured()))}
    for name, family in FAMILIES.items():
        read = families[name.removesuffix("_total")]
        assert (read.type, read.documentation) == (family.kind, family.help)
    assert len(families) == len(FAMILIES)


def test_counters_end_in_total_and_nothing_else_does() -> None:
    assert {n for n, f in FAMILIES.items() if f.kind == "counter"} == {
        n for n in FAMILIES if n.endswith("_total")
    }


def test_a_child_that_is_down_has_its_series_all_the_same() -> None:
    assert value("xfrmpy_child_up", tunnel="office", child="lan") == 1
    assert value("xfrmpy_child_up", tunnel="office", child="voice") == 0
    assert value("xfrmpy_child_up", tunnel="branch", child=HOSTILE) == 0
    assert value("xfrmpy_tunnel_up", tunnel="branch") == 0
    assert value("xfrmpy_child_sent_bytes_total", tunnel="branch", child=HOSTILE) == 0


def test_values_are_those_that_were_measured() -> None:
    child = {"tunnel": "office", "child": "lan"}
    assert value("xfrmpy_child_received_bytes_total", **child) == 1 << 60
    assert value("xfrmpy_child_replayed_packets_total", **child) == 2
    assert value("xfrmpy_child_integrity_failures_total", **child) == 1
    assert value("xfrmpy_tunnel_established_seconds", tunnel="office") == 60.5
    assert value("xfrmpy_tunnel_datapath", tunnel="office", datapath="kernel") == 1
    assert value("xfrmpy_tunnel_failure", tunnel="branch", code="XF2001") == 1
    assert value("xfrmpy_rekeyings_total", tunnel="office", sa="child") == 2
    assert value("xfrmpy_handshakes_total", role="initiator", result="established") == 1
    assert value("xfrmpy_handshakes_total", role="responder", result="failed") == 1
    assert value("xfrmpy_failures_total", tunnel="branch", code="XF2001") == 1
    assert value("xfrmpy_drops_total", reason="malformed") == 4
    assert value("xfrmpy_events_missed_total") == 7
    assert value("xfrmpy_build_info", version="0.1.0") == 1
    assert value("xfrmpy_start_time_seconds") == 1764090000.25
    name = "xfrmpy_certificate_expiry_time_seconds"
    assert value(name, tunnel="office", whose="ours") == 1790000000
    assert value(name, tunnel="office", whose="authorities") == 1990000000


def test_a_large_counter_is_told_to_the_last_octet() -> None:
    assert f'child="lan"}} {1 << 60}\n' in render(measured())


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\bxfrmpy_\w+", expression))


def test_every_metric_of_the_alerts_is_one_that_the_daemon_tells() -> None:
    rules: Any = yaml.safe_load((DOCS / "alerts.yml").read_text())
    alerts = [rule for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) >= 5
    told = samples()
    for alert in alerts:
        assert names_in(alert["expr"])
        assert names_in(alert["expr"]) <= told.keys()
        assert {"severity"} <= alert["labels"].keys()
        assert {"summary", "description"} <= alert["annotations"].keys()
    assert len({alert["alert"] for alert in alerts}) == len(alerts)


def test_every_metric_of_the_dashboard_is_one_that_the_daemon_tells() -> None:
    dashboard: Any = json.loads((DOCS / "dashboard.json").read_text())
    expressions = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    variables = [v["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    assert len(expressions) >= 8
    told = samples()
    for expression in expressions + variables:
        assert names_in(expression)
        assert names_in(expression) <= told.keys()


def test_labels_of_alerts_and_dashboard_are_labels_of_their_metrics() -> None:
    told = {
        name: {label for series in found for label, _ in series}
        for name, found in samples().items()
    }
    text = (DOCS / "alerts.yml").read_text() + (DOCS / "dashboard.json").read_text()
    for name, selector in re.findall(r"\b(xfrmpy_\w+)\{([^}]*)\}", text):
        assert set(re.findall(r"(\w+)\s*(?:=~|!=|=)", selector)) <= told[name], name


def test_the_page_of_monitoring_has_the_table() -> None:
    rows = [f"| `{name}` | {family.kind} | {family.help} |" for name, family in FAMILIES.items()]
    assert "\n".join(rows) in (DOCS / "monitoring.md").read_text()
