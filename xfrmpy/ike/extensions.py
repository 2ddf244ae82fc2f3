"""The notifications of extensions in protected messages: what we add, and who takes what comes.

An extension is a module of its own; by these tables IKE_AUTH and INFORMATIONAL know it. Only
notifications that need no other payload stand here. What they say is authentic: the peer has
proved who it is before any of them is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from xfrmpy.ike.auth_lifetime import offer_lifetime, take_lifetime
from xfrmpy.ike.crash import offer_token, take_token
from xfrmpy.ike.redirect import take_redirect
from xfrmpy.ike.resumption import give_ticket, request_ticket, take_ticket
from xfrmpy.ike.window_size import answer_window
from xfrmpy.registry import NotifyType
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

Handler: TypeAlias = "Callable[[IkeSa, NotifyPayload, float], tuple[OpenPayload, ...]]"
"""Takes a notification; what it gives back goes with our answer, if it came in a request."""

IN_AUTH: tuple[Callable[[IkeSa], tuple[NotifyPayload, ...]], ...] = (
    offer_token,
    request_ticket,
    offer_lifetime,
)
"""What we say in IKE_AUTH without being asked, in either role."""

HANDLERS: dict[NotifyType, Handler] = {
    NotifyType.AUTH_LIFETIME: take_lifetime,
    NotifyType.QUICK_CRASH_DETECTION: take_token,
    NotifyType.REDIRECT: take_redirect,
    NotifyType.SET_WINDOW_SIZE: answer_window,
    NotifyType.TICKET_REQUEST: give_ticket,
    NotifyType.TICKET_LT_OPAQUE: take_ticket,
}


def offer_in_auth(sa: IkeSa) -> tuple[NotifyPayload, ...]:
    """Our notifications of IKE_AUTH; the tunnel is known."""
    return tuple(payload for offer in IN_AUTH for payload in offer(sa))


def take_notifications(
    sa: IkeSa, payloads: tuple[OpenPayload, ...], now: float
) -> tuple[OpenPayload, ...]:
    """Take the notifications of an authenticated peer; gives what our answer says to them."""
    answer: list[OpenPayload] = []
    for payload in payloads:
        if isinstance(payload, NotifyPayload) and payload.type in HANDLERS:
            answer += HANDLERS[payload.type](sa, payload, now)
    return tuple(answer)
