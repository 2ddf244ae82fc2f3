"""`xfrmpy doctor`: each check on a host that is well but for one thing, and how it is told."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import STATUS_REPLY
from tests.statuses import OFFICE
from xfrmpy.cli.doctor.checks import CHECKS, diagnose
from xfrmpy.cli.doctor.findings import Finding, Verdict
from xfrmpy.cli.doctor.host import Clock, Host, Place, Process, UdpSocket, Unseen, read_processes
from xfrmpy.cli.doctor.report import tell_findings
from xfrmpy.control.kernel import DefaultInForce, KernelReply
from xfrmpy.control.protocol import StatusReply
from xfrmpy.control.trial import TrialReply
from xfrmpy.failures import CATALOGUE, Failure
from xfrmpy.policy.load import LoadedPolicy, load_files

Golden = Callable[[str, str], None]
Captured = pytest.CaptureFixture[str]

TRIAL = TrialReply(
    kernel="",
    missing={"beet mode": "cannot use beet mode: no"},
    suites=["aes128gcm16", "aes256gcm16"],
    modes=["transport", "tunnel"],
    tun="",
    nf_tables="",
)
NO_ESP = replace(TRIAL, kernel="this kernel has no ESP", suites=[], modes=[])
CHARON = Process(pid=99, name="charon", arguments=("/usr/lib/ipsec/charon",))
OURS = Process(pid=7, name="python3", arguments=("python3", "-P", "-m", "xfrmpy.daemon"))
SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv4/ip_no_pmtu_disc": "0",
    **{
        f"net/ipv4/conf/{device}/{key}": value
        for device in ("all", "default", "eth0", "lo")
        for key, value in {
            "rp_filter": "0",
            "disable_xfrm": "1" if device == "lo" else "0",
            "disable_policy": "1" if device == "lo" else "0",
            "accept_redirects": "0",
            "send_redirects": "0",
        }.items()
    },
}
DOES_NOT_RUN = Failure(
    code="XF4001",
    summary="no daemon listens at the control socket",
    evidence=(("socket", "/run/xfrmpy/control.sock"),),
)
CHAIN: dict[str, Any] = {
    "chain": {
        "family": "inet",
        "table": "filter",
        "name": "input",
        "handle": 500,
        "type": "filter",
        "hook": "input",
        "prio": 0,
        "policy": "drop",
    }
}
POLICY = """
tunnels:
  office: {peer: 203.0.113.7, psk: "file:PSK", local: 10.1.0.0/16, remote: 10.2.0.0/16, start: auto}
