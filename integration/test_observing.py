"""Looking at a real daemon: its events, what it waits for, why a tunnel failed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading

import pytest

from integration.lab.gateway import XFRMPY, Answer, XfrmpyGateway
from integration.lab.process import eventually
from integration.lab.site import Site
from xfrmpy.control.protocol import Event

pytestmark = pytest.mark.native


def pair(site: Site, **keys: str) -> tuple[XfrmpyGateway, XfrmpyGateway]:
    tunnel = site.network.tunnel()
    return (
        site.xfrmpy(site.network.moon, tunnel, **keys),
        site.xfrmpy(site.network.sun, tunnel.mirrored()),
    )


def events(gateway: XfrmpyGateway) -> list[Event]:
    answer = gateway.command("log", "net0", "-n", "1000", "-o", "json")
    assert answer.code == 0
    return [Event(**json.loads(line)) for line in answer.output.splitlines()]


def test_a_tunnels_life_is_told_by_its_events(site: Site) -> None:
    ours, theirs = pair(site)
    site.connect(ours, theirs)
    ours.rekey()
    ours.terminate()
    told = events(ours)
    names = [event.event for event in told]
    life = ["tunnel-placed", "ike-sa-established", "child-sa-established", "child-sa-rekeyed"]
    life += ["ike-sa-rekeyed", "tunnel-closed"]
    places = [names.index(name) for name in life]
    assert places == sorted(places)
    assert [event.number for event in told] == sorted({event.number for event in told})
    established = told[names.index("child-sa-established")]
    assert established.details["spi_in"].startswith("0x")
    eventually("sun to hear of it", lambda: events(theirs)[-1].event == "tunnel-lost")


def test_describe_tells_what_is_due_and_what_has_been(site: Site) -> None:
    ours, theirs = pair(site)
    site.connect(ours, theirs)
    answer = ours.command("describe", "net0", "-o", "json")
    assert answer.code == 0
    told = json.loads(answer.output)
    (ike_sa,), (child_sa,) = told["ike_sas"], told["child_sas"]
    assert 0.79 * 4 * 3600 < ike_sa["rekey_in_seconds"] < 0.9 * 4 * 3600
    assert 0.79 * 3600 < child_sa["rekey_in_seconds"] < 0.9 * 3600
    assert child_sa["rekey_in_seconds"] < child_sa["expires_in_seconds"] <= 3600
    assert told["policy"]["children"][0]["child"] == "net0"
    assert told["events"][-1]["tunnel"] == "net0"
    human = ours.command("describe", "net0")
    assert human.code == 0
    assert re.search(r"Child SA\s+net0 0x\w+ +rekeyed in \d+m", human.output)
    assert "last failure" not in human.output


def test_describe_tells_why_a_tunnel_failed_after_it_was_mended(site: Site) -> None:
    """The peer's daemon is not there at first; the failure is still told when it is."""
    tunnel = site.network.tunnel()
    ours = site.xfrmpy(site.network.moon, tunnel, retransmission={"tries": 1, "initial": "500ms"})
    assert ours.command("up", "net0").code == 4
    described = ours.command("describe", "net0")
    assert described.code == 3
    assert "XF2001" in described.output
    assert "UDP ports 500 and 4500 are filtered" in described.output
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored())
    site.connect(ours, theirs)
    described = ours.command("describe", "net0")
    assert described.code == 0
    assert "last failure, at 20" in described.output


def test_wait_comes_back_when_the_tunnel_does(site: Site) -> None:
    ours, theirs = pair(site)
    answers: list[Answer] = []

    def wait(state: str, timeout: str) -> None:
        answers.append(ours.command("wait", "net0", "--for", state, "--timeout", timeout))

    wait("up", "1s")
    waiting = threading.Thread(target=wait, args=("up", "60s"))
    waiting.start()
    site.connect(ours, theirs)
    waiting.join()
    waiting = threading.Thread(target=wait, args=("down", "60s"))
    waiting.start()
    ours.terminate()
    waiting.join()
    assert [answer.code for answer in answers] == [4, 0, 0]
    assert [answer.output for answer in answers] == ["", "net0 is up\n", "net0 is down\n"]


def test_metrics_go_through_rekeying_and_tell_of_what_is_down(site: Site) -> None:
    tunnel = site.network.tunnel()
    file = site.log.with_name("xfrmpy.prom")
    ours = site.xfrmpy(
        site.network.moon,
        tunnel,
        options=("--metrics", "127.0.0.1:9788", "--metrics-file", str(file)),
    )
    theirs = site.xfrmpy(site.network.sun, tunnel.mirrored())
    series = '{tunnel="net0",child="net0"}'

    def metric(name: str) -> float:
        answer = ours.command("metrics")
        assert answer.code == 0
        return float(next(x for x in answer.output.splitlines() if x.startswith(name)).split()[-1])

    assert metric(f"xfrmpy_child_up{series}") == 0
    site.connect(ours, theirs)
    assert metric(f"xfrmpy_child_up{series}") == 1
    bob = site.network.bob.inside_address()
    received = f"xfrmpy_child_received_packets_total{series}"
    before = metric(received)
    site.network.alice.run("ping", "-n", "-c", "5", "-i", "0.2", bob)
    ours.rekey()
    site.network.alice.run("ping", "-n", "-c", "5", "-i", "0.2", bob)
    assert metric(received) == before + 10
    ours.terminate()
    assert metric(received) == before + 10
    assert metric(f"xfrmpy_child_up{series}") == 0
    assert metric('xfrmpy_rekeyings_total{tunnel="net0",sa="ike"}') == 1
    fetch = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:9788/metrics').read())"
    assert "xfrmpy_child_up" in site.network.moon.run("python3", "-c", fetch)
    assert "xfrmpy_child_up" in file.read_text()
    ours.stop()
    assert not file.exists()


def test_who_watches_sees_each_change_as_it_comes(site: Site) -> None:
    ours, theirs = pair(site)
    watcher = subprocess.Popen(
        ours.host.command(XFRMPY, "status", "--watch", "-o", "json"),
        env={**os.environ, **ours.environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watcher.stdout is not None
    lines = iter(watcher.stdout)
    try:
        assert json.loads(next(lines))["state"] == "down"
        site.connect(ours, theirs)
        states: list[str] = []
        while states[-1:] != ["up"]:
            states.append(json.loads(next(lines))["state"])
        ours.terminate()
        while states[-1] != "down":
            states.append(json.loads(next(lines))["state"])
    finally:
        watcher.send_signal(signal.SIGINT)
        watcher.communicate(timeout=20)
    assert watcher.returncode == 0
