"""IKE_INTERMEDIATE in both roles: key exchanges between IKE_SA_INIT and IKE_AUTH.

Read RFC 9242 and RFC 9370 sections 2.2.1 and 2.2.2 first. Each exchange changes the keys for all
that comes behind it. Who the ends are is not known yet: AUTH proves, later, that both have seen the
same messages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from xfrmpy.crypto.key_exchange import start_key_exchange
from xfrmpy.crypto.key_schedule import derive_further_ike_keys
from xfrmpy.failures import Failure
from xfrmpy.ike.agreement import agreed_secret, answer_ke, ke_payload
from xfrmpy.ike.auth import IkeAuth
from xfrmpy.ike.errors import PeerMisbehaved
from xfrmpy.ike.exchange import first_error, notifications, only
from xfrmpy.ike.refusals import failure_of
from xfrmpy.policy.model import TunnelPolicy
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.payloads import KePayload, NotifyPayload, OpenPayload, PuzzleSolutionPayload

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

INTERMEDIATE_SUPPORTED = NotifyPayload(type=NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED)
"""RFC 9242 section 3.1."""


def supports_intermediate(payloads: tuple[OpenPayload, ...]) -> bool:
    return bool(notifications(payloads, NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED))


def begin_next(
    sa: IkeSa, tunnel: TunnelPolicy, now: float, solution: PuzzleSolutionPayload | None = None
) -> None:
    """What an initiator does next. The first message with keys brings a puzzle's `solution`."""
    if sa.transcript.pending:
        sa.start(IkeIntermediate(sa, tunnel, solution), now)
    else:
        IkeAuth(sa, tunnel, solution).begin(now)


class IkeIntermediate:
    """The initiator's side of one key exchange."""

    type: ClassVar[ExchangeType] = ExchangeType.IKE_INTERMEDIATE

    def __init__(
        self, sa: IkeSa, tunnel: TunnelPolicy, solution: PuzzleSolutionPayload | None = None
    ) -> None:
        self._sa = sa
        self._tunnel = tunnel
        self._solution = () if solution is None else (solution,)
        self._key_exchange = start_key_exchange(sa.transcript.pending[0], sa.core.random)

    def request(self) -> tuple[OpenPayload, ...]:
        return (*self._solution, ke_payload(self._key_exchange))

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        error = first_error(payloads)
        if error is not None:
            self._sa.close(failure_of(error), now)
            return
        try:
            secret = agreed_secret(self._key_exchange, only(payloads, KePayload))
        except PeerMisbehaved as misbehaved:  # It has no IKE SA yet that could be deleted.
            self._sa.close(Failure(code="XF2008", summary=str(misbehaved)), now)
            return
        mix_in(self._sa, secret)
        begin_next(self._sa, self._tunnel, now)


def answer_ike_intermediate(sa: IkeSa, payloads: tuple[OpenPayload, ...], _now: float) -> None:
    """The responder's side. The time that it waits for IKE_AUTH goes on."""
    if not sa.transcript.pending:
        raise PeerMisbehaved("IKE_INTERMEDIATE without a key exchange that was agreed on")
    answered = answer_ke(sa.transcript.pending[0], only(payloads, KePayload), sa.core.random)
    secret = answered.secret()
    sa.respond((answered.payload,))
    mix_in(sa, secret)


def mix_in(sa: IkeSa, shared_secret: bytes) -> None:
    """A key exchange of IKE_INTERMEDIATE is done: new keys (RFC 9370 section 2.2.2)."""
    assert sa.suite is not None
    assert sa.keys is not None
    channel = sa.channel
    sa.transcript = sa.transcript.extended(
        sa.suite.prf, sa.keys, channel.intermediate_request, channel.intermediate_response
    )
    channel.intermediate_request = channel.intermediate_response = b""
    sa.keys = derive_further_ike_keys(
        sa.suite,
        old_sk_d=sa.keys.sk_d,
        shared_secret=shared_secret,
        nonce_i=sa.nonces[0],
        nonce_r=sa.nonces[1],
        spi_i=channel.spi_i,
        spi_r=channel.spi_r,
    )
    channel.protect_anew(sa.suite, sa.keys, behind=sa.transcript.exchanges)
