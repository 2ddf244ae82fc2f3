"""IKE_INTERMEDIATE in both roles: what goes into the keys between IKE_SA_INIT and IKE_AUTH.

Read RFC 9242, RFC 9370 sections 2.2.1 and 2.2.2 and RFC 9867 first. Each exchange changes the keys
for all that comes behind it: by a key exchange, and the last one by a post-quantum preshared key
(`ppk`), which has an exchange to itself if there is no other. Who the ends are is not known yet:
AUTH proves, later, that both have seen the same messages.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from xfrmpy.crypto.key_exchange import start_key_exchange
from xfrmpy.crypto.key_schedule import derive_further_ike_keys, derive_ike_keys_with_ppk
from xfrmpy.failures import Failure
from xfrmpy.ike.agreement import agreed_secret, answer_ke, ke_payload
from xfrmpy.ike.auth import IkeAuth
from xfrmpy.ike.errors import AuthenticationFailed, PeerMisbehaved
from xfrmpy.ike.exchange import first_error, notifications, only
from xfrmpy.ike.ppk import (
    brings_ppk,
    choose_ppk,
    confirmation_of,
    name_ppks,
    refused_ppks,
    take_ppk_choice,
    tell_ppk,
)
from xfrmpy.ike.refusals import failure_of
from xfrmpy.policy.model import Ppk, TunnelPolicy
from xfrmpy.registry import ExchangeType, KeyExchangeMethod, NotifyType
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
    """The initiator's side of one exchange."""

    type: ClassVar[ExchangeType] = ExchangeType.IKE_INTERMEDIATE

    def __init__(
        self, sa: IkeSa, tunnel: TunnelPolicy, solution: PuzzleSolutionPayload | None = None
    ) -> None:
        self._sa = sa
        self._tunnel = tunnel
        self._solution = () if solution is None else (solution,)
        method = sa.transcript.pending[0]
        self._key_exchange = (
            None if method is KeyExchangeMethod.NONE else start_key_exchange(method, sa.core.random)
        )
        self._ppks = name_ppks(sa, tunnel) if brings_ppk(sa) else ()

    def request(self) -> tuple[OpenPayload, ...]:
        ke = () if self._key_exchange is None else (ke_payload(self._key_exchange),)
        return (*self._solution, *ke, *self._ppks)

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        """It has no IKE SA yet that could be deleted, should the answer be wrong."""
        error = first_error(payloads)
        if error is not None:
            self._sa.close(self._refusal(error), now)
            return
        try:
            secret = self._secret(payloads)
            ppk = take_ppk_choice(self._tunnel, payloads) if self._ppks else None
        except PeerMisbehaved as misbehaved:
            self._sa.close(Failure(code="XF2008", summary=str(misbehaved)), now)
            return
        except AuthenticationFailed as failed:
            self._sa.close(failed.failure, now)
            return
        mix_in(self._sa, secret, ppk)
        begin_next(self._sa, self._tunnel, now)

    def _secret(self, payloads: tuple[OpenPayload, ...]) -> bytes:
        """What the key exchange has given, if there is one."""
        if self._key_exchange is None:
            return b""
        return agreed_secret(self._key_exchange, only(payloads, KePayload))

    def _refusal(self, error: NotifyPayload) -> Failure:
        if self._ppks and error.type == NotifyType.AUTHENTICATION_FAILED:
            return refused_ppks(self._tunnel)
        return failure_of(error)


def answer_ike_intermediate(sa: IkeSa, payloads: tuple[OpenPayload, ...], now: float) -> None:
    """The responder's side. The time that it waits for IKE_AUTH goes on."""
    if not sa.transcript.pending:
        raise PeerMisbehaved("IKE_INTERMEDIATE without anything that was agreed on for it")
    method = sa.transcript.pending[0]
    answer: tuple[OpenPayload, ...] = ()
    secret = b""
    if method is not KeyExchangeMethod.NONE:
        answered = answer_ke(method, only(payloads, KePayload), sa.core.random)
        answer, secret = (answered.payload,), answered.secret()
    try:
        ppk = choose_ppk(sa, payloads) if brings_ppk(sa) else None
    except AuthenticationFailed as failed:
        sa.respond((NotifyPayload(type=NotifyType.AUTHENTICATION_FAILED),))
        sa.close(failed.failure, now)
        return
    sa.respond((*answer, *tell_ppk(ppk)))
    mix_in(sa, secret, ppk)


def mix_in(sa: IkeSa, shared_secret: bytes, ppk: Ppk | None = None) -> None:
    """An IKE_INTERMEDIATE is done: keys with its secret (RFC 9370 section 2.2.2), if it has one,
    and then with the post-quantum preshared key (RFC 9867)."""
    assert sa.suite is not None
    assert sa.keys is not None
    channel = sa.channel
    sa.transcript = sa.transcript.extended(
        sa.suite.prf, sa.keys, channel.intermediate_request, channel.intermediate_response
    )
    channel.intermediate_request = channel.intermediate_response = b""
    given = {
        "nonce_i": sa.nonces[0],
        "nonce_r": sa.nonces[1],
        "spi_i": channel.spi_i,
        "spi_r": channel.spi_r,
    }
    if shared_secret:
        sa.keys = derive_further_ike_keys(
            sa.suite, old_sk_d=sa.keys.sk_d, shared_secret=shared_secret, **given
        )
    if ppk is not None:
        sa.keys = derive_ike_keys_with_ppk(
            sa.suite, old_sk_d=sa.keys.sk_d, ppk=ppk.key.octets, **given
        )
        confirmation = confirmation_of(sa, ppk)
        sa.transcript = replace(sa.transcript, ppk_confirmation=confirmation)
        sa.ppk_id = ppk.id
    channel.protect_anew(sa.suite, sa.keys, behind=sa.transcript.exchanges)
