"""A responder tells how long its belief in who the initiator is will last (RFC 4478).

Only the original responder says so, in IKE_AUTH or later, in four octets of seconds; the initiator
makes a new IKE SA, with authentication, before that time is over. The responder itself does so only
if the initiator, which knows best how to authenticate, has not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfrmpy.registry import NotifyType
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

_SIZE = 4
_MAX_SECONDS = (1 << 32) - 1


def offer_lifetime(sa: IkeSa) -> tuple[NotifyPayload, ...]:
    """What a responder with such a policy, or of such a user, says in its answer to IKE_AUTH."""
    seconds = sa.authentication_seconds
    if sa.is_initiator or seconds is None:
        return ()
    octets = min(int(seconds), _MAX_SECONDS).to_bytes(_SIZE, "big")
    return (NotifyPayload(type=NotifyType.AUTH_LIFETIME, data=octets),)


def take_lifetime(sa: IkeSa, notify: NotifyPayload, now: float) -> tuple[OpenPayload, ...]:
    """The responder wants us to authenticate again by then; a limit of our own may come first."""
    if sa.is_initiator and len(notify.data) == _SIZE:
        sa.limit_authentication(int.from_bytes(notify.data, "big"), now)
    return ()
