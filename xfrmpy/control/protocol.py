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
SHOW_KERNEL = "org.xfrmpy.ShowKernel"
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

SOCKET_NAME = "control.sock"


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
    """One Child SA in force. Octets and packets are those of inner packets.

    `worker` is null, or the number of the userspace worker that it is there for, beside others with
    the same traffic (RFC 9611): then what begins with `total` is of all of these together. `cpu` is
    the same of a CPU of the kernel's; beside those there is one of no CPU.

    What begins with `total` is of all the Child SAs that it has replaced, too, as long as the
    daemon runs, and never goes back.
    """

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
    total_octets_in: int
    total_octets_out: int
    total_packets_in: int
    total_packets_out: int
    total_replayed: int
    total_integrity_failed: int
    total_seconds_up: float
    worker: int | None = None
    cpu: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceStatus:
    """The interface of a route-based tunnel; `state` is `up`, `down` or `missing`.

    `adopted`: somebody else made it. `mtu` is 0 while it is missing.
    """

    name: str
    state: str
    if_id: int
    mtu: int
    addresses: list[str]
    vrf: str
    namespace: str
    adopted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelStatus:
    """`state` is `down`, `waiting` (for traffic, which would bring it up), `connecting`, `up` or
    `disconnecting`; `failure` is the last one if down or waiting.

    `datapath_reason` says why the datapath was chosen, empty where it goes without saying. `ppk`
    names the post-quantum preshared key in the keys of the IKE SA, and is empty without one;
    `ppk_exchange` is the exchange from which on it is in them, `IKE_INTERMEDIATE` or `IKE_AUTH`.
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
    ppk: str
    ppk_exchange: str
    nat: str
    datapath: str
    datapath_reason: str
    seconds_up: float
    spi_i: str
    spi_r: str
    children: list[ChildSaStatus]
    failure: FailureReply | None
    interface: InterfaceStatus | None = None


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
