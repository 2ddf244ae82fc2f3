"""IKE_AUTH, the responder's side: who calls, the tunnel that is meant, and the first Child SA.

Read RFC 7296 sections 1.2, 2.15, 2.16 and 2.21.2 first. See `auth`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from xfrmpy.failures import Failure
from xfrmpy.ike.auth import install_first_child, our_identity, refused_by_datapath
from xfrmpy.ike.auth_methods import heard_methods
from xfrmpy.ike.child_sa import ChildSa, proposals_of_first_child
from xfrmpy.ike.childless import child_offer
from xfrmpy.ike.create_child_sa import give_up_child
from xfrmpy.ike.eap_responder import (
    Authenticated,
    begin_eap,
    continue_by_eap,
    prove_again_before_eap,
    take_eap,
)
from xfrmpy.ike.errors import AuthenticationFailed, PeerIncompatible, PeerMisbehaved
from xfrmpy.ike.evidence import listed
from xfrmpy.ike.exchange import only, optional
from xfrmpy.ike.extensions import offer_in_auth, take_notifications
from xfrmpy.ike.first_contact import check_unique, close_replaced
from xfrmpy.ike.inquiries import settle_status
from xfrmpy.ike.lookups import look_up, names_certificates
from xfrmpy.ike.modes import (
    check_mode_asked,
    check_passage_asked,
)
from xfrmpy.ike.outputs import RequestRefused
from xfrmpy.ike.ppk import confirm_ppk, verify_with_ppk
from xfrmpy.ike.proof import Proof, check_identity, prove, verify_proof
from xfrmpy.ike.redirect import redirect_in_auth
from xfrmpy.ike.resources import expect_more
from xfrmpy.ike.resumption import settle_resumption, tunnel_of_resumed
from xfrmpy.ike.rounds import (
    RoundsServing,
    another_of_ours,
    check_another,
    check_support,
    has_more_rounds,
    left_out,
    says_another,
)
from xfrmpy.ike.synchronization import SYNC_SUPPORTED, supports_sync
from xfrmpy.ike.window_size import WINDOW_SIZE
from xfrmpy.ipsec.identity import NOBODY, Identity
from xfrmpy.ipsec.proposals import KEY_EXCHANGES, Proposal, choose_proposal
from xfrmpy.policy.model import TunnelPolicy
from xfrmpy.registry import AuthenticationMethod, NotifyType
from xfrmpy.wire.payloads import (
    AuthPayload,
    CertreqPayload,
    IdiPayload,
    IdrPayload,
    NotifyPayload,
    OpenPayload,
    SaPayload,
)

if TYPE_CHECKING:
    from xfrmpy.ike.candidates import Candidates
    from xfrmpy.ike.ike_sa import IkeSa

REAUTH_PATIENCE_SECONDS = 2.0
"""How long a responder goes on sending on the Child SA of an older IKE SA. An initiator that makes
a new one deletes the old one at once (RFC 7296 section 2.8.3); one that has lost it does not."""


def answer_ike_auth(sa: IkeSa, payloads: tuple[OpenPayload, ...], now: float) -> None:
    """The responder's side: authenticate, then the first Child SA, then answer."""
    if sa.transcript.pending:
        raise PeerMisbehaved("IKE_AUTH before the key exchanges that were agreed on")
    by_url = _certified_by_url(sa, payloads)
    if by_url is None:
        _take(sa, payloads, now)
    else:
        refuse = partial(_refuse_initiator, sa)
        look_up(sa, by_url, payloads, partial(_take, sa), refuse, now)


def _certified_by_url(sa: IkeSa, payloads: tuple[OpenPayload, ...]) -> TunnelPolicy | None:
    """The policy of an initiator that signs, and names its certificates by URLs."""
    auth = optional(payloads, AuthPayload)
    if auth is None or sa.eap_serving is not None or not names_certificates(payloads):
        return None
    if sa.rounds is not None:
        return sa.rounds.made.tunnel.in_round(sa.rounds.number)
    try:
        return _tunnel_meant(sa, payloads, auth)[0]
    except AuthenticationFailed:
        return None


