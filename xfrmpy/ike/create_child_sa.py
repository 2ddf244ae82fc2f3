"""CREATE_CHILD_SA for Child SAs, in both roles: one more, or one in the place of another.

Read RFC 7296 sections 1.3.1, 1.3.3, 2.8, 2.9.2, 2.17 and 2.25.1 first. The new inbound SA is in
force before the peer can know of it; who began the exchange deletes what was replaced; and until
then the other end sends on the old SA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from xfrmpy.crypto.key_exchange import KeyExchange, start_key_exchange
from xfrmpy.crypto.key_schedule import derive_child_keys
from xfrmpy.failures import Failure
from xfrmpy.ike.agreement import (
    Agreement,
    AnsweredKe,
    agreed_secret,
    answer_ke,
    demanded_method,
    ke_payload,
    key_exchange_methods,
    method_of,
)
from xfrmpy.ike.child_sa import SPI_SIZE, ChildSa, Scope, scope_of
from xfrmpy.ike.collisions import objection_to_child_rekey, objection_to_new_child, survives
from xfrmpy.ike.errors import PeerIncompatible, PeerMisbehaved
from xfrmpy.ike.exchange import first_error, notifications, only, optional
from xfrmpy.ike.followup import (
    give_up_rivals,
    go_on,
    is_followed_up,
    leave_unfinished,
    prevails,
)
from xfrmpy.ike.modes import (
    check_mode_answered,
    check_mode_asked,
    check_passage,
    check_passage_asked,
    choose_child,
    ends_of,
    policy_between,
    traffic_of,
)
from xfrmpy.ike.nonces import NONCE_SIZE
from xfrmpy.ike.outputs import RequestRefused, SaNotCreated
from xfrmpy.ike.refusals import failure_of, rekey_failure_of
from xfrmpy.ike.resources import (
    check_group_asked,
    expect_more,
    group_of,
    per_resource_kin,
)
from xfrmpy.ike.states import ChildSaState, IkeSaState
from xfrmpy.ike.succession import (
    cannot_rekey,
    end_if_childless,
    end_if_mute,
    put_off,
    remove_child,
    retry_at,
)
from xfrmpy.ipsec.proposals import child_suite
from xfrmpy.policy.model import ChildPolicy
from xfrmpy.registry import ExchangeType, KeyExchangeMethod, NotifyType
from xfrmpy.wire.payloads import (
    KePayload,
    NoncePayload,
    NotifyPayload,
    OpenPayload,
    SaPayload,
)

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa

MAX_CHILDREN = 256
"""Child SAs of one IKE SA. A peer may make one for each pair of subnets; this bounds the cost."""

DELETE_PATIENCE_SECONDS = 10.0
"""How long we wait for the peer to delete what it has replaced. Then we send on the new SA all the
same, and delete the old one ourselves."""


class CreateChildSa:
    """The initiator's side. `method` is a peer's demand; else our first choice is tried."""

    type: ClassVar[ExchangeType] = ExchangeType.CREATE_CHILD_SA

    def __init__(
        self,
        sa: IkeSa,
        policy: ChildPolicy,
        *,
        replaces: ChildSa | None = None,
        scope: Scope | None = None,
        packet: Scope | None = None,
        method: KeyExchangeMethod | None = None,
    ) -> None:
        assert sa.tunnel is not None
        policy = policy_between(policy, sa.path)
        self._sa = sa
        self._replaces = replaces
        self._demanded = method
        self._nonce = sa.core.random(NONCE_SIZE)
        self._scope, self._packet = scope, packet
        self._child = ChildSa(
            sa.core,
            sa.tunnel,
            policy,
            policy.proposals,
            replaces=replaces,
            scope=scope,
            packet=packet,
            beside=per_resource_kin(sa, policy),
        )
        self._is_further = replaces is None and bool(group_of(sa, self._child))
        self._key_exchange = self._start_key_exchange(policy)
        self.agreement: Agreement | None = None
        sa.children.append(self._child)
        if replaces is not None:
            replaces.move_to(ChildSaState.REKEYING)

    @property
    def subject(self) -> ChildSa | None:
        return self._replaces

    def request(self) -> tuple[OpenPayload, ...]:
        sa, *selectors = self._child.offer()
        payloads: list[OpenPayload] = [sa, NoncePayload(data=self._nonce)]
        if self._key_exchange is not None:
            payloads.append(ke_payload(self._key_exchange))
        if self._replaces is not None:
            payloads.insert(0, _rekey_sa(self._replaces))
        return (*payloads, *selectors)

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        error = first_error(payloads)
        if error is not None:
            self.refused(error, now)
            return
        child = self._child
        traffic = traffic_of(payloads, ends_of(self._sa), is_initiator=True)
        unacceptable = check_passage(child.policy, self._sa.nat) or check_mode_answered(
            child.policy, traffic
        )
        if unacceptable is not None:
            self._sa.terminate(unacceptable, now)
            return
        child.accept(only(payloads, SaPayload), traffic)
        if child.is_gone:
            self._gone_before(now)
            return
        nonce_r = only(payloads, NoncePayload).data
        child.nonces = (self._nonce, nonce_r)
        assert child.proposal is not None
        self.agreement = Agreement(
            chosen=child.proposal, nonces=child.nonces, secrets=self._secrets(payloads)
        )
        is_finished = self.agreement.next_method is None
        has_heir = self._replaces is not None and self._replaces.heir is not None
        if is_finished or (not has_heir and prevails(self._sa, self)):
            give_up_rivals(self._sa, self._replaces)
            go_on(self._sa, self, payloads, now)
        else:
            give_up_child(self._sa, child)
            self._stay_with_old(now)

    def finish(self, _payloads: tuple[OpenPayload, ...], now: float) -> None:
        child = self._child
        if child.is_gone:
            self._gone_before(now)
            return
        assert self.agreement is not None
        sends = not self._is_redundant()
        _install(self._sa, child, self.agreement, is_initiator=True, sends=sends)
        self._sa.core.defer(self._sa, self._finish, now)

    def _start_key_exchange(self, policy: ChildPolicy) -> KeyExchange | None:
        """The demanded method, else if we may the IKE SA's own, which the peer is known to have."""
        methods = key_exchange_methods(policy.proposals)
        if not methods:
            return None
        assert self._sa.suite is not None
        ikes = self._sa.suite.group.id
        method = self._demanded or (ikes if ikes in methods else methods[0])
        return start_key_exchange(method, self._sa.core.random)

    def _secrets(self, payloads: tuple[OpenPayload, ...]) -> tuple[bytes, ...]:
        assert self._child.proposal is not None
        method = method_of(self._child.proposal)
        if method is None:
            return ()
        if self._key_exchange is None or method != self._key_exchange.method:
            raise PeerMisbehaved("the key exchange is not of the method chosen")
        return (agreed_secret(self._key_exchange, only(payloads, KePayload)),)

    def _is_redundant(self) -> bool:
        """Whether what the peer has made meanwhile in the same place stays instead of ours."""
        rival = None if self._replaces is None else self._replaces.heir
        return (
            rival is not None
            and rival.state is ChildSaState.INSTALLED
            and not survives(self._child.nonces, rival.nonces)
        )

    def _finish(self, now: float) -> None:
        child, old = self._child, self._replaces
        if child.failure:
            self._report(Failure(code="XF3002", summary=child.failure))
            child.give_way()
            self._stay_with_old(now)
            if old is None:
                self._postpone(now)
        elif self._is_redundant():
            child.give_way()
            self._stay_with_old(now)
        else:
            child.established(now)
            self._sa.busy_since = None
            if old is not None:
                _take_place(self._sa, old, now)
            else:
                _give_way_to_twin(self._sa, child)
                if not self._is_further:
                    self._sa.create_at = now
                elif not child.is_per_resource:
                    self._sa.filled += (child.policy.name,)
            expect_more(self._sa, child, now)

    def _postpone(self, now: float, *others: ChildPolicy) -> None:
        """It has its turn again later; the peer is asked for the rest, but for `others`, now. One
        more of what is there has none."""
        if self._is_further:
            self._sa.filled += (self._child.policy.name,)
            return
        self._sa.postponed += tuple(policy.name for policy in (self._child.policy, *others))
        self._sa.demand.give_up(self._child.policy)
        self._sa.create_at = now

    def _stay_with_old(self, now: float) -> None:
        """Ours has failed or lost: what was there, or what the peer put in its place, goes on."""
        old = self._replaces
        if old is None or old.state is not ChildSaState.REKEYING:
            return
        if old.heir is not None:
            old.move_to(ChildSaState.REKEYED)
            old.wait_until = now + DELETE_PATIENCE_SECONDS
        elif old.is_gone:
            remove_child(self._sa, old, now)
        else:
            old.move_to(ChildSaState.INSTALLED)
            old.rekey_at = retry_at(self._sa, now)

    def _gone_before(self, now: float) -> None:
        """The peer has undone what it answers, and waits for us to delete what that replaced."""
        give_up_child(self._sa, self._child)
        old = self._replaces
        if old is None:
            self._postpone(now)
        elif old.heir is None:
            _take_place(self._sa, old, now)
        else:
            self._stay_with_old(now)
        end_if_childless(self._sa, now)

    def refused(self, error: NotifyPayload, now: float) -> None:
        if error.type == NotifyType.INVALID_SYNTAX:
            self._sa.close(failure_of(error), now)  # Section 2.21.3: it is gone at both ends.
            return
        give_up_child(self._sa, self._child)
        old = self._replaces
        has_heir = old is not None and old.heir is not None
        self._stay_with_old(now)
        if has_heir or (old is not None and old.state is ChildSaState.DELETED):
            end_if_childless(self._sa, now)
            return  # Section 2.8.1: "it can ignore the error message".
        if error.type == NotifyType.INVALID_KE_PAYLOAD and self._repeat(error, now):
            return
        if error.type in (NotifyType.TEMPORARY_FAILURE, NotifyType.STATE_NOT_FOUND):
            if self._is_further:
                self._sa.widen_at = retry_at(self._sa, now)
            elif old is None:
                self._sa.create_at = retry_at(self._sa, now)
            put_off(self._sa, now)
        elif error.type == NotifyType.CHILD_SA_NOT_FOUND and old is not None:
            self._begin_anew(old, now)
        else:
            self._refused_for_good(error, now)

    def _refused_for_good(self, error: NotifyPayload, now: float) -> None:
        if self._is_further:
            self._postpone(now)
        elif self._replaces is None and self._scope is not None:
            self._sa.refused_scopes |= {self._scope}
            self._sa.create_at = now
        elif self._replaces is None and error.type == NotifyType.SINGLE_PAIR_REQUIRED:
            self._sa.asks_pairs = True
            self._sa.create_at = now
        elif self._replaces is None:
            failure = failure_of(error, self._evidence())
            self._report(failure)
            assert self._sa.tunnel is not None
            is_full = error.type == NotifyType.NO_ADDITIONAL_SAS
            self._postpone(now, *(self._sa.tunnel.children if is_full else ()))
            if not self._sa.children:  # A tunnel is its Child SAs.
                self._sa.terminate(failure, now)
        else:
            what = f"the Child SA {self._child.policy.name}"
            self._report(rekey_failure_of(error, what, self._evidence()))
            self._replaces.rekey_at = None
            cannot_rekey(self._sa, now)

    def _repeat(self, error: NotifyPayload, now: float) -> bool:
        """Begin again with the method that the peer wants, once, if we have it."""
        method = demanded_method(error)
        if self._demanded is not None or method not in key_exchange_methods(
            self._child.policy.proposals
        ):
            return False
        again = CreateChildSa(
            self._sa,
            self._child.policy,
            replaces=self._replaces,
            scope=self._scope,
            packet=self._packet,
            method=method,
        )
        self._sa.start(again, now)
        return True

    def _begin_anew(self, old: ChildSa, now: float) -> None:
        """Section 2.25: delete it silently, "and send a request to create a new Child SA from
        scratch (if the Child SA does not yet exist)"."""
        self._sa.children.remove(old)
        old.close()
        if not any(c.is_in_use and scope_of(c) == scope_of(old) for c in self._sa.children):
            again = CreateChildSa(self._sa, old.policy, scope=scope_of(old))
            self._sa.start(again, now)
        elif old.is_per_resource:
            self._sa.widen_at = now

    def _report(self, failure: Failure) -> None:
        self._sa.core.emit(
            SaNotCreated(
                tunnel=self._sa.tunnel_name, child=self._child.policy.name, failure=failure
            )
        )

    def _evidence(self) -> tuple[tuple[str, str], ...]:
        child = self._child
        return (
            ("we offered", ", ".join(map(str, child.policy.proposals))),
            ("our local", ", ".join(map(str, child.local))),
            ("our remote", ", ".join(map(str, child.remote))),
        )


