"""What is measured of the running daemon, gathered for `metrics`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from xfrmpy import __version__
from xfrmpy.control.observed import MetricsReply
from xfrmpy.daemon.metrics import Measured, render
from xfrmpy.daemon.news import News
from xfrmpy.daemon.status import tunnel_status
from xfrmpy.daemon.totals import Totals
from xfrmpy.daemon.tunnel import Tunnel
from xfrmpy.ike.views import IkeSaView


class Measurement:
    """See the module. The callables are the daemon's; `tunnels` come and go."""

    def __init__(
        self,
        tunnels: Mapping[str, Tunnel],
        news: News,
        totals: Totals,
        ike_sas: Callable[[str], tuple[IkeSaView, ...]],
        drops: Callable[[], dict[str, int]],
    ) -> None:
        self._tunnels = tunnels
        self._news = news
        self._totals = totals
        self._ike_sas = ike_sas
        self._drops = drops
        self._started = time.time()

    def text(self) -> str:
        tunnels = [self._tunnels[name] for name in sorted(self._tunnels)]
        sas = {tunnel.policy.name: self._ike_sas(tunnel.policy.name) for tunnel in tunnels}
        now = asyncio.get_running_loop().time()
        return render(
            Measured(
                version=__version__,
                started=self._started,
                # Without totals: what is carried is read once, below.
                tunnels=[tunnel_status(t, sas[t.policy.name], None, now) for t in tunnels],
                children={t.policy.name: [c.name for c in t.policy.children] for t in tunnels},
                ike_sas={name: len(views) for name, views in sas.items()},
                up={
                    name: {c.child for v in views for c in v.children}
                    for name, views in sas.items()
                },
                carried=self._totals.carried(),
                tally=self._news.tally,
                missed=self._news.history.missed,
                drops=self._drops(),
                expiries={
                    (tunnel.policy.name, whose): certificates.expires_at
                    for tunnel in tunnels
                    for whose, certificates in (
                        ("ours", tunnel.policy.local_certificates),
                        ("authorities", tunnel.policy.remote_authorities),
                    )
                    if certificates is not None
                },
            )
        )

    async def metrics(self, _parameters: dict[str, Any]) -> AsyncIterator[MetricsReply]:
        yield MetricsReply(text=self.text())
