"""Post-quantum preshared keys: a second secret of both ends, mixed into the keys.

Read RFC 8784 sections 3 and 5.1 first, then RFC 9867. The ends tell each other in IKE_SA_INIT that
they use them, and in which exchange. In the last IKE_INTERMEDIATE (RFC 9867) the initiator names
all of its own and shows that it has them, and the responder chooses one, which then is in all keys:
it protects identities, too. Or else the initiator names one in IKE_AUTH (RFC 8784), and the
responder says whether that is in the keys; an initiator that can do without sends, beside AUTH,
what AUTH would be without (NO_PPK_AUTH). Rekeyed and resumed IKE SAs follow from keys that have it
already. How AUTH is made is the business of `auth`.
"""

from __future__ import annotations

import hmac
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from xfrmpy.crypto.key_schedule import (
    PPK_CONFIRMATION_SIZE,
    IkeKeys,
    mix_in_ppk,
    ppk_confirmation,
)
from xfrmpy.failures import Failure
from xfrmpy.ike.errors import AuthenticationFailed, PeerIncompatible, PeerMisbehaved
from xfrmpy.ike.evidence import listed
from xfrmpy.ike.exchange import notifications
from xfrmpy.policy.model import Ppk, TunnelPolicy
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.payloads import AuthPayload, NotifyPayload, OpenPayload

if TYPE_CHECKING:
    from xfrmpy.ike.candidates import Candidates
    from xfrmpy.ike.ike_sa import IkeSa
    from xfrmpy.ipsec.addresses import Path
    from xfrmpy.ipsec.identity import Identity

PPK_ID_FIXED = 2
"""The type of a PPK_ID that names one key for good (RFC 8784 section 5.1). Others are names that we
do not have."""

MAX_NAMED = 16
"""How many of an initiator's names are looked at, ours: it is nobody known yet."""

USE_PPK = NotifyPayload(type=NotifyType.USE_PPK)
USE_PPK_INT = NotifyPayload(type=NotifyType.USE_PPK_INT)

_ANSWERS = {ExchangeType.IKE_AUTH: (USE_PPK,), ExchangeType.IKE_INTERMEDIATE: (USE_PPK_INT,)}


class Verify(Protocol):
    """Verifies AUTH in an initiator's payloads, by the IKE SA's keys or by others."""

    def __call__(self, payloads: tuple[OpenPayload, ...], keys: IkeKeys | None = None, /) -> None:
        """Raises `AuthenticationFailed`."""


# IKE_SA_INIT.


def offer_ppk(tunnel: TunnelPolicy) -> tuple[NotifyPayload, ...]:
    """Either exchange; that we have IKE_INTERMEDIATE is said besides.

    RFC 8784 does not say in which of several rounds (RFC 4739) a key would come in.
    """
    if not tunnel.ppks:
        return ()
    return (USE_PPK_INT,) if tunnel.rounds else (USE_PPK, USE_PPK_INT)


def answered_ppk_exchange(
    tunnel: TunnelPolicy, payloads: tuple[OpenPayload, ...]
) -> ExchangeType | None:
    """In which exchange a responder goes on with it; None without. Raises `PeerMisbehaved`."""
    chosen = _ppk_exchanges(payloads) if tunnel.ppks else []
    if len(chosen) > 1:
        raise PeerMisbehaved("the peer chose two exchanges for a post-quantum preshared key")
    return chosen[0] if chosen else None


def refusal_without_ppk(tunnel: TunnelPolicy, exchange: ExchangeType | None) -> Failure | None:
    """Why an initiator does not go on with a responder that uses none."""
    if not tunnel.ppk_required or exchange is not None:
        return None
    return _required("the peer uses no post-quantum preshared keys", tunnel)


def choose_ppk_exchange(
    candidates: Candidates, payloads: tuple[OpenPayload, ...], path: Path
) -> ExchangeType | None:
    """A responder's choice: the earlier of those offered, None without.

    Raises `PeerIncompatible` if no tunnel does without (RFC 8784 Table 1).
    """
    offered = _ppk_exchanges(payloads)
    if offered:
        return offered[0] if candidates.has_ppk else None
    if candidates.requires_ppk:
        summary = f"{path.remote} uses no post-quantum preshared keys, and our policy requires one"
        raise PeerIncompatible.of("XF2033", summary, NotifyType.NO_PROPOSAL_CHOSEN)
    return None


