"""`status`, `up` and `down` against a daemon on a real socket: words, documents, exit codes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from xfrmpy.cli.main import run
from xfrmpy.cli.wait import parse_span
from xfrmpy.control.protocol import FailureReply, StatusReply


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Events are told in the time of the host."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


Golden = Callable[[str, str], None]
Captured = pytest.CaptureFixture[str]


class Daemon(Protocol):
    runtime_dir: Path
    status: StatusReply
    changed: bool
    warning: FailureReply | None
    missed: int
    calls: list[tuple[str, str | None]]


def document(capsys: Captured) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(
    ("arguments", "name", "code"),
    [
        (["status"], "status.txt", 0),
        (["status", "office"], "status-office.txt", 0),
        (["status", "branch"], "status-branch.txt", 3),
        (["status", "lab"], "status-lab.txt", 3),
        (["status", "-o", "json"], "status.json", 0),
        (["status", "office", "-o", "json"], "status-office.json", 0),
        (["status", "branch", "--output", "json"], "status-branch.json", 3),
        (["up", "office", "-o", "json"], "up.json", 0),
        (["up", "branch", "-o", "json"], "up-refused.json", 5),
        (["down", "office", "-o", "json"], "down.json", 0),
        (["rekey", "office", "-o", "json"], "rekey.json", 0),
        (["describe", "office"], "describe-office.txt", 0),
        (["describe", "branch"], "describe-branch.txt", 3),
        (["describe", "office", "-o", "json"], "describe-office.json", 0),
        (["describe", "branch", "-o", "json"], "describe-branch.json", 3),
        (["plan"], "plan.txt", 0),
        (["plan", "--detailed-exitcode", "-o", "json"], "plan.json", 2),
        (["diff"], "diff.txt", 0),
        (["diff", "--detailed-exitcode"], "diff.txt", 2),
        (["apply"], "apply.txt", 0),
        (["apply", "--confirm", "2m"], "apply-confirm.txt", 0),
        (["apply", "-o", "json", "--confirm", "120"], "apply.json", 0),
        (["confirm"], "confirm.txt", 0),
        (["confirm", "-o", "json"], "confirm.json", 0),
        (["rollback"], "rollback.txt", 0),
        (["rollback", "-o", "json"], "rollback.json", 0),
        (["log"], "log.txt", 0),
        (["log", "branch"], "log-branch.txt", 0),
        (["log", "-o", "json"], "log.json", 0),
        (["metrics"], "metrics.txt", 0),
        (["metrics", "-o", "json"], "metrics.json", 0),
        (["show", "kernel"], "show-kernel.txt", 0),
        (["show", "kernel", "office"], "show-kernel-office.txt", 0),
        (["show", "kernel", "-o", "json"], "show-kernel.json", 0),
        (["wait", "office"], "wait.txt", 0),
        (["wait", "office", "--timeout", "2m", "-o", "json"], "wait.json", 0),
    ],
)
def test_the_answer_is_the_golden_one(
    arguments: list[str], name: str, code: int, capsys: Captured, golden: Golden
) -> None:
    assert run(arguments) == code
    golden(name, capsys.readouterr().out)


def test_a_failure_tells_evidence_causes_and_what_to_do(
    daemon: Daemon, capsys: Captured, golden: Golden
) -> None:
    daemon.changed = False
    assert run(["up", "branch"]) == 5
    captured = capsys.readouterr()
    assert captured.out == ""
    golden("up-refused.txt", captured.err)


@pytest.mark.usefixtures("daemon")
def test_up_tells_its_steps_on_standard_error_and_its_result_on_standard_output(
    capsys: Captured,
) -> None:
    assert run(["up", "office"]) == 0
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "office   0.00s  IKE_SA_INIT to 198.51.100.1:500",
        "office   0.01s  IKE_AUTH to 198.51.100.1:4500",
    ]
    result = r"office is up: with 198\.51\.100\.1:4500, userspace datapath, in \d\.\ds\n"
    assert re.fullmatch(result, captured.out)


def test_up_of_a_tunnel_that_is_up_says_so_and_changes_nothing(
    daemon: Daemon, capsys: Captured
) -> None:
    daemon.changed = False
    assert run(["up", "office"]) == 0
    assert capsys.readouterr().out == "office is up already for 3h 12m: nothing changed\n"


def test_down_of_a_tunnel_that_is_down_says_so(daemon: Daemon, capsys: Captured) -> None:
    daemon.changed = False
    assert run(["down", "office"]) == 0
    assert capsys.readouterr().out == "office is down already: nothing changed\n"


@pytest.mark.usefixtures("daemon")
def test_rekey_says_that_it_is_done(capsys: Captured) -> None:
    assert run(["rekey", "office"]) == 0
    assert re.fullmatch(r"office is rekeyed, in \d\.\ds\n", capsys.readouterr().out)


def test_up_warns_of_what_will_go_wrong_and_is_a_success(daemon: Daemon, capsys: Captured) -> None:
    daemon.warning = FailureReply(
        code="XF2015",
        summary="the peer did not replace the Child SA office",
        evidence=[["we offered", "aes256gcm16-x25519"], ["they answered", "NO_PROPOSAL_CHOSEN"]],
    )
    assert run(["up", "office"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("office is up")
    assert "XF2015" in captured.err
    assert "aes256gcm16-x25519" in captured.err
    assert run(["up", "office", "-o", "json"]) == 0
    (told,) = document(capsys)["tunnels"]
    assert (told["warning"]["code"], told["failure"]) == ("XF2015", None)


def test_of_several_tunnels_the_rest_goes_on_and_the_worst_code_counts(
    daemon: Daemon, capsys: Captured
) -> None:
    assert run(["up", "branch", "office", "nowhere"]) == 64
    assert [tunnel for _, tunnel in daemon.calls] == ["branch", "office", "nowhere"]
    captured = capsys.readouterr()
    assert captured.out.startswith("office is up")
    assert "XF2005" in captured.err
    assert "XF1013" in captured.err


@pytest.mark.usefixtures("daemon")
def test_of_several_tunnels_the_document_has_each(capsys: Captured) -> None:
    assert run(["up", "office", "branch", "-o", "json"]) == 5
    office, branch = document(capsys)["tunnels"]
    assert (office["name"], office["changed"], office["failure"]) == ("office", True, None)
    assert (branch["name"], branch["changed"], branch["tunnel"]) == ("branch", False, None)
    assert branch["failure"]["code"] == "XF2005"


@pytest.mark.usefixtures("daemon")
def test_an_unknown_tunnel_is_a_mistake_of_the_caller(capsys: Captured) -> None:
    assert run(["status", "nowhere"]) == 64
    assert capsys.readouterr().err.startswith("XF1013  there is no tunnel of that name\n")


@pytest.mark.usefixtures("runtime_dir")
def test_without_a_daemon_each_command_says_how_to_start_it(capsys: Captured) -> None:
    for arguments in (["status"], ["up", "office", "branch"], ["down", "office"]):
        assert run(arguments) == 69
        told = capsys.readouterr().err
        assert told.count("XF4001") == 1
        assert "`systemctl start xfrmpyd`" in told


@pytest.mark.usefixtures("runtime_dir")
def test_without_a_daemon_the_document_is_a_failure(capsys: Captured) -> None:
    assert run(["status", "-o", "json"]) == 69
    assert document(capsys)["failure"]["code"] == "XF4001"
    assert run(["up", "office", "-o", "json"]) == 69
    assert document(capsys)["tunnels"][0]["failure"]["code"] == "XF4001"


def test_the_runtime_directory_can_be_given(
    daemon: Daemon, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XFRMPY_RUNTIME_DIR", "/nonexistent")
    assert run(["--runtime-dir", str(daemon.runtime_dir), "status", "office"]) == 0
    assert capsys.readouterr().out.startswith("office  up for 3h 12m, as initiator\n")


def test_a_daemon_without_tunnels_says_what_to_do(
    daemon: Daemon, empty_status: StatusReply, capsys: Captured, golden: Golden
) -> None:
    daemon.status = empty_status
    assert run(["status"]) == 0
    golden("status-empty.txt", capsys.readouterr().out)


def test_a_peer_cannot_write_to_the_terminal(
    daemon: Daemon, hostile_status: StatusReply, capsys: Captured
) -> None:
    daemon.status = hostile_status
    assert run(["status", "office"]) == 0
    out = capsys.readouterr().out
    assert r"\x1b[2J\x1b]0;owned\x07evil\u202e" in out
    assert all(character.isprintable() or character == "\n" for character in out)


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize(
    "arguments",
    [["status"], ["status", "office"], ["status", "branch"], ["describe", "office"]],
)
def test_no_line_is_wider_than_the_terminal(
    arguments: list[str], columns: int, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    run(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines
    # At 40 columns a command in backquotes or seven columns of a table may be longer than a line.
    assert max(map(len, lines)) <= max(columns, 72)


@pytest.mark.usefixtures("daemon")
def test_colour_is_for_terminals_unless_it_is_asked_for(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(["status"])
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")
    run(["status"])
    assert "\x1b[32mup\x1b[0m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    run(["status"])
    assert "\x1b" not in capsys.readouterr().out


def test_what_was_missed_is_said_where_it_is_missing(daemon: Daemon, capsys: Captured) -> None:
    daemon.missed = 1234
    assert run(["log"]) == 0
    assert capsys.readouterr().err.startswith("1,234 events are missing here")


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(
    ("span", "seconds"), [("90", 90.0), ("60s", 60.0), ("2m", 120.0), ("1.5h", 5400.0)]
)
def test_a_span_of_time_has_a_unit_or_is_seconds(span: str, seconds: float) -> None:
    assert parse_span(span) == seconds


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("span", ["", "soon", "-1", "1d", "nan", "1e9", "1 s"])
def test_what_is_no_span_of_time_is_a_mistake_of_the_caller(span: str, capsys: Captured) -> None:
    assert run(["wait", "office", f"--timeout={span}"]) == 64
    assert "no span of time" in capsys.readouterr().err
