"""What callers send: the parameters of each method that has any. The daemon checks by these."""

from __future__ import annotations

from dataclasses import dataclass

MIN_HEARTBEAT_SECONDS = 0.1


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
