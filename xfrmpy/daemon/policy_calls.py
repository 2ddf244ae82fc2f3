"""What callers ask about the policy as a whole: plan, apply, confirm, roll back.

One change at a time. What is applied to be confirmed is taken back by itself when nobody does: the
caller may have cut himself off.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from xfrmpy.control.calls import ApplyCall, PlanCall, PolicyText
from xfrmpy.control.plans import (
    SHUNT,
    ChangeReply,
    DifferenceReply,
    DriftReply,
    KeepReply,
    PlanReply,
)
from xfrmpy.control.protocol import Progress
from xfrmpy.control.values import decode
from xfrmpy.daemon.applying import Applier, Plan, PlannedChange
from xfrmpy.daemon.narration import summarize
from xfrmpy.daemon.reconciliation import REMEDIES
from xfrmpy.daemon.renewal import renewed
from xfrmpy.daemon.replies import reply_of
from xfrmpy.failures import OperatorError
from xfrmpy.ipsec.addresses import IpAddress
from xfrmpy.ipsec.drift import Difference
from xfrmpy.policy.changes import carries
from xfrmpy.policy.load import LoadedPolicy, Overlay, load_policy, operator_layer
from xfrmpy.policy.model import Shunt, TunnelPolicy
from xfrmpy.policy.shunts import ShuntChange, lets_through

log = logging.getLogger(__name__)

UNCONFIRMED_SECONDS = 30.0
"""How long each change may take when what was not confirmed is taken back."""

Session = tuple[IpAddress, IpAddress]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Applied:
    """What was in force before the last change, and what belongs to it."""

    before: tuple[TunnelPolicy, ...]
    shunts: tuple[Shunt, ...]
    files: list[PolicyText] | None
    prune: bool
    pending: asyncio.Task[None] | None = None


class PolicyCalls:
    """See the module. `loaded` is the policy as its files were last read."""

    def __init__(self, loaded: LoadedPolicy, layers: Sequence[Path], applier: Applier) -> None:
        self.loaded = loaded
        self._layers = layers
        self._directory = str(operator_layer(layers))
        self._applier = applier
        self._lock = asyncio.Lock()
        self._applied: _Applied | None = None

    def stop(self) -> None:
        if self._applied is not None and self._applied.pending is not None:
            self._applied.pending.cancel()

    async def plan(self, parameters: dict[str, Any]) -> AsyncIterator[PlanReply]:
        call = decode(PlanCall, parameters)
        plan, loaded = await self._plan(call)
        yield self._reply(plan, loaded, _session(call.session))

    async def apply(self, parameters: dict[str, Any]) -> AsyncIterator[Progress | PlanReply]:
        call = decode(ApplyCall, parameters)
        self._require_leisure()
        async with self._lock:
            plan, loaded = await self._plan(call)
            reply = self._reply(plan, loaded, _session(call.session))
            cut = [change.tunnel for change in reply.changes if change.cuts]
            if cut and not (call.accept_cut or call.confirm_seconds):
                raise OperatorError("XF4022", f"this session would be cut by: {', '.join(cut)}")
            before, shunts = self._applier.policies(), self._applier.shunts()
            work = self._start(plan, call.timeout_seconds, allow_pending=call.allow_pending)
            async for progress in work:
                yield progress
            self.loaded = loaded
            has_changes = bool(plan.changes or plan.shunt_changes)
            self._applied = _Applied(
                before=before,
                shunts=shunts,
                files=call.files,
                prune=call.prune,
                pending=self._expect_confirmation(call.confirm_seconds) if has_changes else None,
            )
        yield reply

    async def confirm(self, _parameters: dict[str, Any]) -> AsyncIterator[KeepReply]:
        applied = self._applied
        if applied is None or applied.pending is None:
            raise OperatorError("XF4023", "nothing that was applied waits to be confirmed")
        applied.pending.cancel()
        self._applied = replace(applied, files=None, prune=False, pending=None)
        log.info("the policy was confirmed")
        yield KeepReply(files=applied.files, prune=applied.prune, directory=self._directory)

    async def rollback(self, parameters: dict[str, Any]) -> AsyncIterator[Progress | PlanReply]:
        seconds = float(parameters["timeout_seconds"])
        if self._lock.locked():
            raise OperatorError("XF4021", "a policy is being applied")
        async with self._lock:
            applied = self._applied
            if applied is None:
                raise OperatorError("XF4023", "no policy was applied since the daemon started")
            if applied.pending is not None:
                applied.pending.cancel()
            self._applied = None
            plan = self._applier.plan(applied.before, applied.shunts)
            reply = self._reply(plan, self.loaded, None)
            async for progress in self._start(plan, seconds):
                yield progress
        yield reply

    async def renew(self) -> bool:
        """Take what has changed of certificates, keys and lists of revocations, and nothing else.

        False if another change is being made, or waits to be confirmed.
        """
        pending = self._applied is not None and self._applied.pending is not None
        if self._lock.locked() or pending:
            return False
        async with self._lock:
            loaded = await asyncio.to_thread(load_policy, self._layers)
            for error in loaded.errors:
                log.warning("files have changed, and what is wrong is not taken: %s", error)
            wanted = renewed(self._applier.policies(), loaded.tunnels)
            try:
                plan = self._applier.plan(wanted, self._applier.shunts())
                if plan.changes:
                    await self._applier.apply(
                        plan, UNCONFIRMED_SECONDS, _tell_the_log, allow_pending=True
                    )
            except OperatorError as error:
                log.error("changed certificates are not taken: %s", summarize(error.failure))
        return True

    async def _plan(self, call: PlanCall | ApplyCall) -> tuple[Plan, LoadedPolicy]:
        overlay = None
        if call.files is not None:
            files = {f.name: f.text.encode(errors="surrogateescape") for f in call.files}
            overlay = Overlay(files=files, alone=call.prune)
        loaded = await asyncio.to_thread(load_policy, self._layers, overlay)
        if loaded.errors:
            first = loaded.errors[0]
            count = len(loaded.errors)
            raise OperatorError(
                first.code,
                f"the policy has {count} error{'s' * (count > 1)}, and was not looked at further",
                tuple(("error", str(error)) for error in loaded.errors),
            )
        return self._applier.plan(loaded.tunnels, loaded.shunts), loaded

    async def _start(
        self, plan: Plan, seconds: float, *, allow_pending: bool = False
    ) -> AsyncIterator[Progress]:
        """Do it, and tell of each step."""
        loop = asyncio.get_running_loop()
        begun_at = loop.time()
        steps: asyncio.Queue[Progress | None] = asyncio.Queue()

        def tell(tunnel: str, text: str) -> None:
            log.info("%s: %s", tunnel, text)
            passed = loop.time() - begun_at
            steps.put_nowait(Progress(tunnel=tunnel, seconds=passed, text=text))

        # A caller that goes away must not leave it half done.
        work = loop.create_task(
            self._applier.apply(plan, seconds, tell, allow_pending=allow_pending)
        )
        work.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (step := await steps.get()) is not None:
                yield step
        finally:
            if not work.done():
                await asyncio.shield(work)
        await work

    def _reply(self, plan: Plan, loaded: LoadedPolicy, session: Session | None) -> PlanReply:
        return PlanReply(
            changes=[
                *(_shunt_reply(c, session, loaded) for c in plan.shunt_changes),
                *(_change_reply(planned, session) for planned in plan.changes),
            ],
            drift=[_drift_reply(difference) for difference in plan.drift],
            warnings=[str(warning) for warning in loaded.warnings],
            directory=self._directory,
            failure=None if plan.failure is None else reply_of(plan.failure),
        )

    def _require_leisure(self) -> None:
        pending = self._applied is not None and self._applied.pending is not None
        if self._lock.locked() or pending:
            why = "what was applied waits to be confirmed" if pending else "a policy is applied"
            raise OperatorError("XF4021", f"{why} at this moment")

    def _expect_confirmation(self, seconds: float) -> asyncio.Task[None] | None:
        if not seconds:
            return None
        return asyncio.get_running_loop().create_task(self._take_back_after(seconds))

    async def _take_back_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        applied, self._applied = self._applied, None
        assert applied is not None
        log.warning("nobody has confirmed the policy within %g seconds: taking it back", seconds)
        async with self._lock:
            try:
                plan = self._applier.plan(applied.before, applied.shunts)
                await self._applier.apply(plan, UNCONFIRMED_SECONDS, _tell_the_log)
            except OperatorError as error:
                log.error("it could not be taken back: %s", summarize(error.failure))


def _tell_the_log(tunnel: str, text: str) -> None:
    log.info("%s: %s", tunnel, text)


def _session(addresses: list[str] | None) -> Session | None:
    try:
        ours, theirs = (ip_address(a.partition("%")[0]) for a in addresses or ())
    except ValueError:
        return None
    return ours, theirs


def _change_reply(planned: PlannedChange, session: Session | None) -> ChangeReply:
    change = planned.change
    return ChangeReply(
        tunnel=change.tunnel,
        action=change.action.value,
        impact=str(planned.impact),
        live=planned.is_live,
        cuts=session is not None and planned.cuts(*session),
        differences=[
            DifferenceReply(
                key=d.key, child=d.child, before=d.before, after=d.after, impact=str(d.impact)
            )
            for d in change.differences
        ],
    )


def _shunt_reply(change: ShuntChange, session: Session | None, loaded: LoadedPolicy) -> ChangeReply:
    action = "update" if change.before and change.after else "create" if change.after else "delete"
    return ChangeReply(
        tunnel=f"{SHUNT}{change.name}",
        action=action,
        impact="hot",
        live=True,
        cuts=session is not None and _cuts(change, session, loaded),
        differences=[
            DifferenceReply(key=key, child="", before=before, after=after, impact="hot")
            for key, before, after in sorted(change.differences())
        ],
    )


def _cuts(change: ShuntChange, session: Session, loaded: LoadedPolicy) -> bool:
    """What is somebody's, a default says nothing about."""
    if change.after is not None and change.after.default:
        owned = (
            *(carries(tunnel, *session) for tunnel in loaded.tunnels),
            *(lets_through(shunt, *session) for shunt in loaded.shunts),
        )
        if any(owned):
            return False
    return change.cuts(*session)


def _drift_reply(difference: Difference) -> DriftReply:
    return DriftReply(
        finding=difference.finding.value,
        what=str(difference),
        tunnel=difference.tunnel,
        child=difference.child,
        remedy=REMEDIES.get(difference.finding, ""),
    )
