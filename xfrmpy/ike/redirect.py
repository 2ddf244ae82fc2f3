"""Redirection in both roles: a gateway sends its clients to another one.

Read RFC 5685 sections 3, 5, 6, 7 and 10 first. It changes an address and nothing else: the new
gateway must prove the same identity, and carries the same traffic. Only the responder of an IKE SA
redirects its initiator. The core does not follow by itself: it reports `Redirected`, because a name
must be resolved and a route be found, and is told to `initiate` again.
"""

from __future__ import annotations

import hmac
from collections import deque
from ipaddress import ip_address
from typing import TYPE_CHECKING

from xfrmpy.failures import Failure
from xfrmpy.ike.announcement import Announcement
from xfrmpy.ike.errors import PeerIncompatible, PeerMisbehaved
from xfrmpy.ike.exchange import notifications
from xfrmpy.ike.outputs import RequestRefused
from xfrmpy.ike.states import IkeSaState
from xfrmpy.registry import NotifyType
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload
from xfrmpy.wire.redirect import (
    Gateway,
    Redirect,
    decode_redirect_untrusted,
    decode_redirected_from_untrusted,
    encode_redirected_from,
)

if TYPE_CHECKING:
    from xfrmpy.ike.candidates import Candidates
    from xfrmpy.ike.core import Core
    from xfrmpy.ike.ike_sa import IkeSa
    from xfrmpy.ipsec.addresses import IpAddress, Path
    from xfrmpy.policy.model import TunnelPolicy

MAX_REDIRECTS = 5
REDIRECT_LOOP_DETECT_PERIOD = 300.0
"""Seconds. Both are the defaults of RFC 5685 section 7."""


# The initiator, or client.


def announce_support(
    tunnel: TunnelPolicy, redirected_from: IpAddress | None
) -> tuple[NotifyPayload, ...]:
    """For our IKE_SA_INIT request."""
    if redirected_from is not None:
        data = encode_redirected_from(redirected_from)
        return (NotifyPayload(type=NotifyType.REDIRECTED_FROM, data=data),)
    if tunnel.redirect:
        return (NotifyPayload(type=NotifyType.REDIRECT_SUPPORTED),)
    return ()


def redirect_of_init(
    payloads: tuple[OpenPayload, ...], nonce: bytes, tunnel: TunnelPolicy
) -> Gateway | None:
    """Where an answer to our IKE_SA_INIT sends us, if it does.

    Section 3: the client "MUST verify that the nonce data matches the value sent". Raises
    `PeerMisbehaved` or `Malformed`, so that we go on waiting for another answer.
    """
    redirects = notifications(payloads, NotifyType.REDIRECT)
    if not redirects:
        return None
    redirect = decode_redirect_untrusted(redirects[0].data)
    if not tunnel.redirect or not hmac.compare_digest(redirect.nonce, nonce):
        raise PeerMisbehaved("a REDIRECT that we did not ask for, or without our nonce")
    return redirect.gateway


def redirect_of_auth(payloads: tuple[OpenPayload, ...]) -> Gateway | None:
    """Where an IKE_AUTH response sends us, whose AUTH has been verified (section 6)."""
    redirects = notifications(payloads, NotifyType.REDIRECT)
    return _without_nonce(redirects[0]) if redirects else None


def take_redirect(sa: IkeSa, notify: NotifyPayload, now: float) -> tuple[OpenPayload, ...]:
    """A gateway redirects us in the middle of a session (section 5): we go when we have answered.

    Section 10: "only the original responder can redirect the original initiator".
    """
    if sa.is_client and sa.state is IkeSaState.ESTABLISHED:
        gateway = _without_nonce(notify)
        sa.core.defer(sa, lambda moment: _leave(sa, gateway, moment), now)
    return ()


def _without_nonce(notify: NotifyPayload) -> Gateway:
    redirect = decode_redirect_untrusted(notify.data)
    if redirect.nonce:
        raise PeerMisbehaved("a REDIRECT with a nonce outside IKE_SA_INIT")
    return redirect.gateway


