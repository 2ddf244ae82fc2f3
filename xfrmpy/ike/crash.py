"""Quick crash detection: a peer that lost its state proves it, and is not waited for.

Read RFC 6290 sections 4, 5 and 9 first. Each end gives the other a token for their IKE SA, sealed
in IKE_AUTH. An end that has lost the IKE SA makes the same token from the SPIs and its secret, and
answers with it, in clear, what it cannot open any more. Here tokens are made, shown and believed;
that an IKE SA is looked up and not found is the endpoint's business.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xfrmpy.failures import Failure
from xfrmpy.ike.budget import Budget
from xfrmpy.ike.errors import Drop, DropReason
from xfrmpy.ike.exchange import notifications, payloads_in_clear
from xfrmpy.ike.states import IkeSaState
from xfrmpy.registry import NotifyType, ProtocolId
from xfrmpy.wire.message import Message
from xfrmpy.wire.payloads import NotifyPayload, OpenPayload

if TYPE_CHECKING:
    from xfrmpy.ike.core import Core
    from xfrmpy.ike.ike_sa import IkeSa

LEAST_TOKEN, MOST_TOKEN = 16, 128
"""Octets, RFC 6290 section 5."""

MAX_TOKENS = 4
"""In one message: as many as section 4.5 bids us to support."""

TOKEN_SIZE = 16
"""Octets. The fewest that are allowed, for our answer must not be larger than what it answers."""

PROOFS_PER_SECOND = 10.0
"""Messages with tokens that are looked at on one IKE SA; a peer retransmits less often."""


class TokenMaker:
    """Makes tokens from a secret that survives a restart.

    A keyed hash, so that many tokens with their SPIs tell nothing of any other (section 9.1).
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def token(self, spi_i: bytes, spi_r: bytes) -> bytes:
        return hmac.digest(self._secret, spi_i + spi_r, "sha256")[:TOKEN_SIZE]


@dataclass(slots=True, kw_only=True)
class TheirTokens:
    """What the peer has given us for one IKE SA; it goes with the IKE SA (section 5.3)."""

    tokens: tuple[bytes, ...] = field(repr=False)
    budget: Budget = field(
        default_factory=lambda: Budget(per_second=PROOFS_PER_SECOND, most=PROOFS_PER_SECOND)
    )


# The token's way to the peer.


def offer_token(sa: IkeSa) -> tuple[NotifyPayload, ...]:
    """Our token for an IKE SA.

    For IKE_AUTH, for our answer to the request that rekeys an IKE SA, and for the first request on
    one that we have rekeyed (section 4.3).
    """
    maker = sa.core.crash_tokens
    if maker is None or sa.tunnel is None or not sa.tunnel.crash_detection:
        return ()
    return (_token_payload(maker.token(sa.channel.spi_i, sa.channel.spi_r)),)


def take_token(sa: IkeSa, token: NotifyPayload, _now: float) -> tuple[OpenPayload, ...]:
    """The peer's token, or one in place of it (section 4.4): the last is what it can make again."""
    assert sa.tunnel is not None
    if sa.tunnel.crash_detection and LEAST_TOKEN <= len(token.data) <= MOST_TOKEN:
        sa.their_tokens = TheirTokens(tokens=(token.data,))
    return ()


# We have lost our state.


def show_token(core: Core, request: Message) -> tuple[NotifyPayload, ...]:
    """Our token for an IKE SA that we do not have, in clear with INVALID_IKE_SPI (section 4.5)."""
    maker = core.crash_tokens
    return () if maker is None else (_token_payload(maker.token(request.spi_i, request.spi_r)),)


# The peer has lost its state.


def shows_token(sa: IkeSa, message: Message) -> bool:
    """Whether a message in clear is for `take_proof`: we have a token of the peer's to compare."""
    shown = notifications(payloads_in_clear(message), NotifyType.QUICK_CRASH_DETECTION)
    return bool(shown) and sa.their_tokens is not None


def take_proof(sa: IkeSa, message: Message, now: float) -> None:
    """A message in clear on an IKE SA that has keys: it counts only if it has the peer's token.

    The endpoint has compared both SPIs. Addresses are not asked for: a token must be accepted
    "from any IP address and port combination" (section 3). Raises `Drop` unless it is the proof.
    """
    payloads = payloads_in_clear(message)
    shown = notifications(payloads, NotifyType.QUICK_CRASH_DETECTION)
    reasons = (NotifyType.INVALID_IKE_SPI, NotifyType.INVALID_SPI)
    if not shown or not any(notifications(payloads, reason) for reason in reasons):
        raise Drop(DropReason.NOT_PROTECTED)
    if sa.their_tokens is None or sa.state not in (IkeSaState.ESTABLISHED, IkeSaState.DELETING):
        raise Drop(DropReason.NOT_PROTECTED)
    if not sa.their_tokens.budget.spend(1, now):
        raise Drop(DropReason.RATE_LIMIT)
    _verify(sa.their_tokens, shown)
    summary = f"{sa.path.remote} lost its state, and proved it"
    sa.lose(Failure(code="XF2026", summary=summary), now)


def _verify(theirs: TheirTokens, shown: tuple[NotifyPayload, ...]) -> None:
    """Raises `Drop` unless a token shown is the peer's; in the same time wherever they differ."""
    candidates = [notify.data for notify in shown[:MAX_TOKENS]]
    matches = [hmac.compare_digest(a, b) for a in theirs.tokens for b in candidates]
    if not any(matches):
        raise Drop(DropReason.WRONG_TOKEN)


def _token_payload(token: bytes) -> NotifyPayload:
    """Section 4.1: the Protocol ID "MUST be 1, as this message is related to an IKE SA"."""
    return NotifyPayload(type=NotifyType.QUICK_CRASH_DETECTION, protocol=ProtocolId.IKE, data=token)
