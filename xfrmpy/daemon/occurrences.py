"""What the daemon itself does and meets, in words; the core's own words are in `narration`."""

from __future__ import annotations

from collections.abc import Sequence

from xfrmpy.daemon.datapaths import Placement
from xfrmpy.daemon.events import Occurrence
from xfrmpy.daemon.narration import summarize
from xfrmpy.datapath.interface import Acquire, OffloadRefused
from xfrmpy.failures import Failure
from xfrmpy.ike.restoration import Restored
from xfrmpy.ipsec.addresses import IpAddress, Path
from xfrmpy.ipsec.drift import Difference


def started(pid: int, tunnels: int) -> Occurrence:
    return Occurrence(
        event="daemon-started",
        text=f"ready, process {pid}, tunnels: {tunnels}",
        details={"pid": str(pid), "tunnels": str(tunnels)},
    )


def stopping(*, leaves_all: bool) -> Occurrence:
    text = "stopping, and leaving every SA to the next daemon" if leaves_all else "stopping"
    return Occurrence(event="daemon-stopping", text=text)


def datapath_revived(text: str) -> Occurrence:
    """Another process is in the place of one that has ended."""
    return Occurrence(event="datapath-revived", text=f"{text}; another goes on")


def taken_over(restored: Restored) -> Occurrence:
    """What was up when an earlier daemon was killed."""
    counts = {
        "ike_sas": restored.ike_sas,
        "child_sas": restored.child_sas,
        "lost": len(restored.lost),
        "given_up": restored.given_up,
        "refused": len(restored.unreadable),
    }
    return Occurrence(
        event="taken-over",
        text=f"{restored.ike_sas} IKE SAs and {restored.child_sas} Child SAs taken over",
        details={what: str(count) for what, count in counts.items()},
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


def demanded(tunnel: str, child: str, acquire: Acquire) -> Occurrence:
    """A packet has met a trap."""
    source, destination = str(acquire.source), str(acquire.destination)
    return Occurrence(
        event="tunnel-demanded",
        tunnel=tunnel,
        text=f"a packet from {source} to {destination} asks for {child}",
        details={"child": child, "source": source, "destination": destination},
    )


def refused_on_demand(tunnel: str, seconds: float, failure: Failure) -> Occurrence:
    """What a packet has asked for could not be had."""
    return Occurrence(
        event="tunnel-retrying",
        tunnel=tunnel,
        text=f"not before {seconds:.0f} s have passed, by the next packet: {summarize(failure)}",
        failure=failure,
        details={"seconds": f"{seconds:.1f}"},
    )


def unresolved(tunnel: str, failure: Failure) -> Occurrence:
    return Occurrence(
        event="peer-unresolved", tunnel=tunnel, text=summarize(failure), failure=failure
    )


def addresses_changed(
    tunnel: str, before: Sequence[IpAddress], after: Sequence[IpAddress]
) -> Occurrence:
    """What the names of a tunnel's peer stand for is not what it was."""
    old, new = (", ".join(map(str, addresses)) for addresses in (before, after))
    return Occurrence(
        event="peer-addresses-changed",
        tunnel=tunnel,
        text=f"the peer's addresses were {old} and are {new} now",
        details={"before": old, "after": new},
    )


def path_left(tunnel: str, path: Path, reason: str) -> Occurrence:
    """The tunnel is made anew on another path."""
    return Occurrence(
        event="path-left",
        tunnel=tunnel,
        text=f"{reason}: a new IKE SA from {path.local.address} to {path.remote.address}",
        details={"local": str(path.local), "remote": str(path.remote), "reason": reason},
    )


def drift_healed(differences: Sequence[Difference], done: str) -> Occurrence:
    """Some of one finding, which others have caused, were put right."""
    first = differences[0]
    more = f", and {len(differences) - 1} more like it" if len(differences) > 1 else ""
    return Occurrence(
        event="drift-healed",
        tunnel=first.tunnel,
        text=f"{first}{more}: {done}",
        details={**_found(first), "count": str(len(differences)), "done": done},
    )


def drift_left(difference: Difference, why: str) -> Occurrence:
    return Occurrence(
        event="drift-left",
        tunnel=difference.tunnel,
        text=f"{difference}, and stays so: {why}",
        details={**_found(difference), "why": why},
    )


def offload_refused(tunnel: str, child: str, event: OffloadRefused) -> Occurrence:
    return Occurrence(
        event="offload-refused",
        tunnel=tunnel,
        text=f"{event.sa} is not offloaded, the kernel works itself: {event.reason}",
        details={"child": child, "spi": f"0x{event.sa.spi:08x}", "why": event.reason},
    )


def _found(difference: Difference) -> dict[str, str]:
    return {"finding": difference.finding.value, "what": difference.what}
