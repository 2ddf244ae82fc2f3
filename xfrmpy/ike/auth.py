"""IKE_AUTH in both roles, and the first Child SA in it.

Read RFC 7296 sections 1.2, 2.15, 2.16 and 2.21.2 first. An IKE SA is established here and nowhere
else, and only after the peer's AUTH has been verified.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from xfrmpy.crypto.key_schedule import IkeKeys, derive_child_keys
from xfrmpy.failures import Failure
from xfrmpy.ike.auth_methods import announce, expectations, heard_methods
from xfrmpy.ike.child_sa import ChildSa, proposals_of_first_child
from xfrmpy.ike.childless import begins_childless, child_offer
from xfrmpy.ike.create_child_sa import give_up_child
from xfrmpy.ike.credentials import certificate_requests
from xfrmpy.ike.demand import take_first_child
from xfrmpy.ike.eap_initiator import EapDialogue
from xfrmpy.ike.eap_responder import Authenticated, begin_eap, take_eap
from xfrmpy.ike.errors import AuthenticationFailed, PeerIncompatible, PeerMisbehaved
from xfrmpy.ike.evidence import listed
from xfrmpy.ike.exchange import first_error, only, optional
from xfrmpy.ike.extensions import offer_in_auth, take_notifications
from xfrmpy.ike.first_contact import check_unique, close_replaced, initial_contact
from xfrmpy.ike.inquiries import settle_status
from xfrmpy.ike.modes import (
    check_mode_answered,
    check_mode_asked,
    check_passage_asked,
    ends_of,
    policy_between,
    traffic_of,
)
from xfrmpy.ike.outputs import RequestRefused
from xfrmpy.ike.ppk import (
    confirm_ppk,
    evidence_of,
    keys_with,
    name_ppk,
    our_ppk,
    settle_ppk,
    take_ppk_answer,
    without_ppk,
)
from xfrmpy.ike.proof import (
    Proof,
    accepted_by_peer,
    check_identity,
    key_origin,
    prove,
    verify_proof,
)
from xfrmpy.ike.redirect import redirect_in_auth, redirect_of_auth, refusal_to_follow
from xfrmpy.ike.refusals import failure_of
from xfrmpy.ike.resources import expect_more
from xfrmpy.ike.resumption import settle_resumption, tunnel_of_resumed
from xfrmpy.ike.synchronization import SYNC_SUPPORTED, supports_sync
from xfrmpy.ike.window_size import WINDOW_SIZE
from xfrmpy.ipsec.identity import NOBODY, Identity
from xfrmpy.ipsec.proposals import KEY_EXCHANGES, Proposal, child_suite, choose_proposal
from xfrmpy.pki.verdicts import Problem
from xfrmpy.policy.model import Ppk, TunnelPolicy
from xfrmpy.registry import AuthenticationMethod, ExchangeType, NotifyType
from xfrmpy.wire.payloads import (
    AuthPayload,
    CertPayload,
    CertreqPayload,
    IdiPayload,
    IdrPayload,
    NotifyPayload,
    OpenPayload,
    PuzzleSolutionPayload,
    SaPayload,
)

if TYPE_CHECKING:
    from xfrmpy.ike.candidates import Candidates
    from xfrmpy.ike.ike_sa import IkeSa
    from xfrmpy.wire.redirect import Gateway


REAUTH_PATIENCE_SECONDS = 2.0
"""How long a responder goes on sending on the Child SA of an older IKE SA. An initiator that makes
a new one deletes the old one at once (RFC 7296 section 2.8.3); one that has lost it does not."""


class IkeAuth:
    """The initiator's side; `solution` is of the puzzle that came with IKE_SA_INIT, if one did."""

    type: ClassVar[ExchangeType] = ExchangeType.IKE_AUTH

    def __init__(
        self, sa: IkeSa, tunnel: TunnelPolicy, solution: PuzzleSolutionPayload | None = None
    ) -> None:
        self._sa = sa
        self._tunnel = tunnel
        self._solution = () if solution is None else (solution,)
        self._identity = IdiPayload(identity=_our_identity(sa, tunnel))
        eap = tunnel.local_eap if sa.resumed is None else None
        self._eap = None if eap is None else EapDialogue(eap)
        self._proof: tuple[OpenPayload, ...] = ()
        self._certs: tuple[CertPayload, ...] = ()
        self._child: ChildSa | None = None
        if not begins_childless(sa, tunnel):
            wanted, packet = take_first_child(sa, tunnel)
            first = policy_between(wanted, sa.path)
            proposals = proposals_of_first_child(first)
            self._child = ChildSa(sa.core, tunnel, first, proposals, packet=packet)
            sa.children.append(self._child)

    @property
    def is_amid_eap(self) -> bool:
        """Whether the peer cannot have established anything yet: our AUTH is to come."""
        return self._eap is not None and self._eap.msk is None

    def begin(self, now: float) -> None:
        """Send it, as soon as there is what proves who we are; without AUTH it asks for EAP."""
        if self._eap is not None:
            self._send((), self._eap.announcement(), now=now)
            return
        ppk = our_ppk(self._sa, self._tunnel)
        self._prove(partial(self._proved, ppk), now, keys_with(self._sa, ppk))

    def _prove(
        self, then: Callable[[Proof, float], None], now: float, keys: IkeKeys | None = None
    ) -> None:
        sa = self._sa
        prove(sa, self._tunnel, self._identity, sa.heard.requests, then, self._give_up, now, keys)

    def _proved(self, ppk: Ppk | None, proof: Proof, now: float) -> None:
        """With the post-quantum preshared key, if there is one; and without, if it need not be."""
        named = () if ppk is None else (name_ppk(ppk),)

        def proved_without(without: Proof, moment: float) -> None:
            spare = NotifyPayload(type=NotifyType.NO_PPK_AUTH, data=without.auth.data)
            self._send(proof.certs, (proof.auth, *named, spare), now=moment)

        if ppk is None or self._tunnel.ppk_required:
            self._send(proof.certs, (proof.auth, *named), now=now)
        else:
            self._prove(proved_without, now)

    def _send(
        self, certs: tuple[CertPayload, ...], proof: tuple[OpenPayload, ...], *, now: float
    ) -> None:
        self._certs, self._proof = certs, proof
        self._sa.start(self, now)

    def _give_up(self, failed: AuthenticationFailed, now: float) -> None:
        """The peer has not heard who we are; it forgets what is half open."""
        self._sa.close(failed.failure, now)

    def request(self) -> tuple[OpenPayload, ...]:
        sa, tunnel = self._sa, self._tunnel
        if self._eap is not None and self._eap.has_begun:
            return self._eap.request(sa, self._identity)
        payloads: list[OpenPayload] = [self._identity, *self._certs]
        payloads += initial_contact(sa, tunnel)
        if sa.resumed is None:
            payloads += certificate_requests((tunnel,))
            payloads += announce(expectations((tunnel,)), sa.core.signatures)
        if tunnel.remote_id is not None and not (tunnel.remote_null or tunnel.remote_id.is_pattern):
            payloads.append(IdrPayload(identity=tunnel.remote_id))
        payloads += self._proof
        child = () if self._child is None else self._child.offer()
        extensions = offer_in_auth(self._sa)
        abilities = (WINDOW_SIZE, SYNC_SUPPORTED)
        return (*self._solution, *payloads, *extensions, *child, *abilities)

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        error = first_error(payloads)
        if error is not None and optional(payloads, AuthPayload) is None:
            self._sa.close(failure_of(error, self._evidence(error)), now)
            return
        try:
            remote = self._authenticate(payloads)
        except AuthenticationFailed as failed:
            self._refuse(failed, now)
            return
        settle_status(self._sa, partial(self._go_on, payloads, remote), self._refuse, now)

    def _refuse(self, failed: AuthenticationFailed, now: float) -> None:
        refusal = NotifyPayload(type=NotifyType.AUTHENTICATION_FAILED)
        if failed.failure.code == Problem.REVOKED.value and self._sa.replaces is not None:
            self._sa.replaces.terminate(failed.failure, now)
        self._sa.terminate(failed.failure, now, refusal)

    def _go_on(
        self, payloads: tuple[OpenPayload, ...], remote: Identity | None, now: float
    ) -> None:
        if remote is None:
            self._sa.start(self, now)
            return
        error = first_error(payloads)
        self._sa.authenticated(self._tunnel, local=self._identity.identity, remote=remote, now=now)
        self._sa.channel.may_sync = supports_sync(payloads)
        if error is not None and error.type != NotifyType.SINGLE_PAIR_REQUIRED:
            self._sa.terminate(failure_of(error, self._evidence(error)), now)
            return
        gateway = redirect_of_auth(payloads)
        if gateway is not None:
            self._follow(gateway, now)
            return
        close_replaced(self._sa, payloads, now)
        take_notifications(self._sa, payloads, now)
        if self._child is not None and error is not None:
            give_up_child(self._sa, self._child)
            self._child, self._sa.asks_pairs = None, True
        if self._child is None:
            self._begin_children(now)
        else:
            self._take_child(self._child, payloads, now)

    def _begin_children(self, now: float) -> None:
        """The IKE SA stands without a Child SA: CREATE_CHILD_SA makes them."""
        self._sa.expect_child(now)
        self._sa.create_at = now

    def _take_child(self, child: ChildSa, payloads: tuple[OpenPayload, ...], now: float) -> None:
        traffic = traffic_of(payloads, ends_of(self._sa), is_initiator=True)
        unacceptable = check_mode_answered(child.policy, traffic)
        if unacceptable is not None:
            self._sa.terminate(unacceptable, now)
            return
        child.accept(only(payloads, SaPayload), traffic)
        install_first_child(self._sa, child)
        self._sa.core.defer(self._sa, lambda moment: self._finish(child, moment), now)

    def _follow(self, gateway: Gateway, now: float) -> None:
        failure = refusal_to_follow(self._sa, self._tunnel, gateway, now)
        if failure is None:
            self._sa.redirected(gateway, now)
        else:
            self._sa.terminate(failure, now)

    def _authenticate(self, payloads: tuple[OpenPayload, ...]) -> Identity | None:
        """Who the peer has proved to be; None if EAP goes on before that is all."""
        if self._eap is not None:
            proved = self._eap.take(self._sa, self._tunnel, payloads)
            return None if proved is None else proved.identity
        idr = only(payloads, IdrPayload)
        take_ppk_answer(self._sa, self._tunnel, payloads)
        try:
            verify_proof(self._sa, self._tunnel, idr, payloads)
        except AuthenticationFailed as failed:
            raise _with_ppk(failed, self._sa, self._tunnel) from failed
        check_identity(self._tunnel, idr.identity)
        return NOBODY if self._tunnel.remote_null else idr.identity

    def _finish(self, child: ChildSa, now: float) -> None:
        if child.failure:
            self._sa.terminate(_refused_by_datapath(child), now)
        else:
            child.established(now)
            self._sa.create_at = now
            expect_more(self._sa, child, now)

    def _evidence(self, error: NotifyPayload) -> tuple[tuple[str, str], ...]:
        """What we sent of the thing that the peer did not like."""
        child = self._tunnel.children[0] if self._child is None else self._child.policy
        if error.type == NotifyType.NO_PROPOSAL_CHOSEN:
            return (("we offered", ", ".join(map(str, child.proposals))),)
        if error.type == NotifyType.TS_UNACCEPTABLE:
            return (
                ("our local", ", ".join(map(str, child.local))),
                ("our remote", ", ".join(map(str, child.remote))),
            )
        return (
            ("our identity", str(self._identity.identity)),
            ("the identity we expect", str(self._tunnel.remote_id)),
            ("our key", key_origin(self._tunnel)),
            *accepted_by_peer(self._sa),
            *evidence_of(self._sa, self._tunnel),
        )


