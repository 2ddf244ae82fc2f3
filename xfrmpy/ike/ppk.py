"""Post-quantum preshared keys: a second secret of both ends, mixed into the keys (RFC 8784).

Read RFC 8784 sections 3 and 5.1 first. The ends tell each other in IKE_SA_INIT that they use them;
the initiator names one in IKE_AUTH, and the responder says whether that is in the keys. An
initiator that can do without sends, beside AUTH, what AUTH would be without (NO_PPK_AUTH). Rekeyed
and resumed IKE SAs follow from keys that have it already. How AUTH is made is the business of
`auth`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xfrmpy.crypto.key_schedule import IkeKeys, mix_in_ppk
from xfrmpy.failures import Failure
from xfrmpy.ike.errors import AuthenticationFailed, PeerIncompatible, PeerMisbehaved
from xfrmpy.ike.evidence import listed
from xfrmpy.ike.exchange import notifications
from xfrmpy.policy.model import Ppk, TunnelPolicy
from xfrmpy.registry import NotifyType
from xfrmpy.wire.payloads import AuthPayload, NotifyPayload, OpenPayload

if TYPE_CHECKING:
    from xfrmpy.ike.candidates import Candidates
    from xfrmpy.ike.ike_sa import IkeSa
    from xfrmpy.ipsec.addresses import Path

PPK_ID_FIXED = 2
"""The type of a PPK_ID that names one key for good (section 5.1). Others are names that we do not
have."""

USE_PPK = NotifyPayload(type=NotifyType.USE_PPK)


# IKE_SA_INIT.


def offer_ppk(tunnel: TunnelPolicy) -> tuple[NotifyPayload, ...]:
    return (USE_PPK,) if tunnel.ppks else ()


def supports_ppk(payloads: tuple[OpenPayload, ...]) -> bool:
    return bool(notifications(payloads, NotifyType.USE_PPK))


def refusal_without_ppk(tunnel: TunnelPolicy, payloads: tuple[OpenPayload, ...]) -> Failure | None:
    """Why an initiator does not go on with a responder that uses none."""
    if not tunnel.ppk_required or supports_ppk(payloads):
        return None
    return _required("the peer uses no post-quantum preshared keys", tunnel)


def answer_ppk(
    candidates: Candidates, payloads: tuple[OpenPayload, ...], path: Path
) -> tuple[NotifyPayload, ...]:
    """A responder's answer. Raises `PeerIncompatible` if no tunnel does without (Table 1)."""
    if supports_ppk(payloads):
        return (USE_PPK,) if candidates.has_ppk else ()
    if candidates.requires_ppk:
        summary = f"{path.remote} uses no post-quantum preshared keys, and our policy requires one"
        raise PeerIncompatible.of("XF2033", summary, NotifyType.NO_PROPOSAL_CHOSEN)
    return ()


# IKE_AUTH, the initiator's side.


def our_ppk(sa: IkeSa, tunnel: TunnelPolicy) -> Ppk | None:
    """The one that an initiator names."""
    return tunnel.ppks[0] if sa.uses_ppk and tunnel.ppks else None


def keys_with(sa: IkeSa, ppk: Ppk | None) -> IkeKeys:
    assert sa.keys is not None
    assert sa.suite is not None
    return sa.keys if ppk is None else mix_in_ppk(sa.suite, sa.keys, ppk.key.octets)


def name_ppk(ppk: Ppk) -> NotifyPayload:
    data = bytes([PPK_ID_FIXED]) + ppk.id_octets
    return NotifyPayload(type=NotifyType.PPK_IDENTITY, data=data)


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
    elif tunnel.ppk_required and sa.resumed is None:
        summary = "the peer does not have the post-quantum preshared key that we named"
        raise AuthenticationFailed(_required(summary, tunnel))


# IKE_AUTH, the responder's side.


def settle_ppk(
    sa: IkeSa, tunnel: TunnelPolicy, payloads: tuple[OpenPayload, ...]
) -> tuple[OpenPayload, ...]:
    """The key that the initiator named goes into the keys; gives the payloads to verify by them.

    Without such a key AUTH is what NO_PPK_AUTH has, if it is there (Table 2). Raises
    `AuthenticationFailed` if our policy or the initiator does not do without.
    """
    if sa.resumed is not None:
        return payloads
    named = _named_once(payloads) if sa.uses_ppk else None
    ppk = next((p for p in tunnel.ppks if named == bytes([PPK_ID_FIXED]) + p.id_octets), None)
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
    is_new = sa.ppk_id and sa.resumed is None
    return (NotifyPayload(type=NotifyType.PPK_IDENTITY),) if is_new else ()


def evidence_of(sa: IkeSa, tunnel: TunnelPolicy) -> tuple[tuple[str, str], ...]:
    """Which key is, or would be, in the keys, for a failure to authenticate."""
    if sa.resumed is not None:
        return ()
    if sa.is_initiator:
        ppk = our_ppk(sa, tunnel)
    else:
        ppk = next((p for p in tunnel.ppks if p.id == sa.ppk_id), None)
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
