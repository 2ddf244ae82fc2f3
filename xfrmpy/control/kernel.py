"""What `ShowKernel` is asked, and answers: SAs, policies, devices, and counters of errors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCall:
    """All of it, or what is in force for one tunnel."""

    tunnel: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SaInForce:
    """An SA, without its keys.

    `owner` is `ours` or `foreign`; `tunnel` and `child` are empty where it is nobody's of the
    policy. `direction` is `in`, `out`, or empty where nothing tells it. `limits` are those of its
    lifetime, by the names of what they count; `options` what else it has.
    """

    datapath: str
    owner: str
    tunnel: str
    child: str
    direction: str
    spi: str
    protocol: str
    mode: str
    source: str
    destination: str
    reqid: int
    suite: str
    octets: int
    packets: int
    replayed: int
    integrity_failed: int
    seconds_old: float | None
    seconds_idle: float | None
    limits: dict[str, int]
    options: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateInForce:
    """The SA that a policy asks for; addresses are empty where any will do."""

    protocol: str
    mode: str
    reqid: int
    source: str
    destination: str
    optional: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyInForce:
    """A policy; the lower `priority` is looked at first.

    `owner` is `ours`, `foreign`, or `socket`: of one socket alone, as IKE daemons exempt theirs.
    `direction` is `in`, `out`, `fwd`, `socket-in` or `socket-out`, `action` is `protect`, `bypass`
    or `discard`.
    """

    datapath: str
    owner: str
    tunnel: str
    child: str
    direction: str
    selector: str
    action: str
    priority: int
    index: int | None
    templates: list[TemplateInForce]
    options: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultInForce:
    """What becomes of packets that no policy matches.

    `owner` is `ours` or `foreign`, and empty where they pass, as they do by themselves.
    `direction` is `in`, `out` or `fwd`, `action` is `bypass` or `discard`.
    """

    owner: str
    direction: str
    action: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceInForce:
    """A device that leads to SAs: of the kind `xfrm`, with its id, or a `tun` device of ours.

    `tunnels` are those that have policies with that id.
    """

    name: str
    kind: str
    up: bool
    mtu: int
    if_id: int | None
    underlying: str
    addresses: list[str]
    tunnels: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCounter:
    """How many packets a datapath has dropped, for what reason, and where to look.

    The kernel's count since the network namespace was made, those of user space since the worker
    was started.
    """

    datapath: str
    name: str
    count: int
    meaning: str
    look_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelReply:
    """What is in force on both datapaths; of one that could not be read, why it could not.

    `defaults` are the kernel's, one for each direction; none before Linux 5.15.
    """

    sas: list[SaInForce]
    policies: list[PolicyInForce]
    defaults: list[DefaultInForce]
    interfaces: list[InterfaceInForce]
    errors: list[ErrorCounter]
    unread: dict[str, str]