def _take(sa: IkeSa, payloads: tuple[OpenPayload, ...], now: float) -> None:
    """With the peer's certificates in it, which may have had to be fetched."""
    try:
        if sa.eap_serving is not None:
            made = take_eap(sa, sa.eap_serving, payloads, now)
        elif sa.rounds is not None:
            made = _authenticate_again(sa, sa.rounds, payloads, now)
        else:
            made = _authenticate_initiator(sa, payloads, now)
        if made is not None and sa.rounds is not None:
            made = sa.rounds.joined(made)
        if made is not None:
            check_unique(sa, made.tunnel, made.remote, made.request)
    except AuthenticationFailed as failed:
        _refuse_initiator(sa, failed, now)
        return
    if made is not None:
        settle_status(sa, partial(_prove_to, sa, made), partial(_refuse_initiator, sa), now)


def _prove_to(sa: IkeSa, made: Authenticated, now: float) -> None:
    """The peer has proved who it is: now it is our turn, unless we have done so by EAP, or prove
    nothing in this round."""
    number = _number_of_round(sa)
    if made.proof or not made.tunnel.we_prove(number):
        _go_on(sa, made, now)
        return
    of_round = made.tunnel.in_round(number)
    idr = IdrPayload(identity=our_identity(sa, of_round))

    def proved(proof: Proof, moment: float) -> None:
        payloads: tuple[OpenPayload, ...] = (idr, *proof.certs, proof.auth, *confirm_ppk(sa))
        _go_on(sa, replace(made, proof=payloads), moment)

    refuse = partial(_refuse_initiator, sa)
    prove(sa, of_round, idr, _requests(made.request), proved, refuse, now)


def _go_on(sa: IkeSa, made: Authenticated, now: float) -> None:
    """Another round, or that was the last."""
    number = _number_of_round(sa)
    if not has_more_rounds(sa, made.tunnel, number):
        _establish(sa, made, now)
        return
    said = next((p.identity for p in made.proof if isinstance(p, IdrPayload)), None)
    if said is None:
        assert sa.rounds is not None
        said = sa.rounds.said
    sa.rounds = RoundsServing(made=made, number=number + 1, said=said)
    sa.respond((*made.proof, *another_of_ours(made.tunnel, number)))


def _number_of_round(sa: IkeSa) -> int:
    return 0 if sa.rounds is None else sa.rounds.number


def _requests(payloads: tuple[OpenPayload, ...]) -> tuple[CertreqPayload, ...]:
    return tuple(p for p in payloads if isinstance(p, CertreqPayload))


def _refuse_initiator(sa: IkeSa, failed: AuthenticationFailed, now: float) -> None:
    sa.respond((NotifyPayload(type=NotifyType.AUTHENTICATION_FAILED),))
    sa.close(failed.failure, now)


def _establish(sa: IkeSa, made: Authenticated, now: float) -> None:
    """The peer has proved who it is: the IKE SA stands, and its first Child SA is made."""
    tunnel, payloads = made.tunnel, made.request
    offer = child_offer(sa, tunnel, payloads)
    sa.authenticated(tunnel, local=made.local, remote=made.remote, now=now)
    if made.session_seconds is not None:
        sa.limit_authentication(made.session_seconds, now)
    sa.channel.may_sync = supports_sync(payloads)
    redirect = redirect_in_auth(sa, tunnel)
    if redirect is not None:
        sa.respond((*made.proof, redirect))
        sa.expect_child(now)
        return
    close_replaced(sa, payloads, now)
    proof = (*made.proof, *offer_in_auth(sa), *take_notifications(sa, payloads, now))
    if offer is None:
        sa.respond((*proof, *_abilities(sa)))
        sa.expect_child(now)
        return
    wanted, policy, traffic = offer
    child = ChildSa(sa.core, tunnel, policy, proposals_of_first_child(policy))
    sa.children.append(child)
    try:
        check_mode_asked(policy, traffic)
        check_passage_asked(policy, sa.nat)
        child.choose(_without_key_exchange(wanted), traffic)
    except PeerIncompatible as incompatible:
        _refuse_child(sa, child, (*proof, incompatible.notify), incompatible.failure, now)
        return
    install_first_child(sa, child, sends=not child.is_rival)
    sa.core.defer(sa, lambda moment: _finish_answer(sa, child, proof, moment), now)


