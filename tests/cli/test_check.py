"""`xfrmpy check`: findings at their place, without a daemon, and without showing a secret."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from xfrmpy.cli.check import finding_lines
from xfrmpy.cli.main import run
from xfrmpy.cli.terminal import Painter
from xfrmpy.policy.load import PolicyError

Golden = Callable[[str, str], None]
Captured = pytest.CaptureFixture[str]

GOOD = """\
peer: 198.51.100.1
id: gw1.example.net
peer_id: gw2.example.net
psk: secret:office
local: 10.1.0.0/16
remote: 10.2.0.0/16
"""


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runtime_dir: Path) -> Path:
    """A layer with one good tunnel and its secret; nothing answers in the runtime directory."""
    assert runtime_dir.exists()
    directory = tmp_path / "conf.d"
    directory.mkdir()
    (tmp_path / "secrets").mkdir()
    secret = tmp_path / "secrets" / "office"
    secret.write_text("one-two-three-four-five-six\n")
    secret.chmod(0o600)
    (directory / "office.yaml").write_text(GOOD)
    monkeypatch.setenv("XFRMPY_CONFIG_PATH", str(directory))
    return directory


def said(conf: Path, capsys: Captured) -> str:
    return capsys.readouterr().out.replace(str(conf), "CONF")


def test_what_the_daemon_would_read_is_checked(conf: Path, capsys: Captured) -> None:
    assert run(["check"]) == 0
    assert said(conf, capsys) == "1 tunnel in 1 file: ok\n"


def test_a_file_finds_its_secret_beside_its_directory(
    conf: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XFRMPY_CONFIG_PATH")
    assert run(["check", str(conf / "office.yaml")]) == 0
    assert run(["check", str(conf)]) == 0
    assert said(conf, capsys) == "1 tunnel in 1 file: ok\n" * 2


def test_nothing_to_check_is_said(conf: Path, capsys: Captured) -> None:
    (conf / "office.yaml").unlink()
    assert run(["check"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "0 tunnels in 0 files: ok\n"
    assert captured.err == f"no policy file in {conf}\n"


def test_each_error_has_its_place_its_source_and_a_caret(
    conf: Path, capsys: Captured, golden: Golden
) -> None:
    (conf / "branch.yaml").write_text(
        "peeer: 203.0.113.7\npsk: secret:office\nlocal: 10.3.0.0/16\nremote: 10.4.0.0/33\n"
    )
    assert run(["check"]) == 65
    golden("check-errors.txt", said(conf, capsys))


def test_the_document_has_the_same_findings(conf: Path, capsys: Captured, golden: Golden) -> None:
    (conf / "branch.yaml").write_text("peeer: 203.0.113.7\n" + GOOD)
    assert run(["check", "-o", "json"]) == 65
    golden("check-errors.json", said(conf, capsys))
    (conf / "branch.yaml").unlink()
    assert run(["check", "-o", "json"]) == 0
    golden("check.json", said(conf, capsys))


def test_a_file_that_is_not_there_is_an_error(conf: Path, capsys: Captured) -> None:
    assert run(["check", str(conf / "nothing.yaml")]) == 65
    assert "CONF/nothing.yaml:1:1: XF1012" in said(conf, capsys)


@pytest.mark.parametrize(
    "text",
    [
        "psk: hunter2\n",
        "psk: hunter2\npsk: hunter2\n",
        'psk: "hunter2\n',
        "psk: 'hunter2\n",
        "psk: [hunter2\n",
        "{peer: 192.0.2.1, psk: hunter2, psk: hunter2}\n",
        '"psk" : hunter2: hunter2\n',
        "PSK: hunter2\n",
        "pskk: hunter2\n",
        "secret: hunter2\n",
        "  preshared-key: hunter2\n",
        "tunnels: {office: {passphrase: hunter2}}\n",
        "psk: secret:office hunter2: 7\n",
        "psk: hunter2 # a comment\n",
        "psk:\n  hunter2\n",
        "auth: {psk: hunter2}\n",
        "auth: {local: {key: hunter2}}\n",
        "auth: {local: {key: secret:gw, passphrase: hunter2}}\n",
        "auth: {remote: {key: hunter2}}\n",
    ],
)
def test_a_secret_in_a_policy_is_never_shown(text: str, conf: Path, capsys: Captured) -> None:
    (conf / "branch.yaml").write_text(text)
    assert run(["check"]) == 65
    assert "hunter2" not in capsys.readouterr().out
    assert run(["check", "-o", "json"]) == 65
    assert "hunter2" not in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which takes root")
def test_a_secret_that_only_root_may_read_is_a_warning_for_others(
    conf: Path, capsys: Captured
) -> None:
    for directory in (conf.parent, *conf.parent.parents):
        if directory.is_relative_to("/tmp/pytest-of-root"):
            directory.chmod(0o755)
    os.seteuid(65534)
    try:
        code = run(["check", "-o", "json"])
    finally:
        os.seteuid(0)
    document = json.loads(capsys.readouterr().out)
    assert (code, document["errors"]) == (0, [])
    assert [warning["code"] for warning in document["warnings"]] == ["XF1008"]
    assert "as root" in document["warnings"][0]["hint"]


def test_a_reference_is_no_secret(conf: Path, capsys: Captured) -> None:
    (conf / "branch.yaml").write_text("{psk: 'secret:office', psk: secret:office} # twice\n")
    assert run(["check"]) == 65
    assert "{psk: 'secret:office', psk: secret:office} # twice" in capsys.readouterr().out


def place(path: Path, column: int) -> PolicyError:
    return PolicyError(
        code="XF1004", file=str(path), line=1, column=column, message="is wrong", hint=""
    )


def test_the_caret_stands_below_its_column_whatever_stands_before(
    tmp_path: Path,
) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text("id:\t\x1b[31mx\n")
    lines = finding_lines(place(path, 10), "red", Painter(sys.stdout))
    assert lines[1:] == ["  1 | id:  [31mx", "    |          ^"]


def test_a_long_line_is_shown_around_the_column(tmp_path: Path) -> None:
    path = tmp_path / "long.yaml"
    path.write_text("remote: [" + "10.2.0.0/16, " * 40 + "X]\n")
    column = path.read_text().index("X") + 1
    _, source, caret = finding_lines(place(path, column), "red", Painter(sys.stdout))
    assert len(source) <= 100
    assert source[caret.index("^")] == "X"


def test_a_place_beyond_the_file_has_no_source(tmp_path: Path) -> None:
    lines = finding_lines(place(tmp_path / "gone.yaml", 1), "red", Painter(sys.stdout))
    assert lines == [f"{tmp_path}/gone.yaml:1:1: XF1004 is wrong"]