def answer_create_child_sa(sa: IkeSa, payloads: tuple[OpenPayload, ...], now: float) -> None:
    """The responder's side, for a Child SA."""
    rekeys = notifications(payloads, NotifyType.REKEY_SA)
    if len(rekeys) > 1:
        raise PeerMisbehaved("REKEY_SA is there more than once")
    old = _named_by(sa, rekeys[0]) if rekeys else None
    objection = _objection(sa, old, is_rekey=bool(rekeys))
    if objection is not None:
        echo = rekeys[0] if objection is NotifyType.CHILD_SA_NOT_FOUND else None
        sa.respond((_refusal(objection, echo),))
        return
    try:
        _create(sa, payloads, old, now)
    except PeerIncompatible as incompatible:
        sa.respond((incompatible.notify,))
        sa.core.emit(
            RequestRefused(tunnel=sa.tunnel_name, path=sa.path, failure=incompatible.failure)
        )


def give_up_child(sa: IkeSa, child: ChildSa) -> None:
    """A Child SA of which the peer knows nothing."""
    sa.children.remove(child)
    child.close()


def take_over(sa: IkeSa, old: ChildSa, now: float) -> None:
    """The peer has deleted what it replaced, so it can receive on what it made instead."""
    heir = old.heir
    if heir is not None and heir.state is ChildSaState.INSTALLED:
        heir.start_sending()
        sa.core.defer(sa, lambda moment: end_if_mute(sa, heir, moment), now)


