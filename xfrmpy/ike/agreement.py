"""Key exchange inside an exchange: which proposal goes with the KE payload, and the secret.

Read RFC 7296 sections 1.2, 1.3 and 3.4 first. IKE_SA_INIT and CREATE_CHILD_SA share the rules: the
peer has guessed a method with its KE payload, and is told to begin again if that was wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from xfrmpy.crypto.key_exchange import (
    InvalidPublicValue,
    KeyExchange,
    Random,
    answer_key_exchange,
)
from xfrmpy.ike.collisions import Nonces
from xfrmpy.ike.errors import PeerIncompatible, PeerMisbehaved
from xfrmpy.ipsec.proposals import (
    FURTHER_KEY_EXCHANGES,
    Proposal,
    Transform,
    choose_proposal,
    methods_of,
)
from xfrmpy.registry import KeyExchangeMethod, NotifyType, TransformType
from xfrmpy.wire.payloads import KePayload, NotifyPayload


def key_exchange_methods(proposals: Iterable[Proposal]) -> tuple[KeyExchangeMethod, ...]:
    """Every key exchange method that is offered, in order; NONE is none."""
    transforms = (t for p in proposals for t in p.of_type(TransformType.KE))
    methods = dict.fromkeys(KeyExchangeMethod(t.id) for t in transforms)
    return tuple(m for m in methods if m != KeyExchangeMethod.NONE)


def method_of(chosen: Proposal) -> KeyExchangeMethod | None:
    """The method that a chosen proposal asks for, if it asks for one."""
    return next(iter(key_exchange_methods((chosen,))), None)


def choose_for_method(
    offered: tuple[Proposal, ...], ours: tuple[Proposal, ...], method: KeyExchangeMethod | None
) -> Proposal | None:
    """Our first choice that spares a repetition, `method` being that of the peer's KE payload.

    None if nothing is common. Raises `PeerIncompatible` with INVALID_KE_PAYLOAD if what is common
    needs another method.
    """
    chosen = choose_proposal(_limited(offered, method), ours)
    if chosen is not None:
        return chosen
    chosen = choose_proposal(offered, ours)
    if chosen is None:
        return None
    (wanted,) = (t for t in chosen.transforms if t.type == TransformType.KE)
    began = "without a key exchange" if method is None else f"with {method.name}"
    raise PeerIncompatible.of(
        "XF2010",
        f"the peer began {began}; we asked for {wanted}",
        NotifyType.INVALID_KE_PAYLOAD,
        data=wanted.id.to_bytes(2, "big"),
    )


def demanded_method(error: NotifyPayload) -> KeyExchangeMethod:
    """The method that an INVALID_KE_PAYLOAD names (RFC 7296 section 1.2)."""
    if len(error.data) != 2:
        raise PeerMisbehaved("INVALID_KE_PAYLOAD names a method in two octets")
    return KeyExchangeMethod(int.from_bytes(error.data, "big"))


def ke_payload(key_exchange: KeyExchange) -> KePayload:
    return KePayload(method=key_exchange.method, data=key_exchange.public_value)


def agreed_secret(key_exchange: KeyExchange, ke: KePayload) -> bytes:
    """The shared secret. Raises `PeerMisbehaved` for another method or a bad public value."""
    if ke.method != key_exchange.method:
        raise PeerMisbehaved("the key exchange is not of the method chosen")
    try:
        return key_exchange.shared_secret(ke.data)
    except InvalidPublicValue as error:
        raise PeerMisbehaved(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredKe:
    """Our answer to a KE payload. `secret` raises `PeerMisbehaved` for a bad public value."""

    payload: KePayload
    secret: Callable[[], bytes] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What a CREATE_CHILD_SA has agreed on, and the secrets of its key exchanges so far, in order.

    There are more to come as long as there is a `next_method` (RFC 9370 section 2.2.4).
    """

    chosen: Proposal
    nonces: Nonces
    secrets: tuple[bytes, ...] = field(default=(), repr=False)

    @property
    def next_method(self) -> KeyExchangeMethod | None:
        return next(iter(methods_of(self.chosen)[len(self.secrets) :]), None)

    @property
    def shared_secret(self) -> bytes:
        """SK(0) of RFC 9370; empty without a key exchange."""
        return b"".join(self.secrets[:1])

    @property
    def further_secrets(self) -> bytes:
        """SK(1) | ... | SK(n)."""
        return b"".join(self.secrets[1:])

    def with_secret(self, secret: bytes) -> Agreement:
        return replace(self, secrets=(*self.secrets, secret))


def answer_ke(method: KeyExchangeMethod, ke: KePayload, random: Random) -> AnsweredKe:
    """Answer a key exchange. Raises `PeerMisbehaved` for another method or a bad public value."""
    if ke.method != method:
        raise PeerMisbehaved("the key exchange is not of the method chosen")
    try:
        answer = answer_key_exchange(method, ke.data, random)
    except InvalidPublicValue as error:
        raise PeerMisbehaved(str(error)) from error

    def secret() -> bytes:
        try:
            return answer.shared_secret()
        except InvalidPublicValue as error:
            raise PeerMisbehaved(str(error)) from error

    return AnsweredKe(payload=KePayload(method=method, data=answer.public_value), secret=secret)


def has_further_key_exchanges(proposals: Iterable[Proposal]) -> bool:
    """Whether one of them asks for more key exchanges than one (RFC 9370)."""
    return any(p.of_type(kind) for p in proposals for kind in FURTHER_KEY_EXCHANGES)


def without_further(proposals: Iterable[Proposal]) -> tuple[Proposal, ...]:
    """What is left of them for a peer that can do no further key exchange."""
    return tuple(
        _kept(proposals, lambda t: t.type not in FURTHER_KEY_EXCHANGES or t.id == _NO_METHOD)
    )


_NO_METHOD = KeyExchangeMethod.NONE


def _limited(proposals: Iterable[Proposal], method: KeyExchangeMethod | None) -> Iterator[Proposal]:
    """The proposals that go with one method, and nothing of them that goes with another."""
    return _kept(proposals, lambda t: t.type != TransformType.KE or t.id in (method, _NO_METHOD))


def _kept(proposals: Iterable[Proposal], keeps: Callable[[Transform], bool]) -> Iterator[Proposal]:
    """The proposals with some transforms only, where there are any of each type."""
    for proposal in proposals:
        kept = tuple(t for t in proposal.transforms if keeps(t))
        if kept == proposal.transforms:
            yield proposal
        elif {t.type for t in kept} == {t.type for t in proposal.transforms}:
            yield replace(proposal, transforms=kept)
