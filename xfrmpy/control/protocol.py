"""The messages of the control socket, in the Varlink wire format.

A call is `{"method": ..., "parameters": {...}, "more": bool}`, a reply `{"parameters": {...},
"continues": bool}`, an error `{"error": ..., "parameters": {...}}`, each ended by a NUL octet.
Standard library only, and nothing that can carry a secret.

| method | parameters | replies |
|---|---|---|
| `org.xfrmpy.Status` | `tunnel` (optional) | one `StatusReply` |
| `org.xfrmpy.Up` | `tunnel`, `timeout_seconds` | `Progress` and `continues`, then a `TunnelReply` |
| `org.xfrmpy.Down` | `tunnel`, `timeout_seconds` | the same |
| `org.xfrmpy.Rekey` | `tunnel`, `timeout_seconds` | the same |

The one error is `org.xfrmpy.Failed` with a `FailureReply`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

STATUS = "org.xfrmpy.Status"
UP = "org.xfrmpy.Up"
DOWN = "org.xfrmpy.Down"
REKEY = "org.xfrmpy.Rekey"
FAILED = "org.xfrmpy.Failed"

MAX_CALL = 64 * 1024
"""Octets. Every call of ours is below 1 KiB; the daemon hangs up on a longer one."""

SOCKET_NAME = "control.sock"


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureReply:
    """A `xfrmpy.failures.Failure` on the wire; the reader finds causes and fixes by its code."""

    code: str
    summary: str
    evidence: list[list[str]]


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


def encode_message(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\0"


def encode_reply(reply: Any, *, continues: bool = False) -> bytes:
    """A reply of one of the dataclasses above."""
    message: dict[str, Any] = {"parameters": asdict(reply)}
    if continues:
        message["continues"] = True
    return encode_message(message)


def encode_failure(failure: FailureReply) -> bytes:
    return encode_message({"error": FAILED, "parameters": asdict(failure)})


def decode_tunnel(parameters: dict[str, Any]) -> TunnelStatus:
    """A `TunnelStatus` from its JSON form; raises `TypeError` or `KeyError` if it is none."""
    children = [ChildSaStatus(**child) for child in parameters["children"]]
    failure = parameters["failure"]
    reply = None if failure is None else FailureReply(**failure)
    return TunnelStatus(**{**parameters, "children": children, "failure": reply})
