"""Values of the daemon as they go over the control socket."""

from __future__ import annotations

from xfrmpy.control.protocol import FailureReply
from xfrmpy.failures import Failure


def reply_of(failure: Failure) -> FailureReply:
    return FailureReply(
        code=failure.code,
        summary=failure.summary,
        evidence=[list(pair) for pair in failure.evidence],
    )
