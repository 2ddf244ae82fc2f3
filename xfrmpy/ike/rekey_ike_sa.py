"""CREATE_CHILD_SA for the IKE SA itself, in both roles: new keys, and the Child SAs move over.

Read RFC 7296 sections 1.3.2, 2.8, 2.8.2, 2.18 and 2.25.2 first. Nobody is authenticated anew: that
the old keys protect the exchange is the proof.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from xfrmpy.crypto.key_exchange import start_key_exchange
from xfrmpy.ike.agreement import (
    Agreement,
    agreed_secret,
    answer_ke,
    choose_for_method,
    demanded_method,
    ke_payload,
    key_exchange_methods,
    method_of,
)
from xfrmpy.ike.announcement import Announcement
from xfrmpy.ike.collisions import objection_to_ike_rekey, survives
from xfrmpy.ike.core import IKE_SPI_SIZE
from xfrmpy.ike.crash import offer_token
from xfrmpy.ike.errors import PeerIncompatible, PeerMisbehaved
from xfrmpy.ike.exchange import first_error, only
from xfrmpy.ike.extensions import take_notifications
from xfrmpy.ike.followup import (
    Unfinished,
    give_up_rivals,
    go_on,
    is_followed_up,
    leave_unfinished,
    prevails,
)
from xfrmpy.ike.nonces import NONCE_SIZE
from xfrmpy.ike.outputs import RequestRefused, SaNotCreated
from xfrmpy.ike.refusals import failure_of, rekey_failure_of
from xfrmpy.ike.states import IkeSaState
from xfrmpy.ike.succession import (
    cannot_rekey,
    inherit,
    leave,
    living_heir,
    put_off,
    retry_at,
    wait_for_deletion,
)
from xfrmpy.ike.window_size import offer_window
from xfrmpy.ipsec.proposals import Proposal, answers
from xfrmpy.registry import ExchangeType, KeyExchangeMethod, NotifyType
from xfrmpy.wire.payloads import KePayload, NoncePayload, NotifyPayload, OpenPayload, SaPayload

if TYPE_CHECKING:
    from xfrmpy.ike.ike_sa import IkeSa


class RekeyIkeSa:
    """The initiator's side. `method` is a peer's demand; else that of the old IKE SA is tried."""

    type: ClassVar[ExchangeType] = ExchangeType.CREATE_CHILD_SA

    def __init__(self, sa: IkeSa, method: KeyExchangeMethod | None = None) -> None:
        assert sa.tunnel is not None
        assert sa.suite is not None
        self._sa = sa
        self._demanded = method
        self._spi = sa.core.new_ike_spi()
        self._nonce = sa.core.random(NONCE_SIZE)
        self._offered = tuple(
            replace(p, number=n, spi=self._spi) for n, p in enumerate(sa.tunnel.proposals, 1)
        )
        methods = key_exchange_methods(self._offered)
        old = sa.suite.group.id
        self._key_exchange = start_key_exchange(
            method or (old if old in methods else methods[0]), sa.core.random
        )
        self.agreement: Agreement | None = None
        sa.is_rekeying = True

    @property
    def subject(self) -> IkeSa:
        return self._sa

    def request(self) -> tuple[OpenPayload, ...]:
        return (
            SaPayload(proposals=self._offered),
            NoncePayload(data=self._nonce),
            ke_payload(self._key_exchange),
        )

    def handle_response(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        error = first_error(payloads)
        if error is not None:
            self.refused(error, now)
            return
        proposals = only(payloads, SaPayload).proposals
        if len(proposals) != 1 or not answers(proposals[0], self._offered):
            raise PeerMisbehaved("the peer chose an IKE proposal that we did not offer")
        chosen = proposals[0]
        if method_of(chosen) != self._key_exchange.method:
            raise PeerMisbehaved("the key exchange is not of the method chosen")
        _checked_spi(chosen)
        self.agreement = Agreement(
            chosen=chosen,
            nonces=(self._nonce, only(payloads, NoncePayload).data),
            secrets=(agreed_secret(self._key_exchange, only(payloads, KePayload)),),
        )
        is_finished = self.agreement.next_method is None
        if is_finished or (living_heir(self._sa) is None and prevails(self._sa, self)):
            give_up_rivals(self._sa, self._sa)
            go_on(self._sa, self, payloads, now)
        else:
            self._yield(now)

    def finish(self, payloads: tuple[OpenPayload, ...], now: float) -> None:
        assert self.agreement is not None
        self._sa.is_rekeying = False
        new = self._sa.successor(
            self.agreement,
            spis=(self._spi, _checked_spi(self.agreement.chosen)),
            is_initiator=True,
            now=now,
        )
        take_notifications(new, payloads, now)
        self._settle(new, now)

    def _yield(self, now: float) -> None:
        """What the peer has begun at the same time stays, finished or not."""
        old = self._sa
        old.is_rekeying = False
        heir = living_heir(old)
        if heir is None:
            old.rekey_at = retry_at(old, now)
        else:
            inherit(heir, old)
            wait_for_deletion(old, now)

    def _settle(self, new: IkeSa, now: float) -> None:
        """Who inherits: ours, or what the peer has made meanwhile (section 2.8.2)."""
        old, rival = self._sa, living_heir(self._sa)
        old.busy_since = None
        if rival is None or survives(new.nonces, rival.nonces):
            inherit(new, old)
            _introduce(new, old, now)
            if rival is not None:
                wait_for_deletion(rival, now)
            leave(old, now)
        else:
            inherit(rival, old)
            leave(new, now)
            wait_for_deletion(old, now)

    def refused(self, error: NotifyPayload, now: float) -> None:
        old = self._sa
        old.is_rekeying = False
        heir = living_heir(old)
        if heir is not None:
            inherit(heir, old)
            wait_for_deletion(old, now)
        elif error.type == NotifyType.INVALID_SYNTAX:
            old.close(failure_of(error), now)  # Section 2.21.3: it is gone at both ends.
        elif error.type == NotifyType.INVALID_KE_PAYLOAD and self._may_repeat(error):
            old.start(RekeyIkeSa(old, demanded_method(error)), now)
        elif error.type in (NotifyType.TEMPORARY_FAILURE, NotifyType.STATE_NOT_FOUND):
            old.rekey_at = retry_at(old, now)
            put_off(old, now)
        else:
            evidence = (("we offered", ", ".join(map(str, self._offered))),)
            failure = rekey_failure_of(error, "the IKE SA", evidence)
            old.core.emit(SaNotCreated(tunnel=old.tunnel_name, child="", failure=failure))
            cannot_rekey(old, now)

    def _may_repeat(self, error: NotifyPayload) -> bool:
        return self._demanded is None and demanded_method(error) in key_exchange_methods(
            self._offered
        )


def _introduce(new: IkeSa, old: IkeSa, now: float) -> None:
    """Tell the peer on the new IKE SA what its SPIs or its keys must be known for."""
    payloads = (*offer_token(new), *offer_window(new, old))
    if payloads:
        new.start(Announcement(payloads), now)


def answer_ike_rekey(sa: IkeSa, payloads: tuple[OpenPayload, ...], now: float) -> None:
    """The responder's side."""
    objection = (
        objection_to_ike_rekey(c.state for c in sa.children)
        if sa.state is IkeSaState.ESTABLISHED
        else NotifyType.TEMPORARY_FAILURE
    )
    if objection is None and is_followed_up(sa, sa):
        objection = NotifyType.TEMPORARY_FAILURE  # Ours goes on, or the peer gives it up.
    if objection is not None:
        sa.respond((NotifyPayload(type=objection),))
        return
    try:
        _answer(sa, payloads, now)
    except PeerIncompatible as incompatible:
        sa.respond((incompatible.notify,))
        sa.core.emit(
            RequestRefused(tunnel=sa.tunnel_name, path=sa.path, failure=incompatible.failure)
        )


