"""The README's examples are what the program reads and prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from xfrmpy.cli.failure import tell_failure
from xfrmpy.failures import Failure
from xfrmpy.policy.load import load_policy

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_first_policy_file_is_a_tunnel(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    for name, content in (("conf.d/tunnel-a.yaml", text), ("secrets/tunnel-a", "k" * 32)):
        file = tmp_path / name
        file.parent.mkdir()
        file.write_text(content)
        file.chmod(0o600)
    loaded = load_policy([tmp_path / "conf.d"])
    assert loaded.errors == loaded.warnings == ()
    assert [t.name for t in loaded.tunnels] == ["tunnel-a"]


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`xfrmpy ([a-z]+)", README))))
def test_every_command_named_exists(command: str) -> None:
    asked = [sys.executable, "-m", "xfrmpy.cli", command, "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert f"xfrmpy {command}" in done.stdout


def test_the_failure_shown_is_how_one_looks(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```text\n(.*?)```", README, re.DOTALL)
    failure = Failure(
        code="XF2004",
        summary="the peer accepts none of our traffic selectors",
        evidence=(
            ("our local", "10.1.0.0/16"),
            ("our remote", "10.2.0.0/16"),
            ("they answered", "TS_UNACCEPTABLE"),
        ),
    )
    tell_failure(failure, tunnel="tunnel-a")
    assert capsys.readouterr().err.strip() == block.strip()
