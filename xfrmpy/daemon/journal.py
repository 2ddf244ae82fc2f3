"""The log, to systemd's journal with fields of its own, where there is one; else plain lines.

systemd's "Native Journal Protocol" (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/): a datagram of
`FIELD=value` lines, with the length before a value that has a line break. `journalctl
XFRMPY_TUNNEL=office` and `XFRMPY_CODE=XF2005` find what `docs/monitoring.md` says.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from xfrmpy.control.observed import Event

JOURNAL_SOCKET = Path("/run/systemd/journal/socket")

_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}
_DEBUG_PRIORITY = 7
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL


def spare_origins() -> None:
    """No line of ours names the code, thread or process that it comes from, so none is looked for.

    That is half the price of a line; see "Optimization" in Python's logging HOWTO.
    """
    logging._srcfile = None  # noqa: SLF001
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False


def log_handler(environ: Mapping[str, str], place: Path = JOURNAL_SOCKET) -> logging.Handler:
    """For a daemon whose standard error is the journal, that; for any other, standard error."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    if not _is_journal(environ.get("JOURNAL_STREAM", "")) or not place.is_socket():
        return lines
    return JournalHandler(place, lines)


def _is_journal(stream: str) -> bool:
    """Whether standard error is what systemd connected (systemd.exec(5), `$JOURNAL_STREAM`)."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"


class JournalHandler(logging.Handler):
    """Sends records to the journal; what it does not take goes to `otherwise`."""

    def __init__(self, place: Path, otherwise: logging.Handler) -> None:
        super().__init__()
        self._place = str(place)
        self._otherwise = otherwise
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        # A journal that does not keep up must not hold up the daemon.
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._send(b"".join(_encode(name, text) for name, text in _fields(record)))
        except OSError:
            self._otherwise.handle(record)

    def close(self) -> None:
        self._socket.close()
        super().close()

    def _send(self, datagram: bytes) -> None:
        try:
            self._socket.sendto(datagram, self._place)
        except OSError as error:
            if error.errno != errno.EMSGSIZE:
                raise
            self._send_file(datagram)

    def _send_file(self, datagram: bytes) -> None:
        """What is too large for a datagram goes as a sealed memory file."""
        file = os.memfd_create("xfrmpy-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.write(file, datagram)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
            # Not `socket.send_fds`, which forgets the address in Python 3.11.
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, file.to_bytes(4, sys.byteorder))
            self._socket.sendmsg([b""], [rights], 0, self._place)
        finally:
            os.close(file)


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, str]]:
    text = record.getMessage()
    if record.exc_info:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    yield "MESSAGE", text
    yield "PRIORITY", str(_PRIORITIES.get(record.levelno, _DEBUG_PRIORITY))
    yield "SYSLOG_IDENTIFIER", "xfrmpy"
    yield "XFRMPY_LOGGER", record.name
    event = getattr(record, "event", None)
    if isinstance(event, Event):
        yield from _event_fields(event)


def _event_fields(event: Event) -> Iterator[tuple[str, str]]:
    told = {
        "EVENT": event.event,
        "NUMBER": str(event.number),
        "TUNNEL": event.tunnel,
        "CHILD": event.child,
        "CODE": event.code,
        **{name.upper(): text for name, text in event.details.items()},
    }
    yield from ((f"XFRMPY_{name}", text) for name, text in told.items() if text)


def _encode(name: str, text: str) -> bytes:
    octets = text.encode(errors="backslashreplace")
    if b"\n" not in octets:
        return name.encode() + b"=" + octets + b"\n"
    length = len(octets).to_bytes(8, "little")
    return name.encode() + b"\n" + length + octets + b"\n"