"""


def rule(right: object) -> dict[str, Any]:
    """One on UDP destination ports, as `nft -j` has it."""
    left = {"payload": {"protocol": "udp", "field": "dport"}}
    match = {"match": {"op": "==", "left": left, "right": right}}
    return {"rule": {"family": "inet", "table": "filter", "handle": 4500, "expr": [match]}}


def default(action: str, owner: str = "") -> KernelReply:
    """A kernel with this default policy for what comes in."""
    into = DefaultInForce(owner=owner, direction="in", action=action)
    out = DefaultInForce(owner="", direction="out", action="bypass")
    return KernelReply(
        sas=[], policies=[], defaults=[into, out], interfaces=[], errors=[], unread={}
    )


def load(directory: Path, text: str = POLICY, secret: str = "k" * 32) -> LoadedPolicy:
    key = directory / "key"
    key.write_text(secret)
    key.chmod(0o600)
    file = directory / "tunnels.yaml"
    file.write_text(text.replace("PSK", str(key)))
    return load_files([file], secrets=[])


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """One on which all is well."""
    return Host(
        user=0,
        version="0.1.0",
        trusted=frozenset({0}),
        trial=TRIAL,
        daemon=replace(STATUS_REPLY, tunnels=[OFFICE]),
        policy=load(tmp_path),
        places=(
            Place(path="/etc/xfrmpy", mode=0o755, owner=0, is_directory=True),
            Place(path="/etc/xfrmpy/conf.d/office.yaml", mode=0o644, owner=0),
            Place(path="/etc/xfrmpy/secrets/office", mode=0o400, owner=0, is_secret=True),
        ),
        unread=(),
        sockets=tuple(
            UdpSocket(address="0.0.0.0", port=port, owners=(OURS,)) for port in (500, 4500)
        ),
        others=(),
        settings=SYSCTLS,
        mtus={"eth0": 1500, "lo": 65536},
        clock=Clock(now=2e9, installed_at=1.9e9, is_synchronised=True),
        units={"xfrmpyd.service": "enabled", "xfrmpy-block.service": "enabled"},
        ruleset=(CHAIN, rule({"set": [500, {"range": [4000, 4999]}]})),
        kernel=default("bypass"),
    )


def found(host: Host, check: str) -> list[Finding]:
    """What is not well, or not seen."""
    findings = diagnose(host)
    assert {finding.check for finding in findings} == set(CHECKS)
    worse = [finding for finding in findings if finding.verdict is not Verdict.OK]
    assert {finding.check for finding in worse} <= {check}
    return worse


def only(host: Host, check: str) -> Finding:
    (finding,) = found(host, check)
    if finding.verdict is Verdict.PROBLEM:
        assert finding.fixes
    return finding


def test_a_host_that_is_well_has_nothing_but_ok(host: Host) -> None:
    assert {finding.verdict for finding in diagnose(host)} == {Verdict.OK}


def test_every_code_is_one_of_the_catalogue(host: Host) -> None:
    ill = replace(host, daemon=DOES_NOT_RUN, sockets=(UdpSocket(address="::", port=500),))
    assert {f.code for f in diagnose(ill) if f.code} <= set(CATALOGUE)


def test_the_reference_has_every_check() -> None:
    """docs/doctor.md: a row for each, in their order."""
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE)
    assert rows == [*Verdict, *CHECKS]


SETTINGS = [
    ("forwarding", "problem", {"net/ipv4/ip_forward": "0"}, "net.ipv4.ip_forward=1"),
    ("protection", "problem", {"net/ipv4/conf/eth0/disable_xfrm": "1"}, "eth0.disable_xfrm"),
    ("protection", "problem", {"net/ipv4/conf/all/disable_policy": "1"}, "all.disable_policy"),
    ("redirects", "note", {"net/ipv4/conf/all/send_redirects": "1"}, "send_redirects=0"),
    ("redirects", "note", {"net/ipv4/conf/eth0/send_redirects": "1"}, "send_redirects=0"),
    ("mtu", "note", {"net/ipv4/ip_no_pmtu_disc": "1"}, "ip_no_pmtu_disc=0"),
    ("reverse-path", "note", {"net/ipv4/conf/xfrmpy0/rp_filter": "1"}, "xfrmpy0.rp_filter=2"),
]


@pytest.mark.parametrize(("check", "verdict", "changed", "fix"), SETTINGS)
def test_a_setting_that_is_in_the_way_is_found_with_its_fix(
    host: Host, check: str, verdict: str, changed: dict[str, str], fix: str
) -> None:
    finding = only(replace(host, settings={**SYSCTLS, **changed}), check)
    assert finding.verdict == verdict
    assert fix in finding.fixes[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"net/ipv4/conf/eth0/rp_filter": "1"},  # what is decrypted there passes it
        {"net/ipv4/conf/eth0/accept_redirects": "1"},  # `all` does not: a router believes none
        {"net/ipv4/conf/all/rp_filter": "1"},
        {"net/ipv6/conf/all/forwarding": "0"},  # no subnet of IPv6
    ],
)
def test_a_setting_that_is_in_nobodys_way_is_not_told_of(
    host: Host, changed: dict[str, str]
) -> None:
    assert found(replace(host, settings={**SYSCTLS, **changed}), "") == []


def test_a_tunnel_between_two_hosts_wants_no_forwarding(host: Host, tmp_path: Path) -> None:
    text = POLICY.replace("10.1.0.0/16", "10.1.0.1/32")
    off = {**SYSCTLS, "net/ipv4/ip_forward": "0"}
    assert found(replace(host, policy=load(tmp_path, text), settings=off), "") == []


def test_a_kernel_without_esp_is_a_note_or_a_problem_as_policy_has_it(
    host: Host, tmp_path: Path
) -> None:
    without = replace(host, trial=NO_ESP)
    assert only(without, "kernel").verdict == "note"
    strict = load(tmp_path, POLICY.replace("start: auto", "datapath: kernel"))
    finding = only(replace(without, policy=strict), "kernel")
    assert (finding.verdict, finding.code) == ("problem", "XF3001")
    assert ("`datapath: kernel`", "office") in finding.evidence


def test_no_tun_matters_where_user_space_is_needed(host: Host, tmp_path: Path) -> None:
    lacking = replace(host, trial=replace(TRIAL, tun="/dev/net/tun cannot be opened"))
    assert only(lacking, "userspace").verdict == "note"
    wanting = load(tmp_path, POLICY.replace("start: auto", "datapath: userspace"))
    assert only(replace(lacking, policy=wanting), "userspace").verdict == "problem"
    neither = replace(host, trial=replace(NO_ESP, tun="/dev/net/tun cannot be opened"))
    verdicts = {f.check: f.verdict for f in diagnose(neither)}
    assert (verdicts["kernel"], verdicts["userspace"]) == ("note", "problem")


def test_a_port_is_free_or_ours_or_somebodys_or_nobody_knows(host: Host) -> None:
    ours = [f.summary for f in diagnose(host) if f.check == "ports"]
    assert ours == ["UDP port 500 is ours", "UDP port 4500 is ours"]
    assert found(replace(host, sockets=()), "") == []
    taken = UdpSocket(address="192.0.2.1", port=500, owners=(CHARON,))
    finding = only(replace(host, sockets=(taken,)), "ports")
    assert (finding.verdict, finding.code) == ("problem", "XF4002")
    assert finding.evidence[0] == ("held by", "charon (process 99)")
    hidden = replace(taken, owners=())
    assert only(replace(host, sockets=(hidden,)), "ports").verdict == "unseen"


def test_another_daemon_is_a_note_which_says_what_is_not_known_of_it(host: Host) -> None:
    finding = only(replace(host, others=(CHARON,)), "other-daemons")
    assert (finding.verdict, len(finding.evidence)) == ("note", 1)
    unsure = replace(CHARON, elsewhere=None)
    evidence = dict(only(replace(host, others=(unsure,)), "other-daemons").evidence)
    assert "charon" in evidence["maybe elsewhere"]


def test_an_error_of_the_policy_has_its_code_and_place(host: Host, tmp_path: Path) -> None:
    bad = load(tmp_path, POLICY.replace("remote: 10.2.0.0/16", "remote: 10.2.0.0/33"))
    finding = only(replace(host, policy=bad), "policy")
    assert (finding.verdict, finding.code) == ("problem", "XF1004")
    assert finding.evidence[0][1].startswith(f"{tmp_path}/tunnels.yaml:3:")


def test_a_short_secret_is_a_note_without_the_secret(host: Host, tmp_path: Path) -> None:
    weak = load(tmp_path, secret="hunter2")
    finding = only(replace(host, policy=weak), "policy")
    assert (finding.verdict, finding.fixes[0]) == (
        "note",
        "make one with `openssl rand -base64 32`",
    )
    assert "hunter2" not in repr(diagnose(replace(host, policy=weak)))


@pytest.mark.parametrize(
    ("place", "fix"),
    [
        (Place(path="/p", mode=0o640, owner=0, is_secret=True), "`chmod 600 /p`"),
        (Place(path="/p", mode=0o664, owner=0), "`chmod go-w /p`"),
        (Place(path="/p", mode=0o757, owner=0, is_directory=True), "`chmod go-w /p`"),
        (Place(path="/p", mode=0o644, owner=1000), "`chown root /p`"),
    ],
)
def test_what_others_may_change_or_read_is_a_problem(host: Host, place: Place, fix: str) -> None:
    finding = only(replace(host, places=(*host.places, place)), "files")
    assert (finding.verdict, finding.fixes) == ("problem", (fix,))


def test_a_chain_that_drops_is_told_of_if_no_rule_names_a_port(host: Host) -> None:
    assert found(host, "") == []
    assert found(replace(host, ruleset=()), "") == []
    half = only(replace(host, ruleset=(CHAIN, rule(500))), "firewall")
    assert half.verdict == "note"
    assert half.summary.endswith("no rule names UDP 4500")
    assert half.evidence == (("drops", "inet filter input"),)
    none = only(replace(host, ruleset=(CHAIN, rule({"range": [1, 499]}))), "firewall")
    assert none.summary.endswith("UDP 500 or 4500")


def test_a_default_policy_that_drops_is_told_of_if_it_is_not_ours_or_stops_user_space(
    host: Host,
) -> None:
    assert found(replace(host, kernel=default("discard", "ours")), "") == []
    foreign = only(replace(host, kernel=default("discard", "foreign")), "default-policy")
    assert (foreign.verdict, foreign.evidence) == ("note", (("drops", "in (foreign)"),))
    without = replace(host, trial=NO_ESP, kernel=default("discard", "foreign"))
    worse = [f for f in diagnose(without) if f.check == "default-policy"]
    assert [(f.verdict, "user space" in f.summary) for f in worse] == [("problem", True)]
    unread = replace(host, kernel=replace(default("bypass"), unread={"kernel": "no right to it"}))
    assert only(unread, "default-policy").verdict is Verdict.UNSEEN


def test_a_daemon_of_another_version_is_a_problem(host: Host) -> None:
    assert isinstance(host.daemon, StatusReply)
    finding = only(replace(host, daemon=replace(host.daemon, version="0.0.9")), "daemon")
    assert finding.verdict == "problem"
    assert dict(finding.evidence) == {"daemon": "0.0.9", "command": "0.1.0"}


def test_no_daemon_is_a_problem_if_a_tunnel_waits_for_one(host: Host, tmp_path: Path) -> None:
    finding = only(replace(host, daemon=DOES_NOT_RUN), "daemon")
    assert (finding.verdict, finding.code) == ("problem", "XF4001")
    by_hand = load(tmp_path, POLICY.replace("start: auto", "start: manual"))
    assert only(replace(host, daemon=DOES_NOT_RUN, policy=by_hand), "daemon").verdict == "note"


def test_a_tunnel_that_has_failed_is_a_note(host: Host) -> None:
    finding = only(replace(host, daemon=STATUS_REPLY), "daemon")
    assert finding.summary.startswith("tunnel branch has failed: XF2005")
    assert "`xfrmpy describe branch`" in finding.fixes[0]


@pytest.mark.parametrize("state", ["disabled", "masked", "not-found"])
def test_what_is_not_started_at_boot_is_a_note(host: Host, state: str) -> None:
    units = {"xfrmpyd.service": "enabled", "xfrmpy-block.service": state}
    finding = only(replace(host, units=units), "units")
    assert finding.verdict == "note"
    assert "systemctl enable --now xfrmpy-block xfrmpyd" in finding.fixes[0]


def test_a_clock_is_before_its_time_or_by_itself(host: Host) -> None:
    behind = Clock(now=1.0, installed_at=1.9e9, is_synchronised=True)
    assert only(replace(host, clock=behind), "clock").verdict == "problem"
    alone = replace(host.clock, is_synchronised=False)
    assert only(replace(host, clock=alone), "clock").verdict == "note"


def test_a_device_for_small_packets_only_is_a_note(host: Host) -> None:
    finding = only(replace(host, mtus={"lo": 576, "eth0": 1500, "ppp0": 1000}), "mtu")
    assert finding.evidence == (("ppp0", "MTU 1000"),)


def test_what_cannot_be_seen_is_neither_well_nor_ill(host: Host) -> None:
    blind = replace(
        host,
        user=1000,
        trial=Unseen("no namespaces"),
        units=Unseen("no systemd"),
        ruleset=Unseen("Operation not permitted"),
        kernel=Unseen("Operation not permitted"),
        settings={},
        unread=("/etc/xfrmpy/secrets: Permission denied",),
    )
    unseen = {f.check for f in diagnose(blind) if f.verdict is Verdict.UNSEEN}
    assert unseen == {
        *("kernel", "userspace", "firewall", "units", "files", "default-policy"),
        *("forwarding", "reverse-path", "protection", "redirects"),
    }
    assert not [f for f in diagnose(blind) if f.verdict is Verdict.PROBLEM]


@pytest.fixture
def ill(host: Host, tmp_path: Path) -> Host:
    """With a path that is the same in every run, and so are columns behind one."""
    policy = load(tmp_path, POLICY.replace("start: auto", "start: often"))
    errors = tuple(replace(e, file="/etc/xfrmpy/conf.d/a.yaml", column=1) for e in policy.errors)
    return replace(
        host,
        trial=NO_ESP,
        policy=replace(host.policy, errors=errors),
        sockets=(UdpSocket(address="::", port=500, owners=(CHARON,)),),
        others=(CHARON,),
        settings={**SYSCTLS, "net/ipv4/ip_forward": "0"},
        units=Unseen("this host does not run systemd"),
        daemon=DOES_NOT_RUN,
    )


@pytest.mark.usefixtures("runtime_dir")
def test_it_is_told_with_evidence_and_what_to_do(
    ill: Host, capsys: Captured, golden: Golden
) -> None:
    assert tell_findings(diagnose(ill), as_json=False) == 1
    golden("doctor.txt", capsys.readouterr().out)
    assert tell_findings(diagnose(ill), as_json=True) == 1
    golden("doctor.json", capsys.readouterr().out)


@pytest.mark.usefixtures("runtime_dir")
@pytest.mark.parametrize("columns", [60, 80])
def test_no_line_is_wider_than_the_terminal(
    ill: Host, columns: int, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    tell_findings(diagnose(ill), as_json=False)
    text = capsys.readouterr().out
    commands = [line for line in text.splitlines() if "`" in line]  # never taken apart
    assert all(len(line) <= columns for line in text.splitlines() if line not in commands)


def test_a_host_without_problems_ends_with_zero(host: Host, capsys: Captured) -> None:
    assert tell_findings(diagnose(host), as_json=True) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert counts == {"ok": len(diagnose(host)), "note": 0, "problem": 0, "unseen": 0}


def test_a_daemon_that_has_ended_does_not_run() -> None:
    """Its parent has not asked for its end yet, so that /proc still has it, by its name."""
    script = "import os; open('/proc/self/comm', 'w').write('charon')"
    with subprocess.Popen([sys.executable, "-c", script]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert Path(f"/proc/{ended.pid}/comm").read_text() == "charon\n"
        assert not [process for process in read_processes() if process.pid == ended.pid]
    assert [process for process in read_processes() if process.pid == os.getpid()]


def test_this_machine_is_examined_whoever_runs_the_tests(runtime_dir: Path) -> None:
    """Whatever is found: every check says something, and nothing is left out in silence."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "xfrmpy.cli", "doctor", "-o", "json"],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "XFRMPY_RUNTIME_DIR": str(runtime_dir)},
    )
    document = json.loads(done.stdout)
    assert (document["api"], document["kind"]) == ("xfrmpy/v1", "Doctor")
    assert {finding["check"] for finding in document["findings"]} == set(CHECKS)
    assert done.returncode == (1 if document["counts"]["problem"] else 0)
    (daemon,) = [finding for finding in document["findings"] if finding["check"] == "daemon"]
    assert {"label": "socket", "seen": str(runtime_dir / "control.sock")} in daemon["evidence"]
