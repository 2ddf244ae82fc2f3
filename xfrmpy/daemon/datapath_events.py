"""What the datapaths tell: it is the core's input, but for a datapath that has come to its end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from xfrmpy.daemon.datapaths import Datapaths
from xfrmpy.daemon.events import Report
from xfrmpy.daemon.occurrences import datapath_revived, offload_refused
from xfrmpy.daemon.restraint import Restraint
from xfrmpy.daemon.sockets import IkeSockets
from xfrmpy.datapath.interface import (
    Acquire,
    Datapath,
    DatapathError,
    Expired,
    MappingChanged,
    OffloadRefused,
)
from xfrmpy.datapath.kernel.datapath import KernelDatapath
from xfrmpy.datapath.kernel.sockets import enable_udp_encapsulation, exempt_from_policies
from xfrmpy.failures import OperatorError
from xfrmpy.ike.endpoint import IkeEndpoint

log = logging.getLogger(__name__)


class DatapathEvents:
    """See the module.

    `report` is called with what is news about a tunnel, `lose` when a datapath has ended and
    nothing more can be done with it, `demand` when a packet for a child of a tunnel waits for an
    IKE SA, `settle` when the core may have something to do.
    """

    def __init__(
        self,
        endpoint: IkeEndpoint,
        datapaths: Datapaths,
        sockets: IkeSockets,
        report: Callable[[Report], None],
        lose: Callable[[OperatorError], None],
        demand: Callable[[str, str, Acquire], None],
        settle: Callable[[], None],
    ) -> None:
        self._endpoint = endpoint
        self._datapaths = datapaths
        self._sockets = sockets
        self._report = report
        self._lose = lose
        self._demand = demand
        self._settle = settle
        self._loop = asyncio.get_running_loop()
        self._heard: list[Datapath] = []
        self._revivals = Restraint()

    def listen(self) -> None:
        """To every datapath that is open by now. Raises `OperatorError` XF4005."""
        for datapath in self._datapaths.opened():
            if datapath in self._heard:
                continue
            self._heard.append(datapath)
            self._loop.add_reader(datapath.fileno(), self.read, datapath)
            self._loop.call_soon(self.read, datapath)
            if isinstance(datapath, KernelDatapath):
                self._prepare_sockets()

    def stop(self) -> None:
        for datapath in self._datapaths.opened():
            self._loop.remove_reader(datapath.fileno())

    def read(self, datapath: Datapath) -> None:
        try:
            events = datapath.read_events()
        except DatapathError as error:
            self._loop.remove_reader(datapath.fileno())
            self._revive(datapath, f"the {datapath.name} datapath is gone: {error}")
            return
        for event in events:
            log.debug("%s datapath: %s", datapath.name, event)
            if isinstance(event, Expired):
                self._endpoint.handle_expire(event.sa, self._loop.time(), hard=event.hard)
            elif isinstance(event, MappingChanged):
                self._endpoint.handle_mapping(event.sa, event.new, self._loop.time())
            elif isinstance(event, OffloadRefused):
                whose = self._endpoint.asked_for(event.reqid) or ("", "")
                self._report(offload_refused(*whose, event))
            else:
                self._acquire(event)
        self._settle()

    def _revive(self, datapath: Datapath, summary: str) -> None:
        """What it had in force is found to be missing then; one that ends again and again does not
        get well by that."""
        now = self._loop.time()
        try:
            if self._revivals.wait_seconds(datapath.name, now):
                raise DatapathError("too often")
            self._revivals.note(datapath.name, now)
            datapath.revive()
        except DatapathError as error:
            self._lose(OperatorError("XF3003", summary, (("another", str(error)),)))
            return
        self._loop.add_reader(datapath.fileno(), self.read, datapath)
        self._report(datapath_revived(summary))

    def _acquire(self, event: Acquire) -> None:
        asked = self._endpoint.asked_for(event.reqid)
        if asked is None:
            return
        ends, now = (event.source, event.destination), self._loop.time()
        if not self._endpoint.handle_acquire(*asked, *ends, now):
            self._demand(*asked, event)

    def _prepare_sockets(self) -> None:
        try:
            for each in self._sockets.natt_sockets():
                enable_udp_encapsulation(each)
            for each in self._sockets.all():
                exempt_from_policies(each)
        except OSError as error:
            raise OperatorError(
                "XF4005", f"the kernel refuses what IKE's sockets need: {error.strerror}"
            ) from error
