"""The kernel's counters of packets that IPsec has dropped, /proc/net/xfrm_stat, and what they mean.

The names are those of the table in net/xfrm/xfrm_proc.c of Linux 6.18, the meanings are by where
the kernel counts them (net/xfrm/). A kernel has those that there were when it was made; what a
later one has beside them is shown, and not explained.
"""

from __future__ import annotations

from pathlib import Path

from xfrmpy.datapath.inventory import (
    NO_SA,
    NOT_AUTHENTIC,
    OUTSIDE_SELECTORS,
    REPLAYED,
    UNKNOWN_SPI,
    Explanation,
)

_FILE = Path("/proc/thread-self/net/xfrm_stat")


def read_statistics() -> dict[str, int]:
    """All counters of this thread's network namespace; none where the kernel was built without."""
    try:
        lines = _FILE.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return {}
    return {name: int(count) for name, count in map(str.split, lines)}


_MEMORY = "free memory of the host; the load"
_DEFECT = "`xfrmpy plan` for drift; `dmesg`; the kernel's release notes"
_OTHERS = "the policies of others in `xfrmpy show kernel`"
_DEFAULT = f"{_OTHERS}; `ip xfrm policy getdefault`"
_PASSES = "nothing, while it is a few when SAs and policies are replaced"
_REKEYING = "`xfrmpy log TUNNEL`: rekeying should have come earlier, and does not succeed"


def _row(meaning: str, look_at: str) -> Explanation:
    return Explanation(meaning=meaning, look_at=look_at)


COUNTERS: dict[str, Explanation] = {
    "XfrmInError": _row(
        "what came in was dropped for a reason without a counter of its own", _DEFECT
    ),
    "XfrmInBufferError": _row("there was no memory for what a packet that came in needs", _MEMORY),
    "XfrmInHdrError": _row(
        "a packet that came in is too short for its headers, or they make no sense",
        "whether something on the way cuts packets; who sends them (`tcpdump`)",
    ),
    "XfrmInNoStates": UNKNOWN_SPI,
    "XfrmInStateProtoError": NOT_AUTHENTIC,
    "XfrmInStateModeError": _row(
        "an authentic packet does not hold what the SA's mode wants: no IP packet in a tunnel",
        "the mode (`tunnel`, `transport`) at both ends",
    ),
    "XfrmInStateSeqError": REPLAYED,
    "XfrmInStateExpired": _row("a packet came for an SA at its hard limit", _REKEYING),
    "XfrmInStateMismatch": _row(
        "a packet came in UDP and the SA has no encapsulation, or the other way round",
        "`encapsulation` of the SA in `xfrmpy show kernel`; a NAT that came or went",
    ),
    "XfrmInStateInvalid": _row(
        "a packet came for an SA that is being removed, or is not complete yet", _PASSES
    ),
    "XfrmInTmplMismatch": _row(
        "a packet came in clear, or through another SA than the policy for it asks for",
        f"whether the peer sends this in clear; selectors at both ends; {_OTHERS}",
    ),
    "XfrmInNoPols": OUTSIDE_SELECTORS,
    "XfrmInPolBlock": _row(
        "a policy that discards met a packet that came in, or the default policy did", _DEFAULT
    ),
    "XfrmInPolError": _row("the policy for a packet that came in was not to be had", _DEFECT),
    "XfrmOutError": _row(
        "what was to go out was dropped for a reason without a counter of its own", _DEFECT
    ),
    "XfrmOutBundleGenError": _row(
        "the way through a policy's SAs could not be put together: often for want of a route",
        "`ip route get` with the peer's address; `xfrmpy plan` for drift",
    ),
    "XfrmOutBundleCheckError": _row("a way through SAs was not good any more", _PASSES),
    "XfrmOutNoStates": NO_SA,
    "XfrmOutStateProtoError": _row("ESP or AH could not protect a packet", _MEMORY),
    "XfrmOutStateModeError": _row(
        "a packet does not fit the mode of the SA, or has become too large by it",
        "the MTU of the way to the peer and of the inner route",
    ),
    "XfrmOutStateSeqError": _row(
        "an SA has used up its sequence numbers",
        "whether ESN is negotiated (`esn` in the suite); lifetimes by packets",
    ),
    "XfrmOutStateExpired": _row("a packet was to go out by an SA at its hard limit", _REKEYING),
    "XfrmOutPolBlock": _row(
        "a policy that discards met a packet that was to go out, or the default policy did",
        _DEFAULT,
    ),
    "XfrmOutPolDead": _row("a packet was to go out by a policy that was just removed", _PASSES),
    "XfrmOutPolError": _row(
        "the policy for a packet that was to go out was not to be had", _DEFECT
    ),
    "XfrmFwdHdrError": _row(
        "the headers of a packet to be forwarded make no sense", "who sends it (`tcpdump`)"
    ),
    "XfrmOutStateInvalid": _row("a packet was to go out by an SA that is being removed", _PASSES),
    "XfrmAcquireError": _row(
        "an SA was asked for and had not come when its time was over",
        "`xfrmpy log`: whether the tunnel could be brought up",
    ),
    "XfrmOutStateDirError": _row(
        "a packet was to go out by an SA that is for inbound packets only",
        f"{_OTHERS}, which may use a reqid of ours",
    ),
    "XfrmInStateDirError": _row(
        "a packet came for an SA that is for outbound packets only",
        "two hosts that chose the same SPI for both directions, or a packet sent back",
    ),
    "XfrmInIptfsError": _row(
        "the contents of an IP-TFS packet make no sense",
        "a tunnel with `mode: iptfs`: forged or broken packets, or a defect at the other end",
    ),
    "XfrmOutNoQueueSpace": _row(
        "the queue of an IP-TFS SA is full",
        "more traffic for a tunnel with `mode: iptfs` than it takes",
    ),
}