def _leave(sa: IkeSa, gateway: Gateway, now: float) -> None:
    """Go where we are sent; an IKE SA that is up stays if we may not."""
    if sa.state is not IkeSaState.ESTABLISHED or sa.tunnel is None:
        return
    failure = refusal_to_follow(sa, sa.tunnel, gateway, now)
    if failure is None:
        sa.redirected(gateway, now)
    else:
        sa.core.emit(RequestRefused(tunnel=sa.tunnel_name, path=sa.path, failure=failure))


def refusal_to_follow(
    sa: IkeSa, tunnel: TunnelPolicy, gateway: Gateway, now: float
) -> Failure | None:
    """Why we do not follow a redirect; None if we do, and then it is counted (section 7)."""
    if not tunnel.redirect:
        summary = f"the peer sends us to {gateway}, and our policy does not follow"
        return Failure(code="XF2022", summary=summary)
    followed = sa.core.redirects.setdefault(tunnel.name, deque(maxlen=MAX_REDIRECTS))
    if len(followed) == MAX_REDIRECTS and now - followed[0] < REDIRECT_LOOP_DETECT_PERIOD:
        summary = f"the peer sends us to {gateway}, after {MAX_REDIRECTS} redirects already"
        return Failure(code="XF2022", summary=summary)
    followed.append(now)
    return None


# The responder, or gateway.


def follows_redirects(payloads: tuple[OpenPayload, ...]) -> bool:
    """Whether the initiator of this IKE_SA_INIT request can be redirected (section 3)."""
    kinds = (NotifyType.REDIRECT_SUPPORTED, NotifyType.REDIRECTED_FROM)
    return any(notifications(payloads, kind) for kind in kinds)


def redirected_from(payloads: tuple[OpenPayload, ...]) -> IpAddress | None:
    """Which gateway has sent the initiator to us, as it says. Raises `Malformed`."""
    named = notifications(payloads, NotifyType.REDIRECTED_FROM)
    return decode_redirected_from_untrusted(named[0].data) if named else None


def check_redirect_in_init(
    candidates: Candidates, payloads: tuple[OpenPayload, ...], nonce_i: bytes, path: Path
) -> None:
    """Raises `PeerIncompatible` with REDIRECT if every tunnel that it may be for sends it on.

    If only some do, IKE_AUTH will tell which it is.
    """
    if not follows_redirects(payloads):
        return
    origin = redirected_from(payloads)
    gateways = {_gateway_of(to, path, origin) for to in candidates.redirects_to}
    if len(gateways) > 1:
        return
    gateway = gateways.pop()
    if gateway is not None:
        data = Redirect(gateway=gateway, nonce=nonce_i).encode()
        summary = f"{path.remote} is sent on to {gateway}"
        raise PeerIncompatible.of("XF2022", summary, NotifyType.REDIRECT, data=data)


def redirect_in_auth(sa: IkeSa, tunnel: TunnelPolicy) -> NotifyPayload | None:
    """REDIRECT in place of a Child SA, for an initiator that has proved who it is (section 6)."""
    gateway = _gateway_of(tunnel.redirect_to, sa.path, sa.redirected_from)
    return _redirect_payload(gateway) if gateway is not None and sa.peer_follows else None


def redirect_established(core: Core, tunnel: str, gateway: Gateway, now: float) -> int:
    """Send the clients of a tunnel on, those that can be (section 5); gives how many."""
    moved = [
        sa
        for sa in core.ike_sas_of(tunnel)
        if sa.state is IkeSaState.ESTABLISHED and not sa.is_client and sa.peer_follows
    ]
    for sa in moved:
        sa.start(Announcement((_redirect_payload(gateway),)), now)
    return len(moved)


def parse_gateway(text: str) -> Gateway:
    """An address, or else a name."""
    try:
        return ip_address(text)
    except ValueError:
        return text


def _gateway_of(redirect_to: str | None, path: Path, origin: IpAddress | None) -> Gateway | None:
    """Where policy sends the clients of a tunnel; nowhere if that is where they have come to.

    Nor to where they were sent from: two gateways would send them back and forth (section 7).
    """
    gateway = None if redirect_to is None else parse_gateway(redirect_to)
    return None if gateway in (path.local.address, origin) else gateway


def _redirect_payload(gateway: Gateway) -> NotifyPayload:
    return NotifyPayload(type=NotifyType.REDIRECT, data=Redirect(gateway=gateway).encode())
