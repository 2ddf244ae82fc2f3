"""What the core reports, as sentences: for the log, and for who waits for a tunnel."""

from __future__ import annotations

from xfrmpy.failures import Failure
from xfrmpy.ike.outputs import (
    ChildSaClosed,
    ChildSaEstablished,
    ChildSaRekeyed,
    DefectFound,
    ExchangeRepeated,
    ExchangeStarted,
    FragmentSizeReduced,
    IkeSaEstablished,
    IkeSaRekeyed,
    NatDetected,
    Output,
    PeerMoved,
    Redirected,
    RequestRefused,
    RequestRetransmitted,
    SaNotCreated,
    TrapsRefused,
    TunnelClosed,
)
from xfrmpy.registry import ExchangeType


def narrate(report: Output) -> str:
    """A sentence without the tunnel's name; empty for outputs that are no news to an operator."""
    match report:
        case (
            ExchangeStarted() | RequestRetransmitted() | FragmentSizeReduced() | ExchangeRepeated()
        ):
            return _narrate_exchange(report)
        case NatDetected() | PeerMoved():
            return _narrate_nat(report)
        case IkeSaEstablished():
            origin = f", sent on by {report.redirected_from}" if report.redirected_from else ""
            return f"IKE SA with {report.remote_id} at {report.path.remote}{origin}, {report.suite}"
        case ChildSaEstablished():
            spis = f"in 0x{report.spi_in:08x}, out 0x{report.spi_out:08x}"
            return f"Child SA {report.child}: {report.suite}, SPI {spis}"
        case ChildSaRekeyed() | IkeSaRekeyed() | SaNotCreated():
            return _narrate_replacement(report)
        case TrapsRefused():
            return f"no trap for {report.child}: {summarize(report.failure)}"
        case ChildSaClosed():
            return f"Child SA {report.child} closed (SPI in 0x{report.spi_in:08x})"
        case TunnelClosed() | Redirected() | RequestRefused():
            return _narrate_end(report)
        case DefectFound():
            return f"a datagram from {report.path.remote} met a defect of ours"
        case _:
            return ""


def is_routine(report: object) -> bool:
    """Whether it is what goes on all the time while all is well, and fills a log for nothing.

    What an INFORMATIONAL exchange changes, if it is no liveness check, is reported by itself.
    """
    return isinstance(report, ExchangeStarted) and report.exchange is ExchangeType.INFORMATIONAL


def _narrate_exchange(
    report: ExchangeStarted | RequestRetransmitted | FragmentSizeReduced | ExchangeRepeated,
) -> str:
    match report:
        case ExchangeStarted():
            return f"{report.exchange.name} to {report.path.remote}"
        case RequestRetransmitted():
            again = f"again, {report.count} of {report.of}"
            return f"no answer yet: {report.exchange.name} to {report.path.remote} {again}"
        case FragmentSizeReduced():
            how = f"in datagrams of at most {report.octets} octets"
            return f"no answer yet: {report.exchange.name} with {report.path.remote} again, {how}"
        case ExchangeRepeated():
            return f"{report.exchange.name} once more: {report.reason}"


def _narrate_end(report: TunnelClosed | Redirected | RequestRefused) -> str:
    match report:
        case TunnelClosed(failure=None):
            return "the IKE SA is deleted"
        case TunnelClosed(failure=Failure() as failure):
            return f"closed: {summarize(failure)}"
        case Redirected():
            return f"{report.original} sends us to {report.gateway}"
        case RequestRefused():
            return f"refused {report.path.remote}: {summarize(report.failure)}"
    return ""


def _narrate_replacement(report: ChildSaRekeyed | IkeSaRekeyed | SaNotCreated) -> str:
    match report:
        case ChildSaRekeyed():
            spis = f"in 0x{report.spi_in:08x}, out 0x{report.spi_out:08x}"
            return f"Child SA {report.child} rekeyed: {report.suite}, SPI {spis}"
        case IkeSaRekeyed():
            how = "made anew" if report.reauthenticated else "rekeyed"
            return f"IKE SA {how} with {report.path.remote}, {report.suite}"
        case SaNotCreated():
            what = f"Child SA {report.child}" if report.child else "new IKE SA"
            return f"no {what}: {summarize(report.failure)}"


def summarize(failure: Failure) -> str:
    """A failure on one line, with its evidence."""
    evidence = "; ".join(f"{label}: {value}" for label, value in failure.evidence)
    return f"{failure.code} {failure.summary}" + (f" ({evidence})" if evidence else "")


def _narrate_nat(report: NatDetected | PeerMoved) -> str:
    if isinstance(report, PeerMoved):
        return f"the peer is now at {report.new}, it was at {report.old}"
    return f"ESP goes in UDP: {_why_encapsulated(report)}"


def _why_encapsulated(report: NatDetected) -> str:
    if report.ours and report.theirs:
        return "both ends are behind a NAT"
    if report.ours:
        return "this host is behind a NAT"
    if report.forced:
        return "the policy or the datapath wants it"
    return "the peer is behind a NAT, or says so"
