"""One IKE SA: its state, its keys, its life and its end.

Read RFC 7296 sections 1.4, 2.4 and 2.21 first. The way of a message to it stands in `reception`;
what an exchange means, in the modules of the exchanges; sealing, Message IDs and retransmission, in
`channel`; the Child SAs, in `child_sa`; how one takes the place of another, in `succession`; what
it does of itself, in `duties`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from xfrmpy.crypto.key_schedule import IkeKeys, derive_ike_keys, derive_rekeyed_ike_keys
from xfrmpy.failures import Failure
from xfrmpy.ike.agreement import Agreement
from xfrmpy.ike.auth_puzzle import AuthPuzzle
from xfrmpy.ike.channel import Channel
from xfrmpy.ike.child_sa import ChildSa, Scope
from xfrmpy.ike.childless import CHILDLESS_SECONDS
from xfrmpy.ike.collisions import Nonces
from xfrmpy.ike.core import Core
from xfrmpy.ike.crash import TheirTokens
from xfrmpy.ike.credentials import NOTHING_HEARD
from xfrmpy.ike.demand import Demand
from xfrmpy.ike.duties import next_duty
from xfrmpy.ike.exchange import (
    Exchange,
)
from xfrmpy.ike.followup import Unfinished
from xfrmpy.ike.informational import Farewell, LivenessCheck
from xfrmpy.ike.lifetimes import replacement_seconds
from xfrmpy.ike.nat import NatSituation
from xfrmpy.ike.outputs import (
    IkeSaEstablished,
    NatDetected,
    PeerMoved,
    Redirected,
    RequestRefused,
    TunnelClosed,
)
from xfrmpy.ike.resumption import HeldTicket, Resumed
from xfrmpy.ike.states import IKE_SA_TRANSITIONS, IkeSaState, IllegalTransition
from xfrmpy.ike.succession import report_unreplaced
from xfrmpy.ike.timers import earliest
from xfrmpy.ike.transcript import NOTHING_BETWEEN, Transcript
from xfrmpy.ike.uniqueness import expect_one
from xfrmpy.ike.window import OUR_WINDOW_SIZE, Outstanding, PeerSilent
from xfrmpy.ipsec.addresses import IpAddress, Path
from xfrmpy.ipsec.identity import Identity
from xfrmpy.ipsec.proposals import IkeSuite, Proposal, ike_suite, methods_of
from xfrmpy.pki.paths import Path as CertificatePath
from xfrmpy.policy.model import Retransmission, TunnelPolicy
from xfrmpy.registry import ExchangeType, KeyExchangeMethod
from xfrmpy.wire.payloads import OpenPayload

if TYPE_CHECKING:
    from xfrmpy.ike.eap_responder import EapServing
    from xfrmpy.ike.rounds import RoundsServing

HALF_OPEN_SECONDS = 30.0
"""How long a responder waits for IKE_AUTH. strongSwan's half_open_timeout is the same."""

HURRIED_SECONDS = 5.0
"""The same under attack. RFC 8019 section 4.1: two seconds is as low as can be."""

SUSPICION_SECONDS = 10.0
"""How often a hint from anybody may have us ask a peer whether it lives (section 2.21.4)."""

PAUSE_SECONDS = 0.001
"""Between two slices of a long computation, so that everything else gets its turn."""

REFUSAL_SECONDS = 2.0
"""How long an initiator goes on trying after an IKE_SA_INIT was refused: nothing protects that
message, so anybody on the way may have sent it (RFC 7296 section 2.21.1). Long enough for the true
answer of a peer far away, and for the first retransmission."""

FAREWELL_TRIES = 2
"""Retransmissions once we are leaving: nobody waits long for a peer that may be gone."""

RESPONDERS_PART = 0.95
"""The part of the time until a reauthentication after which a responder begins it itself."""

LAST_RESPITE_SECONDS = 60.0
"""What an IKE SA gets that has lived longer already than a new policy allows, to be replaced."""

