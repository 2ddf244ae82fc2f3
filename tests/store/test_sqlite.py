from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from xfrmpy.store import keeping, sqlite
from xfrmpy.store.interface import StoreError
from xfrmpy.store.keeping import KeyPlace
from xfrmpy.store.sqlite import SqliteStore, is_there

BOOT = "5d0f3f6e"
RECORD = b"a key of an IKE SA, which nobody may read"


@pytest.fixture(params=["kernel", "file"])
def directory(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """With the key wherever the host takes it, and with the key in a file."""
    if request.param == "file":
        monkeypatch.setattr(keeping, "_CALLS", {})
    yield tmp_path
    KeyPlace(tmp_path).remove()


def _filled(directory: Path) -> None:
    store = SqliteStore.create(directory, BOOT)
    store.commit([(b"a", RECORD), (b"b", b"2"), (b"c", b"3")])
    store.commit([(b"b", b"two"), (b"c", None)])
    store.close()


def _write(directory: Path, statement: str, *values: object) -> None:
    """As somebody else would who can write the file."""
    database = sqlite3.connect(directory / sqlite.FILE_NAME, isolation_level=None)
    database.execute(statement, values)
    database.close()


def _load(directory: Path, boot: str = BOOT) -> dict[bytes, bytes]:
    store = SqliteStore.open(directory, boot)
    try:
        return store.load()
    finally:
        store.close()


def _refused(directory: Path, reason: str, boot: str = BOOT) -> None:
    with pytest.raises(StoreError, match=reason):
        _load(directory, boot)


def test_what_was_committed_is_there_when_it_is_opened_again(directory: Path) -> None:
    _filled(directory)
    assert _load(directory) == {b"a": RECORD, b"b": b"two"}


def test_a_store_goes_on_after_it_was_opened(directory: Path) -> None:
    _filled(directory)
    store = SqliteStore.open(directory, BOOT)
    store.load()
    store.commit([(b"a", None), (b"d", b"4")])
    store.close()
    assert _load(directory) == {b"b": b"two", b"d": b"4"}


def test_nothing_that_was_committed_can_be_read_in_the_files(directory: Path) -> None:
    _filled(directory)
    files = [file.read_bytes() for file in directory.iterdir()]
    assert files
    assert not any(RECORD[:9] in octets for octets in files)


def test_only_its_owner_may_read_its_files(directory: Path) -> None:
    store = SqliteStore.create(directory, BOOT)
    store.commit([(b"a", RECORD)])
    assert {file.stat().st_mode & 0o777 for file in directory.iterdir()} == {0o600}
    store.close()


def test_what_is_cleared_leaves_nothing(directory: Path) -> None:
    _filled(directory)
    store = SqliteStore.open(directory, BOOT)
    store.clear()
    assert list(directory.iterdir()) == []
    assert not is_there(directory)
    with pytest.raises(StoreError, match="its key is gone"):
        KeyPlace(directory).find()


def test_the_store_of_another_boot_is_refused(directory: Path) -> None:
    _filled(directory)
    _refused(directory, "it is of another boot", boot="another")


def test_a_store_that_is_not_there_is_refused(directory: Path) -> None:
    assert not is_there(directory)
    _refused(directory, "No such file")


def test_another_format_or_application_is_refused(directory: Path) -> None:
    _filled(directory)
    _write(directory, "PRAGMA user_version=2")
    _refused(directory, "it is of format 2")
    _write(directory, "PRAGMA application_id=1")
    _refused(directory, "it is somebody else's")


def test_a_truncated_or_overwritten_file_is_refused(directory: Path) -> None:
    _filled(directory)
    file = directory / sqlite.FILE_NAME
    whole = file.read_bytes()
    for size in (0, 1, 100, 4096, len(whole) - 4096, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(StoreError):
            _load(directory)
    file.write_bytes(os.urandom(len(whole)))
    with pytest.raises(StoreError):
        _load(directory)


def test_a_record_that_was_changed_is_refused(directory: Path) -> None:
    _filled(directory)
    _write(directory, "UPDATE records SET sealed = sealed || x'00' WHERE name = ?", b"a")
    _refused(directory, "not as it was sealed")


def test_a_record_under_another_name_is_refused(directory: Path) -> None:
    _filled(directory)
    _write(directory, "UPDATE records SET name = ? WHERE name = ?", b"z", b"a")
    _refused(directory, "not as it was sealed")


def test_a_record_that_was_taken_away_is_missed(directory: Path) -> None:
    _filled(directory)
    _write(directory, "DELETE FROM records WHERE name = ?", b"a")
    _refused(directory, "missing, or are older")


def test_a_record_that_was_put_back_as_it_was_is_refused(directory: Path) -> None:
    store = SqliteStore.create(directory, BOOT)
    store.commit([(b"a", b"1")])
    store.close()
    database = sqlite3.connect(directory / sqlite.FILE_NAME)
    ((old,),) = database.execute("SELECT sealed FROM records WHERE name = ?", (b"a",))
    database.close()
    store = SqliteStore.open(directory, BOOT)
    store.load()
    store.commit([(b"a", b"2")])
    store.close()
    _write(directory, "UPDATE records SET sealed = ? WHERE name = ?", old, b"a")
    _refused(directory, "missing, or are older")


def test_the_file_of_an_earlier_store_is_refused(directory: Path) -> None:
    _filled(directory)
    old = (directory / sqlite.FILE_NAME).read_bytes()
    SqliteStore.create(directory, BOOT).close()
    (directory / sqlite.FILE_NAME).write_bytes(old)
    _refused(directory, "not as it was sealed")


def test_a_store_without_its_key_is_refused(directory: Path) -> None:
    _filled(directory)
    KeyPlace(directory).remove()
    _refused(directory, "its key is gone")


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o602])
def test_a_file_that_others_may_write_or_read_is_refused(directory: Path, mode: int) -> None:
    _filled(directory)
    (directory / sqlite.FILE_NAME).chmod(mode)
    _refused(directory, "others may have written it")


def test_links_are_not_followed(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "file"
    elsewhere.write_text("precious")
    (directory / sqlite.FILE_NAME).symlink_to(elsewhere)
    _refused(directory, "it is no file")
    SqliteStore.create(directory, BOOT).close()
    assert elsewhere.read_text() == "precious"
    assert not (directory / sqlite.FILE_NAME).is_symlink()


def test_a_hard_link_is_refused(directory: Path) -> None:
    _filled(directory)
    (directory / "other").hardlink_to(directory / sqlite.FILE_NAME)
    _refused(directory, "others may have written it")


COMMITTER = """
import sys
from pathlib import Path
from xfrmpy.store.sqlite import SqliteStore
store = SqliteStore.open(Path(sys.argv[1]), sys.argv[2])
store.load()
number = 0
while True:
    number += 1
    octets = number.to_bytes(4) * 2000
    store.commit([(b"a", octets), (b"b", octets)])
    print(number, flush=True)
"""


def test_a_commit_is_there_whole_whenever_the_process_is_killed(tmp_path: Path) -> None:
    directory = tmp_path
    SqliteStore.create(directory, BOOT).close()
    for lines in (1, 7, 40, 150):
        process = subprocess.Popen(
            [sys.executable, "-c", COMMITTER, str(directory), BOOT],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        last = int([line for line in said if line.endswith("\n")][-1])
        records = _load(directory)
        assert records[b"a"] == records[b"b"]
        assert int.from_bytes(records[b"a"][:4]) in (last, last + 1)
    KeyPlace(directory).remove()