def answer_ike_auth(sa: IkeSa, payloads: tuple[OpenPayload, ...], now: float) -> None:
    """The responder's side: authenticate, then the first Child SA, then answer."""
    if sa.transcript.pending:
        raise PeerMisbehaved("IKE_AUTH before the key exchanges that were agreed on")
    try:
        if sa.eap_serving is not None:
            made = take_eap(sa, sa.eap_serving, payloads, now)
        else:
            made = _authenticate_initiator(sa, payloads, now)
    except AuthenticationFailed as failed:
        _refuse_initiator(sa, failed, now)
        return
    if made is not None:
        settle_status(sa, partial(_prove_to, sa, made), partial(_refuse_initiator, sa), now)


def _refuse_initiator(sa: IkeSa, failed: AuthenticationFailed, now: float) -> None:
    sa.respond((NotifyPayload(type=NotifyType.AUTHENTICATION_FAILED),))
    sa.close(failed.failure, now)


def _prove_to(sa: IkeSa, made: Authenticated, now: float) -> None:
    """The peer has proved who it is: now it is our turn, unless it knows already, before EAP."""
    if made.proof:
        _establish(sa, made, now)
        return
    idr = IdrPayload(identity=made.local)
    requests = tuple(p for p in made.request if isinstance(p, CertreqPayload))

    def proved(proof: Proof, moment: float) -> None:
        payloads: tuple[OpenPayload, ...] = (idr, *proof.certs, proof.auth, *confirm_ppk(sa))
        _establish(sa, replace(made, proof=payloads), moment)

    prove(sa, made.tunnel, idr, requests, proved, partial(_refuse_initiator, sa), now)


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


