"""`--processes`: the same tests with the same results, several at a time."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ORDINARY = """\
import os
import sys

import pytest

@pytest.fixture(scope="module")
def shared():
    with open("setups", "a") as file:
        print(__name__, os.getpid(), file=file)
    yield
    with open("teardowns", "a") as file:
        print(__name__, os.getpid(), file=file)

@pytest.mark.parametrize("number", range(20))
def test_passes(shared, number, tmp_path, capfd):
    os.write(1, b"%d" % number)
    assert capfd.readouterr().out == str(number)
    (tmp_path / "file").write_text("")

def test_fails():
    print("said before")
    assert [1, 2] == [1, 3]

def test_is_skipped():
    pytest.skip("not here")
"""
AGAIN = """\
from pathlib import Path

def test_passes_at_the_second_attempt():
    first = not Path("tried").exists()
    Path("tried").touch()
    assert not first
"""
DIES = """\
import os
import signal

import pytest

@pytest.mark.parametrize("number", range(6))
def test_dies(number):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""
FAILS = """\
import pytest

@pytest.mark.parametrize("number", range(1000))
def test_fails(number):
    assert number != 2
"""


def run(directory: Path, files: dict[str, str], *options: str) -> tuple[int, str]:
    """Exit status and output of pytest with two processes."""
    for name, text in files.items():
        (directory / name).write_text(text)
    own = ("-p", "tests.parallel", "-p", "no:cacheprovider", "--processes", "2")
    command = (sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", f"--rootdir={directory}")
    done = subprocess.run(
        (*command, *own, f"--basetemp={directory}/temporary", *options),
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_every_test_is_run_once_and_a_module_in_one_process(tmp_path: Path) -> None:
    files = {f"test_{name}.py": ORDINARY for name in ("one", "two")}
    code, output = run(tmp_path, files)
    assert code == 1
    assert re.search(r"^2 failed, 40 passed, 2 skipped in ", output, re.MULTILINE), output
    assert len(re.findall("^said before$", output, re.MULTILINE)) == 2
    assert output.count("E       assert [1, 2] == [1, 3]") == 2
    setups = (tmp_path / "setups").read_text()
    assert len({line.split()[1] for line in setups.splitlines()}) == 2
    assert sorted(setups.splitlines()) == sorted((tmp_path / "teardowns").read_text().splitlines())
    assert len(setups.splitlines()) == 2


def test_a_module_that_is_alone_is_shared(tmp_path: Path) -> None:
    code, output = run(tmp_path, {"test_one.py": ORDINARY}, "-k", "passes")
    assert (code, len((tmp_path / "setups").read_text().splitlines())) == (0, 2), output


def test_what_failed_is_tried_again(tmp_path: Path) -> None:
    code, output = run(tmp_path, {"test_again.py": AGAIN}, "--reruns=1")
    assert code == 0
    assert re.search(r"^1 passed, 1 rerun in ", output, re.MULTILINE), output


def test_one_that_kills_its_process_has_failed_and_the_rest_is_run(tmp_path: Path) -> None:
    code, output = run(tmp_path, {"test_dies.py": DIES})
    assert code == 1
    assert "FAILED test_dies.py::test_dies[2] - the process that ran it ended" in output
    assert re.search(r"^1 failed, 5 passed in ", output, re.MULTILINE), output


def test_no_more_are_begun_after_so_many_failures(tmp_path: Path) -> None:
    code, output = run(tmp_path, {"test_many.py": FAILS}, "--maxfail=1")
    assert code == 1
    assert "stopping after 1 failures" in output
    (passed,) = re.findall(r"1 failed, (\d+) passed", output)
    assert int(passed) < 900
