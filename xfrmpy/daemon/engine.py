"""The IKE core's way into the world, and the world's into the core.

Every input goes to the core; then everything that the core puts out is done, in order, before the
next input is looked at (`_do_all`). What it wants of the datapaths `enforcement.py` does, what they
tell comes by `datapath_events.py`, and commands come by `core.py`. What is to be kept is in the
store before the next output is done.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

from xfrmpy.daemon.core import Core
from xfrmpy.daemon.datapath_events import DatapathEvents
from xfrmpy.daemon.datapaths import Datapaths
from xfrmpy.daemon.enforcement import Enforcement
from xfrmpy.daemon.events import Report
from xfrmpy.daemon.fetching import Fetcher
from xfrmpy.daemon.shunts import Shunts
from xfrmpy.daemon.sockets import IkeSockets
from xfrmpy.daemon.statuses import StatusFetcher
from xfrmpy.daemon.totals import Totals
from xfrmpy.datapath.interface import Acquire
from xfrmpy.failures import OperatorError
from xfrmpy.ike.endpoint import IkeEndpoint
from xfrmpy.ike.outputs import (
    AddPolicy,
    AddSa,
    AskAaa,
    AskCertificates,
    AskSignature,
    AskStatus,
    AskUsage,
    ChildSaEstablished,
    DatagramDropped,
    DefectFound,
    MoveSa,
    Output,
    Persist,
    RemovePolicy,
    RemoveSa,
    SendDatagram,
)
from xfrmpy.pki.lookups import Lookup
from xfrmpy.pki.sources import Source
from xfrmpy.policy.model import TunnelPolicy
from xfrmpy.store.interface import Store, StoreError

if TYPE_CHECKING:
    from xfrmpy.daemon.signing import TokenSigner

log = logging.getLogger(__name__)

MAX_REPLAY_FILES = 20
"""Datagrams that met a defect of ours are kept for the report, so many of them."""


class Engine:
    """See the module.

    `report` is called with every output that is news about a tunnel, `lose` when a datapath has
    ended and nothing more can be done with it, `demand` when a packet for a child of a tunnel waits
    for an IKE SA, `ask` when somebody else is to decide on a user, whose verdict `Core.decide`
    takes. What `shunts` have in force is not the core's. In `cache_dir` is kept what is known of
    revoked certificates.
    """

    def __init__(
        self,
        endpoint: IkeEndpoint,
        tunnels: dict[str, TunnelPolicy],
        sockets: IkeSockets,
        datapaths: Datapaths,
        runtime_dir: FilePath,
        report: Callable[[Report], None],
        lose: Callable[[OperatorError], None],
        store: Store | None,
        demand: Callable[[str, str, Acquire], None],
        ask: Callable[[AskAaa], None],
        shunts: Shunts,
        cache_dir: FilePath,
    ) -> None:
        self.drops: Counter[str] = Counter()
        self._sockets = sockets
        self._runtime_dir = runtime_dir
        self._report = report
        self._lose = lose
        self._store = store
        self._ask = ask
        self._endpoint = endpoint
        self._loop = asyncio.get_running_loop()
        self.totals = Totals(self._loop.time)
        self._signer: TokenSigner | None = None
        self._statuses = StatusFetcher(cache_dir / "revocation", self._tell_status)
        self._certificates = Fetcher()
        self._timer: asyncio.TimerHandle | None = None
        self._defects = 0
        self._events = DatapathEvents(
            endpoint, datapaths, sockets, report, lose, demand, self._settle
        )
        self._enforcement = Enforcement(
            endpoint, tunnels, datapaths, shunts, self.totals, self._events
        )
        self.core = Core(endpoint, tunnels, self._enforcement, self._events, self._settle)

    @property
    def keeps(self) -> bool:
        """Whether another daemon could go on with every SA."""
        return self._store is not None

    def start(self) -> None:
        """Listen to the peers and to the datapaths."""
        self._statuses.recall(self._endpoint.recall_status)
        self._events.listen()
        self._enforcement.adopt()
        for each in self._sockets.all():
            self._loop.add_reader(each, self._receive, each)
        self._settle()  # What was taken over has something to do, perhaps.

    def stop(self) -> None:
        self._statuses.stop()
        self._certificates.stop()
        if self._signer is not None:
            self._signer.stop()
        if self._timer is not None:
            self._timer.cancel()
        self._events.stop()
        for each in self._sockets.all():
            self._loop.remove_reader(each)

    # Inputs of the core.

    def _receive(self, ready: socket.socket) -> None:
        for data, path in self._sockets.read(ready):
            self._endpoint.receive_datagram(data, path, self._loop.time())
            self._do_all()
        self._arm_timer()

    def _handle_timeout(self) -> None:
        self._timer = None
        self._endpoint.handle_timeout(self._loop.time())
        self._settle()

    # Outputs of the core.

    def _settle(self) -> None:
        self._do_all()
        self._arm_timer()

    def _do_all(self) -> None:
        while (output := self._endpoint.next_output()) is not None:
            self._do(output)

    def _do(self, output: Output) -> None:
        match output:
            case SendDatagram():
                self._send(output)
            case Persist():
                self._keep(output)
            case AddSa() | AddPolicy():
                self._enforcement.add(output)
            case MoveSa() | RemoveSa() | RemovePolicy():
                self._enforcement.change(output)
            case AskUsage():
                self._enforcement.tell_usage(output)
            case AskAaa() | AskSignature() | AskStatus() | AskCertificates():
                self._ask_outside(output)
            case DatagramDropped():
                self.drops[output.reason.value] += 1
                log.debug("dropped from %s: %s %s", output.path, output.reason, output.detail)
            case DefectFound():
                self._keep_defect(output)
            case ChildSaEstablished():
                self._enforcement.ask_again(output)
                self._report(output)
            case _:
                self._report(output)

    def _send(self, output: SendDatagram) -> None:
        try:
            self._sockets.send(output.data, output.path)
        except OSError as error:
            # Like a datagram lost on the way: it will be sent again, or given up in its time.
            self.drops["send-failed"] += 1
            log.warning("cannot send on %s: %s", output.path, error)

    def _keep(self, output: Persist) -> None:
        """A store that has missed something is worse than none: its nonces have been used."""
        if self._store is None:
            return
        try:
            self._store.commit(output.records)
        except StoreError as error:
            log.error("from now on a kill of this daemon costs every SA: %s", error)
            store, self._store = self._store, None
            try:
                store.clear()
            except StoreError as left:
                self._lose(OperatorError("XF4003", f"what was kept is out of date: {left}"))

    def _ask_outside(self, output: AskAaa | AskSignature | AskStatus | AskCertificates) -> None:
        """The answer comes later, as an input."""
        match output:
            case AskAaa():
                self._ask(output)
            case AskSignature():
                self._ask_token(output)
            case AskStatus():
                for source in output.sources:
                    self._statuses.ask(source)
            case AskCertificates():
                for lookup in output.lookups:
                    told = partial(self._tell_certificates, lookup)
                    self._certificates.begin(lookup.url, lookup.limit, told)

    def _ask_token(self, asked: AskSignature) -> None:
        if self._signer is None:
            from xfrmpy.daemon.signing import TokenSigner  # noqa: PLC0415

            self._signer = TokenSigner(self._tell_signature)
        self._signer.ask(asked)

    def _tell_signature(self, asked: AskSignature, answer: bytes | str) -> None:
        self._endpoint.handle_signature(asked, answer, self._loop.time())
        self._settle()

    def _tell_status(self, source: Source, answer: bytes | str) -> None:
        self._endpoint.handle_status(source, answer, self._loop.time())
        self._settle()

    def _tell_certificates(self, lookup: Lookup, answer: bytes | str) -> None:
        outcome = answer if isinstance(answer, str) else f"{len(answer)} octets"
        log.info("%s of %s: %s", lookup, lookup.url, outcome)
        self._endpoint.handle_certificates(lookup, answer, self._loop.time())
        self._settle()

    def _keep_defect(self, output: DefectFound) -> None:
        self._defects += 1
        file = self._runtime_dir / f"defect-{self._defects % MAX_REPLAY_FILES}.datagram"
        log.critical("a defect met a datagram on %s, kept as %s", output.path, file)
        log.critical("%s", output.traceback)
        try:
            file.write_bytes(output.datagram)
        except OSError as error:
            log.error("cannot keep it: %s", error)
        self._report(output)

    def _arm_timer(self) -> None:
        """A timer that comes too early is left, and sets the next: most are never reached."""
        due_at = self._endpoint.next_timeout()
        if due_at is None or (self._timer is not None and self._timer.when() <= due_at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due_at, self._handle_timeout)