def conclude_ike_rekey(sa: IkeSa, done: Unfinished, now: float, *answer: OpenPayload) -> None:
    """The responder's side, when every key exchange is done."""
    new = sa.successor(
        done.agreement,
        spis=(done.our_spi, done.agreement.chosen.spi),
        is_initiator=False,
        now=now,
    )
    sa.respond((*answer, *offer_token(new)))
    if sa.is_rekeying:
        sa.heir = new
    else:
        inherit(new, sa)
        wait_for_deletion(sa, now)


def _answer(sa: IkeSa, payloads: tuple[OpenPayload, ...], now: float) -> None:
    ke = only(payloads, KePayload)
    nonce_i = only(payloads, NoncePayload).data
    chosen = _choose(sa, only(payloads, SaPayload).proposals, ke)
    answered = answer_ke(ke.method, ke, sa.core.random)
    nonce_r = sa.core.random(NONCE_SIZE)
    agreement = Agreement(chosen=chosen, nonces=(nonce_i, nonce_r), secrets=(answered.secret(),))
    our_spi = sa.core.new_ike_spi()
    _checked_spi(chosen)
    answer = (
        SaPayload(proposals=(replace(chosen, spi=our_spi),)),
        NoncePayload(data=nonce_r),
        answered.payload,
    )
    give_up_rivals(sa, sa)
    if agreement.next_method is None:
        done = Unfinished(link=b"", agreement=agreement, until=now, our_spi=our_spi)
        conclude_ike_rekey(sa, done, now, *answer)
    else:
        sa.respond((*answer, leave_unfinished(sa, agreement, now, our_spi=our_spi)))


def _choose(sa: IkeSa, offered: tuple[Proposal, ...], ke: KePayload) -> Proposal:
    assert sa.tunnel is not None
    chosen = choose_for_method(offered, sa.tunnel.proposals, ke.method)
    if chosen is None:
        ours = ", ".join(map(str, sa.tunnel.proposals))
        raise PeerIncompatible.of(
            "XF2002",
            "no IKE proposal of the peer is one of ours",
            NotifyType.NO_PROPOSAL_CHOSEN,
            evidence=(("we accept", ours), ("they offered", ", ".join(map(str, offered)))),
        )
    return chosen


def _checked_spi(proposal: Proposal) -> bytes:
    if len(proposal.spi) != IKE_SPI_SIZE or not any(proposal.spi):
        raise PeerMisbehaved(f"0x{proposal.spi.hex()} is no SPI of an IKE SA")
    return proposal.spi
