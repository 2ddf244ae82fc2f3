"""What those are answered with who look on: events, descriptions, metrics."""

from __future__ import annotations

from dataclasses import dataclass

from xfrmpy.control.protocol import FailureReply, TunnelStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened; docs/events.md has the names of events, and their meaning.

    `number` goes up by one from event to event, as long as the daemon lives. `time` is RFC 3339 in
    UTC, `monotonic` seconds of a clock that nobody sets. `code` is that of the `failure`, empty if
    nothing failed. What belongs to no tunnel has an empty one.
    """

    api: str = "xfrmpy/v1"
    kind: str = "Event"
    number: int
    time: str
    monotonic: float
    tunnel: str
    child: str
    event: str
    severity: str
    text: str
    code: str
    failure: FailureReply | None
    details: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsReply:
    """Events, the oldest first, after `missed` others that the caller was too slow for."""

    events: list[Event]
    missed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildPolicyStatus:
    """What a Child SA is to carry, and how; without a lifetime it has no end."""

    child: str
    mode: str
    local: list[str]
    remote: list[str]
    proposals: list[str]
    lifetime_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyStatus:
    """The policy in force: `origin` is its file and line, `key_from` where its secret is from.

    What the datapath cannot do is left out of the proposals.
    """

    origin: str
    start: str
    key_from: str
    ppks: list[str]
    ppk_required: bool
    proposals: list[str]
    lifetime_seconds: float | None
    reauth_seconds: float | None
    dpd_seconds: float
    children: list[ChildPolicyStatus]


@dataclass(frozen=True, slots=True, kw_only=True)
class IkeSaDetails:
    """One of the IKE SAs of a tunnel: while one replaces another there are two.

    What will be done by time is in so many seconds; null if it will not.
    """

    state: str
    role: str
    suite: str
    spi_i: str
    spi_r: str
    local_address: str
    remote_address: str
    seconds_established: float
    rekey_in_seconds: float | None
    reauth_in_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSaDetails:
    """When a Child SA in force is replaced, and when it ends at the latest."""

    child: str
    spi_in: str
    rekey_in_seconds: float | None
    expires_in_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeReply:
    """Everything about one tunnel; `wanted` says that it comes back by itself.

    `last_failure` is the newest of the events that are kept and failed, if there is one.
    """

    tunnel: TunnelStatus
    wanted: bool
    policy: PolicyStatus
    ike_sas: list[IkeSaDetails]
    child_sas: list[ChildSaDetails]
    last_failure: Event | None
    events: list[Event]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsReply:
    """The metrics in Prometheus' text format."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitReply:
    """The tunnel, in the state that was waited for."""

    tunnel: TunnelStatus
