"""SA_RESOURCE_INFO (RFC 9611): whoever says it is willing to have several Child SAs of one traffic.

Its data are opaque to the other end. Ours name the worker that is to have the Child SA: they tell
whoever reads a capture, and nobody else.
"""

from __future__ import annotations

from xfrmpy.ike.exchange import notifications
from xfrmpy.registry import NotifyType
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload

RESOURCE_SIZE = 4


def resource_payloads(resource: int | None) -> tuple[NotifyPayload, ...]:
    """For a Child SA of this worker; nothing for one that is bound to none."""
    if resource is None:
        return ()
    data = resource.to_bytes(RESOURCE_SIZE, "big")
    return (NotifyPayload(type=NotifyType.SA_RESOURCE_INFO, data=data),)


def has_resource_info(payloads: tuple[OpenPayload, ...]) -> bool:
    """Whether the peer says it of the Child SA that a message is about."""
    return bool(notifications(payloads, NotifyType.SA_RESOURCE_INFO))
