"""What the core reports, as sentences: for the log, and for who waits for a tunnel."""

from __future__ import annotations

from xfrmpy.failures import Failure
from xfrmpy.ike.outputs import (
    ChildSaClosed,
    ChildSaEstablished,
    ExchangeRepeated,
    ExchangeStarted,
    IkeSaEstablished,
    NatDetected,
    Output,
    RequestRefused,
    RequestRetransmitted,
    TunnelClosed,
)


def narrate(report: Output) -> str:
    """A sentence without the tunnel's name; empty for outputs that are no news to an operator."""
    match report:
        case ExchangeStarted():
            return f"{report.exchange.name} to {report.path.remote}"
        case RequestRetransmitted():
            again = f"again, {report.count} of {report.of}"
            return f"no answer yet: {report.exchange.name} to {report.path.remote} {again}"
        case ExchangeRepeated():
            return f"{report.exchange.name} once more: {report.reason}"
        case NatDetected():
            return f"ESP goes in UDP: {_why_encapsulated(report)}"
        case IkeSaEstablished():
            return f"IKE SA with {report.remote_id} at {report.path.remote}, {report.suite}"
        case ChildSaEstablished():
            spis = f"in 0x{report.spi_in:08x}, out 0x{report.spi_out:08x}"
            return f"Child SA {report.child}: {report.suite}, SPI {spis}"
        case ChildSaClosed():
            return f"Child SA {report.child} closed (SPI in 0x{report.spi_in:08x})"
        case TunnelClosed():
            if report.failure is None:
                return "the IKE SA is deleted"
            return f"closed: {summarize(report.failure)}"
        case RequestRefused():
            return f"refused {report.path.remote}: {summarize(report.failure)}"
        case _:
            return ""


def summarize(failure: Failure) -> str:
    """A failure on one line, with its evidence."""
    evidence = "; ".join(f"{label}: {value}" for label, value in failure.evidence)
    return f"{failure.code} {failure.summary}" + (f" ({evidence})" if evidence else "")


def _why_encapsulated(report: NatDetected) -> str:
    if report.ours and report.theirs:
        return "both ends are behind a NAT"
    if report.ours:
        return "this host is behind a NAT"
    if report.forced:
        return "the policy or the datapath wants it"
    return "the peer is behind a NAT, or says so"
