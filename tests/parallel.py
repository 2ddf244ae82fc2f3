"""`pytest --processes N`: what was collected once is run by N forks of the process that did.

Collecting is imports for the most part: a minute of processor time in the emulated machine, which
every process that collects needs for itself. The forks have what the first has imported, each with
directories and a capture of output of its own; the reports of their tests go to the first, whose
plugins see them as if it had run all.

Each has a stretch of the tests, and who is through takes half of the longest one that is left,
whole modules if it can be: tests of one may share what takes long to set up.
"""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, TextIO

import pytest
from _pytest.config import create_terminal_writer


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("processes")
    group.addoption("--processes", type=int, default=0, metavar="N", help="run N tests at a time")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    option = session.config.option
    if not option.processes or option.collectonly or session.testsfailed:
        return None  # as without us
    if option.usepdb:
        raise pytest.UsageError("--pdb wants --processes 0")
    _directories(session.config).getbasetemp()  # made once, and before it is shared
    gc.collect()
    gc.freeze()  # Pages that the collector has no business with stay shared.
    with contextlib.closing(_Runners(session, option.processes)) as runners:
        runners.run()
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    if session.shouldstop:
        raise session.Interrupted(session.shouldstop)
    return True


class _Runner:
    """A fork; it knows the tests that it was sent, and `waiting` are those it will be."""

    def __init__(self, session: pytest.Session, name: str, others: Sequence[_Runner]) -> None:
        self.waiting: list[int] = []
        self.sent: list[int] = []
        self.is_closed = False
        self.connection, theirs = Pipe()
        ends = [self.connection, *(other.connection for other in others)]
        self.process = ForkProcess(target=_serve, args=(session, name, theirs, ends))
        with theirs, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which numpy has
            self.process.start()

    def send_next(self) -> None:
        """One more test, or word that there is none."""
        index = self.waiting.pop(0) if self.waiting else None
        self.is_closed = index is None
        if index is not None:
            self.sent.append(index)
        with contextlib.suppress(BrokenPipeError):  # It is dead, as is found out by reading.
            self.connection.send(index)


class _Runners:
    def __init__(self, session: pytest.Session, count: int) -> None:
        self._session = session
        self._names = (f"process{number}" for number in range(1 << 30))
        self._running: list[_Runner] = []
        self._count = count

    def run(self) -> None:
        """Every test of the session, or as many as `--maxfail` lets it run."""
        for _ in range(self._count):
            self._start([])
        self._running[0].waiting = list(range(len(self._session.items)))
        for runner in self._running * 2:  # each knows the next, too: what both need stays
            self._send(runner)
        while self._running:
            by_end = {runner.connection: runner for runner in self._running}
            for end in wait(list(by_end)):
                assert isinstance(end, Connection)
                self._hear(by_end[end])

    def close(self) -> None:
        """Each brings to its end what it is at."""
        for runner in self._running:
            runner.connection.close()
            runner.process.join()

    def _start(self, waiting: list[int]) -> _Runner:
        runner = _Runner(self._session, next(self._names), self._running)
        runner.waiting = waiting
        self._running.append(runner)
        return runner

    def _send(self, runner: _Runner) -> None:
        if runner.is_closed:
            return
        if self._session.shouldfail or self._session.shouldstop:
            runner.waiting.clear()
        elif not runner.waiting:
            longest = max(self._running, key=lambda other: len(other.waiting))
            longest.waiting, runner.waiting = self._split(longest.waiting)
        runner.send_next()

    def _split(self, waiting: list[int]) -> tuple[list[int], list[int]]:
        """In two halves, between two modules if that can be."""
        module = [self._session.items[index].path for index in waiting]
        between = [n for n in range(1, len(waiting)) if module[n] != module[n - 1]]
        middle = len(waiting) // 2
        cut = min(between, key=lambda n: abs(n - middle), default=middle)
        return waiting[:cut], waiting[cut:]

    def _hear(self, runner: _Runner) -> None:
        hook = self._session.config.hook
        try:
            told = runner.connection.recv()
        except (EOFError, ConnectionResetError):
            self._bury(runner)
            return
        if told is None:
            runner.sent.pop(0)
            self._send(runner)
        else:
            report = hook.pytest_report_from_serializable(config=self._session.config, data=told)
            hook.pytest_runtest_logreport(report=report)

    def _bury(self, runner: _Runner) -> None:
        """The test that it was running, if it was, has failed; another does the rest."""
        runner.process.join()
        runner.connection.close()
        self._running.remove(runner)
        if not runner.sent:
            return
        culprit, *rest = runner.sent
        item = self._session.items[culprit]
        words = f"the process that ran it ended, with status {runner.process.exitcode}"
        report = pytest.TestReport(item.nodeid, item.location, {}, "failed", words, "call")
        self._session.config.hook.pytest_runtest_logreport(report=report)
        successor = self._start([*rest, *runner.waiting])
        for _ in range(2):
            self._send(successor)


def _serve(
    session: pytest.Session, name: str, connection: Connection, others: Sequence[Connection]
) -> None:
    """In a fork: run the tests that come, each with word of the one behind it."""
    for other in others:
        other.close()
    config = session.config
    with Path(os.devnull).open("w") as nowhere, contextlib.suppress(EOFError, BrokenPipeError):
        _be_apart(config, name, nowhere)
        config.pluginmanager.register(_Teller(config, connection))
        try:
            for item, following in _tests(session, connection):
                config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                connection.send(None)
        finally:
            session._setupstate.teardown_exact(None)  # of what was interrupted


def _directories(config: pytest.Config) -> Any:
    return config._tmp_path_factory  # type: ignore[attr-defined]


def _be_apart(config: pytest.Config, name: str, nowhere: TextIO) -> None:
    """Directories and captured output are shared with nobody: this is pytest's own machinery."""
    directories = _directories(config)
    directories._basetemp = directories.mktemp(name, numbered=False)
    terminal: Any = config.pluginmanager.getplugin("terminalreporter")
    terminal._tw = create_terminal_writer(config, nowhere)
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()
    capture.start_global_capturing()
    capture.suspend_global_capture()


def _tests(
    session: pytest.Session, connection: Connection
) -> Iterator[tuple[pytest.Item, pytest.Item | None]]:
    def received() -> pytest.Item | None:
        index = connection.recv()
        return None if index is None else session.items[index]

    item = received()
    while item is not None:
        following = received()
        yield item, following
        item = following


class _Teller:
    def __init__(self, config: pytest.Config, connection: Connection) -> None:
        self._config = config
        self._connection = connection

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        hook = self._config.hook
        data = hook.pytest_report_to_serializable(config=self._config, report=report)
        self._connection.send(data)
