"""The daemon's life, and what its callers may ask: status, up, down.

It reads the policy, opens what the tunnels need, brings up those that are to be up by themselves,
and on SIGTERM leaves nothing behind. On SIGUSR2 it ends as if it were killed: without a word to
anybody, and the next one takes over what is in force.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import gc
import logging
import os
import secrets
import signal
from collections.abc import AsyncIterator, Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path as FilePath
from typing import Any

from xfrmpy import __version__
from xfrmpy.control import protocol
from xfrmpy.control.protocol import Progress, StatusReply, TunnelReply, TunnelStatus
from xfrmpy.crypto.authentication import SignaturePolicy
from xfrmpy.crypto.self_test import failed_schemes
from xfrmpy.crypto.signatures import SCHEMES
from xfrmpy.daemon.applying import Applier
from xfrmpy.daemon.blocking import Blocking
from xfrmpy.daemon.callers import Doorkeeper
from xfrmpy.daemon.control_server import Answer, ControlServer
from xfrmpy.daemon.crash_secret import crash_secret
from xfrmpy.daemon.datapaths import Datapaths
from xfrmpy.daemon.engine import Engine
from xfrmpy.daemon.events import Occurrence, Report
from xfrmpy.daemon.exposition import Exposition, Exposure
from xfrmpy.daemon.interfaces import begin_interfaces, interface_status, require_interface
from xfrmpy.daemon.inventory import Surveyor
from xfrmpy.daemon.keeper import Keeper, error_of
from xfrmpy.daemon.measurement import Measurement
from xfrmpy.daemon.narration import is_routine, narrate
from xfrmpy.daemon.news import News
from xfrmpy.daemon.notify import ServiceManager
from xfrmpy.daemon.observation import Observation
from xfrmpy.daemon.occurrences import placed, started, stopping, taken_over
from xfrmpy.daemon.on_demand import OnDemand
from xfrmpy.daemon.policy_calls import PolicyCalls
from xfrmpy.daemon.reconciliation import Reconciler
from xfrmpy.daemon.recovery import open_store, take_over
from xfrmpy.daemon.rekeying import has_forward_secrecy, replace_child_sas, replace_sas
from xfrmpy.daemon.renewal import Renewal
from xfrmpy.daemon.replies import reply_of
from xfrmpy.daemon.shunts import Shunts
from xfrmpy.daemon.socket_keeper import SocketKeeper
from xfrmpy.daemon.sockets import IkeSockets
from xfrmpy.daemon.status import tunnel_status
from xfrmpy.daemon.tunnel import Tunnel
from xfrmpy.daemon.users import Users
from xfrmpy.datapath.interface import Acquire, Datapath
from xfrmpy.failures import Failure, OperatorError
from xfrmpy.ike.admission import AdmissionLimits
from xfrmpy.ike.endpoint import IkeEndpoint
from xfrmpy.ike.kept_policy import read_policies
from xfrmpy.ike.outputs import (
    AskAaa,
    ChildSaEstablished,
    Redirected,
    RequestRefused,
    RequestRetransmitted,
    TrapsRefused,
    TunnelClosed,
)
from xfrmpy.ike.restoration import Restored
from xfrmpy.policy.changes import keep_reqids
from xfrmpy.policy.load import LoadedPolicy, config_path
from xfrmpy.policy.model import StartMode
from xfrmpy.store.interface import Store, StoreError

log = logging.getLogger(__name__)

FAREWELL_SECONDS = 2.0
"""How long a stopping daemon waits for its peers to acknowledge that it goes."""

REHEARSAL_SECONDS = 5.0
"""How long `up` waits for the rehearsal of a rekeying; a peer that is slower is none the worse."""


class Service:
    """See the module. `run` returns when the daemon has been told to stop, and has."""

    def __init__(
        self,
        loaded: LoadedPolicy,
        runtime_dir: FilePath,
        environ: Mapping[str, str],
        limits: AdmissionLimits,
        doorkeeper: Doorkeeper,
        exposure: Exposure,
        resolve_seconds: float,
        natt_port: int,
        workers: int = 1,
    ) -> None:
        self._natt_port = natt_port
        self._workers = workers
        self._resolve_seconds = resolve_seconds
        self._loaded = loaded
        self._runtime_dir = runtime_dir
        self._environ = environ
        self._limits = limits
        self._doorkeeper = doorkeeper
        self._exposure = exposure
        self._tunnels: dict[str, Tunnel] = {}
        self._store: Store | None = None
        self._is_relieved = False

    async def run(self) -> None:
        """Raises `OperatorError` if the daemon cannot start."""
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._stopped = asyncio.Event()
        self._lost: OperatorError | None = None
        self._news = News()
        self._manager = ServiceManager(self._environ)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stopped.set)
        self._loop.add_signal_handler(signal.SIGUSR2, self._be_relieved)
        # Before anything that may fail: what must not go in clear must not meanwhile, either.
        self._blocking = Blocking(self._natt_port)
        self._blocking.enforce(self._loaded)
        # The sockets first: they show that the ports are ours, and the userspace worker opens its
        # own on the shared port behind them.
        with contextlib.ExitStack() as stack:
            self._kept = SocketKeeper(self._runtime_dir, self._natt_port, self._workers)
            stack.callback(self._let_go)
            sockets = stack.enter_context(contextlib.closing(self._kept.open_sockets()))
            self._datapaths = Datapaths(
                self._runtime_dir,
                self._natt_port,
                self._workers,
                are_in_place=not sockets.are_new,
            )
            try:
                await self._serve(sockets)
            finally:
                if self._is_relieved:
                    self._datapaths.leave()
                else:
                    self._datapaths.close()
                    self._forget()
        if self._lost is not None:
            raise self._lost

    def _place_tunnels(self, records: Mapping[bytes, bytes]) -> None:
        """Those that an earlier daemon had keep their reqids, by which their SAs are found.

        What is beside all tunnels is put in force on their datapaths.
        """
        in_force = (kept.policy for kept in read_policies(records).values())
        for policy in keep_reqids(self._loaded.tunnels, in_force):
            placement = self._datapaths.place(policy)
            self._tunnels[policy.name] = Tunnel(placement)
            self._news.hear(placed(placement))
        self._shunts = Shunts(self._datapaths, self._loaded.shunts)
        self._shunts.enforce()

    def _go_on(self, sockets: IkeSockets) -> Restored | None:
        """The engine with every tunnel; what an earlier daemon has left to it, if one has."""
        # A tunnel that cannot be had here is no tunnel to a peer that calls, either.
        self._store, records = open_store(self._runtime_dir)
        self._place_tunnels(records)
        usable = {n: t.policy for n, t in self._tunnels.items() if t.placement.failure is None}
        endpoint = IkeEndpoint(
            usable.values(),
            secrets.token_bytes,
            limits=self._limits,
            qcd_secret=crash_secret(self._runtime_dir),
            keeps=self._store is not None,
            natt_port=self._natt_port,
            lanes=self._workers,
            cpus=os.cpu_count() or 1,
            signatures=_usable_signatures(),
            wall_clock=lambda: datetime.now(UTC),
        )
        restored = take_over(
            endpoint, records, self._datapaths, self._shunts.places, self._loop.time()
        )
        if restored is not None:
            self._news.hear(taken_over(restored))
        begin_interfaces(self._tunnels.values(), self._datapaths, self._news.hear)
        self._engine = Engine(
            endpoint,
            usable,
            sockets,
            self._datapaths,
            self._runtime_dir,
            self._hear,
            self._lose,
            self._store,
            self._demand,
            self._ask,
            self._shunts,
            FilePath(self._environ.get("CACHE_DIRECTORY") or self._runtime_dir),
        )
        self._core = self._engine.core
        self._users = Users(
            lambda tunnel: self._tunnels[tunnel].policy,
            self._core.ike_sas,
            self._engine.totals,
            self._core.decide,
        )
        self._users.prepare(usable.values())
        return restored

    async def _serve(self, sockets: IkeSockets) -> None:
        restored = self._go_on(sockets)
        hear, core = self._news.hear, self._core
        self._keeper = Keeper(self._tunnels, core, hear, self._resolve_seconds)
        self._on_demand = OnDemand(self._tunnels, self._keeper, core, hear)
        reconciler = Reconciler(core, self._datapaths, hear, self._keeper.follow)
        observation = Observation(
            self._news.history, self._find, self._status_of, self._core.ike_sas
        )
        measurement = Measurement(
            self._tunnels, self._news, self._engine.totals, self._core.ike_sas, self._drops
        )
        exposition = Exposition(self._exposure, measurement.text, self._doorkeeper.gid)
        applier = Applier(
            self._tunnels,
            self._keeper,
            self._on_demand,
            core,
            self._datapaths,
            reconciler,
            self._blocking,
            self._shunts,
        )
        self._policy = PolicyCalls(self._loaded, config_path(self._environ), applier)
        control = ControlServer(
            self._runtime_dir / protocol.SOCKET_NAME,
            self._methods(observation, measurement),
            self._doorkeeper,
        )
        try:
            self._engine.start()
            self._kept.watch(sockets)
            reconciler.watch()
            self._blocking.keep(self._news.hear)
            await control.start()
            await exposition.start()
            self._on_demand.lay_all_traps()
            self._keeper.spawn(self._keeper.keep_resolving())
            self._keeper.spawn(self._on_demand.keep_traps())
            renewal = Renewal(applier.policies, self._policy.renew)
            self._keeper.spawn(renewal.keep_looking())
            self._begin_tunnels(frozenset() if restored is None else restored.replaced)
            # The policy lives as long as we do: the collector need not go through it.
            gc.freeze()
            gc.enable()
            self._manager.tell("READY=1")
            self._keeper.spawn(self._manager.keep_status(self._summary))
            self._keeper.spawn(self._manager.keep_watchdog(self._datapaths.answer))
            self._news.hear(started(os.getpid(), len(self._tunnels)))
            await self._stopped.wait()
            self._news.hear(stopping(leaves_all=self._is_relieved))
            self._manager.tell("STOPPING=1")
        finally:
            await control.stop()
            await exposition.stop()
            self._policy.stop()
            reconciler.stop()
            self._keeper.stop()
            if not self._is_relieved:
                await self._say_farewell()
            await self._users.stop()
            self._kept.ignore()
            self._blocking.stop()
            self._engine.stop()

    def _methods(self, observation: Observation, measurement: Measurement) -> dict[str, Answer]:
        """What callers may ask, by the names of the protocol."""
        surveyor = Surveyor(
            lambda: [tunnel.policy for tunnel in self._tunnels.values()],
            self._find,
            self._datapaths.read_userspace,
        )
        return {
            protocol.STATUS: self._status,
            protocol.DESCRIBE: observation.describe,
            protocol.MONITOR: observation.monitor,
            protocol.WAIT: observation.wait,
            protocol.METRICS: measurement.metrics,
            protocol.SHOW_KERNEL: surveyor.show_kernel,
            protocol.UP: self._up,
            protocol.DOWN: self._down,
            protocol.REKEY: self._rekey,
            protocol.PLAN: self._policy.plan,
            protocol.APPLY: self._policy.apply,
            protocol.CONFIRM: self._policy.confirm,
            protocol.ROLLBACK: self._policy.rollback,
        }

    def _begin_tunnels(self, replaced: Collection[str]) -> None:
        """Bring up those that are to be up by themselves, and those that a change took down."""
        for tunnel in self._tunnels.values():
            if tunnel.policy.start is StartMode.AUTO and tunnel.placement.failure is None:
                self._keeper.want(tunnel)
            elif tunnel.policy.name in replaced:
                self._keeper.spawn(self._keeper.bring_back(tunnel))

    def _be_relieved(self) -> None:
        """Leave all to the next daemon, unless that could not go on with it."""
        if self._stopped.is_set():
            return
        self._is_relieved = self._engine.keeps
        self._stopped.set()

    def _let_go(self) -> None:
        if not self._is_relieved:
            self._kept.end()

    async def _say_farewell(self) -> None:
        for tunnel in self._tunnels.values():
            self._core.terminate(tunnel.policy.name)
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                for tunnel in self._tunnels.values():
                    await self._keeper.until_gone(tunnel)
        except TimeoutError:
            log.info("not every peer acknowledged that we go")

    def _forget(self) -> None:
        """The peers have been told; nobody is to go on from here."""
        try:
            if self._store is not None:
                self._store.clear()
        except StoreError as error:
            log.error("what was kept stays behind: %s", error)

    def _lose(self, error: OperatorError) -> None:
        """Without its datapath a daemon would only pretend: a service manager starts it anew."""
        self._news.hear(
            Occurrence(event="datapath-lost", text=error.failure.summary, failure=error.failure)
        )
        self._lost = error
        self._stopped.set()

    def _demand(self, tunnel: str, child: str, acquire: Acquire) -> None:
        self._on_demand.demand(tunnel, child, acquire)

    def _ask(self, asked: AskAaa) -> None:
        self._users.ask(asked)

    # News from the core.

    def _hear(self, report: Report) -> None:
        self._news.hear(report)
        self._users.hear(report)
        if isinstance(report, Occurrence):
            return
        if not is_routine(report):
            self._manager.note_change()
        tunnel = self._tunnels.get(getattr(report, "tunnel", ""))
        if tunnel is None:
            return
        if isinstance(report, ChildSaEstablished):
            tunnel.last_failure = None
        elif isinstance(report, _FAILURES) and report.failure is not None:
            tunnel.last_failure = report.failure
        elif isinstance(report, RequestRetransmitted) and report.count == 1:
            if self._keeper.state(tunnel) == "up":
                self._keeper.doubt(tunnel)
        elif isinstance(report, Redirected):
            tunnel.redirect = report
            if not tunnel.is_connecting:
                self._keeper.spawn(self._keeper.bring_back(tunnel))
        tunnel.tell(report)

    # What callers ask.

    async def _status(self, parameters: dict[str, Any]) -> AsyncIterator[StatusReply]:
        name = parameters.get("tunnel")
        tunnels = self._tunnels.values() if name is None else [self._find(name)]
        yield StatusReply(
            version=__version__,
            pid=os.getpid(),
            seconds_up=self._loop.time() - self._started_at,
            drops=self._drops(),
            tunnels=[self._status_of(t) for t in sorted(tunnels, key=lambda t: t.policy.name)],
        )

    async def _up(self, parameters: dict[str, Any]) -> AsyncIterator[Progress | TunnelReply]:
        tunnel, seconds = self._find(parameters["tunnel"]), float(parameters["timeout_seconds"])
        if self._keeper.state(tunnel) == "up":
            yield TunnelReply(changed=False, tunnel=self._status_of(tunnel))
            return
        if tunnel.placement.failure is not None:
            raise error_of(tunnel.placement.failure)
        _require_peer(tunnel)
        require_interface(tunnel.policy, self._datapaths.of(tunnel.policy))
        attempt = self._keeper.attempt(tunnel)
        async for progress in self._follow(tunnel, attempt, seconds):
            yield progress
        if not attempt.done():
            await self._abandon(tunnel, attempt, seconds)
        await attempt
        if tunnel.policy.start is StartMode.AUTO:
            self._keeper.want(tunnel)
        rehearsal = self._loop.create_task(self._rehearse(tunnel))
        async for progress in self._follow(tunnel, rehearsal, REHEARSAL_SECONDS):
            yield progress
        warning = rehearsal.result() if rehearsal.done() else None
        rehearsal.cancel()
        yield TunnelReply(
            changed=True,
            tunnel=self._status_of(tunnel),
            warning=None if warning is None else reply_of(warning),
        )

    async def _rekey(self, parameters: dict[str, Any]) -> AsyncIterator[Progress | TunnelReply]:
        tunnel, seconds = self._find(parameters["tunnel"]), float(parameters["timeout_seconds"])
        name = tunnel.policy.name
        if self._keeper.state(tunnel) != "up":
            raise OperatorError("XF4010", f"{name} is not up: there is nothing to rekey")
        work = self._loop.create_task(replace_sas(tunnel, self._core))
        async for progress in self._follow(tunnel, work, seconds):
            yield progress
        if not work.done():
            work.cancel()
            raise OperatorError("XF4007", f"{name} was not rekeyed within {seconds:g} seconds")
        failure = work.result()
        if failure is not None:
            raise error_of(failure)
        yield TunnelReply(changed=True, tunnel=self._status_of(tunnel))

    async def _rehearse(self, tunnel: Tunnel) -> Failure | None:
        """What the first rekeying would meet, where it has a key exchange that `up` had not."""
        if not has_forward_secrecy(tunnel.policy):
            return None
        return await replace_child_sas(tunnel, self._core)

    async def _down(self, parameters: dict[str, Any]) -> AsyncIterator[Progress | TunnelReply]:
        tunnel, seconds = self._find(parameters["tunnel"]), float(parameters["timeout_seconds"])
        tunnel.wanted = False
        tunnel.redirect = None
        changed = self._core.has_ike_sas(tunnel.policy.name)
        gone = self._loop.create_task(self._keeper.until_gone(tunnel))
        self._core.terminate(tunnel.policy.name)
        async for progress in self._follow(tunnel, gone, seconds):
            yield progress
        gone.cancel()
        tunnel.last_failure = None
        yield TunnelReply(changed=changed, tunnel=self._status_of(tunnel))

    async def _follow(
        self, tunnel: Tunnel, work: asyncio.Task[Any], seconds: float
    ) -> AsyncIterator[Progress]:
        """What is reported of a tunnel until the work is done or the time is over."""
        begun_at = self._loop.time()
        with tunnel.listen() as reports:
            while not (work.done() and reports.empty()):
                left = begun_at + seconds - self._loop.time()
                if left <= 0:
                    return
                hear = self._loop.create_task(reports.get())
                await asyncio.wait({hear, work}, timeout=left, return_when="FIRST_COMPLETED")
                if not hear.done():
                    hear.cancel()
                    continue
                text = narrate(hear.result())
                passed = self._loop.time() - begun_at
                yield Progress(tunnel=tunnel.policy.name, seconds=passed, text=text)

    async def _abandon(self, tunnel: Tunnel, attempt: asyncio.Task[None], seconds: float) -> None:
        """An `up` that takes too long leaves nothing behind, unless the tunnel is `start: auto`."""
        name = tunnel.policy.name
        if not tunnel.wanted:
            attempt.cancel()
            self._core.terminate(name)
        raise OperatorError("XF4007", f"{name} did not come up within {seconds:g} seconds")

    def _find(self, name: object) -> Tunnel:
        if isinstance(name, str) and name in self._tunnels:
            return self._tunnels[name]
        near = difflib.get_close_matches(str(name), self._tunnels, n=1)
        known = ", ".join(sorted(self._tunnels)) or "none"
        evidence = [("the daemon knows", known)]
        if near:
            evidence.append(("did you mean", near[0]))
        evidence += [("left out", str(error)) for error in self._policy.loaded.errors]
        raise OperatorError("XF1013", f"there is no tunnel {name!r}", tuple(evidence))

    def _summary(self) -> str:
        up = sum(map(self._core.is_up, self._tunnels))
        return f"{up} of {len(self._tunnels)} tunnels up"

    def _drops(self) -> dict[str, int]:
        return {**self._engine.drops, **self._datapaths.drops(), **self._users.drops()}

    def _status_of(self, tunnel: Tunnel) -> TunnelStatus:
        name = tunnel.policy.name
        return tunnel_status(
            tunnel,
            self._core.ike_sas(name),
            self._engine.totals,
            self._loop.time(),
            is_trapped=self._core.has_traps(name),
            interface=interface_status(tunnel.policy, self._datapath_of(tunnel)),
        )

    def _datapath_of(self, tunnel: Tunnel) -> Datapath | None:
        placed = tunnel.placement.failure is None
        return self._datapaths.of(tunnel.policy) if placed else None


_FAILURES = (TunnelClosed, RequestRefused, TrapsRefused)


def _require_peer(tunnel: Tunnel) -> None:
    if not tunnel.policy.peers:
        name = tunnel.policy.name
        raise OperatorError("XF1014", f"{name} names no peer: it only waits to be called")


def _usable_signatures() -> SignaturePolicy:
    """What signs and verifies rightly here."""
    failed = failed_schemes()
    if failed:
        log.error("signatures not used, because their self-test fails: %s", ", ".join(failed))
    return SignaturePolicy(schemes=tuple(s for s in SCHEMES if s.name not in failed))
