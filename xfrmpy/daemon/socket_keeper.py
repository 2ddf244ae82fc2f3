"""IKE's sockets outlive the daemon: a worker has them open too, and gives them to the next daemon.

Until then they take in what the peers send, and nothing changes on the port that IKE shares with
ESP: the order of its sockets, by which the userspace datapath is found, and the option by which the
kernel takes ESP out of UDP. So there is a worker on every host, whichever datapath it has.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from pathlib import Path

from xfrmpy.daemon.sockets import IkeSockets
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.userspace.process import WorkerProcess
from xfrmpy.datapath.userspace.shares import FIRST, Share

log = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0
"""Before another worker takes the place of one that has ended: it might end at once, too."""


class SocketKeeper:
    """See the module. A daemon that can have no worker does without."""

    def __init__(self, runtime_dir: Path, natt_port: int, workers: int = 1) -> None:
        self._share = Share(FIRST, workers)
        self._runtime_dir = runtime_dir
        self._natt_port = natt_port
        self._worker: WorkerProcess | None = None
        self._replacement: asyncio.TimerHandle | None = None
        self._attach()

    def _attach(self) -> None:
        try:
            self._worker = WorkerProcess.attach(self._runtime_dir, self._share)
        except DatapathError as error:
            log.warning("a kill of this daemon will cost packets: %s", error)
            return
        if not self._worker.is_new:
            number, version = self._worker.process, self._worker.version
            log.info("goes on with worker %d, of version %s", number, version)
        if self._worker.replaced:
            reason = self._worker.replaced
            log.warning("ended the worker of an earlier run, and the SAs that it had: %s", reason)

    def open_sockets(self) -> IkeSockets:
        """Those that an earlier daemon left, or new ones. Raises `OperatorError`."""
        sockets = IkeSockets(self._kept(), self._natt_port)
        if sockets.are_new:
            self._leave(sockets)
        return sockets

    def watch(self, sockets: IkeSockets) -> None:
        """From now on another worker takes the place of one that ends."""
        if self._worker is not None:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._worker.fileno(), self._worker_ended, self._worker, sockets)

    def ignore(self) -> None:
        """The inverse."""
        if self._replacement is not None:
            self._replacement.cancel()
        if self._worker is not None:
            asyncio.get_running_loop().remove_reader(self._worker.fileno())

    def _worker_ended(self, worker: WorkerProcess, sockets: IkeSockets) -> None:
        self.ignore()
        log.warning("worker %d has ended, which kept IKE's sockets", worker.process)
        worker.kill()
        self._worker = None
        loop = asyncio.get_running_loop()
        self._replacement = loop.call_later(PAUSE_SECONDS, self._replace, sockets)

    def _replace(self, sockets: IkeSockets) -> None:
        self._attach()
        self._leave(sockets)
        self.watch(sockets)
        if self._worker is not None:
            log.info("worker %d keeps IKE's sockets from now on", self._worker.process)

    def _leave(self, sockets: IkeSockets) -> None:
        if self._worker is None:
            return
        try:
            self._worker.keep(sockets.all())
        except DatapathError as error:
            log.warning("a kill of this daemon will cost packets: %s", error)

    def _kept(self) -> tuple[socket.socket, ...]:
        if self._worker is None:
            return ()
        try:
            return self._worker.kept()
        except DatapathError as error:
            log.warning("the sockets of an earlier run are lost: %s", error)
            return ()

    def end(self) -> None:
        """Nothing is to be kept any more."""
        if self._worker is not None:
            self._worker.stop()