def answer_ppk(exchange: ExchangeType | None) -> tuple[NotifyPayload, ...]:
    return () if exchange is None else _ANSWERS[exchange]


def _ppk_exchanges(payloads: tuple[OpenPayload, ...]) -> list[ExchangeType]:
    """Those that the peer speaks of, the earlier first. Without an IKE_INTERMEDIATE exchange that
    both ends have there is nothing to choose of it."""
    has_intermediate = notifications(payloads, NotifyType.INTERMEDIATE_EXCHANGE_SUPPORTED)
    found = []
    if has_intermediate and notifications(payloads, NotifyType.USE_PPK_INT):
        found.append(ExchangeType.IKE_INTERMEDIATE)
    if notifications(payloads, NotifyType.USE_PPK):
        found.append(ExchangeType.IKE_AUTH)
    return found


# IKE_INTERMEDIATE.


def brings_ppk(sa: IkeSa) -> bool:
    """Whether the next IKE_INTERMEDIATE is the one for it: the last."""
    is_last = len(sa.transcript.pending) == 1
    return is_last and sa.ppk_exchange is ExchangeType.IKE_INTERMEDIATE


def name_ppks(sa: IkeSa, tunnel: TunnelPolicy) -> tuple[NotifyPayload, ...]:
    """An initiator's, in its order; each shows that we have the key."""
    return tuple(
        NotifyPayload(type=NotifyType.PPK_IDENTITY_KEY, data=_name(ppk) + confirmation_of(sa, ppk))
        for ppk in tunnel.ppks
    )


def take_ppk_choice(tunnel: TunnelPolicy, payloads: tuple[OpenPayload, ...]) -> Ppk | None:
    """The one of ours that the responder has, too.

    Raises `AuthenticationFailed` if it has none and our policy requires one.
    """
    chosen = _named_once(payloads)
    if chosen is None and tunnel.ppk_required:
        summary = "the peer has none of the post-quantum preshared keys that we named"
        raise AuthenticationFailed(_required(summary, tunnel))
    if chosen is None:
        return None
    ppk = next((p for p in tunnel.ppks if _name(p) == chosen), None)
    if ppk is None:
        raise PeerMisbehaved(f"the peer chose {_shown(chosen)}, a PPK that we have not named")
    return ppk


def refused_ppks(tunnel: TunnelPolicy) -> Failure:
    """The responder requires one, and has none that we named."""
    summary = "the peer requires a post-quantum preshared key, and takes none that we named"
    return _required(summary, tunnel)


def choose_ppk(sa: IkeSa, payloads: tuple[OpenPayload, ...]) -> Ppk | None:
    """A responder's: the first that the initiator names and has. Whose it is shows in IKE_AUTH.

    Raises `AuthenticationFailed` if there is none and no tunnel does without.
    """
    candidates = sa.core.tunnel_index.candidates(sa.path)
    offers = [n.data for n in notifications(payloads, NotifyType.PPK_IDENTITY_KEY)][:MAX_NAMED]
    cut = -PPK_CONFIRMATION_SIZE
    known: list[Ppk] = []
    for name, confirmation in ((data[:cut], data[cut:]) for data in offers):
        ours = candidates.ppks_named(name[1:]) if name[:1] == bytes([PPK_ID_FIXED]) else ()
        for ppk in ours:
            if hmac.compare_digest(confirmation, confirmation_of(sa, ppk)):
                return ppk
        known += ours
    if not candidates.requires_ppk:
        return None
    if known:
        differing = Failure(
            code="XF2034",
            summary="the peer has other post-quantum preshared keys under the names of ours",
            evidence=(("our PPKs", listed(known)), ("they are at", str(sa.path.remote))),
        )
        raise AuthenticationFailed(differing)
    said = listed(_shown(data[:cut]) for data in offers) or "none"
    summary = f"our policy requires a post-quantum preshared key of ours, and the peer names {said}"
    evidence = (("our PPKs", listed(p for t in candidates.policies for p in t.ppks)),)
    raise AuthenticationFailed(Failure(code="XF2033", summary=summary, evidence=evidence))


