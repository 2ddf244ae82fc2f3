"""What the daemon itself does and meets, in words; the core's own words are in `narration`."""

from __future__ import annotations

from xfrmpy.daemon.datapaths import Placement
from xfrmpy.daemon.events import Occurrence
from xfrmpy.daemon.narration import summarize
from xfrmpy.failures import Failure


def started(pid: int, tunnels: int) -> Occurrence:
    return Occurrence(
        event="daemon-started",
        text=f"ready, process {pid}, tunnels: {tunnels}",
        details={"pid": str(pid), "tunnels": str(tunnels)},
    )


def placed(placement: Placement) -> Occurrence:
    """Where a tunnel's packets go, or that they cannot go anywhere."""
    name, failure = placement.policy.name, placement.failure
    if failure is not None:
        text = summarize(failure)
        return Occurrence(event="tunnel-unusable", tunnel=name, text=text, failure=failure)
    datapath = placement.policy.datapath.value
    because = f", because {placement.reason}" if placement.reason else ""
    return Occurrence(
        event="tunnel-placed",
        tunnel=name,
        text=f"{datapath} datapath{because}",
        details={"datapath": datapath, "reason": placement.reason},
    )


def retrying(tunnel: str, seconds: float, failure: Failure | None) -> Occurrence:
    """A tunnel that is wanted is not up, and will be tried again."""
    again = f"again in {seconds:.0f} s"
    return Occurrence(
        event="tunnel-retrying",
        tunnel=tunnel,
        text=again if failure is None else f"{again}: {summarize(failure)}",
        failure=failure,
        details={"seconds": f"{seconds:.1f}"},
    )


def unresolved(tunnel: str, failure: Failure) -> Occurrence:
    return Occurrence(
        event="peer-unresolved", tunnel=tunnel, text=summarize(failure), failure=failure
    )
