"""The store of one host: an SQLite file in the runtime directory, for the life of one boot.

The moments in it are of the monotonic clock, which means nothing to another boot, and it should be
on a tmpfs: then nothing secret reaches a disk, and only the death of the process is to be survived,
never that of the host. So nothing is synchronized (`synchronous=OFF`): what a process has written
outlives it. The write-ahead log makes a commit atomic, for a process can die within it.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterable
from pathlib import Path

from xfrmpy.store.interface import StoreError
from xfrmpy.store.keeping import KeyPlace
from xfrmpy.store.sealing import Digest, Seal

FILE_NAME = "store.db"
FORMAT = 1
_APPLICATION = 0x58465253
_SUFFIXES = ("", "-wal", "-shm", "-journal")
_HEAD = b"\0head"
"""The name of the sealed digest: no SPI is so short."""

_PUT = "INSERT INTO records VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET sealed = excluded.sealed"
"""A record stays where it is in the table, in the order in which they came: so those that change
together are together, where in the order of their names each would cost a page or two."""


class SqliteStore:
    """See the module, and `interface.Store`."""

    def __init__(self, directory: Path, database: sqlite3.Connection, seal: Seal) -> None:
        self._directory = directory
        self._database = database
        self._seal = seal
        self._digest = Digest()
        self._prints: dict[bytes, int] = {}

    @classmethod
    def create(cls, directory: Path, boot_id: str) -> SqliteStore:
        """An empty store in the place of whatever is there. Raises `StoreError`."""
        remove(directory)
        path = directory / FILE_NAME
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            os.close(os.open(path, flags, 0o600))
            database = _connect(path)
            database.execute(f"PRAGMA application_id={_APPLICATION}")
            database.execute(f"PRAGMA user_version={FORMAT}")
            database.execute("CREATE TABLE boot (id TEXT)")
            database.execute("INSERT INTO boot VALUES (?)", (boot_id,))
            database.execute("CREATE TABLE records (name BLOB PRIMARY KEY, sealed BLOB NOT NULL)")
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path} cannot be made: {error}") from error
        store = cls(directory, database, Seal(KeyPlace(directory).make(), _context(boot_id)))
        store.commit(())
        return store

    @classmethod
    def open(cls, directory: Path, boot_id: str) -> SqliteStore:
        """The store that is there. Raises `StoreError` for anything but what we have made."""
        path = directory / FILE_NAME
        _check_file(path)
        try:
            database = _connect(path)
        except sqlite3.Error as error:
            raise StoreError(f"it cannot be read: {error}") from error
        store = cls(directory, database, Seal(KeyPlace(directory).find(), _context(boot_id)))
        try:
            store._check(boot_id)
        except sqlite3.Error as error:
            database.close()
            raise StoreError(f"it cannot be read: {error}") from error
        except StoreError:
            database.close()
            raise
        return store

    def load(self) -> dict[bytes, bytes]:
        """See `Store`. Raises `StoreError` if a single record is not as it should be."""
        rows: list[tuple[bytes, bytes]] = self._rows()
        sealed = dict(rows)
        head = sealed.pop(_HEAD, None)
        if head is None:
            raise StoreError("it has no beginning")
        records = {name: self._seal.open(name, octets) for name, octets in sealed.items()}
        self._prints = {name: self._seal.print_of(name, octets) for name, octets in sealed.items()}
        self._digest = Digest()
        for number in self._prints.values():
            self._digest.add(number)
        if self._seal.open(_HEAD, head) != self._digest.octets():
            raise StoreError("records are missing, or are older than the others")
        return records

    def commit(self, changes: Iterable[tuple[bytes, bytes | None]]) -> None:
        """See `Store`."""
        rows: list[tuple[bytes, bytes]] = []
        gone: list[tuple[bytes]] = []
        for name, record in changes:
            self._digest.remove(self._prints.pop(name, 0))
            if record is None:
                gone.append((name,))
                continue
            sealed = self._seal.seal(name, record)
            self._prints[name] = self._seal.print_of(name, sealed)
            self._digest.add(self._prints[name])
            rows.append((name, sealed))
        rows.append((_HEAD, self._seal.seal(_HEAD, self._digest.octets())))
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("DELETE FROM records WHERE name=?", gone)
            self._database.executemany(_PUT, rows)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(f"nothing can be written: {error}") from error

    def clear(self) -> None:
        """See `Store`: the file and its key are gone."""
        self.close()
        remove(self._directory)

    def close(self) -> None:
        self._database.close()

    def _rows(self) -> list[tuple[bytes, bytes]]:
        try:
            # Whoever has written the file may have put other types there.
            columns = "CAST(name AS BLOB), CAST(sealed AS BLOB)"
            return self._database.execute(f"SELECT {columns} FROM records").fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"it cannot be read: {error}") from error

    def _check(self, boot_id: str) -> None:
        ((application,),) = self._database.execute("PRAGMA application_id").fetchall()
        ((version,),) = self._database.execute("PRAGMA user_version").fetchall()
        if application != _APPLICATION:
            raise StoreError("it is somebody else's")
        if version != FORMAT:
            raise StoreError(f"it is of format {version}, and this version knows {FORMAT}")
        ((integrity, *_), *_) = self._database.execute("PRAGMA integrity_check(1)").fetchall()
        if integrity != "ok":
            raise StoreError(f"it is damaged: {integrity}")
        boots = self._database.execute("SELECT id FROM boot").fetchall()
        if boots != [(boot_id,)]:
            raise StoreError("it is of another boot, whose clock is gone")


def remove(directory: Path) -> None:
    """Whatever there is of a store in a directory, with its key. Raises `StoreError`."""
    try:
        for suffix in _SUFFIXES:
            (directory / f"{FILE_NAME}{suffix}").unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{error.filename} cannot be removed: {error.strerror}") from error
    KeyPlace(directory).remove()


def is_there(directory: Path) -> bool:
    """Whether something has the name of a store."""
    return os.path.lexists(directory / FILE_NAME)


def _check_file(path: Path) -> None:
    """Raises `StoreError` for a file that others could have put there, or written to."""
    try:
        found = path.lstat()
    except OSError as error:
        raise StoreError(f"it cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise StoreError("it is no file")
    if found.st_uid != os.geteuid() or found.st_mode & 0o077 or found.st_nlink != 1:
        raise StoreError("others may have written it")


def _connect(path: Path) -> sqlite3.Connection:
    """One process uses it, so the log needs no shared memory, and nobody has to be waited for."""
    database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA locking_mode=EXCLUSIVE")
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=OFF")
        database.execute("PRAGMA secure_delete=ON")
        database.execute("PRAGMA wal_autocheckpoint=256")
    except sqlite3.Error:
        database.close()
        raise
    return database


def _context(boot_id: str) -> bytes:
    return f"xfrmpy store {FORMAT} {boot_id}\0".encode()
