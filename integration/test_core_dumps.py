"""A daemon and a worker that abort leave no core dump, which would have every key in it."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from integration.lab.process import eventually
from integration.lab.site import Site

pytestmark = pytest.mark.native


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def abort(pid: int) -> None:
    """As large a dump as there may be."""
    resource.prlimit(pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    os.kill(pid, signal.SIGABRT)


def test_an_aborted_daemon_and_its_worker_leave_none(site: Site) -> None:
    moon = site.xfrmpy(site.network.moon, site.network.tunnel())
    here = Path(os.readlink(f"/proc/{moon.pid}/cwd"))
    before = set(here.glob("core*"))
    (worker, *_) = children(moon.pid)
    abort(worker)
    eventually("another worker", lambda: worker not in children(moon.pid) and children(moon.pid))
    abort(moon.pid)
    ended = os.waitid(os.P_PID, moon.pid, os.WEXITED | os.WNOWAIT)
    assert ended is not None
    assert (ended.si_code, ended.si_status) == (os.CLD_KILLED, signal.SIGABRT)
    moon.kill()
    assert set(here.glob("core*")) == before
