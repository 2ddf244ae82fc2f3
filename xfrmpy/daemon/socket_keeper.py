"""IKE's sockets outlive the daemon: a worker has them open too, and gives them to the next daemon.

Until then they take in what the peers send, and nothing changes on the port that IKE shares with
ESP: the order of its sockets, by which the userspace datapath is found, and the option by which the
kernel takes ESP out of UDP. So there is a worker on every host, whichever datapath it has.
"""

from __future__ import annotations

import logging
import socket
from pathlib import Path

from xfrmpy.daemon.sockets import IkeSockets
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.datapath.userspace.process import WorkerProcess

log = logging.getLogger(__name__)


class SocketKeeper:
    """See the module. A daemon that can have no worker does without."""

    def __init__(self, runtime_dir: Path) -> None:
        self._worker: WorkerProcess | None = None
        try:
            self._worker = WorkerProcess.attach(runtime_dir)
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
        sockets = IkeSockets(self._kept())
        if sockets.are_new and self._worker is not None:
            try:
                self._worker.keep(sockets.all())
            except DatapathError as error:
                log.warning("a kill of this daemon will cost packets: %s", error)
        return sockets

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