def stop_waiting(sa: IkeSa, old: ChildSa, now: float) -> None:
    """What was replaced can carry nothing any more, and the peer has not deleted it yet."""
    take_over(sa, old, now)
    old.wait_until = now


def take_back(heir: ChildSa) -> None:
    """The peer deletes what it has made in the place of another, which so is in use again."""
    old = heir.replaces
    if old is None or old.heir is not heir:
        return
    old.heir = old.wait_until = None
    if old.state is ChildSaState.REKEYED:
        old.move_to(ChildSaState.INSTALLED)


def _objection(sa: IkeSa, old: ChildSa | None, *, is_rekey: bool) -> NotifyType | None:
    if sa.state is not IkeSaState.ESTABLISHED:
        return NotifyType.TEMPORARY_FAILURE
    if is_rekey:
        if old is None and any(c.state is ChildSaState.CREATING for c in sa.children):
            # The answer that would tell us of it may be late.
            return NotifyType.TEMPORARY_FAILURE
        if old is not None and is_followed_up(sa, old):
            return NotifyType.TEMPORARY_FAILURE  # Ours goes on, or the peer gives it up.
        state = None if old is None else old.state
        return objection_to_child_rekey(state, ike_sa_is_rekeying=sa.is_rekeying)
    if len(sa.children) >= MAX_CHILDREN:
        return NotifyType.NO_ADDITIONAL_SAS
    return objection_to_new_child(ike_sa_is_rekeying=sa.is_rekeying)