LINGER_SECONDS = 30.0
"""How long a deleted IKE SA still repeats its last response to a peer that missed it."""

Payloads: TypeAlias = tuple[OpenPayload, ...]

_NO_SCOPES: frozenset[Scope] = frozenset()
_NO_NAMES: tuple[str, ...] = ()
_NEVER: float | None = None
_NO_EXCHANGE: ExchangeType | None = None
_NO_PATHS: tuple[CertificatePath, ...] = ()


class IkeSa:
    """See the module. `tunnel` is None on a responder until it knows who the peer is; `proved` is
    the policy by which the ends have proved who they are, which may be an older one.

    `is_client` tells who began the first IKE SA of a line of rekeyed ones. `nonces` are those of
    the exchange that made it. `replaces` is the IKE SA whose place it takes once its peer is
    authenticated; `heir` is what the peer has made to take the place of this one, while we were at
    the same. `retired` Child SAs only receive, each until its moment. `demand` is what traffic asks
    of it. Of the children that are `filled` the peer will have no more Child SAs with the same
    traffic; `widen_at` is when others get more. `authenticated_as` is its number among
    all whose peer was authenticated, `begun_after` the last one's when it began. `doubted_until`
    is when it ends, if the peer does not show before that it has it. With an `auth_puzzle` there
    are no keys before its solution; `eap_serving` asks a peer by EAP who it is, and `rounds` is
    what a responder knows between two rounds of authentication. `transcript` is what stands between
    IKE_SA_INIT and IKE_AUTH, `heard` what the peer said of itself in IKE_SA_INIT. What it has begun
    and not finished is `unfinished`. `ppk_exchange` is the one in which both ends agree on a
    post-quantum preshared key, None if they use none; `ppk_id` names the one in its keys.
    `certified` are the paths of certificates by which the peer has proved itself, for each round
    that was by one.
    """

    __slots__ = (
        *("alone_at", "asks_pairs", "auth_puzzle", "authenticated_as", "begun_after"),
        *("busy_since", "certified", "channel", "childless_until", "children", "core", "create_at"),
        *("demand", "doubted_until", "eap_serving", "established_at", "filled"),
        *("heard", "heard_at", "heir"),
        *("is_asking_sent", "is_asking_usage", "is_client", "is_initiator", "is_rekeying"),
        *("is_reported", "keys"),
        *("local_id", "nat", "nonces", "on_silence", "peer_follows", "peer_takes_childless"),
        *("postponed", "proposal", "proved", "reauth_at", "redirected_from", "refused_scopes"),
        *("rekey_at", "remote_id", "replaces", "resumed", "retired", "rounds", "seen_idle_at"),
        *(
            "sent_at",
            "state",
            "suite",
            "their_tokens",
            "ticket",
            "ticket_at",
            "transcript",
            "tunnel",
        ),
        *("ppk_exchange", "ppk_id", "unfinished", "up_since", "wait_until", "widen_at"),
        *("_expires_at", "_must_reauth_by", "_refusal", "_step", "_step_at"),
        *("_suspect_again_at", "_was_established"),
    )

    def __init__(
        self,
        core: Core,
        *,
        path: Path,
        is_initiator: bool,
        schedule: Retransmission,
        tunnel: TunnelPolicy | None = None,
        spis: tuple[bytes, bytes] | None = None,
    ) -> None:
        self.core = core
        self.channel = Channel(
            core, path=path, is_initiator=is_initiator, schedule=schedule, spis=spis
        )
        self.is_initiator = self.is_client = is_initiator
        self.tunnel: TunnelPolicy | None = None
        self.proved: TunnelPolicy | None = None
        self.state, self.nat = IkeSaState.INITIATING, NatSituation()
        self.proposal: Proposal | None = None
        self.suite: IkeSuite | None = None
        self.keys: IkeKeys | None = None
        self.remote_id: Identity | None = None
        self.local_id: Identity | None = None
        self.nonces: Nonces = (b"", b"")
        self.transcript, self.heard = NOTHING_BETWEEN, NOTHING_HEARD
        self.children: list[ChildSa] = []
        self.their_tokens: TheirTokens | None = None
        self.ticket: HeldTicket | None = None
        self.resumed: Resumed | None = None
        self.auth_puzzle: AuthPuzzle | None = None
        self.eap_serving: EapServing | None = None
        self.rounds: RoundsServing | None = None
        self.redirected_from: IpAddress | None = None
        self.peer_follows = self.peer_takes_childless = self.asks_pairs = self.is_rekeying = False
        self.on_silence: Callable[[float], None] | None = None
        self.childless_until: float | None = None
        self.ticket_at: float | None = None
        self.retired: list[tuple[float, ChildSa]] = []
        self.replaces: IkeSa | None = None
        self.heir: IkeSa | None = None
        self.unfinished: list[Unfinished] = []
        self.demand, self.ppk_exchange, self.ppk_id = Demand(), _NO_EXCHANGE, ""
        self.refused_scopes, self.certified = _NO_SCOPES, _NO_PATHS
        self.postponed = self.filled = _NO_NAMES
        self.begun_after = self.authenticated_as = core.authentications
        self.established_at = self.up_since = self.heard_at = 0.0
        self.seen_idle_at = self.sent_at = self._suspect_again_at = 0.0
        self.rekey_at = self.reauth_at = _NEVER
        self.wait_until: float | None = None
        self.alone_at: float | None = None
        self.doubted_until: float | None = None
        self.create_at = self.widen_at = _NEVER
        self.busy_since: float | None = None
        self._must_reauth_by: float | None = None
        self._expires_at: float | None = None
        self._refusal: Failure | None = None
        self.is_asking_usage = self.is_asking_sent = self._was_established = self.is_reported = (
            False
        )
        self._step: Callable[[float], bool] | None = None
        self._step_at: float | None = None
        if tunnel is not None:
            self.belong_to(tunnel)
        core.ike_sas[self.our_spi] = self

    @property
    def our_spi(self) -> bytes:
        return self.channel.our_spi

    @property
    def path(self) -> Path:
        return self.channel.path

    @property
    def is_authenticated(self) -> bool:
        """Whether the peer has proved who it is, at any time."""
        return self._was_established

    @property
    def tunnel_name(self) -> str:
        return "" if self.tunnel is None else self.tunnel.name

    # Messages of ours.

    @property
    def can_ask(self) -> bool:
        """Whether a request could leave at once; nothing goes beside a rekeying of the IKE SA."""
        window = self.channel.window
        if self.unfinished and any(u.child is None for u in self.unfinished):
            return False
        return window.is_idle or (window.has_room and not self.is_rekeying)

    def start(self, exchange: Exchange, now: float) -> None:
        """Send a request, or let it wait for those that are on their way."""
        self.channel.window.waiting.append(exchange)
        self.start_waiting(now)

    def respond(self, payloads: Payloads) -> None:
        """Answer the request that is being handled, once."""
        self.channel.respond(payloads)

    def start_waiting(self, now: float) -> None:
        window = self.channel.window
        while window.waiting and self.can_ask:
            if window.is_exhausted:
                summary = "the IKE SA has used up its Message IDs"
                self.close(Failure(code="XF2014", summary=summary), now)
                return
            self.core.touched.add(self)
            self.sent_at = now
            exchange = window.waiting.pop(0)
            if type(exchange) is not LivenessCheck:
                self.core.changed.add(self.our_spi)
            self.channel.ask(exchange, now)

    # Its life.

    def belong_to(self, tunnel: TunnelPolicy) -> None:
        """It is known whose policy holds."""
        self.core.file(self, tunnel)
        self.tunnel = tunnel
        self.channel.tunnel = tunnel.name

    def agree_keys(self, proposal: Proposal, shared_secret: bytes, nonces: Nonces) -> None:
        """Both public values are known: derive the keys."""
        nonce_i, nonce_r = nonces
        keys = derive_ike_keys(
            ike_suite(proposal),
            shared_secret=shared_secret,
            nonce_i=nonce_i,
            nonce_r=nonce_r,
            spi_i=self.channel.spi_i,
            spi_r=self.channel.spi_r,
        )
        self.use_keys(proposal, keys, nonces)
        further = methods_of(proposal)[1:]
        if not further and self.ppk_exchange is ExchangeType.IKE_INTERMEDIATE:
            further = (KeyExchangeMethod.NONE,)
        self.transcript = Transcript(pending=further)

    def use_keys(self, proposal: Proposal, keys: IkeKeys, nonces: Nonces) -> None:
        """Messages are protected from now on."""
        self.proposal, self.nonces = proposal, nonces
        self.suite, self.keys = ike_suite(proposal), keys
        self.channel.protect(self.suite, self.keys)
        if self.state is IkeSaState.INITIATING:
            self._expires_at = self._refusal = None
            self.move_to(IkeSaState.AUTHENTICATING)

    def expect_solution(self, auth_puzzle: AuthPuzzle) -> None:
        """A responder computes the keys when it is worth the work."""
        self.auth_puzzle = auth_puzzle
        self.move_to(IkeSaState.AUTHENTICATING)

    def refused(self, failure: Failure, now: float) -> None:
        """Somebody refuses our IKE_SA_INIT: give up soon, unless the peer answers better."""
        if self._refusal is None:
            self._refusal = failure
            self._expires_at = now + REFUSAL_SECONDS
            self.core.touched.add(self)

    def expect_authentication(self, until: float) -> None:
        """Only so long does it wait for IKE_AUTH to be done."""
        self._expires_at = until
        self.core.touched.add(self)

    def compute(self, step: Callable[[float], bool], now: float) -> None:
        """Call `step` again and again, with pauses, until it is False that there is more to do."""
        self._step, self._step_at = step, now + PAUSE_SECONDS
        self.core.touched.add(self)

    def expect_child(self, now: float) -> None:
        """An IKE SA that is established without a Child SA waits only so long for one."""
        self.childless_until = now + CHILDLESS_SECONDS
        self.core.touched.add(self)

    def found_nat(self, nat: NatSituation) -> None:
        self.nat = nat
        if nat.encapsulated:
            self.core.emit(
                NatDetected(
                    tunnel=self.tunnel_name, ours=nat.ours, theirs=nat.theirs, forced=nat.forced
                )
            )

    def follow_peer(self, path: Path) -> None:
        """An authentic and fresh message, or packet of a Child SA, came on `path`.

        RFC 7296 section 2.23; a replayed one must not get here, "otherwise, an attacker can revert
        the addresses".
        """
        old, new = self.path.remote, path.remote
        if self.state not in (IkeSaState.ESTABLISHED, IkeSaState.DELETING):
            return
        if new == old or not (self.nat.peer_may_move and path.natt and self.path.natt):
            return
        if new.address.version != old.address.version:
            return
        if new.address != old.address and any(c.is_bound_to_addresses for c in self.children):
            return
        self.channel.path = replace(self.path, remote=new)
        self.core.changed.add(self.our_spi)
        for child in self.children:
            child.move(self.path)
        self.core.emit(PeerMoved(tunnel=self.tunnel_name, old=old, new=new))

    def authenticated(
        self, tunnel: TunnelPolicy, *, local: Identity, remote: Identity, now: float
    ) -> None:
        """The peer has proved who it is. There is no other way to a first ESTABLISHED."""
        self.move_to(IkeSaState.ESTABLISHED)
        self.core.authentications += 1
        self.authenticated_as = self.core.authentications
        self.belong_to(tunnel)
        self.local_id, self.remote_id, self.proved = local, remote, tunnel
        self.channel.window.schedule = tunnel.retransmission
        self.channel.window.widen_ours(OUR_WINDOW_SIZE)
        self.channel.init_request = self.channel.init_response = b""
        self.channel.forget_replaced_keys()
        self.transcript, self.eap_serving, self.rounds = NOTHING_BETWEEN, None, None
        self._begin_life(now)
        if tunnel.reauth_seconds is not None:
            self.limit_authentication(tunnel.reauth_seconds, now)
        expect_one(self, now)
        self.core.emit(
            IkeSaEstablished(
                tunnel=tunnel.name,
                path=self.path,
                suite=str(self.suite),
                remote_id=str(remote),
                is_initiator=self.is_initiator,
                redirected_from=self.redirected_from,
            )
        )

    def limit_authentication(self, seconds: float, now: float) -> None:
        """Who the peer is must be proved again within so many seconds, if not earlier.

        A responder leaves that to the initiator, which it has told (RFC 4478), almost to the end.
        """
        ends = [end for end in (self._must_reauth_by, now + seconds) if end is not None]
        self._must_reauth_by = min(ends)
        self._expires_at = min(self._must_reauth_by, self._expires_at or self._must_reauth_by)
        if self.can_begin_anew:
            part = RESPONDERS_PART * seconds
            wait = replacement_seconds(seconds, self.core.random) if self.is_initiator else part
            self.reauth_at = min(now + wait, self.reauth_at or now + wait)
        self.core.touched.add(self)

    @property
    def authentication_seconds(self) -> float | None:
        """For how long from its making on it is believed who the peer is; None: for good."""
        end = self._must_reauth_by
        return None if end is None else end - self.established_at

    def limit_life(self, seconds: float, now: float) -> None:
        """It may live so long in all, unless it was to end earlier already."""
        end = max(self.established_at + seconds, now + LAST_RESPITE_SECONDS)
        self._expires_at = min(end, self._expires_at or end)
        due_at = self.established_at + replacement_seconds(seconds, self.core.random)
        self.rekey_at = min(due_at, self.rekey_at or due_at)

    def need_not_reauthenticate(self) -> None:
        """Who the ends are is as it was proved, so only time asks for it."""
        end = self._must_reauth_by
        begun = self.established_at
        self.reauth_at = None if end is None else begun + RESPONDERS_PART * (end - begun)

    @property
    def can_begin_anew(self) -> bool:
        """Whether the peer can be reached by a new IKE_SA_INIT.

        One behind a NAT, of which policy knows no address, is reached only through what it began,
        and one that proves by EAP who it is must call.
        """
        if self.tunnel is None or self.tunnel.acceptance is not None:
            return False
        return bool(self.tunnel.peers) or not self.nat.theirs

    def successor(
        self,
        agreement: Agreement,
        *,
        spis: tuple[bytes, bytes],
        is_initiator: bool,
        now: float,
    ) -> IkeSa:
        """An IKE SA with the same peer, made under the protection of this one (section 2.18).

        `spis` are ours and theirs. It has none of the Child SAs yet.
        """
        assert self.suite is not None
        assert self.keys is not None
        new = IkeSa(
            self.core,
            path=self.path,
            is_initiator=is_initiator,
            schedule=self.channel.window.schedule,
            tunnel=self.tunnel,
            spis=spis,
        )
        new.proposal, new.nonces = agreement.chosen, agreement.nonces
        new.suite = ike_suite(new.proposal)
        new.keys = derive_rekeyed_ike_keys(
            new.suite,
            old_prf=self.suite.prf,
            old_sk_d=self.keys.sk_d,
            shared_secret=agreement.shared_secret,
            nonce_i=new.nonces[0],
            nonce_r=new.nonces[1],
            spi_i=new.channel.spi_i,
            spi_r=new.channel.spi_r,
            further_secrets=agreement.further_secrets,
        )
        new.channel.protect(new.suite, new.keys)
        new.state = IkeSaState.ESTABLISHED
        self.core.changed.add(new.our_spi)
        new.channel.inherit(self.channel)
        new.nat, new.local_id, new.remote_id = self.nat, self.local_id, self.remote_id
        new.authenticated_as, new.proved = self.authenticated_as, self.proved
        new.alone_at, new.childless_until = self.alone_at, self.childless_until
        new.is_client, new.peer_follows = self.is_client, self.peer_follows
        new.ppk_id, new.ppk_exchange = self.ppk_id, self.ppk_exchange
        new.certified = self.certified
        # Section 6.2 of RFC 5723: "When the IKE SA is rekeyed, the ticket is invalidated".
        new.ticket_at = None if self.ticket is None else now
        new.reauth_at, new._must_reauth_by = self.reauth_at, self._must_reauth_by
        new._begin_life(now)
        return new

    def _begin_life(self, now: float) -> None:
        assert self.tunnel is not None
        self._was_established = True
        self.established_at = self.up_since = self.heard_at = self.sent_at = now
        lifetime = self.tunnel.lifetime_seconds
        ends = [self._must_reauth_by, None if lifetime is None else now + lifetime]
        self._expires_at = min((end for end in ends if end is not None), default=None)
        if lifetime is not None:
            self.rekey_at = now + replacement_seconds(lifetime, self.core.random)
        self.core.touched.add(self)

    def terminate(self, failure: Failure | None, now: float, *payloads: OpenPayload) -> None:
        """Take everything out of force and tell the peer.

        `failure` None is our operator's wish. `payloads` go to the peer in place of a Delete.
        """
        if self.state in (IkeSaState.DELETING, IkeSaState.DELETED):
            return
        if not self.channel.is_protected:
            self.close(failure, now)
            return
        self._close_children()
        if failure is not None:
            self._report_closed(failure, now)
        self.bid_farewell(now, *payloads)

    def bid_farewell(self, now: float, *payloads: OpenPayload) -> None:
        """The last request: a Delete, or `payloads` in place of it."""
        self.move_to(IkeSaState.DELETING)
        self.unfinished.clear()
        self.channel.window.waiting.clear()
        self.channel.window.hurry(FAREWELL_TRIES)
        self.start(Farewell(self, payloads), now)

    def redirected(self, gateway: IpAddress | str, now: float) -> None:
        """The peer sends us to another gateway: report that, and end without any other report."""
        self.core.emit(
            Redirected(tunnel=self.tunnel_name, gateway=gateway, original=self.path.remote.address)
        )
        self.is_reported = True
        self.terminate(None, now)

    def keep_ticket(self, ticket: HeldTicket) -> None:
        """The peer's ticket for this IKE SA; it is deleted with it (RFC 5723 section 6.2)."""
        self.ticket, self.ticket_at = ticket, ticket.renew_at
        self.core.touched.add(self)

    def lose(self, failure: Failure, now: float) -> None:
        """The peer is gone, nobody has deleted anything: the ticket outlives the IKE SA."""
        if self.ticket is not None and self.state is IkeSaState.ESTABLISHED:
            self.core.tickets[self.tunnel_name] = self.ticket
        self.close(failure, now)

    def close(self, failure: Failure | None, now: float) -> None:
        """The end. Our last response is repeated for a while to a peer that missed it."""
        if self.state is IkeSaState.DELETED:
            return
        if self.state is IkeSaState.DELETING:
            failure = None  # It has its reason already; how the peer took it is no other.
        self._close_children()
        self.unfinished.clear()
        self.channel.close()
        self.move_to(IkeSaState.DELETED)
        self._expires_at = now + LINGER_SECONDS
        self.core.touched.add(self)
        if self.heir is not None and not self.heir.children:
            self.heir.close(failure, now)
        self._report_closed(failure, now)

    def _close_children(self) -> None:
        for child in self.children:
            child.close()
        self.children.clear()

    def bury_retired(self) -> None:
        """Take out of force what only receives."""
        for _, child in self.retired:
            child.close()
        self.retired.clear()
        self.core.touched.add(self)
        self.core.changed.add(self.our_spi)

    def _report_closed(self, failure: Failure | None, now: float) -> None:
        if self.is_reported:
            return
        self.is_reported = True
        old = self.replaces
        if old is not None and (old.state is IkeSaState.ESTABLISHED or not self._was_established):
            report_unreplaced(self, old, failure, now)
        elif self.is_initiator or self._was_established:
            self.core.emit(
                TunnelClosed(
                    tunnel=self.tunnel_name,
                    was_established=self._was_established,
                    is_initiator=self.is_initiator,
                    failure=failure,
                )
            )
        elif failure is not None:
            self.core.emit(RequestRefused(tunnel=self.tunnel_name, path=self.path, failure=failure))

    def suspect(self, now: float) -> None:
        """Anybody says that the peer has lost its state: ask it, unless we do or did lately."""
        is_ready = self.state is IkeSaState.ESTABLISHED and self.can_ask
        if not is_ready or now < self._suspect_again_at:
            return
        self._suspect_again_at = now + SUSPICION_SECONDS
        self.start(LivenessCheck(self), now)

    # Time.

    @property
    def next_timeout(self) -> float | None:
        duty = next_duty(self)
        return self.timeout_with(None if duty is None else duty[0])

    def timeout_with(self, duty_at: float | None) -> float | None:
        """When something is to be done, if it is known when the next duty is."""
        return earliest(self.channel.next_timeout, self._expires_at, self._step_at, duty_at)

    def handle_timeout(self, now: float) -> None:
        """Whatever is due: expiry, a retransmission, a duty."""
        self.channel.forget_fragments(now)
        if self._expires_at is not None and now >= self._expires_at:
            self._expire(now)
            return
        self._compute_on(now)
        try:
            if self.channel.retransmit(now):
                self.sent_at = now
        except PeerSilent as silent:
            self._give_up(silent.request, now)
            return

    def attend(self, now: float) -> None:
        """Do every duty that is due and can be done.

        What waits for the datapath's answer comes first: with that it is attended to again.
        """
        while not (self.is_asking_usage or self.is_asking_sent):
            duty = next_duty(self)
            if duty is None or duty[0] > now:
                self.core.attended[self] = None if duty is None else duty[0]
                self.core.touched.discard(self)
                return
            duty[1](now)

    def _compute_on(self, now: float) -> None:
        if self._step is None or self._step_at is None or now < self._step_at:
            return
        step, self._step, self._step_at = self._step, None, None
        if self.state is not IkeSaState.DELETED and step(now):
            self.compute(step, now)

    def _expire(self, now: float) -> None:
        if self.state is IkeSaState.DELETED:
            self.bury_retired()
            self.core.forget(self)
        elif self._was_established:
            summary = f"the IKE SA with {self.remote_id} was not replaced in time"
            self._expires_at = None
            self.terminate(Failure(code="XF2014", summary=summary), now)
        else:
            summary = f"{self.path.remote} began an exchange and did not go on with IKE_AUTH"
            self.close(self._refusal or Failure(code="XF2001", summary=summary), now)
            self.core.forget(self)

    def _give_up(self, request: Outstanding, now: float) -> None:
        if self.on_silence is not None:
            self.on_silence(now)
            return
        exchange = request.exchange.type.name
        count = request.retransmissions + 1
        summary = f"{self.path.remote} did not answer {exchange}, sent {count} times"
        self.lose(Failure(code="XF2001", summary=summary), now)

    def move_to(self, state: IkeSaState) -> None:
        if state not in IKE_SA_TRANSITIONS[self.state]:
            raise IllegalTransition(f"IKE SA: {self.state} to {state}")
        self.state = state
        self.core.touched.add(self)
        self.core.changed.add(self.our_spi)
        if self.replaces is not None:  # Which counts on it from the moment at which it is kept.
            self.core.changed.add(self.replaces.our_spi)
