"""`xfrmpy doctor` on real hosts: what it says is so, and goes away with the fix that it names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.lab.gateway import XFRMPY, Answer, ask, kernel_has_esp
from integration.lab.network import Host
from integration.lab.process import Background, eventually
from integration.lab.site import Site

pytestmark = pytest.mark.native

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
HOLD = "import socket, time; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
HOLD += "s.bind(('0.0.0.0', 500)); print('bound', flush=True); time.sleep(600)"

Findings = dict[str, list[dict[str, Any]]]


def examined(answer: Answer) -> Findings:
    """By the names of the checks."""
    assert answer.output, answer.errors
    document = json.loads(answer.output)
    assert answer.code == (1 if document["counts"]["problem"] else 0), answer.errors
    found: Findings = {}
    for finding in document["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    return found


def verdicts(found: Findings) -> dict[str, set[str]]:
    return {check: {f["verdict"] for f in findings} for check, findings in found.items()}


def doctor(host: Host, directory: Path, *prefix: str, **environment: str) -> Findings:
    """Without a daemon of ours there."""
    command = host.command(*prefix, XFRMPY, "doctor", "-o", "json")
    return examined(ask(command, {**surroundings(directory), **environment}))


def surroundings(directory: Path) -> Mapping[str, str]:
    return {
        "XFRMPY_CONFIG_PATH": str(directory / "etc/conf.d"),
        "XFRMPY_RUNTIME_DIR": str(directory / "run"),
    }


@contextmanager
def holding_port_500(host: Host, directory: Path) -> Iterator[int]:
    """The process of somebody who does."""
    holder = Background(host.command(sys.executable, "-c", HOLD), directory / "holder.log")
    try:
        eventually("the port to be held", lambda: "bound" in holder.output, seconds=60)
        yield holder.process.pid
    finally:
        holder.process.kill()
        holder.process.wait()


def test_a_gateway_that_works_has_no_problem_and_each_that_it_gets_is_found(site: Site) -> None:
    network = site.network
    moon = network.moon
    ours = site.xfrmpy(moon, network.tunnel())

    def see() -> Findings:
        return examined(ours.command("doctor", "-o", "json"))

    well = see()
    assert [f for findings in well.values() for f in findings if f["verdict"] == "problem"] == []
    assert verdicts(well)["kernel"] == {"ok" if kernel_has_esp(moon) else "note"}
    for check in ("policy", "files", "userspace", "ports", "forwarding", "protection", "daemon"):
        assert verdicts(well)[check] == {"ok"}, well[check]
    held = {e["label"]: e["seen"] for e in well["ports"][0]["evidence"]}
    assert f"(process {ours.pid})" in held["held by"]

    moon.run("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv4.conf.wan.disable_xfrm=1")
    ill = see()
    assert problems(ill) == {"forwarding", "protection"}
    mend(moon, ill)
    secret = ours.policies.parent / "secrets" / "net0"
    secret.chmod(0o644)
    ill = see()
    assert problems(ill) == {"policy"}
    assert ill["policy"][0]["code"] == "XF1009"
    mend(moon, ill)
    assert problems(see()) == set()


def problems(found: Findings) -> set[str]:
    return {check for check, given in verdicts(found).items() if "problem" in given}


def mend(host: Host, found: Findings) -> None:
    """Do what is said of each problem: the commands in it."""
    for finding in (f for findings in found.values() for f in findings):
        if finding["verdict"] == "problem":
            for fix in finding["fixes"]:
                for command in re.findall("`([^`]+)`", fix) or [fix]:
                    host.run(*command.split())


def test_a_firewall_that_lets_no_ike_in_is_seen(site: Site, tmp_path: Path) -> None:
    moon = site.network.moon
    assert verdicts(doctor(moon, tmp_path))["firewall"] == {"ok"}
    moon.run("nft", "add table inet lab")
    moon.run("nft", "add chain inet lab closed { type filter hook input priority 0; policy drop; }")
    (finding,) = doctor(moon, tmp_path)["firewall"]
    assert finding["verdict"] == "note"
    moon.run("sh", "-c", re.findall("`(nft [^`]+)`", finding["fixes"][0])[0])
    assert verdicts(doctor(moon, tmp_path))["firewall"] == {"ok"}


def test_a_default_policy_that_stops_user_space_is_seen(site: Site, tmp_path: Path) -> None:
    moon = site.network.moon
    assert verdicts(doctor(moon, tmp_path))["default-policy"] == {"ok"}
    moon.run("ip", "xfrm", "policy", "setdefault", "in", "block")
    ill = doctor(moon, tmp_path)
    stops = not kernel_has_esp(moon)
    assert verdicts(ill)["default-policy"] == {"problem" if stops else "note"}
    mend(moon, {"default-policy": ill["default-policy"]})
    if stops:
        assert verdicts(doctor(moon, tmp_path))["default-policy"] == {"ok"}


def test_who_holds_a_port_is_whom_the_daemon_blames(site: Site, tmp_path: Path) -> None:
    moon = site.network.moon
    with holding_port_500(moon, tmp_path) as pid:
        first, second = doctor(moon, tmp_path)["ports"]
        assert (first["code"], second["verdict"]) == ("XF4002", "ok")
        assert f"(process {pid})" in first["evidence"][0]["seen"]
        refused = ask(moon.command(XFRMPY, "daemon"), surroundings(tmp_path))
        assert (refused.code, "XF4002" in refused.errors) == (78, True), refused
    assert verdicts(doctor(moon, tmp_path))["ports"] == {"ok"}


def test_another_ipsec_daemon_is_seen_where_it_runs_and_nowhere_else(
    site: Site, tmp_path: Path
) -> None:
    network = site.network
    site.strongswan(network.sun, network.tunnel().mirrored())
    there, here = doctor(network.sun, tmp_path), doctor(network.moon, tmp_path)
    assert verdicts(there)["other-daemons"] == {"note"}
    assert "charon" in there["other-daemons"][0]["evidence"][0]["seen"]
    assert {f["code"] for f in there["ports"]} == {"XF4002"}
    assert verdicts(here)["other-daemons"] == {"ok"}


def test_without_root_it_says_what_it_could_not_see(site: Site, tmp_path: Path) -> None:
    """The system's own interpreter, for ours may be where nobody can go."""
    moon = site.network.moon
    paths = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    checkout = Path(__file__).resolve().parents[1]
    environment = {
        **surroundings(Path("/nonexistent")),
        "PYTHONPATH": f"{checkout}{os.pathsep}{paths}",
        "HOME": "/nonexistent",
    }
    command = (*NOBODY, "/usr/bin/python3", "-P", "-m", "xfrmpy.cli")
    usable = ask(moon.command(*command, "--help"), environment)
    if usable.code:
        pytest.skip(f"nobody cannot read this checkout: {usable.errors[-200:]}")
    with holding_port_500(moon, tmp_path):
        found = examined(ask(moon.command(*command, "doctor", "-o", "json"), environment))
    assert verdicts(found)["rights"] == {"note"}
    assert verdicts(found)["firewall"] == {"unseen"}
    assert [port["verdict"] for port in found["ports"]] == ["unseen", "ok"]
    can = subprocess.run([*NOBODY, "unshare", "-Urn", "true"], check=False).returncode == 0
    assert (verdicts(found)["userspace"] == {"ok"}) is can
