"""The demonstration, whole: what it shows, who may run it, and that nothing of it is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.lab.gateway import XFRMPY, Answer, ask
from integration.lab.process import LAB, Background, eventually

pytestmark = pytest.mark.native

QUICKLY = ("--seconds", "0.5")
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")


class Stage:
    """Where a demo runs: its temporary directory is its own, and its processes can be told."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._mark = f"DEMO_UNDER_TEST={uuid.uuid4()}"
        name, _, value = self._mark.partition("=")
        self._environment = {"TMPDIR": str(directory), name: value}

    def run(self, *command: str, **environment: str) -> Answer:
        return ask(command, {**self._environment, **environment})

    def start(self, *command: str) -> Background:
        environment = {**self._environment, "PYTHONUNBUFFERED": "1"}
        return Background(command, self._directory / "log", environment)

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
    # Three exchanges, of which ML-KEM makes one three datagrams, and the rehearsal of a rekeying.
    assert wire["packets"]["ike"] == 11
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
    demo = stage.start(XFRMPY, "demo", "--seconds", "60")
    eventually("the tunnel to carry packets", lambda: "Throughput" in demo.output, seconds=60)
    assert demo.stop(signal.SIGTERM, seconds=60) == 128 + signal.SIGTERM
    demo.log.unlink()
    eventually("its processes to end", lambda: stage.left() == [])


SIGNALLED_AT_A_FORK = """
import os, signal
os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGTERM))
from xfrmpy.cli.__main__ import main
main()
"""


def test_a_signal_in_the_middle_of_a_fork_ends_it(stage: Stage) -> None:
    """Python ignores what a handler raises there."""
    answer = stage.run(sys.executable, "-c", SIGNALLED_AT_A_FORK, "demo", *QUICKLY)
    assert answer.code == 128 + signal.SIGTERM, answer.errors
    assert "Traceback" not in answer.errors
    eventually("its processes to end", lambda: stage.left() == [])


def test_a_host_that_cannot_have_the_networks_is_told_and_keeps_nothing(stage: Stage) -> None:
    """Two network namespaces are allowed: the demo's own, and the first machine's."""
    limit = 'echo 2 >/proc/sys/user/max_net_namespaces; exec "$@"'
    answer = stage.run("unshare", "-Ur", "sh", "-c", limit, "-", XFRMPY, "demo", *QUICKLY)
    assert (answer.code, "XF4005" in answer.errors) == (78, True), answer
    assert "No space left on device" in answer.errors
    eventually("its processes to end", lambda: stage.left() == [])
