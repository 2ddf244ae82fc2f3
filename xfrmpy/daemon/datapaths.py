"""Which datapath moves a tunnel's packets: the kernel if it really can, else user space.

Opened when the first tunnel needs it, and probed once. What an earlier run left in force stays so
until `clear`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from xfrmpy.crypto.self_test import failed_algorithms
from xfrmpy.datapath.interface import Capabilities, Datapath, DatapathError
from xfrmpy.datapath.inventory import Inventory
from xfrmpy.datapath.kernel.datapath import KernelDatapath
from xfrmpy.datapath.userspace.client import UserspaceDatapath
from xfrmpy.failures import Failure, OperatorError
from xfrmpy.ipsec.addresses import IKE_NATT_PORT
from xfrmpy.ipsec.proposals import Proposal, supported_part, without_algorithms
from xfrmpy.ipsec.sad import DontFragment
from xfrmpy.policy.model import ChildPolicy, DatapathChoice, TunnelPolicy

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A tunnel's policy as this host can keep it.

    `policy.datapath` is decided and proposals that cannot be kept are left out. `reason` says
    why the datapath of first choice was not taken, if it was not. With a `failure` the
    tunnel cannot be had at all.
    """

    policy: TunnelPolicy
    reason: str = ""
    failure: Failure | None = None


class Datapaths:
    """See the module."""

    def __init__(
        self,
        runtime_dir: Path,
        natt_port: int = IKE_NATT_PORT,
        workers: int = 1,
        *,
        are_in_place: bool = False,
    ) -> None:
        """For what the last two are to the userspace datapath, see `UserspaceDatapath.start`."""
        self._workers = workers
        self._are_in_place = are_in_place
        self._runtime_dir = runtime_dir
        self._natt_port = natt_port
        self._kernel: KernelDatapath | None = None
        self._userspace: UserspaceDatapath | None = None
        self._capabilities: dict[DatapathChoice, Capabilities | str] = {}
        self._broken = frozenset(failed_algorithms())
        if self._broken:
            log.error("not offered, because their self-test fails: %s", ", ".join(self._broken))

    def place(self, policy: TunnelPolicy) -> Placement:
        """Decide for a tunnel; opens the datapath that is chosen."""
        choices = {
            DatapathChoice.AUTO: (DatapathChoice.KERNEL, DatapathChoice.USERSPACE),
        }.get(policy.datapath, (policy.datapath,))
        reasons: list[str] = []
        for choice in choices:
            capabilities = self._probe(choice)
            if isinstance(capabilities, Capabilities):
                kept = self._restrict(policy, choice, capabilities)
                if kept is not None:
                    return Placement(policy=kept, reason="; ".join(reasons))
            reasons.append(_shortcoming(policy, choice, capabilities))
        failure = Failure(
            code="XF3001",
            summary=f"no datapath can carry {policy.name}",
            evidence=tuple((c.value, r) for c, r in zip(choices, reasons, strict=True)),
        )
        return Placement(policy=policy, failure=failure)

    def clear(self) -> None:
        """Take out of force what an earlier run left, so that this one begins with nothing.

        Raises `OperatorError` XF3002.
        """
        self.retire_unused()
        for datapath in self.opened():
            try:
                left_over = datapath.remove_ours()
            except DatapathError as error:
                summary = f"the {datapath.name} datapath keeps what an earlier run left: {error}"
                raise OperatorError("XF3002", summary) from error
            if left_over:
                log.info("removed %d objects that an earlier run left", left_over)

    def retire_unused(self) -> None:
        """Empty the datapaths that no tunnel has any more, though an earlier run's may have had."""
        if self._kernel is None:
            # Where it cannot be opened there is nothing of ours, either.
            with suppress(DatapathError), closing(KernelDatapath.open()) as kernel:
                kernel.remove_ours()
                kernel.interfaces.keep_only(())
        if self._userspace is None:
            with suppress(DatapathError):
                UserspaceDatapath.retire(self._runtime_dir)

    def open_one(self) -> None:
        """Have a datapath, though no tunnel may need one. Raises `OperatorError` XF3001."""
        choices = (DatapathChoice.KERNEL, DatapathChoice.USERSPACE)
        for choice in choices:
            if not self.opened():
                self._probe(choice)
        if not self.opened():
            evidence = tuple((c.value, str(self._probe(c))) for c in choices)
            raise OperatorError("XF3001", "no datapath can carry the shunts", evidence)

    def of(self, policy: TunnelPolicy) -> Datapath:
        """The open datapath of a placed policy."""
        found = self._kernel if policy.datapath is DatapathChoice.KERNEL else self._userspace
        assert found is not None
        return found

    def opened(self) -> tuple[Datapath, ...]:
        return tuple(d for d in (self._kernel, self._userspace) if d is not None)

    def drops(self) -> dict[str, int]:
        """The packets that the userspace datapath has refused, by reason."""
        if self._userspace is None:
            return {}
        try:
            return {f"esp-{reason}": n for reason, n in self._userspace.drops().items()}
        except DatapathError as error:
            log.warning("no drop counters: %s", error)
            return {}

    def read_userspace(self) -> Inventory | None:
        """What the worker has in force; None where no tunnel needs it. Raises `DatapathError`."""
        return None if self._userspace is None else self._userspace.inventory()

    def answer(self) -> bool:
        """Whether those that are processes still do what they are asked."""
        if self._userspace is None:
            return True
        try:
            self._userspace.confirm()
        except DatapathError as error:
            log.error("the userspace datapath is not well: %s", error)
            return False
        return True

    def leave(self) -> None:
        """Let everything go on without us."""
        for datapath in self.opened():
            datapath.close()

    def close(self) -> None:
        """Take everything of ours out of force, and end the workers."""
        for datapath in self.opened():
            try:
                datapath.remove_ours()
                datapath.interfaces.keep_only(())
            except DatapathError as error:
                log.error("cannot clean up the %s datapath: %s", datapath.name, error)
        if self._userspace is not None:
            self._userspace.stop()
        if self._kernel is not None:
            self._kernel.close()

    def _probe(self, choice: DatapathChoice) -> Capabilities | str:
        """What a datapath can do, or the sentence why there is none."""
        if choice not in self._capabilities:
            try:
                self._capabilities[choice] = self._open(choice).probe()
            except DatapathError as error:
                self._capabilities[choice] = str(error)
            self._leave_useless_kernel()
        return self._capabilities[choice]

    def _leave_useless_kernel(self) -> None:
        """A kernel without ESP is not asked for anything more."""
        found = self._capabilities.get(DatapathChoice.KERNEL)
        usable = isinstance(found, Capabilities) and "esp" not in found.missing
        if self._kernel is not None and not usable:
            self._kernel.close()
            self._kernel = None

    def _open(self, choice: DatapathChoice) -> Datapath:
        if choice is DatapathChoice.KERNEL:
            self._kernel = KernelDatapath.open()
            return self._kernel
        self._userspace = UserspaceDatapath.start(
            self._runtime_dir, self._natt_port, self._workers, are_in_place=self._are_in_place
        )
        return self._userspace

    def _restrict(
        self, policy: TunnelPolicy, choice: DatapathChoice, can: Capabilities
    ) -> TunnelPolicy | None:
        """The policy without what this host cannot do; None if nothing useful is left."""
        if policy.interface is not None and not can.interfaces:
            return None
        if _lacks_raw_esp(policy, choice, can):
            return None
        proposals = _kept(without_algorithms(p, self._broken) for p in policy.proposals)
        children = [self._restrict_child(child, choice, can) for child in policy.children]
        if not proposals or not all(child.proposals for child in children):
            return None
        if _has_marks(policy) and not can.marks:
            return None
        return replace(policy, datapath=choice, proposals=proposals, children=tuple(children))

    def _restrict_child(
        self, child: ChildPolicy, choice: DatapathChoice, can: Capabilities
    ) -> ChildPolicy:
        dont_fragment = child.dont_fragment or _USUAL[choice]
        if child.mode not in can.modes or dont_fragment not in can.dont_fragment:
            return replace(child, proposals=())
        if child.tfc and not can.padding:
            return replace(child, proposals=())
        if child.per_resource and not can.resources:
            return replace(child, proposals=())
        if child.compresses and not (can.compression and _pads_too(child, can)):
            return replace(child, proposals=())
        working = _kept(without_algorithms(p, self._broken) for p in child.proposals)
        kept = _kept(supported_part(p, can.suites, esn=can.esn) for p in working)
        return replace(child, proposals=kept, dont_fragment=dont_fragment)


