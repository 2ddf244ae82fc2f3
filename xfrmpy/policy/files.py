"""Files that an operator has written: read with care, and named in messages."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_regular(path: Path, limit: int) -> tuple[bytes, os.stat_result]:
    """The octets of a regular file; the null device is an empty one (a way to hide a file).

    Looked at before it is opened, because opening a device or a FIFO may do something.
    Raises `OSError`, and `ValueError` for what is no file or too long.
    """
    status = os.stat(path)
    if stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev:
        return b"", status
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it is longer than {limit} octets")
    return data, status


def reason_of(error: OSError | ValueError) -> str:
    return (error.strerror or "no reason given") if isinstance(error, OSError) else str(error)


def printable(path: Path) -> str:
    """A path for messages: whatever its octets are, one line of printable text."""
    text = os.fsencode(path).decode(errors="backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
