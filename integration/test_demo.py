"""The demonstration, whole: what it shows, who may run it, and that nothing of it is left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.lab.gateway import XFRMPY, Answer, ask
from integration.lab.process import LAB, eventually

pytestmark = pytest.mark.native

QUICKLY = ("--seconds", "0.5")
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")


class Stage:
    """Where a demo runs: its temporary directory is its own, and its processes can be told."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mark = f"DEMO_UNDER_TEST={uuid.uuid4()}"

    def run(self, *command: str, **environment: str) -> Answer:
        name, _, value = self._mark.partition("=")
        return ask(command, {"TMPDIR": str(self._directory), name: value, **environment})

    def left(self) -> list[str]:
        """Processes and files of the demo's."""
        processes = [
            path.parent.name for path in Path("/proc").glob("[0-9]*/environ") if self._is_ours(path)
        ]
        return processes + [path.name for path in self._directory.iterdir()]

    def _is_ours(self, environment: Path) -> bool:
        try:
            return self._mark.encode() in environment.read_bytes().split(b"\0")
        except OSError:  # It ended meanwhile.
            return False


@pytest.fixture
def stage() -> Iterator[Stage]:
    with tempfile.TemporaryDirectory(prefix="xl-") as directory:
        Path(directory).chmod(0o1777)  # pytest's own would be closed to nobody.
        made = Stage(Path(directory))
        yield made
        made.run(XFRMPY, "demo", "--remove")


def test_the_demo_shows_a_tunnel_and_leaves_nothing(stage: Stage) -> None:
    answer = stage.run(XFRMPY, "demo", *QUICKLY, "-o", "json")
    assert answer.code == 0, answer.errors
    assert_shown(json.loads(answer.output))
    assert stage.left() == []


def assert_shown(demo: dict[str, object]) -> None:
    ping, wire, throughput = (demo[key] for key in ("ping", "wire", "throughput"))
    assert isinstance(ping, dict)
    assert isinstance(wire, dict)
    assert isinstance(throughput, dict)
    assert ping["received"] == ping["sent"] > 0
    assert throughput["octets"] > 100_000
    assert wire["packets"]["clear"] == 0
    assert wire["packets"]["ike"] == 4
    assert wire["packets"]["esp"] > 10


def test_the_demo_needs_no_root(stage: Stage) -> None:
    """The system's own interpreter, for ours may be where nobody can go."""
    python = ("/usr/bin/python3", "-P", "-m")
    paths = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    environment = {"PYTHONPATH": f"{LAB.parent.parent}{os.pathsep}{paths}", "HOME": "/nonexistent"}
    usable = stage.run(*NOBODY, *python, "xfrmpy.cli", "--help", **environment)
    if usable.code:
        pytest.skip(f"nobody cannot read this checkout: {usable.errors[-200:]}")
    if subprocess.run([*NOBODY, "unshare", "-Urn", "true"], check=False).returncode:
        pytest.skip("this kernel lets only root make namespaces")
    answer = stage.run(
        *NOBODY, *python, "xfrmpy.cli", "demo", *QUICKLY, "-o", "json", **environment
    )
    assert answer.code == 0, answer.errors
    assert_shown(json.loads(answer.output))
    assert stage.left() == []


def test_what_was_kept_can_be_entered_and_removed(stage: Stage) -> None:
    answer = stage.run(XFRMPY, "demo", "--keep", *QUICKLY)
    assert answer.code == 0, answer.errors
    alice = re.search(r"\$ (nsenter -t \d+ -n) +# alice", answer.output)
    status = re.search(r"\$ xfrmpy (--runtime-dir \S+/moon/run status tunnel-a)", answer.output)
    assert alice
    assert status
    assert stage.run(*alice[1].split(), "ping", "-c", "1", "-W", "5", "10.2.0.10").code == 0
    assert "up for" in stage.run(XFRMPY, *status[1].split()).output
    assert stage.run(XFRMPY, "demo", "--remove").code == 0
    eventually("its processes to end", lambda: stage.left() == [])


def test_a_demo_that_is_interrupted_leaves_nothing(stage: Stage) -> None:
    answer = stage.run("timeout", "--signal=TERM", "2", XFRMPY, "demo", "--seconds", "30")
    assert answer.code == 124
    assert "Before the tunnel" in answer.output
    eventually("its processes to end", lambda: stage.left() == [])
