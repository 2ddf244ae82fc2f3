"""Several rounds of authentication in one IKE_AUTH (RFC 4739): who proves itself how often.

Read RFC 4739 sections 1.3, 2 and 3 first. The ends tell each other that they know of it, and with
each AUTH whether another follows. A round is as IKE_AUTH is without: an identity and AUTH over the
same octets with that identity, or EAP. Here is what the ends say of the rounds, and what a
responder keeps between two of them; how each is proved is the business of `proof`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xfrmpy.failures import Failure
from xfrmpy.ike.eap_responder import Authenticated
from xfrmpy.ike.errors import AuthenticationFailed
from xfrmpy.ike.exchange import notifications
from xfrmpy.ipsec.identity import Identity
from xfrmpy.policy.model import TunnelPolicy
from xfrmpy.registry import NotifyType
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

MULTIPLE_AUTH_SUPPORTED = NotifyPayload(type=NotifyType.MULTIPLE_AUTH_SUPPORTED)
ANOTHER_AUTH_FOLLOWS = NotifyPayload(type=NotifyType.ANOTHER_AUTH_FOLLOWS)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsServing:
    """What a responder keeps of a peer between two rounds.

    `made` is of those that are done, `number` the next one; `said` is who we have said last that we
    are.
    """

    made: Authenticated
    number: int
    said: Identity

    def joined(self, made: Authenticated) -> Authenticated:
        """With another round done: a user of EAP is who calls, by whichever host."""
        was = self.made
        return replace(
            made,
            tunnel=was.tunnel,
            local=was.local,
            remote=was.remote if was.tunnel.acceptance is None else made.remote,
            request=(*was.request, *made.request),
        )


def offer_rounds(tunnel: TunnelPolicy) -> tuple[NotifyPayload, ...]:
    return (MULTIPLE_AUTH_SUPPORTED,) if tunnel.rounds else ()


def another_of_ours(tunnel: TunnelPolicy, number: int) -> tuple[NotifyPayload, ...]:
    """For the message with our AUTH of a round."""
    return (ANOTHER_AUTH_FOLLOWS,) if tunnel.we_prove(number + 1) else ()


def supports_rounds(payloads: tuple[OpenPayload, ...]) -> bool:
    return bool(notifications(payloads, NotifyType.MULTIPLE_AUTH_SUPPORTED))


def says_another(payloads: tuple[OpenPayload, ...]) -> bool:
    return bool(notifications(payloads, NotifyType.ANOTHER_AUTH_FOLLOWS))


def refusal_without_rounds(
    tunnel: TunnelPolicy, payloads: tuple[OpenPayload, ...]
) -> Failure | None:
    """Why an initiator does not go on with a responder that knows of one round only."""
    if not tunnel.rounds or supports_rounds(payloads):
        return None
    return _disagreement("the peer knows of no further rounds of authentication", tunnel)


def check_support(tunnel: TunnelPolicy, payloads: tuple[OpenPayload, ...]) -> None:
    """Raises `AuthenticationFailed` if an initiator does not know of the rounds that are ours."""
    failure = refusal_without_rounds(tunnel, payloads)
    if failure is not None:
        raise AuthenticationFailed(failure)


def check_another(tunnel: TunnelPolicy, number: int, payloads: tuple[OpenPayload, ...]) -> None:
    """Raises `AuthenticationFailed` if the peer, behind a round, proves itself more or less often
    than our policy wants."""
    if says_another(payloads) == tunnel.they_prove(number + 1):
        return
    if says_another(payloads):
        summary = f"the peer wants to prove itself once more behind round {number + 1}"
    else:
        summary = f"the peer leaves it at round {number + 1}"
    raise AuthenticationFailed(_disagreement(summary, tunnel))


def left_out(tunnel: TunnelPolicy, number: int) -> AuthenticationFailed:
    """The peer proves nothing in a round that is its."""
    summary = f"the peer proves nothing in round {number + 1}"
    return AuthenticationFailed(_disagreement(summary, tunnel))


def has_more_rounds(sa: IkeSa, tunnel: TunnelPolicy, number: int) -> bool:
    """Whether a round is not the last; a resumed IKE SA has one."""
    return sa.resumed is None and number < len(tunnel.rounds)


def _disagreement(summary: str, tunnel: TunnelPolicy) -> Failure:
    ours, theirs = (
        sum(prove(number) for number in range(len(tunnel.rounds) + 1))
        for prove in (tunnel.we_prove, tunnel.they_prove)
    )
    evidence = (("rounds of ours", str(ours)), ("of theirs", str(theirs)))
    return Failure(code="XF2057", summary=summary, evidence=evidence)
