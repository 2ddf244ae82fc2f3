"""The daemon's life, and what its callers may ask: status, up, down.

It reads the policy, opens what the tunnels need, brings up those that are to be up by themselves,
and on SIGTERM leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import logging
import os
import random
import secrets
import signal
from collections.abc import AsyncIterator, Coroutine, Mapping
from pathlib import Path as FilePath
from typing import Any

from xfrmpy import __version__
from xfrmpy.control import protocol
from xfrmpy.control.protocol import Progress, StatusReply, TunnelReply, TunnelStatus
from xfrmpy.daemon.control_server import ControlServer, reply_of
from xfrmpy.daemon.crash_secret import crash_secret
from xfrmpy.daemon.datapaths import Datapaths
from xfrmpy.daemon.engine import Engine
from xfrmpy.daemon.narration import is_routine, narrate, summarize
from xfrmpy.daemon.notify import notify_service_manager
from xfrmpy.daemon.rekeying import has_forward_secrecy, replace_child_sas, replace_sas
from xfrmpy.daemon.resolver import paths_to, resolve_names, resolve_peer
from xfrmpy.daemon.sockets import IkeSockets
from xfrmpy.daemon.status import tunnel_state, tunnel_status
from xfrmpy.daemon.tunnel import Tunnel
from xfrmpy.failures import Failure, OperatorError
from xfrmpy.ike.admission import AdmissionLimits
from xfrmpy.ike.endpoint import IkeEndpoint
from xfrmpy.ike.outputs import ChildSaEstablished, Output, Redirected, RequestRefused, TunnelClosed
from xfrmpy.ipsec.addresses import IpAddress, Path
from xfrmpy.policy.load import LoadedPolicy
from xfrmpy.policy.model import StartMode

log = logging.getLogger(__name__)

FAREWELL_SECONDS = 2.0
"""How long a stopping daemon waits for its peers to acknowledge that it goes."""

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 60.0
"""A tunnel of `start: auto` that fails is tried again, for ever, ever less often."""

REFUSAL_LOG_SECONDS = 5.0
"""How often a refusal of somebody unknown is a warning; the others are logged when asked for."""

RESOLVE_SECONDS = 300.0
"""How often the peers' names are looked up, for the sake of those who call us."""


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
    ) -> None:
        self._loaded = loaded
        self._runtime_dir = runtime_dir
        self._environ = environ
        self._limits = limits
        self._tunnels: dict[str, Tunnel] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Raises `OperatorError` if the daemon cannot start."""
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._stopped = asyncio.Event()
        self._lost: OperatorError | None = None
        self._next_refusal_at = 0.0
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stopped.set)
        # The sockets first: they show that the ports are ours, and the userspace worker opens its
        # own on the shared port behind them.
        with contextlib.closing(IkeSockets()) as sockets:
            self._datapaths = Datapaths(self._runtime_dir)
            try:
                self._place_tunnels()
                await self._serve(sockets)
            finally:
                self._datapaths.close()
        if self._lost is not None:
            raise self._lost

    def _place_tunnels(self) -> None:
        for policy in self._loaded.tunnels:
            placement = self._datapaths.place(policy)
            self._tunnels[policy.name] = Tunnel(placement)
            if placement.failure is not None:
                log.error("%s: %s", policy.name, summarize(placement.failure))
            else:
                because = f", because {placement.reason}" if placement.reason else ""
                log.info("%s: %s datapath%s", policy.name, placement.policy.datapath, because)

    async def _serve(self, sockets: IkeSockets) -> None:
        # A tunnel that cannot be had here is no tunnel to a peer that calls, either.
        usable = {n: t.policy for n, t in self._tunnels.items() if t.placement.failure is None}
        endpoint = IkeEndpoint(
            usable.values(),
            secrets.token_bytes,
            limits=self._limits,
            qcd_secret=crash_secret(self._runtime_dir),
        )
        self._engine = Engine(
            endpoint, usable, sockets, self._datapaths, self._runtime_dir, self._hear, self._lose
        )
        control = ControlServer(
            self._runtime_dir / protocol.SOCKET_NAME,
            {
                protocol.STATUS: self._status,
                protocol.UP: self._up,
                protocol.DOWN: self._down,
                protocol.REKEY: self._rekey,
            },
        )
        try:
            self._engine.start()
            await control.start()
            self._spawn(self._keep_resolving())
            for tunnel in self._tunnels.values():
                if tunnel.policy.start is StartMode.AUTO and tunnel.placement.failure is None:
                    self._want(tunnel)
            notify_service_manager(self._environ, "READY=1")
            log.info("ready, process %d, tunnels: %d", os.getpid(), len(self._tunnels))
            await self._stopped.wait()
            notify_service_manager(self._environ, "STOPPING=1")
        finally:
            await control.stop()
            await self._say_farewell()
            self._engine.stop()

    async def _say_farewell(self) -> None:
        for task in tuple(self._background):
            task.cancel()
        for tunnel in self._tunnels.values():
            tunnel.wanted = False
            if tunnel.attempt is not None:
                tunnel.attempt.cancel()
            self._engine.terminate(tunnel.policy.name)
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                for tunnel in self._tunnels.values():
                    await self._until_gone(tunnel)
        except TimeoutError:
            log.info("not every peer acknowledged that we go")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _lose(self, error: OperatorError) -> None:
        """Without its datapath a daemon would only pretend: a service manager starts it anew."""
        self._lost = error
        self._stopped.set()

    # News from the core.

    def _hear(self, report: Output) -> None:
        name: str = getattr(report, "tunnel", "")
        level = self._level(report, name)
        if log.isEnabledFor(level):
            log.log(level, "%s: %s", name or "no tunnel", narrate(report))
        tunnel = self._tunnels.get(name)
        if tunnel is None:
            return
        if isinstance(report, ChildSaEstablished):
            tunnel.last_failure = None
        elif isinstance(report, TunnelClosed | RequestRefused) and report.failure is not None:
            tunnel.last_failure = report.failure
        elif isinstance(report, Redirected):
            tunnel.redirect = report
            if not tunnel.is_connecting:
                self._spawn(self._follow_redirect(tunnel))
        tunnel.tell(report)

    def _level(self, report: Output, tunnel: str) -> int:
        """Anybody can be refused, as often as he likes; the log is not for him to fill."""
        is_refusal = isinstance(report, RequestRefused)
        if is_routine(report):
            return logging.DEBUG
        if tunnel:
            return logging.WARNING if is_refusal else logging.INFO
        if not is_refusal:
            return logging.DEBUG
        now = self._loop.time()
        if now >= self._next_refusal_at:
            self._next_refusal_at = now + REFUSAL_LOG_SECONDS
            return logging.WARNING
        return logging.DEBUG

    # Bringing a tunnel up, and keeping it.

    def _attempt(self, tunnel: Tunnel) -> asyncio.Task[None]:
        """The task that brings a tunnel up: the one that is at it, or a new one."""
        if tunnel.attempt is None or tunnel.attempt.done():
            tunnel.attempt = self._loop.create_task(self._connect(tunnel))
        return tunnel.attempt

    async def _connect(self, tunnel: Tunnel) -> None:
        """Try each path to the peer until a Child SA is in force, and go where it sends us.

        Raises `OperatorError`.
        """
        try:
            while (redirect := await self._connect_once(tunnel)) is not None:
                log.debug("%s: redirected to %s", tunnel.policy.name, redirect.gateway)
        except OperatorError as error:
            tunnel.last_failure = error.failure
            raise

    async def _connect_once(self, tunnel: Tunnel) -> Redirected | None:
        """An attempt at the peer, or at where it has sent us; gives where it sends us then."""
        redirect, tunnel.redirect = tunnel.redirect, None
        if redirect is not None:
            addresses = await resolve_names((str(redirect.gateway),))
        else:
            addresses = await resolve_peer(tunnel.policy)
            self._engine.set_peer_addresses(tunnel.policy.name, addresses)
        original = None if redirect is None else redirect.original
        paths = paths_to(tunnel.policy, addresses)
        for path in paths[:-1]:
            try:
                return await self._connect_on(tunnel, path, original)
            except OperatorError as error:
                if error.failure.code != "XF2001":
                    raise
        return await self._connect_on(tunnel, paths[-1], original)

    async def _connect_on(
        self, tunnel: Tunnel, path: Path, original: IpAddress | None
    ) -> Redirected | None:
        with tunnel.listen() as reports:
            self._engine.initiate(tunnel.policy.name, path, original)
            while True:
                match await reports.get():
                    case ChildSaEstablished():
                        return None
                    case Redirected() as redirect:
                        return redirect
                    case TunnelClosed(failure=failure):
                        raise _error_of(failure)

    async def _follow_redirect(self, tunnel: Tunnel) -> None:
        """A tunnel that was up is sent elsewhere: bring it up there."""
        try:
            await asyncio.shield(self._attempt(tunnel))
        except OperatorError as error:
            log.warning("%s: %s", tunnel.policy.name, summarize(error.failure))

    def _want(self, tunnel: Tunnel) -> None:
        if not tunnel.wanted:
            tunnel.wanted = True
            self._spawn(self._keep_up(tunnel))

    async def _keep_up(self, tunnel: Tunnel) -> None:
        delay = FIRST_RETRY_SECONDS
        while tunnel.wanted:
            try:
                if self._state(tunnel) != "up":
                    await asyncio.shield(self._attempt(tunnel))
                delay = FIRST_RETRY_SECONDS
                await self._until_down(tunnel)
            except OperatorError as error:
                log.warning("%s: %s", tunnel.policy.name, summarize(error.failure))
            await asyncio.sleep(delay * random.uniform(0.75, 1.25))
            delay = min(delay * 2, LAST_RETRY_SECONDS)

    async def _keep_resolving(self) -> None:
        """Responders know their peers by address, so these must be known before they call."""
        while True:
            for tunnel in self._tunnels.values():
                if tunnel.policy.peers and tunnel.placement.failure is None:
                    await self._resolve(tunnel)
            await asyncio.sleep(RESOLVE_SECONDS)

    async def _resolve(self, tunnel: Tunnel) -> None:
        try:
            addresses = await resolve_peer(tunnel.policy)
            self._engine.set_peer_addresses(tunnel.policy.name, addresses)
        except OperatorError as error:
            log.warning("%s: %s", tunnel.policy.name, summarize(error.failure))

    async def _until_down(self, tunnel: Tunnel) -> None:
        with tunnel.listen() as reports:
            while self._state(tunnel) == "up":
                await reports.get()

    async def _until_gone(self, tunnel: Tunnel) -> None:
        with tunnel.listen() as reports:
            while self._engine.has_ike_sas(tunnel.policy.name):
                await reports.get()

    # What callers ask.

    async def _status(self, parameters: dict[str, Any]) -> AsyncIterator[StatusReply]:
        name = parameters.get("tunnel")
        tunnels = self._tunnels.values() if name is None else [self._find(name)]
        yield StatusReply(
            version=__version__,
            pid=os.getpid(),
            seconds_up=self._loop.time() - self._started_at,
            drops={**self._engine.drops, **self._datapaths.drops()},
            tunnels=[self._status_of(t) for t in sorted(tunnels, key=lambda t: t.policy.name)],
        )

    async def _up(self, parameters: dict[str, Any]) -> AsyncIterator[Progress | TunnelReply]:
        tunnel, seconds = self._find(parameters["tunnel"]), float(parameters["timeout_seconds"])
        if self._state(tunnel) == "up":
            yield TunnelReply(changed=False, tunnel=self._status_of(tunnel))
            return
        if tunnel.placement.failure is not None:
            raise _error_of(tunnel.placement.failure)
        _require_peer(tunnel)
        attempt = self._attempt(tunnel)
        async for progress in self._follow(tunnel, attempt, seconds):
            yield progress
        if not attempt.done():
            await self._abandon(tunnel, attempt, seconds)
        await attempt
        if tunnel.policy.start is StartMode.AUTO:
            self._want(tunnel)
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
        if self._state(tunnel) != "up":
            raise OperatorError("XF4010", f"{name} is not up: there is nothing to rekey")
        work = self._loop.create_task(replace_sas(tunnel, self._engine))
        async for progress in self._follow(tunnel, work, seconds):
            yield progress
        if not work.done():
            work.cancel()
            raise OperatorError("XF4007", f"{name} was not rekeyed within {seconds:g} seconds")
        failure = work.result()
        if failure is not None:
            raise _error_of(failure)
        yield TunnelReply(changed=True, tunnel=self._status_of(tunnel))

    async def _rehearse(self, tunnel: Tunnel) -> Failure | None:
        """What the first rekeying would meet, where it has a key exchange that `up` had not."""
        if not has_forward_secrecy(tunnel.policy):
            return None
        return await replace_child_sas(tunnel, self._engine)

    async def _down(self, parameters: dict[str, Any]) -> AsyncIterator[Progress | TunnelReply]:
        tunnel, seconds = self._find(parameters["tunnel"]), float(parameters["timeout_seconds"])
        tunnel.wanted = False
        tunnel.redirect = None
        changed = self._engine.has_ike_sas(tunnel.policy.name)
        gone = self._loop.create_task(self._until_gone(tunnel))
        self._engine.terminate(tunnel.policy.name)
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
            self._engine.terminate(name)
        raise OperatorError("XF4007", f"{name} did not come up within {seconds:g} seconds")

    def _find(self, name: object) -> Tunnel:
        if isinstance(name, str) and name in self._tunnels:
            return self._tunnels[name]
        near = difflib.get_close_matches(str(name), self._tunnels, n=1)
        known = ", ".join(sorted(self._tunnels)) or "none"
        evidence = [("the daemon knows", known)]
        if near:
            evidence.append(("did you mean", near[0]))
        evidence += [("left out", str(error)) for error in self._loaded.errors]
        raise OperatorError("XF1013", f"there is no tunnel {name!r}", tuple(evidence))

    def _state(self, tunnel: Tunnel) -> str:
        return tunnel_state(tunnel, self._engine.ike_sas(tunnel.policy.name))

    def _status_of(self, tunnel: Tunnel) -> TunnelStatus:
        placed = tunnel.placement.failure is None
        return tunnel_status(
            tunnel,
            self._engine.ike_sas(tunnel.policy.name),
            self._datapaths.of(tunnel.policy) if placed else None,
            self._loop.time(),
        )


def _require_peer(tunnel: Tunnel) -> None:
    if not tunnel.policy.peers:
        name = tunnel.policy.name
        raise OperatorError("XF1014", f"{name} names no peer: it only waits to be called")


def _error_of(failure: Failure | None) -> OperatorError:
    if failure is None:
        return OperatorError("XF4009", "it was taken down while it was coming up")
    return OperatorError(failure.code, failure.summary, failure.evidence)
