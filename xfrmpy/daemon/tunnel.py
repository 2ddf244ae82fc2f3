"""A tunnel as the daemon holds it: its policy here, who waits for it, and how it last failed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from xfrmpy.daemon.datapaths import Placement
from xfrmpy.failures import Failure
from xfrmpy.ike.outputs import Output, Redirected
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.policy.model import TunnelPolicy


class Tunnel:
    """`wanted` says that it is to come back by itself, which `keeping` sees to; `attempt` brings it
    up at this moment.

    `redirect` is where the peer has sent us, for the next attempt. `addresses` are those of the
    peer's names, and `left_addresses` those that they had before and have no more. `demand` brings
    it up because of a packet, not before `patience_until`; `patience_seconds` is the last pause.
    """

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.wanted = False
        self.keeping: asyncio.Task[None] | None = None
        self.attempt: asyncio.Task[None] | None = None
        self.redirect: Redirected | None = None
        self.addresses: tuple[IpAddress, ...] = ()
        self.left_addresses: frozenset[IpAddress] = frozenset()
        self.demand: asyncio.Task[None] | None = None
        self.patience_until = self.patience_seconds = 0.0
        self.last_failure: Failure | None = placement.failure
        self._listeners: set[asyncio.Queue[Output]] = set()

    @property
    def policy(self) -> TunnelPolicy:
        return self.placement.policy

    @property
    def is_connecting(self) -> bool:
        return self.attempt is not None and not self.attempt.done()

    @contextlib.contextmanager
    def listen(self) -> Iterator[asyncio.Queue[Output]]:
        """Everything that the core reports of this tunnel, from now on."""
        queue: asyncio.Queue[Output] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)

    def tell(self, report: Output) -> None:
        for queue in self._listeners:
            queue.put_nowait(report)
