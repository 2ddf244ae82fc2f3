"""How far each SA has got, in a file that outlives the worker: so another can go on with it.

RFC 4303 section 3.3.3: a sequence number must not be used twice under a key, and a packet must not
be accepted twice (section 3.4.3). So whoever adds an SA with the same keys, in this process or in
the next, goes on behind the last number here; and all that the window of an inbound SA might still
take is taken as seen. The file is mapped: what was written stays when the process is killed. It
belongs on a tmpfs, for the life of one boot. No keys are in it, only what nobody can undo of them.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path
from struct import Struct

from xfrmpy.esp.sa import Progress
from xfrmpy.ipsec.sad import SadEntry

FINGERPRINT_SIZE = 16
_LINE = 64
_LINES_AT_ONCE = 1024
_LAYOUT = b"ledger 1"
"""Of the file; with another it would be another SA."""

_FREE = bytes(FINGERPRINT_SIZE)
_INSTALLED = Struct("@d")
_INSTALLED_AT = FINGERPRINT_SIZE
# Native, for each number is written by one store then: a kill leaves the old one or the new.
_PROGRESS = Struct("@QQQd")  # sequence number, octets, packets, the last use (0 for none)
_PROGRESS_AT = _INSTALLED_AT + _INSTALLED.size


def fingerprint(entry: SadEntry) -> bytes:
    """By what an SA is found again, wherever it leads: it and no other has these keys."""
    made = blake2b(digest_size=FINGERPRINT_SIZE, person=_LAYOUT)
    for part in (
        entry.direction.value.encode(),
        entry.protocol.to_bytes(1, "big"),
        entry.spi.to_bytes(4, "big"),
        entry.encryption_key,
        entry.integrity_key,
    ):
        made.update(len(part).to_bytes(2, "big") + part)
    return made.digest()


class Ledger:
    """See the module. Without a path it outlives nothing, and serves all the same."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises `OSError`."""
        self._path = path
        if path is None:
            self._map = mmap.mmap(-1, _LINE * _LINES_AT_ONCE)
        else:
            self._map = _open(path)
        self._lines: dict[bytes, int] = {}
        self._free: list[int] = []
        self._read()

    def __contains__(self, found: bytes) -> bool:
        return found in self._lines

    def line_of(self, entry: SadEntry, now: float) -> Line:
        """Where an SA is written down: where it was before, or anew."""
        print_ = fingerprint(entry)
        at = self._lines.get(print_)
        if at is None:
            if not self._free:
                self._grow()
            at = self._lines[print_] = self._free.pop()
            _PROGRESS.pack_into(self._map, at + _PROGRESS_AT, 0, 0, 0, 0.0)
            _INSTALLED.pack_into(self._map, at + _INSTALLED_AT, now)
            self._map[at : at + FINGERPRINT_SIZE] = print_
        return Line(self._map, at)

    def strike(self, entry: SadEntry) -> None:
        """It is gone for good."""
        at = self._lines.pop(fingerprint(entry), None)
        if at is not None:
            self._map[at : at + FINGERPRINT_SIZE] = _FREE
            self._free.append(at)

    def clear(self) -> None:
        for at in self._lines.values():
            self._map[at : at + FINGERPRINT_SIZE] = _FREE
        self._free += self._lines.values()
        self._lines.clear()

    def remove(self) -> None:
        """The file, if there is one: nobody is to go on from here."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self) -> None:
        for at in _offsets(0, len(self._map)):
            print_ = self._map[at : at + FINGERPRINT_SIZE]
            if print_ == _FREE:
                self._free.append(at)
            else:
                self._lines[print_] = at

    def _grow(self) -> None:
        size = len(self._map)
        self._map.resize(size + _LINE * _LINES_AT_ONCE)
        self._free += _offsets(size, len(self._map))


class Line:
    """What is written of one SA."""

    __slots__ = ("_at", "_map", "installed_at", "note")

    def __init__(self, map_: mmap.mmap, at: int) -> None:
        self._map = map_
        self._at = at + _PROGRESS_AT
        self.note = partial(_PROGRESS.pack_into, map_, self._at)
        """Sequence number, octets, packets, the moment of the last use: before anybody can see what
        follows from it, such as an outbound packet that leaves."""
        (self.installed_at,) = _INSTALLED.unpack_from(map_, at + _INSTALLED_AT)

    def read(self) -> tuple[Progress, float | None]:
        """How far the SA has got, and when it was used last."""
        sequence, octets, packets, used_at = _PROGRESS.unpack_from(self._map, self._at)
        return Progress(sequence=sequence, octets=octets, packets=packets), used_at or None


def _offsets(start: int, end: int) -> Iterator[int]:
    return reversed(range(start, end, _LINE))


def _open(path: Path) -> mmap.mmap:
    """What another process has left, or an empty file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if not size or size % _LINE:
            size = _LINE * _LINES_AT_ONCE
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, size)
        return mmap.mmap(descriptor, size)
    finally:
        os.close(descriptor)
