"""What `-o json` prints: versioned documents, guarded by the golden files of the tests.

A key may be added; none is renamed, removed or given another meaning without a new `api`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from xfrmpy.control.protocol import FailureReply, StatusReply, TunnelStatus
from xfrmpy.failures import Failure

API = "xfrmpy/v1"


def document(kind: str, **content: Any) -> str:
    """A document of one kind, as JSON text."""
    return json.dumps({"api": API, "kind": kind, **content}, indent=2)


def failure_value(failure: Failure) -> dict[str, Any]:
    """A failure with the words of the catalogue, so that a reader needs no copy of it."""
    return {
        "code": failure.code,
        "title": failure.kind.title,
        "summary": failure.summary,
        "evidence": [{"label": label, "seen": seen} for label, seen in failure.evidence],
        "causes": list(failure.kind.causes),
        "fixes": list(failure.kind.fixes),
    }


def failure_of(reply: FailureReply) -> Failure:
    """The failure that the daemon told of."""
    evidence = tuple((label, seen) for label, seen in reply.evidence)
    return Failure(code=reply.code, summary=reply.summary, evidence=evidence)


def tunnel_value(tunnel: TunnelStatus) -> dict[str, Any]:
    failure = tunnel.failure
    return {**asdict(tunnel), "failure": failure and failure_value(failure_of(failure))}


def status_document(status: StatusReply) -> str:
    daemon = {
        "version": status.version,
        "pid": status.pid,
        "seconds_up": status.seconds_up,
        "drops": status.drops,
    }
    return document("Status", daemon=daemon, tunnels=[tunnel_value(t) for t in status.tunnels])
