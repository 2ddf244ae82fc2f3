"""Bringing the tunnels from the policy in force to another, and back again if that fails.

A plan is made first and shows all that would be done; whatever it cannot promise is refused before
anything is touched. Tunnels that are equal in both policies are not looked at again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from xfrmpy.daemon.blocking import Blocking
from xfrmpy.daemon.core import Core
from xfrmpy.daemon.datapaths import Datapaths, Placement
from xfrmpy.daemon.interfaces import remove_interface, replace_interface, set_interface
from xfrmpy.daemon.keeper import Keeper, error_of
from xfrmpy.daemon.narration import summarize
from xfrmpy.daemon.on_demand import OnDemand
from xfrmpy.daemon.reconciliation import REMEDIES, Reconciler
from xfrmpy.daemon.shunts import Shunts
from xfrmpy.daemon.tunnel import Tunnel
from xfrmpy.datapath.interface import DatapathError
from xfrmpy.failures import Failure, OperatorError
from xfrmpy.ike.outputs import Output, SaNotCreated, TunnelClosed
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.drift import Difference, Finding
from xfrmpy.pki.verdicts import Problem
from xfrmpy.policy.changes import (
    Action,
    Change,
    Impact,
    carries,
    compare_policies,
    keep_reqids,
)
from xfrmpy.policy.model import Shunt, StartMode, TunnelPolicy
from xfrmpy.policy.shunts import ShuntChange, compare_shunts

log = logging.getLogger(__name__)

GONE_SECONDS = 5.0
"""How long a tunnel that is taken down waits for the peer to say that it knows."""

LOOK_SECONDS = 0.2
"""How often a tunnel that changes is looked at when it reports nothing."""

Tell = Callable[[str, str], None]
"""Takes a tunnel and a sentence of what is being done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChange:
    """A change, how the new policy can be kept here, and whether something of it is up now."""

    change: Change
    placement: Placement | None
    is_live: bool

    @property
    def impact(self) -> Impact:
        """What is not up cannot be hurt."""
        return self.change.impact if self.is_live else Impact.HOT

    def cuts(self, local: IpAddress, remote: IpAddress) -> bool:
        """Whether packets between two addresses would stop, for a while or for good.

        Those of a tunnel that goes, if only to come again; and those that went in clear until now
        and are to be a tunnel's, which must come up first.
        """
        before = self.change.before is not None and carries(self.change.before, local, remote)
        after = self.change.after is not None and carries(self.change.after, local, remote)
        if before and self.is_live:
            return not after or self.change.takes_down
        return after and not before


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would be done, in this order; `drift` is what others have changed of what is in force,
    and is put right after it. `shunts` are those that there would be, and `refusal` is why the
    datapaths do not take them."""

    changes: tuple[PlannedChange, ...]
    drift: tuple[Difference, ...] = ()
    shunts: tuple[Shunt, ...] = ()
    shunt_changes: tuple[ShuntChange, ...] = ()
    refusal: Failure | None = None

    @property
    def failure(self) -> Failure | None:
        """Why it cannot be done here, if it cannot."""
        placements = (planned.placement for planned in self.changes)
        failures = (p.failure for p in placements if p is not None and p.failure)
        return next(failures, self.refusal)


class Applier:
    """See the module. `tunnels` are the daemon's, by name, and change here only."""

    def __init__(
        self,
        tunnels: dict[str, Tunnel],
        keeper: Keeper,
        on_demand: OnDemand,
        core: Core,
        datapaths: Datapaths,
        reconciler: Reconciler,
        blocking: Blocking,
        shunts: Shunts,
    ) -> None:
        self._tunnels = tunnels
        self._keeper = keeper
        self._on_demand = on_demand
        self._core = core
        self._datapaths = datapaths
        self._reconciler = reconciler
        self._blocking = blocking
        self._shunts = shunts

    def policies(self) -> tuple[TunnelPolicy, ...]:
        """Those in force, as this host can keep them."""
        return tuple(tunnel.policy for tunnel in self._tunnels.values())

    def shunts(self) -> tuple[Shunt, ...]:
        """Those in force."""
        return self._shunts.wanted

    def plan(self, wanted: Iterable[TunnelPolicy], shunts: Iterable[Shunt]) -> Plan:
        """What it takes to get from the tunnels and shunts as they are to these."""
        in_force = self.policies()
        placements = {p.name: self._datapaths.place(p) for p in keep_reqids(wanted, in_force)}
        changes = compare_policies(in_force, (p.policy for p in placements.values()))
        return Plan(
            changes=tuple(
                PlannedChange(
                    change=change,
                    placement=placements.get(change.tunnel),
                    is_live=self._core.has_ike_sas(change.tunnel),
                )
                for change in changes
            ),
            drift=self._find_drift(),
            shunts=(after := tuple(shunts)),
            shunt_changes=tuple(compare_shunts(self._shunts.wanted, after)),
            refusal=self._shunts.refusal(after),
        )

    def _find_drift(self) -> tuple[Difference, ...]:
        with _compared():
            return self._reconciler.find()

    async def apply(
        self, plan: Plan, seconds: float, tell: Tell, *, allow_pending: bool = False
    ) -> None:
        """Do it, each change within `seconds`; if one fails, take back those done before.

        Raises `OperatorError` with what failed, and what became of the rest. With `allow_pending` a
        tunnel that is still up may be behind: the peer is asked again and again.
        """
        if plan.failure is not None:
            raise error_of(plan.failure)
        wanted = (planned.change.after for planned in plan.changes)
        before = self._shunts.wanted
        both = (*self.policies(), *(p for p in wanted if p is not None))
        self._blocking.follow(both, before)
        try:
            self._change_shunts(plan.shunts, tell)
            await self._change(plan, seconds, tell, allow_pending=allow_pending)
        except OperatorError:
            self._change_shunts(before, tell)
            raise
        finally:
            self._blocking.follow(self.policies(), self._shunts.wanted)

    def _change_shunts(self, wanted: tuple[Shunt, ...], tell: Tell) -> None:
        if wanted != self._shunts.wanted:
            tell("shunts", "changed")
            self._shunts.follow(wanted)
            self._reconciler.watch()

    async def _change(self, plan: Plan, seconds: float, tell: Tell, *, allow_pending: bool) -> None:
        undo: list[PlannedChange] = []
        for planned in plan.changes:
            undo.append(self._reverse(planned))
            try:
                await self._do(planned, seconds, tell)
            except OperatorError as error:
                if allow_pending and self._is_up(planned.change.tunnel):
                    tell(planned.change.tunnel, f"pending: {summarize(error.failure)}")
                else:
                    await self._take_back(undo, seconds, tell, error)
        try:
            await self._verify(seconds, tell)
        except OperatorError as error:
            await self._take_back(undo, seconds, tell, error)

    async def _verify(self, seconds: float, tell: Tell) -> None:
        """What was promised is in force, or is put in force now. Raises `OperatorError`."""
        with _compared():
            found = self._reconciler.heal()
        for name in {d.tunnel for d in found if d.finding is Finding.SA_MISSING}:
            tunnel = self._tunnels[name]
            with tunnel.listen() as reports:
                await self._until_settled(tunnel, reports, seconds)
        still = self._find_drift() if found else ()
        left = [difference for difference in still if difference.finding in REMEDIES]
        for difference in found:
            if difference.finding in REMEDIES and difference not in left:
                tell(difference.tunnel or "host", f"{difference}: {REMEDIES[difference.finding]}")
        if left:
            evidence = tuple(("not as promised", str(difference)) for difference in left)
            raise OperatorError("XF3005", "what is in force is not what it should be", evidence)

    def _is_up(self, name: str) -> bool:
        return name in self._tunnels and self._keeper.state(self._tunnels[name]) == "up"

    def _reverse(self, planned: PlannedChange) -> PlannedChange:
        change = planned.change
        tunnel = self._tunnels.get(change.tunnel)
        return replace(
            planned,
            change=compare_policies(
                [] if change.after is None else [change.after],
                [] if change.before is None else [change.before],
            )[0],
            placement=None if tunnel is None else tunnel.placement,
        )

    async def _take_back(
        self, undo: list[PlannedChange], seconds: float, tell: Tell, cause: OperatorError
    ) -> None:
        told = [*cause.failure.evidence]
        for planned in reversed(undo):
            name = planned.change.tunnel
            tell(name, "taking the change back")
            try:
                await self._do(planned, seconds, tell)
                told.append(("taken back", name))
            except OperatorError as error:
                told.append(("NOT taken back", f"{name}: {summarize(error.failure)}"))
        raise OperatorError(cause.failure.code, cause.failure.summary, tuple(told)) from cause

    async def _do(self, planned: PlannedChange, seconds: float, tell: Tell) -> None:
        change = planned.change
        name = change.tunnel
        tell(name, f"{change.action}, {planned.impact}")
        if change.action is Action.DELETE:
            await self._delete(name)
        elif change.action is Action.CREATE:
            assert planned.placement is not None
            await self._create(planned.placement)
        else:
            assert planned.placement is not None
            tunnel = self._tunnels[name]
            if change.takes_down or _is_unusable(tunnel, planned.placement):
                await self._replace(tunnel, planned.placement, seconds)
            else:
                await self._follow(tunnel, planned.placement, seconds)

    async def _create(self, placement: Placement) -> Tunnel:
        tunnel = Tunnel(placement)
        self._tunnels[placement.policy.name] = tunnel
        if placement.failure is None:
            self._shunts.enforce()
            self._core.add_tunnel(placement.policy)
            set_interface(placement.policy, self._datapaths.of(placement.policy))
            self._on_demand.lay_traps(tunnel)
            self._reconciler.watch()
            self._keeper.spawn(self._keeper.resolve(tunnel))
            if placement.policy.start is StartMode.AUTO:
                self._keeper.want(tunnel)
        return tunnel

    async def _delete(self, name: str) -> None:
        tunnel = self._tunnels[name]
        self._keeper.let_go(tunnel)
        if tunnel.placement.failure is None:
            self._core.terminate(name)
            try:
                async with asyncio.timeout(GONE_SECONDS):
                    await self._keeper.until_gone(tunnel)
            except TimeoutError:
                log.info("%s: the peer did not acknowledge that it goes", name)
            self._core.remove_tunnel(name)
        del self._tunnels[name]
        if tunnel.placement.failure is None:
            remove_interface(tunnel.policy, self._datapaths.of(tunnel.policy))

    async def _replace(self, old: Tunnel, placement: Placement, seconds: float) -> None:
        """Take it down, and up again if it was up."""
        was_up = self._keeper.state(old) == "up"
        await self._delete(old.policy.name)
        tunnel = await self._create(placement)
        if was_up and placement.failure is None and placement.policy.peers:
            try:
                async with asyncio.timeout(seconds):
                    await asyncio.shield(self._keeper.attempt(tunnel))
            except TimeoutError as error:
                raise _not_in_time(tunnel, seconds) from error

    async def _follow(self, tunnel: Tunnel, placement: Placement, seconds: float) -> None:
        """What is up of it goes over to the new policy."""
        policy = placement.policy
        was_auto = tunnel.policy.start is StartMode.AUTO
        was_up = self._keeper.state(tunnel) == "up"
        replace_interface(tunnel.policy, policy, self._datapaths.of(policy))
        tunnel.placement = placement
        with tunnel.listen() as reports:
            self._core.reconfigure(policy)
            self._on_demand.lay_traps(tunnel)
            self._keeper.spawn(self._keeper.resolve(tunnel))
            if policy.start is StartMode.AUTO:
                self._keeper.want(tunnel)
            elif was_auto:
                tunnel.wanted = False
            if was_up:
                await self._until_settled(tunnel, reports, seconds)

    async def _until_settled(
        self, tunnel: Tunnel, reports: asyncio.Queue[Output], seconds: float
    ) -> None:
        try:
            async with asyncio.timeout(seconds):
                # A tunnel may be settled again because the change failed: that is said before.
                while not reports.empty() or self._core.is_unsettled(tunnel.policy.name):
                    await self._hear(reports)
        except TimeoutError as error:
            raise _not_in_time(tunnel, seconds) from error

    @staticmethod
    async def _hear(reports: asyncio.Queue[Output]) -> None:
        """Wait for the next report; raises `OperatorError` if it is that the change failed."""
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                report = await reports.get()
        except TimeoutError:
            return
        failed = report.failure if isinstance(report, SaNotCreated | TunnelClosed) else None
        # That whoever is revoked is up no more is what a new list is for.
        if failed is not None and failed.code != Problem.REVOKED.value:
            raise error_of(failed)


@contextmanager
def _compared() -> Iterator[None]:
    try:
        yield
    except DatapathError as error:
        summary = f"what is in force cannot be compared with the policy: {error}"
        raise OperatorError("XF3002", summary) from error


def _is_unusable(tunnel: Tunnel, placement: Placement) -> bool:
    """Whether the core does not know the tunnel, before or afterwards."""
    return tunnel.placement.failure is not None or placement.failure is not None


def _not_in_time(tunnel: Tunnel, seconds: float) -> OperatorError:
    name = tunnel.policy.name
    return OperatorError("XF4007", f"{name} did not follow the new policy in {seconds:g} seconds")