def _create(sa: IkeSa, payloads: tuple[OpenPayload, ...], old: ChildSa | None, now: float) -> None:
    assert sa.tunnel is not None
    nonce_i = only(payloads, NoncePayload).data
    ke = optional(payloads, KePayload)
    candidates = sa.tunnel.children if old is None else (old.policy,)
    policy, traffic = choose_child(candidates, payloads, ends_of(sa))
    beside = per_resource_kin(sa, policy)
    child = ChildSa(sa.core, sa.tunnel, policy, policy.proposals, replaces=old, beside=beside)
    sa.children.append(child)
    try:
        offered = only(payloads, SaPayload).proposals
        check_mode_asked(policy, traffic)
        check_passage_asked(policy, sa.nat)
        child.choose(offered, traffic, None if ke is None else ke.method)
        if old is None:
            check_group_asked(sa, child, traffic)
        answered = _agree(sa, child, ke)
        secrets = () if answered is None else (answered.secret(),)
    except (PeerIncompatible, PeerMisbehaved):
        give_up_child(sa, child)
        raise
    child.nonces = (nonce_i, sa.core.random(NONCE_SIZE))
    assert child.proposal is not None
    agreement = Agreement(chosen=child.proposal, nonces=child.nonces, secrets=secrets)
    chosen, *selectors = child.answer()
    ours = () if answered is None else (answered.payload,)
    answer = (chosen, NoncePayload(data=child.nonces[1]), *ours, *selectors)
    give_up_rivals(sa, old)
    if agreement.next_method is None:
        conclude_child(sa, child, agreement, now, *answer)
    else:
        sa.respond((*answer, leave_unfinished(sa, agreement, now, child=child)))


def conclude_child(
    sa: IkeSa, child: ChildSa, agreement: Agreement, now: float, *answer: OpenPayload
) -> None:
    """The responder's side, when every key exchange is done."""
    _install(sa, child, agreement, is_initiator=False, sends=child.replaces is None)
    sa.core.defer(sa, lambda moment: _finish_answer(sa, child, answer, moment), now)