def install_first_child(sa: IkeSa, child: ChildSa, *, sends: bool = True) -> None:
    """The first Child SA takes its keys from the IKE SA's own exchange (RFC 7296 section 2.17).

    A responder `sends` at once unless it can send on another one meanwhile: the initiator cannot
    receive before it has the answer.
    """
    assert sa.keys is not None
    assert sa.suite is not None
    assert child.proposal is not None
    child.nonces = nonce_i, nonce_r = sa.nonces
    keys = derive_child_keys(
        sa.suite.prf,
        sa.keys.sk_d,
        child_suite(child.proposal),
        nonce_i=nonce_i,
        nonce_r=nonce_r,
    )
    child.install(
        keys,
        sa.path,
        is_initiator=sa.is_initiator,
        encapsulated=sa.nat.encapsulated,
        sends=sends,
    )


def _finish_answer(sa: IkeSa, child: ChildSa, proof: tuple[OpenPayload, ...], now: float) -> None:
    """The datapath has done its part, or refused."""
    if child.failure:
        notify = NotifyPayload(type=NotifyType.TEMPORARY_FAILURE)
        _refuse_child(sa, child, (*proof, notify), _refused_by_datapath(child), now)
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
    asked, auth = optional(payloads, IdrPayload), optional(payloads, AuthPayload)
    wanted = None if asked is None else asked.identity
    if auth is None and sa.resumed is None:
        tunnels = _tunnels_with_eap(sa, idi.identity, wanted)
        ours, refuse = _our_identity(sa, tunnels[0]), partial(_refuse_initiator, sa)
        begin_eap(sa, tunnels, ours, payloads, refuse, now)
        return None
    is_null = auth is not None and auth.method == AuthenticationMethod.NULL
    remote = NOBODY if is_null else idi.identity
    tunnel = _tunnel_of(sa, remote, wanted, is_null=is_null)
    _verify_initiator(sa, tunnel, idi, payloads)
    check_unique(sa, tunnel, idi.identity, payloads)
    if sa.resumed is not None:
        settle_resumption(sa, sa.resumed, now)
    local = _our_identity(sa, tunnel)
    return Authenticated(tunnel=tunnel, local=local, remote=remote, request=payloads)


