"""When SAs are replaced: ahead of the end of their life, and never all at the same moment.

Read RFC 7296 section 2.8 first: each end enforces its own lifetimes, and "the timing of rekeying
requests SHOULD be jittered".
"""

from __future__ import annotations

from collections.abc import Callable

from xfrmpy.ipsec.proposals import ChildSuite
from xfrmpy.ipsec.sad import Lifetime
from xfrmpy.policy.model import ChildPolicy

SOONEST, LATEST = 0.8, 0.9
"""The part of a lifetime after which an SA is replaced. What is left must do for all the tries of
a peer that is slow, and the jitter for two ends with one policy not to begin together."""

SEQUENCE_NUMBERS = 1 << 32
"""Packets that an SA without extended sequence numbers can send: RFC 4303 section 3.3.3 demands a
new SA before its counter cycles."""

RETRY_SOONEST_SECONDS, RETRY_LATEST_SECONDS = 5.0, 15.0
"""How long to wait after a TEMPORARY_FAILURE (RFC 7296 section 2.25: "it MUST wait")."""

RECREATE_SECONDS = 60.0
"""How long a further Child SA that the peer refuses, or deletes, waits to be asked for again: an
operator may mend the policy at the other end meanwhile."""


def replacement_seconds(lifetime_seconds: float, random: Callable[[int], bytes]) -> float:
    """After how many seconds to replace what may live for `lifetime_seconds`."""
    return lifetime_seconds * _between(SOONEST, LATEST, random)


def retry_seconds(random: Callable[[int], bytes]) -> float:
    """How long to wait before something is asked again that the peer could not do just now."""
    return _between(RETRY_SOONEST_SECONDS, RETRY_LATEST_SECONDS, random)


def datapath_lifetime(
    policy: ChildPolicy, suite: ChildSuite, random: Callable[[int], bytes]
) -> Lifetime:
    """The limits that the datapath watches: what it counts, and the end of the time.

    The core itself replaces an SA whose time is nearly over, so there is no soft limit of seconds.
    """
    packets = policy.lifetime_packets
    if not suite.esn:
        packets = min(packets or SEQUENCE_NUMBERS, SEQUENCE_NUMBERS)
    seconds, octets = policy.lifetime_seconds, policy.lifetime_octets
    return Lifetime(
        hard_seconds=None if seconds is None else int(seconds),
        soft_bytes=_soft(octets, random),
        hard_bytes=octets,
        soft_packets=_soft(packets, random),
        hard_packets=packets,
    )


def _soft(limit: int | None, random: Callable[[int], bytes]) -> int | None:
    return None if limit is None else max(1, int(limit * _between(SOONEST, LATEST, random)))


def _between(low: float, high: float, random: Callable[[int], bytes]) -> float:
    return low + (high - low) * int.from_bytes(random(2), "big") / 0xFFFF
