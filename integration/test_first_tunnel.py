"""The tutorial `docs/first-tunnel.md`, typed as it stands there, prints what it says there.

It has a mount namespace with an `/etc` and a `/run` of its own, so its names are nobody else's.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.lab.gateway import XFRMPY
from integration.lab.process import PATIENCE
from tests.documentation import Block, steps

pytestmark = pytest.mark.native

PAGE = "docs/first-tunnel.md"
_OWN_PLACE = """\
set -e
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" overlay /etc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/netns
set +e
set -m  # as in a shell that is typed in: %1 is a job with all its processes
"""


def test_the_tutorial_is_typed_as_it_stands_there() -> None:
    lines = list(script())
    with tempfile.TemporaryDirectory(prefix="xl-") as place:
        # The end of the first process of its own namespace is the end of all that it started.
        alone = ("--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
        command = ("unshare", *alone, "bash", "-s", place)
        done = subprocess.run(
            command,
            input=_OWN_PLACE + "\n".join(line for line, _ in lines) + "\necho '@@ all'\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=200 * PATIENCE,
            env={**os.environ, "PATH": f"{Path(XFRMPY).parent}:{os.environ['PATH']}"},
        )
    said = done.stdout + done.stderr
    assert done.stdout.endswith("@@ all\n"), said
    answers = re.split(r"^@@ \d+\n", done.stdout, flags=re.MULTILINE)[1:]
    expected = [output for _, output in lines if output is not None]
    assert len(answers) == len(expected), said
    for answer, output in zip(answers, expected, strict=True):
        found = iter(map(_alike, answer.splitlines()))
        for line in output:
            assert any(_alike(line) in other for other in found), (line, answer, said)


def script() -> Iterator[tuple[str, tuple[str, ...] | None]]:
    """Lines for a shell; of a command, what it prints. The first that fails ends it."""
    number = 0
    for step in steps(PAGE):
        if isinstance(step, str):
            yield f"until {step}; do sleep 0.1; done >/dev/null 2>&1", None
        elif step.language == "yaml":
            yield _written(step), None
        elif step.language == "console":
            for command in step.commands():
                yield (
                    f"echo '@@ {number}'\n{{ {_closed(command.text)} }} 2>&1 || exit",
                    command.output,
                )
                number += 1


def _closed(command: str) -> str:
    return command if command.endswith("&") else f"{command};"


def _written(block: Block) -> str:
    return f"cat > {block.name} <<'END'\n{block.text}END"


def _alike(line: str) -> str:
    """Without what is another each time, or on another kernel."""
    line = re.sub(r"\d+\.\d+s", "TIME", line)
    line = re.sub(r"(kernel|userspace) datapath", "DATAPATH", line)
    return re.sub(r"\b(192\.0\.2\.\d):(500|4500)\b", r"\1", line)
