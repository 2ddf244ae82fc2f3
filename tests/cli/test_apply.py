"""What `apply` reads, what it keeps and where, and whose session it is typed in."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from xfrmpy.cli import apply
from xfrmpy.cli.main import run
from xfrmpy.cli.terminal import Painter
from xfrmpy.control.calls import PolicyText
from xfrmpy.control.plans import ChangeReply, KeepReply
from xfrmpy.failures import OperatorError

TEXT = "peer: 192.0.2.1\n"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    directory = tmp_path / "new"
    directory.mkdir()
    (directory / "office.yaml").write_text(TEXT)
    (directory / "branch.yaml").write_bytes(b"# \xff no UTF-8\n")
    (directory / ".hidden.yaml").write_text("")
    (directory / "notes.txt").write_text("")
    return directory


def test_a_directory_is_its_policy_files_whatever_their_octets_are(files: Path) -> None:
    read = apply.read_policy(str(files), None)
    assert read is not None
    assert [file.name for file in read] == ["branch.yaml", "office.yaml"]
    assert read[0].text.encode(errors="surrogateescape") == b"# \xff no UTF-8\n"


def test_a_file_may_be_given_another_name_and_standard_input_must(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert apply.read_policy(None, None) is None
    office = str(files / "office.yaml")
    assert apply.read_policy(office, None) == [PolicyText(name="office.yaml", text=TEXT)]
    assert apply.read_policy(office, "hq") == [PolicyText(name="hq.yaml", text=TEXT)]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert apply.read_policy("-", "hq") == [PolicyText(name="hq.yaml", text=TEXT)]
    for path, name in (("-", None), (str(files / "notes.txt"), None), (office, "../hq")):
        with pytest.raises(OperatorError, match="XF5001"):
            apply.read_policy(path, name)
    with pytest.raises(OperatorError, match="XF1012"):
        apply.read_policy(str(files / "absent.yaml"), None)


def test_kept_files_are_whole_and_keep_their_mode_and_others_go_only_when_asked(
    daemon: Any, tmp_path: Path
) -> None:
    directory = tmp_path / "conf.d"
    directory.mkdir()
    (directory / "office.yaml").write_text("old")
    (directory / "office.yaml").chmod(0o640)
    (directory / "lab.yaml").write_text("other")
    text = "# \udcff\n"
    sent = [PolicyText(name="office.yaml", text=text), PolicyText(name="new.yaml", text=TEXT)]
    daemon.keeps = KeepReply(files=sent, prune=False, directory=str(directory))
    assert run(["confirm"]) == 0
    assert (directory / "office.yaml").read_bytes() == b"# \xff\n"
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in directory.iterdir()}
    assert modes["office.yaml"] == 0o640
    assert modes["new.yaml"] == 0o644
    assert set(modes) == {"office.yaml", "new.yaml", "lab.yaml"}
    daemon.keeps = KeepReply(files=sent, prune=True, directory=str(directory))
    assert run(["confirm"]) == 0
    assert {path.name for path in directory.iterdir()} == {"office.yaml", "new.yaml"}


def test_files_that_cannot_be_kept_are_a_failure_that_names_them(
    daemon: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    sent = [PolicyText(name="office.yaml", text=TEXT)]
    daemon.keeps = KeepReply(files=sent, prune=False, directory=str(tmp_path / "file"))
    assert run(["confirm"]) == 1
    said = capsys.readouterr().err
    assert "XF4024" in said
    assert "office.yaml" in said


def test_the_session_is_that_of_a_process_above_where_sudo_took_the_variable_away() -> None:
    asked = f"import sys; sys.path[:0] = {sys.path!r}; from xfrmpy.cli import apply; "
    asked += "print(apply._session())"
    above = "import os, subprocess, sys; "
    above += "subprocess.run([sys.executable, '-c', sys.argv[1]], env={}, check=True)"
    environ = {**os.environ, "SSH_CONNECTION": "198.51.100.9 50000 10.1.0.1 22"}
    command = [sys.executable, "-c", above, asked]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['10.1.0.1', '198.51.100.9']"


@pytest.mark.parametrize(
    ("names", "summary"),
    [
        (["a"], "1 tunnel to change: 1 new."),
        (["shunt a"], "1 shunt to change: 1 new."),
        (["a", "shunt a", "shunt b"], "1 tunnel and 2 shunts to change: 3 new."),
    ],
)
def test_shunts_are_not_counted_as_tunnels(names: list[str], summary: str) -> None:
    changes = [
        ChangeReply(
            tunnel=name, action="create", impact="hot", live=False, cuts=False, differences=[]
        )
        for name in names
    ]
    assert apply._summary(changes, "to change", Painter(io.StringIO())) == summary