def _agree(sa: IkeSa, child: ChildSa, ke: KePayload | None) -> AnsweredKe | None:
    assert child.proposal is not None
    method = method_of(child.proposal)
    if method is None:
        return None
    assert ke is not None
    return answer_ke(method, ke, sa.core.random)


def _finish_answer(sa: IkeSa, child: ChildSa, answer: tuple[OpenPayload, ...], now: float) -> None:
    """The datapath has done its part, or refused."""
    if child.failure:
        failure = Failure(code="XF3002", summary=child.failure)
        give_up_child(sa, child)
        sa.respond((NotifyPayload(type=NotifyType.TEMPORARY_FAILURE),))
        sa.core.emit(RequestRefused(tunnel=sa.tunnel_name, path=sa.path, failure=failure))
        return
    sa.respond(answer)
    child.established(now)
    old = child.replaces
    if old is not None:
        old.heir = child
        child.wait_until = now + DELETE_PATIENCE_SECONDS
        if old.state is ChildSaState.INSTALLED:
            old.move_to(ChildSaState.REKEYED)
            old.wait_until = now + 2 * DELETE_PATIENCE_SECONDS
    else:
        _give_way_to_twin(sa, child)
    expect_more(sa, child, now)


def _take_place(sa: IkeSa, old: ChildSa, now: float) -> None:
    """Ours is in force, so we delete the old one, and the peer what it made in the same place."""
    if old.state is ChildSaState.REKEYING:
        old.move_to(ChildSaState.DELETING)
        old.stop_sending()
        if old.is_gone:
            remove_child(sa, old, now)
    rival = old.heir
    if rival is not None and rival.state is ChildSaState.INSTALLED:
        rival.move_to(ChildSaState.REKEYED)
        rival.stop_sending()
        rival.wait_until = now + DELETE_PATIENCE_SECONDS


def _give_way_to_twin(sa: IkeSa, new: ChildSa) -> None:
    """Both ends have begun a Child SA for the same traffic, and one is enough.

    RFC 7296 section 2.8 allows both, and has no rule for it. Ours is that of section 2.8.1.
    """
    for other in sa.children:
        if not _are_twins(new, other):
            continue
        ours, theirs = (new, other) if new.is_initiator else (other, new)
        if survives(ours.nonces, theirs.nonces):
            theirs.heir = ours
        else:
            ours.heir = theirs
            ours.give_way()


def _are_twins(one: ChildSa, other: ChildSa) -> bool:
    return (
        one.is_initiator != other.is_initiator
        and one.state is other.state is ChildSaState.INSTALLED
        and one.policy.name == other.policy.name
        and scope_of(one) == scope_of(other)
        and not (one.is_outdated or other.is_outdated)
        and not (one.is_per_resource and other.is_per_resource)
    )


def _install(
    sa: IkeSa, child: ChildSa, agreement: Agreement, *, is_initiator: bool, sends: bool
) -> None:
    assert sa.keys is not None
    assert sa.suite is not None
    assert child.proposal is not None
    nonce_i, nonce_r = agreement.nonces
    keys = derive_child_keys(
        sa.suite.prf,
        sa.keys.sk_d,
        child_suite(child.proposal),
        nonce_i=nonce_i,
        nonce_r=nonce_r,
        shared_secret=agreement.shared_secret,
        further_secrets=agreement.further_secrets,
    )
    child.install(
        keys, sa.path, is_initiator=is_initiator, encapsulated=sa.nat.encapsulated, sends=sends
    )


def _named_by(sa: IkeSa, rekey: NotifyPayload) -> ChildSa | None:
    """The Child SA whose outbound SPI, the peer's inbound one, a REKEY_SA names."""
    spi = int.from_bytes(rekey.spi, "big")
    if len(rekey.spi) != SPI_SIZE:
        return None
    there = (c for c in sa.children if c.entries and not c.is_gone)
    return next((c for c in there if (c.protocol, c.spi_out) == (rekey.protocol, spi)), None)


def _rekey_sa(old: ChildSa) -> NotifyPayload:
    return NotifyPayload(
        type=NotifyType.REKEY_SA, protocol=old.protocol, spi=old.spi_in.to_bytes(SPI_SIZE, "big")
    )


def _refusal(kind: NotifyType, echo: NotifyPayload | None) -> NotifyPayload:
    """Section 2.25: the SPI field "is copied from the SPI field in the REKEY_SA notification"."""
    if echo is None:
        return NotifyPayload(type=kind)
    return NotifyPayload(type=kind, protocol=echo.protocol, spi=echo.spi)
