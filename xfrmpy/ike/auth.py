"""IKE_AUTH, the initiator's side, and the first Child SA in it.

Read RFC 7296 sections 1.2, 2.15, 2.16 and 2.21.2 first. An IKE SA is established here and in
`auth_answer` and nowhere else, and only after the peer's AUTH has been verified.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from xfrmpy.crypto.key_schedule import IkeKeys, derive_child_keys
from xfrmpy.failures import Failure
from xfrmpy.ike.auth_methods import announce, expectations
from xfrmpy.ike.child_sa import ChildSa, proposals_of_first_child
from xfrmpy.ike.childless import begins_childless
from xfrmpy.ike.create_child_sa import give_up_child
from xfrmpy.ike.credentials import certificate_requests
from xfrmpy.ike.demand import take_first_child
from xfrmpy.ike.eap_initiator import EapDialogue
from xfrmpy.ike.errors import AuthenticationFailed
from xfrmpy.ike.exchange import first_error, only, optional
from xfrmpy.ike.extensions import offer_in_auth, take_notifications
from xfrmpy.ike.first_contact import close_replaced, initial_contact
from xfrmpy.ike.inquiries import settle_status
from xfrmpy.ike.lookups import look_up
from xfrmpy.ike.modes import (
    check_mode_answered,
    ends_of,
    policy_between,
    traffic_of,
)
from xfrmpy.ike.ppk import (
    evidence_of,
    keys_with,
    name_ppk,
    no_ppk_auth,
    our_ppk,
    take_ppk_answer,
    with_ppk,
)
from xfrmpy.ike.proof import (
    Proof,
    accepted_by_peer,
    check_identity,
    key_origin,
    prove,
    verify_proof,
)
from xfrmpy.ike.redirect import redirect_of_auth, refusal_to_follow
from xfrmpy.ike.refusals import failure_of
from xfrmpy.ike.resources import expect_more
from xfrmpy.ike.rounds import (
    another_of_ours,
    check_another,
    has_more_rounds,
    offer_rounds,
)
from xfrmpy.ike.synchronization import SYNC_SUPPORTED, supports_sync
from xfrmpy.ike.window_size import WINDOW_SIZE
from xfrmpy.ipsec.identity import NOBODY, Identity
from xfrmpy.ipsec.proposals import child_suite
from xfrmpy.pki.verdicts import Problem
from xfrmpy.policy.model import Ppk, TunnelPolicy
from xfrmpy.registry import ExchangeType, NotifyType
from xfrmpy.wire.payloads import (
    AuthPayload,
    CertPayload,
    IdiPayload,
    IdrPayload,
    NotifyPayload,
    OpenPayload,
    PuzzleSolutionPayload,
    SaPayload,
)

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa
    from xfrmpy.wire.redirect import Gateway


class IkeAuth:
    """The initiator's side; `solution` is of the puzzle that came with IKE_SA_INIT, if one did."""

    type: ClassVar[ExchangeType] = ExchangeType.IKE_AUTH

    def __init__(
        self, sa: IkeSa, tunnel: TunnelPolicy, solution: PuzzleSolutionPayload | None = None
    ) -> None:
        self._sa = sa
        self._tunnel = tunnel
        self._solution = () if solution is None else (solution,)
        self._proof: tuple[OpenPayload, ...] = ()
        self._certs: tuple[CertPayload, ...] = ()
        self._number = 0
        self._remote: Identity | None = None
        self._idr: IdrPayload | None = None
        self._enter_round()
        self._child: ChildSa | None = None
        if not begins_childless(sa, tunnel):
            wanted, packet = take_first_child(sa, tunnel)
            first = policy_between(wanted, sa.path)
            proposals = proposals_of_first_child(first)
            self._child = ChildSa(sa.core, tunnel, first, proposals, packet=packet)
            sa.children.append(self._child)

    def _enter_round(self) -> None:
        """Who we are in it; by EAP, whom we have as the gateway is known where it proves itself
        no more."""
        self._identity = IdiPayload(identity=our_identity(self._sa, self._of_round))
        eap = self._of_round.local_eap if self._sa.resumed is None else None
        idr = None if self._tunnel.they_prove(self._number) else self._idr
        self._eap = None if eap is None else EapDialogue(eap, idr=idr)

    @property
    def _of_round(self) -> TunnelPolicy:
        return self._tunnel.in_round(self._number)

    @property
    def _is_last(self) -> bool:
        return not has_more_rounds(self._sa, self._tunnel, self._number)

    @property
    def is_early(self) -> bool:
        """Whether the peer cannot have established anything yet: our last AUTH is to come."""
        return not self._is_last or (self._eap is not None and self._eap.msk is None)

    def begin(self, now: float) -> None:
        """Send a round, as soon as there is what proves who we are, if we do so in it; without AUTH
        it asks for EAP."""
        if self._eap is not None:
            self._send((), self._eap.announcement(), now=now)
        elif self._tunnel.we_prove(self._number):
            ppk = our_ppk(self._sa, self._of_round)
            self._prove(partial(self._proved, ppk), now, keys_with(self._sa, ppk))
        else:
            self._sa.start(self, now)

    def _prove(
        self, then: Callable[[Proof, float], None], now: float, keys: IkeKeys | None = None
    ) -> None:
        sa = self._sa
        requests = sa.heard.requests
        prove(sa, self._of_round, self._identity, requests, then, self._give_up, now, keys)

    def _proved(self, ppk: Ppk | None, proof: Proof, now: float) -> None:
        """With the post-quantum preshared key, if there is one; and without, if it need not be."""
        another = another_of_ours(self._tunnel, self._number) if self._sa.resumed is None else ()
        named = another if ppk is None else (*another, name_ppk(ppk))

        def proved_without(without: Proof, moment: float) -> None:
            spare = no_ppk_auth(without.auth)
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
        """The peer has not heard all of who we are; it forgets what is half open."""
        self._sa.close(failed.failure, now)

    def request(self) -> tuple[OpenPayload, ...]:
        sa, tunnel = self._sa, self._tunnel
        if self._eap is not None and self._eap.has_begun:
            return self._eap.request(sa, self._of_round, self._identity)
        if self._number:
            proves = tunnel.we_prove(self._number)
            return (self._identity, *self._certs, *self._proof) if proves else ()
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
        rounds = offer_rounds(tunnel) if sa.resumed is None else ()
        abilities = (*rounds, WINDOW_SIZE, SYNC_SUPPORTED)
        return (*self._solution, *payloads, *extensions, *child, *abilities)

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        error = first_error(payloads)
        if error is not None and self._is_refusal(error, payloads):
            self._sa.close(failure_of(error, self._evidence(error)), now)
            return
        look_up(self._sa, self._of_round, payloads, self._take, self._refuse, now)

    def _take(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        """With the peer's certificates in it, which may have had to be fetched."""
        try:
            remote = self._authenticate(payloads)
        except AuthenticationFailed as failed:
            self._refuse(failed, now)
            return
        settle_status(self._sa, partial(self._go_on, payloads, remote), self._refuse, now)

    def _is_refusal(self, error: NotifyPayload, payloads: tuple[OpenPayload, ...]) -> bool:
        """Whether the error is of the IKE SA; with the peer's proof it is of the Child SA, and so
        it is where the peer has proved itself before."""
        if optional(payloads, AuthPayload) is not None:
            return False
        has_proved = self._number > 0 and not self._tunnel.they_prove(self._number)
        is_done = has_proved and self._is_last and self._eap is None
        return not is_done or error.type == NotifyType.AUTHENTICATION_FAILED

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
        if not self._is_last and error is not None:
            self._sa.terminate(failure_of(error, self._evidence(error)), now)
            return
        if not self._is_last:
            self._remote = self._remote or remote
            self._number += 1
            self._enter_round()
            self.begin(now)
            return
        local, remote = our_identity(self._sa, self._tunnel), self._remote or remote
        self._sa.authenticated(self._tunnel, local=local, remote=remote, now=now)
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
        tunnel = self._of_round
        if self._eap is not None:
            proved = self._eap.take(self._sa, tunnel, payloads)
            check_another(self._tunnel, self._number, payloads)
            return None if proved is None else proved.identity
        if not self._tunnel.they_prove(self._number):
            check_another(self._tunnel, self._number, payloads)
            return self._remote
        idr = self._idr = only(payloads, IdrPayload)
        if not self._number:
            take_ppk_answer(self._sa, tunnel, payloads)
        try:
            verify_proof(self._sa, tunnel, idr, payloads)
        except AuthenticationFailed as failed:
            raise with_ppk(failed, self._sa, tunnel) from failed
        check_identity(tunnel, idr.identity)
        if self._sa.resumed is None:
            check_another(self._tunnel, self._number, payloads)
        return NOBODY if tunnel.remote_null else idr.identity

    def _finish(self, child: ChildSa, now: float) -> None:
        if child.failure:
            self._sa.terminate(refused_by_datapath(child), now)
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
            ("our key", key_origin(self._of_round)),
            *accepted_by_peer(self._sa),
            *evidence_of(self._sa, self._tunnel),
        )


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


def our_identity(sa: IkeSa, tunnel: TunnelPolicy) -> Identity:
    return tunnel.identity_at(sa.path.local.address) if sa.resumed is None else sa.resumed.local


def refused_by_datapath(child: ChildSa) -> Failure:
    return Failure(code="XF3002", summary=child.failure)
