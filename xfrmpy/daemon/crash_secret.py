"""The secret by which a restarted daemon proves to its peers that it lost its state (RFC 6290).

It lives in the runtime directory: as long as the host runs, whatever becomes of the daemon.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from xfrmpy.failures import OperatorError

FILE_NAME = "crash-secret"
SECRET_SIZE = 32
"""Octets, as RFC 6290 section 5.1 has it."""


def crash_secret(runtime_dir: Path) -> bytes:
    """The secret of this runtime directory, made if there is none. Raises `OperatorError`."""
    path = runtime_dir / FILE_NAME
    try:
        secret = _read(path)
        if len(secret) != SECRET_SIZE:  # There is none, or its writing was cut short.
            secret = secrets.token_bytes(SECRET_SIZE)
            _write(path, secret)
    except OSError as error:
        raise OperatorError("XF4003", f"{path} cannot be used: {error.strerror}") from error
    return secret


def _read(path: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return b""


def _write(path: Path, secret: bytes) -> None:
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "wb") as stream:
        stream.write(secret)