def _verify_initiator(
    sa: IkeSa, tunnel: TunnelPolicy, idi: IdiPayload, payloads: tuple[OpenPayload, ...]
) -> None:
    """Our operator is told if it is the post-quantum preshared key that differs, and that alone."""
    plain, without = sa.keys, without_ppk(payloads)
    proof = settle_ppk(sa, tunnel, payloads)
    try:
        verify_proof(sa, tunnel, idi, proof)
    except AuthenticationFailed as failed:
        if not sa.ppk_id or without is None:
            raise _with_ppk(failed, sa, tunnel) from failed
        try:
            verify_proof(sa, tunnel, idi, without, plain)
        except AuthenticationFailed:
            raise _with_ppk(failed, sa, tunnel) from failed
        summary = "the peer proves who it is, but not that it has our post-quantum preshared key"
        evidence = (("their identity", str(idi.identity)), *evidence_of(sa, tunnel))
        failure = Failure(code="XF2034", summary=summary, evidence=evidence)
        raise AuthenticationFailed(failure) from failed


def _with_ppk(
    failed: AuthenticationFailed, sa: IkeSa, tunnel: TunnelPolicy
) -> AuthenticationFailed:
    """The failure, and which post-quantum preshared key was in it."""
    evidence = (*failed.failure.evidence, *evidence_of(sa, tunnel))
    return AuthenticationFailed(replace(failed.failure, evidence=evidence))


def _tunnel_of(
    sa: IkeSa, initiator: Identity, wanted: Identity | None, *, is_null: bool
) -> TunnelPolicy:
    """By the identities; one that proves nothing gets a tunnel that asks for that, whoever it says
    that it is: "MUST NOT be used for any trust and policy checking" (RFC 7619 section 2.2)."""
    if sa.resumed is not None:
        return tunnel_of_resumed(sa.resumed, initiator, wanted)
    candidates = sa.core.tunnel_index.candidates(sa.path)
    for tunnel in candidates.of_peer(initiator):
        is_such = tunnel.remote_null == is_null and tunnel.local_eap is None
        if is_such and _is_meant(sa, tunnel, wanted):
            return tunnel
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
    ours = _our_identity(sa, tunnel)
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
                ("we are", listed(_our_identity(sa, t) for t in candidates.policies)),
            ),
        )
    )


def _accepts_suite(sa: IkeSa, tunnel: TunnelPolicy) -> bool:
    """IKE_SA_INIT chose before the tunnel was known; the tunnel must agree with the choice."""
    return sa.proposal is not None and choose_proposal((sa.proposal,), tunnel.proposals) is not None


def _our_identity(sa: IkeSa, tunnel: TunnelPolicy) -> Identity:
    return tunnel.identity_at(sa.path.local.address) if sa.resumed is None else sa.resumed.local


def _refused_by_datapath(child: ChildSa) -> Failure:
    return Failure(code="XF3002", summary=child.failure)