def _finish_answer(sa: IkeSa, child: ChildSa, proof: tuple[OpenPayload, ...], now: float) -> None:
    """The datapath has done its part, or refused."""
    if child.failure:
        notify = NotifyPayload(type=NotifyType.TEMPORARY_FAILURE)
        _refuse_child(sa, child, (*proof, notify), refused_by_datapath(child), now)
        return
    sa.respond((*proof, *child.answer(), *_abilities(sa)))
    child.established(now)
    expect_more(sa, child, now)
    if not child.sends:
        child.wait_until = now + REAUTH_PATIENCE_SECONDS


def _refuse_child(
    sa: IkeSa, child: ChildSa, answer: tuple[OpenPayload, ...], failure: Failure, now: float
) -> None:
    """The IKE SA stands all the same (section 1.2), and waits for a Child SA that fits better."""
    give_up_child(sa, child)
    sa.respond(answer)
    sa.expect_child(now)
    sa.core.emit(RequestRefused(tunnel=sa.tunnel_name, path=sa.path, failure=failure))


def _abilities(sa: IkeSa) -> tuple[NotifyPayload, ...]:
    """What we can do besides, at the end of our answer."""
    return (WINDOW_SIZE, SYNC_SUPPORTED) if sa.channel.may_sync else (WINDOW_SIZE,)


def _without_key_exchange(offer: SaPayload) -> tuple[Proposal, ...]:
    """Some peers offer in IKE_AUTH what they will want later; there is no KE payload for it."""
    return tuple(p.without(*KEY_EXCHANGES) for p in offer.proposals)


def _authenticate_initiator(
    sa: IkeSa, payloads: tuple[OpenPayload, ...], now: float
) -> Authenticated | None:
    """Find the tunnel by the identities, and verify that the peer has its key.

    None if it is to prove itself by EAP, which has begun.
    """
    idi = only(payloads, IdiPayload)
    sa.heard = replace(sa.heard, methods=heard_methods(payloads))
    auth = optional(payloads, AuthPayload)
    if auth is None and sa.resumed is None:
        asked = optional(payloads, IdrPayload)
        wanted = None if asked is None else asked.identity
        tunnels = _tunnels_with_eap(sa, idi.identity, wanted)
        ours, refuse = our_identity(sa, tunnels[0]), partial(_refuse_initiator, sa)
        begin_eap(sa, tunnels, ours, payloads, refuse, now)
        return None
    tunnel, remote = _tunnel_meant(sa, payloads, auth)
    verify_with_ppk(sa, tunnel, idi.identity, payloads, partial(verify_proof, sa, tunnel, idi))
    if sa.resumed is None:
        check_another(tunnel, 0, payloads)
        check_support(tunnel, payloads)
    else:
        settle_resumption(sa, sa.resumed, now)
    local = our_identity(sa, tunnel)
    return Authenticated(tunnel=tunnel, local=local, remote=remote, request=payloads)


def _tunnel_meant(
    sa: IkeSa, payloads: tuple[OpenPayload, ...], auth: AuthPayload | None
) -> tuple[TunnelPolicy, Identity]:
    """The tunnel of an initiator that does without EAP, and who that says it is.

    Raises `AuthenticationFailed` if there is none.
    """
    idi, asked = only(payloads, IdiPayload), optional(payloads, IdrPayload)
    wanted = None if asked is None else asked.identity
    is_null = auth is not None and auth.method == AuthenticationMethod.NULL
    remote = NOBODY if is_null else idi.identity
    has_another = says_another(payloads)
    tunnel = _tunnel_of(sa, remote, wanted, is_null=is_null, has_another=has_another)
    return tunnel, remote


def _authenticate_again(
    sa: IkeSa, serving: RoundsServing, payloads: tuple[OpenPayload, ...], now: float
) -> Authenticated | None:
    """A further round, with who has proved itself before; None if EAP has begun in it."""
    tunnel, number = serving.made.tunnel, serving.number
    of_round = tunnel.in_round(number)
    if of_round.remote_eap is not None:
        _continue_by_eap(sa, serving, of_round, payloads, now)
        return None
    if tunnel.they_prove(number):
        if optional(payloads, AuthPayload) is None:
            raise left_out(tunnel, number)
        idi = only(payloads, IdiPayload)
        verify_proof(sa, of_round, idi, payloads)
        check_identity(of_round, idi.identity)
    check_another(tunnel, number, payloads)
    return replace(serving.made, request=(), proof=())


