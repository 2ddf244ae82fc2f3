"""How commands end, whatever happens: usage, signals, pipes, defects; and how fast they begin."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol

import pytest
import typer

from xfrmpy import __version__
from xfrmpy.cli import status
from xfrmpy.cli.main import _app_for, _name_of, app, run

XFRMPY = [sys.executable, "-m", "xfrmpy.cli"]
Captured = pytest.CaptureFixture[str]


class Daemon(Protocol):
    holds: bool
    called: threading.Event


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["--fly"],
        ["up"],
        ["down"],
        ["status", "a", "b"],
        ["status", "-o", "xml"],
        ["status", "-o"],
        ["up", "office", "--timeout", "soon"],
        ["up", "office", "--timeout", "-1"],
        ["up", "office", "--timeout", "nan"],
        ["demo", "--datapath", "pigeon"],
    ],
)
@pytest.mark.usefixtures("runtime_dir")
def test_what_is_not_understood_exits_with_64(arguments: list[str], capsys: Captured) -> None:
    assert run(arguments) == 64
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert "xfrmpy" in captured.err + captured.out


def test_the_version_is_told(capsys: Captured) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"xfrmpy {__version__}\n"


@pytest.mark.parametrize("command", ["up", "down", "status", "check", "demo"])
def test_every_command_has_help(command: str, capsys: Captured) -> None:
    assert run([command, "--help"]) == 0
    assert f"Usage: xfrmpy {command}" in capsys.readouterr().out


@pytest.mark.usefixtures("runtime_dir")
def test_a_defect_has_a_code_and_a_place_and_no_traceback(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object, **__: object) -> int:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(status, "show_status", defect)
    assert run(["status"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("XF4006")
    assert "ZeroDivisionError: a defect" in told
    assert "test_ending.py:" in told
    assert "Traceback" not in told


def test_ctrl_c_is_quiet(daemon: Daemon) -> None:
    daemon.holds = True
    process = subprocess.Popen(
        [*XFRMPY, "up", "office"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    process.stderr.readline()
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize(("command", "lines"), [(["log", "-f"], 2), (["status", "--watch"], 3)])
def test_ctrl_c_is_how_one_ends_what_goes_on_for_ever(
    daemon: Daemon, command: list[str], lines: int
) -> None:
    daemon.holds = True
    process = subprocess.Popen([*XFRMPY, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    for _ in range(lines):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, b"", b"")


def test_a_watched_terminal_is_redrawn_in_place_and_given_back_as_it_was(daemon: Daemon) -> None:
    daemon.holds = True
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [*XFRMPY, "status", "--watch"], stdout=theirs, stderr=subprocess.PIPE
    )
    os.close(theirs)
    shown = b""
    while b"daemon 0.1.0" not in shown:
        shown += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    with contextlib.suppress(OSError):  # the terminal's other end is closed
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert (process.returncode, err) == (0, b"")
    assert shown.startswith(b"\x1b[?1049h")
    assert shown.endswith(b"\x1b[?1049l")
    assert b"vpn.example.org" in shown


@pytest.mark.usefixtures("daemon")
def test_what_is_no_terminal_is_told_each_change_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The canned daemon's stream ends by itself, and the command with it."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert run(["status", "office", "--watch"]) == 0
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d [\d:]{8}  office  up  198\.51\.100\.1:4500  office 0xc0ffee01", line
    )
    assert captured.err == ""
    assert run(["status", "--watch", "-o", "json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(t["kind"], t["name"], t["state"]) for t in told] == [
        ("TunnelStatus", "branch", "down"),
        ("TunnelStatus", "lab", "connecting"),
        ("TunnelStatus", "office", "up"),
    ]


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("command", [["status"], ["status", "-o", "json"], ["--help"]])
def test_a_reader_that_has_gone_is_no_news(command: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [*XFRMPY, *command], stdout=closed, stderr=subprocess.PIPE, check=False, timeout=20
        )
    assert done.stderr == b""
    assert done.returncode == 1


@pytest.mark.usefixtures("daemon")
def test_on_a_terminal_the_steps_are_live_and_in_colour() -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*XFRMPY, "up", "office"],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(theirs)
    shown = _read_all(ours)
    assert process.wait(20) == 0
    assert "IKE_SA_INIT to 198.51.100.1:500" in shown
    assert "IKE_AUTH to 198.51.100.1:4500" in shown
    assert "\x1b[1moffice\x1b[0m is \x1b[32mup\x1b[0m" in shown


def _read_all(terminal: int) -> str:
    """Until the last writer has closed its end, which a terminal reports as EIO."""
    octets = b""
    with os.fdopen(terminal, "rb", buffering=0) as file:
        while True:
            try:
                octets += file.read(4096) or b""
            except OSError:
                return octets.decode()


HEAVY = ("asyncio", "cryptography", "pydantic", "pyroute2", "rich", "yaml")


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("command", ["status", "up", "down"])
def test_a_hot_command_imports_nothing_heavy(command: str) -> None:
    program = (
        "import sys; from xfrmpy.cli.main import run; code = run(sys.argv[1:]);"
        f"print(*(set({HEAVY}) & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, command, "office"],
        capture_output=True,
        check=True,
        timeout=20,
    )
    assert done.stderr.splitlines()[-1] == b""


@pytest.mark.parametrize("process", ["cli", "daemon"])
def test_what_is_imported_is_not_looked_through_for_garbage(process: str) -> None:
    told = "print(sum(each['collections'] for each in gc.get_stats()))"
    counts = [
        int(subprocess.run([sys.executable, "-c", p], capture_output=True, check=True).stdout)
        for p in (f"import gc; {told}", f"import gc; import xfrmpy.{process}.__main__; {told}")
    ]
    assert counts[1] <= counts[0] + 2  # On the way there; it would be dozens.


_COMMANDS = [str(_name_of(row)) for row in app.registered_commands]


@pytest.mark.parametrize("command", _COMMANDS)
def test_a_command_is_made_ready_alone_and_is_what_it_is_among_the_others(
    command: str, capsys: Captured
) -> None:
    alone = _commands_of(_app_for([command]))
    assert [*alone] == [command]
    told = []
    for each in (alone[command], _commands_of(app)[command]):
        each.get_help(typer.Context(each, info_name=command))
        told.append(capsys.readouterr().out)
    assert command in told[0]
    assert told[0] == told[1]


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["statu"], ["show", "kernel"], ["--runtime-dir", "/x", "up"]]
)
def test_without_a_command_in_the_first_place_there_are_all(arguments: list[str]) -> None:
    assert _commands_of(_app_for(arguments)).keys() == _commands_of(app).keys() > {*_COMMANDS}


def _commands_of(application: typer.Typer) -> dict[str, Any]:
    group: Any = typer.main.get_command(application)
    return dict(group.commands)


@pytest.mark.usefixtures("daemon")
def test_tunnel_names_are_completed() -> None:
    environment = {
        **os.environ,
        "_XFRMPY_COMPLETE": "complete_bash",
        "COMP_WORDS": "xfrmpy status b",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        XFRMPY, env=environment, capture_output=True, check=True, text=True, timeout=20
    )
    assert done.stdout.split() == ["branch"]


def test_the_daemon_is_another_program_and_gets_the_options_that_we_do_not_know(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    executed: list[list[str]] = []

    def execute(_path: str, arguments: list[str]) -> None:
        executed.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr(os, "execv", execute)
    monkeypatch.setenv("XFRMPY_RUNTIME_DIR", "")
    assert run(["--runtime-dir", str(tmp_path), "daemon", "--help", "-x", "word"]) == 0
    assert executed == [[sys.executable, "-P", "-m", "xfrmpy.daemon", "--help", "-x", "word"]]
    assert os.environ["XFRMPY_RUNTIME_DIR"] == str(tmp_path)
