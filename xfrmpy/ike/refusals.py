"""What a peer's error notification means to our operator."""

from __future__ import annotations

from xfrmpy.failures import Failure
from xfrmpy.registry import NotifyType
from xfrmpy.wire.payloads import NotifyPayload

Evidence = tuple[tuple[str, str], ...]

_CODES: dict[NotifyType, tuple[str, str]] = {
    NotifyType.NO_PROPOSAL_CHOSEN: ("XF2003", "the peer accepts none of our ESP proposals"),
    NotifyType.TS_UNACCEPTABLE: ("XF2004", "the peer accepts none of our traffic selectors"),
    NotifyType.AUTHENTICATION_FAILED: ("XF2005", "the peer refused our authentication"),
}


def rekey_failure_of(error: NotifyPayload, what: str, evidence: Evidence) -> Failure:
    """The failure that an error notification stands for in the answer to a rekeying."""
    return Failure(
        code="XF2015",
        summary=f"the peer did not replace {what}",
        evidence=(*evidence, ("they answered", error.type.name)),
    )


def failure_of(error: NotifyPayload, evidence: Evidence = ()) -> Failure:
    """The failure that an error notification in a protected message stands for."""
    code, summary = _CODES.get(error.type, ("XF2009", "the peer refused"))
    return Failure(
        code=code, summary=summary, evidence=(*evidence, ("they answered", error.type.name))
    )