def tell_ppk(ppk: Ppk | None) -> tuple[NotifyPayload, ...]:
    """A responder's choice, for its answer."""
    return () if ppk is None else (name_ppk(ppk),)


def _check_choice(sa: IkeSa, tunnel: TunnelPolicy) -> None:
    """The responder knows now who the peer is: what was chosen before must be for it."""
    used = sa.transcript.ppk_confirmation
    if not used and tunnel.ppk_required:
        summary = "our policy requires a post-quantum preshared key, and the peer named none of it"
        raise AuthenticationFailed(_required(summary, tunnel))
    ours = [p for p in tunnel.ppks if hmac.compare_digest(used, confirmation_of(sa, p))]
    if used and not ours:
        summary = f"the post-quantum preshared key '{sa.ppk_id}' is not of who the peer says it is"
        raise AuthenticationFailed(_required(summary, tunnel))


def _name(ppk: Ppk) -> bytes:
    return bytes([PPK_ID_FIXED]) + ppk.id_octets


def confirmation_of(sa: IkeSa, ppk: Ppk) -> bytes:
    """What shows that who names a key has it, on this IKE SA."""
    assert sa.suite is not None
    seed = b"".join(sa.nonces) + sa.channel.spi_i + sa.channel.spi_r
    return ppk_confirmation(sa.suite.prf, ppk.key.octets, seed)


# IKE_AUTH, the initiator's side.


def our_ppk(sa: IkeSa, tunnel: TunnelPolicy) -> Ppk | None:
    """The one that an initiator names."""
    is_now = sa.ppk_exchange is ExchangeType.IKE_AUTH
    return tunnel.ppks[0] if is_now and tunnel.ppks else None


def keys_with(sa: IkeSa, ppk: Ppk | None) -> IkeKeys:
    assert sa.keys is not None
    assert sa.suite is not None
    return sa.keys if ppk is None else mix_in_ppk(sa.suite, sa.keys, ppk.key.octets)


def name_ppk(ppk: Ppk) -> NotifyPayload:
    return NotifyPayload(type=NotifyType.PPK_IDENTITY, data=_name(ppk))


def no_ppk_auth(without: AuthPayload) -> NotifyPayload:
    """AUTH as it is without such a key."""
    return NotifyPayload(type=NotifyType.NO_PPK_AUTH, data=without.data)


def take_ppk_answer(sa: IkeSa, tunnel: TunnelPolicy, payloads: tuple[OpenPayload, ...]) -> None:
    """Whether the responder has the key that we named, which is then in the keys.

    Raises `AuthenticationFailed` if it does not and our policy requires it.
    """
    ppk = our_ppk(sa, tunnel)
    confirmed = _named_once(payloads) is not None
    if confirmed and ppk is None:
        raise PeerMisbehaved("PPK_IDENTITY without a PPK that we have named")
    if ppk is not None and confirmed:
        _use(sa, ppk)
    elif ppk is not None and tunnel.ppk_required:
        summary = "the peer does not have the post-quantum preshared key that we named"
        raise AuthenticationFailed(_required(summary, tunnel))


# IKE_AUTH, the responder's side.


def verify_with_ppk(
    sa: IkeSa,
    tunnel: TunnelPolicy,
    identity: Identity,
    payloads: tuple[OpenPayload, ...],
    verify: Verify,
) -> None:
    """Verify who the initiator is, with the key that it names in the keys from now on.

    Our operator is told if it is the post-quantum preshared key that differs, and that alone.
    """
    plain, without = sa.keys, without_ppk(payloads)
    proof = _settle_ppk(sa, tunnel, payloads)
    try:
        verify(proof)
    except AuthenticationFailed as failed:
        if not sa.ppk_id or without is None:
            raise with_ppk(failed, sa, tunnel) from failed
        try:
            verify(without, plain)
        except AuthenticationFailed:
            raise with_ppk(failed, sa, tunnel) from failed
        summary = "the peer proves who it is, but not that it has our post-quantum preshared key"
        evidence = (("their identity", str(identity)), *evidence_of(sa, tunnel))
        failure = Failure(code="XF2034", summary=summary, evidence=evidence)
        raise AuthenticationFailed(failure) from failed


