"""What the core wants of the datapaths is done there; what cannot be done it is told at once."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import defaultdict
from collections.abc import Sequence

from xfrmpy.daemon.datapath_events import DatapathEvents
from xfrmpy.daemon.datapaths import Datapaths
from xfrmpy.daemon.shunts import Shunts
from xfrmpy.daemon.totals import Totals
from xfrmpy.datapath.interface import Datapath, DatapathError, NotAdded
from xfrmpy.datapath.kernel.datapath import KernelDatapath
from xfrmpy.datapath.kernel.holding import hold_packets
from xfrmpy.ike.endpoint import IkeEndpoint
from xfrmpy.ike.outputs import (
    AddPolicy,
    AddSa,
    AskUsage,
    ChildSaEstablished,
    MoveSa,
    RemovePolicy,
    RemoveSa,
)
from xfrmpy.ipsec.drift import Difference
from xfrmpy.ipsec.sad import SaId
from xfrmpy.policy.model import TunnelPolicy

log = logging.getLogger(__name__)


class Enforcement:
    """See the module. What `shunts` have in force is not the core's."""

    def __init__(
        self,
        endpoint: IkeEndpoint,
        tunnels: dict[str, TunnelPolicy],
        datapaths: Datapaths,
        shunts: Shunts,
        totals: Totals,
        events: DatapathEvents,
    ) -> None:
        self._endpoint = endpoint
        self._tunnels = tunnels
        self._datapaths = datapaths
        self._shunts = shunts
        self._totals = totals
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._holds = False

    def adopt(self) -> None:
        """Count what was in force before this daemon."""
        for tunnel, policy in self._tunnels.items():
            for sa in self._endpoint.ike_sas(tunnel):
                for child in sa.children:
                    self._totals.adopt(tunnel, child, self._datapaths.of(policy))

    def add(self, first: AddSa | AddPolicy) -> None:
        """With all that comes right behind it and is the same Child SA's."""
        datapath = self._datapaths.of(self._tunnels[first.tunnel])
        wanted = [first, *self._endpoint.next_additions(first)]
        for output in wanted:
            self._totals.note(output, datapath)
        try:
            self._refuse_shunted(wanted)
            datapath.add([output.entry for output in wanted])
        except NotAdded as error:
            log.error("%s: the %s datapath: %s", first.tunnel, datapath.name, error)
            refused, *not_done = wanted[error.done :]
            self._endpoint.handle_failure(refused, f"{datapath.name}: {error}", not_done)
        if any(isinstance(each, AddSa) and each.entry.offload for each in wanted):
            self._loop.call_soon(self._events.read, datapath)  # Whether it was refused.

    def _refuse_shunted(self, wanted: Sequence[AddSa | AddPolicy]) -> None:
        """An SPD has one entry of a selector; what a peer narrows must not take a shunt's place."""
        for output in wanted:
            if isinstance(output, AddPolicy) and output.entry.place in self._shunts.places:
                reason = f"a shunt has the selector {output.entry.selector}"
                raise NotAdded(0, DatapathError(reason, errno.EEXIST))

    def change(self, output: MoveSa | RemoveSa | RemovePolicy) -> None:
        datapath = self._datapaths.of(self._tunnels[output.tunnel])
        self._totals.note(output, datapath)
        try:
            match output:
                case MoveSa():
                    datapath.move_sa(output.sa, output.entry)
                case RemoveSa():
                    datapath.remove_sa(output.sa)
                case RemovePolicy():
                    datapath.remove_policy(output.entry)
        except DatapathError as error:
            log.error("%s: the %s datapath: %s", output.tunnel, datapath.name, error)
            if isinstance(output, MoveSa):
                reason = f"{datapath.name}: {error}"
                self._endpoint.handle_move_failure(output, reason, self._loop.time())

    def tell_usage(self, output: AskUsage) -> None:
        asked: defaultdict[Datapath, list[SaId]] = defaultdict(list)
        for tunnel, sa in output.sas:
            asked[self._datapaths.of(self._tunnels[tunnel])].append(sa)
        for datapath, sas in asked.items():
            try:
                answers = datapath.seconds_idle(sas)
            except DatapathError as error:
                log.warning("the %s datapath has no counters: %s", datapath.name, error)
                continue
            for sa, seconds_idle in zip(sas, answers, strict=True):
                if seconds_idle is not None:
                    self._endpoint.handle_usage(sa, seconds_idle, self._loop.time())

    def ask_again(self, output: ChildSaEstablished) -> None:
        """A packet has its SA; another one may meet the same trap and need another."""
        trap = self._endpoint.trap_apart(output.spi_in)
        datapath = self._datapaths.of(self._tunnels[output.tunnel])
        if trap is None or not isinstance(datapath, KernelDatapath):
            return
        try:
            datapath.ask_again(trap)
        except DatapathError as error:
            log.info("%s: %s", output.tunnel, error)

    def hold_packets(self, tunnel: str) -> None:
        """The packet that asks for a tunnel is not to be lost by that."""
        datapath = self._datapaths.of(self._tunnels[tunnel])
        if self._holds or not isinstance(datapath, KernelDatapath):
            return
        self._holds = True
        try:
            hold_packets()
        except OSError as error:
            log.warning(
                "packets that wait for a tunnel are dropped, not held: %s=0 is refused: %s",
                "net.core.xfrm_larval_drop",
                error.strerror,
            )

    def compare(self, datapath: Datapath) -> tuple[Difference, ...]:
        """How its SAs and policies differ from those wanted. Raises `DatapathError`."""
        self._events.read(datapath)  # What has expired is not missing.
        carried = {n for n, p in self._tunnels.items() if self._datapaths.of(p) is datapath}
        dump, of_shunts = self._shunts.part(datapath.dump())
        return (*self._endpoint.compare(carried, dump), *of_shunts)
