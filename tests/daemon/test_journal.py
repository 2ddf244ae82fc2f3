"""The native journal protocol over a real datagram socket, read as systemd's documents have it."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.daemon.test_history import EVENT
from xfrmpy.daemon.journal import JournalHandler, log_handler


class Journal:
    """What journald is to a program: a socket that takes datagrams and memory files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(5.0)
        self.socket.bind(str(path))

    def read(self) -> dict[str, str]:
        datagram, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 20, 1)
        for descriptor in descriptors:
            with os.fdopen(descriptor, "rb") as file:
                file.seek(0)
                datagram = file.read()
        return dict(self._fields(datagram))

    def _fields(self, octets: bytes) -> Iterator[tuple[str, str]]:
        while octets:
            line, _, rest = octets.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if equals:
                octets = rest
            else:
                length = int.from_bytes(rest[:8], "little")
                value, octets = rest[8 : 8 + length], rest[8 + length :]
                assert octets[:1] == b"\n"
                octets = octets[1:]
            yield name.decode(), value.decode()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    made = Journal(tmp_path / "socket")
    yield made
    made.socket.close()


@pytest.fixture
def log(journal: Journal) -> Iterator[logging.Logger]:
    handler = JournalHandler(journal.path, logging.StreamHandler(sys.stderr))
    logger = logging.Logger("xfrmpy.test", logging.DEBUG)
    logger.addHandler(handler)
    yield logger
    handler.close()


def test_an_event_has_fields_that_can_be_looked_for(journal: Journal, log: logging.Logger) -> None:
    event = replace(
        EVENT,
        number=42,
        tunnel="office",
        event="request-refused",
        code="XF2004",
        details={"remote": "198.51.100.1:4500", "reason": ""},
    )
    log.warning("%s: %s", "office", "refused", extra={"event": event})
    assert journal.read() == {
        "MESSAGE": "office: refused",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "xfrmpy",
        "XFRMPY_LOGGER": "xfrmpy.test",
        "XFRMPY_EVENT": "request-refused",
        "XFRMPY_NUMBER": "42",
        "XFRMPY_TUNNEL": "office",
        "XFRMPY_CODE": "XF2004",
        "XFRMPY_REMOTE": "198.51.100.1:4500",
    }


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, "7"), (logging.INFO, "6"), (logging.ERROR, "3"), (logging.CRITICAL, "2")],
)
def test_levels_are_the_priorities_of_syslog(
    journal: Journal, log: logging.Logger, level: int, priority: str
) -> None:
    log.log(level, "word")
    assert journal.read()["PRIORITY"] == priority


def test_a_peer_cannot_add_fields_by_a_line_break(journal: Journal, log: logging.Logger) -> None:
    log.info("%s", "evil\nXFRMPY_TUNNEL=office\nPRIORITY=0")
    read = journal.read()
    assert read["MESSAGE"] == "evil\nXFRMPY_TUNNEL=office\nPRIORITY=0"
    assert read["PRIORITY"] == "6"
    assert "XFRMPY_TUNNEL" not in read


def test_a_traceback_comes_with_its_message(journal: Journal, log: logging.Logger) -> None:
    try:
        raise KeyError("here")
    except KeyError:
        log.exception("a defect")
    assert journal.read()["MESSAGE"].startswith("a defect\nTraceback")


def test_what_is_too_large_for_a_datagram_comes_as_a_file(
    journal: Journal, log: logging.Logger
) -> None:
    text = "x" * (1 << 22)
    log.info("%s", text)
    assert journal.read()["MESSAGE"] == text


def test_what_the_journal_does_not_take_goes_to_standard_error(
    journal: Journal, log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    journal.path.unlink()
    log.handlers[0]._otherwise.setStream(sys.stderr)  # type: ignore[attr-defined]
    log.info("still said")
    assert capsys.readouterr().err == "still said\n"


def test_the_journal_is_taken_only_if_standard_error_is_connected_to_it(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "stderr").open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        found = os.fstat(stream.fileno())
        ours = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        taken = log_handler(ours, journal.path)
        assert isinstance(taken, JournalHandler)
        taken.close()
        for environ, place in (
            ({}, journal.path),
            ({"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"}, journal.path),
            (ours, tmp_path / "nowhere"),
        ):
            assert isinstance(log_handler(environ, place), logging.StreamHandler)
