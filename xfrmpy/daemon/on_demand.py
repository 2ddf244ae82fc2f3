"""Tunnels of `start: on-demand`: their traps are kept in force, and a packet brings them up.

A trap names the peer's address and ours, so it follows both. A peer that refuses is not asked again
for every packet: the pause grows with each failure, and what has come meanwhile is tried after it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from ipaddress import ip_address

from xfrmpy.daemon.core import Core
from xfrmpy.daemon.events import Occurrence
from xfrmpy.daemon.keeper import FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, Keeper
from xfrmpy.daemon.narration import summarize
from xfrmpy.daemon.occurrences import demanded, refused_on_demand
from xfrmpy.daemon.resolver import has_names, paths_to
from xfrmpy.daemon.tunnel import Tunnel
from xfrmpy.datapath.interface import Acquire
from xfrmpy.failures import OperatorError
from xfrmpy.policy.model import StartMode

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
"""How often it is looked whether the traps still lead to where the peers are."""


class OnDemand:
    """See the module. `tunnels` are the daemon's, by name; they come and go."""

    def __init__(
        self,
        tunnels: Mapping[str, Tunnel],
        keeper: Keeper,
        core: Core,
        hear: Callable[[Occurrence], None],
    ) -> None:
        self._tunnels = tunnels
        self._keeper = keeper
        self._core = core
        self._hear = hear
        self._loop = asyncio.get_running_loop()

    async def keep_traps(self) -> None:
        """Whatever becomes of addresses and routes; those of peers with addresses at once."""
        while True:
            for tunnel in tuple(self._tunnels.values()):
                self.lay_traps(tunnel)
            await asyncio.sleep(LOOK_SECONDS)

    def lay_all_traps(self) -> None:
        """Those for which no name has to be looked up."""
        for tunnel in self._tunnels.values():
            self.lay_traps(tunnel)

    def lay_traps(self, tunnel: Tunnel) -> None:
        """Those of one tunnel, if it is on demand, where its peer is by what is known now."""
        policy = tunnel.policy
        if not _is_on_demand(tunnel):
            return
        addresses = tunnel.addresses
        if not addresses and not has_names(policy):
            addresses = tuple(map(ip_address, policy.peers))
        if not addresses:
            return  # The name is being looked up.
        try:
            self._core.set_traps(policy.name, paths_to(policy, addresses)[0])
        except OperatorError as error:
            if tunnel.last_failure is None:
                log.warning("%s: %s", policy.name, summarize(error.failure))
            tunnel.last_failure = error.failure

    def demand(self, name: str, child: str, acquire: Acquire) -> None:
        """A packet has met a trap, and there is no IKE SA that could have a Child SA for it."""
        tunnel = self._tunnels.get(name)
        if tunnel is None or not _is_on_demand(tunnel):
            self._core.forget_demand(name)
        elif tunnel.demand is None or tunnel.demand.done():
            self._hear(demanded(name, child, acquire))
            tunnel.demand = self._keeper.spawn(self._meet(tunnel))

    async def _meet(self, tunnel: Tunnel) -> None:
        name = tunnel.policy.name
        while self._core.is_demanded(name):
            await asyncio.sleep(max(0.0, tunnel.patience_until - self._loop.time()))
            try:
                await asyncio.shield(self._keeper.attempt(tunnel))
                tunnel.patience_seconds = 0.0
            except OperatorError as error:
                self._core.forget_demand(name)
                seconds = min(2 * tunnel.patience_seconds, LAST_RETRY_SECONDS)
                tunnel.patience_seconds = max(seconds, FIRST_RETRY_SECONDS)
                pause = tunnel.patience_seconds * random.uniform(0.75, 1.25)
                tunnel.patience_until = self._loop.time() + pause
                self._hear(refused_on_demand(name, pause, error.failure))


def _is_on_demand(tunnel: Tunnel) -> bool:
    return tunnel.policy.start is StartMode.ON_DEMAND and tunnel.placement.failure is None
