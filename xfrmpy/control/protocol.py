"""The messages of the control socket, in the Varlink wire format (https://varlink.org).

A call is `{"method": ..., "parameters": {...}, "more": bool, "oneway": bool}`, a reply
`{"parameters": {...}, "continues": bool}`, an error `{"error": ..., "parameters": {...}}`, each
ended by a NUL octet. The dataclasses here are what is said; `interface` has the methods and draws
the interface description from both. Standard library only, and nothing that can carry a secret.

A method that takes its time replies with `Progress` while the caller asked for `more`, and then
with its result. Errors are those of `org.varlink.service`, and `org.xfrmpy.Failed` with a
`FailureReply`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from xfrmpy.failures import CATALOGUE

STATUS = "org.xfrmpy.Status"
UP = "org.xfrmpy.Up"
DESCRIBE = "org.xfrmpy.Describe"
METRICS = "org.xfrmpy.Metrics"
MONITOR = "org.xfrmpy.Monitor"
WAIT = "org.xfrmpy.Wait"
DOWN = "org.xfrmpy.Down"
REKEY = "org.xfrmpy.Rekey"
PLAN = "org.xfrmpy.Plan"
APPLY = "org.xfrmpy.Apply"
CONFIRM = "org.xfrmpy.Confirm"
ROLLBACK = "org.xfrmpy.Rollback"
FAILED = "org.xfrmpy.Failed"

GET_INFO = "org.varlink.service.GetInfo"
GET_INTERFACE_DESCRIPTION = "org.varlink.service.GetInterfaceDescription"
INTERFACE_NOT_FOUND = "org.varlink.service.InterfaceNotFound"
METHOD_NOT_FOUND = "org.varlink.service.MethodNotFound"
METHOD_NOT_IMPLEMENTED = "org.varlink.service.MethodNotImplemented"
INVALID_PARAMETER = "org.varlink.service.InvalidParameter"
PERMISSION_DENIED = "org.varlink.service.PermissionDenied"
EXPECTED_MORE = "org.varlink.service.ExpectedMore"

MAX_CALL = 1024 * 1024
"""Octets: the files that `apply` sends, of some thousands of tunnels. All other calls of ours are
below 1 KiB. The daemon hangs up on a longer one."""

MIN_HEARTBEAT_SECONDS = 0.1

SOCKET_NAME = "control.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusCall:
    """All tunnels, or the one named."""

    tunnel: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeCall:
    """The tunnel to bring up, take down or rekey, and how long that may take."""

    tunnel: str
    timeout_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribeCall:
    """The tunnel to describe."""

    tunnel: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyText:
    """A policy file: its name, without a directory, and what it holds.

    Octets that are no UTF-8 are escaped as surrogates, as Python does it (PEP 383).
    """

    name: str
    text: str

    def __post_init__(self) -> None:
        if not self.name.endswith(".yaml") or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"is no name of a policy file: {self.name!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanCall:
    """Files to put beside those that are there, or with `prune` in their place.

    Without files, what is there is what is wanted. `session` are two addresses, ours and the one
    from which the caller works: whatever would cut them off from each other is told.
    """

    files: list[PolicyText] | None = None
    prune: bool = False
    session: list[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyCall:
    """The same, to be done; each change may take `timeout_seconds`.

    With `confirm_seconds` it is taken back after that time unless it is confirmed. `accept_cut`
    allows a change that cuts the caller off. With `allow_pending` it is no failure that a peer does
    not follow yet, as long as what was up stays up.
    """

    timeout_seconds: float
    files: list[PolicyText] | None = None
    prune: bool = False
    session: list[str] | None = None
    confirm_seconds: float = 0.0
    accept_cut: bool = False
    allow_pending: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfirmCall:
    """What was applied is to stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackCall:
    """The policy before the last one is to be in force again."""

    timeout_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsCall:
    """All of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorCall:
    """The `last` events that there have been (10), of all tunnels or of one, and then new ones.

    With `heartbeat_seconds` there is a reply without events whenever there were none for so long.
    """

    tunnel: str | None = None
    last: int | None = None
    heartbeat_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.heartbeat_seconds is not None and self.heartbeat_seconds < MIN_HEARTBEAT_SECONDS:
            raise ValueError(f"asks for a reply more often than each {MIN_HEARTBEAT_SECONDS} s")


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitCall:
    """The tunnel, the state that it shall have (`up` or `down`), and how long to wait for it."""

    tunnel: str
    state: str
    timeout_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureReply:
    """A `xfrmpy.failures.Failure` on the wire; the reader finds causes and fixes by its code."""

    code: str
    summary: str
    evidence: list[list[str]]

    def __post_init__(self) -> None:
        if self.code not in CATALOGUE or not all(len(pair) == 2 for pair in self.evidence):
            raise ValueError(f"is no failure that we know: {self.code}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A step on the way: `seconds` since the command came in; `text` is a sentence."""

    tunnel: str
    seconds: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSaStatus:
    """One Child SA in force. Octets and packets are those of inner packets."""

    child: str
    spi_in: str
    spi_out: str
    suite: str
    mode: str
    local: list[str]
    remote: list[str]
    octets_in: int
    octets_out: int
    packets_in: int
    packets_out: int
    replayed: int
    integrity_failed: int
    seconds_up: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelStatus:
    """`state` is `down`, `connecting`, `up` or `disconnecting`; `failure` is the last one if down.

    `datapath_reason` says why the datapath was chosen, empty where it goes without saying.
    """

    name: str
    state: str
    peer: str
    local_address: str
    remote_address: str
    local_id: str
    remote_id: str
    role: str
    suite: str
    nat: str
    datapath: str
    datapath_reason: str
    seconds_up: float
    spi_i: str
    spi_r: str
    children: list[ChildSaStatus]
    failure: FailureReply | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReply:
    """The daemon and its tunnels, in the order of their names."""

    version: str
    pid: int
    seconds_up: float
    drops: dict[str, int]
    tunnels: list[TunnelStatus]


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelReply:
    """How `up`, `down` or `rekey` ended well; `changed` is False if there was nothing to do.

    `warning` is what will go wrong later, although all is well now.
    """

    changed: bool
    tunnel: TunnelStatus
    warning: FailureReply | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceReply:
    """A key of the policy with another value; `impact` is `hot`, `rekey`, `reauth` or `replace`."""

    key: str
    child: str
    before: str
    after: str
    impact: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeReply:
    """What happens to a tunnel: `action` is `create`, `update` or `delete`.

    `impact` is what it does to what is up; `live` says whether anything is. `cuts` is whether the
    session that it is asked from would be cut.
    """

    tunnel: str
    action: str
    impact: str
    live: bool
    cuts: bool
    differences: list[DifferenceReply]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReply:
    """What would be done, or was, in this order; `failure` is why it cannot be done here.

    `directory` is where the operator's policy files are.
    """

    changes: list[ChangeReply]
    warnings: list[str]
    directory: str
    failure: FailureReply | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepReply:
    """What was confirmed: files to keep in `directory`, and whether others in it are to go.

    `files` is None if none were sent with the policy: they are there already.
    """

    files: list[PolicyText] | None
    prune: bool
    directory: str


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


def encode_message(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\0"


def encode_reply(reply: Any, *, continues: bool = False) -> bytes:
    """A reply of one of the dataclasses above."""
    value = asdict(reply)
    message: dict[str, Any] = {
        "parameters": {"progress": value} if isinstance(reply, Progress) else value
    }
    if continues:
        message["continues"] = True
    return encode_message(message)


def encode_failure(failure: FailureReply) -> bytes:
    return encode_error(FAILED, **asdict(failure))


def encode_error(error: str, **parameters: Any) -> bytes:
    return encode_message({"error": error, "parameters": parameters})
