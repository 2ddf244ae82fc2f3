"""INITIAL_CONTACT, and what policy says of a second IKE SA at the moment when it is made.

Read RFC 7296 section 2.4 first. By itself a second IKE SA is no reason to end the first at once: a
peer that authenticates anew makes the new one before it deletes the old one (section 2.8.3). That
in the end only one stays is the business of `uniqueness`. Identities count here, not tunnels, for
the peer does not know our tunnels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xfrmpy.failures import Failure
from xfrmpy.ike.errors import AuthenticationFailed
from xfrmpy.ike.exchange import notifications
from xfrmpy.ike.informational import LivenessCheck
from xfrmpy.ike.states import IkeSaState
from xfrmpy.policy.model import TunnelPolicy, Uniqueness
from xfrmpy.registry import NotifyType
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa
    from xfrmpy.ipsec.identity import Identity

DOUBT_SECONDS = 10.0
"""How long an IKE SA has to show that it lives, of which INITIAL_CONTACT may have spoken or not."""


def initial_contact(sa: IkeSa, tunnel: TunnelPolicy) -> tuple[NotifyPayload, ...]:
    """INITIAL_CONTACT, if this is the only IKE SA that we hold between the two identities.

    Who may be there several times "MUST NOT" say it: `unique: never`. Who proves nothing need not.
    Nor is it known whether it is the only one while the peer may be any of several.
    """
    if tunnel.remote_id is not None and tunnel.remote_id.is_pattern:
        return ()
    ends = (tunnel.identity_at(sa.path.local.address), tunnel.remote_id)
    if not tunnel.tells_apart or _others(sa, ends, _NOT_YET_GONE):
        return ()
    return (NotifyPayload(type=NotifyType.INITIAL_CONTACT),)


def check_unique(
    sa: IkeSa, tunnel: TunnelPolicy, remote: Identity, payloads: tuple[OpenPayload, ...]
) -> None:
    """Raises `AuthenticationFailed` if there is an IKE SA already and our policy keeps it."""
    is_kept = tunnel.unique is Uniqueness.KEEP and tunnel.tells_apart
    if not is_kept or _is_first(payloads):
        return
    if _others(sa, (tunnel.identity_at(sa.path.local.address), remote), _ESTABLISHED):
        summary = f"{remote} has an IKE SA already, and our policy keeps that one"
        raise AuthenticationFailed(Failure(code="XF2024", summary=summary))


def close_replaced(sa: IkeSa, payloads: tuple[OpenPayload, ...], now: float) -> None:
    """A new IKE SA is established, with this IKE_AUTH: close those whose place it takes.

    INITIAL_CONTACT speaks of the moment at which the peer sent its message, and the peer has lived
    since its attempt began. What is being made may have crossed that message and live; what was
    made meanwhile too, or it was made by an answer from before, which was late: the peer is asked.
    """
    assert sa.tunnel is not None
    unique = sa.tunnel.unique
    if not sa.tunnel.tells_apart:
        return
    if _is_first(payloads) or unique is Uniqueness.REPLACE:
        reason = "the peer began anew" if _is_first(payloads) else "a new IKE SA takes its place"
        for other in _others(sa, (sa.local_id, sa.remote_id), _ESTABLISHED):
            if unique is Uniqueness.REPLACE or other.authenticated_as <= sa.begun_after:
                other.terminate(Failure(code="XF2011", summary=reason), now)
            else:
                other.doubted_until = now + DOUBT_SECONDS
                other.start(ProofOfLife(other), now)


class ProofOfLife(LivenessCheck):
    """Asks a peer on an IKE SA that it may have lost."""

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        """It has not lost it."""
        self._sa.doubted_until = None
        super().handle_response(payloads, now)


def end_doubted(sa: IkeSa, now: float) -> None:
    """The peer has not answered on an IKE SA, and has another."""
    sa.doubted_until = None
    sa.terminate(Failure(code="XF2011", summary="the peer began anew"), now)


_ESTABLISHED = frozenset({IkeSaState.ESTABLISHED})
_NOT_YET_GONE = frozenset(IkeSaState) - {IkeSaState.DELETED}


def _others(
    sa: IkeSa, ends: tuple[Identity | None, Identity | None], states: frozenset[IkeSaState]
) -> list[IkeSa]:
    living = (other for other in sa.core.ike_sas_with(ends[1]) if other.state in states)
    return [other for other in living if other is not sa and _ends(other) == ends]


def _ends(sa: IkeSa) -> tuple[Identity | None, Identity | None] | None:
    """Our identity and the peer's, proved or as we expect it; None if we know neither yet."""
    if sa.tunnel is None:
        return None
    ours = sa.local_id or sa.tunnel.identity_at(sa.path.local.address)
    return ours, sa.remote_id or sa.tunnel.remote_id


def _is_first(payloads: tuple[OpenPayload, ...]) -> bool:
    return bool(notifications(payloads, NotifyType.INITIAL_CONTACT))
