"""Bringing tunnels up, and keeping up those that are to be.

A tunnel that is wanted comes back by itself, for ever, with back-off and jitter. Peers that have
names are looked up ahead, for a responder knows who calls by the address.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from xfrmpy.daemon.core import Core
from xfrmpy.daemon.events import Occurrence
from xfrmpy.daemon.narration import summarize
from xfrmpy.daemon.occurrences import addresses_changed, path_left, retrying, unresolved
from xfrmpy.daemon.resolver import has_names, paths_to, resolve_names, resolve_peer
from xfrmpy.daemon.sockets import is_our_address
from xfrmpy.daemon.status import tunnel_state
from xfrmpy.daemon.tunnel import Tunnel
from xfrmpy.failures import Failure, OperatorError
from xfrmpy.ike.outputs import ChildSaEstablished, Redirected, TunnelClosed
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ike.views import IkeSaView
from xfrmpy.ipsec.addresses import IpAddress, Path
from xfrmpy.ipsec.drift import Ends

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 60.0
"""A tunnel of `start: auto` that fails is tried again, for ever, ever less often."""


class Keeper:
    """See the module. `tunnels` are the daemon's, by name; they come and go. The peers' names are
    looked up every `resolve_seconds`: for those who call us, and for those who have moved."""

    def __init__(
        self,
        tunnels: Mapping[str, Tunnel],
        core: Core,
        hear: Callable[[Occurrence], None],
        resolve_seconds: float,
    ) -> None:
        self._tunnels = tunnels
        self._resolve_seconds = resolve_seconds
        self._core = core
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._background: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Let go of every tunnel; what is up stays up."""
        for task in tuple(self._background):
            task.cancel()
        for tunnel in self._tunnels.values():
            self.let_go(tunnel)

    def let_go(self, tunnel: Tunnel) -> None:
        """It does not come back by itself from now on."""
        tunnel.wanted = False
        for task in (tunnel.keeping, tunnel.attempt):
            if task is not None:
                task.cancel()

    def state(self, tunnel: Tunnel) -> str:
        return tunnel_state(tunnel, self._core.ike_sas(tunnel.policy.name))

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it as long as tunnels are kept."""
        task = self._loop.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def attempt(self, tunnel: Tunnel) -> asyncio.Task[None]:
        """The task that brings a tunnel up: the one that is at it, or a new one."""
        if tunnel.attempt is None or _is_over(tunnel.attempt):
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
            addresses = await self._look_up(tunnel)
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
            self._core.initiate(tunnel.policy.name, path, original)
            while True:
                match await reports.get():
                    case ChildSaEstablished():
                        return None
                    case Redirected() as redirect:
                        return redirect
                    case TunnelClosed(failure=failure):
                        raise error_of(failure)

    async def bring_back(self, tunnel: Tunnel) -> None:
        """A tunnel that was up had to go, or is sent elsewhere: bring it up again, if it can be."""
        try:
            await asyncio.shield(self.attempt(tunnel))
        except OperatorError as error:
            log.warning("%s: %s", tunnel.policy.name, summarize(error.failure))

    def want(self, tunnel: Tunnel) -> None:
        if not tunnel.wanted:
            tunnel.wanted = True
            text = "wanted: it is brought up, and kept up"
            self._hear(Occurrence(event="tunnel-wanted", tunnel=tunnel.policy.name, text=text))
            if tunnel.keeping is None or _is_over(tunnel.keeping):
                tunnel.keeping = self.spawn(self._keep_up(tunnel))

    async def _keep_up(self, tunnel: Tunnel) -> None:
        delay = FIRST_RETRY_SECONDS
        await self._until_taken_over(tunnel)
        while tunnel.wanted:
            failure = None
            try:
                if self.state(tunnel) != "up":
                    await asyncio.shield(self.attempt(tunnel))
                delay = FIRST_RETRY_SECONDS
                await self._until_down(tunnel)
            except OperatorError as error:
                failure = error.failure
            except Exception:
                # For who wants the tunnel, a defect of ours is a reason to try again.
                log.exception("a defect met %s", tunnel.policy.name)
            pause = delay * random.uniform(0.75, 1.25)
            if tunnel.wanted:
                self._hear(retrying(tunnel.policy.name, pause, failure))
            await asyncio.sleep(pause)
            delay = min(delay * 2, LAST_RETRY_SECONDS)

    # Where the peers are.

    async def keep_resolving(self) -> None:
        """Responders know their peers by address, so these must be known before they call."""
        while True:
            for tunnel in tuple(self._tunnels.values()):
                # An address stands for itself for ever.
                is_due = has_names(tunnel.policy) if tunnel.addresses else tunnel.policy.peers
                if is_due and tunnel.placement.failure is None:
                    await self.resolve(tunnel)
            await asyncio.sleep(self._resolve_seconds)

    async def resolve(self, tunnel: Tunnel) -> None:
        """Look up the names of its peer, and go over to where that is, if it is elsewhere."""
        if not tunnel.policy.peers:
            return
        try:
            addresses = await self._look_up(tunnel)
        except OperatorError as error:
            self._hear(unresolved(tunnel.policy.name, error.failure))
        else:
            self._leave_dead_path(tunnel, addresses)

    async def _look_up(self, tunnel: Tunnel) -> tuple[IpAddress, ...]:
        """Every address of the peer, in order. Raises `OperatorError`."""
        before = tunnel.addresses
        try:
            tunnel.addresses = addresses = await resolve_peer(tunnel.policy)
        finally:
            # Also where there is none: who calls waits for the first answer. And it may have been
            # removed meanwhile.
            if self._tunnels.get(tunnel.policy.name) is tunnel:
                self._core.set_peer_addresses(tunnel.policy.name, tunnel.addresses)
        if before and set(addresses) != set(before):
            tunnel.left_addresses = (tunnel.left_addresses | {*before}) - {*addresses}
            self._hear(addresses_changed(tunnel.policy.name, before, addresses))
        return addresses

    def follow(self, ends: Ends) -> None:
        """Another path leads from an address of ours to a peer's, or none any more."""
        self._core.check_path(ends)
        for tunnel in tuple(self._tunnels.values()):
            if any(_ends(view) == ends for view in self._core.ike_sas(tunnel.policy.name)):
                self.doubt(tunnel)

    def doubt(self, tunnel: Tunnel) -> None:
        """Perhaps the peer is not reached where it was."""
        if tunnel.placement.failure is None:
            self.spawn(self.resolve(tunnel))

    def _leave_dead_path(self, tunnel: Tunnel, addresses: tuple[IpAddress, ...]) -> None:
        """Where the peer's names lead elsewhere by now, or our own address is gone, begin anew.

        The IKE SA that is there stays until the new one is up.
        """
        views = self._core.ike_sas(tunnel.policy.name)
        established = [view for view in views if view.state is IkeSaState.ESTABLISHED]
        if not established or any(view.state in _COMING for view in views):
            return
        ours, theirs = _ends(established[-1])
        reason = ""
        if theirs in tunnel.left_addresses:
            reason = f"{theirs} is not the peer's address any more"
        elif not is_our_address(ours):
            reason, addresses = f"{ours} is not our address any more", (theirs,)
        if not reason:
            return
        try:
            path = paths_to(tunnel.policy, addresses)[0]
        except OperatorError as error:
            log.info("%s: %s: %s", tunnel.policy.name, reason, summarize(error.failure))
            return
        if is_our_address(path.local.address):
            self._hear(path_left(tunnel.policy.name, path, reason))
            self._core.reauthenticate_on(tunnel.policy.name, path)

    async def _until_taken_over(self, tunnel: Tunnel) -> None:
        """What an earlier daemon has begun ends first, well or not."""
        coming = (IkeSaState.AUTHENTICATING, IkeSaState.ESTABLISHED)
        with tunnel.listen() as reports:
            while self.state(tunnel) != "up" and any(
                view.state in coming for view in self._core.ike_sas(tunnel.policy.name)
            ):
                await reports.get()

    async def _until_down(self, tunnel: Tunnel) -> None:
        """One whose SA is just being replaced, because it was lost, is not down."""
        with tunnel.listen() as reports:
            while self.state(tunnel) == "up" or self._core.is_recovering(tunnel.policy.name):
                await reports.get()

    async def until_gone(self, tunnel: Tunnel) -> None:
        with tunnel.listen() as reports:
            while self._core.has_ike_sas(tunnel.policy.name):
                await reports.get()


def _is_over(task: asyncio.Task[None]) -> bool:
    """Or is going to be, without having done what it was for."""
    return task.done() or bool(task.cancelling())


_COMING = (IkeSaState.INITIATING, IkeSaState.AUTHENTICATING)


def _ends(view: IkeSaView) -> Ends:
    return view.path.local.address, view.path.remote.address


def error_of(failure: Failure | None) -> OperatorError:
    if failure is None:
        return OperatorError("XF4009", "it was taken down while it was coming up")
    return OperatorError(failure.code, failure.summary, failure.evidence)