def _continue_by_eap(
    sa: IkeSa,
    serving: RoundsServing,
    of_round: TunnelPolicy,
    payloads: tuple[OpenPayload, ...],
    now: float,
) -> None:
    if not serving.made.tunnel.we_prove(serving.number):
        continue_by_eap(sa, of_round, serving.said, payloads, now)
        return
    local, requests = our_identity(sa, of_round), _requests(serving.made.request)
    refuse = partial(_refuse_initiator, sa)
    prove_again_before_eap(sa, of_round, local, payloads, requests, refuse, now)


def _tunnel_of(
    sa: IkeSa, initiator: Identity, wanted: Identity | None, *, is_null: bool, has_another: bool
) -> TunnelPolicy:
    """By the identities, and by whether the initiator proves itself once more.

    One that proves nothing gets a tunnel that asks for that, whoever it says that it is: "MUST NOT
    be used for any trust and policy checking" (RFC 7619 section 2.2).
    """
    if sa.resumed is not None:
        return tunnel_of_resumed(sa.resumed, initiator, wanted)
    candidates = sa.core.tunnel_index.candidates(sa.path)
    found = [
        tunnel
        for tunnel in candidates.of_peer(initiator)
        if tunnel.remote_null == is_null and tunnel.credential is None
        if _is_meant(sa, tunnel, wanted)
    ]
    if found:
        return next((t for t in found if t.they_prove(1) == has_another), found[0])
    raise _no_tunnel(sa, candidates, initiator, wanted)


def _tunnels_with_eap(
    sa: IkeSa, initiator: Identity, wanted: Identity | None
) -> tuple[TunnelPolicy, ...]:
    """The first whose peers prove themselves by EAP, and those that differ from it in no way that
    matters before it is known who that is. Raises `AuthenticationFailed`."""
    candidates = sa.core.tunnel_index.candidates(sa.path)
    found = [t for t in candidates.with_eap if _is_meant(sa, t, wanted)]
    if not found:
        failed = _no_tunnel(sa, candidates, initiator, wanted)
        summary = f"{initiator} wants to authenticate by EAP, and no tunnel of ours accepts that"
        raise AuthenticationFailed(replace(failed.failure, summary=summary))
    return tuple(t for t in found if _authentication(t) == _authentication(found[0]))


def _authentication(tunnel: TunnelPolicy) -> object:
    """All that both ends do until it is known who the peer is."""
    eap = tunnel.remote_eap
    return (
        *(tunnel.local_id, tunnel.local_key, tunnel.local_certificates, tunnel.shared_key),
        eap and (eap.methods, eap.users, eap.server, eap.alone),
    )


def _is_meant(sa: IkeSa, tunnel: TunnelPolicy, wanted: Identity | None) -> bool:
    """Whether a tunnel is with who the initiator wants us to be, by what IKE_SA_INIT has chosen."""
    ours = our_identity(sa, tunnel)
    is_ours = wanted is None or wanted.comparable == ours.comparable
    return is_ours and _accepts_suite(sa, tunnel)


def _no_tunnel(
    sa: IkeSa, candidates: Candidates, initiator: Identity, wanted: Identity | None
) -> AuthenticationFailed:
    return AuthenticationFailed(
        Failure(
            code="XF2007",
            summary=f"no tunnel of ours is for {initiator}",
            evidence=(
                ("they are", str(initiator)),
                ("they want", "anybody" if wanted is None else str(wanted)),
                ("we expect", listed(t.remote_id or "users" for t in candidates.policies)),
                ("we are", listed(our_identity(sa, t) for t in candidates.policies)),
            ),
        )
    )


def _accepts_suite(sa: IkeSa, tunnel: TunnelPolicy) -> bool:
    """IKE_SA_INIT chose before the tunnel was known; the tunnel must agree with the choice."""
    return sa.proposal is not None and choose_proposal((sa.proposal,), tunnel.proposals) is not None