def _settle_ppk(
    sa: IkeSa, tunnel: TunnelPolicy, payloads: tuple[OpenPayload, ...]
) -> tuple[OpenPayload, ...]:
    """The key that the initiator named goes into the keys; gives the payloads to verify by them.

    Without such a key AUTH is what NO_PPK_AUTH has, if it is there (Table 2). Raises
    `AuthenticationFailed` if our policy or the initiator does not do without.
    """
    if sa.resumed is not None:
        return payloads
    if sa.ppk_exchange is ExchangeType.IKE_INTERMEDIATE:
        _check_choice(sa, tunnel)
        return payloads
    named = None if sa.ppk_exchange is None else _named_once(payloads)
    has_rounds = bool(tunnel.rounds) or sa.rounds is not None
    ppk = next((p for p in tunnel.ppks if named == _name(p) and not has_rounds), None)
    if ppk is not None:
        _use(sa, ppk)
        return payloads
    if tunnel.ppk_required:
        said = "names none" if named is None else f"names {_shown(named)}"
        summary = f"our policy requires a post-quantum preshared key of ours, and the peer {said}"
        raise AuthenticationFailed(_required(summary, tunnel))
    if named is None:
        return payloads
    without = without_ppk(payloads)
    if without is None:
        summary = f"we do not have {_shown(named)}, which the peer requires"
        raise AuthenticationFailed(_required(summary, tunnel))
    return without


def without_ppk(payloads: tuple[OpenPayload, ...]) -> tuple[OpenPayload, ...] | None:
    """An initiator's payloads as they are with no such key in the keys, if it says that.

    NO_PPK_AUTH is made by the method that AUTH names (section 3): it takes the place of its data.
    """
    found = notifications(payloads, NotifyType.NO_PPK_AUTH)
    if not found:
        return None
    return tuple(
        replace(p, data=found[0].data) if isinstance(p, AuthPayload) else p for p in payloads
    )


def confirm_ppk(sa: IkeSa) -> tuple[NotifyPayload, ...]:
    """A responder says that the key is in the keys."""
    is_new = sa.ppk_id and sa.ppk_exchange is ExchangeType.IKE_AUTH
    return (NotifyPayload(type=NotifyType.PPK_IDENTITY),) if is_new else ()


def with_ppk(failed: AuthenticationFailed, sa: IkeSa, tunnel: TunnelPolicy) -> AuthenticationFailed:
    """The failure, and which post-quantum preshared key was in it."""
    evidence = (*failed.failure.evidence, *evidence_of(sa, tunnel))
    return AuthenticationFailed(replace(failed.failure, evidence=evidence))


def evidence_of(sa: IkeSa, tunnel: TunnelPolicy) -> tuple[tuple[str, str], ...]:
    """Which key is, or would be, in the keys, for a failure to authenticate."""
    if sa.resumed is not None:
        return ()
    ppk = our_ppk(sa, tunnel) if sa.is_initiator else None
    ppk = ppk or next((p for p in tunnel.ppks if p.id == sa.ppk_id), None)
    return () if ppk is None else (("our PPK", str(ppk)),)


def _use(sa: IkeSa, ppk: Ppk) -> None:
    sa.keys, sa.ppk_id = keys_with(sa, ppk), ppk.id


def _named_once(payloads: tuple[OpenPayload, ...]) -> bytes | None:
    """The data of PPK_IDENTITY: the name, or nothing where it confirms one."""
    found = notifications(payloads, NotifyType.PPK_IDENTITY)
    if len(found) > 1:
        raise PeerMisbehaved("PPK_IDENTITY is there more than once")
    return found[0].data if found else None


def _shown(named: bytes) -> str:
    """A name of the peer's for our log: nothing but harmless text is shown as such."""
    text = named[1:].decode("ascii", "replace")
    is_text = named[:1] == bytes([PPK_ID_FIXED]) and text.isprintable() and text.isascii()
    return f"'{text[:64]}'" if is_text else f"0x{named[:64].hex()}"


def _required(summary: str, tunnel: TunnelPolicy) -> Failure:
    evidence = (("our PPKs", listed(tunnel.ppks)),)
    return Failure(code="XF2033", summary=summary, evidence=evidence)
