"""The units for systemd: what is written where. That systemd takes them is for `integration/`."""

from __future__ import annotations

import configparser
import sys
from pathlib import Path

import pytest

from xfrmpy.cli.main import run

UNITS = ("xfrmpyd.service", "xfrmpy-block.service", "xfrmpy-tunnel@.service")


def installed(root: Path, *more: str) -> dict[str, str]:
    assert run(["units", "--install", "--root", str(root), *more]) == 0
    return {
        str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()
    }


def test_units_and_the_users_files_are_written_where_systemd_looks(tmp_path: Path) -> None:
    assert sorted(installed(tmp_path)) == [
        "etc/modules-load.d/xfrmpy.conf",
        "etc/sysctl.d/50-xfrmpy.conf",
        "etc/systemd/system/xfrmpy-block.service",
        "etc/systemd/system/xfrmpy-tunnel@.service",
        "etc/systemd/system/xfrmpyd.service",
        "etc/sysusers.d/xfrmpy.conf",
        "etc/tmpfiles.d/xfrmpy.conf",
    ]


def test_they_start_this_xfrmpy_or_the_one_named(tmp_path: Path) -> None:
    files = installed(tmp_path / "a")
    assert f"ExecStart={sys.prefix}/bin/xfrmpy daemon\n" in files[f"etc/systemd/system/{UNITS[0]}"]
    files = installed(tmp_path / "b", "--program", "/usr/bin/xfrmpy")
    for unit in UNITS:
        text = files[f"etc/systemd/system/{unit}"]
        assert "ExecStart=/usr/bin/xfrmpy " in text
        assert "@xfrmpy@" not in text


def test_without_installing_they_are_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = installed(tmp_path)
    capsys.readouterr()
    assert run(["units"]) == 0
    shown = capsys.readouterr().out
    for place, text in files.items():
        assert f"# /{place}\n{text}" in shown


def test_a_program_that_a_unit_does_not_see_is_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    installed(tmp_path, "--program", "/home/me/bin/xfrmpy")
    assert "A unit does not see /home/me/bin/xfrmpy" in capsys.readouterr().err


def test_a_tree_that_cannot_be_written_is_a_failure(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "etc").write_text("not a directory")
    assert run(["units", "--install", "--root", str(tmp_path)]) == 1
    assert "XF4025" in capsys.readouterr().err


def service(tmp_path: Path, unit: str) -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(installed(tmp_path)[f"etc/systemd/system/{unit}"])
    return parser["Service"]


def test_the_daemon_has_the_rights_it_needs_and_no_others(tmp_path: Path) -> None:
    settings = service(tmp_path, UNITS[0])
    assert settings["User"] == "xfrmpy"
    for rights in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert settings[rights] == "CAP_NET_ADMIN CAP_NET_BIND_SERVICE CAP_NET_RAW"


def test_what_survival_needs_of_systemd_is_there(tmp_path: Path) -> None:
    """docs/architecture.md, "When the daemon is killed"."""
    settings = service(tmp_path, UNITS[0])
    assert settings["KillMode"] == "process"
    assert settings["RestartKillSignal"] == "SIGUSR2"
    assert settings["RuntimeDirectoryPreserve"] == "restart"
    assert settings["Type"] == "notify"
