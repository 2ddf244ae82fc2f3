"""The secret that survives the daemon: made once, kept from others, made again if it is damaged."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from xfrmpy.daemon.crash_secret import FILE_NAME, SECRET_SIZE, crash_secret
from xfrmpy.failures import OperatorError


def test_the_secret_is_made_once(tmp_path: Path) -> None:
    made = crash_secret(tmp_path)
    assert len(made) == SECRET_SIZE
    assert crash_secret(tmp_path) == made


def test_another_directory_has_another_secret(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert crash_secret(tmp_path) != crash_secret(other)


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    crash_secret(tmp_path)
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_a_secret_that_was_cut_short_is_made_again(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"short")
    made = crash_secret(tmp_path)
    assert len(made) == SECRET_SIZE
    assert crash_secret(tmp_path) == made
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(OperatorError, match="XF4003"):
        crash_secret(tmp_path)