_USUAL = {
    DatapathChoice.KERNEL: DontFragment.COPY,
    DatapathChoice.USERSPACE: DontFragment.CLEAR,
}
"""The kernel learns from ICMP what a path carries, the worker does not."""


def _kept(proposals: Iterable[Proposal | None]) -> tuple[Proposal, ...]:
    return tuple(p for p in proposals if p is not None)


def _lacks_raw_esp(policy: TunnelPolicy, choice: DatapathChoice, can: Capabilities) -> bool:
    """Whether ESP may have to go without UDP, and cannot."""
    return not can.raw_esp and not replace(policy, datapath=choice).forces_encapsulation


def _pads_too(child: ChildPolicy, can: Capabilities) -> bool:
    """Whether a child that compresses can be padded as well, if it is to be."""
    return can.pads_compressed or not (child.tfc and child.compresses)


def _has_marks(policy: TunnelPolicy) -> bool:
    return any(child.mark_out or child.mark_in or child.mark_set for child in policy.children)


def _shortcoming(
    policy: TunnelPolicy, choice: DatapathChoice, capabilities: Capabilities | str
) -> str:
    if isinstance(capabilities, str):
        return capabilities
    if "esp" in capabilities.missing:
        return capabilities.missing["esp"]
    for protocol in {child.protocol for child in policy.children} - capabilities.protocols:
        return capabilities.missing[protocol.name.lower()]
    if policy.interface is not None and not capabilities.interfaces:
        return capabilities.missing["interfaces"]
    if _lacks_raw_esp(policy, choice, capabilities):
        return f"`encapsulation: {policy.encapsulation}`: {capabilities.missing['raw esp']}"
    for mode in {child.mode for child in policy.children} - capabilities.modes:
        return capabilities.missing[f"{mode} mode"]
    if _has_marks(policy) and not capabilities.marks:
        return f"the {choice.value} datapath knows no marks"
    for how in {child.dont_fragment for child in policy.children} - {
        None,
        *capabilities.dont_fragment,
    }:
        return f"the {choice.value} datapath cannot {how} DF"
    if any(child.compresses for child in policy.children) and not capabilities.compression:
        return capabilities.missing["compression"]
    if not all(_pads_too(child, capabilities) for child in policy.children):
        return f"`tfc` with `ipcomp`: the {choice.value} datapath does not pad what it compresses"
    if any(child.tfc for child in policy.children) and not capabilities.padding:
        return "`tfc`: the kernel pads nothing while its module esp4_offload is loaded"
    if any(child.per_resource for child in policy.children) and not capabilities.resources:
        return f"`per_resource`: SAs of one CPU: {capabilities.missing['resources']}"
    return f"the {choice.value} datapath knows none of the algorithms that the policy names"
