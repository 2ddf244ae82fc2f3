"""`xfrmpy show kernel` on terminals of any width, and where no daemon answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from xfrmpy.cli.main import run

Golden = Callable[[str, str], None]
Captured = pytest.CaptureFixture[str]


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize("columns", [40, 80, 120])
def test_no_line_is_wider_than_the_terminal(
    columns: int, capsys: Captured, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(["show", "kernel"]) == 0
    text = capsys.readouterr().out
    golden(f"show-kernel-{columns}.txt", text)
    assert max(map(len, text.splitlines())) <= columns
    for whole in ("0xc0ffee01", "198.51.100.1", "aes256gcm16-esn", "10.77.0.0/16"):
        assert whole in text


@pytest.mark.usefixtures("daemon")
def test_a_counter_that_is_zero_is_not_explained(capsys: Captured) -> None:
    run(["show", "kernel"])
    text = capsys.readouterr().out
    assert "XfrmInNoStates" in text
    assert "XfrmInError" not in text


@pytest.mark.usefixtures("runtime_dir")
def test_without_a_daemon_nobody_knows_whose_an_entry_is(capsys: Captured) -> None:
    assert run(["show", "kernel", "office"]) == 69
    assert "nobody knows which entries are a tunnel's" in capsys.readouterr().err


def test_without_a_daemon_the_kernel_is_read_or_it_is_said_why_it_is_not(
    runtime_dir: Path,
) -> None:
    """Whoever runs the tests: root is shown it, and nobody else."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "xfrmpy.cli", "show", "kernel", "-o", "json"],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "XFRMPY_RUNTIME_DIR": str(runtime_dir)},
    )
    document = json.loads(done.stdout)
    if done.returncode == 0:
        assert document["kind"] == "Kernel"
        assert "kernel" not in document["unread"]
        assert "no daemon runs" in done.stderr
    else:
        assert done.returncode == 69
        (reason,) = [
            each["seen"]
            for each in document["failure"]["evidence"]
            if each["label"] == "without a daemon"
        ]
        assert "CAP_NET_ADMIN" in reason or "has no IPsec" in reason
